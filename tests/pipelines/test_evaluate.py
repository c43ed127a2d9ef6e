"""Evaluation against hand counts, enumeration, and a plain computation of the same figures on a whole small run."""

import itertools
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.artifact import Artifact, Draft, Input, Plan, begin, record_part
from pipelines.corpus import CorpusConfig, Document
from pipelines.encode import codes_table
from pipelines.encoder import Encoder
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.index import IndexConfig, index
from pipelines.precision import Labels, precision, precision_over_ties, without_own
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary, words
from vae_core.decoders import BagOfWordsDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig
from vae_core.errors import Misuse, Stale
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import VAE, VAEConfig

TOPICS = {"sea": "ship sail wave harbour anchor tide", "farm": "cow field plough barn wheat fence", "sky": "cloud wind"}


def lists(rows: list[list[str] | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows[:2], pa.list_(pa.string())), pa.array(rows[2:], pa.list_(pa.string()))])


def test_precision_of_a_toy_counted_by_hand() -> None:
    database = Labels.of(lists([["a"], ["b", "c"], [], ["c"], None]))
    queries = Labels.of(lists([["c", "new"], ["a", "b"]]), database.names)
    rows = np.array([[1, 2, 3, 0], [4, 0, -1, -1]])
    relevant = database.relevant(rows, queries)
    assert relevant.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert precision(relevant, rows >= 0, 2).tolist() == [1 / 2, 1 / 2]
    assert precision(relevant, rows >= 0, 3).tolist() == [2 / 3, 1 / 2]
    assert database.labelled.tolist() == [0, 1, 3]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_relevance_is_whether_two_sets_of_labels_meet(data: st.DataObject) -> None:
    some = st.lists(st.lists(st.sampled_from("abcd"), max_size=3), min_size=1, max_size=8)
    held, asked = data.draw(some), data.draw(some)
    database = Labels.of(lists(held))
    rows = np.tile(np.arange(-1, len(held)), (len(asked), 1))
    relevant = database.relevant(rows, Labels.of(lists(asked), database.names))
    assert relevant.tolist() == [[False, *(bool(set(one) & set(other)) for other in held)] for one in asked]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_precision_over_ties_is_the_mean_over_all_orders_of_tied_documents(
    documents: list[tuple[int, bool]], k: int
) -> None:
    shares = []
    for order in itertools.permutations(documents):
        nearest = sorted(order, key=lambda document: document[0])[:k]
        shares.append(sum(relevant for _, relevant in nearest) / len(nearest))
    distances, relevant = np.array([d for d, _ in documents]), np.array([r for _, r in documents])
    assert precision_over_ties(relevant, distances, k) == pytest.approx(np.mean(shares))


def test_a_query_is_left_out_of_its_own_answer() -> None:
    rows = np.array([[5, 2, 7], [1, 2, 3], [4, -1, -1], [3, -1, -1]])
    assert without_own(rows, np.array([2, 9, 4, -1])).tolist() == [[5, 7], [1, 2], [-1, -1], [3, -1]]


@dataclass(frozen=True)
class Run:
    folder: Path
    documents: list[Document]

    @property
    def index(self) -> Path:
        return self.folder / "index"


def some_documents(number: int, seed: int, *, labelled: bool = True) -> list[Document]:
    random = np.random.default_rng(seed)
    documents = []
    for row in range(number):
        topic = list(TOPICS)[row % 3]
        text = " ".join(
            [*random.choice(TOPICS[topic].split(), 5), *random.choice(" ".join(TOPICS.values()).split(), 3)]
        )
        documents.append(Document(f"{seed}-{row}", text, [topic] if labelled and row % 7 else [], {}, "test", row))
    return documents


