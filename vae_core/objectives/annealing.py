"""The weight of the KL over the course of training (Bowman et al. 2016; cyclical: Fu et al. 2019)."""

from pydantic import Field, model_validator

from vae_core.config import Config


class Annealing(Config):
    """beta(t): in each of `cycles` equal parts of training 0 for a while, then a linear rise, then `beta`."""

    beta: float | None = Field(
        default=None,
        ge=0,
        description="weight of the KL once it has risen; null: min(1, 128 / bits) for a bernoulli_mixture, else 1",
    )
    warmup: float = Field(default=0.5, ge=0, le=1, description="share of a cycle over which the weight rises")
    rest: float = Field(default=0.0, ge=0, le=1, description="share of a cycle before that, with weight 0")
    cycles: int = Field(default=1, ge=1, description="how often the weight starts again from 0")

    @model_validator(mode="after")
    def _fits_in_a_cycle(self) -> "Annealing":
        if self.rest + self.warmup > 1:
            raise ValueError(f"rest {self.rest} and warmup {self.warmup} are shares of one cycle: at most 1 together")
        return self

    def at(self, progress: float) -> float:
        """The weight when the share `progress` of training is done; from 1 on, `beta`."""
        beta = 1.0 if self.beta is None else self.beta
        if progress >= 1:
            return beta
        within = progress * self.cycles % 1.0
        if within < self.rest:
            return 0.0
        return beta * (min(1.0, (within - self.rest) / self.warmup) if self.warmup else 1.0)
