"""A sentence encoder from a local Hugging Face folder: text -> one unit vector, as sentence-transformers computes it.

Shapes: N texts, D dimensions.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from pipelines.artifact import Artifact, checksum
from pipelines.tokenizer import TOKENIZER, Tokenizer, read_bpe
from vae_core.batch import Batch, Ragged
from vae_core.encoders.pretrained import PretrainedEncoder, PretrainedEncoderConfig, with_architecture
from vae_core.errors import Damaged, Misuse, Stale

MOST_TOKENS = 512
"""Tokens of a text that are read where the folder does not say how many."""
TOKENS_AT_ONCE = 8192
"""Tokens that go through the model in one pass, padding included: bounds its memory."""
DECIDING = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
)
"""The files of a folder that decide its vectors."""
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class TextEncoder:
    """A model and its tokenizer, loaded once: vectors are pooled over a text's tokens and have unit length."""

    def __init__(self, model: PretrainedEncoder, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
        self.model = model
        self.folder = folder
        tokenizer.no_truncation()  # cut by the model, which counts the special tokens around a text
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The encoder in `folder`. Raises Misuse where it is none that is read here, Damaged where it is broken."""
        folder = folder.absolute()
        if not folder.is_dir():
            raise Misuse(f"there is no folder {folder}; give one with a Hugging Face sentence encoder")
        pooling, most = _pooling(folder), _most_tokens(folder)
        config = with_architecture(PretrainedEncoderConfig(folder=str(folder), pooling=pooling, positions=most))
        tokenizer = read_bpe(folder / TOKENIZER)
        tokens, known = tokenizer.get_vocab_size(with_added_tokens=True), (config.architecture or {}).get("vocab_size")
        if known is not None and tokens > known:
            raise Damaged(f"{folder / TOKENIZER} has {tokens:,} tokens, and the model {known:,}; get the model anew")
        model = PretrainedEncoder(config, tokens)
        model.start_from_folder()
        return cls(model.eval(), tokenizer, folder)

    @classmethod
    def of_model(cls, model: Artifact, folder: Path | None = None) -> Self:
        """The encoder whose vectors `model` was trained on: in `folder` if given, else where it was then.

        Raises Misuse where it is gone, and Stale where `folder` holds another one.
        """
        place = (folder or model.input_path("encoder")).absolute()
        if not place.is_dir():
            raise Misuse(
                f"{model.path} reads embeddings of the sentence encoder in {place}, which is not there; "
                f"name its folder with --encoder-folder, or embed.folder"
            )
        if folder_fingerprint(place) != model.input("encoder").fingerprint:
            raise Stale(
                f"{place} holds another sentence encoder than the one that {model.path} was trained with; "
                f"name that one's folder with --encoder-folder, or embed.folder"
            )
        return cls.load(place)

    @property
    def dimensions(self) -> int:
        return self.model.width

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts, (N, D), in their order; of a long text its first tokens are read."""
        found = [encoding.ids[: self.model.positions] for encoding in self._encodings(texts)]
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for rows in _passes([len(ids) for ids in found]):
            read = self.model(_batch([found[row] for row in rows]), torch.zeros(0))
            vectors[rows] = normalize(read.float(), dim=1).numpy()
        return vectors

    def embed_documents(self, tokenizer: Tokenizer, table: pa.Table | pa.RecordBatch) -> NDArray[np.float16]:
        """Unit vectors of the documents of a table in the shard schema, (N, D): of what their tokens decode to."""
        return self.embed([tokenizer.decode(tokens) for tokens in table.column("tokens").to_pylist()]).astype(
            np.float16
        )

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return encodings


def folder_fingerprint(folder: Path) -> str:
    """A hash of the files in an encoder's folder that decide its vectors. Raises Misuse where there are no weights."""
    found = sorted(path for pattern in DECIDING for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in found):
        raise Misuse(f"{folder} has no .safetensors: give the folder of a Hugging Face sentence encoder")
    facts = [(path.relative_to(folder).as_posix(), checksum(path)) for path in found]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _batch(documents: list[list[int]]) -> Batch:
    lengths = torch.tensor([0, *map(len, documents)])
    tokens = Ragged(torch.tensor([token for ids in documents for token in ids], dtype=torch.long), lengths.cumsum(0))
    nothing = Ragged(torch.zeros(0, dtype=torch.long), torch.zeros(len(documents) + 1, dtype=torch.long))
    return Batch(tokens, nothing, torch.zeros(0))


def _passes(lengths: list[int]) -> Iterator[list[int]]:
    """Texts of like length together, at most TOKENS_AT_ONCE tokens a pass."""
    waiting: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if waiting and (len(waiting) + 1) * (lengths[row] + 2) > TOKENS_AT_ONCE:
            yield waiting
            waiting = []
        waiting.append(row)
    if waiting:
        yield waiting


def _most_tokens(folder: Path) -> int:
    """How many tokens of a text the folder asks for; the model may have fewer positions."""
    path = folder / "sentence_bert_config.json"
    return int((_json(path) if path.is_file() else {}).get("max_seq_length") or MOST_TOKENS)


def _pooling(folder: Path) -> Literal["mean", "first"]:
    """How the folder pools. Raises Misuse for a way, or a further layer, that is not read here."""
    for module in _json(folder / "modules.json") if (folder / "modules.json").is_file() else ():
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in KNOWN_MODULES:
            raise Misuse(f"{folder} has a {kind} layer behind its pooling, which is not read here; take another model")
    path = folder / "1_Pooling" / "config.json"
    modes = _json(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    asked = sorted(name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True)
    if asked == ["pooling_mode_cls_token"]:
        return "first"
    if asked != ["pooling_mode_mean_tokens"]:
        raise Misuse(f"{path} asks for {' and '.join(asked) or 'no pooling'}; take a model that pools by mean or cls")
    return "mean"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Damaged(f"{path} is not JSON: {error}; get the model anew") from error
