"""A corpus of code: the functions of the Python packages on this machine, read from source, nothing imported.

Texts whose order says much, which are many; a label says which package a function is from.
"""

import ast
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# fmt: off
PACKAGES = (
    "torch", "sympy", "mlflow", "ray", "sqlalchemy", "deepspeed", "pandas", "scipy", "matplotlib", "fontTools",
    "sklearn", "numpy", "networkx", "huggingface_hub", "aiohttp",
)
# fmt: on
LONGEST, SHORTEST = 1000, 100
"""Characters that are taken of a function, and that it has at least."""


def labelled_functions() -> Iterator[tuple[str, str]]:
    """Each function and its package; one that several have comes several times."""
    for package in PACKAGES:
        for text in _functions_of(package):
            yield text, package


def _functions_of(package: str) -> Iterator[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return
    for folder, folders, names in os.walk(spec.submodule_search_locations[0]):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(".py")):
            yield from _functions_in(Path(folder) / name)


def _functions_in(path: Path) -> Iterator[str]:
    """Their source from `def` on, without the docstring."""
    source = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.decode("utf-8", "replace").splitlines()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = node.body[0] if ast.get_docstring(node) is not None else None
            head, end = (node.lineno - 1, node.end_lineno)
            kept = lines[head:end] if told is None else lines[head : told.lineno - 1] + lines[told.end_lineno : end]
            text = "\n".join(kept).strip()[:LONGEST]
            if len(text) >= SHORTEST:
                yield text
