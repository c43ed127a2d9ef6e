"""Which document a worker failed on: a failure names the worker, the part and the document."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

from vae_core.errors import LatentbitsError

Document = TypeVar("Document")
Result = TypeVar("Result")


def blamed(
    work: Callable[[Sequence[Document]], Result],
    documents: Sequence[Document],
    *,
    part: str,
    name: Callable[[Document], str],
) -> Result:
    """What `work` makes of the documents.

    Where it fails, they are done one by one to find which it fails on. Raises LatentbitsError that names the worker,
    the part and the document; what names its place itself, and what the system refuses, goes through as it is.
    """
    try:
        return work(documents)
    except (LatentbitsError, OSError):
        raise
    except Exception as error:  # whatever it is, who reads of it is to know of which document
        place = f"{_culprit(work, documents, name, type(error))} of {part}"
        raise LatentbitsError(
            f"{type(error).__name__}: {error}; it failed on {place}, in process {os.getpid()} on "
            f"{socket.gethostname()}; mend or leave out what it failed on, and the same command again goes on"
        ) from error


def _culprit(
    work: Callable[[Sequence[Document]], Result],
    documents: Sequence[Document],
    name: Callable[[Document], str],
    failure: type[Exception],
) -> str:
    for document in documents:
        try:
            work([document])
        except failure:
            return f"document {name(document)!r}"
        except Exception:  # fails alone for another reason, so it is not the one that is sought
            continue
    if not documents:
        return "no document"
    return f"documents {name(documents[0])!r} to {name(documents[-1])!r}, on none of them alone,"
