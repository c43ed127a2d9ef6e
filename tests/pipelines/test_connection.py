"""What a cluster that cannot be used says: one message each, soon."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import in_its_own_network
from vae_core.errors import Misuse

CONNECT = "from pipelines.connection import cluster\nwith cluster(): print('connected')"


def said(address: str, **variables: str) -> tuple[str, float]:
    """What connecting in a process of its own raised, or that it connected, and how long it took."""
    environment = os.environ | {"RAY_ADDRESS": address} | variables
    started = time.monotonic()
    command = [sys.executable, "-c", CONNECT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = result.stderr.strip().splitlines()
    last = next((line for line in reversed(lines) if "vae_core.errors" in line), lines[-1] if lines else "")
    return result.stdout.strip() or last, time.monotonic() - started


def test_an_address_where_nobody_listens_is_told_within_seconds() -> None:
    message, seconds = said("127.0.0.1:9")
    assert message.endswith("no Ray cluster answers at 127.0.0.1:9; start it, or unset RAY_ADDRESS to use this machine")
    assert seconds < 30


def test_a_cluster_that_was_killed_here_does_not_keep_this_machine_from_starting_its_own() -> None:
    with tempfile.TemporaryDirectory(prefix="rs") as folder:  # the paths of Ray's sockets must be short
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        assert said("", RAY_TMPDIR=folder)[0] == "connected"


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that listens, and is no head of a cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket) -> None:
    kept = []
    while True:
        try:
            kept.append(server.accept())
        except OSError:
            return


@pytest.mark.slow
def test_a_server_that_is_no_head_is_told_within_seconds(stranger: str) -> None:
    message, seconds = said(stranger)
    assert message.endswith(f"what answers at {stranger} is no head of a Ray cluster; give RAY_ADDRESS its HOST:PORT")
    assert seconds < 40


@pytest.mark.parametrize(
    ("address", "remedy"),
    [("cluster", "give HOST:PORT of the cluster's head"), ("http://127.0.0.1:{port}", "which is for `submit`")],
)
def test_an_address_of_another_form_is_told(address: str, remedy: str) -> None:
    from pipelines.connection import _require_answer

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Misuse, match=remedy):
        _require_answer(address.format(port=server.getsockname()[1]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", ["token", "version", "busy"])
def test_on_a_cluster(scenario: str, tmp_path: Path) -> None:
    assert "as expected" in in_its_own_network("tests.pipelines.test_connection", scenario, tmp_path)


def token(folder: Path) -> None:
    """The right token connects, a wrong one and none do not."""
    from tests.nodes import HEAD, TOKEN, Nodes

    Nodes(folder).start_head()
    assert said(HEAD, **TOKEN)[0] == "connected"
    refused = f"the cluster at {HEAD} refuses the token; set RAY_AUTH_MODE=token and its own RAY_AUTH_TOKEN"
    for wrong in ({**TOKEN, "RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}):
        message, seconds = said(HEAD, **wrong)
        assert refused in message, message
        assert seconds < 20
    none = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "HOME": str(folder)}
    assert "RAY_AUTH_MODE is token, and there is no token; set RAY_AUTH_TOKEN" in said(HEAD, **none)[0]


def version(folder: Path) -> None:
    """A head that says that it is of an older Ray."""
    from tests.nodes import HEAD, Nodes

    (folder / "older").mkdir()
    (folder / "older" / "sitecustomize.py").write_text(
        "import sys\nif 'start' in sys.argv:\n    import ray\n    ray.__version__ = '2.31.0'\n"
    )
    nodes = Nodes(folder)
    nodes.variables["PYTHONPATH"] = f"{folder / 'older'}:{nodes.variables['PYTHONPATH']}"
    nodes.start_head()
    message, seconds = said(HEAD)
    assert f"the cluster at {HEAD} runs Ray 2.31.0" in message, message
    assert "install the cluster's versions here" in message
    assert seconds < 40


def busy(folder: Path) -> None:
    """Cores that another job holds, and nodes that are not there yet, are waited for, and the wait is told."""
    from tests.nodes import HEAD, Nodes

    nodes = Nodes(folder)
    nodes.start_head()
    code = "from pipelines.scatter import scatter\nprint(list(scatter(lambda: abs, [-1])))"
    environment = os.environ | {"RAY_ADDRESS": HEAD}
    with tempfile.TemporaryFile("w+") as stderr:
        waiting = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=stderr)
        _until(stderr, "waiting for a core; the cluster has no cores yet: start a worker node")
        nodes.add("a")
        assert waiting.communicate(timeout=60)[0] == b"[1]\n"
    hold = "import ray, time\nray.init(logging_level='ERROR')\n@ray.remote(num_cpus=1)\ndef f(): time.sleep(600)\n"
    holder = subprocess.Popen([sys.executable, "-c", hold + "print(flush=True)\nray.get(f.remote())"], env=environment)
    time.sleep(10)
    with tempfile.TemporaryFile("w+") as stderr:
        waiting = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=stderr)
        _until(stderr, "waiting for a core; 0 of 1 cores of the cluster are free: end other work on it, or add a node")
        holder.kill()
        assert waiting.communicate(timeout=60)[0] == b"[1]\n"


def _until(file: object, words: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        file.seek(0)  # type: ignore[attr-defined]
        if words in (text := file.read()):  # type: ignore[attr-defined]
            return
        time.sleep(0.2)
    raise TimeoutError(f"not said within a minute: {words}; said: {text}")


if __name__ == "__main__":
    {"token": token, "version": version, "busy": busy}[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write("as expected\n")
