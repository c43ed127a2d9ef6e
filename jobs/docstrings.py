"""The demo's corpus: the docstrings of the Python packages on this machine, read from source, nothing imported.

One document a docstring: {"id": "json.dumps", "text": ..., "labels": ["stdlib"], "kind": "function"}.
A label says which package a text is from. Two choices make precision by label a fair measure. A label has at least
LABEL_FLOOR documents (where the limit leaves room for as many), so that a perfect ranking can fill a page of a hundred;
the standard library's small modules therefore share the label "stdlib". And no text begins with its package's name.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.artifact import replacing
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter

# The order decides which of two equal docstrings stays: the library comes before those built on it.
# fmt: off
PACKAGES = (
    "numpy", "scipy", "pandas", "pyarrow", "sklearn", "torch", "tokenizers", "safetensors", "faiss",
    "deepspeed", "ray", "mlflow", "matplotlib", "PIL", "sympy", "networkx", "sqlalchemy", "alembic", "pydantic",
    "fastapi", "starlette", "uvicorn", "aiohttp", "requests", "urllib3", "websockets", "flask", "werkzeug",
    "jinja2", "click", "typer", "rich", "pygments", "fsspec", "huggingface_hub", "hypothesis", "pytest",
    "joblib", "psutil", "cryptography", "docker", "git", "fontTools", "mpmath", "pyparsing", "anyio",
    "narwhals", "setuptools",
)
# fmt: on
STDLIB = "stdlib"
LABEL_FLOOR = 100
SHORTEST_TEXT = 80  # characters; below lies "Return the name." and its like
PACKAGE_CAP = 1_500  # documents read of one package
LARGEST_FILE = 400_000  # bytes; above lie tables and generated bindings
LARGEST_PACKAGE = 12_000_000  # bytes parsed of one package
CODE_PER_DOCSTRING = 2_000  # bytes; a third of the parsing time goes into files with more, for an eighth of the texts
# fmt: off
PASSED_OVER = frozenset({
    "test", "tests", "testing", "benchmarks", "examples", "vendor", "vendored", "third_party", "thirdparty",
    "extern", "externals", "generated", "protos", "site-packages", "dist-packages", "idlelib", "lib2to3",
    "pydoc_data", "encodings", "ensurepip", "turtledemo",
})
# fmt: on
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Package(NamedTuple):
    """One top-level package (a folder) or module (a file), and how many documents to take from it."""

    name: str
    place: Path
    label: str
    limit: int


@dataclass
class Harvest:
    """What one package gave."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    broken: int = 0
    """Source files that Python cannot parse."""


def write_docstrings(out: Path, limit: int = 20_000, progress: Progress | None = None) -> Path:
    """Write at most `limit` documents to `out`, one JSON object a line, in an order that depends on the packages alone.

    Packages keep an equal share: the largest are cut until the sum fits. Returns `out`.
    """
    watch = progress or Silent()
    packages = _installed(min(limit, PACKAGE_CAP))
    watch.start("docstrings", total=len(packages), unit="packages")
    harvests: dict[str, Harvest] = {}
    for name, harvest in scatter(_make_worker, packages):
        harvests[name] = harvest
        watch.advance(1, f"{sum(one.broken for one in harvests.values())} files not parsed")
    watch.finish()
    documents = _shared_out(_labelled(_distinct(harvests[package.name] for package in packages)), limit)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    return out


def read_package(package: Package) -> Harvest:
    """The documents of one package, those of its outermost modules first."""
    harvest, seen, read = Harvest(), set[str](), 0
    for path in _sources(package.place):
        source = path.read_bytes()
        if _is_mostly_code(source):
            continue
        read += len(source)
        try:
            found = list(_documents(_parsed(source), _module_name(path, package), package.label))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            harvest.broken += 1
            continue
        harvest.documents += [document for document in found if _is_new(document["id"], seen)]
        if len(harvest.documents) >= package.limit or read > LARGEST_PACKAGE:
            break
    del harvest.documents[package.limit :]
    return harvest


def _make_worker() -> Callable[[Package], tuple[str, Harvest]]:
    return lambda package: (package.name, read_package(package))


def _installed(limit: int) -> list[Package]:
    """The packages to read: those of PACKAGES that are here, then the standard library's."""
    found = [Package(name, place, name, limit) for name in PACKAGES if (place := _place(name))]
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - PASSED_OVER):
        for place in (library / name, library / f"{name}.py"):
            if not name.startswith("_") and place.exists():
                found.append(Package(name, place, STDLIB, limit))
    return found


