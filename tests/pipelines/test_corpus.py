import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus import CorpusConfig, Document, Rejection, corpus_inputs, plan_slices, read_slice
from pipelines.files import digests
from vae_core.errors import Damaged, Misuse

ROWS = [
    {"key": "one", "text": 'first line\nsecond, "quoted" line', "topic": "a", "year": "1999"},
    {"key": "two", "text": "naïve 日本語 \U0001f600", "topic": "b", "year": "2001"},
    {"key": "three", "text": "x" * 5000, "topic": "a", "year": "2024"},
]


def read(config: CorpusConfig, slice_bytes: int | None = None) -> list[Document | Rejection]:
    return [row for piece in plan_slices(config, slice_bytes) for row in read_slice(config, piece)]


def documents(config: CorpusConfig, slice_bytes: int | None = None) -> list[Document]:
    rows = read(config, slice_bytes)
    assert all(isinstance(row, Document) for row in rows), rows
    return [row for row in rows if isinstance(row, Document)]


def reasons(config: CorpusConfig) -> dict[int, str]:
    """Kind of each rejection by position."""
    return {row.position: row.reason.partition(":")[0] for row in read(config) if isinstance(row, Rejection)}


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


def compressed(path: Path, ending: str) -> Path:
    target = path.with_name(f"{path.name}.{ending}")
    if ending == "gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(target), "zstd") as stream:
            stream.write(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("kind", "write", "ending"),
    [
        ("parquet", write_parquet, ""),
        *(("jsonl", write_jsonl, ending) for ending in ("", "gz", "zst")),
        *(("csv", write_csv, ending) for ending in ("", "gz", "zst")),
    ],
)
def test_every_format_gives_the_same_documents(
    tmp_path: Path, kind: str, write: Callable[[Path], None], ending: str
) -> None:
    path = tmp_path / f"rows.{kind}"
    write(path)
    if ending:
        path = compressed(path, ending)
    config = CorpusConfig(files=(str(path),), id="key", labels="topic", metadata=("year",))
    assert [(d.id, d.text, d.labels, d.metadata, d.file, d.position) for d in documents(config, 1)] == [
        (row["key"], row["text"], [row["topic"]], {"year": row["year"]}, path.name, position)
        for position, row in enumerate(ROWS, 1)
    ]


@pytest.mark.parametrize("ending", ["", "gz", "zst"])
def test_a_text_file_is_documents_by_line_or_one_document(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \nfour\nfive")
    if ending:
        path = compressed(path, ending)
    lines = documents(CorpusConfig(files=(str(path),)))
    assert [(d.id, d.text) for d in lines] == [
        (f"{path.name}:{n}", t) for n, t in ((1, "one"), (4, "four"), (5, "five"))
    ]
    (whole,) = documents(CorpusConfig(files=(str(path),), txt="files"), 2)
    assert (whole.text, whole.position) == ("one\r\n\n  \nfour\nfive", 1)


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.one_of(st.text(max_size=30).map(lambda t: json.dumps({"text": t})), st.just(""), st.just("{"))),
    slice_bytes=st.integers(1, 200),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_documents_and_positions_do_not_depend_on_the_cuts(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], slice_bytes: int, end: str, last: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_text(end.join(lines) + (end if last else ""), newline="")
    config = CorpusConfig(files=(str(path),))
    try:
        rows = read(config, slice_bytes)
    except Misuse:
        assert not any("text" in line for line in lines)
        return
    expected = [
        (number, line == "{" or not json.loads(line)["text"].strip()) for number, line in enumerate(lines, 1) if line
    ]
    assert [(row.position, isinstance(row, Rejection)) for row in rows] == expected
    assert [row for row in rows if isinstance(row, Document)] == [
        Document(f"a.jsonl:{n}", json.loads(lines[n - 1])["text"], [], {}, "a.jsonl", n)
        for n, bad in expected
        if not bad
    ]
    assert sum(piece.bytes for piece in plan_slices(config, slice_bytes)) == path.stat().st_size


def test_parquet_slices_cover_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"document {i}" for i in range(1, 101)]}), path, row_group_size=7)
    config = CorpusConfig(files=(str(path),))
    assert len(plan_slices(config, 1)) == 15
    for slice_bytes in (1, 300, 10**9):
        assert [(d.position, d.text) for d in documents(config, slice_bytes)] == [
            (i, f"document {i}") for i in range(1, 101)
        ]


