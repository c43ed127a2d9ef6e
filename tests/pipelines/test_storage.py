"""Artifacts in a real S3 server: the same promises as in a folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifact import Artifact, Draft, begin, find_part
from pipelines.files.working_folder import root, working_folder_of
from pipelines.storage import Store, uri_of
from tests.pipelines.test_artifact import letters_of, make, make_part, plan, tree
from tests.s3_server import S3Server, bucket, s3, s3_server
from vae_core.errors import Damaged, LatentbitsError, Misuse, Stale, Unfinished

__all__ = ["bucket", "s3"]


def forget_this_machine() -> None:
    """As if everything went on on another machine."""
    shutil.rmtree(root(), ignore_errors=True)


def in_store(s3: S3Server, uri: str) -> dict[str, str]:
    """As `tree` shows a folder: the manifest without its date."""
    found = {name: content.decode() for name, content in s3.tree(uri).items()}
    for name in [name for name in found if name.endswith("manifest.json")]:
        facts = {key: value for key, value in json.loads(found[name]).items() if key != "created"}
        found[name] = json.dumps(facts)
    return found


def test_a_stored_artifact_has_the_very_files_of_a_local_one(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    make(Path(f"{bucket}/run/shards"), "abc")
    local = {name: text for name, text in tree(make(tmp_path / "shards", "abc").path).items() if text != "a folder"}
    assert in_store(s3, f"{bucket}/run/shards") == local
    assert local.keys() == {"part-00000.txt", "part-00001.txt", "part-00002.txt", "manifest.json"}


def test_it_is_read_on_another_machine_and_compared_by_checksum(bucket: str) -> None:
    out = Path(f"{bucket}/run/shards")
    fingerprint = make(out, "abc").fingerprint
    forget_this_machine()
    artifact = Artifact.open(out, "shards")
    assert (letters_of(artifact), artifact.fingerprint) == ("abc", fingerprint)
    assert artifact.place == f"{bucket}/run/shards"
    assert artifact.as_input("shards").uri == f"{bucket}/run/shards"

    for damage in ("?" * 100, "?"):  # of the copy here: fetched again
        (artifact.path / "part-00001.txt").write_text(damage)
        assert letters_of(Artifact.open(out)) == "abc"


def test_what_is_complete_is_not_made_again_and_what_is_lost_alone_is(s3: S3Server, bucket: str) -> None:
    out = Path(f"{bucket}/run/shards")
    whole = in_store(s3, str(make(out, "abc").place))
    made: list[str] = []
    make(out, "abc", made=made)
    assert made == []
    for content in (None, b"b" * 7):
        Store.at(f"{bucket}/run/shards").delete("part-00001.txt")
        if content:
            Store.at(f"{bucket}/run/shards").write("part-00001.txt", content)
        forget_this_machine()
        made = []
        assert letters_of(make(out, "abc", made=made)) == "abc"
        assert made == ["part-00001.txt"]
        assert in_store(s3, f"{bucket}/run/shards") == whole


def test_verify_reads_the_stores_bytes_and_overwrite_makes_them_again(bucket: str) -> None:
    out = Path(f"{bucket}/run/shards")
    artifact = make(out, "abc")
    artifact.verify()
    Store.at(f"{bucket}/run/shards").write("part-00002.txt", b"d" * 100)
    with pytest.raises(Damaged, match=rf"{bucket}/run/shards/part-00002\.txt has other bytes than were written"):
        artifact.verify()
    made: list[str] = []
    make(out, "abc", overwrite=True, made=made).verify()
    assert made == ["part-00002.txt"]


def test_a_part_counts_by_its_checksum_and_never_because_it_is_there(bucket: str) -> None:
    """What an exception within an output stream leaves: a published file that is cut short."""
    out, store = Path(f"{bucket}/run/shards"), Store.at(f"{bucket}/run/shards")
    draft = begin(out, plan("abc"))
    assert isinstance(draft, Draft)
    make_part(draft, 0, "a", [])
    make_part(draft, 1, "b", [])
    store.write("part-00001.txt", b"b" * 50)
    store.write("part-00002.txt", b"c" * 100)  # without a receipt
    del draft
    forget_this_machine()
    made: list[str] = []
    assert letters_of(make(out, "abc", made=made)) == "abc"
    assert made == ["part-00001.txt", "part-00002.txt"]


def test_another_plan_needs_overwrite_which_keeps_the_old_until_the_new_is_whole(s3: S3Server, bucket: str) -> None:
    out = Path(f"{bucket}/run/shards")
    make(out, "abc")
    with pytest.raises(Stale, match=rf"{bucket}/run/shards was made from something else:\s+letters was 'abc'"):
        make(out, "xyz")
    draft = begin(out, plan("xyz"), overwrite=True)
    assert isinstance(draft, Draft)
    make_part(draft, 0, "x", [])
    assert letters_of(Artifact.open(out)) == "abc"
    del draft
    assert letters_of(make(out, "xyz", overwrite=True)) == "xyz"
    assert in_store(s3, f"{bucket}/run").keys() == {
        f"shards/{name}" for name in ("manifest.json", "part-00000.txt", "part-00001.txt", "part-00002.txt")
    }


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
@pytest.mark.parametrize("before", ["nothing", "complete"])
def test_a_kill_at_any_request_leaves_old_or_new_and_another_machine_finishes(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, before: str, torn: bool
) -> None:
    made = make(Path(f"{bucket}/undisturbed/shards"), "xyz")
    undisturbed = in_store(s3, made.place)
    for at in range(1, 200):
        uri = f"{bucket}/{at}/shards"
        if before == "complete":
            make(Path(uri), "abc")
        with monkeypatch.context() as patch:
            survived = _killed_at(at, patch, torn, lambda uri=uri: make(Path(uri), "xyz", overwrite=True))
        forget_this_machine()
        assert _looked_at(uri) in ({"xyz", "abc"} if before == "complete" else {"xyz", "Unfinished", "Misuse"})
        make(Path(uri), "xyz", overwrite=True)
        assert in_store(s3, f"{bucket}/{at}") == {f"shards/{name}": text for name, text in undisturbed.items()}
        if survived:
            assert at > 10
            return


def _killed_at(at: int, patch: pytest.MonkeyPatch, torn: bool, work: Callable[[], Any]) -> bool:
    """Whether `work` came to its end before its request number `at`; an upload is cut short where `torn`."""
    left, write = at, Store.write

    def armed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(store: Store, *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if torn and arguments and isinstance(arguments[0], Path):
                    write(store, arguments[1], arguments[0].read_bytes()[:50])
                raise Killed
            return operation(store, *arguments)

        return call

    for name in ("upload", "write", "delete", "delete_folder", "copy"):
        patch.setattr(Store, name, armed(getattr(Store, name)))
    try:
        work()
    except Killed:
        return False
    return True


def _looked_at(uri: str) -> str:
    try:
        return letters_of(Artifact.open(Path(uri)))
    except Misuse as error:
        return type(error).__name__


def test_what_is_unfinished_or_missing_is_told(bucket: str) -> None:
    out = Path(f"{bucket}/run/shards")
    with pytest.raises(Misuse, match=rf"there is nothing at {bucket}/run/shards; give the address"):
        Artifact.open(out)
    draft = begin(out, plan("abc"))
    with pytest.raises(Unfinished, match=rf"{bucket}/run/shards holds unfinished shards; run the same command again"):
        Artifact.open(out)
    assert isinstance(draft, Draft)
    assert find_part(draft.path, "part-00000.txt") is None
    Store.at(f"{bucket}/mine").write("holiday.jpg", b"...")
    with pytest.raises(Misuse, match=rf"{bucket}/mine has no manifest.json: it is not a latentbits artifact"):
        Artifact.open(Path(f"{bucket}/mine"))
    with pytest.raises(Misuse, match=rf"{bucket}/mine holds files that latentbits did not write"):
        begin(Path(f"{bucket}/mine"), plan("abc"))


def test_inputs_are_found_where_they_were_and_beside_a_run_that_was_moved(s3: S3Server, bucket: str) -> None:
    first = make(Path(f"{bucket}/run/shards"), "abc")
    codes = make_of(Path(f"{bucket}/run/codes"), first)
    assert Artifact.open(codes.input_path("shards")).fingerprint == first.fingerprint
    for name, content in s3.tree(f"{bucket}/run").items():
        Store.at(f"{bucket}/moved").write(name, content)
    Store.at(f"{bucket}/run").delete_folder()
    forget_this_machine()
    moved = Artifact.open(Path(f"{bucket}/moved/codes"))
    found = working_folder_of(moved.input_path("shards"))
    assert found is not None
    assert found[0].uri == f"{bucket}/moved/shards"


def make_of(out: Path, source: Artifact) -> Artifact:
    draft = begin(out, plan("k", "codes", (source.as_input("shards"),)))
    assert isinstance(draft, Draft)
    return draft.finish([make_part(draft, 0, "k", [])], {})


@pytest.mark.parametrize(
    ("place", "uri"),
    [
        (Path("s3://bucket/run/shards"), "s3://bucket/run/shards"),
        (Path("s3://bucket/run") / "shards", "s3://bucket/run/shards"),
        ("s3://bucket/run/", "s3://bucket/run"),
        (Path("/data/run"), None),
        (Path("runs/s3"), None),
        ("file:///data/run", None),
    ],
)
def test_a_uri_is_told_from_a_path(place: Path | str, uri: str | None) -> None:
    assert uri_of(place) == uri


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host/run", "ftp:// is no storage that is read"),
        ("s3://key:secret@bucket/run", "must not hold keys; put them in the environment"),
        ("s3://bucket/../run", "names no folder"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(place: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        uri_of(place)


def test_a_bucket_that_is_not_there_and_a_store_that_is_down_are_one_message_each(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Misuse, match=r"there is no bucket s3://no-such-bucket; make it, or give another one"):
        make(Path("s3://no-such-bucket/run/shards"), "abc")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(LatentbitsError, match=rf"the store of {bucket} does not answer at http://127.0.0.1:9"):
        Artifact.open(Path(f"{bucket}/run/shards"))


def test_no_permission_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="2") as strict:
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LATENTBITS_CACHE", str(tmp_path))
        uri = strict.bucket()
        with pytest.raises(
            Misuse, match=rf"no permission to \w+ {uri}/run/.*needs to list, get, put and delete"
        ) as told:
            make(Path(f"{uri}/run/shards"), "abc")
        assert "secret" not in str(told.value)


def test_nothing_that_is_written_holds_a_secret(s3: S3Server, bucket: str) -> None:
    make(Path(f"{bucket}/run/shards"), "abc")
    everything = [*s3.tree(bucket).values(), *(path.read_bytes() for path in root().rglob("*") if path.is_file())]
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert not any(secret.encode() in content for content in everything)


ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tests.pipelines.test_artifact import make_part, plan
from pipelines.files import writer_lock
from pipelines.artifact import begin
writer_lock.RENEWED_S = 0.5
draft = begin(Path(sys.argv[1]), plan("abc"))
make_part(draft, 0, "a", [])
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> Path:
    return Path(f"{bucket}/run/shards") if request.param == "store" else tmp_path / "shards"


@pytest.fixture
def holder(place: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is writing the artifact."""
    command = [sys.executable, "-c", HOLD, str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_the_first_is_and_a_dead_one_blocks_nobody(
    place: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(Misuse, match=rf"is being written by process {holder.pid} on .*; wait for it, stop it, or"):
        make(place, "abc")
    with pytest.raises(Stale):
        make(place, "xyz")
    with pytest.raises(Misuse, match="is being written by process"):
        make(place, "xyz", overwrite=True)
    holder.kill()
    holder.wait()
    made: list[str] = []
    assert letters_of(make(place, "abc", made=made)) == "abc"
    assert made == ["part-00001.txt", "part-00002.txt"]


def test_a_writer_on_another_machine_is_seen_by_its_lease(
    place: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if uri_of(place) is None:
        pytest.skip("a folder has a lock")
    monkeypatch.setenv("LATENTBITS_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("pipelines.files.writer_lock.socket.gethostname", lambda: "another")
    with pytest.raises(Misuse, match=rf"is being written by process {holder.pid} on "):
        make(place, "abc")
    holder.kill()
    monkeypatch.setattr("pipelines.files.writer_lock.FREE_AFTER_S", 3.0)
    assert letters_of(make(place, "abc")) == "abc"
