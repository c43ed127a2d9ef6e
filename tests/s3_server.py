"""A real S3 server as a process of its own, on this machine's loopback alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs


class S3Server:
    """A running server; `environment` is what a process needs to use it, `bucket` makes a new bucket."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.process = process
        self.buckets = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "a-key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def files(self) -> fs.S3FileSystem:
        """The server as another program sees it."""
        return fs.S3FileSystem(
            access_key="another-key",
            secret_key="another-secret",
            endpoint_override=self.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def bucket(self) -> str:
        """The URI of a new, empty bucket."""
        self.buckets += 1
        name = f"bucket-{self.process.pid}-{self.buckets}"
        self.files().create_dir(name)
        return f"s3://{name}"

    def tree(self, uri: str) -> dict[str, bytes]:
        """Name and content of every object below `uri`."""
        root = uri.removeprefix("s3://").rstrip("/")
        files = self.files()
        found = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        return {
            info.path.removeprefix(f"{root}/"): files.open_input_stream(info.path, compression=None).read()
            for info in found
            if info.type == fs.FileType.File
        }


@contextmanager
def s3_server(**variables: str) -> Iterator[S3Server]:
    """Start a server, with these variables in its environment, and end it after."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | variables, **quiet)  # type: ignore[call-overload]
    try:
        _wait(f"http://127.0.0.1:{port}/moto-api/data.json")
        yield S3Server(port, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for the whole test session."""
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new bucket, the environment that reaches it, and an empty cache."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return s3.bucket()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _wait(address: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError(f"nothing answers at {address}")
