"""Typed, frozen settings: the base of every config, and the model's own composition."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings that cannot change after parsing and know no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


def of_default_kind(settings: Any, default: Any) -> Any:
    """`settings` of a part told apart by its `kind`, as a dict that names none: those of the `default` part's kind."""
    return {"kind": default.kind} | settings if isinstance(settings, dict) else settings
