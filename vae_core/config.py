"""Typed, frozen settings: the base of every config, and the model's own composition."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings that cannot change after parsing and know no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
