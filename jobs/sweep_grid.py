"""What a sweep is asked for, and its trials: every combination of the values of `--vary a.b=1,2`, each with a name."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from vae_core.errors import Misuse

LONGEST_NAME = 100
BRACKETS = {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}


class Trial(NamedTuple):
    """One combination: the name of its folder, and each varied setting with its value as it was written."""

    name: str
    values: dict[str, str]

    @property
    def settings(self) -> list[str]:
        """The combination as `--set` takes it."""
        return [f"{key}={value}" for key, value in self.values.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The config with `settings` on top, what is varied of it, and by which number of the reports trials are told."""

    config: str
    vary: tuple[str, ...]
    out: Path
    settings: tuple[str, ...] = ()
    objective: str | None = None
    trials: int | None = None
    seed: int = 0
    parallel: int = 1
    overwrite: bool = False

    def chosen(self) -> list[Trial]:
        """The trials: the whole grid, or a random part of it."""
        whole = grid(self.vary)
        return whole if self.trials is None else sample(whole, self.trials, self.seed)


def grid(vary: Sequence[str]) -> list[Trial]:
    """All combinations, the last setting's values fastest. Raises Misuse for what is no `a.b=1,2`, or given twice."""
    varied: dict[str, list[str]] = {}
    for text in vary:
        key, values = _parsed(text)
        if key in varied:
            raise Misuse(f"--vary {key} is given twice; write all its values as --vary {key}={','.join(values)},...")
        varied[key] = values
    if not varied:
        raise Misuse("nothing is varied; give --vary, for example --vary model.latent.bits=16,32")
    combinations = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    shown = _shown(list(varied))
    names = _distinct([_name({shown[key]: value for key, value in one.items()}) for one in combinations])
    return [Trial(name, values) for name, values in zip(names, combinations, strict=True)]


def sample(trials: Sequence[Trial], count: int, seed: int) -> list[Trial]:
    """A random `count` of the trials, in their order. Raises Misuse where there are not so many."""
    if count > len(trials):
        raise Misuse(f"--trials is {count}, and there are {len(trials)} combinations; leave it out to run them all")
    chosen = random.Random(seed).sample(range(len(trials)), count)
    return [trials[place] for place in sorted(chosen)]


def _parsed(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    values = _split(rest)
    if not equals or not key or not all(values):
        raise Misuse(f"--vary {text}: write it as --vary a.b=value,value, for example --vary model.latent.bits=16,32")
    if key == "out":
        raise Misuse("--vary out: the folders of trials are made in --out; leave it out")
    if twice := [value for value in values if values.count(value) > 1]:
        raise Misuse(f"--vary {text}: {twice[0]} is there twice")
    return key, values


def _split(text: str) -> list[str]:
    """The pieces between commas that stand in no brackets and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            pieces.append("")
            continue
        pieces[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += 0 if quote else BRACKETS.get(letter, 0)
    return [piece.strip() for piece in pieces]


def _shown(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, or all of it where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def _name(values: dict[str, str]) -> str:
    """A folder's name: letters, digits and what needs no quotes in a shell."""
    plain = {key: re.sub(r"[^\w.+-]+", "-", value).strip("-") for key, value in values.items()}
    return ",".join(f"{key}={value}" for key, value in plain.items())


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one is too long or two are alike."""
    return [
        name if names.count(name) == 1 and len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]},{number}"
        for number, name in enumerate(names, start=1)
    ]
