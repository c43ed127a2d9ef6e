"""Code health against closed forms and NumPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.codes import PackedCodes
from vae_core.diagnostics.code_health import CodeHealth


def health(bits: torch.Tensor, components: torch.Tensor | None = None) -> dict:
    counted = CodeHealth(bits.shape[1])
    counted.update(PackedCodes.pack(bits), torch.zeros(len(bits)) if components is None else components)
    return counted.as_dict()


def coin_flips(documents: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(documents, bits, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_independent_fair_bits_are_within_five_standard_errors_of_every_expectation() -> None:
    """N = 20000 codes of 16 fair bits; with the seed fixed this either fails always or never (chance below 1e-4)."""
    documents, bits = 20_000, 16
    figures = health(coin_flips(documents, bits))
    cells = 2**bits
    assert abs(figures["bit_balance_mean"] - 0.5) < 5 * 0.5 / math.sqrt(documents * bits)
    assert figures["bit_balance_min"] > 0.5 - 5 * 0.5 / math.sqrt(documents)
    assert figures["bit_balance_max"] < 0.5 + 5 * 0.5 / math.sqrt(documents)
    assert figures["dead_bits"] == 0
    # |phi| of independent bits is half-normal with scale 1 / sqrt(N); 120 pairs.
    expected = math.sqrt(2 / math.pi / documents)
    assert abs(figures["correlation_mean"] - expected) < 5 * expected * 0.76 / math.sqrt(120)
    assert figures["correlation_max"] < 5 / math.sqrt(documents)
    distinct = cells * (1 - (1 - 1 / cells) ** documents)
    assert abs(figures["distinct_codes"] - distinct) < 5 * math.sqrt(distinct * (1 - distinct / cells))
    pairs = documents * (documents - 1) / 2
    assert abs(figures["collision_rate"] - 1 / cells) < 5 * math.sqrt(1 / cells / pairs)
    same = 1 / documents + (1 - 1 / documents) / cells
    assert figures["effective_bits"] == pytest.approx(-math.log2(same), abs=0.02)


def test_a_duplicated_bit_has_correlation_one_and_so_has_its_opposite() -> None:
    for copy in (lambda bit: bit, torch.logical_not):
        bits = coin_flips(500, 8)
        bits[:, 5] = copy(bits[:, 2])
        assert health(bits)["correlation_max"] == pytest.approx(1.0)


def test_constant_bits_are_dead_and_left_out_of_the_correlations() -> None:
    bits = coin_flips(500, 8)
    bits[:, 0], bits[:, 7] = True, False
    figures = health(bits)
    assert figures["dead_bits"] == 2
    assert (figures["bit_balance_min"], figures["bit_balance_max"]) == (0.0, 1.0)
    phi = np.abs(np.corrcoef(bits[:, 1:7].numpy().T))[np.triu_indices(6, 1)]
    assert figures["correlation_mean"] == pytest.approx(phi.mean())
    assert figures["correlation_max"] == pytest.approx(phi.max())


def test_equal_codes_carry_nothing() -> None:
    figures = health(torch.tensor([[True, False] * 4]).repeat(50, 1))
    assert figures["distinct_codes"] == 1
    assert figures["collision_rate"] == 1.0
    assert figures["effective_bits"] == 0.0
    assert figures["largest_bucket"] == 1.0
    assert figures["dead_bits"] == 8
    assert figures["correlation_max"] is None


def test_codes_that_each_occur_once_carry_log2_of_their_number() -> None:
    codes = PackedCodes(torch.arange(256, dtype=torch.uint8).unsqueeze(1))
    figures = health(codes.unpack())
    assert figures["effective_bits"] == pytest.approx(8.0)
    assert (figures["distinct_codes"], figures["collision_rate"]) == (256, 0.0)
    assert figures["correlation_max"] == pytest.approx(0.0, abs=1e-12)


def test_component_use_counts_the_used_and_weighs_the_unequal() -> None:
    counted = CodeHealth(8, components=4)
    components = torch.tensor([0] * 50 + [3] * 50)
    counted.update(PackedCodes.pack(coin_flips(100, 8)), components, torch.linspace(0.5, 1.0, 100))
    figures = counted.as_dict()
    assert figures["components_used"] == 2
    assert figures["component_share_used"] == 0.5
    assert figures["effective_components"] == pytest.approx(2.0)
    assert figures["mean_confidence"] == pytest.approx(0.75)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31), width=st.sampled_from([1, 2, 8, 9, 20]), cuts=st.lists(st.integers(0, 200), max_size=4)
)
def test_shards_that_are_merged_give_exactly_the_figures_of_the_whole(seed: int, width: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(0, 256, (200, width), dtype=np.uint8) & np.uint8(3))
    components = torch.from_numpy(random.integers(0, 5, 200))
    whole, merged = CodeHealth(8 * width), CodeHealth(8 * width)
    whole.update(PackedCodes(codes), components)
    edges = [0, *sorted(cuts), 200]
    for start, stop in pairwise(edges):
        shard = CodeHealth(8 * width)
        shard.update(PackedCodes(codes[start:stop]), components[start:stop])
        merged.merge(shard)
    assert merged.as_dict() == whole.as_dict()
    distinct, counts = np.unique(codes.numpy(), axis=0, return_counts=True)
    assert whole.as_dict()["distinct_codes"] == len(distinct)
    assert whole.as_dict()["largest_bucket"] == counts.max() / 200
    assert whole.as_dict()["effective_bits"] == pytest.approx(-math.log2(((counts / 200) ** 2).sum()), abs=1e-9)


def test_nothing_counted_defines_nothing() -> None:
    figures = CodeHealth(16).as_dict()
    assert figures["documents"] == 0
    assert all(figures[name] is None for name in ("bit_means", "distinct_codes", "correlation_mean", "mean_confidence"))


def test_what_does_not_fit_is_refused_with_its_value() -> None:
    counted = CodeHealth(16, components=3)
    codes = PackedCodes(torch.zeros(2, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="counts 16-bit codes, got 8 bits"):
        counted.update(codes, torch.zeros(2))
    with pytest.raises(ValueError, match="component 3 is not one of the model's 3"):
        counted.update(PackedCodes(torch.zeros(2, 2, dtype=torch.uint8)), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="over 16 bits cannot take in one over 8 bits"):
        counted.merge(CodeHealth(8))
