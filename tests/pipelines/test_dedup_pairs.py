"""The joins under deduplication, each against all pairs compared one by one."""

import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import pipelines.deduplication.near_pairs as near_pairs
from pipelines.deduplication.links import Links, level_of, links_of
from pipelines.deduplication.near_pairs import PAIRS_AT_ONCE, HammingJoin, Pairs, TextJoin, pairs_in_runs
from pipelines.deduplication.shingles import Shingles, write_shingles

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "the QUICK brown fox, jumps over the lazy dog",
    "The quick brown fox jumps over the lazy cat.",
    "Der schnelle braune Fuchs — „schnell“ springt über den faulen Hund … ja",
    "der schnelle braune fuchs schnell springt über den faulen hund ja!",
    "two words",
    "TWO—words",
    "one",
    "",
    " .,; ",
    "a b c a b c a b c",
    "一 二 三 四 五",
]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def shingles_of(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False)) if len(found) > 2 else {tuple(found)} - {()}


def jaccard(left: str, right: str) -> float:
    ours, theirs = shingles_of(left), shingles_of(right)
    return len(ours & theirs) / max(1, len(ours | theirs))


def edited(seed: int, count: int) -> list[str]:
    """Texts in families: each is another one with some words replaced."""
    chance = np.random.default_rng(seed)
    texts = []
    for family in range(count // 6):
        base = [f"w{word}" for word in chance.integers(0, 300, int(chance.integers(1, 40)))]
        for change in range(6):
            changed = [f"x{family}{change}" if chance.random() < 0.03 * change else word for word in base]
            texts.append(" ".join(changed))
    return texts


def codes_near_one_another(bits: int, count: int, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = chance.integers(0, 256, (max(1, count // 8), bits // 8), dtype=np.uint8)
    flips = np.packbits(chance.random((count, bits)) < 0.04, axis=1, bitorder="little")
    return centres[chance.integers(0, len(centres), count)] ^ flips


def found_by(join: HammingJoin) -> list[tuple[int, int]]:
    return [
        pair for table in range(len(join)) for some in join.pairs(table) for pair in zip(*map(list, some), strict=True)
    ]


def all_within(codes: np.ndarray, radius: int, known: int = 0) -> set[tuple[int, int]]:
    bits = np.unpackbits(codes, axis=1)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    return {(i, j) for j in range(known, len(codes)) for i in range(j) if apart[i, j] <= radius}


def test_shingles_are_three_words_whatever_their_case_and_punctuation() -> None:
    shingles = Shingles.of(pa.array(TEXTS))
    assert list(shingles.sizes) == [len(shingles_of(text)) for text in TEXTS]
    left, right = (side.ravel() for side in np.meshgrid(range(len(TEXTS)), range(len(TEXTS))))
    expected = [jaccard(TEXTS[i], TEXTS[j]) for i, j in zip(left, right, strict=True)]
    assert shingles.jaccard(left, right) == pytest.approx(expected)
    assert (shingles.sums[[0, 3, 5]] == shingles.sums[[1, 4, 6]]).all()
    assert len(set(shingles.sums.tolist())) == len({frozenset(shingles_of(text)) for text in TEXTS})


@given(st.lists(st.text(max_size=60), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_texts_have_a_set_of_shingles_each_and_equal_ones_are_alike(texts: list[str]) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    both = Shingles.of(pa.array(texts + texts, pa.string()))
    assert len(both) == 2 * len(texts)
    rows = np.arange(len(texts))
    there = both.sizes[: len(texts)] > 0
    assert (both.jaccard(rows, rows + len(texts)) == there).all()


def test_no_pair_exceeds_the_bound_that_its_sketches_give() -> None:
    texts = edited(1, 300)
    shingles = Shingles.of(pa.array(texts))
    left, right = (side.ravel() for side in np.meshgrid(range(len(texts)), range(len(texts))))
    exact, bound = shingles.jaccard(left, right), shingles.jaccard_at_most(left, right)
    assert (bound >= exact - 1e-12).all()
    assert (bound[exact == 0] < 0.5).mean() > 0.9  # it is of use


def test_shingles_on_disk_are_those_in_memory_and_are_made_once(tmp_path: Path) -> None:
    texts = pa.array(edited(2, 60))
    memory, disk = Shingles.of(texts), write_shingles([texts.slice(0, 7), texts.slice(7)], tmp_path / "s")
    for name in ("values", "offsets", "sums", "sketches"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(disk, name))
    again = write_shingles(iter(()), tmp_path / "s")
    np.testing.assert_array_equal(again.values, memory.values)
    assert len(write_shingles([], tmp_path / "none")) == 0


@pytest.mark.parametrize("bits", [8, 16, 40, 64, 128])
@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("known", [0, 70])
def test_the_join_of_codes_finds_each_pair_within_the_radius_once(bits: int, radius: int, known: int) -> None:
    codes = codes_near_one_another(bits, 150, seed=bits + radius)
    found = found_by(HammingJoin(codes, radius, known))
    assert len(found) == len(set(found))
    assert set(found) == all_within(codes, radius, known)


@given(st.integers(0, 2**32), st.sampled_from([8, 24, 64, 72]), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_the_join_of_codes_is_exact_for_any_codes(seed: int, bits: int, radius: int) -> None:
    codes = codes_near_one_another(bits, 40, seed)
    assert set(found_by(HammingJoin(codes, radius))) == all_within(codes, radius)


@pytest.mark.parametrize("similar", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("known", [0, 100])
def test_the_join_of_texts_misses_no_pair(similar: float, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_pairs, "POSTINGS_AT_ONCE", 50)  # so that it takes several passes
    texts = edited(3, 240)
    shingles = Shingles.of(pa.array(texts))
    units = np.flatnonzero(shingles.sizes > 0)
    join = TextJoin(shingles, units, similar, known)
    assert len(join) > 1
    found = {
        pair for table in range(len(join)) for some in join.pairs(table) for pair in zip(*map(list, some), strict=True)
    }
    near = {
        (i, j)
        for j in range(known, len(units))
        for i in range(j)
        if jaccard(texts[units[i]], texts[units[j]]) >= similar
    }
    assert near
    assert near <= found
    assert all(i < j and j >= known for i, j in found)


def test_a_giant_run_is_paired_a_bounded_number_at_a_time() -> None:
    """10,000 in one run are 50 M pairs, 800 MB; what is held at a time is a small part of that."""
    order, starts = np.arange(10_000), np.array([0])
    tracemalloc.start()
    sizes = [len(some.left) for some in pairs_in_runs(order, starts)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 10_000 * 9_999 // 2
    assert max(sizes) <= PAIRS_AT_ONCE
    assert peak < 100e6


def stream(links: Links, some: Pairs, levels: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(levels))
    for rows in np.array_split(order, 7):
        left, right = some.left[rows], some.right[rows]
        fresh = ~links.connected(left, right, levels[rows])
        level = levels[rows][fresh]
        links.add(links_of(left[fresh], right[fresh], level, level, np.zeros(len(level), np.float32)))
        links.compact()


@pytest.mark.parametrize("known", [0, 20])
def test_the_forest_connects_at_every_level_what_all_pairs_connect(known: int) -> None:
    chance = np.random.default_rng(5)
    units = 200
    right = chance.integers(max(1, known), units, 600)
    some = Pairs(chance.integers(0, right), right)
    levels = chance.integers(0, 4, 600)
    links = Links(units, known, range(4))
    stream(links, some, levels)
    assert len(links.forest) < units
    for level in range(4):
        chosen = levels <= level
        ends = [np.append(np.where(side[chosen] < known, 0, side[chosen]), []) for side in some]
        graph = coo_array((np.ones(chosen.sum()), ends), shape=(units, units))
        labels = connected_components(graph, directed=False)[1]
        ours = links.labels(level)
        pairs = zip(ours, labels, strict=True)
        assert len(set(pairs)) == len(set(ours)) == len(set(labels))


def test_each_unit_is_linked_towards_the_one_that_is_kept() -> None:
    left, right = np.array([1, 2, 3, 5, 0]), np.array([2, 3, 4, 6, 6])
    links = Links(8, 0, [1])
    links.add(links_of(left, right, np.ones(5), np.ones(5), np.zeros(5, np.float32)))
    parents, edges, kept = links.parents()
    assert list(kept) == [0, 1, 1, 1, 1, 0, 0, 7]
    assert list(parents) == [0, 1, 1, 2, 3, 6, 0, 7]
    assert list(edges["level"]) == [0, 0, 1, 1, 1, 1, 1, 0]


def test_known_units_are_all_kept_and_connect_nothing_among_themselves() -> None:
    links = Links(6, 2, [9])
    left, right = np.array([0, 1, 3, 1]), np.array([2, 3, 4, 2])
    links.add(links_of(left, right, np.array([5, 1, 1, 2]), np.zeros(4), np.zeros(4, np.float32)))
    parents, _, kept = links.parents()
    assert list(kept) == [0, 1, 1, 1, 1, 5]
    assert list(parents) == [0, 1, 1, 1, 3, 5]


def test_levels_of_similarity_round_so_that_a_threshold_keeps_what_reaches_it() -> None:
    similar = np.float32([1, 0.999, 0.9, 0.8999, 0.7, 0.69999])
    for threshold in (1.0, 0.9, 0.7):
        assert list(level_of(similar) <= level_of(threshold)) == [value >= np.float32(threshold) for value in similar]
    assert all(a <= b for a, b in pairwise(level_of(similar)))