def test_each_bad_json_row_is_rejected_and_the_read_goes_on(tmp_path: Path) -> None:
    lines: list[tuple[bytes, str | None]] = [
        (b'{"id": "a", "text": "good"}', None),
        (b'{"id": "b", "text": ""}', "empty text"),
        (b'{"id": "c", "text": "' + b"y" * 101 + b'"}', "text too long"),
        (b'{"id": "d", "text": "\xff"}', "invalid UTF-8"),
        (b"{nope", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[1, 2]", "not an object"),
        (b'{"id": "e"}', "missing text"),
        (b'{"id": "f", "text": null}', "missing text"),
        (b'{"text": "no id"}', "missing id"),
        (b'{"id": "", "text": "empty id"}', "missing id"),
        (b'{"id": true, "text": "odd id"}', "missing id"),
        (b'{"id": "g", "text": 7}', "text not a string"),
        (b'{"id": "h", "text": "fine", "labels": {"a": 1}}', "labels not readable"),
        (b'{"id": "i", "text": "lone \\ud800 surrogate, NUL \\u0000"}', None),
        (b'{"id": 12, "text": "last"}', None),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    config = CorpusConfig(files=(str(path),), id="id", labels="labels", max_bytes=100)
    assert reasons(config) == {number: reason for number, (_, reason) in enumerate(lines, 1) if reason}
    kept = [row for row in read(config) if isinstance(row, Document)]
    assert [d.id for d in kept] == ["a", "i", "12"]
    assert "\ufffd" in kept[1].text
    assert kept[1].text.encode().endswith(b"NUL \0")


def test_bad_csv_records_are_rejected_and_quoted_newlines_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,n\n"two\nlines",1\nshort\na,b,c\n\xff,2\n"bad"quote,3\nend,4\n')
    config = CorpusConfig(files=(str(path),), metadata=("n",))
    rows = read(config)
    assert [(r.position, r.text, r.metadata["n"]) for r in rows if isinstance(r, Document)] == [
        (1, "two\nlines", "1"),
        (6, "end", "4"),
    ]
    assert reasons(config) == {2: "invalid CSV", 3: "invalid CSV", 4: "invalid UTF-8", 5: "invalid CSV"}


@pytest.mark.parametrize("padding", [0, 3_000_000])
def test_a_quote_that_is_never_closed_costs_its_own_line_alone(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "a.csv"
    rows = [f"row {number} {'x' * 90}" for number in range(1, 10 + padding // 100)]
    path.write_text("\n".join(["text", *rows[:4], '"opened ' + "y" * 20, *rows[4:]]) + "\n")
    found = read(CorpusConfig(files=(str(path),), max_bytes=1000))
    assert [row.text for row in found if isinstance(row, Document)] == rows
    (refused,) = (row for row in found if isinstance(row, Rejection))
    assert refused.position == 5
    assert "a quote is n" in refused.reason
    assert "begins in line 6" in refused.reason


def test_a_quote_that_another_record_closes_costs_the_lines_that_do_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"one",1\n"two,2\nthree,3\n"four",4\nfive,5\n')
    config = CorpusConfig(files=(str(path),))
    assert [row.text for row in read(config) if isinstance(row, Document)] == ["one", "three", "four", "five"]
    assert reasons(config) == {2: "invalid CSV"}


def test_an_endless_line_in_an_open_quote_costs_those_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"open\nfine\n' + "z" * 2_000_000 + "\nalso fine\n")
    config = CorpusConfig(files=(str(path),), max_bytes=1000)
    assert [row.text for row in read(config) if isinstance(row, Document)] == ["fine", "also fine"]
    assert reasons(config) == {1: "invalid CSV", 3: "invalid CSV"}


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    binary = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": text}), path)
    config = CorpusConfig(files=(str(path),))
    assert reasons(config) == {2: "invalid UTF-8"}
    assert [row.text for row in read(config) if isinstance(row, Document)] == ["good", "fine"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_endless_line_is_rejected_without_being_held_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write({"a.jsonl": b'{"text": "ok"}\n', "a.csv": b"text\nok\n", "a.txt": b"ok\n"}[name])
        for _ in range(60):
            file.write(b"z" * 1_000_000)
        file.write(b"\n" + (b'{"text": "after"}' if name == "a.jsonl" else b"after"))
    config = CorpusConfig(files=(str(path),), max_bytes=1000)
    pieces = plan_slices(config)
    tracemalloc.start()
    rows = [row for piece in pieces for row in read_slice(config, piece)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [isinstance(row, Rejection) for row in rows] == [False, True, False]
    assert peak < 8_000_000


def test_labels_metadata_filter_and_header(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "text": "From: me\nTo: you\n\nbody\n\nmore",
            "l": ["x", 3],
            "lang": "en",
            "f": 1.5,
            "i": 2,
            "b": True,
            "o": [1],
        },
        {"text": "no header", "l": 4, "lang": "en", "f": None},
        {"text": "filtered", "l": None, "lang": "de"},
        {"text": "null label", "l": None, "lang": ["fr", "en"]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(
        files=(str(path),), labels="l", metadata=("f", "i", "b", "o"), where={"lang": ("en",)}, cut_header=True
    )
    found = documents(config)
    assert [(d.text, d.labels, d.position) for d in found] == [
        ("body\n\nmore", ["x", "3"], 1),
        ("no header", ["4"], 2),
        ("null label", [], 4),
    ]
    assert found[0].metadata == {"f": 1.5, "i": 2, "b": True, "o": "[1]"}


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ("missing.jsonl", {}, "no file .*missing.jsonl"),
        ("good.json", {}, "nearest: good.jsonl"),
        ("*.parquet", {}, "no file matches"),
        ("odd.xyz", {}, "odd.xyz has no extension"),
        (".", {}, "is a folder"),
        ("good.jsonl", {"text": "body"}, "no field 'body'; its fields: id, label, text"),
        ("good.jsonl", {"labels": "labels"}, "no field 'labels'.*nearest: label"),
        ("good.csv", {"id": "ID"}, "no field 'ID'; its fields: id, label, text"),
        ("good.txt", {"labels": "topic"}, "plain text and has no field 'topic'"),
    ],
)
def test_a_wrong_request_says_what_is_there(tmp_path: Path, files: str, fields: dict[str, Any], message: str) -> None:
    (tmp_path / "good.jsonl").write_text('{"id": "a", "text": "b", "label": "c"}\n')
    (tmp_path / "good.csv").write_text("id,text,label\na,b,c\n")
    (tmp_path / "good.txt").write_text("line\n")
    (tmp_path / "odd.xyz").write_text("line\n")
    with pytest.raises(Misuse, match=message):
        plan_slices(CorpusConfig(files=(str(tmp_path / files),), **fields))


@pytest.mark.parametrize(
    ("kind", "write", "ending"),
    [("parquet", write_parquet, ""), ("jsonl", write_jsonl, "gz"), ("jsonl", write_jsonl, "zst")],
)
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, write: Callable[[Path], None], ending: str) -> None:
    path = tmp_path / f"rows.{kind}"
    write(path)
    path = compressed(path, ending) if ending else path
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Damaged, match=path.name):
        read(CorpusConfig(files=(str(path),)))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_without_a_byte_is_damaged(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    path.touch()
    with pytest.raises(Damaged, match=f"{path.name} has no bytes"):
        read(CorpusConfig(files=(str(path),)))


UNREADABLE = """
import os, sys
from pipelines.corpus import CorpusConfig, corpus_inputs, plan_slices
from vae_core.errors import Misuse
if os.geteuid() == 0:
    os.seteuid(65534)
for step in (plan_slices, corpus_inputs):
    try:
        step(CorpusConfig(files=(sys.argv[1],)))
    except Misuse as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.txt", "a.parquet"])
def test_a_file_that_may_not_be_read_is_named_with_the_reason(name: str) -> None:
    """In a process without the rights of root, to which no file is closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / name
        path.write_bytes(b"text")
        path.chmod(0)
        run = subprocess.run([sys.executable, "-c", UNREADABLE, path], capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stderr
    assert all(line.startswith(f"{path} cannot be read: Permission denied; ") for line in lines)


def test_files_of_one_name_get_ids_that_differ(tmp_path: Path) -> None:
    for folder in ("x", "x/y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("hello\n")
    config = CorpusConfig(files=(str(tmp_path / "**/*.txt"), str(tmp_path / "x/a.txt")))
    assert [d.id for d in documents(config)] == ["a.txt:1", "y/a.txt:1"]
    assert [item.name for item in corpus_inputs(config)] == ["file:a.txt", "file:y/a.txt"]


def test_inputs_hold_the_digest_of_the_content_and_remember_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    path = tmp_path / "big.txt"
    path.write_bytes(b"line\n" * 300_000)
    config = CorpusConfig(files=(str(path),))
    (item,) = corpus_inputs(config)
    assert (item.uri, item.fingerprint) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    assert item.fingerprint in (tmp_path / "cache/latentbits/digests.json").read_text()
    assert corpus_inputs(config) == (item,)
    times = path.stat()
    path.write_bytes(b"lime\n" * 300_000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert corpus_inputs(config)[0].fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
