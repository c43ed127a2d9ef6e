"""What the tokenize stage learns before it begins: subwords, a vocabulary, and the types of the metadata."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.artifact import Part, find_part, record_part, write_text
from pipelines.corpus import CorpusConfig, Document, Rejection, Slice, read_slice
from pipelines.files.published import fetch
from pipelines.metadata import SeenTypes, Types
from pipelines.tokenizer import TOKENIZER, Tokenizer, learn_bpe, read_bpe
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.vocabulary import VOCABULARY, select, words
from vae_core.errors import LatentbitsError

SAMPLE_BYTES = 256 << 20
"""Text read at most, whatever the number of documents."""
TYPES = "metadata.json"


class Sample:
    """The first documents of every slice, counted as they pass by."""

    def __init__(self, corpus: CorpusConfig, pieces: Sequence[Slice], size: int) -> None:
        self.corpus = corpus
        self.pieces = pieces
        self.size = size
        self.documents = 0
        self.df: Counter[str] = Counter()
        self.types = SeenTypes(corpus.metadata)
        self.rejections: list[Rejection] = []

    def texts(self) -> Iterator[str]:
        """The texts, once, in the order of the corpus; the counts are those of the texts taken so far."""
        remaining_bytes = SAMPLE_BYTES
        for number, piece in enumerate(self.pieces):
            slices_left = len(self.pieces) - number
            documents = -(-(self.size - self.documents) // slices_left)
            for text in self._taken(piece, documents, remaining_bytes // slices_left):
                remaining_bytes -= len(text)
                yield text

    def _taken(self, piece: Slice, documents: int, characters: int) -> Iterator[str]:
        """At most so many documents of one slice, and no more once their texts are so long."""
        if documents <= 0:
            return
        for row in read_slice(self.corpus, piece):
            if isinstance(row, Rejection):
                self.rejections = [*self.rejections, row][:3]
                continue
            self._count(row)
            yield row.text
            documents, characters = documents - 1, characters - len(row.text)
            if documents <= 0 or characters <= 0:
                return

    def _count(self, document: Document) -> None:
        self.documents += 1
        self.df.update(set(words(document.text)))
        self.types.add(document.metadata)


def learn(corpus: CorpusConfig, pieces: Sequence[Slice], config: TokenizeConfig, folder: Path) -> tuple[Part, ...]:
    """Write `tokenizer.json`, `vocabulary.parquet` and the metadata types to the unfinished artifact in `folder`.

    What is there from an earlier run is kept. Raises LatentbitsError for a corpus without documents or words.
    """
    done = find_part(folder, TOKENIZER), find_part(folder, VOCABULARY)
    if done[0] and done[1] and fetch(_types_file(folder)):
        return done[0], done[1]
    sample = Sample(corpus, pieces, config.sample)
    if config.tokenizer is None:
        bpe = learn_bpe(sample.texts(), config.subwords)
    else:
        bpe = read_bpe(Path(config.tokenizer))
        for _ in sample.texts():
            pass
    if not sample.documents:
        raise _no_documents(corpus, sample.rejections)
    vocabulary = select(sample.df, sample.documents, config.terms, config.min_documents, config.max_share)
    if not len(vocabulary):
        raise LatentbitsError(
            f"no word of two or more letters in {sample.documents} documents of {', '.join(corpus.files)}; "
            f"is {corpus.text!r} the field that holds the text?"
        )
    write_text(_types_file(folder), json.dumps(sample.types.types()))
    Tokenizer(bpe, vocabulary, config.max_tokens).save(folder)
    return (
        record_part(folder, TOKENIZER, bpe.get_vocab_size()),
        record_part(folder, VOCABULARY, len(vocabulary)),
    )


def learned_types(folder: Path) -> Types:
    """The metadata types that `learn` found."""
    types: Types = json.loads(_types_file(folder).read_text())
    return types


def _types_file(folder: Path) -> Path:
    return folder / ".unfinished" / TYPES


def _no_documents(corpus: CorpusConfig, rejections: Sequence[Rejection]) -> LatentbitsError:
    chosen = f" for which {dict(corpus.where)} holds" if corpus.where else ""
    places = "".join(f"\n  {row.file}:{row.position} {row.reason}" for row in rejections)
    refused = f"; the first rows that were refused:{places}" if places else "; are the files empty?"
    return LatentbitsError(f"no documents{chosen} in {', '.join(corpus.files)}{refused}")
