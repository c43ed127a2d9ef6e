"""The stages of a run in order, each with its folder, what it reads and how it is made: a new one is one entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobs.config import RunConfig
from pipelines.artifact import Artifact
from pipelines.embed import embed
from pipelines.encode import encode
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.graph import graph
from pipelines.index import index
from pipelines.pretrain import lends_neighbours, pretrain
from pipelines.progress import Progress
from pipelines.storage import is_folder
from pipelines.tokenize import tokenize
from pipelines.tracking import Tracker
from vae_core.errors import Misuse

ASKED_FOR_BY = {"embed": "embed.folder", "graph": "model.decoder.kind to bag_of_words and graph to {}"}
"""The setting that gives a stage work which is otherwise left out."""


@dataclass(frozen=True, slots=True)
class Making:
    """A run's config, and what every stage of it is told beside."""

    config: RunConfig
    overwrite: bool
    progress: Progress
    tracking: Tracker

    def folder(self, stage: str) -> Path:
        """Where the artifact of `stage` is, or will be."""
        return self.config.out / STAGES[stage].folder

    def made(self, stage: str) -> Path | None:
        """The same; None while there is nothing."""
        return self.folder(stage) if is_folder(self.folder(stage)) else None


class Stage(NamedTuple):
    """The folder of a stage's artifact, what makes it there, and the stages that always write what it reads."""

    folder: str
    make: Callable[[Making, Path], Artifact]
    reads: tuple[str, ...] = ()


def has_work(stage: str, config: RunConfig) -> bool:
    """Whether the config asks for this stage; what it does not ask for is left out of the run."""
    if stage == "graph":
        return config.graph is not None and lends_neighbours(config.model)
    return stage != "embed" or config.embed.folder is not None


def _shards(run: Making, out: Path) -> Artifact:
    return tokenize(run.config.corpus, out, run.config.tokenize, overwrite=run.overwrite, progress=run.progress)


def _embeddings(run: Making, out: Path) -> Artifact:
    return embed(run.folder("tokenize"), out, run.config.embed, overwrite=run.overwrite, progress=run.progress)


def _graph(run: Making, out: Path) -> Artifact:
    return graph(
        run.folder("tokenize"),
        out,
        run.config.graph,
        embeddings=run.folder("embed") if has_work("embed", run.config) else None,
        overwrite=run.overwrite,
        progress=run.progress,
    )


def _model(run: Making, out: Path) -> Artifact:
    config = run.config
    return pretrain(
        run.folder("tokenize"),
        out,
        config.model,
        config.pretrain,
        embeddings=run.made("embed") if config.model.joined else None,
        graph=run.folder("graph") if has_work("graph", config) else None,
        overwrite=run.overwrite,
        progress=run.progress,
        tracking=run.tracking,
    )


def _codes(run: Making, out: Path) -> Artifact:
    return encode(
        run.folder("pretrain"),
        run.folder("tokenize"),
        out,
        run.config.encode,
        embeddings=run.made("embed"),
        encoder_folder=run.config.embed.folder,
        overwrite=run.overwrite,
        progress=run.progress,
    )


def _index(run: Making, out: Path) -> Artifact:
    return index(run.folder("encode"), out, run.config.index, overwrite=run.overwrite, progress=run.progress)


def _report(run: Making, out: Path) -> Artifact:
    return evaluate(
        run.folder("index"),
        run.folder("pretrain"),
        out,
        _judge(run),
        queries=run.config.query_corpus(),
        shards=run.made("tokenize"),
        encoder_folder=run.config.embed.folder,
        overwrite=run.overwrite,
        progress=run.progress,
    )


def _judge(run: Making) -> EvaluateConfig:
    """What is evaluated: beside the rest the embeddings of the run, unless others are named."""
    config = run.config
    if config.evaluate.embeddings is not None or not has_work("embed", config):
        return config.evaluate
    return config.evaluate.model_copy(update={"embeddings": run.folder("embed")})


STAGES: dict[str, Stage] = {
    "tokenize": Stage("shards", _shards),
    "embed": Stage("embeddings", _embeddings, reads=("tokenize",)),
    "graph": Stage("graph", _graph, reads=("tokenize",)),
    "pretrain": Stage("model", _model, reads=("tokenize",)),
    "encode": Stage("codes", _codes, reads=("tokenize", "pretrain")),
    "index": Stage("index", _index, reads=("encode",)),
    "evaluate": Stage("report", _report, reads=("index", "pretrain")),
}
FIRST, LAST = next(iter(STAGES)), next(reversed(STAGES))


def chosen(first: str, last: str, config: RunConfig) -> list[str]:
    """The stages from `first` to `last` that the config asks for. Raises Misuse where there is none, or no such one."""
    order = list(STAGES)
    for stage in (first, last):
        if stage not in STAGES:
            raise Misuse(f"no stage {stage!r}; the stages are {', '.join(order)}")
    between = order[order.index(first) : order.index(last) + 1]
    if not between:
        raise Misuse(f"--from {first} comes after --until {last}; the order is {', '.join(order)}")
    found = [stage for stage in between if has_work(stage, config)]
    if not found:
        raise Misuse(f"nothing asks for {first}; set {ASKED_FOR_BY[first]}")
    return found
