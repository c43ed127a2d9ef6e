"""The demo's corpus, checked against `inspect` and against sources written here."""

import inspect
import json
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from jobs.docstrings import LABEL_FLOOR, STDLIB, Package, read_package, write_docstrings

LONG = "A sentence that is long enough to be worth finding again, for it says what the thing is good for."


def package(folder: Path, sources: dict[str, str], limit: int = 100) -> Package:
    for name, source in sources.items():
        path = folder / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return Package("tiny", folder / "tiny", "tiny", limit)


@pytest.fixture(scope="module")
def corpus(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    del ray_cluster
    out = write_docstrings(tmp_path_factory.mktemp("corpus") / "docstrings.jsonl", limit=12_000)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_a_document_holds_what_inspect_reads_and_names_it_without_its_package() -> None:
    harvest = read_package(Package("textwrap", Path(textwrap.__file__), STDLIB, 100))
    (wrap,) = [document for document in harvest.documents if document["id"] == "textwrap.wrap"]
    assert wrap == {
        "id": "textwrap.wrap",
        "text": f"wrap\n{inspect.getdoc(textwrap.wrap)}".strip(),
        "labels": [STDLIB],
        "kind": "function",
    }


def test_modules_classes_methods_and_functions_are_told_apart_and_private_ones_left_out(tmp_path: Path) -> None:
    source = f'''"""{LONG}"""
class HTTPServer:
    """{LONG}"""
    def serveForever(self):
        """{LONG}"""
        def inner():
            """{LONG}"""
    def _hidden(self):
        """{LONG}"""
async def open_all():
    """{LONG}"""
'''
    harvest = read_package(package(tmp_path, {"web/server.py": source}))
    assert {document["id"]: document["kind"] for document in harvest.documents} == {
        "tiny.web.server": "module",
        "tiny.web.server.HTTPServer": "class",
        "tiny.web.server.HTTPServer.serveForever": "method",
        "tiny.web.server.open_all": "function",
    }
    assert harvest.documents[2]["text"] == f"web server http serve forever\n{LONG}"


def test_tests_vendored_private_and_generated_files_are_left_out(tmp_path: Path) -> None:
    left_out = ["tests/a.py", "_vendor/b.py", "third_party/c.py", "d_pb2.py", "test_e.py", "_private/f.py"]
    sources = dict.fromkeys([*left_out, "kept.py", "_kept.py"], f'"""{LONG}"""\n')
    harvest = read_package(package(tmp_path, sources))
    assert [document["id"] for document in harvest.documents] == ["tiny._kept", "tiny.kept"]


def test_a_file_that_python_cannot_parse_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    sources = {"a.py": f'"""{LONG}"""\ndef (:\n', "b.py": f'"""{LONG}"""\0', "c.py": f'"""{LONG}"""\n'}
    harvest = read_package(package(tmp_path, sources))
    assert [document["id"] for document in harvest.documents] == ["tiny.c"]
    assert harvest.broken == 2


def test_short_docstrings_are_dropped_and_the_limit_holds(tmp_path: Path) -> None:
    sources = {"short.py": '"""Return the name."""\n'} | {f"m{i}.py": f'"""{LONG} {i}"""\n' for i in range(9)}
    harvest = read_package(package(tmp_path, sources, limit=3))
    assert [document["id"] for document in harvest.documents] == ["tiny.m0", "tiny.m1", "tiny.m2"]


def test_half_a_surrogate_pair_can_be_written_as_utf_8(tmp_path: Path) -> None:
    harvest = read_package(package(tmp_path, {"a.py": f'"""{LONG} \\ud800"""\n'}))
    assert harvest.documents[0]["text"].encode("utf-8").endswith(b"?")


def test_this_environment_gives_at_least_ten_thousand_distinct_documents(corpus: list[dict[str, object]]) -> None:
    assert 10_000 <= len(corpus) <= 12_000
    assert len({document["id"] for document in corpus}) == len(corpus)
    assert len({str(document["text"]).partition("\n")[2] for document in corpus}) == len(corpus)


def test_every_label_can_fill_a_page_of_a_hundred_and_none_is_the_corpus(corpus: list[dict[str, object]]) -> None:
    sizes = Counter(label for document in corpus for label in document["labels"])  # type: ignore[attr-defined]
    assert min(sizes.values()) >= LABEL_FLOOR
    assert max(sizes.values()) < len(corpus) / 10
    assert STDLIB in sizes


@pytest.mark.slow
def test_the_same_environment_gives_the_same_bytes(ray_cluster: None, tmp_path: Path) -> None:
    del ray_cluster
    first, second = (write_docstrings(tmp_path / name, limit=200) for name in ("a.jsonl", "b.jsonl"))
    assert first.read_bytes() == second.read_bytes()
