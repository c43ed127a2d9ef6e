"""The README's commands, run as they stand there, in an empty folder, by someone who has nothing but the README."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SMALLER = ["--limit", "1500", "--set", "pretrain.epochs=2"]
"""What is added to the demo, so that the test takes less than a minute."""


def readme_commands() -> list[list[str]]:
    """Every command of the README's shell blocks; a line that ends in a backslash goes on in the next one."""
    text = (ROOT / "README.md").read_text()
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def as_run_here(command: list[str]) -> list[str] | None:
    """The command for this machine; None for getting the source and installing it, which has happened."""
    if command[0] in ("git", "cd", "source") or command == ["make", "install"]:
        return None
    if command == ["make", "demo"]:
        command = ["latentbits", "demo", *SMALLER]
    assert command[0].endswith("latentbits"), f"the README has a command this test does not know: {command}"
    return [str(Path(sys.executable).with_name("latentbits")), *command[1:]]


WORDS = {"space": "orbit launch shuttle moon rocket", "cars": "engine wheel brake gear tyre"}


def write_newsgroups(path: Path) -> None:
    """A corpus with the columns of the real one."""
    rows = [
        {"id": f"{group}{n}", "text": f"Subject: x\n\n{text} number{n % 7}", "labels": [group], "split": split}
        for n in range(200)
        for group, text in WORDS.items()
        for split in ["train" if n % 4 else "test"]
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_documents(path: Path) -> None:
    """A file of one's own."""
    texts = [(n, text) for n in range(200) for text in WORDS.values()]
    rows = [{"url": f"https://here/{row}", "text": f"{text} number{n % 7}"} for row, (n, text) in enumerate(texts)]
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_works_in_an_empty_folder(tmp_path):
    commands = readme_commands()
    assert ["make", "demo"] in commands
    write_newsgroups(tmp_path / "ng20.parquet")
    write_documents(tmp_path / "docs" / "own.jsonl")
    environment = os.environ | {"COLUMNS": "120"}
    for command in filter(None, map(as_run_here, commands)):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), f"{' '.join(command)} printed nothing"


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text()))
    assert named <= set(targets)


def test_every_file_the_readme_points_to_exists():
    linked = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert all((ROOT / target).exists() for target in linked if not target.startswith("http"))
