"""`latentbits serve` as it is run: a process of its own, asked over real sockets, told to stop by real signals."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tiny_run import Said, Tiny

from jobs.query import Asked, Wanted, answer, answer_code, answer_id
from pipelines.index_changes import compact, delete
from pipelines.storage import Store
from tests.s3_server import bucket, s3

__all__ = ["bucket", "s3"]

BINARY = Path(sys.executable).with_name("latentbits")
TOKEN = "secret-of-the-test"
Cli = Callable[..., Said]


class Served(NamedTuple):
    """A running service, and where it writes its log."""

    process: "subprocess.Popen[str]"
    address: str
    log: Path

    def client(self, token: str | None = None) -> httpx2.Client:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=60)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def served(index: Path, place: Path, *options: str, token: str | None = None) -> Iterator[Served]:
    environment = {name: value for name, value in os.environ.items() if name != "LATENTBITS_TOKEN"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if token is None else {"LATENTBITS_TOKEN": token})
    log = place / "log"
    command = [BINARY, "serve", index, "--port", "0", "--set", "serve.rate=null", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), log.read_text()
        yield Served(process, address, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that no test stops or changes."""
    with served(tiny.folder / "index", tmp_path_factory.mktemp("serve")) as running:
        yield running


def test_the_hits_are_those_that_query_prints(service: Served, tiny: Tiny) -> None:
    asked = Asked(tiny.folder / "index")
    code = asked.index.code(7).tobytes().hex()
    with service.client() as client:
        for rank in ("log-odds", "hamming"):
            wanted = Wanted(k=9, rank=rank, where="labels != 'space'")
            common = {"k": 9, "rank": rank, "filter": "labels != 'space'"}
            (expected,) = answer(asked, ["ship bread moon"], wanted)
            assert client.post("/search", json={"text": "ship bread moon", **common}).json() == expected
            assert client.post("/search", json={"id": "sea-3", **common}).json() == answer_id(asked, "sea-3", wanted)
            assert client.post("/search", json={"code": code, **common}).json() == answer_code(asked, code, wanted)


def test_what_was_found_is_explained_as_query_explains_it(service: Served, tiny: Tiny) -> None:
    (expected,) = answer(Asked(tiny.folder / "index"), ["ship bread moon"], Wanted(k=5, explain=True))
    with service.client() as client:
        hits = client.post("/search", json={"text": "ship bread moon", "k": 5, "explain": True}).json()["hits"]
    assert [hit["why"] for hit in hits] == [hit["why"] for hit in expected["hits"]]


def test_what_the_command_prints_and_what_the_service_answers_are_the_same_bytes(
    service: Served, tiny: Tiny, latentbits: Cli
) -> None:
    printed = json.loads(latentbits("query", tiny.folder / "index", "ship storm", "-k", "3", "--json").out)
    with service.client() as client:
        assert client.post("/search", json={"text": "ship storm", "k": 3}).json() == printed


