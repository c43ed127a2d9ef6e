"""Why a document was found: the bits and the component that it shares with the query, in words. K bits, C = K/8."""

from functools import cached_property
from typing import Any

import numpy as np
import torch

from pipelines.encoder import Encoder
from vae_core.decoders import BagOfWordsDecoder
from vae_core.generation import MixtureLatent
from vae_core.topics import bit_words, component_words

BITS_SHOWN, WORDS_SHOWN = 5, 8


class Explainer:
    """A model whose bits and components can be said in words."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def explain(self, log_odds: np.ndarray, code: np.ndarray) -> dict[str, Any]:
        """What one query, by its log-odds (K,), and one packed code (C,) have in common.

        `agreeing` and `differing` are the bits of the largest |log-odds|, the ones that decide; `weight` is the share
        of all |log-odds| on bits that agree.
        """
        asked = log_odds > 0
        has = np.unpackbits(code, bitorder="little").astype(bool)
        order = np.argsort(-np.abs(log_odds), kind="stable")
        agreeing, differing = order[asked[order] == has[order]], order[asked[order] != has[order]]
        total = float(np.abs(log_odds).sum())
        return {
            "bits": len(log_odds),
            "agreeing_bits": len(agreeing),
            "weight": round(float(np.abs(log_odds[agreeing]).sum()) / total, 4) if total else 0.0,
            "agreeing": [self._bit(int(bit), has, log_odds) for bit in agreeing[:BITS_SHOWN]],
            "differing": [self._bit(int(bit), has, log_odds) for bit in differing[:BITS_SHOWN]],
        } | self._components(asked, has)

    def _bit(self, bit: int, has: np.ndarray, log_odds: np.ndarray) -> dict[str, Any]:
        words = self._poles[int(has[bit])][bit] if self._poles else []
        return {"bit": bit, "value": int(has[bit]), "log_odds": round(float(log_odds[bit]), 3), "words": words}

    def _components(self, asked: np.ndarray, has: np.ndarray) -> dict[str, Any]:
        codes = torch.from_numpy(np.stack([asked, has]))
        with torch.no_grad():
            query, hit = self.encoder.model.latent.components_of(codes).argmax(dim=-1).tolist()
        words = self._topics[hit] if self._topics else []
        return {"component": {"query": query, "hit": hit, "same": query == hit, "words": words}}

    @cached_property
    def _poles(self) -> tuple[list[list[str]], list[list[str]]] | None:
        """The words of each bit where it is zero, and where it is one; None where the decoder has no words."""
        if not isinstance(self.encoder.model.decoder, BagOfWordsDecoder):
            return None
        raised, lowered = bit_words(self.encoder.model, WORDS_SHOWN)
        return self._spelled(lowered.ids), self._spelled(raised.ids)

    @cached_property
    def _topics(self) -> list[list[str]] | None:
        model = self.encoder.model
        if not isinstance(model.decoder, BagOfWordsDecoder) or not isinstance(model.latent, MixtureLatent):
            return None
        return self._spelled(component_words(model, WORDS_SHOWN).ids)

    def _spelled(self, ids: torch.Tensor) -> list[list[str]]:
        return [[self._terms[term] for term in row] for row in ids.tolist()]

    @cached_property
    def _terms(self) -> list[str]:
        return list(self.encoder.tokenizer.vocabulary.ids)
