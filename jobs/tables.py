"""Results as tables for people, on standard output."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from jobs.console import results
from jobs.doctor import Finding
from jobs.run import Done, RunResult
from pipelines.evaluation.report import NAMES
from pipelines.storage import exists, shown

if TYPE_CHECKING:
    from pipelines.searching.tuning import Tuning

RERANKED = ("bm25", "cosine")
"""What hits may be ordered by, beside their codes."""
SNIPPET = 90
COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}


def run_facts(result: RunResult) -> dict[str, Any]:
    """A run's stages for programs."""
    stages = [
        {
            "stage": done.stage,
            "path": str(done.artifact.path),
            "seconds": round(done.seconds, 2),
            "skipped": done.skipped,
            "statistics": done.artifact.manifest.statistics,
        }
        for done in result.stages
    ]
    return {"stages": stages, "unsent_tracking_records": result.unsent}


def print_run(result: RunResult, out: Path) -> None:
    """The stages of a run, and where to look next."""
    console = results()
    console.print(stage_table(result.stages))
    if result.unsent:
        console.print(f"{result.unsent:,} tracking records wait in {out / '.tracking'} and are sent by the next run")
    if exists(out / "report" / "report.html"):
        console.print(f"report: {shown(out / 'report' / 'report.html')}", soft_wrap=True)
    if exists(out / "index"):
        console.print(f'ask it: latentbits query {shown(out / "index")} "your words"', soft_wrap=True)


def stage_table(stages: Sequence[Done]) -> Table:
    """Rows, seconds and rate of each stage."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "rows", "seconds", "rows/s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for done in stages:
        rows = _rows(done)
        rate = rows / max(done.seconds, 1e-9)
        speed = "up to date" if done.skipped else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        table.add_row(done.stage, f"{rows:,}", f"{done.seconds:.1f}", speed)
    return table


def print_hits(found: dict[str, Any]) -> None:
    """The hits of one query, best first."""
    console = results()
    table = Table(box=None, pad_edge=False, expand=True)
    reranked = [name for name in RERANKED if found["hits"] and name in found["hits"][0]]
    for name in (*reranked, "score", "distance"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    widest = max((len(hit["id"]) for hit in found["hits"]), default=2)
    table.add_column("id", overflow="fold", width=min(max(widest, 2), console.width // 2))
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in found["hits"]:
        snippet = escape(" ".join(hit["text"].split())[:SNIPPET])
        again = [f"{hit[name]:.2f}" for name in reranked]
        table.add_row(*again, f"{hit['score']:.2f}", str(hit["distance"]), escape(hit["id"]), snippet)
    console.print(table)


def print_tuning(found: "Tuning") -> None:
    """Every kind of index that was measured, and which to take."""
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "settings", f"recall@{found.k}", "ms/query", "queries/s", "bytes/doc", "build s"):
        table.add_column(name, justify="left" if name in ("kind", "settings") else "right")
    for kind in found.kinds:
        settings = kind.config.model_dump(exclude={"kind"}, exclude_none=True)
        how = ", ".join(f"{name} {value}" for name, value in settings.items())
        figures = (f"{kind.recall:.1%}", f"{kind.ms:.2f}", f"{kind.batch_per_s:,.0f}")
        table.add_row(kind.config.kind, how, *figures, f"{kind.bytes_per_document:.0f}", f"{kind.build_s:.1f}")
    console = results()
    console.print(table)
    console.print(f"measured on {found.documents:,} documents and {found.queries:,} queries, alone and in a batch")
    console.print(f"take {found.take.config.kind}: {found.why}", soft_wrap=True)
    if found.take.config.kind != "flat":
        console.print(f"  latentbits index CODES --out DIR {found.take.settings}", soft_wrap=True)


def print_diagnosis(found: dict[str, Any], page: Path) -> None:
    """The figures of each model side by side, and where the rest is."""
    names = {
        "rate": "R",
        "distortion": "D",
        "elbo": "ELBO",
        "information": "I(X; Z)",
        "marginal_kl": "KL(q(z) || p(z))",
    }
    table = Table(box=None, pad_edge=False)
    for name in ("model", *names.values(), "active units"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in found["compared"]:
        active = "-" if row["active_units"] is None else f"{row['active_units']:,} of {row['units']:,}"
        table.add_row(escape(row["model"]), *(_nats(row[key]) for key in names), active)
    console = results()
    console.print(table)
    if found["likelihood"]:
        likely = found["likelihood"]
        console.print(f"log p(x) {likely['log_px']:.4g}, perplexity {likely['perplexity']:.4g}")
    else:
        console.print(f"no likelihood: {found['no_likelihood']}", soft_wrap=True)
    if found.get("collapsed"):
        console.print("[yellow]collapsed[/yellow]: z says next to nothing of the documents")
    console.print(f"page: {page}", soft_wrap=True)


def print_evaluation(report: dict[str, Any]) -> None:
    """Every ranking's precision and agreement with exact neighbours, and what to beware of."""
    for line in report["warnings"]:
        results().print(f"[yellow]{escape(line)}[/yellow]", soft_wrap=True)
    precision = report["ties_averaged"] | report["references"]
    recall = report["label_free"]["recall_at_100"]
    table = Table(box=None, pad_edge=False)
    for name in ("ranking", "P@100", "95 % interval", "P@10", "of exact neighbours"):
        table.add_column(name, justify="left" if name == "ranking" else "right")
    at_10 = report["ties_averaged_at_10"] | report["references_at_10"]
    for name in precision | recall:
        low, high = report["intervals"]["precision_at_100"][name] if name in precision else (None, None)
        interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
        table.add_row(
            NAMES[name], _share(precision.get(name)), interval, _share(at_10.get(name)), _share(recall.get(name))
        )
    results().print(table)
    if report["label_free"]["reference"]:
        results().print(f"exact neighbours: the 100 nearest by {report['label_free']['reference']}", style="dim")


