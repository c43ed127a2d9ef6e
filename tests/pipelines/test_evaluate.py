"""Evaluation against hand counts, enumeration, and a plain computation of the same figures on a whole small run."""

import json
import re
import shutil
import sys
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
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import ndcg_score
from sklearn.preprocessing import normalize
from text_encoder_files import write_text_encoder

from jobs.config import load_config
from jobs.tables import print_evaluation
from pipelines.artifact import Artifact, Draft, Input, Plan, begin, flat, record_part
from pipelines.corpus import CorpusConfig, Document
from pipelines.embed import EmbedConfig, embed
from pipelines.encode import codes_table
from pipelines.encoder import EncodedDocuments, Encoder
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.evaluation.baselines import sign_random_projection, simhash
from pipelines.evaluation.code_sets import CodeSet
from pipelines.evaluation.precision import RANKS, Labels, at_ranks, ranks
from pipelines.evaluation.protocol import beaten
from pipelines.evaluation.ranking import best, rank_keys, ranked
from pipelines.index import IndexConfig, index
from pipelines.search import Index
from pipelines.text_encoder import TextEncoder
from pipelines.tfidf import inverse_document_frequencies, unit_tfidf
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary, words
from vae_core.decoders import BagOfWordsDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig
from vae_core.errors import Damaged, Misuse, Stale
from vae_core.itq import itq
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import VAE, VAEConfig

TOPICS = {"sea": "ship sail wave harbour anchor tide", "farm": "cow field plough barn wheat fence", "sky": "cloud wind"}


def lists(rows: list[list[str] | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows[:2], pa.list_(pa.string())), pa.array(rows[2:], pa.list_(pa.string()))])


def test_relevance_of_a_toy_counted_by_hand() -> None:
    database = Labels.of(lists([["a"], ["b", "c"], [], ["c"], None]))
    queries = Labels.of(lists([["c", "new"], ["a", "b"]]), database.names)
    assert database.shared_with(queries).tolist() == [[False, True, False, True, False], [True, True, *[False] * 3]]
    assert database.shared_with(queries[1:]).tolist() == [[True, True, False, False, False]]
    assert database.labelled.tolist() == [0, 1, 3]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_relevance_is_whether_two_sets_of_labels_meet(data: st.DataObject) -> None:
    some = st.lists(st.lists(st.sampled_from("abcd"), max_size=3), min_size=1, max_size=8)
    held, asked = data.draw(some), data.draw(some)
    database = Labels.of(lists(held))
    relevant = database.shared_with(Labels.of(lists(asked), database.names))
    assert relevant.tolist() == [[bool(set(one) & set(other)) for other in held] for one in asked]


def test_ranks_end_where_the_documents_do() -> None:
    assert ranks(5000).tolist() == list(RANKS)
    assert ranks(100).tolist() == [1, 2, 5, 10, 20, 50, 100]
    assert ranks(7).tolist() == [1, 2, 5, 7]
    assert ranks(1).tolist() == [1]
    assert at_ranks(np.array([[1.0, 0, 1, 1, 0, 1, 1]]), ranks(7)).tolist() == [[1, 1, 3, 5]]


@dataclass(frozen=True)
class Run:
    folder: Path
    documents: list[Document]

    @property
    def index(self) -> Path:
        return self.folder / "index"


def some_documents(number: int, seed: int, *, labelled: bool = True, topics: int = 3) -> list[Document]:
    random = np.random.default_rng(seed)
    documents = []
    for row in range(number):
        topic = list(TOPICS)[row % topics]
        text = " ".join(
            [*random.choice(TOPICS[topic].split(), 5), *random.choice(" ".join(TOPICS.values()).split(), 3)]
        )
        documents.append(Document(f"{seed}-{row}", text, [topic] if labelled and row % 7 else [], {}, "test", row))
    return documents


def make_run(folder: Path, *, labelled: bool = True, topics: int = 3) -> Run:
    """Shards, an untrained model, codes and an index of 140 documents, as the stages write them."""
    documents = some_documents(140, 0, labelled=labelled, topics=topics)
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


