"""Recipes measured on real corpora: P@100 of the product's own stages, trained on one part and asked with another.

LATENTBITS_SPLIT says which part asks: `validation`, 15 % of the train split and the default, by which settings may be
chosen; or `test`, which is to be read once for each recipe. Where the test split comes after the train split, the
validation part is the latest one: at random it would hold follow-ups of what is learned from.
"""

import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.config import RunConfig, load_config
from jobs.run import run
from pipelines.artifact import Artifact
from pipelines.encode import encode
from pipelines.evaluate import evaluate
from pipelines.index import index
from pipelines.pretrain import lends_neighbours, pretrain
from tests.bench.corpora import corpus_file

VALIDATION = 0.15
SHARED = ("graph", "tokenize", "embed")
"""Settings of what models are made from; models whose other settings differ share it."""
AGAINST = {"log_odds": "lsi_itq_asymmetric", "hamming": "lsi_itq"}
"""By which ranking of ours, against which of LSI + ITQ."""
SUBJECT = re.compile(r"^Subject:[ \t]*((?:re:[ \t]*)*)(.*)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Protocol:
    """A corpus, the recipe that knows its columns, and how it is split into what is learned and what asks.

    `lead` is the P@100 by which the recipe is to be ahead of LSI + ITQ at as many bits.
    """

    name: str
    file: str
    recipe: str
    random: bool = False
    titles: bool = False
    in_order_of_time: bool = False
    lead: float = 0.05


PROTOCOLS = (
    Protocol("newsgroups by date", "ng20.parquet", "newsgroups", in_order_of_time=True),
    Protocol("newsgroups random", "ng20.parquet", "newsgroups", random=True),
    Protocol("reuters", "reuters.parquet", "reuters", in_order_of_time=True, lead=0.01),
    Protocol("newsgroup subjects", "ng20.parquet", "short-texts", titles=True, in_order_of_time=True, lead=0.03),
    Protocol("reuters titles", "reuters.parquet", "short-texts", titles=True, in_order_of_time=True, lead=0.03),
)


@dataclass(frozen=True)
class Measured:
    """P@100 with ties averaged, by ranking and for baselines and references; how long training took, and its model."""

    log_odds: float
    hamming: float
    baselines: dict[str, float]
    training_s: float
    model: Path
    shards: Path


class Study:
    """One protocol in a folder: its shards are made once, and its graph once for all settings of the graph."""

    def __init__(self, protocol: Protocol, folder: Path) -> None:
        self.protocol, self.folder = protocol, folder / _part()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._corpus = self.folder / "corpus.parquet"
        if not self._corpus.exists():
            pq.write_table(_split(protocol), self._corpus, row_group_size=2000)

    def shards(self) -> Artifact:
        """The tokenized documents that the recipe learns from."""
        shared = self.folder / _name([], "shared")
        run(self._config([]).model_copy(update={"out": shared}), last="tokenize")
        return Artifact.open(shared / "shards", "shards")

    def measure(self, settings: Sequence[str] = (), seed: int = 0) -> Measured:
        """Train with these settings, as `--set` takes them, and ask the other part."""
        config = self._config([*settings, f"pretrain.seed={seed}"])
        shared = self.folder / _name([one for one in settings if one.startswith(SHARED)], "shared")
        run(config.model_copy(update={"out": shared}), last="graph" if lends_neighbours(config.model) else "tokenize")
        embeddings = shared / "embeddings" if config.model.joined else None
        out = self.folder / _name([*settings, f"seed={seed}"], "trained")
        graph = shared / "graph" if config.graph and lends_neighbours(config.model) else None
        began = time.monotonic()
        shards, queries = shared / "shards", config.query_corpus()
        pretrain(shards, out / "model", config.model, config.pretrain, embeddings=embeddings, graph=graph)
        training_s = time.monotonic() - began
        encode(out / "model", shards, out / "codes", config.encode, embeddings=embeddings)
        index(out / "codes", out / "index", config.index)
        asked = config.evaluate.model_copy(update={"embeddings": embeddings})
        evaluate(out / "index", None, out / "report", asked, queries=queries, shards=shards)
        report = json.loads((out / "report" / "report.json").read_text())
        averaged = report["ties_averaged"] | report["references"]
        others = {name: value for name, value in averaged.items() if name not in ("log_odds", "hamming")}
        return Measured(averaged["log_odds"], averaged["hamming"], others, training_s, out / "model", shards)

    def same(self, some: Sequence[str], others: Sequence[str]) -> bool:
        """Whether the recipe with these settings is that with the others."""
        return self._config(some) == self._config(others)

    def _config(self, settings: Sequence[str]) -> RunConfig:
        fixed = [f"corpus.files=[{json.dumps(str(self._corpus))}]", "queries.where={split: [asks]}"]
        fixed += ["corpus.id=id", "corpus.labels=labels"]
        fixed += ["tracking.enabled=false", f"out={json.dumps(str(self.folder / 'run'))}"]
        return load_config(self.protocol.recipe, [*fixed, "corpus.where={split: [learns]}", *settings])


def available() -> list[Protocol]:
    """The protocols whose corpora are on this machine, or of these LATENTBITS_CORPORA; says which are not there."""
    names = [protocol.name for protocol in PROTOCOLS]
    wanted = os.environ.get("LATENTBITS_CORPORA", ",".join(names)).split(",")
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"LATENTBITS_CORPORA has {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    here = [protocol for protocol in PROTOCOLS if corpus_file(protocol.file)]
    for missing in sorted({protocol.file for protocol in PROTOCOLS if protocol not in here}):
        sys.stderr.write(f"{missing} is not here; set LATENTBITS_DATA to the folder that has it\n")
    return [protocol for protocol in here if protocol.name in wanted]


def mean_of(found: Sequence[Measured], ranking: str) -> float:
    """The mean over seeds of one ranking, ours or a baseline's."""
    own = ranking in ("log_odds", "hamming")
    return statistics.mean(getattr(one, ranking) if own else one.baselines[ranking] for one in found)


def against_lsi_itq(bench: str, found: Sequence[Measured], lead: float) -> Iterator[dict[str, object]]:
    """Two figures, one a ranking, of models that seeds tell apart: ours is to be ahead by `lead`."""
    for ranking, baseline in AGAINST.items():
        ours, theirs = mean_of(found, ranking), mean_of(found, baseline)
        yield {
            "bench": f"{bench}, {ranking}",
            "ours": round(ours, 4),
            "theirs": round(theirs, 4),
            "unit": "P@100",
            "ratio": round(ours / theirs, 3),
            "by_seed": [round(getattr(one, ranking), 4) for one in found],
            "training_s": round(max(one.training_s for one in found)),
            "at_least": round(1 + lead / theirs, 3),
        }


def _name(settings: Sequence[str], kind: str) -> str:
    return re.sub(r"[^\w=.-]+", "_", "-".join([kind, *settings]))


def _part() -> str:
    part = os.environ.get("LATENTBITS_SPLIT", "validation")
    if part not in ("validation", "test"):
        raise SystemExit(f"LATENTBITS_SPLIT is {part!r}; give validation or test")
    return part


def _split(protocol: Protocol) -> pa.Table:
    """The corpus with `split` either `learns` or `asks`; for titles with nothing but the title as text."""
    path = corpus_file(protocol.file)
    assert path is not None
    table = pq.read_table(path)
    learns, asks = _rows(protocol, np.array(table["split"]), table["id"].to_pylist())
    which = np.repeat("unused", len(table))
    which[learns], which[asks] = "learns", "asks"
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(which))
    if protocol.titles:
        titles = pa.array([_title(text) for text in table["text"].to_pylist()])
        table = table.set_column(table.schema.get_field_index("text"), "text", titles)
    return table.filter(pa.array(which != "unused"))