def print_generated(made: dict[str, Any]) -> None:
    """Texts one below the other, or the words of components and bits."""
    names, rows = _generated(made)
    table = Table(box=None, pad_edge=False)
    for name in names:
        numeric = name in ("component", "share", "bit", "step", "sample")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(escape(" ".join(cell.split())) for cell in row))
    results().print(table)


def print_description(facts: dict[str, Any]) -> None:
    """What `inspect` found, as a tree."""
    for inner in facts.get("artifacts", []):
        print_description(inner)
    if "artifacts" in facts:
        return
    state = "whole" if facts["whole"] else "UNFINISHED: run its command again to finish it"
    state += ", every byte verified" if facts.get("verified") else ""
    tree = Tree(f"[bold]{facts['kind']}[/bold] {escape(facts['path'])}: {state}")
    for key in ("fingerprint", "created", "parts", "bytes", "git_revision", "tracking_run"):
        if facts.get(key) is not None:
            value = f"{facts[key]:,}" if isinstance(facts[key], int) else facts[key]
            tree.add(f"{key}: {value}")
    for title in ("statistics", "code_health"):
        if facts.get(title):
            branch = tree.add(title)
            for name, value in facts[title].items():
                branch.add(f"{name}: {_short(value)}")
    _add_origins(tree.add("made from"), facts["made_from"])
    results().print(tree)


def print_findings(findings: Sequence[Finding]) -> None:
    """What `doctor` found."""
    for finding in findings:
        colour = COLOURS[finding.state]
        remedy = f"\n{'':10}{finding.remedy}" if finding.remedy else ""
        results().print(f"[{colour}]{finding.state:>8}[/{colour}]  [bold]{finding.name}[/bold]: {finding.what}{remedy}")


def _rows(done: Done) -> int:
    """Documents a stage went through; training goes through a batch a step."""
    manifest = done.artifact.manifest
    if done.stage == "pretrain":
        batch = min(manifest.config["pretrain"]["batch_size"], manifest.statistics["documents"])
        return int(manifest.statistics["steps"] * batch)
    return int(manifest.statistics.get("queries", manifest.statistics.get("documents", 0)))


def _generated(made: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column names and rows of what `generate` made."""
    if "topics" in made:
        components = [(str(one["component"]), f"{one['share']:.3f}", " ".join(one["words"])) for one in made["topics"]]
        return ("component", "share", "words"), [*components]
    if "bits" in made:
        poles = [(str(one["bit"]), " ".join(one["raised"]), " ".join(one["lowered"])) for one in made["bits"]]
        return ("bit", "raises", "lowers"), [*poles]
    if "reconstructions" in made:
        return ("text", "reconstruction"), [(one["of"], one["text"]) for one in made["reconstructions"]]
    name, texts = ("step", made["path"]) if "path" in made else ("sample", made["samples"])
    return (name, "text"), [(str(number), text) for number, text in enumerate(texts, start=1)]


def _nats(value: Any) -> str:
    """A figure, or the bracket it lies in."""
    if isinstance(value, dict):
        known = value["exact"]
        return f"{value['lower']:.4g} to {value['upper']:.4g}" if known is None else f"{known:.4g}"
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return escape(text if len(text) <= SNIPPET else f"{text[:SNIPPET]}...")


def _add_origins(tree: Tree, origins: Sequence[dict[str, Any]]) -> None:
    for origin in origins:
        state = f" [red]{origin['state']}[/red]" if "state" in origin else ""
        fingerprint = f" ({origin['fingerprint']})" if "fingerprint" in origin else ""
        branch = tree.add(f"{origin['name']}: {escape(origin['path'])}{fingerprint}{state}")
        _add_origins(branch, origin.get("made_from", []))
