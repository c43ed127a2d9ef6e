"""The application on a real Ray, its segments spread over actors, against one process over the same index."""

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from service_files import write_index

from pipelines.artifact import Artifact
from pipelines.encoder import Encoder
from pipelines.index_changes import compact, delete
from pipelines.search import Index
from pipelines.searching.opened import Opened
from pipelines.searching.scan import Queries
from pipelines.serving.answers import Searcher
from pipelines.serving.cluster import Serving, Share, SpreadIndex, serving, started
from pipelines.serving.config import ServeConfig
from pipelines.serving.requests import Query
from vae_core.errors import Misuse, Stale

QUERIES: list[dict[str, Any]] = [
    {"text": "ship storm", "k": 12},
    {"text": "bread and moon", "k": 300, "rank": "hamming"},
    {"text": "anchor", "k": 7, "filter": "lang = 'en' and year >= 2010"},
    {"id": "sea/150", "k": 20, "explain": True},
    {"code": "0f3c", "k": 9, "rank": "hamming", "filter": "labels = 'space'"},
    {"text": "qqqq"},
    {"text": "ship", "filter": "colour = 'red'"},
    {"id": "nowhere"},
    {"code": "abcd12"},
]
CONFIG = {"refresh_s": 0, "rate": None, "cluster": {"replicas": 2, "spread": 3, "cores": 0.1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of five segments over ever the same 16-bit codes, so that many scores are ties."""
    folder = tmp_path_factory.mktemp("spread")
    write_index(folder, segments=5)
    return folder


def spread(index: Path, of: int) -> tuple[SpreadIndex, list[Share]]:
    """An index whose shares are in this process."""
    shares = [Share(index, number, of) for number in range(of)]
    return SpreadIndex(
        Artifact.open(index, "index"), lambda *asked: [share.nearest(*asked) for share in shares]
    ), shares


@pytest.mark.parametrize("of", [1, 2, 5, 7])
@pytest.mark.parametrize("rank", ["log-odds", "hamming"])
def test_merged_shares_rank_as_one_index_does(run: Path, of: int, rank: Any) -> None:
    whole, (index, _) = Index.open(run / "index"), spread(run / "index", of)
    log_odds = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32).round(1)
    for k in (1, 13, 300):
        for where in (None, "lang = 'en'", "year > 3000"):
            ours, theirs = (one.search(log_odds, k, rank, where) for one in (index, whole))
            for name in ("rows", "scores", "distances"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_share_that_is_a_version_ahead_answers_of_the_one_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "index", tmp_path / "index")
    index, shares = spread(tmp_path / "index", 2)
    log_odds = np.ones((1, 16), np.float32)
    before = index.search(log_odds, 300).rows
    delete(tmp_path / "index", ["sea/0"])
    assert shares[0].nearest(1, Queries.of(log_odds, 16), 5, "log-odds", None, False) is not None
    np.testing.assert_array_equal(index.search(log_odds, 300).rows, before)
    index.refresh()
    assert (index.search(log_odds, 300).rows >= 0).sum() == 299


def test_a_process_that_is_behind_goes_on_to_the_version_that_the_shares_have(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "index", tmp_path / "index")
    index, _ = spread(tmp_path / "index", 2)
    stale: Opened = index.opened
    delete(tmp_path / "index", ["sea/0"])
    compact(tmp_path / "index")
    index.ask = lambda *asked: [share.nearest(*asked) for share in (Share(tmp_path / "index", n, 2) for n in range(2))]
    found = index.search(np.ones((1, 16), np.float32), 300)
    assert (index.opened is not stale, (found.rows >= 0).sum()) == (True, 299)


def test_what_cannot_be_served_is_refused_before_a_cluster_is_started(run: Path, tmp_path: Path) -> None:
    write_index(tmp_path, seed=1)
    with pytest.raises(Stale, match="holds codes of the model"):
        serving(run / "index", tmp_path / "model", None, "127.0.0.1", 8000, ServeConfig())
    with pytest.raises(Misuse, match="give --port"):
        serving(run / "index", None, None, "127.0.0.1", 0, ServeConfig())


@pytest.fixture(scope="module")
def address(run: Path, ray_cluster: None) -> Iterator[str]:
    """The application on the session's Ray: two replicas, three shares."""
    del ray_cluster
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    what: Serving = serving(run / "index", None, None, "127.0.0.1", port, ServeConfig.model_validate(CONFIG))
    started(what)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.slow
def test_the_cluster_gives_the_answers_of_one_process_and_takes_changes(run: Path, address: str) -> None:
    searcher = Searcher(Index.open(run / "index"), Encoder.load(run / "model"))
    with httpx2.Client(base_url=address, timeout=60) as client:
        for _ in range(3):  # whichever replica answers
            for query, expected in zip(QUERIES, searcher.answer([Query(**one) for one in QUERIES]), strict=True):
                answered = client.post("/search", json=query).json()
                assert answered == (expected if isinstance(expected, dict) else {"error": str(expected)})
        note = {"id": "note", "text": "ship storm harbour", "labels": ["notes"]}
        changed = client.post("/documents", json={"documents": [note]}).json()
        assert (changed["added"], changed["documents"], changed["version"]) == (1, 301, 1)
        for _ in range(6):
            hits = client.post("/search", json={"text": "ship", "filter": "labels = 'notes'"}).json()["hits"]
            assert [hit["id"] for hit in hits] == ["note"]
        assert client.request("DELETE", "/documents/note").json()["deleted"] == 1
        assert client.get("/readyz").json() == {"status": "ready"}


@pytest.mark.slow
def test_while_a_share_is_started_again_clients_are_told_to_retry_and_then_answered(address: str) -> None:
    import ray

    def shares() -> list[dict[str, str]]:
        return [one for one in ray.util.list_named_actors(all_namespaces=True) if "segments-1" in one["name"]]

    (before,) = shares()
    ray.kill(ray.get_actor(before["name"], before["namespace"]), no_restart=True)
    told: set[int] = set()
    with httpx2.Client(base_url=address, timeout=60) as client:
        deadline = time.monotonic() + 90
        while shares() in ([], [before]) or 200 not in told:
            assert time.monotonic() < deadline
            told.add(client.post("/search", json={"text": "ship"}).status_code)
            time.sleep(0.2)
        assert told <= {200, 503}
        assert len(client.post("/search", json={"text": "ship", "k": 300}).json()["hits"]) == 300
