"""Settings of the tokenize stage."""

from pydantic import Field

from vae_core.config import Config


class TokenizeConfig(Config):
    """What is learned from a sample, what is kept of a document, and how many rows may be refused."""

    subwords: int = Field(default=16_000, ge=256)
    """Entries of the BPE, of which 256 are the bytes."""
    tokenizer: str | None = None
    """A `tokenizer.json` to use instead of learning one; `subwords` has no effect then."""
    terms: int = Field(default=30_000, ge=1)
    """Words of the vocabulary."""
    min_documents: int = Field(default=2, ge=1)
    """A word in fewer documents of the sample is left out."""
    max_share: float = Field(default=0.5, gt=0, le=1)
    """A word in a larger share of the sample is left out."""
    sample: int = Field(default=50_000, ge=1)
    """Documents that subwords and words are learned from, spread over the corpus."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens kept of a document; terms are counted over all of it."""
    rejected_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be rejected. Ten rows are always allowed, except by 0."""
