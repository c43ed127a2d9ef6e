"""The encoder that encode, evaluate and query share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import TINY, write_model

from pipelines import encoder as module
from pipelines.corpus import Document
from pipelines.encoder import Encoder
from pipelines.tokenizer import Tokenizer, learn_bpe
from pipelines.vocabulary import Vocabulary
from vae_core.errors import Misuse
from vae_core.model import Composition

WORDS = [f"{first}{second}" for first in ("ab", "cd", "ef", "gh") for second in ("ij", "kl", "mn", "op", "qr")]


def documents(lengths: list[int]) -> list[Document]:
    generator = np.random.default_rng(len(lengths))
    texts = [" ".join(generator.choice(WORDS, length)) for length in lengths]
    return [Document(str(number), text, [], {}, "a.jsonl", number + 1) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "shards").mkdir()
    vocabulary = Vocabulary(WORDS, np.full(len(WORDS), 3), 10)
    Tokenizer(learn_bpe(WORDS, 300), vocabulary, 64).save(folder / "shards")
    return Encoder.load(write_model(folder / "model", folder / "shards").path)


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=30), at_once=st.integers(1, 600))
def test_a_document_has_the_same_code_alone_and_in_any_table(
    encoder: Encoder, lengths: list[int], at_once: int
) -> None:
    table = encoder.tokenizer.table(documents(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TERMS_AT_ONCE", at_once)
        together = encoder.encode(table)
    alone = [encoder.encode(table.slice(row, 1)) for row in range(len(lengths))]
    torch.testing.assert_close(
        torch.from_numpy(together.log_odds), torch.from_numpy(np.concatenate([one.log_odds for one in alone]))
    )
    assert together.components.tolist() == [int(one.components[0]) for one in alone]
    np.testing.assert_allclose(together.confidence, [float(one.confidence[0]) for one in alone], rtol=1e-5)


def test_a_document_without_a_known_word_says_nothing_of_itself(encoder: Encoder) -> None:
    texts = ["", "zzz 123 unheard of", " ".join(WORDS)]
    rows = [Document(str(number), text, [], {}, "a.jsonl", number + 1) for number, text in enumerate(texts)]
    encoded = encoder.encode(encoder.tokenizer.table(rows))
    assert not encoded.log_odds[:2].any()
    assert encoded.confidence[:2].tolist() == [0.5, 0.5]
    assert np.abs(encoded.log_odds[2]).min() > 0
    assert encoded.confidence[2] > 0.5


def test_codes_are_the_signs_of_the_log_odds_packed_from_the_lowest_bit(encoder: Encoder) -> None:
    encoded = encoder.encode(encoder.tokenizer.table(documents([5, 0, 30])))
    packed = np.packbits(encoded.log_odds > 0, axis=1, bitorder="little")
    np.testing.assert_array_equal(encoded.codes.bytes_NC.numpy(), packed)
    assert encoder.bits == encoded.codes.bits == 16


def test_no_documents_have_no_codes(encoder: Encoder) -> None:
    encoded = encoder.encode(encoder.tokenizer.table([]))
    assert encoded.log_odds.shape == (0, 16)
    assert len(encoded.codes) == 0


def test_a_record_batch_and_a_table_of_chunks_give_what_the_table_gives(encoder: Encoder) -> None:
    table = encoder.tokenizer.table(documents([5, 9, 2, 7]))
    expected = encoder.encode(table).log_odds
    for form in (table.combine_chunks().to_batches()[0], pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        np.testing.assert_allclose(encoder.encode(form).log_odds, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("reads", "decoder", "has_tokens"),
    [("terms", "bag_of_words", False), ("terms", "transformer", False), ("tokens", "bag_of_words", True)],
)
def test_its_tables_have_tokens_only_where_codes_are_made_of_them(
    encoder: Encoder, tmp_path: Path, reads: str, decoder: str, has_tokens: bool
) -> None:
    (tmp_path / "shards").mkdir()
    encoder.tokenizer.save(tmp_path / "shards")
    settings = TINY.model_dump(exclude={"decoder"}) | {"decoder": {"kind": decoder}}
    settings["encoder"] |= {"reads": reads}
    composition = Composition.model_validate(settings)
    loaded = Encoder.load(write_model(tmp_path / "model", tmp_path / "shards", composition).path)
    rows = documents([5, 0, 30])
    table = loaded.table(rows)
    assert any(table["tokens"].to_pylist()) is has_tokens
    with_tokens = loaded.encode(loaded.tokenizer.table(rows))
    np.testing.assert_array_equal(loaded.encode(table).log_odds, with_tokens.log_odds)
    assert np.abs(with_tokens.log_odds).max() > 0


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is not a latentbits artifact"):
        Encoder.load(tmp_path)
