"""A trained model that turns documents into codes: what `encode`, `evaluate` and `query` share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines.artifact import Artifact
from pipelines.corpus import Document
from pipelines.metadata import Types
from pipelines.shards import batch_of
from pipelines.text_encoder import TextEncoder
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
    """A model and its tokenizer, loaded once; and, where it reads embeddings, what makes those."""

    def __init__(
        self, model: VAE, tokenizer: Tokenizer, fingerprint: str, text_encoder: TextEncoder | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.text_encoder = text_encoder
        self._reads_tokens = model.posterior_reads_tokens

    @classmethod
    def load(cls, folder: Path, encoder_folder: Path | None = None, *, embedded: bool = False) -> Self:
        """The model artifact in `folder`. Raises Misuse, Unfinished, Stale or Damaged where it cannot be used.

        `encoder_folder` is where the sentence encoder lies now, for a model that reads its embeddings; with `embedded`
        every document comes with its embedding, and no such folder is opened.
        """
        artifact = Artifact.open(folder, "model")
        model = VAE.from_pretrained(folder)
        bits = model.latent.code_bits
        if not bits or bits % 8:
            raise Misuse(
                f"the model in {folder} has a {model.config.latent.kind} latent with codes of {bits} bits, and what is "
                f"encoded and searched has a positive multiple of 8; train one with such a size"
            )
        text_encoder = None
        if model.config.joined and not embedded:
            text_encoder = TextEncoder.of_model(artifact, encoder_folder)
        return cls(model, Tokenizer.load(folder), artifact.fingerprint, text_encoder)

    @property
    def bits(self) -> int:
        return self.model.latent.code_bits

    def table(self, documents: Sequence[Document], types: Types | None = None) -> pa.Table:
        """The documents in the shard schema, with tokens only where codes are made of them."""
        terms_alone = not self._reads_tokens and self.text_encoder is None
        return self.tokenizer.table(documents, types, terms_alone=terms_alone)

    def encode(
        self, table: pa.Table | pa.RecordBatch, embeddings: NDArray[np.floating] | None = None
    ) -> EncodedDocuments:
        """Codes of the documents of a table in the shard schema; the same for a document in any table.

        A model that reads embeddings is given them (N, E), or they are made here from the documents' tokens.
        A class-conditional model is not told the class: a query has none, and a code is of the text alone.
        """
        if self.model.config.joined and embeddings is None and self.text_encoder is not None:
            embeddings = self.text_encoder.embed_documents(self.tokenizer, table)
        lengths = np.diff(_offsets(table, "tokens" if self._reads_tokens else "term_ids"))
        order = np.argsort(lengths, kind="stable")
        log_odds = np.empty((len(order), self.bits), dtype=np.float32)
        components = np.empty(len(order), dtype=np.uint16)
        confidence = np.empty(len(order), dtype=np.float32)
        for rows in _passes(order, lengths[order]):
            beside = None if embeddings is None else embeddings[rows].astype(np.float32)
            batch = batch_of(table.take(pa.array(rows)), tokens=self._reads_tokens, embeddings=beside)
            encoded = self.model.encode(batch)
            log_odds[rows] = encoded.log_odds.numpy()
            components[rows] = encoded.component.numpy()
            confidence[rows] = encoded.confidence.numpy()
        return EncodedDocuments(log_odds, PackedCodes.pack(torch.from_numpy(log_odds) > 0), components, confidence)

    def ask(
        self, table: pa.Table | pa.RecordBatch, embeddings: NDArray[np.floating] | None = None
    ) -> NDArray[np.float32]:
        """What the documents of a table rank others by, (Q, K): log-odds with the signs of their codes."""
        log_odds = torch.from_numpy(self.encode(table, embeddings).log_odds)
        found: NDArray[np.float32] = self.model.asked(log_odds).numpy()
        return found


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
