"""A model card and a data card for a run: what was made, from what, how good it is, and what to beware of.

Written beside the run's artifacts, in `cards`, from their manifests and reports alone, so that they say what is so.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.artifact import Artifact, write_text
from pipelines.curves import training_curves
from pipelines.data_card import data_card
from pipelines.files.working_folder import home
from pipelines.storage import Store, is_folder, uri_of
from vae_core.errors import LatentbitsError

CARDS, MODEL_CARD, DATA_CARD, SAMPLES, CURVES = "cards", "model-card.md", "data-card.md", "samples.json", "training.svg"
ASKED, HITS, SNIPPET = 5, 3, 100
NAMES = {
    "log_odds": "latentbits, log-odds",
    "hamming": "latentbits, Hamming",
    "simhash": "SimHash",
    "sign_random_projection": "sign random projection",
    "lsi_itq": "LSI + ITQ",
    "lsi_itq_asymmetric": "LSI + ITQ, asymmetric",
    "encoder_itq": "encoder + ITQ",
    "tfidf": "tf-idf cosine (not bits)",
    "bm25": "BM25 (not bits)",
    "lsi": "LSI cosine (not bits)",
    "encoder": "encoder cosine (not bits)",
}


def write_cards(run: Path) -> Path:
    """Write the cards of what is in the run folder `run`, and return the folder that they are in on this machine."""
    stored = uri_of(run)
    folder = (home(stored) if stored else run) / CARDS
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    shards = opened(run, "shards", "shards")
    model = opened(run, "model", "model")
    if shards is not None:
        files[DATA_CARD] = data_card(shards)
    if model is not None:
        report, samples = report_of(run), _samples(run)
        files |= {MODEL_CARD: model_card(model, shards, report, samples), SAMPLES: json.dumps(samples, indent=1) + "\n"}
        files |= {CURVES: training_curves(model.path / "metrics.jsonl")}
    for name, text in files.items():
        write_text(folder / name, text)
        if stored:
            Store.at(stored).write(f"{CARDS}/{name}", text.encode())
    return folder


def opened(run: Path, name: str, kind: str) -> Artifact | None:
    """The run's artifact in the folder `name`, if it has a complete one of this model and data."""
    if not is_folder(run / name):
        return None
    try:
        return Artifact.open(run / name, kind)
    except LatentbitsError:
        return None


def report_of(run: Path) -> dict[str, Any] | None:
    """The report of the run, if it is one of the model that is there now."""
    model, report = opened(run, "model", "model"), opened(run, "report", "report")
    if model is None or report is None or report.input("model").fingerprint != model.fingerprint:
        return None
    (path,) = report.files("report.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def model_card(
    model: Artifact, shards: Artifact | None, report: dict[str, Any] | None, samples: list[dict[str, Any]]
) -> str:
    """What the model is, what it is for, how good it is, how it was made, and what to beware of; Markdown."""
    settings = model.manifest.config
    bits = report["bits"] if report else settings["model"]["latent"].get("bits")
    return "\n".join(
        [
            *_heading(model, bits),
            *_use(model),
            *(
                _quality(report)
                if report
                else ["## How good it is", "", "Not measured yet: run `latentbits evaluate`."]
            ),
            "",
            *_sample_lines(samples),
            *_training(model, shards),
            *_cautions(shards, report),
            "",
        ]
    )


def _heading(model: Artifact, bits: int | None) -> list[str]:
    latent, encoder = (model.manifest.config["model"][part]["kind"] for part in ("latent", "encoder"))
    size = sum(part.bytes for part in model.manifest.parts) / 1e6
    width = f"{bits} bits" if bits else "codes"
    return [
        "---",
        "library_name: latentbits",
        "tags: [text-hashing, binary-codes, nearest-neighbours, variational-autoencoder]",
        "---",
        f"# A model of texts in {width}",
        "",
        f"Reads a text and gives a binary code of it; texts of like content have codes that differ in few bits. The "
        f"encoder is a {encoder.replace('_', ' ')}, the latent a {latent.replace('_', ' ')}; {size:.1f} MB in all.",
        "",
        f"Fingerprint `{model.fingerprint}`, made {model.manifest.created}.",
        "",
    ]


def _use(model: Artifact) -> list[str]:
    return [
        "## What it is for",
        "",
        "Search for texts near a text, near duplicates, and clusters, in collections like the one it was trained on. "
        "It was not made to tell facts, to judge people, or for texts of other languages or subjects than its data.",
        "",
        "```",
        f"latentbits encode {model.place} more.jsonl --out codes",
        "latentbits index codes --out index",
        'latentbits query index "what to look for"',
        "```",
        "",
    ]


