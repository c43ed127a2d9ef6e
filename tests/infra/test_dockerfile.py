"""The Dockerfile, by its linter and by what was promised of its last layers."""

import re
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "infra" / "Dockerfile"
LAST = ("cpu", "cuda", "tracking")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Each stage with what it comes from and its instructions, continued lines joined."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in re.sub(r"\\\n\s*", "", FILE.read_text()).splitlines():
        if begin := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[begin[2]] = (begin[1], [])
        elif found and line and not line.startswith("#"):
            list(found.values())[-1][1].append(line)
    return found


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    said = subprocess.run(
        [linter, "--failure-threshold", "info", str(FILE)], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "")


def test_what_runs_has_no_rights_no_compiler_and_no_sources() -> None:
    """Only a finished environment is copied into it, and nothing is installed there."""
    for name in LAST:
        origin, instructions = stages()[name]
        assert origin == "runtime"
        assert [line for line in instructions if line.startswith("COPY")] == [
            f"COPY --from=build-{name} /opt/latentbits /opt/latentbits"
        ]
        assert "USER 1000:1000" in instructions
        assert not any(re.search(r"\b(pip|apt|apt-get|gcc)\b", line) for line in instructions)
    _, below = stages()["runtime"]
    assert not any(re.search(r"\b(pip|apt|apt-get|gcc)\b", line) for line in below)


def test_versions_are_those_of_the_constraints() -> None:
    text = FILE.read_text()
    installs = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("-c constraints.txt" in line for line in installs)
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_builder_gets_what_the_wheel_is_made_of_and_nothing_else() -> None:
    kept = {
        line[1:] for line in (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {name for line in stages()["build"][1] if line.startswith("COPY") for name in line.split()[1:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert packages is not None
    assert {name.split(".")[0] for name in re.findall(r'"([\w.]+)"', packages[1])} <= kept


def test_the_version_of_the_tags_is_the_version_of_the_package() -> None:
    from importlib.metadata import version

    tags = set()
    for path in (ROOT / "infra").rglob("*"):
        if path.is_file():
            tags |= set(re.findall(r"latentbits(?:-tracking)?:(\d+\.\d+\.\d+)", path.read_text()))
    assert tags == {version("latentbits")}
