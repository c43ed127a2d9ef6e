"""The wheel holds the three rooms, all of their packages, and nothing else."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_every_package_of_the_rooms():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for room in ("vae_core", "pipelines", "jobs") for path in _inits(room)]
    assert sorted(listed) == sorted(".".join(path.parts) for path in found)


def test_every_recipe_is_package_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["jobs.recipes"] == ["*.yaml"]
    assert {path.suffix for path in (ROOT / "jobs" / "recipes").iterdir() if path.is_file()} <= {".py", ".yaml"}


def test_the_page_of_the_service_is_package_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["pipelines.serving"] == ["page/*"]
    assert {"index.html", "page.css", "page.js"} <= {
        path.name for path in (ROOT / "pipelines" / "serving" / "page").iterdir()
    }


def _inits(room: str) -> list[Path]:
    return list((ROOT / room).rglob("__init__.py"))