def make_run(folder: Path, *, labelled: bool = True) -> Run:
    """Shards, an untrained model, codes and an index of 140 documents, as the stages write them."""
    documents = some_documents(140, 0, labelled=labelled)
    found = [set(words(document.text)) for document in documents]
    df = {term: sum(term in one for one in found) for term in set.union(*found)}
    tokenizer = Tokenizer(learn_bpe([document.text for document in documents], 300), Vocabulary.of(df, len(documents)))
    table = tokenizer.table(documents)
    shards = _artifact(folder / "shards", "shards", ())
    for number, start in enumerate((0, 90)):
        with pa.ipc.new_file(shards.path / f"part-{number:05d}.arrow", table.schema) as writer:
            writer.write_table(table.slice(start, 90 if start == 0 else None), max_chunksize=32)
    tokenizer.save(shards.path)
    made_shards = _finished(shards, ["part-00000.arrow", "part-00001.arrow", "tokenizer.json", "vocabulary.parquet"])
    _model(folder / "model", tokenizer)
    encoder = Encoder.load(folder / "model")
    inputs = (Artifact.open(folder / "model").as_input("model"), made_shards.as_input("shards"))
    codes = _artifact(folder / "codes", "codes", inputs)
    coded = codes_table(table, encoder.encode(table)).replace_schema_metadata({"model": encoder.fingerprint})
    pq.write_table(coded, codes.path / "part-00000.parquet")
    _finished(codes, ["part-00000.parquet"])
    index(folder / "codes", folder / "index", IndexConfig(segment_documents=60))
    return Run(folder, documents)


def _model(folder: Path, tokenizer: Tokenizer) -> None:
    draft = _artifact(folder, "model", ())
    torch.manual_seed(0)
    config = VAEConfig(
        encoder=BagOfWordsEncoderConfig(width=32),
        latent=BernoulliMixtureConfig(bits=16, components=4),
        decoder=BagOfWordsDecoderConfig(),
        terms=len(tokenizer.vocabulary),
        tokens=tokenizer.subwords,
    )
    VAE(config).save_pretrained(draft.path)
    tokenizer.save(draft.path)
    _finished(draft, ["config.json", "model.safetensors", "tokenizer.json", "vocabulary.parquet"])


def _artifact(folder: Path, kind: str, inputs: tuple[Input, ...]) -> Draft:
    draft = begin(folder, Plan(kind=kind, config={}, inputs=inputs))
    assert isinstance(draft, Draft)
    return draft


def _finished(draft: Draft, names: list[str]) -> Artifact:
    return draft.finish([record_part(draft.path, name, 1) for name in names], {})


def report_of(artifact: Artifact) -> dict:
    return json.loads((artifact.path / "report.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def plain_precision(scores: np.ndarray, relevant: np.ndarray, k: int, own: np.ndarray | None = None) -> float:
    """The mean share of relevant ones among the k best by a stable sort, one query after the other."""
    shares = []
    for query, (row, good) in enumerate(zip(scores, relevant, strict=True)):
        order = [document for document in np.argsort(-row, kind="stable") if own is None or document != own[query]][:k]
        shares.append(good[order].mean())
    return float(np.mean(shares))


def plain_scores(run: Run, queries: list[Document]) -> dict[str, np.ndarray]:
    encoder = Encoder.load(run.folder / "model")
    held, asked = (encoder.encode(encoder.tokenizer.table(some)) for some in (run.documents, queries))
    bits, log_odds = held.log_odds > 0, asked.log_odds.astype(np.float64)
    return {
        "log_odds": np.clip(log_odds, -10, 10) @ bits.T.astype(np.float64),
        "hamming": -((log_odds > 0)[:, None] != bits[None]).sum(axis=2),
    }


def meets(queries: list[Document], documents: list[Document]) -> np.ndarray:
    return np.array([[bool(set(one.labels) & set(other.labels)) for other in documents] for one in queries])


def test_figures_for_other_queries_are_those_of_a_plain_computation(run: Run, tmp_path: Path) -> None:
    queries = some_documents(50, 1)
    lines = [json.dumps({"id": q.id, "text": q.text, "topic": q.labels}) for q in queries]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(files=(str(tmp_path / "test.jsonl"),), id="id", labels="topic")
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=corpus, shards=None))
    asked = [query for query in queries if query.labels]
    assert (report["bits"], report["documents"], report["queries"]) == (16, 140, len(asked))
    for name, scores in plain_scores(run, asked).items():
        for k in (10, 100):
            expected = plain_precision(scores, meets(asked, run.documents), k)
            assert report[f"precision_at_{k}"][name] == pytest.approx(expected), (name, k)
    tied = zip(meets(asked, run.documents), -plain_scores(run, asked)["hamming"], strict=True)
    averaged = np.mean([precision_over_ties(relevant, distances, 10) for relevant, distances in tied])
    assert report["precision_at_10"]["hamming_ties_averaged"] == pytest.approx(averaged)
    assert set(report["baselines"]) == set(report["baselines_at_10"]) == {"simhash", "sign_random_projection"}
    # Three topics of equal size and mostly own words: codes from the words themselves are far better than chance.
    assert min(report["baselines_at_10"].values()) > 0.5


