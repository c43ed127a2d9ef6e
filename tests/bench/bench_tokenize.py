"""The tokenize stage against the bare library: how much of `tokenizers.encode_batch` on all cores is left in the end.

The stage also reads JSON, hashes its input, counts words, writes and checksums Arrow files and looks for duplicate
ids. Ray runs already, and the tokenizer is learned before, since the bare call has no part in either.
"""

import contextlib
import json
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers

from pipelines.corpus import CorpusConfig
from pipelines.scatter import cluster, scatter
from pipelines.tokenize import TokenizeConfig, tokenize

CORPUS_CHARACTERS = 64_000_000
DOCUMENT_CHARACTERS = 1_500
AT_ONCE = 1_000
AT_LEAST = 0.6
CONFIG = TokenizeConfig(sample=4_000, max_tokens=1_000_000)  # nothing is cut, so that both sides do the same work


def main() -> Iterator[dict[str, object]]:
    """MB of text a second of the stage ("ours") and of the bare call ("theirs")."""
    with tempfile.TemporaryDirectory() as folder, cluster():
        list(scatter(_warm, range(8)))
        texts = list(_texts())
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        seconds = _stage_seconds(Path(folder), texts)
        bare = _bare_seconds(Path(folder) / "shards" / "tokenizer.json", texts)
    yield {
        "bench": "tokenize",
        "ours": round(megabytes / seconds, 2),
        "theirs": round(megabytes / bare, 2),
        "unit": "MB/s",
        "ratio": round(bare / seconds, 3),
        "at_least": AT_LEAST,
    }


class _Learned(Exception):
    pass


class _StopBeforeParts:
    """Ends the stage when the tokenizer is learned and no part is begun."""

    def start(self, stage: str, total: int, unit: str) -> None:
        del stage, total, unit

    def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
        del amount, metrics
        if note == "starting workers":
            raise _Learned

    def finish(self) -> None:
        pass


def _stage_seconds(folder: Path, texts: list[str]) -> float:
    path = folder / "corpus.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    corpus = CorpusConfig(files=(str(path),))
    with contextlib.suppress(_Learned):
        tokenize(corpus, folder / "shards", CONFIG, progress=_StopBeforeParts())
    started = time.perf_counter()
    artifact = tokenize(corpus, folder / "shards", CONFIG)
    seconds = time.perf_counter() - started
    assert artifact.manifest.statistics["documents"] == len(texts)
    return seconds


def _bare_seconds(path: Path, texts: list[str]) -> float:
    bpe = tokenizers.Tokenizer.from_file(str(path))
    started = time.perf_counter()
    for start in range(0, len(texts), AT_ONCE):
        bpe.encode_batch(texts[start : start + AT_ONCE])
    return time.perf_counter() - started


def _warm() -> Callable[[int], int]:
    return abs


def _texts() -> Iterator[str]:
    """Python sources of the installed packages, in pieces."""
    left = CORPUS_CHARACTERS
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        source = path.read_text(errors="replace")
        for start in range(0, len(source), DOCUMENT_CHARACTERS):
            text = source[start : start + DOCUMENT_CHARACTERS]
            if text.strip():
                left -= len(text)
                yield text
        if left < 0:
            return
