"""One YAML file -> one RunConfig; `--set a.b=c` changes single values of it."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from jobs.config_errors import message
from pipelines.corpus import CorpusConfig
from pipelines.diagnosis.examination import DiagnoseConfig
from pipelines.embed import EmbedConfig
from pipelines.encode import EncodeConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.graph import GraphConfig
from pipelines.index import IndexConfig
from pipelines.serving.config import ServeConfig
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.training.worker import PretrainConfig
from vae_core.config import Config
from vae_core.errors import Misuse
from vae_core.model import Composition


class QueriesConfig(Config):
    """Which documents `evaluate` asks with: as in `corpus`, but other files or other rows."""

    files: tuple[str, ...] | None = Field(default=None, description="null: those of the corpus")
    where: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="ask with rows whose field holds one of these values"
    )


class TrackingConfig(Config):
    """Where runs are tracked; without a `uri`, in mlflow.db beside the run's folder."""

    enabled: bool = Field(default=True, description="track in MLflow")
    uri: str | None = Field(default=None, description="of the tracking server; null: mlflow.db beside the run folder")
    experiment: str = Field(default="latentbits", description="name of the MLflow experiment")


class RunConfig(Config):
    """Everything a run is made from."""

    out: Path = Field(default=Path("runs/run"), description="folder of the run; an artifact of each kind goes into it")
    corpus: CorpusConfig = CorpusConfig()
    queries: QueriesConfig | None = Field(default=None, description="what to ask with; null: the documents themselves")
    tokenize: TokenizeConfig = TokenizeConfig()
    embed: EmbedConfig = EmbedConfig()
    graph: GraphConfig | None = GraphConfig()
    model: Composition = Composition()
    pretrain: PretrainConfig = PretrainConfig()
    encode: EncodeConfig = EncodeConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    diagnose: DiagnoseConfig = DiagnoseConfig()
    serve: ServeConfig = ServeConfig()
    tracking: TrackingConfig = TrackingConfig()

    def query_corpus(self) -> CorpusConfig | None:
        """The corpus that `evaluate` asks with, where one is set."""
        if self.queries is None:
            return None
        changes = {"files": self.queries.files or self.corpus.files, "where": self.queries.where}
        return self.corpus.model_copy(update=changes)


def load_config(source: str | None, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration in the file, or of the recipe, `source` (None: the defaults), with `settings` on top.

    Raises Misuse that names the file, the key, the nearest right one, or the value that does not fit.
    """
    tree = {} if source is None else _read(source)
    for setting in settings:
        _apply(tree, setting)
    _add_kinds(tree, RunConfig().model_dump(mode="json"))
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        place = source or "the settings"
        raise Misuse(f"{place}: " + "\n  ".join(message(one, tree, RunConfig) for one in error.errors())) from None


def recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("jobs.recipes").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        text = _text(path)
    elif source in recipes():
        text = resources.files("jobs.recipes").joinpath(f"{source}.yaml").read_text()
    else:
        raise _no_config(path, source)
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise Misuse(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise Misuse(f"{source} holds {type(tree).__name__}, not settings like `corpus: ...`")
    return tree


def _no_config(path: Path, source: str) -> Misuse:
    names = ", ".join(recipes())
    if path.exists():
        what = "a folder" if path.is_dir() else "no regular file"
        return Misuse(f"{source} is {what}; give a YAML file, or one of the recipes {names}")
    near = difflib.get_close_matches(source, recipes(), 1)
    hint = f"; nearest recipe: {near[0]}" if near else ""
    return Misuse(f"no file {source} and no recipe of that name{hint}; recipes: {names}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Misuse(f"{path} is not a text file: byte {error.start} is not UTF-8; give a YAML file") from None
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror}") from None


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise Misuse(f"--set {setting}: write it as --set a.b=value, for example --set model.latent.bits=32")
    *sections, last = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise Misuse(f"--set {setting}: {section} is a value, not a section")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        quoted = "a name that begins with * or holds a colon needs quotes: 'corpus.files=[\"*.jsonl\"]'"
        raise Misuse(f"--set {setting}: {value!r} is not a YAML value; {quoted}") from None


def _add_kinds(tree: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Where settings of a component are given without its kind, they are those of the default kind."""
    for name, section in tree.items():
        default = defaults.get(name)
        if isinstance(section, dict) and isinstance(default, dict):
            if "kind" in default:
                section.setdefault("kind", default["kind"])
            _add_kinds(section, default)
