import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from pipelines.corpus import Document
from pipelines.tokenizer import Tokenizer, learn_bpe, read_bpe
from pipelines.vocabulary import Vocabulary, select, words
from vae_core.errors import Damaged, Misuse

TEXTS = [
    "The quick brown fox, the lazy dog.",
    "Brown bears and the BROWN fox: naïve café, Straße, İstanbul",
    "x y z 12 a1 under_score don't 日本語 日本",
    "the the the the",
]


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"d{n}", text, [], {}, "f", n) for n, text in enumerate(texts, 1)]


def learned(texts: list[str], max_tokens: int = 512, subwords: int = 400) -> Tokenizer:
    df = Counter(word for text in texts for word in set(words(text)))
    return Tokenizer(learn_bpe(texts, subwords), Vocabulary.of(df, len(texts)), max_tokens)


TOKENIZER = learned(TEXTS)
SHORT = learned(TEXTS, max_tokens=4)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=100))
@example("a\0b \U0001f600 \u200f\r\n\t  end ")
def test_decoding_a_documents_tokens_gives_its_text(text: str) -> None:
    tokens = TOKENIZER.table(documents([text]))["tokens"].to_pylist()[0]
    assert TOKENIZER.decode(tokens) == text


def test_lone_surrogates_become_the_replacement_character() -> None:
    tokens = TOKENIZER.table(documents(["a \ud800 b"]))["tokens"].to_pylist()[0]
    decoded = TOKENIZER.decode(tokens)
    assert "\ufffd" in decoded
    assert decoded.startswith("a ")


def test_terms_and_document_frequencies_are_those_of_scikit_learn() -> None:
    reference = CountVectorizer()
    counts = reference.fit_transform(TEXTS).toarray()
    vocabulary = TOKENIZER.vocabulary
    names = list(vocabulary.ids)
    assert sorted(names) == sorted(reference.vocabulary_)
    df = {name: int((counts[:, column] > 0).sum()) for name, column in reference.vocabulary_.items()}
    assert vocabulary.df.tolist() == [df[name] for name in names]
    assert names == sorted(names, key=lambda name: (-df[name], name))
    for row, found in enumerate(TOKENIZER.table(documents(TEXTS)).to_pylist()):
        ours = {names[term]: count for term, count in zip(found["term_ids"], found["term_counts"], strict=True)}
        assert ours == {
            name: counts[row, column] for name, column in reference.vocabulary_.items() if counts[row, column]
        }
        assert found["term_ids"] == sorted(found["term_ids"])


@pytest.mark.parametrize(("min_documents", "max_share", "size"), [(2, 0.5, 1000), (1, 0.3, 1000), (3, 0.9, 1000)])
def test_selection_keeps_the_terms_that_scikit_learn_keeps(min_documents: int, max_share: float, size: int) -> None:
    generator = random.Random(0)
    texts = [" ".join(generator.choices([f"w{i}" for i in range(60)], k=20)) for _ in range(40)]
    texts = [f"{text} everywhere" for text in texts]
    df = Counter(word for text in texts for word in set(words(text)))
    reference = CountVectorizer(min_df=min_documents, max_df=max_share).fit(texts)
    assert set(select(df, len(texts), size, min_documents, max_share).ids) == set(reference.vocabulary_)


def test_a_corpus_too_small_for_the_bounds_keeps_its_words() -> None:
    assert list(select(Counter(one=1, two=1), 1, 10, 2, 0.5).ids) == ["one", "two"]
    assert list(select(Counter(both=2, one=1), 2, 10, 2, 0.5).ids) == ["both"]


def test_a_count_stops_at_what_16_bits_hold() -> None:
    table = TOKENIZER.table(documents(["the " * 70_000]))
    assert table["term_counts"].to_pylist() == [[65_535]]


def test_long_texts_are_cut_as_the_library_cuts_them() -> None:
    generator = random.Random(0)
    pieces = ["the", " ", "  ", "\n", "brown", "fox's", "\u2028", "\x1c", "日本", "-" * 40, "\t"]
    texts = ["".join(generator.choices(pieces, k=size)) for size in (3, 50, 2000, 5000) for _ in range(20)]
    texts += ["x" * 9000, " " * 9000, "a" * 400 + " b" * 400]
    bpe = tokenizers.Tokenizer.from_str(SHORT._bpe.to_str())
    whole = [encoding.ids for encoding in bpe.encode_batch(texts)]
    table, cut = SHORT.tokenize(documents(texts))
    assert table["tokens"].to_pylist() == [ids[:4] for ids in whole]
    assert cut.tolist() == [len(ids) > 4 for ids in whole]


def test_saved_files_give_the_same_tokens_here_and_in_the_library(tmp_path: Path) -> None:
    SHORT.save(tmp_path)
    table = SHORT.table(documents(TEXTS))
    assert Tokenizer.load(tmp_path).table(documents(TEXTS)).equals(table)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [encoding.ids for encoding in library.encode_batch(TEXTS)] == table["tokens"].to_pylist()
    vocabulary = pq.read_table(tmp_path / "vocabulary.parquet")
    assert vocabulary.schema.metadata[b"documents"] == b"4"
    assert vocabulary["df"].to_numpy().tolist() == SHORT.vocabulary.df.tolist()


def test_token_ids_take_four_bytes_only_where_two_do_not_hold_them() -> None:
    assert TOKENIZER.schema({}).field("tokens").type.value_type.bit_width == 16
    large = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    large.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    table = Tokenizer(large, TOKENIZER.vocabulary).table(documents(["w69999 nothing w5"]))
    assert table.schema.field("tokens").type.value_type.bit_width == 32
    assert table["tokens"].to_pylist() == [[69_999, 0, 5]]


def test_learning_twice_gives_the_same_subwords() -> None:
    assert learn_bpe(TEXTS * 20, 350).to_str() == learn_bpe(TEXTS * 20, 350).to_str()


def test_metadata_takes_the_narrowest_type_that_holds_it() -> None:
    rows = [
        {"i": 1, "f": 1, "b": True, "m": 1, "n": None},
        {"i": None, "f": 0.5, "b": None, "m": False, "n": None},
    ]
    table = TOKENIZER.table([Document(str(n), "text", [], row, "f", n) for n, row in enumerate(rows)])
    assert table["metadata"].to_pylist() == [
        {"i": 1, "f": 1.0, "b": True, "m": "1", "n": None},
        {"i": None, "f": 0.5, "b": None, "m": "false", "n": None},
    ]


def test_no_documents_make_an_empty_table() -> None:
    table = TOKENIZER.table([])
    assert table.num_rows == 0
    assert table.schema == TOKENIZER.schema({})


def test_a_folder_without_the_files_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"half":')
    with pytest.raises(Damaged, match=r"tokenizer\.json"):
        read_bpe(tmp_path / "tokenizer.json")
    TOKENIZER.save(tmp_path)
    pq.write_table(pq.read_table(tmp_path / "vocabulary.parquet").drop_columns("df"), tmp_path / "vocabulary.parquet")
    with pytest.raises(Damaged, match=r"vocabulary\.parquet"):
        Tokenizer.load(tmp_path)


def test_offsets_delimit_each_documents_terms() -> None:
    counted = TOKENIZER.vocabulary.count(["the fox", "", "unknownword", "dog dog"])
    assert counted.offsets.tolist() == [0, 2, 2, 2, 3]
    assert counted.counts.dtype == np.uint16
    assert counted.counts.tolist() == [1, 1, 2]
