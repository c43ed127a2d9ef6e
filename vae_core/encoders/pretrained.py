"""A language model from a local Hugging Face folder as the encoder (Optimus: Li et al. 2020).

Only safetensors are read and no code of the folder is run. Shapes: B documents, T places, D width.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from vae_core.batch import Batch, Ragged
from vae_core.config import Config
from vae_core.encoders.states import States
from vae_core.errors import Damaged, Misuse

NOT_OURS = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""What a config.json says of its own history; weights are trained and stored in single precision here."""


class PretrainedEncoderConfig(Config):
    """Settings of the pretrained encoder; the shards must be made with the folder's own tokenizer.json."""

    kind: Literal["pretrained"] = "pretrained"
    folder: str = Field(default="", description="of a Hugging Face model on this machine, with model.safetensors")
    pooling: Literal["mean", "first"] = Field(default="mean", description="of a document's vectors: all, or the first")
    freeze: bool = Field(default=False, description="leave the model as it is, and train what reads it")
    positions: int = Field(
        default=512, ge=3, description="tokens of a document that are read, if the model has as many"
    )
    architecture: dict[str, Any] | None = Field(default=None, description="filled in by pretrain from the folder")
    opening: int | None = Field(default=None, description="token put before a document; filled in by pretrain")
    closing: int | None = Field(default=None, description="token put after a document; filled in by pretrain")


def with_architecture(config: PretrainedEncoderConfig) -> PretrainedEncoderConfig:
    """The settings with what the folder says, so that a trained model opens without it.

    Raises Misuse where the folder is no model that can be read without running code, Damaged where it is broken.
    """
    folder = Path(config.folder)
    architecture = _architecture(folder)
    opening, closing = (_special(folder, architecture, names) for names in (("cls", "bos"), ("sep", "eos")))
    kept = {name: value for name, value in architecture.items() if name not in NOT_OURS}
    return config.model_copy(update={"architecture": kept, "opening": opening, "closing": closing})