def test_figures_for_a_sample_leave_each_query_out_of_its_answer(run: Run, tmp_path: Path) -> None:
    config = EvaluateConfig(sample=1000)
    report = report_of(evaluate(run.index, None, tmp_path / "report", config, queries=None, shards=None))
    own = np.array([row for row, document in enumerate(run.documents) if document.labels])
    asked = [run.documents[row] for row in own]
    assert report["queries"] == len(asked)
    for name, scores in plain_scores(run, asked).items():
        expected = plain_precision(scores, meets(asked, run.documents), 10, own)
        assert report["precision_at_10"][name] == pytest.approx(expected), name
    health = report["code_health"]
    assert health["documents"] == 140
    codes = Encoder.load(run.folder / "model").encode(Tokenizer.load(run.folder / "model").table(run.documents))
    assert health["bit_means"] == pytest.approx((codes.log_odds > 0).mean(axis=0).tolist())
    assert health["mean_confidence"] == pytest.approx(codes.confidence.mean())


def test_a_sample_is_the_same_for_one_seed(run: Run, tmp_path: Path) -> None:
    reports = [
        report_of(evaluate(run.index, None, tmp_path / name, EvaluateConfig(sample=9), queries=None, shards=None))
        for name in ("one", "other")
    ]
    assert reports[0] == reports[1]
    assert reports[0]["queries"] == 9


def test_documents_without_labels_are_reported_without_precision(tmp_path: Path) -> None:
    run = make_run(tmp_path, labelled=False)
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None))
    assert report["precision_at_100"] == {"log_odds": None, "hamming": None, "hamming_ties_averaged": None}
    assert report["baselines"] == {}
    assert report["code_health"]["documents"] == 140
    assert "No document has a label" in report["protocol"][0]
    assert "Not measured" in (tmp_path / "report" / "report.html").read_text()


def test_a_report_is_made_once_and_again_only_for_other_settings(run: Run, tmp_path: Path) -> None:
    made = evaluate(run.index, None, tmp_path / "report", EvaluateConfig(sample=5), queries=None, shards=None)
    assert made.manifest.kind == "report"
    again = evaluate(run.index, None, tmp_path / "report", EvaluateConfig(sample=5), queries=None, shards=None)
    assert again.manifest == made.manifest
    with pytest.raises(Stale, match="sample was 5 and is now 6"):
        evaluate(run.index, None, tmp_path / "report", EvaluateConfig(sample=6), queries=None, shards=None)


def test_shards_and_models_of_other_documents_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    names = {"queries": None, "shards": tmp_path / "run" / "index"}
    with pytest.raises(Misuse, match="holds index, and shards is needed here"):
        evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), **names)
    other = _artifact(tmp_path / "shards", "shards", ())
    for name in ("part-00000.arrow", "tokenizer.json", "vocabulary.parquet"):
        (other.path / name).write_bytes((tmp_path / "run" / "shards" / name).read_bytes())
    _finished(other, ["part-00000.arrow", "tokenizer.json", "vocabulary.parquet"])
    with pytest.raises(Stale, match="does not hold the 140 documents"):
        evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=tmp_path / "shards")


def test_the_page_is_whole_and_loads_nothing(run: Run, tmp_path: Path) -> None:
    made = evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None)
    page = (made.path / "report.html").read_text()
    open_tags: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                open_tags.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            del tag, attrs

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Nesting().feed(page)
    assert open_tags == []
    assert "prefers-color-scheme: dark" in page
    assert "://" not in page
    assert len(re.findall(r"<title>bit \d+: ", page)) == 16
    shown = f"{report_of(made)['precision_at_100']['log_odds']:.3f}"
    assert shown in page