def _quality(report: dict[str, Any]) -> list[str]:
    recall = report["label_free"]["recall_at_100"]
    lines = ["## How good it is", ""]
    lines += [f"Over {report['asked']:,} queries of {report['documents']:,} documents, ties averaged:", ""]
    lines += [
        "| ranking | P@100 by label | 95 % | P@10 | recall of the 100 exact neighbours |",
        "| --- | --- | --- | --- | --- |",
    ]
    precision, at_10 = (
        report["ties_averaged"] | report["references"],
        report["ties_averaged_at_10"] | report["references_at_10"],
    )
    intervals = report["intervals"].get("precision_at_100", {})
    for name in [*precision, *(name for name in recall if name not in precision)]:
        low, high = intervals.get(name, (None, None))
        span = "-" if low is None else f"{low:.3f} to {high:.3f}"
        cells = (_share(precision.get(name)), span, _share(at_10.get(name)), _share(recall.get(name)))
        lines.append(f"| {NAMES.get(name, name)} | {' | '.join(cells)} |")
    health = report["code_health"]
    lines += [
        "",
        f"Of {report['bits']} bits {health['effective_bits']:.1f} are effective and {health['dead_bits']} dead; ",
    ]
    lines[-1] += f"{health['distinct_codes']:,} of {report['documents']:,} documents' codes are distinct."
    return lines


def _sample_lines(samples: list[dict[str, Any]]) -> list[str]:
    if not samples:
        return []
    lines = ["## What a search gives", "", "| document | bits apart | one of the nearest |", "| --- | --- | --- |"]
    for sample in samples:
        for hit in sample["hits"]:
            lines.append(f"| {_cell(sample['text'])} | {hit['distance']} | {_cell(hit['text'])} |")
    return [*lines, ""]


def _training(model: Artifact, shards: Artifact | None) -> list[str]:
    manifest = model.manifest
    documents = manifest.statistics.get("documents", shards.manifest.statistics["documents"] if shards else 0)
    lines = [
        "## How it was made",
        "",
        f"- trained on {documents:,} documents in {manifest.statistics['steps']:,} steps",
    ]
    lines += [f"- {item.name}: `{item.fingerprint[:16]}`" for item in manifest.inputs]
    lines += [f"- git revision: `{manifest.git_revision or 'unknown: installed as a wheel'}`"]
    lines += ["- versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())]
    lines += [f"- tracking run: `{manifest.tracking_run}`"] if manifest.tracking_run else []
    settings = json.dumps(manifest.config, indent=1)
    lines.append(f"- the curves of the training are in `{CURVES}`")
    return [*lines, "", "<details><summary>Settings</summary>", "", "```json", settings, "```", "", "</details>", ""]


def _cautions(shards: Artifact | None, report: dict[str, Any] | None) -> list[str]:
    lines = ["## What to beware of", ""]
    lines += [f"- {warning}" for warning in (report or {}).get("warnings", [])]
    lines += [
        "- Codes of different models cannot be compared.",
        "- A text without a word of the vocabulary has no code that means anything; search says so, and leaves it out.",
        "- A near code tells a like subject, not a like meaning or a true statement; what the data repeats or leaves "
        "out, the codes do too.",
    ]
    if shards is not None:
        lines.append(f"- The words it knows are those of its data: [{DATA_CARD}]({DATA_CARD}).")
    return lines


def _samples(run: Path) -> list[dict[str, Any]]:
    """A few documents of the index, evenly spread, each with the nearest others."""
    from pipelines.search import Index, hits

    if opened(run, "index", "index") is None:
        return []
    index = Index.open(run / "index")
    return list(_asked(index, hits))


def _asked(index: Any, hits: Any) -> Iterator[dict[str, Any]]:
    import numpy as np

    live = np.flatnonzero(index.live())
    if len(live) <= HITS:
        return
    for row in live[np.linspace(0, len(live) - 1, ASKED).astype(int)]:
        (document,) = index.documents(np.array([row]))
        found = hits(index, index.like(document["id"], HITS))[0]
        shown = [{"id": hit["id"], "text": hit["text"][:SNIPPET], "distance": hit["distance"]} for hit in found]
        yield {"id": document["id"], "text": document["text"][:SNIPPET], "hits": shown}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    return " ".join(text.split())[:SNIPPET].replace("|", "\\|").replace("<", "&lt;") or "(no text)"
