"""Filters over documents: "lang = 'en' and year >= 2020" becomes a mask over a segment's rows.

A condition compares a column with constants: = != < <= > >=, [not] in (...), [not] like 'a%', [not] contains 'word',
is [not] null; and, or, not and brackets join conditions. Columns are id, text, labels, component and the metadata
fields; "a name with blanks" goes in double quotes, texts in single ones, in which '' is an apostrophe. A condition on
labels holds where one label meets it. As in SQL, a comparison with a value that is not there is neither true nor false,
and only what is true passes.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.searching.segment import Segment
from vae_core.errors import Misuse

Constant = str | int | float | bool
Condition = Callable[[pa.Array], pa.Array]
"""Values of a column to booleans, null where the value is."""
Test = Callable[[pa.RecordBatch], pa.Array]
"""Documents to booleans."""
TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]))|'(?P<text>(?:[^']|'')*)'"""
    r"""|"(?P<quoted>[^"]+)"|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<word>[^\W\d][\w.\-]*))"""
)
COMPARISONS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
KEYWORDS = ("and", "or", "not", "in", "like", "contains", "is", "null", "true", "false")
EXAMPLE = "lang = 'en' and year >= 2020"


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that was read; it fits every segment of the index whose columns it was read with."""

    text: str
    test: Test

    def mask(self, segment: Segment) -> np.ndarray:
        """Which rows pass, (N,) bool."""
        with ThreadPoolExecutor() as pool:
            return np.concatenate([np.empty(0, bool), *pool.map(self._passed, segment.batches)])

    def _passed(self, batch: pa.RecordBatch) -> np.ndarray:
        passed: np.ndarray = pc.fill_null(self.test(batch), False).to_numpy(zero_copy_only=False)
        return passed


def parse_filter(text: str, columns: dict[str, str]) -> Filter:
    """Read a filter over `columns`, the type of each by name. Raises Misuse, which says where it went wrong."""
    reader = _Reader(text, columns)
    test = reader.either()
    if reader.here.kind != "end":
        reader.fail("'and', 'or' or the end")
    return Filter(text, test)


class _Token(NamedTuple):
    kind: str
    value: str
    place: int


class _Reader:
    def __init__(self, text: str, columns: dict[str, str]) -> None:
        self.text = text
        self.columns = columns
        self.tokens = _tokens(text)
        self.place = 0

    @property
    def here(self) -> _Token:
        return self.tokens[self.place]

    def fail(self, wanted: str) -> NoReturn:
        found = "it ends" if self.here.kind == "end" else f"there is {self.here.value!r}"
        raise Misuse(
            f"the filter {self.text!r} cannot be read: where {wanted} should be, at character {self.here.place + 1}, "
            f"{found}; write it like {EXAMPLE!r}"
        )

    def took(self, *words: str) -> str | None:
        """The next token, where it is one of these words or signs."""
        known = self.here.kind in ("word", "sign") and self.here.value.lower() in words
        return self.next().value.lower() if known else None

    def next(self) -> _Token:
        token = self.here
        self.place += 1
        return token

    def must(self, sign: str) -> None:
        if not self.took(sign):
            self.fail(repr(sign))

    def either(self) -> Test:
        tests = [self.all_of()]
        while self.took("or"):
            tests.append(self.all_of())
        return _folded(pc.or_kleene, tests)

    def all_of(self) -> Test:
        tests = [self.one()]
        while self.took("and"):
            tests.append(self.one())
        return _folded(pc.and_kleene, tests)

    def one(self) -> Test:
        if self.took("not"):
            test = self.one()
            return lambda batch: pc.invert(test(batch))
        if self.took("("):
            inside = self.either()
            self.must(")")
            return inside
        return self.comparison()

    def comparison(self) -> Test:
        if self.here.kind not in ("word", "quoted") or self.here.value.lower() in KEYWORDS:
            self.fail("a column")
        name = self.next().value
        if name not in self.columns:
            raise Misuse(_unknown(name, self.columns))
        kind = self.columns[name]
        if self.took("is"):
            negative = bool(self.took("not"))
            if not self.took("null"):
                self.fail("'null'")
            return _on(name, pc.is_valid if negative else pc.is_null, whole=True)
        negative = bool(self.took("not"))
        condition = self.condition(name, kind, negative)
        test = _on(name, condition)
        return (lambda batch: pc.invert(test(batch))) if negative else test

    def condition(self, name: str, kind: str, negative: bool) -> Condition:
        if self.took("in"):
            return self.among(name)
        if self.took("like"):
            pattern = self.words(name, kind)
            return lambda values: pc.match_like(values, pattern)
        if self.took("contains"):
            part = self.words(name, kind)
            return lambda values: pc.match_substring(values, part)
        sign = None if negative else self.took(*COMPARISONS)
        if sign is None:
            self.fail("'in', 'like' or 'contains'" if negative else "a comparison such as = or >=")
        value = self.constant()
        compare = COMPARISONS[sign]
        return lambda values: compare(values, _as(value, values.type, name))

    def among(self, name: str) -> Condition:
        self.must("(")
        values = [self.constant()]
        while self.took(","):
            values.append(self.constant())
        self.must(")")

        def within(column: pa.Array) -> pa.Array:
            known = pa.array([_as(value, column.type, name).as_py() for value in values], column.type)
            return pc.if_else(pc.is_valid(column), pc.is_in(column, value_set=known), pa.scalar(None, pa.bool_()))

        return within

    def words(self, name: str, kind: str) -> str:
        if "string" not in kind and kind != "null":
            raise Misuse(f"{name} holds {kind}, and like and contains are for text; compare it with = or >=")
        if self.here.kind != "text":
            self.fail("a text in single quotes")
        return self.next().value

    def constant(self) -> Constant:
        token = self.here
        if token.kind == "text":
            return self.next().value
        if token.kind == "number":
            self.place += 1
            return float(token.value) if re.search(r"[.eE]", token.value) else int(token.value)
        word = self.took("true", "false")
        if word is None:
            self.fail("a text in single quotes, a number, true or false")
        return word == "true"


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    end = len(text.rstrip())
    while place < end:
        match = TOKEN.match(text, place)
        if match is None:
            where = place + len(text[place:]) - len(text[place:].lstrip())
            raise Misuse(
                f"the filter {text!r} cannot be read at character {where + 1}, {text[where : where + 10]!r}; "
                f"write it like {EXAMPLE!r}"
            )
        kind = str(match.lastgroup)
        value = match[kind].replace("''", "'") if kind == "text" else match[kind]
        tokens.append(_Token(kind, value, match.start(kind)))
        place = match.end()
    return [*tokens, _Token("end", "", end)]


def _folded(join: Callable[[pa.Array, pa.Array], pa.Array], tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(batch: pa.RecordBatch) -> pa.Array:
        result = tests[0](batch)
        for one in tests[1:]:
            result = join(result, one(batch))
        return result

    return test


def _on(name: str, condition: Condition, *, whole: bool = False) -> Test:
    """The condition on a column; on labels it holds where it does for one of them, or for the `whole` list."""

    def test(batch: pa.RecordBatch) -> pa.Array:
        column = _column(batch, name)
        if name == "labels" and not whole:
            return _of_any(column, condition)
        return pa.nulls(len(batch), pa.bool_()) if column.type == pa.null() and not whole else condition(column)

    return test


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Values of a column; of one that this segment does not have, nulls."""
    if name in ("id", "text", "labels", "component"):
        return batch.column(name) if name in batch.schema.names else pa.nulls(len(batch))
    if "metadata" not in batch.schema.names or batch.schema.field("metadata").type.get_field_index(name) < 0:
        return pa.nulls(len(batch))
    return pc.struct_field(batch.column("metadata"), name)


def _of_any(lists: pa.Array, condition: Condition) -> pa.Array:
    if lists.type == pa.null():
        return pa.array(np.zeros(len(lists), bool))
    good = pc.fill_null(condition(pc.list_flatten(lists)), False).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    any_of = np.zeros(len(lists), bool)
    any_of[parents[good]] = True
    return pa.array(any_of)


def _as(value: Constant, kind: pa.DataType, name: str) -> pa.Scalar:
    """The constant in the column's type, or in a wider one that compares with it."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    fits = isinstance(value, bool) if pa.types.is_boolean(kind) else isinstance(value, str) != is_number
    if not fits or (is_number and isinstance(value, bool)):
        raise Misuse(f"{name} holds {kind}, and {value!r} is none; write texts in single quotes and numbers without")
    try:
        return pa.scalar(value) if is_number else pa.scalar(value).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError) as error:
        raise Misuse(f"{name} holds {kind}, and {value!r} is none: {error}") from error


def _unknown(name: str, columns: dict[str, str]) -> str:
    near = get_close_matches(name, columns, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join(f"{column} ({kind})" for column, kind in columns.items())
    return f"there is no column {name!r} to filter by{meant or ';'} there are: {known}"
