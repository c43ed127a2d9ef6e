"""Which part a parameter belongs to, and what a reset leaves alone."""

import pytest
import torch

from vae_core.latents import BernoulliMixtureConfig, GaussianConfig
from vae_core.model import VAE, VAEConfig
from vae_core.schedule import PARTS, Phase, part_of, reset


def model_of(seed: int, **parts: object) -> VAE:
    torch.manual_seed(seed)
    return VAE(VAEConfig.model_validate({"terms": 20, "tokens": 10, **parts}))


CONDITIONAL = {"condition": {"kind": "class", "classes": ["a", "b"]}, "latent": BernoulliMixtureConfig(bits=8)}
READS = {"reads": "tokens", "weights": "even"}
CONTROLLED = {**CONDITIONAL, "attributes": {}, "encoder": READS, "decoder": {"kind": "transformer"}}


def test_every_parameter_belongs_to_one_part_and_every_part_has_one() -> None:
    names = [name for name, _ in model_of(0, **CONTROLLED).named_parameters()]
    assert {part_of(name) for name in names} == set(PARTS)
    assert part_of("latent.prior_log_odds") == "prior"
    assert part_of("latent.log_odds.weight") == "latent"
    assert part_of("attributes.discriminator.output.bias") == "attributes"
    assert part_of("encoder.segments.blocks.0.narrow.bias") == "encoder"


def test_the_vamp_priors_pseudo_inputs_are_the_priors() -> None:
    names = dict(model_of(0, latent=GaussianConfig(dimensions=4, prior="vamp")).named_parameters())
    assert [name for name in names if part_of(name) == "prior"] == ["latent.prior_inputs"]


@pytest.mark.parametrize("parts", [("decoder",), ("prior", "decoder"), ("encoder", "latent", "condition")])
def test_a_reset_part_is_the_fresh_models_and_all_others_stay_bit_for_bit(parts: tuple) -> None:
    model, before, fresh = (model_of(seed, **CONDITIONAL) for seed in (1, 1, 2))
    reset(model, fresh, parts)
    expected = {**dict(before.named_parameters())}
    expected |= {name: value for name, value in fresh.named_parameters() if part_of(name) in parts}
    for name, value in model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_a_phase_trains_every_part_unless_told() -> None:
    assert Phase().trains == PARTS
