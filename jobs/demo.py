"""The demo: from nothing to answers on the docstrings of the Python packages that are installed here."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.config import RunConfig, load_config
from jobs.console import results
from jobs.docstrings import write_docstrings
from jobs.run import RunResult, run
from jobs.tables import stage_table
from pipelines.artifact import Artifact
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.evaluation.baselines import simhash
from pipelines.evaluation.report import NAMES
from pipelines.files.arrow import record_batches
from pipelines.progress import Progress
from pipelines.scatter import shared_cluster
from pipelines.search import Index, nearest_codes

QUERIES = (
    "read a csv file into a table",
    "gradient descent optimizer with momentum",
    "open a network connection and send bytes",
)
HITS = 5
FLOAT_DIMENSIONS = 384
"""Of a small sentence encoder, such as all-MiniLM-L6-v2; what a float32 embedding would take is counted with it."""


class Demo(NamedTuple):
    """A finished demo."""

    config: RunConfig
    result: RunResult
    seconds: float


def run_demo(out: Path, settings: Sequence[str], *, limit: int, overwrite: bool, progress: Progress) -> Demo:
    """Collect at most `limit` documents, train, encode, index and measure. A second call finds everything done."""
    began = time.monotonic()
    corpus = out / "docstrings.jsonl"
    config = load_config(
        "demo", [f"out={json.dumps(str(out))}", f"corpus.files=[{json.dumps(str(corpus))}]", *settings]
    )
    with shared_cluster():
        if overwrite or not corpus.exists():
            corpus.parent.mkdir(parents=True, exist_ok=True)
            write_docstrings(corpus, limit, progress=progress)
        result = run(config, overwrite=overwrite, progress=progress)
    return Demo(config, result, time.monotonic() - began)


def print_demo(demo: Demo) -> None:
    """What the run made, hits beside a baseline's, the figures, and where to look next."""
    console = results()
    console.print(f"\nDone in {demo.seconds:.0f} s.\n")
    console.print(stage_table(demo.result.stages))
    report = json.loads((demo.result.artifact("evaluate").path / "report.json").read_text())
    _print_health(console, report)
    _print_queries(console, demo.result)
    _print_quality(console, report)
    _print_next(console, demo.config)


def _print_health(console: Console, report: dict[str, Any]) -> None:
    health = report["code_health"]
    lowest, highest = min(health["bit_means"]), max(health["bit_means"])
    console.print(
        f"\n[bold]Code health[/bold]: {report['documents']:,} documents, {health['distinct_codes']:,} distinct codes;"
        f"\na bit is 1 in {lowest:.0%} to {highest:.0%} of them, {health['dead_bits']} bits are dead, "
        f"{health['effective_bits']:.1f} of {report['bits']} effective"
    )


def _print_queries(console: Console, result: RunResult) -> None:
    """Each query's hits beside those of SimHash with as many bits over the same words."""
    index = Index.open(result.artifact("index").path)
    encoder = Encoder.load(result.artifact("pretrain").path)
    baseline = simhash(encoder.tokenizer.vocabulary, index.bits)
    codes = baseline.encode(_documents(result.artifact("tokenize"))).bytes_NC.numpy()
    asked = encoder.table([Document(text, text, [], {}, "query", 0) for text in QUERIES])
    ours = index.search(encoder.ask(asked), HITS).rows
    theirs = nearest_codes(codes, baseline.encode([asked]).bytes_NC.numpy(), HITS)
    for number, text in enumerate(QUERIES):
        table = Table(
            title=f'\n"{text}"', box=None, title_justify="left", title_style="bold", pad_edge=False, expand=True
        )
        table.add_column(f"latentbits, {index.bits} bits", overflow="fold", ratio=1)
        table.add_column(f"SimHash, {index.bits} bits", overflow="fold", ratio=1)
        pairs = zip(index.documents(ours[number]), index.documents(theirs[number]), strict=True)
        for our, their in pairs:
            table.add_row(escape(our["id"]), escape(their["id"]))
        console.print(table)


def _documents(shards: Artifact) -> list[Any]:
    return [batch for path in shards.files(".arrow") for batch in record_batches(path)]


def _print_quality(console: Console, report: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("codes of the same size", "P@10 by package", "P@100"):
        table.add_column(name, justify="left" if name.startswith("codes") else "right")
    at_10, at_100 = report["precision_at_10"], report["precision_at_100"]
    table.add_row("latentbits, log-odds", f"{at_10['log_odds']:.3f}", f"{at_100['log_odds']:.3f}")
    table.add_row("latentbits, Hamming", f"{at_10['hamming']:.3f}", f"{at_100['hamming']:.3f}")
    for name, value in report["baselines_at_10"].items():
        table.add_row(NAMES[name], f"{value:.3f}", f"{report['baselines'][name]:.3f}")
    console.print(f"\n[bold]Share of hits from the query's own package[/bold], {report['queries']:,} queries")
    console.print(table)
    code, embedding = report["bits"] // 8, 4 * FLOAT_DIMENSIONS
    console.print(
        f"\nA document takes {code} bytes; a float32 embedding of {FLOAT_DIMENSIONS} numbers takes {embedding:,}, "
        f"{embedding // code} times as much."
    )


def _print_next(console: Console, config: RunConfig) -> None:
    out = config.out
    uri = config.tracking.uri or f"sqlite:///{out.resolve().parent}/mlflow.db"
    console.print("\n[bold]Where to look next[/bold]", highlight=False)
    for line in (
        f'latentbits query {out / "index"} "parse a date from a string"',
        f"latentbits inspect {out / 'codes'}",
        f"mlflow ui --backend-store-uri {uri}",
        f"{out / 'report' / 'report.html'} in a browser",
    ):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
