"""Changes to an index against a plain dictionary of documents; kills at every file operation; readers and writers."""

import fcntl
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_files import write_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jobs.inspect import describe
from pipelines.artifact import MANIFEST, Artifact
from pipelines.index import IndexConfig, index
from pipelines.index_changes import MERGED, add, compact, delete, segments_to_merge
from pipelines.indexing.repair import repair
from pipelines.indexing.versions import newest
from pipelines.search import Index, hits
from vae_core.errors import Damaged, LatentbitsError, Misuse, Stale

CODES = np.random.default_rng(7).integers(0, 256, (103, 4), dtype=np.uint8)


def build(folder: Path, codes: np.ndarray = CODES, size: int = 40) -> Path:
    write_codes(folder / "codes", codes, files=2)
    index(folder / "codes", folder / "index", IndexConfig(segment_documents=size))
    return folder / "index"


def table(ids: list[str], codes: np.ndarray, year: int = 1) -> pa.Table:
    count = len(ids)
    return pa.table(
        {
            "id": ids,
            "code": pa.array([code.tobytes() for code in codes], pa.binary(codes.shape[1])),
            "component": pa.array(np.zeros(count), pa.uint16()),
            "confidence": pa.array(np.full(count, 0.75), pa.float32()),
            "labels": pa.array([["new"]] * count, pa.list_(pa.string())),
            "text": [f"text {id}" for id in ids],
            "metadata": pa.array([{"year": year}] * count, pa.struct([("year", pa.int64())])),
        }
    ).replace_schema_metadata({b"model": b"cafe"})


def contents(path: Path) -> dict[str, bytes]:
    """Every document that can be a hit, and its code."""
    opened = Index.open(path)
    if not len(opened):
        return {}
    found = opened.search(np.ones((1, opened.bits), np.float32), len(opened))
    rows = found.rows[0][found.rows[0] >= 0]
    return {id: opened.code(int(row)).tobytes() for id, row in zip(opened.ids(rows), rows, strict=True)}


