"""Queries against a real index, compared with a plain computation over its codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_run import Tiny

from jobs.query import answer, answer_file
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.search import Index
from vae_core.errors import LatentbitsError, Misuse, Stale


def test_hits_are_those_of_a_plain_computation(tiny: Tiny) -> None:
    """log q(code | query) = sum_i log sigmoid(+-a_i), best first, ties by position."""
    (found,) = answer(tiny.folder / "index", ["ship storm"], k=300)
    encoder = Encoder.load(tiny.folder / "model")
    table = encoder.tokenizer.table([Document("q", "ship storm", [], {}, "q", 1)])
    log_odds = encoder.encode(table).log_odds[0].astype(np.float64)
    index = Index.open(tiny.folder / "index")
    bits = np.unpackbits(np.concatenate(index.codes()), axis=1, bitorder="little").astype(bool)
    scores = -np.logaddexp(0, np.where(bits, -log_odds, log_odds)).sum(axis=1)
    order = np.lexsort((np.arange(300), -np.round(scores, 9)))
    ids = np.array(index.column("id").to_pylist())
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(scores[order], abs=1e-4)
    assert [hit["id"] for hit in found["hits"]] == list(ids[order])
    assert [hit["distance"] for hit in found["hits"]] == list((bits != (log_odds > 0)).sum(axis=1)[order])
    assert found["known_words"] == 2


def test_more_hits_than_documents_give_every_document_once(tiny: Tiny) -> None:
    (found,) = answer(tiny.folder / "index", ["ship"], k=10**9)
    assert len({hit["id"] for hit in found["hits"]}) == len(found["hits"]) == 300


def test_words_that_the_model_does_not_know_are_counted(tiny: Tiny) -> None:
    found = answer(tiny.folder / "index", ["qqq zzz", "ship qqq"], k=1)
    assert [one["known_words"] for one in found] == [0, 1]


def test_a_file_of_queries_gives_the_answers_of_each_alone(tiny: Tiny, tmp_path: Path) -> None:
    texts = ["ship storm", "bread", "rocket moon"]
    (tmp_path / "q.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "q.jsonl").write_text('{"text": "ship storm"}\n"bread"\n\n{"text": "rocket moon", "id": 3}')
    expected = [answer(tiny.folder / "index", [text], k=3, rank="hamming")[0] for text in texts]
    for name in ("q.txt", "q.jsonl"):
        target = tmp_path / f"{name}.answers"
        assert answer_file(tiny.folder / "index", tmp_path / name, target, k=3, rank="hamming") == 3
        assert [json.loads(line) for line in target.read_text().splitlines()] == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "ship"}\n{oops\n', "q.jsonl, line 2: "),
        (b'{"text": "ship"}\n\n{"txt": "ship"}\n', "q.jsonl, line 3: no text in it"),
        (b'{"text": ""}\n', "q.jsonl, line 1: no text in it"),
        (b'{"text": "\xff"}\n', "byte 10 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_no_answers_are_left(tiny: Tiny, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(LatentbitsError, match=said) as caught:
        answer_file(tiny.folder / "index", tmp_path / "q.jsonl", tmp_path / "answers.jsonl")
    assert caught.value.exit_status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_files_that_cannot_be_used_are_refused_before_the_model_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    (tmp_path / "q.txt").write_text("ship\n")
    with pytest.raises(Misuse, match="nowhere is not there; --input takes a file"):
        answer_file(nowhere, nowhere, None)
    with pytest.raises(Misuse, match=r"there is no folder .*nowhere; make it first"):
        answer_file(nowhere, tmp_path / "q.txt", nowhere / "out.jsonl")
    with pytest.raises(Misuse, match="is a folder; give a file"):
        answer_file(nowhere, tmp_path / "q.txt", tmp_path)


def test_an_empty_query_and_an_unknown_ranking_are_refused(tiny: Tiny) -> None:
    with pytest.raises(Misuse, match="the query is empty"):
        answer(tiny.folder / "index", [" \n"])
    with pytest.raises(Misuse, match="--rank foo: choose log-odds or hamming"):
        answer(tiny.folder / "index", ["ship"], rank="foo")


def test_a_run_that_was_moved_as_a_whole_still_answers(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    assert answer(copied.folder / "index", ["ship"]) == answer(tiny.folder / "index", ["ship"])


def test_a_model_that_is_gone_is_named_and_can_be_given(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    shutil.rmtree(copied.folder / "codes")
    shutil.move(copied.folder / "model", tmp_path / "elsewhere")
    index = json.loads((copied.folder / "index/manifest.json").read_text())
    index["inputs"][0]["uri"] = str(copied.folder / "codes")
    (copied.folder / "index/manifest.json").write_text(json.dumps(index))
    with pytest.raises(Misuse, match="is gone; name the model with --model"):
        answer(copied.folder / "index", ["ship"])
    given = answer(copied.folder / "index", ["ship"], model=tmp_path / "elsewhere")
    assert given == answer(tiny.folder / "index", ["ship"])


def test_another_model_than_the_one_of_the_index_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / "model" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["pretrain"]["seed"] = 7
    path.write_text(json.dumps(manifest))
    with pytest.raises(Stale, match=r"holds codes of the model .* and this model is .*; give the index's own model"):
        answer(tiny.folder / "index", ["ship"], model=copied.folder / "model")


@pytest.mark.parametrize("name", ["segments/00000/codes.faiss", "segments/00000/documents.arrow", "manifest.json"])
def test_an_index_that_was_cut_short_is_named(tiny: Tiny, tmp_path: Path, name: str) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / "index" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LatentbitsError, match=path.name) as caught:
        answer(copied.folder / "index", ["ship"])
    assert caught.value.exit_status == 1