def _place(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _sources(place: Path) -> list[Path]:
    """The package's source files, outermost first, then by path; vendored, generated and private folders left out."""
    if place.is_file():
        return [place]
    found = []
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name not in PASSED_OVER and not name.startswith(("_", "."))]
        found += [Path(folder, name) for name in files if name.endswith(".py") and not _is_generated(name)]
    small = (path for path in found if path.stat().st_size <= LARGEST_FILE)
    return sorted(small, key=lambda path: (len(path.parts), path.parts))


def _is_generated(name: str) -> bool:
    return name.startswith(("test_", "conftest")) or name.endswith(("_test.py", "_pb2.py", "_pb2_grpc.py"))


def _is_mostly_code(source: bytes) -> bool:
    pieces = source.split(b'"""')
    return sum(len(code) for code in pieces[::2]) > CODE_PER_DOCSTRING * (len(pieces) // 2)


def _parsed(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's escape sequences
        return ast.parse(source)


def _module_name(path: Path, package: Package) -> str:
    inner = path.with_suffix("").relative_to(package.place).parts if package.place.is_dir() else ()
    return ".".join([package.name, *(part for part in inner if part != "__init__")])


def _documents(module: ast.Module, name: str, label: str) -> Iterator[dict[str, Any]]:
    if document := _document(module, name, "module", label):
        yield document
    yield from _within(module, name, "function", label)


def _within(parent: ast.Module | ast.ClassDef, name: str, kind: str, label: str) -> Iterator[dict[str, Any]]:
    """The public definitions directly inside `parent`, and those inside its public classes."""
    for node in parent.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        inner, is_class = f"{name}.{node.name}", isinstance(node, ast.ClassDef)
        if document := _document(node, inner, "class" if is_class else kind, label):
            yield document
        if isinstance(node, ast.ClassDef):
            yield from _within(node, inner, "method", label)


def _document(node: ast.Module | Definition, name: str, kind: str, label: str) -> dict[str, Any] | None:
    docstring = (ast.get_docstring(node) or "").strip()
    if len(docstring) < SHORTEST_TEXT:
        return None
    text = f"{_spoken(name)}\n{docstring}"
    # Source may escape half of a surrogate pair, which no UTF-8 file can hold.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return {"id": name, "text": text.strip(), "labels": [label], "kind": kind}


def _spoken(name: str) -> str:
    """The words of a qualified name without its package: "torch.nn.CrossEntropyLoss" -> "nn cross entropy loss"."""
    words = [word.lower() for word in WORDS.findall(name.partition(".")[2])]
    return " ".join(dict.fromkeys(words))


def _is_new(key: str, seen: set[str]) -> bool:
    known = key in seen
    seen.add(key)
    return not known


def _distinct(harvests: Iterable[Harvest]) -> Iterator[dict[str, Any]]:
    """The documents whose docstring, apart from case, spacing and punctuation, has not come before."""
    seen: set[str] = set()
    for harvest in harvests:
        for document in harvest.documents:
            docstring = document["text"].partition("\n")[2]
            if _is_new(" ".join(re.findall(r"\w+", docstring.lower())), seen):
                yield document


def _labelled(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents, with the standard library's larger modules as labels of their own and sparse labels left out."""
    kept = list(documents)
    sizes = Counter(_top(document) for document in kept)
    for document in kept:
        if sizes[_top(document)] >= LABEL_FLOOR:
            document["labels"] = [_top(document)]
    final = Counter(document["labels"][0] for document in kept)
    return [document for document in kept if final[document["labels"][0]] >= LABEL_FLOOR]


def _top(document: dict[str, Any]) -> str:
    return str(document["id"]).partition(".")[0]


def _shared_out(documents: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` documents, as many of each label as the largest equal share allows; methods go first."""
    sizes = Counter(document["labels"][0] for document in documents)
    shares = range(max(sizes.values(), default=0) + 1)
    share = max(share for share in shares if sum(min(size, share) for size in sizes.values()) <= limit)
    taken: Counter[str] = Counter()
    kept = set()
    for document in sorted(documents, key=_rank):
        label = document["labels"][0]
        taken[label] += 1
        if taken[label] <= share:
            kept.add(document["id"])
    return [document for document in documents if document["id"] in kept]


def _rank(document: dict[str, Any]) -> tuple[bool, bytes]:
    return document["kind"] == "method", hashlib.sha256(document["id"].encode()).digest()
