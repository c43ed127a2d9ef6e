"""The pretrained encoder against transformers called directly, on tiny random models that it wrote itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documents import EMPTY, Document, batch_of, random_documents
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from vae_core.batch import Batch
from vae_core.decoders import TransformerDecoderConfig
from vae_core.encoders.pretrained import PretrainedEncoder, PretrainedEncoderConfig, with_architecture
from vae_core.errors import Damaged, Misuse
from vae_core.latents import GaussianConfig
from vae_core.model import VAE, VAEConfig

TOKENS, CLS, SEP, PLACES = 40, 2, 3, 16
DOCUMENTS = [*random_documents(5, tokens=TOKENS, longest=12), EMPTY]
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as one would download: weights, config, and a tokenizer that has special tokens."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=TOKENS, max_position_embeddings=PLACES, **TINY)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    added = [{"id": CLS, "content": "[CLS]"}, {"id": SEP, "content": "[SEP]"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    """The folder again, to be damaged."""
    return Path(shutil.copytree(bert, tmp_path / "copied"))


def settings(folder: Path, **others: object) -> PretrainedEncoderConfig:
    return with_architecture(PretrainedEncoderConfig.model_validate({"folder": str(folder), **others}))


def encoder_of(folder: Path, *, states: bool = False, **others: object) -> PretrainedEncoder:
    encoder = PretrainedEncoder(settings(folder, **others), TOKENS, states=states).eval()
    encoder.start_from_folder()
    return encoder


def tfidf(batch: Batch) -> Tensor:
    return batch.tfidf(torch.ones(40))


def read_alone(folder: Path, tokens: tuple[int, ...]) -> Tensor:
    """What BertModel makes of one document by itself, without padding, (T, D)."""
    return BertModel.from_pretrained(folder).eval()(torch.tensor([tokens])).last_hidden_state[0]


@torch.no_grad()
def test_documents_are_read_as_the_library_reads_them_between_their_special_tokens(bert: Path) -> None:
    batch = batch_of(DOCUMENTS)
    alone = [read_alone(bert, (CLS, *document.tokens, SEP)) for document in DOCUMENTS]
    mean = encoder_of(bert)(batch, tfidf(batch))
    first = encoder_of(bert, pooling="first")(batch, tfidf(batch))
    torch.testing.assert_close(mean, torch.stack([vectors.mean(dim=0) for vectors in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first, torch.stack([vectors[0] for vectors in alone]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_states_are_the_vectors_of_the_tokens_alone(bert: Path) -> None:
    batch = batch_of(DOCUMENTS)
    states = encoder_of(bert, states=True)(batch, tfidf(batch))
    assert states.mask.sum(dim=1).tolist() == [len(document.tokens) for document in DOCUMENTS]
    assert not states.vectors[~states.mask].any()
    for row, document in enumerate(DOCUMENTS):
        expected = read_alone(bert, (CLS, *document.tokens, SEP))[1:-1]
        torch.testing.assert_close(states.vectors[row][states.mask[row]], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("special", [True, False])
def test_a_document_is_the_same_in_any_batch(copied: Path, special: bool) -> None:
    if not special:
        (copied / "tokenizer_config.json").unlink()
    encoder, batch = encoder_of(copied), batch_of(DOCUMENTS)
    assert (encoder.config.opening is not None) == special
    together = encoder(batch, tfidf(batch))
    alone = [encoder(one, tfidf(one)) for one in (batch_of([document]) for document in DOCUMENTS)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    assert bool(together[-1].any()) == special
    states = encoder_of(copied, states=True)(batch_of([EMPTY]), torch.zeros(0))
    assert states.vectors.shape == (1, 1, 16)
    assert not states.mask.any()


@torch.no_grad()
@pytest.mark.parametrize(("positions", "kept"), [(8, 6), (512, PLACES - 2)])
def test_long_documents_are_cut_to_what_is_asked_for_and_the_model_has(bert: Path, positions: int, kept: int) -> None:
    tokens = tuple(range(4, 34))
    batch = batch_of([Document({}, tokens)])
    expected = read_alone(bert, (CLS, *tokens[:kept], SEP)).mean(dim=0)
    found = encoder_of(bert, positions=positions)(batch, tfidf(batch))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_special_tokens_and_positions_of_a_roberta_follow_its_config(tmp_path: Path) -> None:
    """It says bos and eos by number, counts places from the one after its padding, and so has two places less."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=TOKENS, max_position_embeddings=PLACES + 2, pad_token_id=1, **TINY)
    model = RobertaModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    encoder, tokens = encoder_of(tmp_path), tuple(range(4, 34))
    batch = batch_of([Document({}, tokens), Document({}, (5, 6))])
    for row, kept in enumerate([tokens[: PLACES - 2], (5, 6)]):
        read = torch.tensor([[config.bos_token_id, *kept, config.eos_token_id]])
        expected = model(read).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(encoder(batch, tfidf(batch))[row], expected, atol=1e-5, rtol=1e-5)