def over_ties(relevant: np.ndarray, scores: np.ndarray, k: int) -> float:
    """The share among the k best if those of the last one's score are drawn at random."""
    last = np.sort(scores)[-k]
    better, tied = scores > last, scores == last
    return float((relevant[better].sum() + (k - better.sum()) * relevant[tied].mean()) / k)


def assert_consistent(report: dict) -> None:
    """One figure under several names is one figure, and every one lies within its interval."""
    curves, intervals = report["curves"], report["intervals"]
    for place, k in ((curves["ranks"].index(k), k) for k in (10, 100)):
        behind = "" if k == 100 else "_at_10"
        for name, value in report[f"ties_averaged{behind}"].items() | report[f"references{behind}"].items():
            assert curves["precision"][name][place] == pytest.approx(value)
            low, high = intervals[f"precision_at_{k}"][name]
            assert low - 1e-9 <= value <= high + 1e-9
        for ours in ("log_odds", "hamming"):
            for name, one in intervals[f"differences_at_{k}"][ours].items():
                both = report[f"ties_averaged{behind}"] | report[f"references{behind}"]
                assert one["mean"] == pytest.approx(both[ours] - both[name])
                assert one["interval"][0] - 1e-9 <= one["mean"] <= one["interval"][1] + 1e-9
        for name, value in report[f"baselines{behind}"].items():
            assert curves["precision_in_own_order"][name][place] == pytest.approx(value)
    for recall in curves["recall"].values():
        assert recall == sorted(recall)
        assert recall[-1] == pytest.approx(1)
    queries = sum(row["queries"] for row in report["labels"])
    assert queries == report["queries"]
    for name, value in (report["ties_averaged"] | report["references"]).items():
        assert sum(row["queries"] * row[name] for row in report["labels"]) / queries == pytest.approx(value)


def plain_scores(run: Run, queries: list[Document]) -> dict[str, np.ndarray]:
    encoder = Encoder.load(run.folder / "model")
    held, asked = (encoder.encode(encoder.tokenizer.table(some)) for some in (run.documents, queries))
    bits, log_odds = held.log_odds > 0, asked.log_odds.astype(np.float64)
    return {
        "log_odds": np.clip(log_odds, -10, 10) @ bits.T.astype(np.float64),
        "hamming": -((log_odds > 0)[:, None] != bits[None]).sum(axis=2),
    }


def plain_rivals(run: Run, queries: list[Document], dimensions: int) -> dict[str, np.ndarray]:
    """What the references, LSI in so many dimensions, and the codes without training score each pair, (Q, N).

    Written out on dense matrices, but for the projections' vectors and the ITQ rotation, which have their own tests.
    """
    vocabulary = Vocabulary.load(run.folder / "model")
    counter = CountVectorizer(vocabulary=vocabulary.ids)
    tf, asked_tf = (
        counter.transform([one.text for one in some]).toarray().astype(float) for some in (run.documents, queries)
    )
    df, lengths = (tf > 0).sum(axis=0), tf.sum(axis=1, keepdims=True)
    idf = np.log(1 + (len(tf) - df + 0.5) / (df + 0.5))
    bm25 = idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * lengths / lengths.mean()))
    held, asked = (
        normalize(np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * np.log(len(tf) / df))
        for counts in (tf, asked_tf)
    )
    axes = np.linalg.svd(held)[2].T
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(axes))])  # as in the stage: ITQ depends on it
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]
    mean, turn = (one.numpy() for one in itq(torch.from_numpy(held @ axes), torch.from_numpy(start)))
    turned = {
        "simhash": [some @ simhash(vocabulary, 16).vectors_VK.numpy() for some in (asked, held)],
        "sign_random_projection": [
            some @ sign_random_projection(vocabulary, 16).vectors_VK.numpy() for some in (asked, held)
        ],
        "lsi_itq": [(some @ axes - mean) @ turn for some in (asked, held)],
    }
    distances = {name: ((one > 0)[:, None] != (other > 0)).sum(axis=2) for name, (one, other) in turned.items()}
    values, of_documents = turned["lsi_itq"]
    scores = {
        "tfidf": asked @ held.T,
        "bm25": asked_tf @ bm25.T,
        "lsi": normalize(asked @ axes[:, :dimensions]) @ normalize(held @ axes[:, :dimensions]).T,
        "lsi_itq_asymmetric": values @ (of_documents > 0).T,
    } | {name: -one for name, one in distances.items()}
    return {name: np.round(one, 5) for name, one in scores.items()}  # so that what ties but for rounding does


