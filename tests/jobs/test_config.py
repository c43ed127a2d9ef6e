"""Settings from files and from --set, and what is said of wrong ones."""

from pathlib import Path

import pytest
import yaml

from jobs.config import RunConfig, load_config, recipes
from vae_core.encoders import BagOfWordsEncoderConfig, TransformerEncoderConfig
from vae_core.errors import Misuse
from vae_core.objectives import Annealing, Beta


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid(name: str) -> None:
    assert load_config(name, ["corpus.files=[a.jsonl]"]).corpus.files == ("a.jsonl",)


def test_the_default_recipe_says_what_the_defaults_are() -> None:
    assert load_config("default") == RunConfig() == load_config(None)


def test_a_setting_changes_one_value_and_the_last_of_two_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": {"latent": {"kind": "bernoulli_mixture", "bits": 32}}}))
    config = load_config(str(path), ["model.latent.components=7", "pretrain.seed=1", "pretrain.seed=2"])
    assert (config.model.latent.bits, config.model.latent.components, config.pretrain.seed) == (32, 7, 2)


def test_a_component_whose_kind_is_not_given_is_of_the_default_kind() -> None:
    config = load_config(None, ["model.encoder.width=32", "pretrain.objective.rate.annealing.beta=2"])
    assert config.model.encoder == TransformerEncoderConfig(width=32)
    assert config.pretrain.objective.rate == Beta(annealing=Annealing(beta=2))
    other = load_config(None, ["model.encoder.kind=bag_of_words", "model.encoder.width=32"])
    assert other.model.encoder == BagOfWordsEncoderConfig(width=32)


def test_queries_may_name_files_alone_and_share_the_other_fields() -> None:
    config = load_config(None, ["corpus.files=[a.jsonl]", "corpus.id=key", "queries.files=[b.jsonl]"])
    asked = config.query_corpus()
    assert asked is not None
    assert (asked.files, asked.id, asked.where) == (("b.jsonl",), "key", {})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.encoder.widht=3", "no setting model.encoder.widht; nearest: model.encoder.width"),
        ("model.decoder={kind: transformer, widht: 3}", "no setting model.decoder.widht; nearest: model.decoder.width"),
        ("corpus.flies=[a]", "no setting corpus.flies; nearest: corpus.files"),
        ("modle.encoder.width=3", "no setting modle; nearest: model"),
        ("bits=32", "no setting bits; nearest: model.latent.bits"),
        ("model.bits=32", "no setting model.bits; nearest: model.latent.bits"),
        ("pretrain.objective.rate.nats=3", "another kind has it: set pretrain.objective.rate.kind"),
        (
            "model.latent={kind: categorical, bits: 64}",
            "no setting model.latent.bits of categorical; another kind has it",
        ),
        ("model.latent={kind: categorical, bits: 64}", "leave it out: --set 'model.latent={kind: categorical}'"),
        ("model.encoder.heads=3", "width 256 cannot be divided among 3 heads; set width to a multiple of heads"),
        ("model.decoder={kind: transformer, width: 100, heads: 3}", "width 100 cannot be divided among 3 heads"),
        ("model.decoder={kind: denoising_attention, heads: 7}", "width 256 cannot be divided among 7 heads"),
        ("graph.joined=400", "graph.joined: input should be less than 400, got 400"),
        ("evaluate.seed=-1", "evaluate.seed: input should be greater than or equal to 0, got -1"),
        ("tracking.zzz=3", "no setting tracking.zzz; tracking has enabled, experiment, uri"),
        ("model.encoder.kind=trnsformer", "model.encoder.kind: no kind 'trnsformer'; nearest: transformer; kinds: "),
        ("model.encoder.kind=trnsformer", "transformer, bag_of_words"),
        ("model.latent.kind=bernouli", "model.latent.kind: no kind 'bernouli'; nearest: bernoulli"),
        ("model.latent.bits=60", "model.latent.bits: input should be a multiple of 8, got 60"),
        ("pretrain.epochs=many", "pretrain.epochs: input should be a valid number"),
        ("pretrain.batch_size=0", "pretrain.batch_size: input should be greater than or equal to 1, got 0"),
        ("corpus.files=docs.jsonl", "corpus.files: wants a list; write [docs.jsonl]"),
        ("corpus.where.split=train", "corpus.where.split: wants a list; write [train]"),
        ("corpus.where.split=[1]", "corpus.where.split.0: input should be a valid string, got 1"),
        ("model=3", "model is a section of settings, got 3"),
        ("pretrain.objective.rate={kind: free_bits}", "pretrain.objective.rate.nats has no default; set it"),
        ("corpus.files=[*.jsonl]", "needs quotes: 'corpus.files=[\"*.jsonl\"]'"),
        ("corpus.files", "write it as --set a.b=value"),
        ("=3", "write it as --set a.b=value"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_right(setting: str, said: str) -> None:
    with pytest.raises(Misuse) as caught:
        load_config(None, [setting])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_cannot_be_set_inside_a_value() -> None:
    with pytest.raises(Misuse, match="id is a value, not a section"):
        load_config(None, ["corpus.id=key", "corpus.id.name=x"])


def test_every_wrong_setting_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("corpus: {metadta: [a]}\npretrain: {epochs: soon}\n")
    with pytest.raises(Misuse) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)
    assert "corpus.metadta; nearest: corpus.metadata" in str(caught.value)
    assert "pretrain.epochs" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"corpus: [", "is not YAML"),
        (b"- a\n- b\n", "holds list, not settings"),
        (b"just words", "holds str, not settings"),
        (b"\x89PNG\r\n\xff\xfe", "is not a text file: byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(Misuse) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(
        Misuse, match="is a folder; give a YAML file, or one of the recipes articles, categorical, default, demo"
    ):
        load_config(str(tmp_path))


def test_an_unknown_recipe_brings_the_nearest_and_all() -> None:
    with pytest.raises(Misuse, match=r"no file newsgroup and no recipe.*nearest recipe: newsgroups; recipes: art"):
        load_config("newsgroup")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert load_config(str(tmp_path / "mine.yaml")) == RunConfig()
