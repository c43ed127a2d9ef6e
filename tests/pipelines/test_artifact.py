"""Artifacts, above all under kills: this file, run as a program, is the process that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifact import (
    Artifact,
    Draft,
    Input,
    Part,
    Plan,
    begin,
    checksum,
    find_part,
    record_part,
    replacing,
    require_disk,
    write_text,
)
from vae_core.errors import Damaged, Misuse, Stale, Unfinished

SOURCE = Input(name="corpus", uri="/data/corpus.jsonl", fingerprint="1" * 16)


def plan(letters: str, kind: str = "shards", inputs: tuple[Input, ...] = (SOURCE,)) -> Plan:
    return Plan(kind=kind, config={"letters": letters, "limits": {"bytes": 10}}, inputs=inputs)


def make(out: Path, letters: str, *, overwrite: bool = False, made: list[str] | None = None) -> Artifact:
    """A stage in miniature: one part for each letter, of equal names and sizes whatever the letters are."""
    draft = begin(out, plan(letters), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    parts = [make_part(draft, index, letter, [] if made is None else made) for index, letter in enumerate(letters)]
    return draft.finish(parts, {"documents": len(parts)})


def make_part(draft: Draft, index: int, letter: str, made: list[str]) -> Part:
    name = f"part-{index:05}.txt"
    if part := find_part(draft.path, name):
        return part
    made.append(name)
    with replacing(draft.path / name) as temporary:
        temporary.write_text(letter * 100)
    return record_part(draft.path, name, rows=1)


def letters_of(artifact: Artifact) -> str:
    return "".join(path.read_text()[0] for path in artifact.files(".txt"))


def tree(folder: Path) -> dict[str, str]:
    """Every path below `folder` with its contents; a manifest without its date."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_text() if path.is_file() else "a folder"
        if path.name == "manifest.json":
            content = json.dumps({key: value for key, value in json.loads(content).items() if key != "created"})
        found[str(path.relative_to(folder))] = content
    return found


# What was there before the killed command; what that command makes is the artifact of the letters xyz.


def nothing(out: Path) -> None:
    del out


def complete(out: Path) -> None:
    make(out, "abc")


def unfinished(out: Path) -> None:
    draft = begin(out, plan("abc"))
    assert isinstance(draft, Draft)
    make_part(draft, 0, "a", [])


def complete_with_an_unfinished_replacement(out: Path) -> None:
    complete(out)
    draft = begin(out, plan("mno"), overwrite=True)
    assert isinstance(draft, Draft)
    make_part(draft, 0, "m", [])


def same_with_a_lost_part(out: Path) -> None:
    (make(out, "xyz").path / "part-00001.txt").unlink()


def same_with_a_damaged_part(out: Path) -> None:
    (make(out, "xyz").path / "part-00001.txt").write_text("?" * 100)


NEVER_UNFINISHED = (complete, complete_with_an_unfinished_replacement)
BEFORE = (nothing, unfinished, same_with_a_lost_part, same_with_a_damaged_part, *NEVER_UNFINISHED)


