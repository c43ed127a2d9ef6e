"""Documents that clients add and delete: encoded by the index's own model, and on disk before they are told so."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.corpus import Document
from pipelines.encode import codes_table
from pipelines.encoder import Encoder
from pipelines.index_changes import add, delete
from pipelines.metadata import TYPES, Types, misfit
from pipelines.search import Index
from pipelines.serving.answers import Unknown
from pipelines.serving.requests import NewDocument
from vae_core.errors import LatentbitsError, Misuse

ALWAYS = ("id", "text", "labels", "component")
"""Columns of every index; the others are metadata."""
WAIT_S = 5.0


class Conflict(Misuse):
    """A document of that id is there already."""


class Unwritten(LatentbitsError):
    """The change could not be written; nothing has changed, and trying again may help."""


class Writer:
    """Changes one index; it has that index open for itself, since those who search go on to a new version on their own.

    `encoder` is the index's own model.
    """

    def __init__(self, index: Path, encoder: Encoder) -> None:
        self.index = Index.open(index)
        self.encoder = encoder

    def add(self, documents: Sequence[NewDocument], *, upsert: bool) -> dict[str, Any]:
        """Add documents, or with `upsert` put them in place of those with their ids.

        Raises Conflict where an id is there and `upsert` is not asked for, Misuse where an id is given twice or
        metadata does not fit, and Unwritten.
        """
        ids = [document.id for document in documents]
        _require_unique(ids)
        there = self._places(ids)
        if there and not upsert:
            raise Conflict(f'the index has the document {ids[there[0]]!r} already; "upsert": true replaces it')
        types = {name: kind for name, kind in self.index.columns().items() if name not in ALWAYS}
        table = self.encoder.table([_read(one, types) for one in documents], _known(types))
        codes = codes_table(table, self.encoder.encode(table))
        _written(lambda: add(self.index.artifact.path, codes, upsert=upsert))
        return self._changed(added=len(ids) - len(there), replaced=len(there))

    def delete(self, ids: Sequence[str]) -> dict[str, Any]:
        """Delete documents by id, all of them or none. Raises Unknown where one is not there, and Unwritten."""
        ids = list(dict.fromkeys(ids))
        there = self._places(ids)
        if len(there) < len(ids):
            missing = ids[min(set(range(len(ids))) - set(there))]
            raise Unknown(f"the index has no document {missing!r}; nothing was deleted")
        _written(lambda: delete(self.index.artifact.path, ids))
        return self._changed(deleted=len(ids))

    def _places(self, ids: list[str]) -> list[int]:
        """Which of `ids` the newest version has."""
        self.index.refresh()
        return sorted(self.index.rows_of(pa.array(ids, pa.string()))[0].tolist())

    def _changed(self, *, added: int = 0, replaced: int = 0, deleted: int = 0) -> dict[str, Any]:
        self.index.refresh()
        counts = {"added": added, "replaced": replaced, "deleted": deleted}
        return counts | {"documents": len(self.index), "version": self.index.version}


def _written(change: Callable[[], int]) -> None:
    """Make a change; another writer, such as another replica, has some time to be done with its own."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            change()
            return
        except Misuse:
            raise
        except (LatentbitsError, OSError) as error:
            if isinstance(error, OSError) or time.monotonic() > deadline:
                raise Unwritten(f"nothing was changed: {error}") from error
            time.sleep(0.05)


def _require_unique(ids: list[str]) -> None:
    twice = next((id for place, id in enumerate(ids) if id in ids[:place]), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise Misuse(f"the document {twice!r} is there twice in this request; send it once")


def _known(types: dict[str, str]) -> Types:
    """The index's types of metadata, as far as tables are made of them."""
    return {name: kind if kind in TYPES else "string" for name, kind in types.items()}


def _read(document: NewDocument, types: dict[str, str]) -> Document:
    for name in document.metadata:
        if name not in types:
            there = ", ".join(types) or "none"
            raise Misuse(f"document {document.id!r}: the index has no field {name!r}; its metadata fields: {there}")
    if reason := misfit(document.metadata, _known(types)):
        raise Misuse(f"document {document.id!r}: {reason}")
    return Document(document.id, document.text, document.labels, document.metadata, "request", 0)
