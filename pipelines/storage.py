"""The door to object stores: bytes by URI, through pyarrow.fs. It knows nothing of artifacts.

A URI is carried as a Path, as every place is; pathlib folds its two slashes into one, and `uri_of` unfolds them.
Credentials come from the environment or the machine's role alone. The endpoint of a store that is not Amazon's is in
AWS_ENDPOINT_URL.
"""

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from vae_core.errors import LatentbitsError, Misuse

SCHEMES = ("s3", "gs", "abfs", "abfss")
URI = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
CHUNK, READ_BYTES = 8 << 20, 1 << 20
CONNECT_S = 5.0
ATTEMPTS = 4
REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "HTTP 403")
NOWHERE = ("NO_SUCH_BUCKET", "bucket does not exist")
UNREACHABLE = ("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "curlCode")


def uri_of(place: str | PurePath) -> str | None:
    """The URI that `place` is, as `scheme://rest`; None where it is a path of this machine.

    Raises Misuse for a scheme that is not read, and for one that holds credentials.
    """
    found = URI.fullmatch(str(place))
    if found is None or found[1] == "file":
        return None
    scheme, rest = found.groups()
    if scheme not in SCHEMES:
        raise Misuse(
            f"{scheme}:// is no storage that is read; give a path, or {', '.join(SCHEMES[:2])}://bucket/folder"
        )
    if "@" in rest.partition("/")[0]:
        raise Misuse(f"a {scheme}:// address must not hold keys; put them in the environment (AWS_ACCESS_KEY_ID, ...)")
    if not rest.strip("/") or ".." in rest.split("/"):
        raise Misuse(f"{scheme}://{rest} names no folder; give {scheme}://bucket/folder")
    return f"{scheme}://{rest.strip('/')}"


def local_path(place: Path) -> Path:
    """`place`, of which file:// is taken off."""
    found = URI.fullmatch(str(place))
    return Path("/", found[2]) if found and found[1] == "file" else place


def shown(place: str | PurePath) -> str:
    """`place` as a person writes it: a URI with both slashes, a path as it is."""
    return uri_of(place) or str(place)


def is_folder(place: Path) -> bool:
    """Whether there is a folder at `place`, a path or a URI: in a store, whether anything lies below it."""
    uri = uri_of(place)
    return Store.at(uri).holds_anything() if uri else place.is_dir()


def open_file(path: Path) -> BinaryIO:
    """A file, at a path or a URI, open for reading. Raises FileNotFoundError."""
    uri = uri_of(path)
    if uri is None:
        return path.open("rb")
    folder, _, name = uri.rpartition("/")
    # What pyarrow opens reads no lines.
    return cast(BinaryIO, io.BufferedReader(cast(Any, Store.at(folder).open(name)), READ_BYTES))


def parquet_source(path: Path) -> Any:
    """What pyarrow reads a parquet file from, at a path or a URI, a piece at a time."""
    uri = uri_of(path)
    if uri is None:
        return path
    folder, _, name = uri.rpartition("/")
    return Store.at(folder).open(name)


def file_facts(path: Path) -> tuple[int, float]:
    """Bytes of a file, at a path or a URI, and when it was written. Raises FileNotFoundError."""
    uri = uri_of(path)
    if uri is None:
        facts = path.stat()
        return facts.st_size, max(facts.st_mtime, facts.st_ctime)
    folder, _, name = uri.rpartition("/")
    found = Store.at(folder).facts(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri)
    return found


def file_checksum(path: Path) -> str:
    """SHA-256 of a file at a path or a URI. Raises FileNotFoundError."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def matching_files(pattern: str) -> list[Path]:
    """The files of a store that a URI names, or matches where it holds `*`, `?` or `[...]`; `**` for any depth."""
    uri = uri_of(pattern) or pattern
    bucket = "/".join(uri.split("/")[:3])
    fixed = re.split(r"[*?\[]", uri, maxsplit=1)[0]
    if fixed == uri:
        folder, _, name = uri.rpartition("/")
        return [Path(uri)] if Store.at(folder).facts(name) else []
    store, wanted = Store.at(bucket), _glob(uri.removeprefix(f"{bucket}/"))
    below = fixed.rpartition("/")[0].removeprefix(bucket).strip("/")
    return [Path(f"{bucket}/{name}") for name in store.sizes(below) if wanted.fullmatch(name)]


def exists(place: Path) -> bool:
    """Whether there is a file or a folder at `place`, a path or a URI."""
    uri = uri_of(place)
    if uri is None:
        return place.exists()
    folder, _, name = uri.rpartition("/")
    return Store.at(folder).facts(name) is not None or is_folder(place)


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of an object store. Names are below it, with slashes."""

    uri: str

    @classmethod
    def at(cls, uri: str) -> "Store":
        """The folder at `uri`; nothing is asked of the store yet."""
        return cls(uri.rstrip("/"))

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        with _told(self._address(name), "read"):
            try:
                with self._files.open_input_stream(self._key(name), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def open(self, name: str) -> BinaryIO:
        """A file open for reading anywhere in it."""
        with _told(self._address(name), "read"):
            return cast(BinaryIO, self._files.open_input_file(self._key(name)))

    def write(self, name: str, content: bytes) -> None:
        """Put a small file: one request, after which the old or the new bytes are there whole."""
        with (
            _told(self._address(name), "write"),
            self._files.open_output_stream(self._key(name), compression=None) as stream,
        ):
            stream.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Put a file of this machine. An error may leave it cut short: what counts on it compares its checksum."""
        with path.open("rb") as source, _told(self._address(name), "write"):
            stream = self._files.open_output_stream(self._key(name), compression=None, buffer_size=CHUNK)
            try:
                while block := source.read(CHUNK):
                    stream.write(block)
                stream.close()
            except BaseException:
                with suppress(OSError):  # closing publishes what was sent so far
                    stream.close()
                with suppress(OSError):
                    self._files.delete_file(self._key(name))
                raise

    def download(self, name: str, path: Path) -> str | None:
        """Write a file to `path` and return its SHA-256; None where the store has none."""
        with _told(self._address(name), "read"):
            try:
                source = self._files.open_input_stream(self._key(name), compression=None)
            except FileNotFoundError:
                return None
        digest = hashlib.sha256()
        with source, path.open("wb") as target:
            while block := _told_read(source, self._address(name)):
                digest.update(block)
                target.write(block)
        return digest.hexdigest()

    def checksum(self, name: str) -> str | None:
        """SHA-256 of a file, read as a stream; None where there is none."""
        with _told(self._address(name), "read"):
            try:
                source = self._files.open_input_stream(self._key(name), compression=None)
            except FileNotFoundError:
                return None
            digest = hashlib.sha256()
            with source:
                while block := source.read(CHUNK):
                    digest.update(block)
        return digest.hexdigest()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        facts = self.facts(name)
        return None if facts is None else facts[0]

    def facts(self, name: str) -> tuple[int, float] | None:
        """Bytes of a file and when it was written, in seconds since 1970; None where there is none."""
        from pyarrow import fs

        with _told(self._address(name), "read"):
            info = self._files.get_file_info(self._key(name))
        if info.type != fs.FileType.File:
            return None
        return info.size, info.mtime.timestamp() if info.mtime else 0.0

    def sizes(self, below: str = "", *, recursive: bool = True) -> dict[str, int]:
        """Names and bytes of all files below a folder."""
        from pyarrow import fs

        folder = self._key(below)
        selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        with _told(self._address(below), "list"):
            found = self._files.get_file_info(selector)
        start = len(self._key("")) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def holds_anything(self) -> bool:
        """Whether a file lies below this folder."""
        return bool(self.sizes())

    def delete(self, *names: str) -> None:
        """Delete files; one that is not there is none."""
        for name in names:
            with _told(self._address(name), "delete from"), suppress(FileNotFoundError):
                self._files.delete_file(self._key(name))

    def delete_folder(self, name: str = "") -> None:
        """Delete everything below a folder."""
        with _told(self._address(name), "delete from"), suppress(FileNotFoundError):
            self._files.delete_dir(self._key(name))

    def copy(self, name: str, target: "Store", target_name: str) -> None:
        """Copy a file to another folder of this store, without its bytes coming here."""
        with _told(target._address(target_name), "write"):
            self._files.copy_file(self._key(name), target._key(target_name))

    @property
    def _files(self) -> Any:
        scheme, _, rest = self.uri.partition("://")
        return _filesystem(scheme, rest.partition("/")[0], os.environ.get("AWS_ENDPOINT_URL", ""))

    def _key(self, name: str) -> str:
        root = self.uri.partition("://")[2]
        return f"{root}/{name}".rstrip("/")

    def _address(self, name: str) -> str:
        return f"{self.uri}/{name}".rstrip("/")


def _glob(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression, `**` for any depth."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    return re.compile(
        "".join(pieces.get(piece) or (piece if piece.startswith("[") else re.escape(piece)) for piece in found)
    )


@cache
def _filesystem(scheme: str, bucket: str, endpoint: str) -> Any:
    from pyarrow import fs

    if scheme != "s3":
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}/")[0]
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    where: dict[str, str] = {}
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Misuse(f"AWS_ENDPOINT_URL is {endpoint!r}; give http://HOST:PORT or https://HOST")
        where = {"endpoint_override": parts.netloc + parts.path.rstrip("/"), "scheme": parts.scheme}
        region = region or "us-east-1"
    with _told(f"s3://{bucket}", "read"):
        where["region"] = region or fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        connect_timeout=CONNECT_S,
        request_timeout=60.0,
        # A small file is one request then, which either puts it or does not.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **where,
    )


def _told_read(source: Any, address: str) -> bytes:
    with _told(address, "read"):
        return bytes(source.read(CHUNK))


@contextmanager
def _told(address: str, doing: str) -> Iterator[None]:
    """Say what a store refused, and what to do about it."""
    try:
        yield
    except (FileNotFoundError, LatentbitsError):
        raise
    except OSError as error:
        said = str(error)
        if any(word in said for word in REFUSED):
            raise Misuse(
                f"no permission to {doing} {address}; the identity in the environment (AWS_ACCESS_KEY_ID, a profile, "
                f"or the machine's role) needs to list, get, put and delete objects there"
            ) from error
        bucket = "/".join(address.split("/")[:3])
        if any(word in said for word in NOWHERE):
            raise Misuse(f"there is no bucket {bucket}; make it, or give another one") from error
        if any(word in said for word in UNREACHABLE):
            endpoint = os.environ.get("AWS_ENDPOINT_URL", "the store's usual address")
            raise LatentbitsError(
                f"the store of {bucket} does not answer at {endpoint}; see that it runs and that AWS_ENDPOINT_URL is "
                f"right: the same command again goes on"
            ) from error
        if error.errno is not None:  # a file of this machine
            raise
        raise LatentbitsError(f"cannot {doing} {address}: {' '.join(said.split())[:300]}") from error
