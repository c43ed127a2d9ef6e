"""Diagnosis of small models on small shards, against the model itself, one document after the other."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from model_files import write_model
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part
from pipelines.charts import ticks
from pipelines.corpus import Document
from pipelines.diagnose import diagnose
from pipelines.diagnosis.examination import DiagnoseConfig
from pipelines.files.arrow import record_batches
from pipelines.shards import batch_of
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary, words
from vae_core.errors import Misuse, Stale
from vae_core.model import VAE, Composition

DOCUMENTS = 120
QUICK = DiagnoseConfig(documents=40, samples=8, permutations=49, components=3, batch_size=16, probe_draws=0)
BAG = {"kind": "bag_of_words", "width": 16}
COUNTS = {"kind": "bag_of_words", "weights": "counts", "length": "own"}
GAUSSIAN = {"encoder": BAG, "latent": {"kind": "gaussian", "dimensions": 3}, "decoder": COUNTS}
TINY_DECODER = {"width": 8, "heads": 2, "layers": 1, "positions": 8}
KINDS: dict[str, dict[str, Any]] = {
    "gaussian": GAUSSIAN,
    "mixture": {"encoder": BAG, "latent": {"bits": 8, "components": 3}, "decoder": {"kind": "bag_of_words"}},
    "bits": {"encoder": BAG, "latent": {"kind": "bernoulli", "bits": 8}, "decoder": COUNTS},
    "categorical": {"encoder": BAG, "latent": {"kind": "categorical", "variables": 13, "values": 3}, "decoder": COUNTS},
    "sequence": {
        "encoder": BAG,
        "latent": {"kind": "gaussian_mixture", "dimensions": 2, "components": 2},
        "decoder": {"kind": "transformer", **TINY_DECODER},
        "condition": {"kind": "class", "classes": ["sea", "sky"]},
    },
    "set": {
        "encoder": {"kind": "transformer", "reads": "tokens", "width": 8, "hidden": 8, "heads": 2},
        "latent": {"kind": "nonparametric", "dimensions": 4},
        "decoder": {"kind": "denoising_attention", **TINY_DECODER},
    },
}


def write_shards(folder: Path, seed: int = 0) -> Path:
    """Documents of two topics in two files, every fifth without a label."""
    dice = random.Random(seed)
    topics = {"sea": "ship sail wave harbour anchor tide", "sky": "cloud wind storm rain star moon"}
    documents = []
    for row in range(DOCUMENTS):
        topic = dice.choice(list(topics))
        text = " ".join(dice.choices(topics[topic].split(), k=dice.randint(3, 12)))
        documents.append(Document(f"d{row}", text, [topic] if row % 5 else [], {}, "test", row))
    counted = [set(words(document.text)) for document in documents]
    df = {term: sum(term in one for one in counted) for term in set.union(*counted)}
    tokenizer = Tokenizer(learn_bpe([document.text for document in documents], 300), Vocabulary.of(df, DOCUMENTS))
    table = tokenizer.table(documents)
    draft = begin(folder, Plan(kind="shards", config={"seed": seed}, inputs=()))
    assert isinstance(draft, Draft)
    for number, start in enumerate((0, 70)):
        with pa.ipc.new_file(draft.path / f"part-{number:05d}.arrow", table.schema) as writer:
            writer.write_table(table.slice(start, 70 if start == 0 else None), max_chunksize=32)
    tokenizer.save(draft.path)
    names = ["part-00000.arrow", "part-00001.arrow", "tokenizer.json", "vocabulary.parquet"]
    return draft.finish([record_part(draft.path, name, 1) for name in names], {}).path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_shards(tmp_path_factory.mktemp("diagnose") / "shards")


def model_of(kind: str, shards: Path) -> Path:
    folder = shards.parent / kind / "model"
    return write_model(folder, shards, Composition.model_validate(KINDS[kind])).path


def diagnosis_of(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "diagnosis.json").read_text())


def all_documents(shards: Path) -> pa.Table:
    parts = [batch for path in Artifact.open(shards).files(".arrow") for batch in record_batches(path)]
    return pa.Table.from_batches(parts)


class Page(HTMLParser):
    """What a page holds: its words, its tags, and whether they close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.circles = [], [], "", 0
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_a_diagnosis_whose_page_is_whole_and_needs_nothing_else(
    kind: str, shards: Path, tmp_path: Path
) -> None:
    made = diagnose(model_of(kind, shards), shards, tmp_path / "out", QUICK)
    made.verify()
    assert made.manifest.kind == "diagnosis"
    text, page = (made.path / "diagnosis.html").read_text(), Page(made.path / "diagnosis.html")
    links = [name for _, attributes in page.tags for name in attributes if name in ("href", "src")]
    assert (links, re.findall(r"https?:", text)) == ([], [])
    assert not re.search(r"[^\w-](nan|inf|None)[^\w]", text)
    found = diagnosis_of(made)
    assert found["documents"] == 40
    assert found["rate"] == pytest.approx(sum(found["kl_groups"]))
    assert found["elbo"] == pytest.approx(-found["rate"] - found["distortion"])
    dots = [attributes for tag, attributes in page.tags if tag == "circle" and attributes.get("r") == "2.8"]
    assert len(dots) == (0 if kind == "set" else 40)
    json.dumps(found, allow_nan=False)


