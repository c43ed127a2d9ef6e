"""Queries over HTTP against the same queries in process: 32 clients that each wait for an answer before they ask again.

Ours is `latentbits serve` in a process of its own, with clients in another one on the same cores: every answer crosses
a socket as JSON, and none of the clients knows of the others. Theirs has all queries at once: it encodes and searches
256 at a time and lists the hits, with every core to itself. The longest answers, as a multiple of the median, are
ours alone. Measured over ten million codes of 128 bits, as search itself is (bench_search.py); and over fewer, down to
as many as the demo has, where HTTP itself weighs most.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipelines.encoder import Encoder
from pipelines.search import Index
from pipelines.serving.answers import Searcher
from pipelines.serving.requests import Query
from tests.bench.index_files import write_random_index

CLIENTS, ROUNDS, SECONDS, WARM_UP = 32, 3, 5.0, 1.5
AT_ONCE, QUERIES, K = 256, 4096, 10
DOCUMENTS, FEWER = 10_000_000, (1_000_000, 20_000)
AT_LEAST, P99_AT_MOST = 0.7, 5.0


def main() -> Iterator[dict[str, object]]:
    """Answers a second over HTTP ("ours") and in process ("theirs"); p99 and p50 of the latency in ms."""
    with tempfile.TemporaryDirectory() as name:
        for documents in (DOCUMENTS, *FEWER):
            folder = Path(name) / str(documents)
            texts = write_random_index(folder, documents, QUERIES)
            theirs, latencies = _measured(folder, texts)
            ours = len(latencies) / (ROUNDS * SECONDS)
            p50, p99 = np.percentile(latencies, (50, 99))
            rate = {"bench": f"http {documents:,}", "ours": round(ours), "theirs": round(theirs), "unit": "queries/s"}
            yield rate | {"ratio": round(ours / theirs, 3)} | ({"at_least": AT_LEAST} if documents == DOCUMENTS else {})
            times = {"bench": f"http p99 {documents:,}", "ours": round(1000 * p99, 1), "theirs": round(1000 * p50, 1)}
            yield times | {"unit": "ms, p99 and p50", "ratio": round(p99 / p50, 2), "at_most": P99_AT_MOST}


def _measured(folder: Path, texts: list[str]) -> tuple[float, list[float]]:
    """The rate in process, and the latencies over HTTP, by turns, so that both meet the same machine."""
    searcher = Searcher(Index.open(folder / "index"), Encoder.load(folder / "model"))
    queries = [Query(text=text, k=K) for text in texts]
    searcher.answer(queries[:AT_ONCE])
    rates, latencies = [], []
    with _service(folder / "index") as port:
        for _ in range(ROUNDS):
            rates.append(_in_process(searcher, queries))
            latencies += _over_http(port, texts)
    return float(np.mean(rates)), latencies


def _in_process(searcher: Searcher, queries: list[Query]) -> float:
    started, answered = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        answered += len(searcher.answer(queries[answered % QUERIES :][:AT_ONCE]))
    return answered / (time.perf_counter() - started)


@contextmanager
def _service(index: Path) -> Iterator[str]:
    binary = Path(sys.executable).with_name("latentbits")
    command = [str(binary), "serve", str(index), "--port", "0", "--set", "serve.rate=null"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        try:
            assert service.stdout is not None
            yield service.stdout.readline().rsplit(":", 1)[1].strip(" /\n")
        finally:
            service.terminate()


def _over_http(port: str, texts: list[str]) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.bench_http", port]
    asked = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    latencies: list[float] = json.loads(asked.stdout)
    return latencies


async def _clients(port: int, texts: list[str]) -> list[float]:
    started = time.perf_counter()
    each = [_client(port, texts, number, started) for number in range(CLIENTS)]
    return [seconds for some in await asyncio.gather(*each) for seconds in some]


async def _client(port: int, texts: list[str], number: int, started: float) -> list[float]:
    """Seconds of each answer after the warm-up. Written on the socket itself, to leave the cores to the service."""
    dice, latencies = random.Random(number), []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() - started < WARM_UP + SECONDS:
        body = json.dumps({"text": dice.choice(texts), "k": K}).encode()
        head = (
            b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        asked = time.perf_counter()
        writer.write(head % len(body) + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        assert content.count(b'"id":') == K
        if asked - started >= WARM_UP:
            latencies.append(time.perf_counter() - asked)
    writer.close()
    return latencies


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_clients(int(sys.argv[1]), json.load(sys.stdin)))))
    sys.stdout.flush()
    os._exit(0)
