import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from pipelines.artifact import UNFINISHED, Artifact
from pipelines.corpus import CorpusConfig, Document
from pipelines.tokenize import TokenizeConfig, tokenize
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.tokenizing import duplicates, slices
from vae_core.errors import LatentbitsError, Stale

CONFIG = TokenizeConfig(subwords=400, max_tokens=12)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"]


class Killed(Exception):
    pass


class KilledAfter:
    """A watcher that ends the stage once so many parts are done."""

    def __init__(self, parts: int) -> None:
        self.left = parts
        self.done: list[int] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        assert (stage, unit) == ("tokenize", "bytes")
        self.total = total

    def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
        del note, metrics
        if amount:
            self.done.append(amount)
            self.left -= 1
            if self.left == 0:
                raise Killed

    def finish(self) -> None:
        assert sum(self.done) == self.total


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SMALLEST", 4000)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a worker sets it, here in this process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Part after part in this process: what happens in one does not depend on Ray, which takes seconds to start."""

    def one_after_another(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any]) -> Iterator[Any]:
        return map(make_worker(), items)

    monkeypatch.setattr(sys.modules[tokenize.__module__], "scatter", one_after_another)


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(start)
    return [
        {"id": f"d{n}", "text": " ".join(generator.choice(WORDS, 3 + n % 20)), "topic": "t", "n": n}
        for n in range(start, start + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def corpus(folder: Path) -> CorpusConfig:
    return CorpusConfig(files=(str(folder / "*.jsonl"),), id="id", labels="topic", metadata=("n",))


def shards(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for path in artifact.files(".arrow") for row in pa.ipc.open_file(str(path)).read_all().to_pylist()]


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.usefixtures("ray_cluster")
def test_shards_hold_every_document_in_order_and_the_manifest_its_sums(tmp_path: Path) -> None:
    written = rows(200)
    write(tmp_path / "a.jsonl", written)
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    artifact.verify()
    found = shards(artifact)
    assert len(artifact.files(".arrow")) > 3
    for row, made in zip(written, found, strict=True):
        assert (made["id"], made["labels"], made["metadata"]) == (row["id"], ["t"], {"n": row["n"]})
        assert made["text"] == row["text"][:240]
    texts = [row["text"] for row in written]
    tokenizer = Tokenizer.load(tmp_path / "out")
    reference = CountVectorizer(vocabulary=list(tokenizer.vocabulary.ids)).transform(texts)
    library = learn_bpe(texts, 400)
    lengths = [len(encoding.ids) for encoding in library.encode_batch(texts)]
    assert artifact.manifest.statistics == {
        "documents": 200,
        "rejected": 0,
        "tokens": sum(min(length, 12) for length in lengths),
        "terms": reference.sum(),
        "bytes": sum(len(text.encode()) for text in texts),
        "truncated": sum(length > 12 for length in lengths),
    }
    assert not (tmp_path / "out" / UNFINISHED).exists()


@pytest.mark.usefixtures("in_process")
def test_document_frequencies_are_counted_on_the_sample(tmp_path: Path) -> None:
    written = rows(150)
    write(tmp_path / "a.jsonl", written)
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG.model_copy(update={"max_share": 1.0}))
    table = pq.read_table(artifact.path / "vocabulary.parquet")
    df = Counter(word for row in written for word in set(row["text"].split()))
    assert dict(zip(table["term"].to_pylist(), table["df"].to_pylist(), strict=True)) == df
    assert table.schema.metadata[b"documents"] == b"150"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("at_once", [2_000_000, 40])
def test_the_first_of_equal_ids_stays_and_the_others_name_it(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "WALKED_AT_ONCE", at_once)
    write(tmp_path / "a.jsonl", [*rows(100), {"id": "d3", "text": "alpha within the file"}])
    write(
        tmp_path / "b.jsonl", [{"id": "d50", "text": "beta in another"}, *rows(100, 100), {"id": "d3", "text": "iota"}]
    )
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    artifact.verify()
    assert [row["id"] for row in shards(artifact)] == [f"d{n}" for n in range(200)]
    assert pq.read_table(tmp_path / "out/rejected.parquet").to_pylist() == [
        {"file": "a.jsonl", "position": 101, "reason": "duplicate id: first at a.jsonl:4"},
        {"file": "b.jsonl", "position": 1, "reason": "duplicate id: first at a.jsonl:51"},
        {"file": "b.jsonl", "position": 102, "reason": "duplicate id: first at a.jsonl:4"},
    ]
    write(tmp_path / "a.jsonl", rows(100))
    write(tmp_path / "b.jsonl", rows(100, 100))
    clean = tokenize(corpus(tmp_path), tmp_path / "clean", CONFIG)
    sums = ("documents", "bytes")
    assert [artifact.manifest.statistics[name] for name in sums] == [clean.manifest.statistics[name] for name in sums]
    for statistic, column in (("tokens", "tokens"), ("terms", "term_counts")):
        lists = [row[column] for row in shards(artifact)]
        total = sum(map(len, lists)) if statistic == "tokens" else sum(map(sum, lists))
        assert artifact.manifest.statistics[statistic] == total


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_run_is_finished_with_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows(200), {"id": "d3", "text": "alpha again"}, {"id": "x"}])
    whole = tokenize(corpus(tmp_path), tmp_path / "whole", CONFIG)
    with pytest.raises(Killed):
        tokenize(corpus(tmp_path), tmp_path / "out", CONFIG, progress=KilledAfter(2))
    receipts = (tmp_path / "out" / UNFINISHED).glob("part-*.arrow.json")
    done = {tmp_path / "out" / receipt.stem for receipt in receipts}
    # The last part is written anew in the end, without its duplicate.
    times = {
        path: path.stat().st_mtime_ns for path in sorted(done - {tmp_path / "out" / whole.files(".arrow")[-1].name})
    }
    assert times
    finished = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG, progress=KilledAfter(-1))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert finished.manifest.statistics == whole.manifest.statistics
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.usefixtures("in_process")
def test_a_kill_while_duplicates_are_taken_out_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [{"id": "d3", "text": "alpha again"}, *rows(100), *rows(100, 100), {"id": "d60", "text": "iota again"}]
    write(tmp_path / "a.jsonl", twice)
    tokenize(corpus(tmp_path), tmp_path / "whole", CONFIG)
    for kill_at in (1, 2):
        with monkeypatch.context() as killed:
            killed.setattr(duplicates, "record_part", partial(_killed_at, Counter({"left": kill_at})))
            with pytest.raises(Killed):
                tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    monkeypatch.setattr(slices, "SMALLEST", 4000)
    tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def _killed_at(counter: Counter[str], folder: Path, name: str, count: int, statistics: dict[str, Any]) -> Any:
    from pipelines.artifact import record_part

    counter["left"] -= 1
    if counter["left"] == 0:
        raise Killed
    return record_part(folder, name, count, statistics)


