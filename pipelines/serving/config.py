"""What the search service allows: sizes, rates, times."""

from pydantic import Field

from vae_core.config import Config


class SpreadConfig(Config):
    """How the service is laid out on a cluster."""

    replicas: int = Field(default=1, ge=1, description="processes that take requests, encode and merge")
    spread: int = Field(default=1, ge=1, description="processes that the segments are shared out to")
    cores: float = Field(default=1, gt=0, description="cores that each of these processes holds")


class ServeConfig(Config):
    """Limits of the search service; none of them changes an answer."""

    max_k: int = Field(default=1000, ge=1, description="hits that one query may ask for")
    max_queries: int = Field(default=256, ge=1, description="queries, or texts to encode, that one request may hold")
    max_documents: int = Field(default=1000, ge=1, description="documents that one request may add or delete")
    max_body_bytes: int = Field(default=4 << 20, ge=1024, description="bytes of one request; more is refused unread")
    batch: int = Field(default=64, ge=1, description="queries of different clients that are answered together")
    waiting: int = Field(default=1024, ge=1, description="queries that may wait; with more, clients are told to retry")
    rate: float | None = Field(
        default=1000, gt=0, description="requests a second that one address may send; null: any number"
    )
    timeout_s: float = Field(default=30, gt=0, description="seconds after which a request is given up")
    drain_s: int = Field(default=30, ge=1, description="seconds that running requests have to end when told to stop")
    refresh_s: float = Field(default=1, ge=0, description="seconds after which a new version of the index is seen")
    log_text: bool = Field(default=False, description="whether logs hold the texts of queries")
    cluster: SpreadConfig = SpreadConfig()
