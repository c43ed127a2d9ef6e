"""Text embeddings against the formula of sentence-transformers, computed with transformers alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from text_encoder_files import MOST, write_text_encoder
from transformers import AutoModel, AutoTokenizer

from pipelines import text_encoder
from pipelines.text_encoder import TextEncoder, folder_fingerprint
from vae_core.errors import Damaged, Misuse

TEXTS = [
    "Ships at sea.",
    "a",
    "",
    "many words that go on and on beyond what the model is asked to read " * 3,
    "42 is 6x7",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@torch.no_grad()
def by_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean pooling and normalisation as the model card of all-MiniLM-L6-v2 writes them, a batch padded together."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    read = tokenizer(texts, padding=True, truncation=True, max_length=MOST, return_tensors="pt")
    vectors = model(**read)[0]
    mask = read["attention_mask"].unsqueeze(-1).expand(vectors.size()).float()
    pooled = torch.sum(vectors * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return torch.nn.functional.normalize(pooled, p=2, dim=1).numpy()


def test_vectors_are_those_of_sentence_transformers(folder: Path) -> None:
    encoder = TextEncoder.load(folder)
    vectors = encoder.embed(TEXTS)
    assert (vectors.dtype, vectors.shape, encoder.dimensions) == (np.float32, (5, 16), 16)
    np.testing.assert_allclose(vectors, by_transformers(folder, TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors @ vectors.T - np.eye(5)).max() < 0.999, "texts must differ, or the comparison is empty"


def test_a_text_has_the_same_vector_in_any_company(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(folder)
    together = encoder.embed(TEXTS)
    monkeypatch.setattr(text_encoder, "TOKENS_AT_ONCE", 30)
    np.testing.assert_allclose(encoder.embed(TEXTS), together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.embed([text]) for text in TEXTS]), together, atol=1e-5)
    assert encoder.embed([]).shape == (0, 16)


def test_a_text_is_read_as_far_as_the_folder_says_or_the_model_has_places(copied: Path) -> None:
    long, longer = (
        "a b c d e f g h i j k l m n o p q r s t u v " * 2,
        "a b c d e f g h i j k l m n o p q r s t u v " * 9,
    )
    told = TextEncoder.load(copied).embed([long, longer])
    np.testing.assert_allclose(told[0], told[1], atol=1e-6)
    (copied / "sentence_bert_config.json").unlink()
    untold = TextEncoder.load(copied).embed([long])
    assert np.abs(untold - told[0]).max() > 1e-3
    assert np.isfinite(TextEncoder.load(copied).embed([longer])).all()


def test_the_first_tokens_vector_where_the_folder_pools_so(copied: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    tokenizer, model = AutoTokenizer.from_pretrained(copied), AutoModel.from_pretrained(copied).eval()
    with torch.no_grad():
        first = model(**tokenizer(TEXTS[:1], padding=False, return_tensors="pt"))[0][0, 0].numpy()
    found = TextEncoder.load(copied).embed(TEXTS[:1])[0]
    np.testing.assert_allclose(found, first / np.linalg.norm(first), atol=1e-5)


def test_what_is_not_read_here_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no folder"):
        TextEncoder.load(tmp_path / "gone")
    (copied / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(Misuse, match="Dense"):
        TextEncoder.load(copied)
    (copied / "modules.json").unlink()
    (copied / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(Misuse, match="pooling_mode_max_tokens"):
        TextEncoder.load(copied)
    (copied / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(Damaged, match="not JSON"):
        TextEncoder.load(copied)


def test_the_fingerprint_follows_what_decides_the_vectors(folder: Path, copied: Path, tmp_path: Path) -> None:
    assert folder_fingerprint(copied) == folder_fingerprint(folder)
    (copied / "README.md").write_text("words")
    assert folder_fingerprint(copied) == folder_fingerprint(folder)
    (copied / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    assert folder_fingerprint(copied) != folder_fingerprint(folder)
    other = write_text_encoder(tmp_path / "other", seed=1)
    assert folder_fingerprint(other) != folder_fingerprint(folder)
    with pytest.raises(Misuse, match="safetensors"):
        folder_fingerprint(tmp_path)
