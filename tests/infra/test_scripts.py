"""The start scripts: by their linter, and run, with `ssh` and Slurm's commands replaced by ones that stay here."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

INFRA = Path(__file__).parent.parent.parent / "infra"
SCRIPTS = sorted(path for path in INFRA.rglob("*") if path.suffix in (".sh", ".sbatch"))
BIN = Path(sys.executable).parent
SSH = """#!/bin/bash
# As ssh: options, a host, a command. Every host has a home of its own.
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
mkdir -p "$HOMES/$1"
cd "$HOMES/$1" && HOME="$HOMES/$1" exec bash -c "$2"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.4; else echo "$@" >> "$SAID"; fi
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_the_linter_have_nothing_to_say(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    said = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_there_is_a_script_for_every_way() -> None:
    assert [path.name for path in SCRIPTS] == ["make_secrets.sh", "run.sbatch", "cluster.sh"]


@pytest.mark.parametrize("arguments", [[], ["up"], ["up", "/no/such/file"], ["restart", "HOSTS"]])
def test_a_wrong_call_says_how_it_is_called(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("one\n")
    command = [
        "bash",
        str(INFRA / "ssh/cluster.sh"),
        *(str(tmp_path / "hosts") if x == "HOSTS" else x for x in arguments),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "up|status|down HOSTS" in said.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `bin` has the commands of other machines; what still runs with it in its environment is ended."""
    (tmp_path / "bin").mkdir()
    for name, text in {"ssh": SSH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    yield tmp_path
    for process in _of(tmp_path):
        process.kill()


def _of(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_PLACE") == str(place):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _environment(place: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LATENTBITS_"))}
    path = f"{place / 'bin'}{os.pathsep}{BIN}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "HOME": str(place), "TEST_PLACE": str(place), "OMP_NUM_THREADS": "1"} | more


def _config(place: Path) -> Path:
    with (place / "docs.jsonl").open("w") as file:
        for number in range(200):
            file.write(json.dumps({"id": str(number), "text": f"sea {number % 7} ship {number % 5}"}) + "\n")
    settings = {
        "out": str(place / "run"),
        "corpus": {"id": "id", "files": [str(place / "docs.jsonl")]},
        "tracking": {"enabled": False},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(settings))
    return place / "run.yaml"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_machines_that_ssh_reaches_become_a_cluster_and_cease_to_be_one(place: Path) -> None:
    (place / "hosts").write_text("alpha # the head\n\nbeta\n")
    head = f"--num-cpus=1 --temp-dir=/tmp/s{secrets.token_hex(4)} --ray-client-server-port=24501"
    environment = _environment(
        place,
        HOMES=str(place / "homes"),
        LATENTBITS_BIN=str(BIN),
        RAY_PORT="24511",
        DASHBOARD_PORT="24521",
        HEAD_ADDRESS="127.0.0.5",
        HEAD_OPTIONS=head,
        WORKER_OPTIONS="--num-cpus=1 --node-ip-address=127.0.0.6",
    )

    def cluster(action: str) -> str:
        command = ["bash", str(INFRA / "ssh/cluster.sh"), action, str(place / "hosts")]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
        assert said.returncode == 0, said.stderr
        return said.stdout

    assert "does not run" in cluster("status")
    up = cluster("up")
    assert "alpha: started\nbeta: started\n" in up
    assert "export RAY_AUTH_TOKEN_PATH=" in up
    assert cluster("status") == "alpha: runs\nbeta: runs\n"
    token = place / ".latentbits" / "ray_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o077 == 0
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:24521"}
    program = "from jobs.cluster import Cluster\nprint(sorted(node.address for node in Cluster.connect().nodes()))"
    until, nodes = time.monotonic() + 60, ""
    while "127.0.0.6" not in nodes and time.monotonic() < until:
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=INFRA.parent, capture_output=True, text=True
        )
        nodes = said.stdout
    assert nodes == "['127.0.0.5', '127.0.0.6']\n", said.stderr
    assert "alpha: runs already" in cluster("up")
    assert cluster("down") == "beta: ended\nalpha: ended\n"
    assert cluster("status") == "alpha: does not run\nbeta: does not run\n"
    assert not [process for process in _of(place) if "raylet" in process.name()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_slurm_job_runs_the_pipeline_on_its_nodes_and_leaves_nothing(place: Path) -> None:
    number = str(secrets.randbelow(9000) + 1000)
    environment = _environment(
        place, SLURM_JOB_ID=number, SLURM_JOB_NODELIST="node", SLURM_CPUS_PER_TASK="2", SAID=str(place / "said")
    )
    command = ["bash", str(INFRA / "slurm/run.sbatch"), str(_config(place)), "--until", "tokenize"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert said.returncode == 0, said.stderr
    assert (place / "run" / "shards" / "manifest.json").is_file()
    assert not (place / ".latentbits" / number).exists(), "the token is gone"
    assert not [process for process in _of(place) if "raylet" in process.name()]
    assert not (place / "said").exists(), "a run that ended is not queued again"
