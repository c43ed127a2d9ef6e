"""Queries against a real index, compared with a plain computation over its codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from scipy.special import expit, log_softmax, logsumexp
from text_encoder_files import write_text_encoder
from tiny_run import Said, Tiny

from jobs.query import Asked, Wanted, answer, answer_code, answer_file, answer_id
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.search import Index
from pipelines.text_encoder import TextEncoder
from vae_core.errors import LatentbitsError, Misuse, Stale


def ask(index: Path, texts: list[str], model: Path | None = None, **wanted: Any) -> list[dict[str, Any]]:
    return answer(Asked(index, model), texts, Wanted(**wanted))


def test_hits_are_those_of_a_plain_computation(tiny: Tiny) -> None:
    """log q(code | query) = sum_i log sigmoid(+-a_i), best first, ties by position."""
    (found,) = ask(tiny.folder / "index", ["ship storm"], k=300)
    encoder = Encoder.load(tiny.folder / "model")
    table = encoder.tokenizer.table([Document("q", "ship storm", [], {}, "q", 1)])
    log_odds = encoder.ask(table)[0].astype(np.float64)
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
    (found,) = ask(tiny.folder / "index", ["ship"], k=10**9)
    assert len({hit["id"] for hit in found["hits"]}) == len(found["hits"]) == 300


def test_words_that_the_model_does_not_know_are_counted(tiny: Tiny) -> None:
    found = ask(tiny.folder / "index", ["qqq zzz", "ship qqq"], k=1)
    assert [one["known_words"] for one in found] == [0, 1]


def test_a_file_of_queries_gives_the_answers_of_each_alone(tiny: Tiny, tmp_path: Path) -> None:
    texts = ["ship storm", "bread", "rocket moon"]
    (tmp_path / "q.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "q.jsonl").write_text('{"text": "ship storm"}\n"bread"\n\n{"text": "rocket moon", "id": 3}')
    expected = [ask(tiny.folder / "index", [text], k=3, rank="hamming")[0] for text in texts]
    for name in ("q.txt", "q.jsonl"):
        target = tmp_path / f"{name}.answers"
        assert answer_file(Asked(tiny.folder / "index"), tmp_path / name, target, Wanted(k=3, rank="hamming")) == 3
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
        answer_file(Asked(tiny.folder / "index"), tmp_path / "q.jsonl", tmp_path / "answers.jsonl")
    assert caught.value.exit_status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_files_that_cannot_be_used_are_refused_before_the_model_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    (tmp_path / "q.txt").write_text("ship\n")
    with pytest.raises(Misuse, match="nowhere is not there; --input takes a file"):
        answer_file(Asked(nowhere), nowhere, None)
    with pytest.raises(Misuse, match=r"there is no folder .*nowhere; make it first"):
        answer_file(Asked(nowhere), tmp_path / "q.txt", nowhere / "out.jsonl")
    with pytest.raises(Misuse, match="is a folder; give a file"):
        answer_file(Asked(nowhere), tmp_path / "q.txt", tmp_path)


def test_an_empty_query_and_an_unknown_ranking_are_refused(tiny: Tiny) -> None:
    with pytest.raises(Misuse, match="the query is empty"):
        ask(tiny.folder / "index", [" \n"])
    with pytest.raises(Misuse, match="--rank foo: choose log-odds or hamming"):
        ask(tiny.folder / "index", ["ship"], rank="foo")


def test_a_run_that_was_moved_as_a_whole_still_answers(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    assert ask(copied.folder / "index", ["ship"]) == ask(tiny.folder / "index", ["ship"])


def test_a_model_that_is_gone_is_named_and_can_be_given(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    shutil.rmtree(copied.folder / "codes")
    shutil.move(copied.folder / "model", tmp_path / "elsewhere")
    index = json.loads((copied.folder / "index/manifest.json").read_text())
    index["inputs"][0]["uri"] = str(copied.folder / "codes")
    (copied.folder / "index/manifest.json").write_text(json.dumps(index))
    with pytest.raises(Misuse, match="is gone; name the model with --model"):
        ask(copied.folder / "index", ["ship"])
    given = ask(copied.folder / "index", ["ship"], model=tmp_path / "elsewhere")
    assert given == ask(tiny.folder / "index", ["ship"])


def test_another_model_than_the_one_of_the_index_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / "model" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["pretrain"]["seed"] = 7
    path.write_text(json.dumps(manifest))
    with pytest.raises(Stale, match=r"holds codes of the model .* and this model is .*; give the index's own model"):
        ask(tiny.folder / "index", ["ship"], model=copied.folder / "model")


@pytest.mark.parametrize("name", ["segments/00000/codes.faiss", "segments/00000/documents.arrow", "manifest.json"])
def test_an_index_that_was_cut_short_is_named(tiny: Tiny, tmp_path: Path, name: str) -> None:
    copied = tiny.copy(tmp_path)
    path = copied.folder / "index" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LatentbitsError, match=path.name) as caught:
        ask(copied.folder / "index", ["ship"])
    assert caught.value.exit_status == 1


def test_a_query_without_a_known_word_has_no_hits(tiny: Tiny) -> None:
    for rank in ("log-odds", "hamming"):
        (found,) = ask(tiny.folder / "index", ["qqq zzz"], rank=rank)
        assert (found["known_words"], found["hits"]) == (0, [])


def test_documents_like_one_are_the_nearest_codes_without_itself(tiny: Tiny) -> None:
    found = answer_id(Asked(tiny.folder / "index"), "sea-0", Wanted(k=7))
    index = Index.open(tiny.folder / "index")
    codes = np.unpackbits(np.concatenate(index.codes()), axis=1)
    distances = (codes != codes[0]).sum(axis=1)
    order = [row for row in np.lexsort((np.arange(300), distances)) if row != 0][:7]
    ids = index.column("id").to_pylist()
    assert [hit["id"] for hit in found["hits"]] == [ids[row] for row in order]
    by_code = answer_code(Asked(tiny.folder / "index"), index.code(0).tobytes().hex(), Wanted(k=300))
    assert {hit["id"] for hit in by_code["hits"]} == set(ids)
    with pytest.raises(Misuse, match="has no document 'sea-x'; give the id of a hit"):
        answer_id(Asked(tiny.folder / "index"), "sea-x")


@pytest.mark.parametrize(("code", "said"), [("zz", "not hexadecimal digits; write 4"), ("abcdef", "has 24 bits and")])
def test_a_code_that_is_none_of_the_index_is_refused(tiny: Tiny, code: str, said: str) -> None:
    with pytest.raises(Misuse, match=said):
        answer_code(Asked(tiny.folder / "index"), code)


def test_only_documents_that_pass_the_filter_and_lie_within_the_radius_are_hits(tiny: Tiny) -> None:
    (found,) = ask(tiny.folder / "index", ["ship storm"], k=300, where="labels = 'sea'")
    assert {tuple(hit["labels"]) for hit in found["hits"]} == {("sea",)}
    assert len(found["hits"]) == 100
    (all_of,) = ask(tiny.folder / "index", ["ship storm"], k=300)
    for rank in ("log-odds", "hamming"):
        (near,) = ask(tiny.folder / "index", ["ship storm"], k=300, radius=4, rank=rank)
        assert {hit["id"] for hit in near["hits"]} == {hit["id"] for hit in all_of["hits"] if hit["distance"] <= 4}
    with pytest.raises(Misuse, match="no column 'label'"):
        ask(tiny.folder / "index", ["ship"], where="label = 'sea'")


def test_reranking_orders_the_best_by_the_words_of_the_query_in_their_texts(tiny: Tiny) -> None:
    (found,) = ask(tiny.folder / "index", ["anchor tide"], k=5, rerank="bm25")
    (candidates,) = ask(tiny.folder / "index", ["anchor tide"], k=100)
    counts = {hit["id"]: sum(word in ("anchor", "tide") for word in hit["text"].split()) for hit in candidates["hits"]}
    scores = [hit["bm25"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert min(counts[hit["id"]] for hit in found["hits"]) >= np.median(list(counts.values()))
    with pytest.raises(Misuse, match="--rerank foo: there is no such folder; give bm25, or"):
        ask(tiny.folder / "index", ["ship"], rerank="foo")
    with pytest.raises(Misuse, match="ranks by how like a query's text is"):
        answer_id(Asked(tiny.folder / "index"), "sea-0", Wanted(rerank="bm25"))


def test_reranking_by_a_sentence_encoder_orders_the_best_by_the_cosine_of_its_vectors(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = write_text_encoder(tmp_path / "encoder")
    (found,) = ask(tiny.folder / "index", ["anchor tide"], k=5, rerank=str(folder))
    (candidates,) = ask(tiny.folder / "index", ["anchor tide"], k=100)
    encoder = TextEncoder.load(folder)
    vectors = encoder.embed([hit["text"] for hit in candidates["hits"]])
    cosines = vectors @ encoder.embed(["anchor tide"])[0]
    best = np.argsort(-cosines, kind="stable")[:5]
    assert [hit["id"] for hit in found["hits"]] == [candidates["hits"][place]["id"] for place in best]
    np.testing.assert_allclose([hit["cosine"] for hit in found["hits"]], cosines[best], atol=1e-4)


def test_a_hit_is_explained_by_the_bits_that_decide(tiny: Tiny) -> None:
    asked = Asked(tiny.folder / "index")
    found = answer_id(asked, "sea-0", Wanted(k=50, explain=True))
    for hit in found["hits"]:
        why = hit["why"]
        assert why["agreeing_bits"] == 16 - hit["distance"]
        assert why["weight"] == pytest.approx(1 - hit["distance"] / 16, abs=1e-4)
        assert why["component"]["hit"] == hit["component"]
        assert len(why["component"]["words"]) == 8


def test_the_bits_of_which_the_query_is_surest_are_said_with_the_words_of_the_decoder_s_columns(tiny: Tiny) -> None:
    """A bit that is one has the words that its column raises most, one that is zero those that it lowers most."""
    asked = Asked(tiny.folder / "index")
    (found,) = answer(asked, ["ship storm"], Wanted(k=300, explain=True))
    (log_odds,) = asked.index.text_log_odds(["ship storm"]).astype(np.float64)
    bits = np.unpackbits(np.concatenate(asked.index.codes()), axis=1, bitorder="little")
    ids, (weights, terms) = asked.index.column("id").to_pylist(), weights_and_terms(tiny)
    columns = weights["decoder.words.weight"]
    words = [[list(terms[np.argsort(sign * column)[:8]]) for sign in (1, -1)] for column in columns.T]
    for hit in found["hits"]:
        why, has = hit["why"], bits[ids.index(hit["id"])]
        agrees = has == (log_odds > 0)
        assert why["weight"] == pytest.approx(np.abs(log_odds)[agrees].sum() / np.abs(log_odds).sum(), abs=1e-4)
        for name, some in (("agreeing", agrees), ("differing", ~agrees)):
            surest = [bit for bit in np.argsort(-np.abs(log_odds)) if some[bit]][:5]
            assert why[name] == [
                {
                    "bit": bit,
                    "value": has[bit],
                    "log_odds": pytest.approx(log_odds[bit], abs=1e-3),
                    "words": words[bit][has[bit]],
                }
                for bit in surest
            ]
    assert len({hit["why"]["weight"] for hit in found["hits"]}) > 2


def test_components_are_the_most_probable_of_the_codes_and_have_the_words_of_the_highest_lift(tiny: Tiny) -> None:
    """Of a word v the lift is log p(v | E[z | c]) - log p(v), where p(v) is the mixture of the components' words."""
    asked = Asked(tiny.folder / "index")
    (found,) = answer(asked, ["ship storm"], Wanted(k=300, explain=True))
    query = asked.index.text_log_odds(["ship storm"])
    ids, (weights, terms) = asked.index.column("id").to_pylist(), weights_and_terms(tiny)
    prior, log_shares = weights["latent.prior_log_odds"], log_softmax(weights["latent.prior_components"])
    logits = expit(prior) @ weights["decoder.words.weight"].T + weights["decoder.words.bias"]
    log_p = log_softmax(logits, axis=1)
    lift = log_p - logsumexp(log_p + log_shares[:, None], axis=0)
    codes = np.concatenate([np.packbits(query > 0, axis=1, bitorder="little"), *asked.index.codes()])
    bits = np.unpackbits(codes, axis=1, bitorder="little")
    of_query, *best = (bits @ prior.T - np.logaddexp(0, prior).sum(axis=1) + log_shares).argmax(axis=1).tolist()
    components = [hit["why"]["component"] for hit in found["hits"]]
    for hit, component in zip(found["hits"], components, strict=True):
        assert component["hit"] == best[ids.index(hit["id"])]
        assert component["words"] == list(terms[np.argsort(-lift[component["hit"]])[:8]])
        assert (component["query"], component["same"]) == (of_query, component["hit"] == of_query)
    assert len({component["hit"] for component in components}) > 1


def test_an_index_is_tuned_on_the_queries_of_a_file(
    tiny: Tiny, tmp_path: Path, latentbits: Callable[..., Said]
) -> None:
    (tmp_path / "q.txt").write_text("ship storm\n\nqqq zzz\nbread oven\n")
    tune = ("index", "tune", tiny.folder / "index", "--input", tmp_path / "q.txt")
    found = json.loads(latentbits(*tune, "--json").out)
    assert (found["documents"], found["queries"], found["kinds"][0]["recall"]) == (300, 2, 1.0)
    assert "measured on 300 documents and 2 queries" in latentbits(*tune).out
    assert "nowhere: there is no such file" in latentbits(*tune[:-1], tmp_path / "nowhere").err


def weights_and_terms(tiny: Tiny) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the model's file holds, and its words."""
    weights = load_file(tiny.folder / "model" / "model.safetensors")
    terms = pq.read_table(tiny.folder / "model" / "vocabulary.parquet")["term"].to_pylist()
    return {name: weight.astype(np.float64) for name, weight in weights.items()}, np.array(terms)