def meets(queries: list[Document], documents: list[Document]) -> np.ndarray:
    return np.array([[bool(set(one.labels) & set(other.labels)) for other in documents] for one in queries])


def test_figures_for_other_queries_are_those_of_a_plain_computation(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluation.rankings.LSI_DIMENSIONS", 6)
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
        tied = [over_ties(*one, 10) for one in zip(meets(asked, run.documents), scores, strict=True)]
        assert report["precision_at_10"][f"{name}_ties_averaged"] == pytest.approx(np.mean(tied))
    baselines = {"simhash", "sign_random_projection", "lsi_itq", "lsi_itq_asymmetric"}
    assert set(report["baselines"]) == set(report["baselines_at_10"]) == baselines
    assert set(report["references"]) == {"tfidf", "bm25", "lsi"}
    assert_consistent(report)
    relevant = meets(asked, run.documents)
    for name, scores in plain_rivals(run, asked, 6).items():
        for k, behind in ((10, "_at_10"), (100, "")):
            tied = np.mean([over_ties(*one, k) for one in zip(relevant, scores, strict=True)])
            averaged = report[f"ties_averaged{behind}"] | report[f"references{behind}"]
            assert averaged[name] == pytest.approx(tied, abs=1e-3), (name, k)
            if name in baselines:
                expected = plain_precision(scores, relevant, k)
                assert report[f"baselines{behind}"][name] == pytest.approx(expected, abs=1e-3), (name, k)


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
    assert set(report["precision_at_100"].values()) == {None}
    assert report["baselines"] == {}
    assert report["labels"] == []
    assert report["code_health"]["documents"] == 140
    assert "No document has a label" in report["warnings"][0]
    assert report["label_free"]["reference"] == "tf-idf cosine"
    assert set(report["label_free"]["recall_at_100"]) == set(report["label_free"]["ndcg_at_100"])
    # All but 40 documents are among the 100 nearest, so even chance finds most.
    assert all(0.5 < share <= 1 for share in report["label_free"]["recall_at_100"].values())
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


def test_agreement_with_exact_neighbours_is_that_of_scikit_learn(run: Run, tmp_path: Path) -> None:
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None))
    own = np.array([row for row, document in enumerate(run.documents) if document.labels])
    scores = plain_scores(run, [run.documents[row] for row in own])
    shards = Artifact.open(run.folder / "shards")
    table = pa.concat_tables([pa.ipc.open_file(path).read_all() for path in shards.files(".arrow")])
    unit = unit_tfidf(table, inverse_document_frequencies(Vocabulary.load(shards.path))).toarray()
    recalls, gains = [], []
    for query, row in enumerate(own):
        others = np.arange(140) != row
        cosine = (unit @ unit[row])[others]
        nearest = np.argsort(-cosine, kind="stable")[:100]
        worth = np.zeros(139)
        worth[nearest] = cosine[nearest]
        ranking = scores["hamming"][query][others].astype(float)
        # scikit-learn averages the gains of tied documents, as we do.
        gains.append(ndcg_score([worth], [ranking], k=100))
        recalls.append(100 * over_ties(worth > 0, ranking, 100) / (worth > 0).sum())
    assert report["label_free"]["ndcg_at_100"]["hamming"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert report["label_free"]["recall_at_100"]["hamming"] == pytest.approx(np.mean(recalls), abs=1e-5)


def test_the_order_of_our_rankings_is_the_order_of_search(run: Run) -> None:
    index_ = Index.open(run.index)
    encoder = Encoder.load(run.folder / "model")
    log_odds = encoder.encode(encoder.tokenizer.table(some_documents(30, 5))).log_odds
    codes = CodeSet(np.concatenate(index_.codes()))
    for rank, weights in (("log-odds", np.clip(log_odds, -10, 10)), ("hamming", np.sign(log_odds))):
        rows = ranked(best(rank_keys(codes.scores(weights)), 50)).rows
        np.testing.assert_array_equal(rows, index_.search(log_odds, 50, rank).rows)


def test_one_label_for_all_documents_is_said_to_say_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, topics=1)
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None))
    assert "Every labelled document has the label 'sea': any ranking is right" in report["warnings"][0]
    assert "precision says nothing" in (tmp_path / "report" / "report.html").read_text()