def files_of(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


class Changes(RuleBasedStateMachine):
    """Any order of changes leaves what a dictionary would hold, and what was opened before stays as it was."""

    folder: Path

    @initialize(size=st.integers(3, 30))
    def begin(self, size: int) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        codes = np.random.default_rng(1).integers(0, 256, (12, 2), dtype=np.uint8)
        self.size, self.path = size, build(self.folder, codes, size=size)
        self.known = {f"d{row}": code.tobytes() for row, code in enumerate(codes)}
        self.reader = Index.open(self.path)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(names=st.sets(st.integers(0, 20), min_size=1, max_size=6), seed=st.integers(0, 99), upsert=st.booleans())
    def add(self, names: set[int], seed: int, upsert: bool) -> None:
        ids = [f"d{name}" for name in sorted(names)]
        codes = np.random.default_rng(seed).integers(0, 256, (len(ids), 2), dtype=np.uint8)
        if not upsert and self.known.keys() & set(ids):
            with pytest.raises(Misuse, match="--upsert replaces what is there"):
                add(self.path, table(ids, codes))
            return
        add(self.path, table(ids, codes), upsert=upsert)
        self.known |= {id: code.tobytes() for id, code in zip(ids, codes, strict=True)}

    @rule(names=st.sets(st.integers(0, 20), min_size=1, max_size=4))
    def delete(self, names: set[int]) -> None:
        ids = {f"d{name}" for name in names}
        if not ids <= self.known.keys():
            with pytest.raises(Misuse, match="nothing was deleted"):
                delete(self.path, sorted(ids))
            return
        delete(self.path, sorted(ids))
        self.known = {id: code for id, code in self.known.items() if id not in ids}

    @rule()
    def compact(self) -> None:
        compact(self.path)
        version = newest(Artifact.open(self.path))
        assert len(version.segments) == max(1, -(-len(self.known) // self.size))

    @rule()
    def refresh(self) -> None:
        self.reader.refresh()
        assert len(self.reader) == len(self.known)

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        opened = Index.open(self.path)
        assert contents(self.path) == self.known
        assert len(opened) == len(self.known)
        for name in range(21):
            row = opened.row_of(f"d{name}")
            assert (None if row is None else opened.code(row).tobytes()) == self.known.get(f"d{name}")
        describe(self.path, verify=True)

    @invariant()
    def an_open_index_goes_on_answering(self) -> None:
        found = self.reader.search(np.ones((1, 16), np.float32), 30)
        assert np.count_nonzero(found.rows >= 0) == len(self.reader)


Changes.TestCase.settings = settings(max_examples=8, stateful_step_count=8, deadline=None)
TestChanges = Changes.TestCase


def test_an_answer_is_the_same_before_and_after_compaction(tmp_path: Path) -> None:
    path = build(tmp_path)
    add(path, table(["n1", "n2"], CODES[:2]))
    delete(path, ["d5", "d77"])
    queries = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    before = Index.open(path)
    for where in (None, "year >= 10 or labels = 'new'"):
        expected = hits(before, before.search(queries, 20, where=where))
        compact(path)
        after = Index.open(path)
        assert len(after.segments) == 3  # of 40 documents, as the index was made
        assert hits(after, after.search(queries, 20, where=where)) == expected


def test_many_small_additions_make_few_segments_and_lose_nothing(tmp_path: Path) -> None:
    path = build(tmp_path)
    codes = np.random.default_rng(3).integers(0, 256, (150, 4), dtype=np.uint8)
    expected = contents(path)
    for number, code in enumerate(codes):
        add(path, table([f"new {number}"], code[None]))
        expected[f"new {number}"] = code.tobytes()
        if number % 10 == 9:  # the one that was added nine additions ago
            delete(path, [f"new {number - 8}"])
            del expected[f"new {number - 8}"]
    assert contents(path) == expected
    assert len(newest(Artifact.open(path)).segments) <= 3 + 7 * 3  # those of the stage, and 7 of each magnitude
    assert len(list((path / "segments").iterdir())) <= 3 + 7 * 3 + 8  # those of the version before too
    (path / newest(Artifact.open(path)).segments[-1].parts[0].name).unlink()
    repair(path)
    assert contents(path) == expected


def test_an_old_reader_reads_on_after_additions_that_removed_its_segments(tmp_path: Path) -> None:
    path = build(tmp_path)
    add(path, table(["mine"], CODES[5:6]))
    old = Index.open(path)
    for number in range(3 * MERGED):
        add(path, table([f"later {number}"], CODES[:1]))
    assert not (path / "segments/v00000001-00000").exists()
    assert len(old) == len(CODES) + 1
    assert [hit.id for hit in old.like("mine", 1)[0]] == ["d5"]
    assert old.ids(np.array([len(CODES)])) == ["mine"]


@given(sizes=st.lists(st.integers(1, 5000), max_size=300))
def test_segments_are_as_few_as_the_logarithm_of_what_was_added(sizes: list[int]) -> None:
    """Whatever is added in whatever order: at most 7 of each magnitude, and none is written again too often."""
    segments: list[int] = []
    written = 0
    for size in sizes:
        segments.append(size)
        written += size
        if count := segments_to_merge(segments):
            written += sum(segments[-count:])
            segments[-count:] = [sum(segments[-count:])]
    magnitudes = 1 + int(math.log(max(sum(sizes), 1), MERGED))
    assert sum(segments) == sum(sizes)
    assert len(segments) <= (MERGED - 1) * magnitudes
    assert written <= sum(sizes) * (1 + magnitudes)


def test_hits_are_of_the_version_that_was_searched(tmp_path: Path) -> None:
    path = build(tmp_path)
    opened = Index.open(path)
    found = opened.search(np.ones((1, 32), np.float32), 5)
    expected = hits(opened, found)
    delete(path, [expected[0][0]["id"], "d0"])
    compact(path)
    assert opened.refresh()
    assert hits(opened, found) == expected
    assert not opened.refresh()


def test_codes_of_another_model_width_or_kind_are_refused(tmp_path: Path) -> None:
    path = build(tmp_path)
    narrow = np.zeros((1, 2), np.uint8)
    with pytest.raises(Misuse, match="codes of 16 bits and the index 32"):
        add(path, table(["x"], narrow))
    with pytest.raises(Stale, match="of the model f00d and the index those of cafe"):
        add(path, table(["x"], CODES[:1]).replace_schema_metadata({b"model": b"f00d"}))
    texts = table(["x"], CODES[:1])
    years = pa.array([{"year": "late"}], pa.struct([("year", pa.string())]))
    with pytest.raises(Misuse, match=r"metadata is .* in the table and .* in the index"):
        add(path, texts.set_column(6, "metadata", years))
    with pytest.raises(Misuse, match="the id 'x' is there twice"):
        add(path, table(["x", "y", "x"], CODES[:3]))
    with pytest.raises(Misuse, match="no column 'code'"):
        add(path, texts.drop_columns(["code"]))
    assert contents(path).keys() == {f"d{row}" for row in range(103)}
    assert files_of(path) == {*(part.name for part in Artifact.open(path).manifest.parts), MANIFEST, ".lock"}


def test_ids_that_are_there_are_named(tmp_path: Path) -> None:
    path = build(tmp_path)
    with pytest.raises(Misuse, match=r"has the document 'd0', 'd1', 'd2' and 100 more already; --upsert"):
        add(path, tmp_path / "codes")
    with pytest.raises(Misuse, match="has no document 'x', 'y'; nothing was deleted"):
        delete(path, ["x", "d1", "y"])


def test_the_index_stage_leaves_changes_alone(tmp_path: Path) -> None:
    path = build(tmp_path)
    delete(path, ["d0"])
    compact(path)
    index(tmp_path / "codes", path, IndexConfig(segment_documents=40))
    index(tmp_path / "codes", path, IndexConfig(segment_documents=40), overwrite=True)
    assert contents(path).keys() == {f"d{row}" for row in range(1, 103)}


@pytest.mark.parametrize("name", ["codes.faiss", "lookup.npy"])
@pytest.mark.parametrize("compacted", [False, True])
def test_files_are_made_anew_from_the_codes(tmp_path: Path, name: str, compacted: bool) -> None:
    """After changes of every kind, of codes from an artifact and from a table."""
    path = build(tmp_path)
    write_codes(tmp_path / "more", CODES[:7] ^ 255)
    add(path, tmp_path / "more", upsert=True)
    add(path, table(["d1", "n1"], CODES[20:22]), upsert=True)
    delete(path, ["d2", "d50"])
    if compacted:
        compact(path)
    known = contents(path)
    broken = [file for file in path.glob(f"segments/*/{name}") if f"{file.parent.name}/{name}" in _current(path)]
    for number, file in enumerate(broken):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content) if number % 2 else file.unlink()
    with pytest.raises(Damaged, match=name):
        describe(path, verify=True)
    assert sorted(repair(path)) == sorted(str(file.relative_to(path)) for file in broken)
    describe(path, verify=True)
    assert contents(path) == known


def _current(path: Path) -> set[str]:
    version = newest(Artifact.open(path))
    return {part.name.removeprefix("segments/") for record in version.segments for part in record.parts}


def test_what_cannot_be_made_anew_is_said(tmp_path: Path) -> None:
    path = build(tmp_path)
    (path / "segments" / "00000" / "codes.faiss").unlink()
    shutil.rmtree(tmp_path / "codes")
    with pytest.raises(LatentbitsError, match="codes"):
        repair(path)


def test_documents_without_a_known_word_are_never_hits(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", CODES)
    file = tmp_path / "codes" / "part-00000.parquet"
    codes, sure = CODES.copy(), np.full(103, 0.75, np.float32)
    codes[[3, 60]], sure[[3, 60]] = 0, np.exp(np.float32(-np.log(2)))
    written = pq.read_table(file)
    written = written.set_column(1, "code", pa.array([code.tobytes() for code in codes], pa.binary(4)))
    pq.write_table(written.set_column(3, "confidence", pa.array(sure)), file)
    index(tmp_path / "codes", tmp_path / "index", IndexConfig(segment_documents=50))
    for change in (lambda: None, lambda: delete(tmp_path / "index", ["d3"]), lambda: compact(tmp_path / "index")):
        change()
        opened = Index.open(tmp_path / "index")
        assert opened.uninformative == (2 if opened.version == 0 else 1)
        for rank in ("log-odds", "hamming"):
            found = opened.search(np.full((1, 32), -1.0, np.float32), 103, rank)
            assert not {"d3", "d60"} & set(opened.ids(found.rows[found.rows >= 0]))
            assert np.count_nonzero(found.rows >= 0) == 101


def test_a_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    path = build(tmp_path)
    with (path / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LatentbitsError, match="is being changed by another command"):
            delete(path, ["d0"])
    delete(path, ["d0"])


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each of two writers repeats what it was refused, until all of its deletions are made."""
    path = build(tmp_path)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipelines.index_changes import delete\n"
        "from vae_core.errors import LatentbitsError\n"
        "for id in sys.argv[2:]:\n"
        "    while True:\n"
        "        try:\n            delete(Path(sys.argv[1]), [id])\n            break\n"
        "        except LatentbitsError as error:\n"
        "            assert 'another command' in str(error), error\n            time.sleep(0.005)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), *(f"d{row}" for row in range(first, 20, 2))])
        for first in (0, 1)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert contents(path).keys() == {f"d{row}" for row in range(20, 103)}
    assert Index.open(path).version == 20


def test_searches_go_on_while_an_index_changes(tmp_path: Path) -> None:
    path = build(tmp_path)
    reader, stop, failed = Index.open(path), threading.Event(), []

    def ask() -> None:
        queries = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
        while not stop.is_set():
            try:
                reader.refresh()
                found = hits(reader, reader.search(queries, 20, where="year >= 0"))
                assert all(len(some) == 20 for some in found)
                assert len(hits(Index.open(path), Index.open(path).search(queries, 5))[0]) == 5
            except Exception as error:  # whatever it is, the test tells it
                failed.append(error)
                return

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for round_ in range(6):
        add(path, table([f"r{round_}-{n}" for n in range(30)], CODES[:30]))
        delete(path, [f"d{round_}", f"r{round_}-3"])
        compact(path)
    stop.set()
    for asker in askers:
        asker.join()
    assert not failed
    assert reader.refresh() in (True, False)
    assert len(reader) == 103 + 6 * 28


KILLED_AT = """
import os, sys
from pathlib import Path
left = int(sys.argv[2])
def counted(name):
    plain = getattr(os, name)
    def run(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return plain(*args, **kwargs)
    setattr(os, name, run)
import pipelines.index_changes
import shutil
for name in ("replace", "rename", "link", "unlink", "fsync", "rmdir", "mkdir"):
    counted(name)
sys.path.insert(0, sys.argv[4])
from test_index_changes import CODES, table
change, path = sys.argv[3], Path(sys.argv[1])
if change in ("upsert", "merge"):
    pipelines.index_changes.add(path, table(["d1", "n1"], CODES[20:22]), upsert=True)
if change == "delete":
    pipelines.index_changes.delete(path, ["d9", "d70"])
if change == "compact":
    pipelines.index_changes.compact(path)
print("done", left)
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", ["upsert", "merge", "delete", "compact"])
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_version(tmp_path: Path, change: str) -> None:
    path = build(tmp_path, CODES[:80], size=30)
    add(path, table(["a1"], CODES[:1]))
    delete(path, ["d3"])
    if change == "merge":  # one segment more, and they are made one
        for number in range(MERGED - 2):
            add(path, table([f"b{number}"], CODES[:1]))
    old = contents(path)
    changed = old | {"d1": CODES[20].tobytes(), "n1": CODES[21].tobytes()}
    new = {
        "upsert": changed,
        "merge": changed,
        "delete": {id: code for id, code in old.items() if id not in ("d9", "d70")},
        "compact": old,
    }[change]
    seen = set()
    for operation in range(200):
        copy = tmp_path / f"copy-{operation}"
        shutil.copytree(path, copy)
        said = _killed(copy, operation, change)
        found = contents(copy)
        describe(copy, verify=True)
        assert found in (old, new), operation
        seen.add(found == new)
        assert _again(copy, change) == new
        shutil.rmtree(copy)
        if said.returncode == 0:
            break
        assert said.returncode == 9, said.stderr
    else:
        pytest.fail("the change has more file operations than were tried")
    assert operation > 5
    assert seen == {True, False} or change == "compact"


def _killed(path: Path, operation: int, change: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", KILLED_AT, str(path), str(operation), change, str(Path(__file__).parent)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."})


def _again(path: Path, change: str) -> dict[str, bytes]:
    """What is there once whoever was killed does it again."""

    def upsert() -> int:
        return add(path, table(["d1", "n1"], CODES[20:22]), upsert=True)

    again: dict[str, Callable[[], object]] = {
        "upsert": upsert,
        "merge": upsert,
        "delete": lambda: delete(path, [id for id in ("d9", "d70") if Index.open(path).row_of(id) is not None]),
        "compact": lambda: compact(path),
    }
    if change != "delete" or Index.open(path).row_of("d9") is not None:
        again[change]()
    describe(path, verify=True)
    return contents(path)