def vae_of(folder: Path, **others: object) -> VAE:
    parts = {"encoder": settings(folder, **others), "latent": GaussianConfig(dimensions=4)}
    decoder = TransformerDecoderConfig(width=16, heads=2, layers=1, positions=16)
    return VAE(VAEConfig(**parts, decoder=decoder, terms=40, tokens=TOKENS))


@torch.no_grad()
def test_a_trained_model_opens_where_the_folder_is_gone(copied: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, batch = vae_of(copied), batch_of(DOCUMENTS)
    before = model.eval().posterior(batch).mean
    model.start_from(torch.ones(40), 10)
    started = model.posterior(batch).mean
    assert not torch.equal(before, started)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(copied)
    torch.testing.assert_close(VAE.from_pretrained(tmp_path / "model").posterior(batch).mean, started)


@pytest.mark.parametrize("freeze", [True, False])
def test_every_parameter_learns_but_the_frozen_models(bert: Path, freeze: bool) -> None:
    """Dropout of a frozen model stays off in training, so that its features are always the same."""
    model, batch = vae_of(bert, freeze=freeze).train(), batch_of(DOCUMENTS)
    terms = model(batch)
    (terms.kl_groups.sum() - terms.log_px.sum()).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        name for name, _ in model.named_parameters() if freeze and name.startswith("encoder.")
    }
    features = [model.encoder(batch, tfidf(batch)) for _ in range(2)]
    assert torch.equal(*features) == freeze
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters()) or not freeze


def spoil(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_folders_that_cannot_be_read_safely_are_refused(copied: Path, tmp_path: Path) -> None:
    for nowhere in ("", str(tmp_path / "nowhere")):
        with pytest.raises(Misuse, match="there is no folder"):
            with_architecture(PretrainedEncoderConfig(folder=nowhere))
    with pytest.raises(Misuse, match=r"has no config.json"):
        settings(tmp_path)
    (copied / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(Misuse, match=r"has no weights; get the model with its model.safetensors"):
        settings(copied)
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(Misuse, match=r"has only pytorch_model.bin, a pickle, which can run code"):
        settings(copied)
    (tmp_path / "kept").rename(copied / "model.safetensors")
    spoil(copied / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(Misuse, match="brings code of its own"):
        settings(copied)
    (copied / "config.json").write_text("{oops")
    with pytest.raises(Damaged, match=r"config.json is not JSON"):
        settings(copied)


def test_weights_that_are_broken_or_lacking_are_named(copied: Path) -> None:
    encoder = PretrainedEncoder(settings(copied), TOKENS)
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match=r"the weights in .*copied cannot be loaded"):
        encoder.start_from_folder()
    deeper = settings(copied).architecture | {"num_hidden_layers": 3}
    (copied / "model.safetensors").write_bytes(whole)
    (copied / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(Damaged, match=r"lack encoder.layer.2"):
        PretrainedEncoder(settings(copied), TOKENS).start_from_folder()


def test_models_that_do_not_fit_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"the shards have 41 different tokens, .* knows 40: .*tokenizer.json"):
        PretrainedEncoder(settings(bert), TOKENS + 1)
    with pytest.raises(Misuse, match=r"architecture of .* is not known yet"):
        PretrainedEncoder(PretrainedEncoderConfig(folder=str(bert)), TOKENS)
    T5Model(T5Config(vocab_size=TOKENS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(Misuse, match="a t5 model has no one stack of layers"):
        PretrainedEncoder(settings(tmp_path), TOKENS)
    unknown = settings(bert).model_copy(update={"architecture": {"model_type": "nonsense"}})
    with pytest.raises(Misuse, match="transformers builds no model of this"):
        PretrainedEncoder(unknown, TOKENS)


def test_the_library_is_not_imported_before_a_pretrained_encoder_is_built() -> None:
    program = "import sys, vae_core.model; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_without_the_library_the_remedy_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Misuse, match=r"pip install 'latentbits\[pretrained\]'"):
        PretrainedEncoder(settings(bert), TOKENS)