def test_a_set_of_vectors_has_the_figures_that_are_defined_for_it(shards: Path, tmp_path: Path) -> None:
    found = diagnosis_of(diagnose(model_of("set", shards), shards, tmp_path / "out", QUICK))
    assert len(found["kl_groups"]) == 2
    assert 0 <= found["vectors_kept"] <= 1
    assert found["likelihood"] is None
    assert "set of vectors" in found["no_likelihood"]
    assert not {"information", "active_units", "prior", "code_health"} & found.keys()


def test_the_figures_are_those_of_the_model_alone(shards: Path, tmp_path: Path) -> None:
    folder = model_of("bits", shards)
    found = diagnosis_of(diagnose(folder, shards, tmp_path / "out", DiagnoseConfig(permutations=49, probe_draws=0)))
    model, table = VAE.from_pretrained(folder).double(), all_documents(shards)
    rows = [table.slice(row, 1) for row in range(DOCUMENTS)]
    batches = [batch_of(row, tokens=False) for row in rows]
    with torch.no_grad():
        log_odds = torch.cat([model.posterior(batch).log_odds for batch in batches])
        codes = torch.tensor([[code >> bit & 1 for bit in range(8)] for code in range(256)], dtype=torch.float64)
        log_px = torch.cat([model.log_px(batch, codes.unsqueeze(1)) for batch in batches], dim=1)
    p = log_odds.sigmoid()
    kl = p * (2 * p).log() + (1 - p) * (2 - 2 * p).log()
    exact = log_px.logsumexp(dim=0) - 8 * math.log(2)
    lengths = sum(sum(row["term_counts"]) for row in table.to_pylist())
    assert found["documents"] == DOCUMENTS
    assert found["kl_groups"] == pytest.approx(kl.mean(dim=0).tolist(), rel=1e-4)
    assert found["likelihood"]["exact"]
    assert found["likelihood"]["log_px"] == pytest.approx(float(exact.mean()), rel=1e-5)
    assert found["likelihood"]["perplexity"] == pytest.approx(math.exp(-float(exact.sum()) / lengths), rel=1e-5)
    assert found["unit_variances"] == pytest.approx(p.var(dim=0).tolist(), rel=1e-4)
    assert found["active_units"] == int((p.var(dim=0) > 0.01).sum())
    weights = (codes @ log_odds.T - torch.nn.functional.softplus(log_odds).sum(dim=1)).exp()
    mixture = weights.mean(dim=1, keepdim=True)
    information = float((weights * (weights / mixture).log()).sum(dim=0).mean())
    assert found["information"]["exact"] == pytest.approx(information, rel=1e-4)
    assert found["marginal_kl"]["exact"] == pytest.approx(found["rate"] - information, rel=1e-4)
    assert found["code_health"]["bit_means"] == pytest.approx((log_odds > 0).double().mean(dim=0).tolist())


def test_a_weighted_bag_of_words_has_no_likelihood_and_says_so(shards: Path, tmp_path: Path) -> None:
    made = diagnose(model_of("mixture", shards), shards, tmp_path / "out", QUICK)
    found = diagnosis_of(made)
    assert found["likelihood"] is None
    assert "tfidf" in found["no_likelihood"]
    assert "no likelihood" in Page(made.path / "diagnosis.html").words
    assert "perplexity" not in made.manifest.statistics
    assert [row["words"] != [] for row in found["components"]] == [True] * 3
    assert sum(row["share"] for row in found["components"]) == pytest.approx(1)


