"""What a request to the search service may hold, and what an answer holds: the schema that /openapi.json shows."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipelines.search import Rank
from vae_core.config import Config

QUERY = {"text": "parse a date from a string", "k": 3}
Metadatum = str | bool | int | float | None
DOCUMENT = {"id": "note-1", "text": "How to parse a date from a string", "labels": ["notes"], "metadata": {}}


class Query(Config, json_schema_extra={"examples": [QUERY]}):
    """One query: a text, the id of a document to find others like it, or a raw code."""

    text: str | None = Field(default=None, description="what to look for, in words")
    id: str | None = Field(default=None, description="a document of the index: others like it")
    code: str | None = Field(default=None, description="a code as hexadecimal digits, bytes in their stored order")
    k: int = Field(default=10, ge=1, description="how many hits")
    rank: Rank = Field(default="log-odds", description="how hits are ordered")
    filter: str | None = Field(default=None, description="a condition on metadata that hits meet")
    explain: bool = Field(default=False, description="say why each was found; add codes and log-odds")

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Self:
        given = [name for name in ("text", "id", "code") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of text, id and code; this has {' and '.join(given) or 'none of them'}")
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty; say what to look for")
        return self

    @property
    def asked(self) -> str:
        """The text, id or code."""
        return self.text or self.id or self.code or ""


class Queries(Config, json_schema_extra={"examples": [{"queries": [QUERY, {"id": "note-1"}]}]}):
    """Several queries, answered together."""

    queries: list[Query] = Field(min_length=1)


def _number(body: Any) -> str:
    return "many" if isinstance(body, dict) and "queries" in body else "one"


SearchBody = Annotated[Annotated[Query, Tag("one")] | Annotated[Queries, Tag("many")], Discriminator(_number)]


class NewDocument(Config, json_schema_extra={"examples": [DOCUMENT]}):
    """A document to add; one whose id is there already takes its place."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    labels: list[str] = Field(default_factory=list)
    metadata: dict[str, Metadatum] = Field(default_factory=dict, description="fields that the index has")


class Additions(Config, json_schema_extra={"examples": [{"documents": [DOCUMENT]}]}):
    """Documents to add."""

    documents: list[NewDocument] = Field(min_length=1)
    upsert: bool = Field(default=True, description="replace documents with these ids; false: refuse such ids")


class Deletions(Config, json_schema_extra={"examples": [{"ids": ["note-1"]}]}):
    """Documents to delete."""

    ids: list[str] = Field(min_length=1)


class Texts(Config, json_schema_extra={"examples": [{"texts": ["parse a date from a string"]}]}):
    """Texts to encode."""

    texts: list[str] = Field(min_length=1)


class ShownDocument(Config):
    """A document as the index keeps it; `text` is its beginning."""

    id: str
    text: str | None = None
    labels: list[str] | None = None
    component: int | None = None
    metadata: dict[str, Any] | None = None


class Hit(ShownDocument):
    """A document found. score: log q(code | query) in nats, or minus the distance. distance: in bits."""

    score: float
    distance: int
    why: dict[str, Any] | None = None
    code: str | None = None


class Answer(Config):
    """The hits of one query, best first.

    known_words: of a text, the words that the model knows; null where it reads more than words.
    message: why there is no hit, where the query itself is the reason.
    """

    query: str
    rank: Rank
    known_words: int | None = None
    hits: list[Hit]
    message: str | None = None
    code: str | None = None
    log_odds: list[float] | None = None
    words: list[str] | None = None


class Answers(Config):
    """The answers to several queries, in their order."""

    answers: list[Answer]


class Code(Config):
    """A text's code as hexadecimal digits, its component, and how sure the model is of that."""

    code: str
    component: int
    confidence: float
    known_words: int | None


class Codes(Config):
    """The codes of texts, by the model that the index was made with."""

    bits: int
    model: str
    codes: list[Code]


class Changed(Config):
    """What a change did; it is on disk."""

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    documents: int
    version: int


class Problem(Config):
    """What is wrong with a request, and what to do."""

    error: str


class State(Config):
    """Whether the service lives, or takes requests."""

    status: Literal["ok", "ready", "stopping"]