def test_bits_without_training_that_find_more_are_warned_of_with_a_remedy() -> None:
    averaged = {"log_odds": 0.314, "hamming": 0.295, "lsi_itq_asymmetric": 0.313, "lsi_itq": 0.309, "simhash": 0.5}
    (warning,) = beaten({"ties_averaged": averaged})
    assert "0.309 against 0.295 by hamming" in warning
    assert "by log_odds" not in warning
    assert "pretrain.epochs" in warning
    (setting,) = re.findall(r"model\.\S+=\w+", warning)
    load_config("default", [setting, "pretrain.epochs=1"])
    averaged |= {"lsi_itq": 0.295}
    assert beaten({"ties_averaged": averaged}) == []
    assert beaten({"ties_averaged": {"log_odds": 0.1, "hamming": 0.1}}) == []
    assert beaten({"ties_averaged": {}}) == []


def test_a_whole_report_warns_of_bits_without_training_where_they_find_more(run: Run, tmp_path: Path) -> None:
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None))
    averaged = report["ties_averaged"]
    lost = averaged["lsi_itq"] > averaged["hamming"] or averaged["lsi_itq_asymmetric"] > averaged["log_odds"]
    assert lost, "the model of these tests has not learned anything"
    assert report["warnings"][-1].startswith("LSI + ITQ finds more in as many bits")
    assert "LSI + ITQ finds more" in (tmp_path / "report" / "report.html").read_text()


def test_queries_without_labels_are_asked_without_precision(run: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"id": q.id, "text": q.text}) for q in some_documents(20, 1)]
    (tmp_path / "test.jsonl").write_text("\n".join([*lines, json.dumps({"id": "odd", "text": "zzz qqq"})]))
    corpus = CorpusConfig(files=(str(tmp_path / "test.jsonl"),), id="id")
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=corpus, shards=None))
    assert (report["queries"], report["asked"]) == (0, 21)
    assert "No query has a label" in report["warnings"][0]
    assert "1 of 21 queries have no known word" in report["warnings"][1]
    assert report["label_free"]["recall_at_100"]["lsi"] > 0.5
    for seed in range(3):
        few = EvaluateConfig(most=7, seed=seed)
        made = evaluate(run.index, None, tmp_path / f"few-{seed}", few, queries=corpus, shards=None)
        assert report_of(made)["asked"] == 7


def test_statistics_hold_the_reports_numbers_for_tracking(run: Run, tmp_path: Path) -> None:
    made = evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None)
    report, numbers = report_of(made), flat(made.manifest.statistics)
    for name in ("precision_at_100.log_odds", "baselines.lsi_itq", "references.bm25", "label_free.ndcg_at_100.hamming"):
        section, *rest = name.split(".")
        value = report[section]
        for key in rest:
            value = value[key]
        assert numbers[name] == value
    assert numbers["code_health.effective_bits"] == report["code_health"]["effective_bits"]
    ends = [numbers[f"intervals.precision_at_10.simhash.{end}"] for end in ("low", "high")]
    assert ends == report["intervals"]["precision_at_10"]["simhash"]
    assert all(isinstance(value, int | float) for value in numbers.values())


def test_components_have_words_shares_and_places(run: Run, tmp_path: Path) -> None:
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None))
    health = report["code_health"]
    assert sum(one["share"] for one in health["components"]) == pytest.approx(1)
    assert len(health["components"]) == health["components_used"]
    known = set(Vocabulary.load(run.folder / "model").ids)
    assert all(len(one["words"]) == 8 and set(one["words"]) <= known for one in health["components"])
    assert len(health["kl_groups"]) == 16 + 1
    assert health["rate"] == pytest.approx(sum(health["kl_groups"]))
    assert health["uninformative"] == 0
    assert 0 <= health["active_units"] <= 16


