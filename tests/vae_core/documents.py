"""Small random documents as plain Python data, which a test can take apart, and the batches that they make."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import TypeVar

import torch
from torch import Tensor, nn

from vae_core.batch import Batch, Ragged


@dataclass(frozen=True)
class Document:
    """How often each term occurs, in the order in which the batch lists them, and the tokens in order."""

    counts: dict[int, int] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()


EMPTY = Document()


def random_documents(
    number: int, *, terms: int = 40, tokens: int = 30, longest: int = 20, seed: int = 0
) -> list[Document]:
    """Documents of 1 to `longest` distinct terms and as many tokens or fewer."""
    dice = random.Random(seed)
    return [_random_document(dice, terms, tokens, longest) for _ in range(number)]


def _random_document(dice: random.Random, terms: int, tokens: int, longest: int) -> Document:
    ids = dice.sample(range(terms), dice.randint(1, min(longest, terms)))
    return Document(
        {term: dice.randint(1, 5) for term in ids},
        tuple(dice.randrange(tokens) for _ in range(dice.randint(1, longest))),
    )


def planted_documents(number: int, *, seed: int) -> tuple[list[Document], Tensor]:
    """Documents of 30 of 50 words, about nine in ten from the 12 words of one of 4 topics; and their topics."""
    dice, documents, topics = random.Random(seed), [], []
    for _ in range(number):
        topic = dice.randrange(4)
        words = [dice.randrange(50) if dice.random() < 0.1 else 12 * topic + dice.randrange(12) for _ in range(30)]
        documents.append(Document({word: words.count(word) for word in sorted(set(words))}))
        topics.append(topic)
    return documents, torch.tensor(topics)


def ragged(lists: Sequence[Sequence[int]]) -> Ragged:
    """The lists one after the other, with where each begins."""
    values = [value for one in lists for value in one]
    offsets = [0, *accumulate(len(one) for one in lists)]
    return Ragged(torch.tensor(values, dtype=torch.long), torch.tensor(offsets))


def batch_of(documents: Sequence[Document]) -> Batch:
    """The batch of these documents, in this order."""
    counts = [count for document in documents for count in document.counts.values()]
    return Batch(
        ragged([document.tokens for document in documents]),
        ragged([list(document.counts) for document in documents]),
        torch.tensor(counts, dtype=torch.long),
    )


def counts_matrix(documents: Sequence[Document], terms: int) -> Tensor:
    """How often each term occurs in each document, (documents, terms) float64."""
    matrix = torch.zeros(len(documents), terms, dtype=torch.float64)
    for row, document in enumerate(documents):
        for term, count in document.counts.items():
            matrix[row, term] = count
    return matrix


def all_codes(bits: int) -> Tensor:
    """Every code of `bits` bits, (2 ** bits, bits) float64."""
    return torch.tensor(list(product([0.0, 1.0], repeat=bits)), dtype=torch.float64)


Module = TypeVar("Module", bound=nn.Module)


def shaken(module: Module, seed: int = 0, size: float = 0.3) -> Module:
    """The module after a random step of its parameters, so that none that starts at zero hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module
