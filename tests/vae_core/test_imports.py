"""What vae_core brings into a process: torch, and nothing of the pipeline's."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys, vae_core
for module in pkgutil.walk_packages(vae_core.__path__, "vae_core."):
    importlib.import_module(module.name)
print("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """The modules of a fresh interpreter that has imported every file of vae_core."""
    finished = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "heavy", ["ray", "deepspeed", "mlflow", "faiss", "pyarrow", "tokenizers", "typer", "pipelines", "jobs"]
)
def test_vae_core_does_not_import(modules: set[str], heavy: str) -> None:
    assert heavy not in modules


def test_the_list_of_imports_is_that_of_the_whole_package(modules: set[str]) -> None:
    assert {"torch", "vae_core.model", "vae_core.objectives", "vae_core.encoders.transformer"} <= modules
