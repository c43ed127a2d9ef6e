"""From documents to tokens and terms: byte-level BPE and a bag of words. Shapes: N documents, T tokens of them all."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import tokenizers

from pipelines.artifact import write_text
from pipelines.corpus import Document
from pipelines.metadata import SeenTypes, Types, struct_array, struct_type
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Damaged, Misuse

TOKENIZER = "tokenizer.json"
SNIPPET = 240
"""Characters of a text that are kept for display."""
LONGEST_SUBWORD = 32
"""Bytes of the longest subword that is learned; a longer one would be a separator line, not language."""
WORD_END = re.compile(r"\S(?=[ \n])")


class Tokenized(NamedTuple):
    table: pa.Table
    """The shard schema, one row a document."""
    cut: np.ndarray
    """(N,) bool: whether the document had more tokens than are kept."""


class Tokenizer:
    """A BPE that keeps at most `max_tokens` tokens of a document, and a vocabulary.

    `subwords` is one more than the largest token id.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, vocabulary: Vocabulary, max_tokens: int | None = None) -> None:
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens or (bpe.truncation or {}).get("max_length")
        # Truncating here, not in the library, shows which documents were cut.
        bpe.no_truncation()
        bpe.no_padding()
        self._bpe = bpe
        self.subwords = 1 + max(bpe.get_vocab(with_added_tokens=True).values())
        self._token_type = np.uint16 if self.subwords <= 1 << 16 else np.uint32
        self._enough = self._enough_characters()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json` and `vocabulary.parquet`. Raises Misuse where one is missing, Damaged if unreadable."""
        return cls(read_bpe(folder / TOKENIZER), Vocabulary.load(folder))

    def save(self, folder: Path) -> None:
        """Write both files; any program that uses Hugging Face `tokenizers` gets the same tokens."""
        if self.max_tokens:
            self._bpe.enable_truncation(self.max_tokens)
        write_text(folder / TOKENIZER, self._bpe.to_str(pretty=True))
        self._bpe.no_truncation()
        self.vocabulary.save(folder)

    def schema(self, types: Types) -> pa.Schema:
        """The shard schema; a metadata column only where `types` has fields."""
        fields = [
            ("id", pa.string()),
            ("tokens", pa.list_(pa.from_numpy_dtype(self._token_type))),
            ("term_ids", pa.list_(pa.uint32())),
            ("term_counts", pa.list_(pa.uint16())),
            ("labels", pa.list_(pa.string())),
            ("text", pa.string()),
        ]
        return pa.schema([*fields, ("metadata", struct_type(types))] if types else fields)

    def table(
        self, documents: Sequence[Document], types: Types | None = None, *, terms_alone: bool = False
    ) -> pa.Table:
        """The documents in the shard schema; metadata of the narrowest types that hold it, unless `types` are given.

        With `terms_alone` no document has tokens, which take most of the time.
        """
        return self.tokenize(documents, types, terms_alone=terms_alone).table

    def tokenize(
        self, documents: Sequence[Document], types: Types | None = None, *, terms_alone: bool = False
    ) -> Tokenized:
        """The same, and which documents were cut at `max_tokens`."""
        types = _types(documents) if types is None else types
        texts = [_encodable(document.text) for document in documents]
        tokens, cut = self._tokens([""] * len(texts) if terms_alone else texts)
        terms = self.vocabulary.count(texts)
        columns = [
            pa.array([document.id for document in documents], pa.string()),
            tokens,
            pa.ListArray.from_arrays(terms.offsets, terms.ids),
            pa.ListArray.from_arrays(terms.offsets, terms.counts),
            pa.array([document.labels for document in documents], pa.list_(pa.string())),
            pa.array([text[:SNIPPET] for text in texts], pa.string()),
        ]
        if types:
            columns.append(struct_array([document.metadata for document in documents], types))
        return Tokenized(pa.Table.from_arrays(columns, schema=self.schema(types)), cut)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of these tokens; for all of a document's tokens, its text."""
        return str(self._bpe.decode(list(tokens), skip_special_tokens=False))

    def _tokens(self, texts: Sequence[str]) -> tuple[pa.Array, np.ndarray]:
        encodings = self._bpe.encode_batch_fast([self._beginning(text) for text in texts], add_special_tokens=False)
        most = self.max_tokens
        kept = [encoding.ids[:most] for encoding in encodings]
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        offsets = np.zeros(len(kept) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, kept), np.int64, len(kept)), out=offsets[1:])
        values = np.fromiter(chain.from_iterable(kept), self._token_type, int(offsets[-1]))
        cut = lengths > most if most else np.zeros(len(kept), bool)
        return pa.ListArray.from_arrays(offsets, values), cut

    def _beginning(self, text: str) -> str:
        """As much of `text` as decides its first `max_tokens` + 1 tokens; all of it where that is not known."""
        if self._enough is None or len(text) <= self._enough:
            return text
        end = WORD_END.search(text, self._enough)
        return text[: end.end()] if end else text

    def _enough_characters(self) -> int | None:
        """How many characters have more than `max_tokens` tokens for certain, if the BPE is one that words delimit."""
        state = json.loads(self._bpe.to_str())
        splitter = state["pre_tokenizer"] or {}
        by_words = splitter.get("type") == "ByteLevel" and splitter.get("use_regex")
        if not self.max_tokens or not by_words or state["normalizer"] or state["added_tokens"]:
            return None
        return (self.max_tokens + 1) * max(map(len, self._bpe.get_vocab()))


def read_bpe(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a `tokenizer.json`. Raises Misuse where there is none and Damaged where it cannot be read."""
    if not path.is_file():
        raise Misuse(f"no tokenizer at {path}; give a folder or a file that has a {TOKENIZER}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise Damaged(f"{path} is not a tokenizer that Hugging Face tokenizers can read: {error}") from error


def learn_bpe(texts: Iterable[str], subwords: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `subwords` entries; the same texts in the same order give the same one."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=subwords,
        initial_alphabet=sorted(byte_level.alphabet()),
        max_token_length=LONGEST_SUBWORD,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _types(documents: Sequence[Document]) -> Types:
    seen = SeenTypes(documents[0].metadata if documents else ())
    for document in documents:
        seen.add(document.metadata)
    return seen.types()


def _encodable(text: str) -> str:
    """`text` with lone surrogates, as a query may hold them, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass").decode(errors="replace")
    return text