def test_many_clients_at_once_get_their_own_answers_in_few_batches(service: Served) -> None:
    words = ["ship", "bread", "rocket", "harbour", "oven", "moon", "salt", "comet"]
    wrong: list[str] = []

    def ask(word: str) -> None:
        with service.client() as client:
            expected = client.post("/search", json={"text": word, "k": 5}).json()
            for _ in range(15):
                got = client.post("/search", json={"text": word, "k": 5}).json()
                # A batch pads its documents to one length, which may change the last digits of a float32.
                if [hit["id"] for hit in got["hits"]] != [hit["id"] for hit in expected["hits"]]:
                    wrong.append(word)

    threads = [threading.Thread(target=ask, args=(word,)) for word in words * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with service.client() as client:
        figures = client.get("/metrics").text
    batches = next(
        float(line.split()[1]) for line in figures.splitlines() if line.startswith("latentbits_batch_queries_count")
    )
    assert batches < 16 * 16


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_it_took_and_ends_well(tiny: Tiny, tmp_path: Path, ending: signal.Signals) -> None:
    """Every request that reached the service is answered whole; those after are refused by the closed socket."""
    answered, refused, broken = [], [], []
    with served(tiny.folder / "index", tmp_path) as running:

        def ask(until: float) -> None:
            with httpx2.Client(base_url=running.address, timeout=60) as client:
                while time.monotonic() < until:
                    try:
                        got = client.post(
                            "/search", json={"text": "ship storm", "k": 3}, headers={"connection": "close"}
                        )
                        (answered if len(got.json()["hits"]) == 3 else broken).append(got.status_code)
                    except httpx2.ConnectError:
                        refused.append(1)
                        return
                    except httpx2.HTTPError as error:
                        broken.append(repr(error))

        threads = [threading.Thread(target=ask, args=(time.monotonic() + 20,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        running.process.send_signal(ending)
        for thread in threads:
            thread.join()
        assert running.process.wait(30) == 0
        assert (len(refused), set(answered)) == (8, {200})
        # A connection that the kernel took but the service never saw may be reset; an answer that was begun may not.
        assert all("ConnectError" in one or "ReadError" in one or "RemoteProtocolError" in one for one in broken)
        assert len(broken) <= 8
        done = [line for line in running.lines() if line["event"] == "request"]
        assert {line["status"] for line in done} == {200}
        assert len(done) == len(answered)
        assert [line["event"] for line in running.lines()].count("stopped") == 1


def test_a_version_that_is_published_while_clients_ask_costs_none_of_them_an_answer(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    statuses: list[int] = []
    with served(copied.folder / "index", tmp_path, "--set", "serve.refresh_s=0") as running:
        stop = threading.Event()

        def ask() -> None:
            with running.client() as client:
                while not stop.is_set():
                    statuses.append(client.post("/search", json={"text": "ship", "k": 20}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        with running.client() as client:
            for number in range(6):
                delete(copied.folder / "index", [f"sea-{3 * number}"])
                added = {"documents": [{"id": f"new-{number}", "text": "ship storm", "labels": ["new"]}]}
                assert client.post("/documents", json=added).status_code == 200
                assert client.get(f"/documents/sea-{3 * number}").status_code == 404
            compact(copied.folder / "index")
            assert client.post("/search", json={"text": "ship", "k": 300}).status_code == 200
            assert client.get("/facts").json()["documents"] == 300
        stop.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_document_that_was_answered_for_is_there_after_a_kill(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    with served(copied.folder / "index", tmp_path) as running, running.client() as client:
        for number in range(3):
            body = {"documents": [{"id": f"new-{number}", "text": "bread oven"}]}
            assert client.post("/documents", json=body).json()["added"] == 1
        running.process.kill()
        running.process.wait()
    with served(copied.folder / "index", tmp_path) as running, running.client() as client:
        assert all(client.get(f"/documents/new-{number}").status_code == 200 for number in range(3))


def test_an_index_in_a_store_is_searched_and_no_document_is_taken_that_would_be_lost(
    tiny: Tiny, bucket: str, tmp_path: Path
) -> None:
    for kind in ("model", "index"):
        for file in filter(Path.is_file, (tiny.folder / kind).rglob("*")):
            Store.at(f"{bucket}/run/{kind}").upload(file, str(file.relative_to(tiny.folder / kind)))
    with served(Path(f"{bucket}/run/index"), tmp_path) as service, service.client() as client:
        assert client.post("/search", json={"text": "storm in the harbour", "k": 3}).json()["hits"]
        before = client.get("/facts").json()["documents"]
        refused = client.post("/documents", json={"documents": [{"id": "new", "text": "storm"}]})
        assert refused.status_code == 400
        assert f"{bucket}/run/index lies in a store" in refused.json()["error"]
        assert client.get("/facts").json()["documents"] == before


def test_with_a_token_it_listens_to_all_and_answers_those_who_send_it(tiny: Tiny, tmp_path: Path) -> None:
    with served(tiny.folder / "index", tmp_path, "--host", "0.0.0.0", token=TOKEN) as running:
        port = running.address.strip("/").rsplit(":", 1)[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert client.post("/search", json={"text": "ship"}).status_code == 401
            assert client.get("/readyz").json() == {"status": "ready"}
            good = {"authorization": f"Bearer {TOKEN}"}
            assert client.post("/search", json={"text": "ship"}, headers=good).status_code == 200
            assert TOKEN not in running.log.read_text()


def test_a_body_that_never_ends_or_is_too_large_holds_up_nobody(tiny: Tiny, tmp_path: Path) -> None:
    options = ("--set", "serve.timeout_s=2", "--set", "serve.max_body_bytes=2000")
    with served(tiny.folder / "index", tmp_path, *options) as running:
        port = int(running.address.strip("/").rsplit(":", 1)[1])
        head = (
            b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        with (
            socket.create_connection(("127.0.0.1", port)) as slow,
            socket.create_connection(("127.0.0.1", port)) as large,
        ):
            slow.sendall(head % 100 + b'{"text": ')
            large.sendall(head % 10_000_000)
            with running.client() as client:
                assert client.post("/search", json={"text": "ship"}).status_code == 200
            assert large.recv(1000).startswith(b"HTTP/1.1 413")
            slow.settimeout(20)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_every_line_of_the_log_is_json_without_the_text_of_a_query(service: Served) -> None:
    with service.client() as client:
        client.post("/search", json={"text": "telescope comet"})
        client.get("/nowhere?text=telescope")
    end = time.monotonic() + 20  # an answer's line is written after it was sent
    while service.lines()[-1].get("status") != 404 and time.monotonic() < end:
        time.sleep(0.05)
    assert service.lines()[-1]["status"] == 404
    assert all({"time", "level", "event"} <= line.keys() for line in service.lines())
    assert "telescope" not in service.log.read_text()


def test_what_others_can_reach_is_not_served_without_a_token(
    tiny: Tiny, latentbits: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENTBITS_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        said = latentbits("serve", tiny.folder / "index", "--host", host)
        assert (said.status, said.out) == (2, "")
        assert "LATENTBITS_TOKEN is not set; set it to a secret" in said.err
    monkeypatch.setenv("LATENTBITS_TOKEN", "with blank ")
    assert "holds blanks" in latentbits("serve", tiny.folder / "index").err


def test_what_cannot_be_served_is_said_before_anything_listens(
    tiny: Tiny, tmp_path: Path, latentbits: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENTBITS_TOKEN", raising=False)
    copied = tiny.copy(tmp_path)
    manifest = json.loads((copied.folder / "model/manifest.json").read_text())
    manifest["config"]["pretrain"]["seed"] = 7
    (copied.folder / "model/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            ((tmp_path / "nowhere",), "is not a folder"),
            ((tmp_path / "file",), "is not a folder"),
            ((tiny.folder / "model",), "holds model, and index is needed here"),
            ((tiny.folder / "index", "--model", copied.folder / "model"), "holds codes of the model"),
            ((tiny.folder / "index", "--port", port), f"cannot listen on 127.0.0.1:{port}: "),
            ((tiny.folder / "index", "--set", "serve.max_kk=3"), "no setting serve.max_kk; nearest: serve.max_k"),
            ((tiny.folder / "index", "--cluster", "--port", "0"), "give --port"),
        ):
            refused = latentbits("serve", *arguments)
            assert (refused.status, refused.out) == (2, "")
            assert said in refused.err


def test_an_index_that_was_damaged_is_named(tiny: Tiny, tmp_path: Path, latentbits: Cli) -> None:
    copied = tiny.copy(tmp_path)
    codes = next((copied.folder / "index/segments").glob("*/codes.faiss"))
    codes.write_bytes(codes.read_bytes()[:-20])
    shutil.rmtree(copied.folder / "report")
    said = latentbits("serve", copied.folder / "index")
    assert (said.status, "codes.faiss" in said.err) == (1, True)