@pytest.mark.usefixtures("in_process")
def test_a_lost_part_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows(200), {"id": "d3", "text": "alpha again"}])
    whole = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    before = bytes_of(tmp_path / "out")
    whole.files(".arrow")[1].unlink()
    assert tokenize(corpus(tmp_path), tmp_path / "out", CONFIG).manifest.statistics == whole.manifest.statistics
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.usefixtures("in_process")
def test_an_artifact_stays_up_to_date_when_files_move_and_goes_stale_when_they_change(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(50))
    first = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "moved/a.jsonl")
    moved = corpus(tmp_path / "moved")
    patient = CONFIG.model_copy(update={"rejected_budget": 0.5})
    assert tokenize(moved, tmp_path / "out", patient).manifest.created == first.manifest.created
    write(tmp_path / "moved/a.jsonl", rows(51))
    with pytest.raises(Stale, match=r"input file:a.jsonl has changed"):
        tokenize(moved, tmp_path / "out", CONFIG)


@pytest.mark.usefixtures("in_process")
def test_too_many_rejected_rows_end_the_stage_with_their_kinds_and_places(tmp_path: Path) -> None:
    bad = [*[{"id": f"e{n}", "text": ""} for n in range(8)], {"text": "no id"}, {"id": "d1", "text": "a duplicate"}]
    write(tmp_path / "a.jsonl", [*rows(20), *bad, {"id": "last", "text": 5}])
    with pytest.raises(LatentbitsError) as raised:
        tokenize(corpus(tmp_path), tmp_path / "out", CONFIG)
    message = str(raised.value)
    for fact in ("11 of 31 rows", "8 x empty text", "1 x duplicate id", "a.jsonl:21 empty text", "a.jsonl:23"):
        assert fact in message
    assert "a.jsonl:24" not in message
    assert "--set tokenize.rejected_budget=0.36" in message
    allowed = CONFIG.model_copy(update={"rejected_budget": 0.36})
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", allowed, progress=KilledAfter(-1))
    assert artifact.manifest.statistics["rejected"] == 11


