"""A failure in a worker names the worker, the part and the document."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifact import UNFINISHED
from pipelines.blame import blamed
from pipelines.corpus import CorpusConfig, Document, plan_slices
from pipelines.tokenize import tokenize
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizing.config import TokenizeConfig
from pipelines.tokenizing.part_files import PartJob
from pipelines.tokenizing.shard_parts import write_part
from vae_core.errors import Damaged, LatentbitsError


def inverses(numbers: Sequence[int]) -> list[float]:
    return [1 / number for number in numbers]


@given(st.lists(st.integers(0, 3), max_size=8))
def test_the_first_document_that_fails_alone_is_named(numbers: list[int]) -> None:
    if 0 not in numbers:
        assert blamed(inverses, numbers, part="part-7", name=str) == inverses(numbers)
        return
    with pytest.raises(LatentbitsError) as caught:
        blamed(inverses, numbers, part="part-7", name=lambda number: f"d{number}")
    assert "ZeroDivisionError" in str(caught.value)
    assert f"document 'd0' of part-7, in process {os.getpid()} on {socket.gethostname()}" in str(caught.value)


def test_documents_that_fail_only_together_are_named_as_such() -> None:
    def together(numbers: Sequence[int]) -> int:
        if len(numbers) > 1:
            raise ValueError("too many")
        return 0

    with pytest.raises(LatentbitsError, match="documents '3' to '5', on none of them alone, of part-1"):
        blamed(together, [3, 4, 5], part="part-1", name=str)


@pytest.mark.parametrize("error", [Damaged("x.arrow is not whole"), OSError(28, "No space left on device")])
def test_what_names_its_place_itself_goes_through(error: Exception) -> None:
    def fail(numbers: Sequence[int]) -> None:
        del numbers
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        blamed(fail, [1], part="part-1", name=str)


class Picky:
    """A tokenizer that one word is too much for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.schema = tokenizer.schema

    def tokenize(self, documents: Sequence[Document], types: object) -> object:
        if any("boom" in document.text for document in documents):
            raise RuntimeError("a library gave up")
        return self.tokenizer.tokenize(documents, types)  # type: ignore[arg-type]


def test_a_part_that_cannot_be_tokenized_says_by_which_document(tmp_path: Path, ray_cluster: None) -> None:
    del ray_cluster
    texts = [f"sea ship {number}" for number in range(20)]
    (tmp_path / "docs.txt").write_text("\n".join(texts))
    corpus = CorpusConfig(files=(str(tmp_path / "docs.txt"),))
    shards = tokenize(corpus, tmp_path / "shards", TokenizeConfig())
    (tmp_path / "docs.txt").write_text("\n".join([*texts[:13], "boom", *texts[13:]]))
    job = PartJob(number=3, first_piece=0, pieces=tuple(plan_slices(corpus)))
    (tmp_path / "again" / UNFINISHED).mkdir(parents=True)
    picky = Picky(Tokenizer.load(shards.path))
    said = r"RuntimeError: a library gave up; it failed on document 'docs\.txt:14' of part-00003\.arrow, in process"
    with pytest.raises(LatentbitsError, match=said):
        write_part(picky, corpus, {}, tmp_path / "again", job)  # type: ignore[arg-type]
    assert list((tmp_path / "again").glob("part-*")) == []