@pytest.mark.parametrize("look", [False, True], ids=["run-again", "look-then-run-again"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_kill_at_any_file_operation_leaves_old_or_new_and_running_again_finishes(
    tmp_path: Path, before: Callable[[Path], None], look: bool
) -> None:
    command = [sys.executable, __file__, str(tmp_path), before.__name__, "look" if look else ""]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *killed, undisturbed = map(json.loads, result.stdout.splitlines())

    assert len(killed) > 20
    assert undisturbed["found"] == (["xyz"] if look else None)
    for kill in killed:
        assert kill["tree"] == undisturbed["tree"], f"operation {kill['at']}"
    if look:
        old = {"Misuse", "Unfinished"} if before not in NEVER_UNFINISHED else {"abc"}
        damaged = {"x?z"} if before is same_with_a_damaged_part else set()
        lost = {"FileNotFoundError"} if before is same_with_a_lost_part else set()
        assert {kill["found"][0] for kill in killed} <= {"xyz"} | old | damaged | lost


def kill_everywhere(folder: Path, before: Callable[[Path], None], look: bool) -> Iterator[dict[str, Any]]:
    """Kill the command at its first file operation, at its second and so on, until it has no more of them."""
    out = folder / "run" / "shards"
    for at in range(1, 1000):
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        before(out)
        survived = survives(at, out)
        found = look_at(out) if look else None
        make(out, "xyz", overwrite=True)
        yield {"at": at, "found": found, "tree": tree(out.parent)}
        if survived:
            return


def survives(at: int, out: Path) -> bool:
    child = os.fork()
    if child == 0:
        arm(at)
        make(out, "xyz", overwrite=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


def look_at(out: Path) -> list[str]:
    try:
        return [letters_of(Artifact.open(out))]
    except (Misuse, FileNotFoundError) as error:
        return [type(error).__name__]


def arm(at: int) -> None:
    """Make this process kill itself before its file operation number `at`; a write counts twice, to tear it."""
    left = at

    def hit() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def armed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            hit()
            return operation(*args, **options)

        return call

    def write(path: Path, text: str) -> None:
        with path.open("w") as file:
            hit()
            file.write(text[: len(text) // 2])
            file.flush()
            hit()
            file.write(text[len(text) // 2 :])

    for name in ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, armed(getattr(os, name)))
    Path.write_text = write  # type: ignore[assignment,method-assign]


def test_what_is_complete_is_not_made_again(tmp_path: Path) -> None:
    first = make(tmp_path / "shards", "abc")
    made: list[str] = []
    again = make(tmp_path / "shards", "abc", made=made)
    assert made == []
    assert again.manifest == first.manifest


def test_a_part_that_is_missing_or_cut_short_is_the_only_one_made_again(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    whole = tree(make(out, "abc").path)
    for damage in (Path.unlink, lambda path: os.truncate(path, 7)):
        damage(out / "part-00001.txt")
        made: list[str] = []
        assert letters_of(make(out, "abc", made=made)) == "abc"
        assert made == ["part-00001.txt"]
        assert tree(out) == whole


def test_verify_names_the_damaged_file_and_overwrite_makes_it_again(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    artifact = make(out, "abc")
    artifact.verify()
    (out / "part-00002.txt").write_text("d" * 100)

    with pytest.raises(Damaged, match=r"part-00002\.txt has other bytes than were written.*--overwrite"):
        artifact.verify()
    made: list[str] = []
    make(out, "abc", overwrite=True, made=made).verify()
    assert made == ["part-00002.txt"]


def test_verify_tells_a_missing_file_from_one_of_another_size(tmp_path: Path) -> None:
    artifact = make(tmp_path / "shards", "abc")
    os.truncate(artifact.path / "part-00000.txt", 7)
    with pytest.raises(Damaged, match=r"part-00000\.txt has 7 bytes and was written with 100"):
        artifact.verify()
    (artifact.path / "part-00000.txt").unlink()
    with pytest.raises(Damaged, match=r"part-00000\.txt is missing"):
        artifact.verify()


def test_a_checksum_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    printed = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True, check=True).stdout
    assert checksum(tmp_path / "file") == printed.split()[0]


@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_in_the_same_folder_is_refused_with_what_changed(tmp_path: Path, finished: bool) -> None:
    (complete if finished else unfinished)(tmp_path / "shards")
    changed = Plan(
        kind="shards",
        config={"letters": "abd", "limits": {"bytes": 20}, "where": {}},
        inputs=(
            Input(name="corpus", uri="elsewhere", fingerprint="2" * 16),
            SOURCE.model_copy(update={"name": "more"}),
        ),
    )
    with pytest.raises(Stale) as caught:
        begin(tmp_path / "shards", changed)
    message = str(caught.value)
    assert ("was made from something else" if finished else "was begun, not finished, from something else") in message
    for line in (
        "letters was 'abc' and is now 'abd'",
        "limits.bytes was 10 and is now 20",
        "where was None and is now {}",
        "input more is new",
        "input corpus has changed",
        "--overwrite",
    ):
        assert line in message


def test_a_setting_that_is_the_same_after_json_is_not_called_changed() -> None:
    """Manifests hold lists where configs hold tuples."""
    config = {"files": ("a", "b"), "bits": 64}
    read = Plan.model_validate_json(Plan(kind="shards", config=config, inputs=()).model_dump_json())
    now = Plan(kind="shards", config=config | {"bits": 128}, inputs=())
    assert read.differences(now) == ["bits was 64 and is now 128"]


def test_inputs_in_another_order_are_a_difference_that_is_named() -> None:
    other = Input(name="more", uri="there", fingerprint="2" * 16)
    one, two = plan("abc", inputs=(SOURCE, other)), plan("abc", inputs=(other, SOURCE))
    assert one.fingerprint != two.fingerprint
    assert one.differences(two) == ["its inputs had another order"]


def test_a_fingerprint_does_not_depend_on_where_the_inputs_lie() -> None:
    moved = SOURCE.model_copy(update={"uri": "s3://bucket/corpus.jsonl"})
    assert plan("abc").fingerprint == plan("abc", inputs=(moved,)).fingerprint
    assert plan("abc").fingerprint != plan("abc", kind="codes").fingerprint


def test_another_kind_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "run", "abc")
    with pytest.raises(Stale, match="holds shards, not codes"):
        begin(tmp_path / "run", plan("abc", kind="codes"))


def test_a_folder_or_file_that_latentbits_did_not_write_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(Misuse, match="holds files that latentbits did not write"):
            begin(tmp_path, plan("abc"), overwrite=overwrite)
        with pytest.raises(Misuse, match="is a file"):
            begin(tmp_path / "thesis.tex", plan("abc"), overwrite=overwrite)
    assert tree(tmp_path) == {"thesis.tex": "years of work"}


def test_opening_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is not a folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(Misuse, match="it is not a latentbits artifact"):
        Artifact.open(tmp_path)
    unfinished(tmp_path / "begun")
    with pytest.raises(Unfinished, match="run the same command again"):
        Artifact.open(tmp_path / "begun")
    with pytest.raises(Misuse, match="holds shards, and codes is needed here"):
        Artifact.open(make(tmp_path / "shards", "abc").path, kind="codes")
    (tmp_path / "shards" / "manifest.json").write_text("{")
    with pytest.raises(Damaged, match=r"manifest\.json cannot be read as a manifest"):
        Artifact.open(tmp_path / "shards")


def test_a_moved_run_folder_still_finds_its_inputs(tmp_path: Path) -> None:
    shards = make(tmp_path / "run" / "shards", "abc")
    codes = begin(tmp_path / "run" / "codes", plan("abc", kind="codes", inputs=(shards.as_input("shards"),)))
    assert isinstance(codes, Draft)
    assert codes.finish([], {}).input_path("shards") == shards.path

    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = Artifact.open(tmp_path / "moved" / "codes", kind="codes")
    assert moved.input_path("shards") == tmp_path / "moved" / "shards"
    assert Artifact.open(moved.input_path("shards")).fingerprint == moved.input("shards").fingerprint
    with pytest.raises(Misuse, match=r"was not made from model; its inputs: \['shards'\]"):
        moved.input("model")


def test_parts_may_lie_in_folders_and_carry_sums(tmp_path: Path) -> None:
    draft = begin(tmp_path / "index", plan("abc", kind="index"))
    assert isinstance(draft, Draft)
    (draft.path / "segments" / "00000").mkdir(parents=True)
    write_text(draft.path / "segments" / "00000" / "codes.faiss", "codes")
    part = record_part(draft.path, "segments/00000/codes.faiss", rows=5, statistics={"bytes": 80})
    assert find_part(draft.path, "segments/00000/codes.faiss") == part
    index = draft.finish([part], {})
    assert Artifact.open(index.path).manifest.parts == (part,)
    index.verify()


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half of the n")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert tree(tmp_path) == {"file": "old"}


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(Misuse, match="GB free and this stage writes about"):
        require_disk(tmp_path / "not" / "there" / "yet", 1 << 60)


@pytest.mark.parametrize("suffix", ["old", "new"])
def test_a_neighbour_that_is_called_old_or_new_is_not_touched(tmp_path: Path, suffix: str) -> None:
    make(tmp_path / f"shards.{suffix}", "mno")
    make(tmp_path / "shards", "abc")
    make(tmp_path / "shards", "xyz", overwrite=True)
    assert letters_of(Artifact.open(tmp_path / "shards")) == "xyz"
    assert letters_of(Artifact.open(tmp_path / f"shards.{suffix}")) == "mno"


def test_overwriting_through_a_link_replaces_what_the_link_points_to(tmp_path: Path) -> None:
    make(tmp_path / "disk" / "shards", "abc")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "shards")
    make(tmp_path / "link", "xyz", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert letters_of(Artifact.open(tmp_path / "link")) == letters_of(Artifact.open(tmp_path / "disk" / "shards"))
    assert letters_of(Artifact.open(tmp_path / "link")) == "xyz"


if __name__ == "__main__":
    place, name, look = sys.argv[1:]
    (chosen,) = (before for before in BEFORE if before.__name__ == name)
    os.fsync = lambda _: None  # slow, and for a killed process, unlike a dead machine, without effect
    for record in kill_everywhere(Path(place), chosen, bool(look)):
        print(json.dumps(record))  # noqa: T201
