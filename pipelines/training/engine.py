"""The door to DeepSpeed: a model and its optimiser under the ZeRO stage that was asked for."""

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator

from vae_core.config import Config
from vae_core.encoders.segments import SegmentBlocks
from vae_core.errors import Misuse
from vae_core.many_bits import weight_of_a_bit
from vae_core.model import VAE
from vae_core.objectives import Objective
from vae_core.schedule import PARTS, PartName, Phase, part_of

WORD_WEIGHTS = "decoder.words.weight"


class PretrainConfig(Config):
    """Settings of training; those of the model itself are its composition."""

    epochs: float | None = Field(
        default=None,
        gt=0,
        description="times training goes through all documents; null: 1500 / sqrt(their number), 15 at 10,000, "
        "and more for a bernoulli_mixture of under 64 bits, 24 at 16 bits",
    )
    batch_size: int = Field(default=256, ge=1, description="documents of one step, over all workers")
    learning_rate: float = Field(
        default=3e-3,
        gt=0,
        description="at its height, after warm-up; then a cosine to 0; what many bits say of words takes less",
    )
    block_learning_rate: float = Field(default=1e-3, gt=0, description="of the Transformer blocks")
    objective: Objective = Objective()
    phases: tuple[Phase, ...] = Field(
        default=(), description="stretches of training with objectives of their own; none: one, with `objective`"
    )
    start_from: Path | None = Field(
        default=None, description="model folder to begin with, of the same architecture; terms are matched by the word"
    )
    held_out: float = Field(
        default=0.02, ge=0, lt=1, description="share of the documents, at most 1000, that tell when to stop; 0: none"
    )
    patience: int = Field(
        default=5,
        ge=1,
        description="looks without progress, of 20 at the held-out documents, after which training stops",
    )
    query_head: bool = Field(
        default=True, description="let queries rank by what their neighbours are likely to have, where there is a graph"
    )
    samples: int = Field(default=1, ge=1, description="of z drawn for each document in a step")
    workers: int = Field(default=1, ge=1, description="processes that train together; they share the cores")
    accumulation: int = Field(
        default=1, ge=1, description="micro-batches of a step, where one does not fit; decorrelation, MMD are of each"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="what workers share out: 1 optimiser state, 2 also gradients, 3 also parameters"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of training; bf16 needs zero_stage 1 to 3")
    gpus: bool = Field(default=False, description="one GPU for each worker")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of starting weights, noise and the order of documents")
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int | None = Field(default=None, ge=1, description="steps; null: a twentieth of all, at least 50")

    @model_validator(mode="after")
    def _bf16_needs_zero(self) -> "PretrainConfig":
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision bf16 needs zero_stage 1, 2 or 3, got 0; set pretrain.zero_stage to 1")
        return self

    @model_validator(mode="after")
    def _one_place_for_the_objective(self) -> "PretrainConfig":
        if self.phases and self.objective != Objective():
            raise ValueError("pretrain.objective has no effect beside pretrain.phases; give each phase its objective")
        return self

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases, at least one."""
        return self.phases or (Phase(objective=self.objective),)

    def require_shares(self, documents: int) -> None:
        """Raise Misuse where a step cannot be shared out among workers and micro-batches."""
        share = self.workers * self.accumulation
        if self.batch_size % share:
            raise Misuse(
                f"pretrain.batch_size {self.batch_size} cannot be divided among {self.workers} workers x "
                f"{self.accumulation} micro-batches; take a multiple of {share}"
            )
        if documents < share:
            raise Misuse(
                f"{documents} documents cannot be shared out among {self.workers} workers x {self.accumulation} "
                f"micro-batches; set pretrain.workers and pretrain.accumulation to 1"
            )


def build_engine(config: PretrainConfig, model: VAE, phase: Phase) -> Any:
    """The DeepSpeed engine of this worker for one phase, in training mode. Collective."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.gpus else "cpu")
    import deepspeed

    # Otherwise a C++ extension is compiled at the first start; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if config.zero_stage == 3:
        # Its blocks run as often as a worker's documents need; gathered one by one, workers would wait for each other.
        for blocks in deepspeed.utils.set_z3_leaf_modules(model, [SegmentBlocks], raise_if_not_found=False):
            # They are gathered for the backward pass by their input's gradient, which fixed word vectors need not have.
            blocks.register_forward_pre_hook(lambda _, given: (given[0].requires_grad_(), *given[1:]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and part_of(name) in phase.trains)
    optimizer = torch.optim.Adam(_parameter_groups(model, config), fused=True)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_engine_config(config), dist_init_required=False
    )
    if config.zero_stage == 0 and dist.get_world_size() == 1:
        engine.enable_backward_allreduce = False  # which copies all gradients, a fifth of a step, for nobody
    engine.train()
    return engine


def set_learning_rate(engine: Any, factor: float, parts: Collection[PartName] = PARTS) -> None:
    """Give the parameters of `parts` their learning rate times `factor`; the others stand still."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor if group["part"] in parts else 0.0


def whole_parameters(engine: Any) -> AbstractContextManager[Any]:
    """A context in which every worker has all parameters, which ZeRO 3 cuts up otherwise. Collective."""
    import deepspeed

    cut_up = engine.zero_optimization_stage() == 3
    return deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=cut_up)


def _engine_config(config: PretrainConfig) -> dict[str, Any]:
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // (dist.get_world_size() * config.accumulation),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 1000.0,
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _parameter_groups(model: VAE, config: PretrainConfig) -> list[dict[str, Any]]:
    """Groups of one part and one learning rate each: a phase may move some parts and not others."""
    groups: dict[tuple[PartName, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = _learning_rate(name, model, config)
        if parameter.requires_grad:
            groups.setdefault((part_of(name), rate), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "part": part}
        for (part, rate), parameters in groups.items()
    ]


def _learning_rate(name: str, model: VAE, config: PretrainConfig) -> float:
    """The rate of one parameter; of many bits, the weights by which they speak for words learn the more slowly.

    Adam moves every weight by as much, and a word's logit is a sum over bits (Yang et al. 2022, arXiv 2203.03466).
    """
    if ".blocks." in name:
        return config.block_learning_rate
    if name == WORD_WEIGHTS:
        return config.learning_rate * weight_of_a_bit(model.config.latent)
    return config.learning_rate