def test_more_samples_tighten_the_bound_and_the_order_of_bounds_shows_it(shards: Path, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"samples": 100})
    found = diagnosis_of(diagnose(model_of("gaussian", shards), shards, tmp_path / "out", config))["likelihood"]
    bounds = [found["bounds"][count] for count in ("1", "10", "100")]
    assert bounds == sorted(bounds)
    assert found["log_px"] == pytest.approx(bounds[-1])
    assert found["perplexity"] < found["perplexity_by_elbo"]
    assert 1 <= found["effective_samples"]["smallest"] <= found["effective_samples"]["median"] <= 100


def test_the_same_question_has_the_same_answer_and_another_seed_another(shards: Path, tmp_path: Path) -> None:
    model = model_of("gaussian", shards)
    one, two = (diagnose(model, shards, tmp_path / name, QUICK) for name in ("one", "two"))
    for name in ("diagnosis.json", "diagnosis.html"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    other = diagnose(model, shards, tmp_path / "other", QUICK.model_copy(update={"seed": 1}))
    assert diagnosis_of(other)["information"] != diagnosis_of(one)["information"]
    written = (one.path / "diagnosis.json").stat().st_mtime_ns
    assert diagnose(model, shards, tmp_path / "one", QUICK).fingerprint == one.fingerprint
    assert (one.path / "diagnosis.json").stat().st_mtime_ns == written
    with pytest.raises(Stale, match="seed was 0 and is now 2"):
        diagnose(model, shards, tmp_path / "one", QUICK.model_copy(update={"seed": 2}))


def test_models_are_placed_side_by_side_where_they_write_the_same(shards: Path, tmp_path: Path) -> None:
    model, others = model_of("gaussian", shards), [model_of(kind, shards) for kind in ("bits", "mixture", "set")]
    made = diagnose(model, shards, tmp_path / "out", QUICK, compare=others)
    rows = diagnosis_of(made)["compared"]
    assert [row["model"] for row in rows] == ["gaussian", "bits", "mixture", "set"]
    assert [row["same_target"] for row in rows] == [True, True, False, False]
    alone = diagnosis_of(diagnose(others[0], shards, tmp_path / "alone", QUICK))
    assert rows[1]["rate"] == pytest.approx(alone["rate"])
    assert rows[1]["active_units"] == alone["active_units"]
    assert rows[3]["information"] is None
    assert [item.name for item in made.manifest.inputs] == [
        "model",
        "shards",
        "compared_1",
        "compared_2",
        "compared_3",
    ]


def model_of_one_posterior(folder: Path, shards: Path, means: list[float]) -> Path:
    """A Gaussian model whose q(z | x) is N(means, I) for every document."""
    model = VAE.from_pretrained(model_of("gaussian", shards))
    with torch.no_grad():
        for parameter in model.latent.parameters():
            parameter.zero_()
        model.latent.head.mean.bias.copy_(torch.tensor(means))
    draft = begin(folder, Plan(kind="model", config={}, inputs=()))
    assert isinstance(draft, Draft)
    model.save_pretrained(draft.path)
    Tokenizer.load(shards).save(draft.path)
    return draft.finish([], {}).path


def test_a_posterior_that_is_the_prior_is_called_collapsed(shards: Path, tmp_path: Path) -> None:
    collapsed = model_of_one_posterior(tmp_path / "collapsed", shards, [0, 0, 0])
    made = diagnose(collapsed, shards, tmp_path / "out", QUICK, compare=[model_of("gaussian", shards)])
    found = diagnosis_of(made)
    assert found["collapsed"]
    assert (found["rate"], found["active_units"]) == (0, 0)
    assert found["information"]["upper"] == pytest.approx(0, abs=1e-6)
    assert found["prior"]["p_value"] > 0.02
    assert "has collapsed" in Page(made.path / "diagnosis.html").words


def test_a_posterior_beside_the_prior_is_told_from_it_by_the_number_that_differs(shards: Path, tmp_path: Path) -> None:
    """The distribution functions of N(3, 1) and N(0, 1) are erf(3 / sqrt(8)) apart at most, in their middle."""
    beside = model_of_one_posterior(tmp_path / "beside", shards, [0, 3, 0])
    config = QUICK.model_copy(update={"documents": DOCUMENTS})
    found = diagnosis_of(diagnose(beside, shards, tmp_path / "out", config))
    assert found["kl_groups"] == pytest.approx([0, 4.5, 0], abs=1e-5)
    prior = found["prior"]
    assert (prior["p_value"], prior["differing"], prior["numbers"]) == (1 / 50, 1, 3)
    assert prior["largest_effect"] == pytest.approx(math.erf(3 / math.sqrt(8)), abs=0.1)
    assert prior["mmd_squared"] > 0.1


PROBED = QUICK.model_copy(update={"documents": DOCUMENTS, "probe_draws": 3})


def test_labels_are_learned_from_the_features_of_few_documents(shards: Path, tmp_path: Path) -> None:
    """By scikit-learn on the same features too; a document of the shards has the words of its topic alone."""
    folder = model_of("gaussian", shards)
    made = diagnose(folder, shards, tmp_path / "out", PROBED)
    found = diagnosis_of(made)["probe"]
    assert (found["classes"], found["documents"], found["draws"]) == (2, DOCUMENTS - DOCUMENTS // 5, 3)
    assert found["dimensions"] == {"means": 3, "bits": 3, "tfidf": 3}
    assert [row["labelled"] for row in found["accuracy"]["means"]] == [10, 30]
    assert [row["mean"] for row in found["accuracy"]["tfidf"]] == pytest.approx([1, 1], abs=0.02)
    table = all_documents(shards)
    rows = [row for row, labels in enumerate(table.column("labels").to_pylist()) if labels]
    with torch.no_grad():
        means = VAE.from_pretrained(folder).posterior(batch_of(table, tokens=False)).means[rows].numpy()
    labels = [table.column("labels")[row].as_py()[0] for row in rows]
    theirs = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression()), means, labels, cv=10).mean()
    assert found["accuracy"]["means"][1]["mean"] == pytest.approx(theirs, abs=0.15)
    page = Page(made.path / "diagnosis.html")
    assert "Labels from few examples" in page.words
    assert f"{100 * found['accuracy']['bits'][1]['mean']:.1f}" in page.words


