"""One YAML file -> one RunConfig; `--set a.b=c` changes single values of it."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.corpus import CorpusConfig
from pipelines.encode import EncodeConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.index import IndexConfig
from pipelines.tokenize_config import TokenizeConfig
from pipelines.training import PretrainConfig
from vae_core.config import Config
from vae_core.errors import Misuse
from vae_core.model import Composition


class QueriesConfig(Config):
    """Which documents `evaluate` asks with: as in `corpus`, but other files or other rows."""

    files: tuple[str, ...] | None = None
    where: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class TrackingConfig(Config):
    """Where runs are tracked; without a `uri`, in mlflow.db beside the run's folder."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "latentbits"


class RunConfig(Config):
    """Everything a run is made from."""

    out: Path = Path("runs/run")
    corpus: CorpusConfig = CorpusConfig()
    queries: QueriesConfig | None = None
    tokenize: TokenizeConfig = TokenizeConfig()
    model: Composition = Composition()
    pretrain: PretrainConfig = PretrainConfig()
    encode: EncodeConfig = EncodeConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
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
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise Misuse(f"{source or 'the settings'}: " + "\n  ".join(map(_message, error.errors()))) from None


def recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("jobs.recipes").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.is_dir() or not path.exists():
        if source not in recipes():
            near = difflib.get_close_matches(source, recipes(), 1)
            hint = f"; nearest recipe: {near[0]}" if near else ""
            raise Misuse(f"no file {source} and no recipe of that name{hint}; recipes: {', '.join(recipes())}")
        text = resources.files("jobs.recipes").joinpath(f"{source}.yaml").read_text()
    else:
        text = _text(path)
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise Misuse(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise Misuse(f"{source} holds {type(tree).__name__}, not settings like `corpus: ...`")
    return tree


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise Misuse(f"{path} is not a text file: byte {error.start} is not UTF-8") from None


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise Misuse(f"--set {setting}: write it as --set a.b=value, for example --set model.latent.bits=32")
    *sections, last = key.split(".")
    for section in sections:
        held = tree.setdefault(section, {})
        if not isinstance(held, dict):
            raise Misuse(f"--set {setting}: {section} is a value, not a section")
        tree = held
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise Misuse(f"--set {setting}: {value!r} is not a YAML value") from None


def _message(error: Any) -> str:
    place = [str(step) for step in error["loc"]]
    key = ".".join(place)
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']}, got {error['input']!r}"
    near = difflib.get_close_matches(place[-1], _keys(RunConfig.model_json_schema()), 1, cutoff=0.5)
    return f"no setting {key}" + (f"; nearest: {near[0]}" if near else "")


def _keys(schema: dict[str, Any]) -> list[str]:
    """Every key that occurs anywhere in the configuration."""
    sections = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for section in sections for name in section.get("properties", {})})
