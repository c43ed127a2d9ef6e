"""Metadata columns: one Arrow type a field, for the whole corpus, whatever its rows hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
Types = Mapping[str, str]
"""Field -> one of the names in TYPES."""


class SeenTypes:
    """The types of the values met so far, field by field."""

    def __init__(self, fields: Iterable[str]) -> None:
        self._seen: dict[str, set[str]] = {field: set() for field in fields}

    def add(self, values: Mapping[str, Any]) -> None:
        for field, value in values.items():
            if value is not None:
                self._seen.setdefault(field, set()).add(_type_of(value))

    def types(self) -> dict[str, str]:
        """The narrowest type that holds all of a field's values."""
        return {field: _joined(seen) for field, seen in self._seen.items()}


def misfit(values: Mapping[str, Any], types: Types) -> str | None:
    """What does not fit its field's type, in words; None where all does."""
    for field, name in types.items():
        value = values.get(field)
        if value is not None and name != "string" and _joined({_type_of(value), name}) != name:
            return f"field {field!r} holds {value!r} and the corpus's other rows {name}"
    return None


def struct_type(types: Types) -> pa.DataType:
    return pa.struct([(field, TYPES[name]) for field, name in types.items()])


def struct_array(rows: Sequence[Mapping[str, Any]], types: Types) -> pa.Array:
    """One struct a row; the values must fit the types."""
    columns = [pa.array([_as(row.get(field), name) for row in rows], TYPES[name]) for field, name in types.items()]
    return pa.StructArray.from_arrays(columns, fields=list(struct_type(types)))


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return "double" if isinstance(value, float) else "string"


def _joined(seen: set[str]) -> str:
    if len(seen) == 1:
        return next(iter(seen))
    return "double" if seen == {"int64", "double"} else "string"


def _as(value: Any, name: str) -> Any:
    if value is None or name != "string" or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