def test_labels_that_the_model_is_told_or_that_are_too_few_are_not_learned(shards: Path, tmp_path: Path) -> None:
    assert diagnosis_of(diagnose(model_of("sequence", shards), shards, tmp_path / "told", PROBED))["probe"] is None
    few = PROBED.model_copy(update={"documents": 20})
    made = diagnose(model_of("gaussian", shards), shards, tmp_path / "few", few)
    assert diagnosis_of(made)["probe"] is None
    assert "few examples" not in Page(made.path / "diagnosis.html").words


def test_an_entropy_that_is_known_bounds_the_information_from_below(shards: Path, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"entropy": 10.0})
    found = diagnosis_of(diagnose(model_of("gaussian", shards), shards, tmp_path / "out", config))
    assert found["entropy_less_distortion"] == pytest.approx(10 - found["distortion"])


def test_folders_that_do_not_fit_are_refused_before_anything_is_made(shards: Path, tmp_path: Path) -> None:
    model, foreign = model_of("gaussian", shards), write_shards(tmp_path / "foreign", seed=1)
    with pytest.raises(Misuse, match="holds model, and shards is needed"):
        diagnose(model, model, tmp_path / "out", QUICK)
    with pytest.raises(Misuse, match="holds shards, and model is needed"):
        diagnose(shards, shards, tmp_path / "out", QUICK)
    table = {term: row for row, term in enumerate(Tokenizer.load(foreign).vocabulary.ids)}
    assert list(table) != list(Tokenizer.load(shards).vocabulary.ids)
    with pytest.raises(Stale, match="counts other terms than the model"):
        diagnose(model, foreign, tmp_path / "out", QUICK)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-0.3, 1.1, [0, 0.5, 1]), (95.2, 113.4, [100, 105, 110]), (1e-4, 1.3e-4, None)],
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, wanted: list[float] | None) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low <= at <= high for at in found)
    assert wanted is None or found == pytest.approx(wanted)
