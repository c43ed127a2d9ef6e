"""What a run writes for programs: one JSON line each, the last of which says everything."""

import io
import json
import logging
import os
import signal

import pytest

from jobs import console, events
from jobs.console import Said, working
from jobs.events import Events, events_in
from vae_core.errors import Misuse


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture
def in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTBITS_LOG", "json")
    monkeypatch.setenv("LATENTBITS_RUN", "news-1")


def test_the_last_line_of_a_run_says_all_that_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY_S", 0.0)
    written = io.StringIO()
    said = Events(written)
    said.start("tokenize", 10, "bytes")
    said.advance(10)
    said.finish()
    said.start("pretrain", 4, "steps")
    said.advance(1, "loss 3", {"loss": 3.0})
    said.advance(2, "", {"rate": 1.5})
    last = list(events_in(written.getvalue().splitlines()))[-1]
    assert (last.stage, last.state, last.done, last.total, last.unit) == ("pretrain", "working", 3, 4, "steps")
    assert last.note == "loss 3"
    assert last.metrics == {"loss": 3.0, "rate": 1.5}
    assert [(done.stage, done.done) for done in last.finished] == [("tokenize", 10)]
    said.advance(1)
    said.finish()
    said.close()
    last = list(events_in(written.getvalue().splitlines()))[-1]
    assert (last.stage, last.state) == ("", "done")
    assert [done.stage for done in last.finished] == ["tokenize", "pretrain"]


def test_a_stage_writes_one_line_every_two_seconds_at_most() -> None:
    written = io.StringIO()
    said = Events(written)
    said.start("encode", 1000, "documents")
    for _ in range(1000):
        said.advance(1)
    said.finish()
    assert len(written.getvalue().splitlines()) == 3


def work_and_fail(done: int) -> None:
    with working() as progress:
        progress.start("encode", 10, "documents")
        progress.advance(done)
        progress.finish()
        os.write(1, b"a notice of a library\n")
        logging.getLogger("pipelines").warning("the server\nis down")
        raise Misuse("codes are of another model\n  model was a and is now b")


@pytest.mark.usefixtures("in_json")
def test_progress_logs_and_failures_are_one_json_line_each(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Said) as end:
        work_and_fail(done=3)
    assert end.value.code == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    said = lines(captured.err)
    assert [line.get("state", line["level"]) for line in said] == [
        "starting",
        "working",
        "working",
        "warning",
        "failed",
    ]
    assert {line["run"] for line in said} == {"news-1"}
    assert said[3]["message"] == "the server\nis down"
    assert said[4]["message"] == "codes are of another model\n  model was a and is now b"
    assert (said[4]["stage"], said[4]["error"]) == ("encode", "Misuse")
    assert "traceback" not in said[4]


@pytest.mark.usefixtures("in_json")
def test_an_error_of_the_program_itself_goes_along_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Said) as end, working():
        raise ZeroDivisionError("float division")
    assert end.value.code == 1
    failed = lines(capfd.readouterr().err)[-1]
    assert failed["error"] == "ZeroDivisionError"
    assert "test_events.py" in str(failed["traceback"])


@pytest.mark.usefixtures("in_json")
def test_a_failure_after_a_stage_was_done_is_not_blamed_on_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Said):
        work_and_fail(done=10)
    assert "stage" not in lines(capfd.readouterr().err)[-1]


def work_until_sigterm() -> None:
    with working():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


@pytest.mark.parametrize("form", ["json", "text"])
def test_sigterm_stops_and_says_that_it_goes_on_later(
    form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTBITS_LOG", form)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((Said, console.Stopped)) as end:
        work_until_sigterm()
    assert signal.getsignal(signal.SIGTERM) is before
    if form == "json":
        assert lines(capfd.readouterr().err)[-1]["state"] == "stopped"
        assert end.value.code == 130  # type: ignore[union-attr]
    else:
        assert "the same command again goes on where this one was" in str(end.value)


def test_lines_of_other_programs_are_passed_over() -> None:
    event = '{"time":"t","level":"info","run":"r","state":"done","message":"m"}'
    said = ["Running entrypoint", "{", '{"state": "odd"}', '{"a": 1}', event]
    assert [event.message for event in events_in(said)] == ["m"]
