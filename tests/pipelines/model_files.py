"""A model artifact on disk without training: random weights beside the tokenizer and vocabulary of some shards."""

import shutil
from pathlib import Path

import torch

from pipelines.artifact import Artifact, Draft, Plan, begin, record_part
from pipelines.tokenizer import Tokenizer
from vae_core.model import VAE, Composition, VAEConfig

TINY = Composition.model_validate(
    {
        "encoder": {"kind": "transformer", "width": 16, "hidden": 32, "heads": 2},
        "latent": {"bits": 16, "components": 4},
    }
)


def write_model(
    folder: Path,
    shards: Path,
    composition: Composition = TINY,
    *,
    embeddings: Artifact | None = None,
    seed: int = 0,
) -> Artifact:
    """The artifact; every parameter is random, so that no part of the model is without effect."""
    inputs = () if embeddings is None else (embeddings.as_input("embeddings"), embeddings.input("encoder"))
    settings = {"model": composition.model_dump(mode="json"), "seed": seed}
    draft = begin(folder, Plan(kind="model", config=settings, inputs=inputs))
    if isinstance(draft, Artifact):
        return draft
    assert isinstance(draft, Draft)
    tokenizer = Tokenizer.load(shards)
    torch.manual_seed(seed)
    sizes = {"terms": len(tokenizer.vocabulary), "tokens": tokenizer.subwords}
    sizes["embeddings"] = embeddings.manifest.statistics["dimensions"] if embeddings else 0
    model = VAE(VAEConfig.model_validate(composition.model_dump() | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(draft.path)
    for name in ("tokenizer.json", "vocabulary.parquet"):
        shutil.copyfile(shards / name, draft.path / name)
    names = ("config.json", "model.safetensors", "tokenizer.json", "vocabulary.parquet")
    return draft.finish([record_part(draft.path, name, 0) for name in names], {})
