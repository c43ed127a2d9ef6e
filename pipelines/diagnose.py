"""The diagnose stage: what a trained model does with documents of some shards, as figures and as a page with plots."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part, write_text
from pipelines.diagnosis.examination import (
    COLLAPSED_NATS,
    TESTED,
    DiagnoseConfig,
    Examined,
    code_figures,
    component_shares,
    draws,
    examine,
    information_figures,
    likelihood_figures,
    membership_figures,
    no_likelihood,
    plane_figures,
    prior_figures,
    written,
)
from pipelines.diagnosis.latent_plots import Space
from pipelines.diagnosis.probing import probe_figures
from pipelines.diagnosis.report import html_diagnosis
from pipelines.files.arrow import record_batches
from pipelines.progress import Progress, Silent
from pipelines.shards import batch_of
from pipelines.text_encoder import TextEncoder
from pipelines.tokenizer import Tokenizer
from vae_core.batch import Batch
from vae_core.decoders import BagOfWordsDecoder
from vae_core.errors import Misuse, Stale
from vae_core.model import VAE
from vae_core.topics import component_words

TOP_WORDS = 8
READ = ("tokens", "term_ids", "term_counts", "labels")
COMPARED = ("rate", "distortion", "elbo", "information", "marginal_kl", "active_units", "units", "vectors_kept")
LOGGED = ("rate", "distortion", "elbo", "active_units", "vectors_kept")


def diagnose(
    model: Path,
    shards: Path,
    out: Path,
    config: DiagnoseConfig = DiagnoseConfig(),  # noqa: B008 - frozen
    *,
    compare: Sequence[Path] = (),
    encoder_folder: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Examine `model` on a sample of `shards` and write diagnosis.json and diagnosis.html to `out`.

    `compare` are other models, placed beside it in the rate-distortion plane; `encoder_folder` is where the sentence
    encoder lies now whose embeddings they read, if they read any. Raises Misuse, Stale or Damaged where a
    folder is not what it should be, or a model counts other terms than the shards.
    """
    trained = [Artifact.open(folder, "model") for folder in (model, *compare)]
    tokenized = Artifact.open(shards, "shards")
    draft = begin(out, _plan(trained, tokenized, config), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    sample = _Sample.of(tokenized, config)
    progress.start("diagnose", len(trained) * len(sample.table), "documents")
    loaded = [_load(artifact, tokenized, encoder_folder) for artifact in trained]
    names = _names([artifact.path for artifact in trained])
    diagnosis, space = _diagnose(loaded[0], sample, config, progress.advance)
    others = [_compared(one, sample, config, progress.advance) for one in loaded[1:]]
    rows = [{key: diagnosis.get(key) for key in COMPARED}, *others]
    targets = [written(one.model) for one in loaded]
    diagnosis["compared"] = [
        {"model": name, "same_target": target == targets[0]} | row
        for name, target, row in zip(names, targets, rows, strict=True)
    ]
    progress.finish()
    return _write(draft, diagnosis, space)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Documents of the shards, evenly spread, the shortest first so that a batch has little padding."""

    table: pa.Table
    config: DiagnoseConfig

    @classmethod
    def of(cls, shards: Artifact, config: DiagnoseConfig) -> "_Sample":
        """Raises Misuse where there are fewer than two documents."""
        total = sum(len(batch) for path in shards.files(".arrow") for batch in record_batches(path))
        if total < 2:
            raise Misuse(f"{shards.path} holds {total} documents, and a diagnosis is over two or more")
        rows = np.unique(np.linspace(0, total - 1, min(config.documents, total)).astype(np.int64))
        table = pa.concat_tables(_taken(shards, rows)).combine_chunks()
        lengths = pc.list_value_length(table.column("tokens")).to_numpy()
        return cls(table.take(pa.array(np.argsort(lengths, kind="stable"))), config)

    def batches(self, loaded: "_Loaded") -> Iterator[Batch]:
        model, size = loaded.model, self.config.batch_size
        for first in range(0, len(self.table), size):
            table = self.table.slice(first, size)
            yield batch_of(
                table, tokens=model.reads_tokens, classes=model.config.classes, embeddings=loaded.embeddings(table)
            )

    @property
    def terms(self) -> Batch:
        """All documents by their terms alone."""
        return batch_of(self.table, tokens=False)

    @property
    def labels(self) -> list[str]:
        """The first label of each document, empty where there is none."""
        return [row[0] if row else "" for row in self.table.column("labels").to_pylist()]


def _taken(shards: Artifact, rows: np.ndarray) -> list[pa.Table]:
    taken, start = [], 0
    for path in shards.files(".arrow"):
        for batch in record_batches(path):
            here = rows[(rows >= start) & (rows < start + len(batch))] - start
            taken.append(pa.Table.from_batches([batch]).select(list(READ)).take(pa.array(here)))
            start += len(batch)
    return taken


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    model: VAE
    tokenizer: Tokenizer
    text_encoder: TextEncoder | None

    def embeddings(self, table: pa.Table) -> NDArray[np.float32] | None:
        """The documents' embeddings (N, E), where the model reads them."""
        if self.text_encoder is None:
            return None
        return self.text_encoder.embed_documents(self.tokenizer, table).astype(np.float32)


def _load(artifact: Artifact, shards: Artifact, encoder_folder: Path | None) -> _Loaded:
    tokenizer = Tokenizer.load(artifact.path)
    if tokenizer.vocabulary.ids != Tokenizer.load(shards.path).vocabulary.ids:
        raise Stale(
            f"{shards.path} counts other terms than the model in {artifact.path} knows; "
            f"give the shards that it was trained on, or others tokenized with its vocabulary"
        )
    model = VAE.from_pretrained(artifact.path)
    text_encoder = TextEncoder.of_model(artifact, encoder_folder) if model.config.joined else None
    return _Loaded(model, tokenizer, text_encoder)


def _diagnose(
    loaded: _Loaded, sample: _Sample, config: DiagnoseConfig, advance: Callable[[int], None]
) -> tuple[dict[str, Any], Space | None]:
    model = loaded.model
    examined = examine(model, sample.batches(loaded), config, likelihood=True, advance=advance)
    diagnosis: dict[str, Any] = {
        "documents": len(sample.table),
        "latent": model.config.latent.kind,
        "decoder": model.config.decoder.kind,
        "likelihood": likelihood_figures(examined),
        "no_likelihood": no_likelihood(model),
    }
    diagnosis |= plane_figures(examined)
    diagnosis["collapsed"] = diagnosis["rate"] < COLLAPSED_NATS
    if model.latent.reads_states:
        diagnosis["protocol"] = _protocol(model, diagnosis)
        return diagnosis, None
    diagnosis |= information_figures(model, examined, config)
    diagnosis["collapsed"] |= not diagnosis["active_units"]
    diagnosis["prior"] = prior_figures(model, examined, config)
    diagnosis["mixed_membership"] = membership_figures(model, examined, config)
    diagnosis["code_health"] = code_figures(model, examined)
    diagnosis["components"] = _components(loaded, examined)
    diagnosis["probe"] = probe_figures(
        model, examined.posterior, sample.terms, sample.labels, draws=config.probe_draws, seed=config.seed
    )
    diagnosis["protocol"] = _protocol(model, diagnosis)
    return diagnosis, Space(sample.labels, examined.posterior.means, *draws(model, examined, config))


def _compared(
    loaded: _Loaded, sample: _Sample, config: DiagnoseConfig, advance: Callable[[int], None]
) -> dict[str, Any]:
    """One row of the rate-distortion plane."""
    examined = examine(loaded.model, sample.batches(loaded), config, likelihood=False, advance=advance)
    figures = plane_figures(examined)
    if not loaded.model.latent.reads_states:
        figures |= information_figures(loaded.model, examined, config)
    return {key: figures.get(key) for key in COMPARED}


def _components(loaded: _Loaded, examined: Examined) -> list[dict[str, Any]] | None:
    """Each component's share of the sample, and its words where the decoder has some; the largest first."""
    shares = component_shares(loaded.model, examined)
    if shares is None:
        return None
    words: list[list[str]] = [[] for _ in shares]
    if isinstance(loaded.model.decoder, BagOfWordsDecoder):
        known = list(loaded.tokenizer.vocabulary.ids)
        ids = component_words(loaded.model, TOP_WORDS).ids.tolist()
        words = [[known[place] for place in row] for row in ids]
    rows = [{"component": c, "share": share, "words": words[c]} for c, share in enumerate(shares)]
    return sorted(rows, key=lambda row: -row["share"])


def _protocol(model: VAE, diagnosis: dict[str, Any]) -> list[str]:
    """What the figures mean, for whoever reads them without this file."""
    lines = ["All figures but shares and counts are in nats a document, over a sample spread evenly over the shards."]
    if diagnosis["no_likelihood"]:
        lines.append(f"No likelihood and no perplexity: {diagnosis['no_likelihood']}.")
    else:
        lines.append(
            "log p(x) by importance sampling is a lower bound in expectation, so the perplexity is an upper one; "
            "perplexities of words and of tokens, or of different tokenizers, are not comparable."
        )
    if model.latent.reads_states:
        return [*lines, "z is a set of vectors: I(X; Z), active units, tests of q(z) and codes are not defined for it."]
    lines += [
        f"I(X; Z) lies between its plug-in and its leave-one-out estimate in expectation, over "
        f"{diagnosis['documents']:,} documents: figures of other sample sizes are not comparable.",
        "KL(q(z) || p(z)) is R - I at the same draws; q(z) is the mean of q(z | x) over the sample.",
        "A unit is active where the variance over documents of its posterior mean is above 0.01.",
        f"Tests compare one draw of z for each document with draws from the prior, MMD^2 over {TESTED:,} at most of "
        "each; with many documents every test rejects, so read the effects first.",
    ]
    if diagnosis["components"]:
        lines.append("R counts the component too, so that it is at least I(X; Z) + KL(q(z) || p(z)).")
    if diagnosis["probe"]:
        lines.append(
            "Labels: multinomial logistic regression on standardised features, its penalty chosen on a fifth of the "
            "labelled documents, accuracy on all the others; the same documents for all features."
        )
    if diagnosis["mixed_membership"]:
        lines.append("Mixed membership: q(z) and p(z) as mixtures of the same normals, judged on draws held out.")
    return lines


def _names(folders: list[Path]) -> list[str]:
    """The run's name of each model, or its whole path where two runs have one name."""
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def _plan(trained: list[Artifact], shards: Artifact, config: DiagnoseConfig) -> Plan:
    compared = [artifact.as_input(f"compared_{place}") for place, artifact in enumerate(trained[1:], start=1)]
    inputs = (trained[0].as_input("model"), shards.as_input("shards"), *compared)
    return Plan(kind="diagnosis", config=config.model_dump(mode="json"), inputs=inputs)


def _write(draft: Draft, diagnosis: dict[str, Any], space: Space | None) -> Artifact:
    write_text(draft.path / "diagnosis.json", json.dumps(diagnosis, indent=1) + "\n")
    write_text(draft.path / "diagnosis.html", html_diagnosis(diagnosis, space))
    parts = [record_part(draft.path, name, 1) for name in ("diagnosis.json", "diagnosis.html")]
    return draft.finish(parts, _statistics(diagnosis))


def _statistics(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """What the manifest and the tracker keep."""
    found = {"documents": diagnosis["documents"]} | {name: diagnosis.get(name) for name in LOGGED}
    if diagnosis["likelihood"]:
        found |= {name: diagnosis["likelihood"][name] for name in ("log_px", "perplexity")}
    for name in ("information", "marginal_kl"):
        found |= {f"{name}_{end}": diagnosis[name][end] for end in ("lower", "upper") if name in diagnosis}
    if "prior" in diagnosis:
        found["mmd_squared"] = diagnosis["prior"]["mmd_squared"]
    return {name: value for name, value in found.items() if value is not None}
