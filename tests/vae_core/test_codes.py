"""Packed codes against NumPy and FAISS, their scores against torch.distributions and the list of all codes."""

import faiss
import numpy as np
import pytest
import torch
from documents import all_codes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.distributions import Bernoulli, Independent

from vae_core.codes import MAX_LOG_ODDS, PackedCodes, hamming, log_odds_scores

EVERY_CODE = all_codes(8).bool()


def bits(codes: int, width: int, seed: int) -> torch.Tensor:
    return torch.rand(codes, width, generator=torch.Generator().manual_seed(seed)) < 0.5


def log_odds(queries: int, width: int, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(queries, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@given(
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
        lambda shape: arrays(np.bool_, (shape[0], 8 * shape[1]))
    )
)
def test_packing_is_numpys_in_little_bit_order_and_unpacking_undoes_it(array: np.ndarray) -> None:
    packed = PackedCodes.pack(torch.from_numpy(array))
    np.testing.assert_array_equal(packed.bytes_NC.numpy(), np.packbits(array, axis=1, bitorder="little"))
    np.testing.assert_array_equal(packed.unpack().numpy(), array)
    assert (len(packed), packed.bits) == array.shape


@given(st.data())
def test_hamming_counts_the_bits_that_differ(data: st.DataObject) -> None:
    width = 8 * data.draw(st.integers(1, 4))
    queries = data.draw(arrays(np.bool_, (data.draw(st.integers(0, 4)), width)))
    codes = data.draw(arrays(np.bool_, (data.draw(st.integers(0, 4)), width)))
    distances = hamming(PackedCodes.pack(torch.from_numpy(queries)), PackedCodes.pack(torch.from_numpy(codes)))
    np.testing.assert_array_equal(distances.numpy(), (queries[:, None] != codes[None]).sum(axis=-1))


@pytest.mark.parametrize("width", [8, 64, 256])
def test_hamming_is_the_distance_that_faiss_finds(width: int) -> None:
    queries, codes = PackedCodes.pack(bits(7, width, seed=0)), PackedCodes.pack(bits(50, width, seed=1))
    index = faiss.IndexBinaryFlat(width)
    index.add(codes.bytes_NC.numpy())
    found_distances, found_rows = index.search(queries.bytes_NC.numpy(), 50)
    distances = hamming(queries, codes).numpy()
    np.testing.assert_array_equal(np.take_along_axis(distances, found_rows, axis=1), found_distances)


def test_a_slice_of_codes_is_the_codes_of_the_slice() -> None:
    drawn = bits(9, 16, seed=2)
    assert torch.equal(PackedCodes.pack(drawn)[2:5].unpack(), drawn[2:5])


def test_score_is_the_log_probability_of_every_code_under_independent_bernoullis() -> None:
    queries = log_odds(5, 8).clamp(-9, 9)
    scores = log_odds_scores(queries, PackedCodes.pack(EVERY_CODE))
    expected = Independent(Bernoulli(logits=queries.unsqueeze(1)), 1).log_prob(EVERY_CODE.double())
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_best_of_all_codes_is_the_querys_own_mode() -> None:
    queries = log_odds(20, 8, size=6.0)
    best = log_odds_scores(queries, PackedCodes.pack(EVERY_CODE)).argmax(dim=1)
    assert torch.equal(EVERY_CODE[best], queries > 0)


@pytest.mark.parametrize("confidence", [0.1, 3.0, 30.0])
def test_equal_confidence_ranks_as_hamming_does(confidence: float) -> None:
    """With |a_i| = A below the clamp the score is -A h plus a constant, so it orders by h with the same ties."""
    query_bits, codes = bits(4, 32, seed=3), PackedCodes.pack(bits(200, 32, seed=4))
    signs = torch.where(query_bits, 1.0, -1.0).double()
    scores = log_odds_scores(confidence * signs, codes)
    distances = hamming(PackedCodes.pack(query_bits), codes)
    per_bit = min(confidence, MAX_LOG_ODDS)
    relative = (scores[:, :1] - scores) / per_bit
    torch.testing.assert_close(relative, (distances - distances[:, :1]).double(), atol=1e-9, rtol=0)


def test_a_saturated_bit_weighs_no_more_than_the_limit() -> None:
    """With one bit at 1000 and two at 6 against it, the two win: 2 * 6 > 10."""
    query = torch.tensor([[1000.0, 6, 6, 0, 0, 0, 0, 0]], dtype=torch.float64)
    one, two = torch.zeros(2, 8, dtype=torch.bool)
    one[0], two[1:3] = True, True
    one_score, two_score = log_odds_scores(query, PackedCodes.pack(torch.stack([one, two])))[0]
    assert float(two_score - one_score) == pytest.approx(2 * 6 - 10)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(3, 12, dtype=torch.bool), "multiple of 8, got 12"),
        (torch.zeros(3, 0, dtype=torch.bool), "multiple of 8, got 0"),
        (torch.zeros(3, 8), r"\(3, 8\) torch.float32"),
        (torch.zeros(8, dtype=torch.bool), r"\(8,\) torch.bool"),
    ],
)
def test_packing_anything_but_whole_bytes_of_bits_says_what_it_got(wrong: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PackedCodes.pack(wrong)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 8, dtype=torch.bool), torch.zeros(8, dtype=torch.uint8)])
def test_packed_codes_hold_only_rows_of_bytes(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        PackedCodes(wrong)


def test_ranking_codes_of_another_width_names_both_widths() -> None:
    codes = PackedCodes.pack(bits(3, 16, seed=5))
    with pytest.raises(ValueError, match="8 bits and the codes 16"):
        hamming(PackedCodes.pack(bits(3, 8, seed=6)), codes)
    with pytest.raises(ValueError, match="8 bits and the codes 16"):
        log_odds_scores(torch.zeros(1, 8), codes)
