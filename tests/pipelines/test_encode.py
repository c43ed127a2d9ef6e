"""The encode stage against a plain loop over the model, document by document."""

import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_files import write_model

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.encode import EncodeConfig, encode
from pipelines.progress import Silent
from pipelines.tokenize import TokenizeConfig, tokenize
from pipelines.tokenizing import slices
from vae_core.batch import Batch, Ragged
from vae_core.errors import LatentbitsError, Misuse
from vae_core.model import VAE

DOCUMENTS = 300
module = sys.modules[encode.__module__]


def one_after_another(make_worker: Callable[[], Callable[[Any], Any]], items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Part after part in this process: what happens in one does not depend on Ray, which takes seconds to start."""
    return map(make_worker(), items)


@pytest.fixture(autouse=True)
def _small_slices_in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(slices, "SMALLEST", 8000)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(module, "scatter", one_after_another)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows(count: int = DOCUMENTS) -> list[dict[str, Any]]:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=5)) for _ in range(200)]
    return [
        {"id": f"d{n}", "text": " ".join(dice.choices(words, k=dice.randint(1, 60))), "topic": str(n % 3), "n": n}
        for n in range(count)
    ]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> CorpusConfig:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CorpusConfig(files=(str(path.parent / "*.jsonl"),), id="id", labels="topic", metadata=("n",))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode")
    corpus = write(folder / "raw" / "a.jsonl", rows())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SMALLEST", 8000)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setattr(sys.modules[tokenize.__module__], "scatter", one_after_another)
        return tokenize(corpus, folder / "shards", TokenizeConfig(subwords=400)).path


@pytest.fixture(scope="module")
def model(shards: Path) -> Path:
    return write_model(shards.parent / "model", shards).path


@pytest.fixture
def raw(shards: Path) -> CorpusConfig:
    return CorpusConfig(files=(str(shards.parent / "raw" / "*.jsonl"),), id="id", labels="topic", metadata=("n",))


def codes(artifact: Artifact) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in artifact.files(".parquet")])


def bare_codes(model: Path, shards: Path) -> dict[str, bytes]:
    """One document after the other through the model alone; bits packed by NumPy."""
    vae = VAE.from_pretrained(model)
    found = {}
    for path in Artifact.open(shards).files(".arrow"):
        for row in pa.ipc.open_file(str(path)).read_all().to_pylist():
            terms = Ragged(torch.tensor(row["term_ids"], dtype=torch.long), torch.tensor([0, len(row["term_ids"])]))
            nothing = Ragged(torch.zeros(0, dtype=torch.long), torch.zeros(2, dtype=torch.long))
            log_odds = vae.encode(Batch(nothing, terms, torch.tensor(row["term_counts"], dtype=torch.float32))).log_odds
            found[row["id"]] = np.packbits(log_odds[0].numpy() > 0, bitorder="little").tobytes()
    return found


def test_codes_are_those_of_the_bare_model_whatever_the_parts_and_the_source(
    model: Path, shards: Path, raw: CorpusConfig, tmp_path: Path
) -> None:
    expected = bare_codes(model, shards)
    assert len(set(expected.values())) > 10
    many = encode(model, shards, tmp_path / "many")
    from_files = encode(model, raw, tmp_path / "raw")
    assert len(many.files(".parquet")) > 3
    for artifact in (many, from_files):
        artifact.verify()
        table = codes(artifact)
        assert dict(zip(table["id"].to_pylist(), table["code"].to_pylist(), strict=True)) == expected
    assert codes(many).equals(codes(from_files))


def test_one_part_of_everything_holds_the_same_codes(
    model: Path, raw: CorpusConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = encode(model, shards, tmp_path / "many")
    monkeypatch.setattr(slices, "SMALLEST", 10_000_000)
    one = encode(model, raw, tmp_path / "one")
    assert len(one.files(".parquet")) == 1
    assert codes(one).equals(codes(many))


def test_a_code_carries_what_is_shown_of_its_document_and_a_file_what_made_it(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    artifact = encode(model, shards, tmp_path / "out")
    table = codes(artifact)
    assert table["text"].to_pylist() == [row["text"][:240] for row in rows()]
    assert table["labels"].to_pylist() == [[row["topic"]] for row in rows()]
    assert table["metadata"].to_pylist() == [{"n": row["n"]} for row in rows()]
    assert table.schema.field("code").type == pa.binary(2)
    confidence = table["confidence"].to_numpy()
    assert confidence.min() >= 0.5
    assert confidence.max() <= 1
    facts = pq.read_schema(artifact.files(".parquet")[0]).metadata
    fingerprint = Artifact.open(model).fingerprint.encode()
    assert (facts[b"bits"], facts[b"bit_order"], facts[b"model"]) == (b"16", b"little", fingerprint)
    assert facts[b"source"] == b"part-00000.arrow"
    assert [item.name for item in artifact.manifest.inputs] == ["model", "shards"]


def test_parts_that_were_done_before_an_interruption_are_not_done_again(
    model: Path, shards: Path, tmp_path: Path
) -> None:
    whole = encode(model, shards, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(model, shards, tmp_path / "out", progress=Interrupted(after=2))
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(done) == 2
    artifact = encode(model, shards, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    assert [part.checksum for part in artifact.manifest.parts] == [part.checksum for part in whole.manifest.parts]


class Interrupted(Silent):
    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
        del amount, note, metrics
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_is_killed_leaves_no_trace_in_the_codes(
    model: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(model, shards, tmp_path / "whole")
    monkeypatch.undo()
    make_worker, mark = module._make_worker, tmp_path / "died"

    def make_mortal_worker(*given: Any) -> Callable[[Any], Any]:
        encode_item = make_worker(*given)

        def die_or_encode(item: Any) -> Any:
            if item.name == "part-00002.parquet" and not mark.exists():
                mark.touch()
                os._exit(1)
            return encode_item(item)

        return die_or_encode

    monkeypatch.setattr(module, "_make_worker", make_mortal_worker)
    artifact = encode(model, shards, tmp_path / "out", EncodeConfig(workers=1))
    assert mark.exists()
    assert [part.checksum for part in artifact.manifest.parts] == [part.checksum for part in whole.manifest.parts]


def test_metadata_has_one_type_in_all_parts_and_a_row_that_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    """The field is an int in the first file, null in the second and a float in the third."""
    documents = rows(30)
    for number, value in enumerate([7, None, 0.5]):
        own = [row | {"id": f"{number}-{row['id']}", "n": value} for row in documents]
        corpus = write(tmp_path / "raw" / f"{number}.jsonl", own)
    artifact = encode(model, corpus, tmp_path / "out")
    kinds = {pq.read_schema(path).field("metadata").type for path in artifact.files(".parquet")}
    assert kinds == {pa.struct([("n", pa.float64())])}
    assert [row["n"] for row in codes(artifact)["metadata"].to_pylist()] == [7.0] * 30 + [None] * 30 + [0.5] * 30


def test_many_small_files_make_few_parts(model: Path, tmp_path: Path) -> None:
    for number, row in enumerate(rows(100)):
        corpus = write(tmp_path / "raw" / f"{number:03d}.jsonl", [row])
    artifact = encode(model, corpus, tmp_path / "out")
    assert codes(artifact)["id"].to_pylist() == [row["id"] for row in rows(100)]
    assert len(artifact.files(".parquet")) <= 1 + sum(len(json.dumps(row)) for row in rows(100)) // 4000
    assert len([item for item in artifact.manifest.inputs if item.name.startswith("file:")]) == 100


def test_rows_without_a_document_over_the_budget_are_named_and_a_larger_budget_lets_them_pass(
    model: Path, tmp_path: Path
) -> None:
    written: list[dict[str, Any]] = [*rows(40), {"id": "x", "n": 1}, {"id": "y", "text": " ", "n": 1}]
    corpus = write(tmp_path / "raw" / "a.jsonl", written)
    with pytest.raises(LatentbitsError) as error:
        encode(model, corpus, tmp_path / "out")
    message = str(error.value)
    assert "2 of 42 rows hold no document that can be encoded" in message
    assert "a.jsonl:41 missing text" in message
    assert "a.jsonl:42 empty text" in message
    assert "set encode.rejected_budget to 0.06" in message
    artifact = encode(model, corpus, tmp_path / "out", EncodeConfig(rejected_budget=0.06))
    assert artifact.manifest.statistics["documents"] == 40
    assert artifact.manifest.statistics["rejected"] == 2


def test_a_source_or_model_that_is_not_one_is_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="holds shards, and model is needed here"):
        encode(shards, shards, tmp_path / "out")
    with pytest.raises(Misuse, match="holds model, and shards is needed here"):
        encode(model, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
