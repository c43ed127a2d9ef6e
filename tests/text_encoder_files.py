"""A sentence encoder's folder as one would download it, tiny and random: BERT with a WordPiece tokenizer."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PLACES, MOST = 32, 24
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def write_text_encoder(folder: Path, *, seed: int = 0) -> Path:
    """The folder; its tokenizer knows single letters, truncates and pads by itself, as MiniLM's does."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    known = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(seed)
    model = BertModel(BertConfig(vocab_size=len(known), max_position_embeddings=PLACES, **TINY))
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:  # larger than BERT's own start, so that texts differ by more than rounding
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    _tokenizer(known).save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **names}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MOST}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def _tokenizer(known: list[str]) -> tokenizers.Tokenizer:
    ids = {piece: row for row, piece in enumerate(known)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    around = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=around)
    tokenizer.enable_truncation(MOST // 2)
    tokenizer.enable_padding(length=MOST // 2)
    return tokenizer