def test_an_encoders_neighbours_and_codes_are_compared_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[embed.__module__], "scatter", lambda make, items, **_: map(make(), items))
    encoder = write_text_encoder(tmp_path / "encoder")
    embed(run.folder / "shards", tmp_path / "embeddings", EmbedConfig(folder=encoder))
    loaded, tokenizer = TextEncoder.load(encoder), Tokenizer.load(run.folder / "shards")
    queries = [query for query in some_documents(40, 1) if query.labels]
    lines = [json.dumps({"id": q.id, "text": q.text, "topic": q.labels}) for q in queries]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(files=(str(tmp_path / "test.jsonl"),), id="id", labels="topic")
    config = EvaluateConfig(embeddings=tmp_path / "embeddings")
    report = report_of(evaluate(run.index, None, tmp_path / "report", config, queries=corpus, shards=None))
    texts = [
        tokenizer.decode(ids)
        for some in (run.documents, queries)
        for ids in tokenizer.table(some)["tokens"].to_pylist()
    ]
    vectors = loaded.embed(texts)
    held, asked = vectors[:140], vectors[140:]
    relevant = meets(queries, run.documents)
    cosine = plain_precision(asked @ held.T, relevant, 10)
    assert report["references_at_10"]["encoder"] == pytest.approx(cosine, abs=0.01)
    distances = ((asked > 0)[:, None] != (held > 0)[None]).sum(axis=2)
    assert report["baselines_at_10"]["encoder_signs"] == pytest.approx(
        plain_precision(-distances, relevant, 10), abs=0.01
    )
    assert {"encoder_itq", "encoder_itq_asymmetric"} < set(report["baselines"])
    assert report["label_free"]["reference"] == "encoder cosine"
    assert "encoder" not in report["label_free"]["recall_at_100"]
    own = report_of(evaluate(run.index, None, tmp_path / "own", config, queries=None, shards=None))
    assert own["label_free"]["recall_at_100"]["encoder_signs"] > own["label_free"]["recall_at_100"]["simhash"]


def test_without_shards_only_the_index_is_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run.folder / "shards")
    with pytest.raises(Misuse, match="so its documents cannot be asked for again"):
        evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None)
    lines = [json.dumps({"id": q.id, "text": q.text, "topic": q.labels}) for q in some_documents(20, 1)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(files=(str(tmp_path / "test.jsonl"),), id="id", labels="topic")
    made = evaluate(run.index, None, tmp_path / "other", EvaluateConfig(), queries=corpus, shards=None)
    report = report_of(made)
    assert report["precision_at_10"]["log_odds"] > 0.3
    assert (report["baselines"], report["references"]) == ({}, {})
    assert report["label_free"] == {"reference": None, "recall_at_100": {}, "ndcg_at_100": {}}
    assert "No baselines: the shards" in (made.path / "report.html").read_text()
    print_evaluation(report)


def test_queries_of_labels_that_the_database_does_not_have_are_warned_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"id": "1", "text": "ship sail", "topic": "finance"}))
    corpus = CorpusConfig(files=(str(tmp_path / "test.jsonl"),), id="id", labels="topic")
    report = report_of(evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=corpus, shards=None))
    assert "No query has a label that is in the database" in report["warnings"][0]
    assert report["precision_at_100"]["log_odds"] == 0
    (tmp_path / "none.jsonl").write_text(json.dumps({"id": "1", "text": "", "topic": "sea"}))
    empty = corpus.model_copy(update={"files": (str(tmp_path / "none.jsonl"),)})
    with pytest.raises(Misuse, match="is left to ask with; look at queries"):
        evaluate(run.index, None, tmp_path / "empty", EvaluateConfig(), queries=empty, shards=None)


def test_a_model_that_gives_no_numbers_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode

    def broken(self: Encoder, *documents: pa.Table) -> EncodedDocuments:
        encoded = encode(self, *documents)
        encoded.log_odds[3] = np.nan
        return encoded

    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(Damaged, match="gives query 3 log-odds that are not numbers"):
        evaluate(run.index, None, tmp_path / "report", EvaluateConfig(), queries=None, shards=None)
