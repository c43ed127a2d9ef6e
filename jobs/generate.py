"""What `latentbits generate` is asked for, and the answer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.generator import Generator
from vae_core.errors import Misuse
from vae_core.generation import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options that a person gave; None where they gave none."""

    count: int | None = None
    reconstruct: tuple[str, ...] = ()
    interpolate: tuple[str, str] | None = None
    steps: int | None = None
    component: int | None = None
    of: str | None = None
    opening: str | None = None
    topics: bool = False
    bits: bool = False
    words: int = 10
    sampled: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    @property
    def task(self) -> str:
        """The one thing asked for: samples, reconstructions, a path or topics. Raises Misuse where it is not one."""
        asked = {
            "--reconstruct": bool(self.reconstruct),
            "--interpolate": self.interpolate is not None,
            "--bits" if self.bits else "--topics": self.topics or self.bits,
        }
        given = [option for option, is_asked in asked.items() if is_asked]
        if len(given) > 1:
            raise Misuse(f"{' and '.join(given)} are two questions; ask one at a time")
        return given[0] if given else "samples"

    @property
    def sampling(self) -> Sampling:
        """Samples are drawn; what is written of a code is the most probable, unless options say otherwise."""
        drawn = self.temperature is not None or self.top_p is not None
        if self.sampled is False and drawn:
            raise Misuse("--greedy takes the most probable token: leave out --temperature and --top-p, or --greedy")
        if self.sampled is False or (self.sampled is None and not drawn and self.task != "samples"):
            return Sampling(temperature=0.0)
        return Sampling(temperature=1.0 if self.temperature is None else self.temperature, top_p=self.top_p)


TASKS = {
    "count": ("samples",),
    "component": ("samples",),
    "opening": ("samples",),
    "steps": ("--interpolate",),
    "of": ("samples", "--reconstruct", "--interpolate"),
    "sampled": ("samples", "--reconstruct", "--interpolate"),
    "temperature": ("samples", "--reconstruct", "--interpolate"),
    "top_p": ("samples", "--reconstruct", "--interpolate"),
}
"""Which questions an option belongs to."""
NAMES = {"of": "--class", "sampled": "--sampled or --greedy", "top_p": "--top-p"}


def answer(model: Path, request: Request, encoder_folder: Path | None = None) -> dict[str, Any]:
    """The texts, or the topics, and how they were made.

    `writes_text` is false of a bag-of-words decoder, whose texts are its top words. Raises Misuse where the model
    cannot do what is asked.
    """
    _require_options_that_count(request)
    how = request.sampling
    generator = Generator.load(model, request.words, encoder_folder)
    drawn = (request.sampled, request.temperature, request.top_p)
    if not generator.writes_text and any(option is not None for option in drawn):
        raise Misuse("a bag_of_words decoder draws no tokens; leave out --sampled, --greedy, --temperature and --top-p")
    torch.manual_seed(request.seed)
    return {"model": str(model), "writes_text": generator.writes_text} | _made(generator, request, how)


def _made(generator: Generator, request: Request, how: Sampling) -> dict[str, Any]:
    made = how.model_dump() if generator.writes_text else None
    match request.task:
        case "--topics":
            return {"topics": [asdict(topic) for topic in generator.topics()]}
        case "--bits":
            return {"bits": [asdict(poles) for poles in generator.poles()]}
        case "--reconstruct":
            texts = generator.reconstruct(list(request.reconstruct), how, of=request.of)
            pairs = zip(request.reconstruct, texts, strict=True)
            return {"sampling": made, "reconstructions": [{"of": given, "text": text} for given, text in pairs]}
        case "--interpolate":
            first, second = request.interpolate or ("", "")
            steps = 5 if request.steps is None else request.steps
            return {"sampling": made, "path": generator.interpolate(first, second, steps, how, of=request.of)}
        case _:
            count, told = 5 if request.count is None else request.count, (request.component, request.of)
            samples = generator.sample(count, how, component=told[0], of=told[1], opening=request.opening)
            return {"sampling": made, "samples": samples}


def _require_options_that_count(request: Request) -> None:
    for field, tasks in TASKS.items():
        if getattr(request, field) is not None and request.task not in tasks:
            name = NAMES.get(field, f"--{field}")
            goes = " or ".join(task if task.startswith("--") else "samples from the prior" for task in tasks)
            raise Misuse(f"{name} goes with {goes}, not with {request.task}; leave it out")
