"""A trained model that turns documents into codes: what `encode`, `evaluate` and `query` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.shards import batch_of
from pipelines.tokenizer import Tokenizer
from vae_core.codes import PackedCodes
from vae_core.errors import Misuse
from vae_core.model import VAE

TERMS_AT_ONCE = 16_384
"""About how many term or token ids go through the model in one pass: bounds its memory, whatever the documents."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDocuments:
    """Log-odds (N, K) float32, the codes they round to, the component and the confidence of each, in input order."""

    log_odds: NDArray[np.float32]
    codes: PackedCodes
    components: NDArray[np.uint16]
    confidence: NDArray[np.float32]


class Encoder:
    """A model and its tokenizer, loaded once."""

    def __init__(self, model: VAE, tokenizer: Tokenizer, fingerprint: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model artifact in `folder`. Raises Misuse, Unfinished or Damaged where it cannot be used."""
        artifact = Artifact.open(folder, "model")
        model = VAE.from_pretrained(folder)
        bits = model.latent.code_bits
        if not bits or bits % 8:
            raise Misuse(
                f"the model in {folder} has a {model.config.latent.kind} latent with codes of {bits} bits, and what is "
                f"encoded and searched has a positive multiple of 8; train one with such a size"
            )
        return cls(model, Tokenizer.load(folder), artifact.fingerprint)

    @property
    def bits(self) -> int:
        return self.model.latent.code_bits

    def encode(self, table: pa.Table | pa.RecordBatch) -> EncodedDocuments:
        """Codes of the documents of a table in the shard schema; the same for a document in any table.

        A class-conditional model is not told the class: a query has none, and a code is of the text alone.
        """
        lengths = np.diff(_offsets(table, "tokens" if self.model.reads_tokens else "term_ids"))
        order = np.argsort(lengths, kind="stable")
        log_odds = np.empty((len(order), self.bits), dtype=np.float32)
        components = np.empty(len(order), dtype=np.uint16)
        confidence = np.empty(len(order), dtype=np.float32)
        for rows in _passes(order, lengths[order]):
            encoded = self.model.encode(batch_of(table.take(pa.array(rows)), tokens=self.model.reads_tokens))
            log_odds[rows] = encoded.log_odds.numpy()
            components[rows] = encoded.component.numpy()
            confidence[rows] = encoded.confidence.numpy()
        return EncodedDocuments(log_odds, PackedCodes.pack(torch.from_numpy(log_odds) > 0), components, confidence)


def _passes(order: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut documents sorted by length into passes of at most TERMS_AT_ONCE ids, counted with padding."""
    passes, start = [], 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * int(lengths[end]) > TERMS_AT_ONCE
        if full:
            passes.append(order[start:end])
            start = end
    return passes


def _offsets(table: pa.Table | pa.RecordBatch, name: str) -> NDArray[np.int64]:
    lengths = pa.compute.list_value_length(table.column(name)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)])