@pytest.mark.usefixtures("in_process")
def test_ten_rejected_rows_are_allowed_except_by_a_budget_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows(20), *[{"id": f"e{n}", "text": ""} for n in range(10)]])
    assert tokenize(corpus(tmp_path), tmp_path / "out", CONFIG).manifest.statistics["rejected"] == 10
    with pytest.raises(LatentbitsError, match=r"allows 0\.0%"):
        tokenize(corpus(tmp_path), tmp_path / "none", CONFIG.model_copy(update={"rejected_budget": 0.0}))


@pytest.mark.usefixtures("in_process")
def test_a_corpus_without_documents_says_why(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"id": "a", "text": " "}] * 3)
    with pytest.raises(LatentbitsError, match=r"no documents in .*\n  a.jsonl:1 empty text"):
        tokenize(CorpusConfig(files=(str(tmp_path / "a.jsonl"),), id="id"), tmp_path / "out", CONFIG)


@pytest.mark.usefixtures("in_process")
def test_metadata_of_another_type_than_the_samples_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows(60), {"id": "odd", "text": "alpha", "topic": None, "n": "many"}])
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", CONFIG.model_copy(update={"sample": 20}))
    assert pq.read_table(tmp_path / "out/rejected.parquet")["reason"].to_pylist() == [
        "metadata of another type: field 'n' holds 'many' and the corpus's other rows int64"
    ]
    assert {row["metadata"]["n"] for row in shards(artifact)} == set(range(60))


@pytest.mark.usefixtures("in_process")
def test_many_small_files_share_parts(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_text(f"alpha beta {number}\ngamma\n")
    config = CorpusConfig(files=(str(tmp_path / "*.txt"),), txt="files")
    artifact = tokenize(config, tmp_path / "out", CONFIG)
    assert len(artifact.files(".arrow")) == 1
    assert [row["id"] for row in shards(artifact)] == [f"{number:02d}.txt:1" for number in range(40)]


@pytest.mark.usefixtures("in_process")
def test_a_given_tokenizer_is_used_and_is_an_input(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(30))
    given = learn_bpe(["zzz alpha"] * 3, 300)
    given.save(str(tmp_path / "given.json"))
    config = TokenizeConfig(tokenizer=str(tmp_path / "given.json"))
    artifact = tokenize(corpus(tmp_path), tmp_path / "out", config)
    assert artifact.input("tokenizer").fingerprint == hashlib.sha256((tmp_path / "given.json").read_bytes()).hexdigest()
    assert [row["tokens"] for row in shards(artifact)] == [
        e.ids for e in given.encode_batch([r["text"] for r in rows(30)])
    ]
    loaded = Tokenizer.load(tmp_path / "out").table([Document("a", "alpha beta", [], {}, "f", 1)])
    assert loaded["tokens"].to_pylist() == [given.encode("alpha beta").ids]