def _rows(protocol: Protocol, split: NDArray[np.str_], ids: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    part = _part()
    if protocol.random:  # 60/20/20
        shuffled = np.random.RandomState(0).permutation(len(split))
        first, second = int(0.6 * len(split)), int(0.8 * len(split))
        return shuffled[:first], shuffled[second:] if part == "test" else shuffled[first:second]
    learns = np.flatnonzero(split == "train")
    if part == "test":
        return learns, np.flatnonzero(split == "test")
    held_out = math.ceil(VALIDATION * len(learns))
    if protocol.in_order_of_time:
        newest_first = _newest_first(learns, ids)
        return newest_first[held_out:], newest_first[:held_out]
    shuffled = learns[np.random.RandomState(1).permutation(len(learns))]
    return shuffled[held_out:], shuffled[:held_out]


def _newest_first(rows: NDArray[np.int64], ids: list[str]) -> NDArray[np.int64]:
    """Rows by the numbers that end their ids, which count up with time, each group of ids by its own."""
    groups, numbers = zip(*(ids[row].rpartition("/")[::2] for row in rows), strict=True)
    _, group_N = np.unique(groups, return_inverse=True)
    order = np.lexsort((np.array(numbers, int), group_N))
    sizes = np.bincount(group_N)
    place_N = np.concatenate([(np.arange(size) + 1) / size for size in sizes])
    return rows[order][np.argsort(-place_N, kind="stable")]


def _title(text: str) -> str:
    """A post's subject without its `Re:`, or else the first line."""
    head, blank, _ = text.partition("\n\n")
    found = SUBJECT.search(head) if blank else None
    return found.group(2).strip() if found else text.strip().partition("\n")[0]
