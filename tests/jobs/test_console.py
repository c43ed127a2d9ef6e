"""What is said while a stage works."""

import io
import sys

import pytest
from rich.console import Console

from jobs.console import PLAIN_WIDTH, Bar, Lines, results
from jobs.pace import Pace


def test_the_time_left_leaves_out_how_long_the_first_step_took_to_come() -> None:
    """One step a second, after two minutes in which workers start: at 20 of 100, 80 seconds are left."""
    pace = Pace(100, now=0.0)
    for step in range(20):
        pace.advance(1, now=120.0 + step)
    assert pace.left(now=139.0) == pytest.approx(80.0)


def test_the_time_left_follows_the_pace_of_the_last_half_minute() -> None:
    """100 steps at one a second, then two a second: 60 s later 80 of 300 are left, which takes 40 s."""
    pace = Pace(300, now=0.0)
    for second in range(100):
        pace.advance(1, now=100.0 + second)
    for half in range(120):
        pace.advance(1, now=199.5 + half / 2)
    assert pace.left(now=259.0) == pytest.approx(40.0, rel=0.02)


def test_nothing_is_said_of_the_time_left_before_some_seconds_and_a_few_percent() -> None:
    pace = Pace(1000, now=0.0)
    assert pace.left(now=60.0) is None
    pace.advance(1, now=60.0)
    pace.advance(1, now=70.0)
    assert pace.left(now=70.0) is None
    pace.advance(28, now=71.0)
    assert pace.left(now=71.0) == pytest.approx(11 / 29 * 970)
    early = Pace(4, now=0.0)
    early.advance(1, now=3.0)
    early.advance(1, now=4.0)
    assert early.left(now=4.0) is None


def test_what_an_earlier_run_has_done_does_not_count_for_the_pace() -> None:
    pace = Pace(100, now=0.0)
    pace.advance(25, now=0.1)
    pace.advance(25, now=0.2)
    pace.advance(5, now=10.2)
    assert pace.left(now=10.2) == pytest.approx(90.0)


def test_lines_say_something_at_once_and_end_with_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    assert "starting" in capsys.readouterr().err
    lines.start("encode", 10, "documents")
    assert capsys.readouterr().err == "   encode  10 documents\n"
    lines.advance(10, "10 codes")
    lines.finish()
    err = capsys.readouterr().err
    assert err.startswith("   encode  done in 0.0 s  10 codes")
    lines.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_leaves_a_whole_line_and_the_cursor_as_it_was() -> None:
    written = io.StringIO()
    bar = Bar(Console(file=written, force_terminal=True, width=120))
    bar.start("pretrain", 4, "steps")
    bar.advance(4, "loss 1.0")
    bar.finish()
    bar.start("encode", 4, "documents")
    bar.close()
    text = written.getvalue()
    assert "loss 1.0" in text
    assert "100%" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_results_are_wide_where_no_terminal_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stdout.isatty()
    assert results().width == PLAIN_WIDTH >= 120
    results().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"