class PretrainedEncoder(nn.Module):
    """The model's last layer, pooled over the document and the special tokens around it; or its vector of each token.

    A document without tokens and without special ones has the vector zero.
    """

    reads_tokens = True

    def __init__(self, config: PretrainedEncoderConfig, vocabulary: int, *, states: bool = False) -> None:
        super().__init__()
        if config.architecture is None:
            raise Misuse(f"the architecture of {config.folder} is not known yet: build from with_architecture(config)")
        self.config = config
        self.states = states
        model = _built(config.architecture)
        _require_vocabulary(config, vocabulary, int(model.config.vocab_size))
        self.model: nn.Module = model
        self.width = int(model.config.hidden_size)
        self.positions = min(config.positions, _positions(model))
        self.padding = int(model.config.pad_token_id or 0)
        if config.freeze:
            self.model.requires_grad_(False).eval()

    def forward(self, batch: Batch, tfidf_N: Tensor, progress: float = 1.0) -> Tensor | States:
        """Vectors (B, D) of the documents, or States (B, T, D) of their tokens, special ones left out."""
        del tfidf_N, progress
        tokens = self._cut(batch.tokens)
        ids_BT, mask_BT = self._padded(tokens)
        # Attention to nothing at all is no number; what an empty document sees of its padding is masked out below.
        seen_BT = mask_BT | (tokens.lengths == 0).unsqueeze(1) & (
            torch.arange(ids_BT.shape[1], device=ids_BT.device) == 0
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            vectors_BTD = self.model(input_ids=ids_BT, attention_mask=seen_BT.long()).last_hidden_state
        if self.states:
            return self._states(vectors_BTD, tokens)
        weights_BT1 = mask_BT.unsqueeze(2).to(vectors_BTD.dtype)
        if self.config.pooling == "first":
            return vectors_BTD[:, 0] * weights_BT1[:, 0]
        return (vectors_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)

    def start_from_folder(self) -> None:
        """Load the folder's weights. Raises Misuse where it is gone, Damaged where weights are missing."""
        folder = Path(self.config.folder)
        _architecture(folder)
        transformers = _transformers()
        transformers.utils.logging.disable_progress_bar()
        try:
            loaded, found = transformers.AutoModel.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise Damaged(f"the weights in {folder} cannot be loaded: {error}") from error
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise Damaged(f"the weights in {folder} lack {', '.join(missing[:5])}; get the model anew")
        self.model.load_state_dict(_without_pooler(loaded).state_dict())

    def train(self, mode: bool = True) -> Self:
        """As ever; but a frozen model keeps its dropout off."""
        super().train(mode)
        if self.config.freeze:
            self.model.eval()
        return self

    def _cut(self, tokens: Ragged) -> Ragged:
        special = sum(token is not None for token in (self.config.opening, self.config.closing))
        return tokens.keep(tokens.positions < self.positions - special)

    def _padded(self, tokens: Ragged) -> tuple[Tensor, Tensor]:
        """Ids with the special tokens around each document, and where they are, each (B, T)."""
        opening, closing, lengths = self.config.opening, self.config.closing, tokens.lengths
        before, after = int(opening is not None), int(closing is not None)
        longest = max(1, int(lengths.max())) + before + after
        places_T = torch.arange(longest, device=lengths.device)
        ids_BT = lengths.new_full((len(lengths), longest), self.padding)
        ids_BT[tokens.rows, tokens.positions + before] = tokens.values
        if opening is not None:
            ids_BT[:, 0] = opening
        if closing is not None:
            ids_BT[places_T == (lengths + before).unsqueeze(1)] = closing
        return ids_BT, places_T < (lengths + before + after).unsqueeze(1)

    def _states(self, vectors_BTD: Tensor, tokens: Ragged) -> States:
        before = int(self.config.opening is not None)
        longest = max(1, int(tokens.lengths.max()))
        mask_BT = torch.arange(longest, device=tokens.values.device) < tokens.lengths.unsqueeze(1)
        return States(vectors_BTD[:, before : before + longest] * mask_BT.unsqueeze(2), mask_BT)


def _require_vocabulary(config: PretrainedEncoderConfig, tokens: int, known: int) -> None:
    if tokens > known:
        raise Misuse(
            f"the shards have {tokens:,} different tokens, and the model in {config.folder} knows {known:,}: they are "
            f"not its own; tokenize with tokenize.tokenizer={config.folder}/tokenizer.json"
        )


def _built(architecture: dict[str, Any]) -> Any:
    """A model of random weights."""
    transformers = _transformers()
    settings = dict(architecture)
    try:
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = _without_pooler(transformers.AutoModel.from_config(config, trust_remote_code=False))
    except (KeyError, ValueError) as error:
        raise Misuse(f"transformers builds no model of this config.json: {error}") from error
    if config.is_encoder_decoder or not hasattr(config, "hidden_size"):
        raise Misuse(f"a {config.model_type} model has no one stack of layers; take an encoder such as BERT")
    return model


def _without_pooler(model: Any) -> Any:
    """The model without a last layer that only its own training used: no loss here reaches it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _positions(model: Any) -> int:
    """How many tokens of a document the model reads."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    # RoBERTa counts positions from the one after its padding.
    used = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 20) - used


def _architecture(folder: Path) -> dict[str, Any]:
    """The folder's config.json, if it is a model that can be read without running code of its own."""
    if not folder.name or not folder.is_dir():
        raise Misuse(f"model.encoder.folder: there is no folder {str(folder)!r}; give one with a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise Misuse(f"{folder} has no config.json: it is not a Hugging Face model")
    architecture = _json(folder / "config.json")
    if "auto_map" in architecture:
        raise Misuse(f"{folder} brings code of its own (auto_map in config.json), which is not run; take another model")
    if not any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        pickles = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{end}"))
        has = f"only {pickles[0]}, a pickle, which can run code" if pickles else "no weights"
        raise Misuse(f"{folder} has {has}; get the model with its model.safetensors")
    return architecture


def _special(folder: Path, architecture: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """The id of the first of these special tokens that the folder's tokenizer, or else its model, has."""
    told = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    ids = _added_tokens(folder / "tokenizer.json")
    for name in names:
        token = told.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            return ids[text]
    numbers = (architecture.get(f"{name}_token_id") for name in names)
    return next((number for number in numbers if isinstance(number, int)), None)


def _added_tokens(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    return {token["content"]: token["id"] for token in _json(path).get("added_tokens") or ()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise Damaged(f"{path} is not JSON: {error}; get the model anew") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path} holds no JSON object; get the model anew")
    return content


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Misuse(
            "a pretrained encoder is read by the library transformers; pip install 'latentbits[pretrained]'"
        ) from error
    return transformers
