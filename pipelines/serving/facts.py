"""The index, its model and its codes in figures: what /facts answers."""

from typing import Any

import numpy as np
import torch

from pipelines.search import Index
from pipelines.serving.answers import Searcher
from vae_core.codes import PackedCodes
from vae_core.diagnostics.code_health import CodeHealth
from vae_core.errors import Misuse
from vae_core.generation import mixture
from vae_core.topics import bit_words, component_words

WORDS, BIT_WORDS = 8, 4
"""Of each component, and of each bit, those that it raises most."""
MEASURED = 1 << 20
"""Codes that the figures are taken over at most, evenly spaced: a second's work, whatever the index holds."""
HEALTH = (
    "documents",
    "dead_bits",
    "active_bits",
    "distinct_codes",
    "effective_bits",
    "correlation_mean",
    "collision_rate",
    "components_used",
)


def facts_of(searcher: Searcher) -> dict[str, Any]:
    """Everything that stays the same for a version of the index, apart from its codes' health."""
    index, model = searcher.index, searcher.encoder.model
    size = sum(part.bytes for segment in index.opened.version.segments for part in segment.files())
    return {
        "documents": len(index),
        "bits": index.bits,
        "bytes": size,
        "version": index.version,
        "segments": len(index.segments),
        "model": {
            "fingerprint": searcher.encoder.fingerprint,
            "encoder": model.config.encoder.kind,
            "latent": model.config.latent.kind,
            "decoder": model.config.decoder.kind,
            "components": model.latent.components,
            "vocabulary": len(searcher.encoder.tokenizer.vocabulary),
        },
        "filters": filters_of(index),
        "topics": topics_of(searcher),
        "bit_words": bit_words_of(searcher),
    }


def filters_of(index: Index) -> list[dict[str, Any]]:
    """What a filter may name: its type, and the value in the first document."""
    first = index.documents(np.zeros(min(1, index.rows), np.int64))
    values = {**first[0], **first[0]["metadata"]} if first else {}
    return [{"name": name, "type": kind, "example": values.get(name)} for name, kind in index.columns().items()]


def topics_of(searcher: Searcher) -> list[dict[str, Any]]:
    """Share and top words of each component; empty where the model has none, or no words for them."""
    model = searcher.encoder.model
    try:
        found = component_words(model, WORDS).ids.tolist()
        shares = mixture(model).prior_components.softmax(dim=0).tolist()
    except Misuse:
        return []
    terms = list(searcher.encoder.tokenizer.vocabulary.ids)
    return [
        {"component": number, "share": round(share, 6), "words": [terms[word] for word in row]}
        for number, (share, row) in enumerate(zip(shares, found, strict=True))
    ]


def bit_words_of(searcher: Searcher) -> list[dict[str, list[str]]]:
    """For each bit the words that a one raises and lowers; empty where the decoder has no bag of words."""
    try:
        raised, lowered = (found.ids.tolist() for found in bit_words(searcher.encoder.model, BIT_WORDS))
    except Misuse:
        return []
    terms = list(searcher.encoder.tokenizer.vocabulary.ids)
    return [
        {"raised": [terms[word] for word in up], "lowered": [terms[word] for word in down]}
        for up, down in zip(raised, lowered, strict=True)
    ]


def health_of(index: Index) -> dict[str, Any]:
    """Code health of the index's codes, or of an even sample of them."""
    health = CodeHealth(index.bits)
    step = -(-max(1, index.rows) // MEASURED)
    components, live = index.column("component"), index.live()
    for codes, start in zip(index.codes(), index.starts, strict=False):
        here = live[start : start + len(codes) : step]
        chosen = components.slice(start, len(codes)).to_numpy()[::step][here].astype(np.int64)
        if not len(chosen):
            continue
        health.update(PackedCodes(torch.from_numpy(codes[::step][here])), torch.from_numpy(chosen))
    figures = health.as_dict()
    return {name: figures[name] for name in HEALTH}
