"""The data card of a run: which files, how many documents, what they hold, and what was left out."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.artifact import Artifact
from pipelines.files.arrow import record_batches
from pipelines.tokenizer import SNIPPET
from pipelines.tokenizing.rejected import REJECTED

COUNTED = 1_000_000
"""Documents whose lengths and labels are counted."""
LABELS, FILES = 20, 50
"""Lines of a table at most."""
SHARES = (0.05, 0.5, 0.95)
BEWARE = (
    "## What to beware of",
    "",
    f"- The first {SNIPPET} characters of each text are kept in shards, codes and index, and all of its words can be "
    "read from its subwords in the shards: whoever may not read the data must not get these.",
    "- Nothing was looked at or taken out for its content: personal data and offence are in it as they are in the "
    "files. `latentbits dedup` finds near duplicates.",
)


def data_card(shards: Artifact) -> str:
    """What the documents of `shards` are, Markdown."""
    statistics = shards.manifest.statistics
    counts = _Counts()
    for batch in _batches(shards):
        counts.add(batch)
    lines = ["# The data of this run", "", f"{statistics['documents']:,} documents, shards `{shards.fingerprint}`.", ""]
    lines += _files(shards)
    lines += _lengths(statistics, counts)
    lines += _labels(counts)
    lines += _refused(shards)
    return "\n".join([*lines, *BEWARE, ""])


class _Counts:
    """Lengths and labels of the first COUNTED documents."""

    def __init__(self) -> None:
        self.documents, self.labelled = 0, 0
        self.words: list[np.ndarray] = []
        self.labels: Counter[str] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        self.documents += len(batch)
        starts, counts = batch["term_counts"].offsets.to_numpy(), batch["term_counts"].values.to_numpy()
        before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.words.append(before[starts[1:]] - before[starts[:-1]])
        self.labelled += int(pc.sum(pc.greater(pc.list_value_length(batch["labels"]), 0)).as_py() or 0)
        for one in pc.value_counts(batch["labels"].flatten()).to_pylist():
            self.labels[one["values"]] += one["counts"]


def _batches(shards: Artifact) -> Iterator[pa.RecordBatch]:
    seen = 0
    for path in shards.files(".arrow"):
        for batch in record_batches(path):
            if seen >= COUNTED:
                return
            yield batch
            seen += len(batch)


def _files(shards: Artifact) -> list[str]:
    files = [item for item in shards.manifest.inputs if item.name.startswith("file:")]
    corpus = shards.manifest.config["corpus"]
    lines = ["## Where it is from", "", "| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| {item.name.removeprefix('file:')} | `{item.fingerprint[:16]}` |" for item in files[:FILES]]
    lines += [f"| and {len(files) - FILES:,} more | |"] if len(files) > FILES else []
    chosen = f"; only rows where {corpus['where']}" if corpus.get("where") else ""
    return [*lines, "", f"The text is the field `{corpus['text']}`{chosen}. The licence is that of the files.", ""]


def _lengths(statistics: dict[str, Any], counts: _Counts) -> list[str]:
    lines = ["## How much it is", ""]
    lines += [f"- text: {statistics['bytes'] / 1e6:,.1f} MB, {statistics['tokens']:,} subwords"]
    lines += [f"- known words: {statistics['terms']:,}"]
    words = np.concatenate(counts.words) if counts.words else np.zeros(0)
    if len(words):
        few, half, many = (int(value) for value in np.quantile(words, SHARES))
        lines += [f"- a document has {half:,} known words in the median, and 90 % have {few:,} to {many:,}"]
        lines += [f"- without any known word: {int((words == 0).sum()):,} of {counts.documents:,} documents"]
    share = statistics["truncated"] / max(1, statistics["documents"])
    return [*lines, f"- cut at the most subwords a document may have: {statistics['truncated']:,} ({share:.1%})", ""]


def _labels(counts: _Counts) -> list[str]:
    if not counts.labels:
        return []
    lines = ["## Labels", "", f"{counts.labelled:,} of {counts.documents:,} documents have one or more.", ""]
    lines += ["| label | documents |", "| --- | --- |"]
    lines += [f"| {label.replace('|', '/')} | {count:,} |" for label, count in counts.labels.most_common(LABELS)]
    more = len(counts.labels) - LABELS
    return [*lines, *([f"| and {more:,} more | |"] if more > 0 else []), ""]


def _refused(shards: Artifact) -> list[str]:
    lines = ["## What was left out", ""]
    files = [path for path in shards.files(".parquet") if path.name == REJECTED]
    reasons = Counter(
        reason.partition(":")[0]
        for path in files
        for reason in pq.read_table(path, columns=["reason"])["reason"].to_pylist()
    )
    if not reasons:
        return [*lines, "Nothing: every row is a document.", ""]
    lines += [f"- {reason}: {count:,} rows" for reason, count in reasons.most_common()]
    return [*lines, "", f"Each of them with its file and position is in `{REJECTED}` of the shards.", ""]
