"""The same model on a GPU: skipped where there is none."""

import pytest
import torch
from documents import batch_of, random_documents

from vae_core.decoders import BagOfWordsDecoderConfig, TransformerDecoderConfig
from vae_core.encoders import BagOfWordsEncoderConfig, TransformerEncoderConfig
from vae_core.latents import BernoulliMixtureConfig
from vae_core.model import VAE, VAEConfig
from vae_core.objectives import Objective, loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
ENCODERS = [
    TransformerEncoderConfig(width=32, hidden=64, heads=2),
    TransformerEncoderConfig(width=32, hidden=64, heads=2, reads="tokens"),
    BagOfWordsEncoderConfig(width=64),
]
DECODERS = [BagOfWordsDecoderConfig(), TransformerDecoderConfig(width=32, heads=2, layers=1)]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda config: config.kind)
@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda config: f"{config.kind}-{getattr(config, 'reads', 'terms')}")
def test_a_model_has_the_same_terms_and_codes_on_gpu_and_processor(encoder, decoder):
    torch.manual_seed(0)
    config = VAEConfig(encoder=encoder, decoder=decoder, latent=BernoulliMixtureConfig(bits=16), terms=40, tokens=30)
    model = VAE(config).eval()
    batch = batch_of(random_documents(20))
    here, codes = model(batch), model.encode(batch)
    there, gpu_codes = model.cuda()(batch.to(torch.device("cuda"))), model.encode(batch.to(torch.device("cuda")))
    torch.testing.assert_close(there.kl_groups.cpu(), here.kl_groups, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there.log_px.cpu(), here.log_px, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(gpu_codes.log_odds.cpu(), codes.log_odds, rtol=1e-3, atol=1e-3)


def test_a_training_step_on_a_gpu_changes_every_parameter_that_has_a_gradient():
    torch.manual_seed(0)
    model = VAE(VAEConfig(encoder=ENCODERS[0], latent=BernoulliMixtureConfig(bits=16), terms=40, tokens=30)).cuda()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    loss(model.train()(batch_of(random_documents(20)).to(torch.device("cuda"))), Objective(), 1.0).total.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved >= {
        "encoder.embedding.weight",
        "latent.log_odds.weight",
        "latent.prior_log_odds",
        "decoder.words.bias",
    }
