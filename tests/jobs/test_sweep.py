"""Sweeps: which trials there are, what they share, what is said of them, and what a failure or a kill leaves."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Said, Tiny

from jobs.sweep import RESULTS, TrialProgress, sweep
from jobs.sweep_grid import Sweep, Trial, grid, sample
from jobs.sweep_report import html_report
from jobs.sweep_results import LABEL_FREE, Result, facts
from pipelines.artifact import Artifact
from vae_core.errors import LatentbitsError, Misuse

OF_A_TRIAL = ("model", "codes", "index", "report")
MADE = "pretrain.log_every=10,20"
"""Changes no artifact, so that a trial of each value finds the tiny run's."""


def asked(tiny: Tiny, out: Path, *vary: str, **more: Any) -> Sweep:
    return Sweep(config=str(tiny.config), vary=vary, out=out, **more)


@pytest.fixture
def there(tiny: Tiny, tmp_path: Path) -> Path:
    """A sweep's folder with two whole trials in it, `--vary` MADE."""
    for name in ("log_every=10", "log_every=20"):
        shutil.copytree(tiny.folder, tmp_path / "sweep" / name)
    return tmp_path / "sweep"


def test_a_grid_has_every_combination_under_a_name_that_says_which() -> None:
    trials = grid(["model.latent.bits=16, 32", "pretrain.learning_rate=1e-3,3e-3"])
    assert [trial.name for trial in trials] == [
        "bits=16,learning_rate=1e-3",
        "bits=16,learning_rate=3e-3",
        "bits=32,learning_rate=1e-3",
        "bits=32,learning_rate=3e-3",
    ]
    assert trials[3].settings == ["model.latent.bits=32", "pretrain.learning_rate=3e-3"]


def test_values_are_split_at_commas_that_stand_in_no_brackets_and_no_quotes() -> None:
    values = ["[a.txt, b.txt]", "{x: [1,2]}", '"c,d"', "null"]
    assert [trial.values["a.b"] for trial in grid([f"a.b={','.join(values)}"])] == values


def test_names_of_folders_differ_and_need_no_quotes_in_a_shell() -> None:
    long = "x" * 300
    trials = grid(["corpus.files=[a b.txt],['a*b.txt'],[c.txt]", "encode.workers=1,2", f"graph.workers=1,{long}"])
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) == 12
    for name in names:
        assert re.fullmatch(r"[\w.+,=-]+", name)
        assert len(name) < 255
    assert "encode.workers=1" in names[0]
    assert "graph.workers=1" in names[0]


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ([], "nothing is varied; give --vary"),
        (["model.latent.bits"], "write it as --vary a.b=value,value"),
        (["=1,2"], "write it as --vary a.b=value,value"),
        (["a.b=1,,2"], "write it as --vary a.b=value,value"),
        (["a.b=1,2,1"], "1 is there twice"),
        (["a.b=1,2", "a.b=3"], "--vary a.b is given twice"),
        (["out=x,y"], "the folders of trials are made in --out"),
    ],
)
def test_what_cannot_be_varied_is_refused_with_the_way_to_write_it(vary: list[str], said: str) -> None:
    with pytest.raises(Misuse, match=re.escape(said)):
        grid(vary)


def test_a_sample_is_a_part_of_the_grid_in_its_order_and_reaches_every_trial() -> None:
    whole = grid(["a.b=1,2,3", "a.c=1,2"])
    chosen = [sample(whole, 3, seed) for seed in range(40)]
    for some in chosen:
        places = [whole.index(trial) for trial in some]
        assert len(some) == 3
        assert all(one < next for one, next in pairwise(places))
    assert {trial.name for some in chosen for trial in some} == {trial.name for trial in whole}
    assert sample(whole, 3, 7) == sample(whole, 3, 7)
    assert sample(whole, 6, 0) == whole
    with pytest.raises(Misuse, match="--trials is 7, and there are 6 combinations"):
        sample(whole, 7, 0)


def test_trials_are_told_by_the_numbers_of_their_reports_and_a_failed_one_ends_no_other(
    there: Path, tiny: Tiny, latentbits: Callable[..., Said]
) -> None:
    said = latentbits("sweep", tiny.config, "--vary", f"{MADE},0", "--out", there, "--json")
    assert said.status == 1
    found = json.loads(said.out)
    assert found == json.loads((there / RESULTS).read_text())
    report = json.loads((tiny.folder / "report" / "report.json").read_text())
    *good, failed = found["trials"]
    for row in good:
        assert row["objective"] == report["precision_at_100"]["log_odds"]
        assert row["precision_at_10"]["hamming"] == report["precision_at_10"]["hamming"]
        assert row["recall_at_100"]["log_odds"] == report["label_free"]["recall_at_100"]["log_odds"]
        assert row["code_health"]["dead_bits"] == report["code_health"]["dead_bits"]
        assert row["error"] is None
    assert [row["settings"] for row in good] == [{"pretrain.log_every": 10}, {"pretrain.log_every": 20}]
    assert failed["name"] == "log_every=0"
    assert "pretrain.log_every" in failed["error"]
    assert failed["objective"] is None
    assert not (there / "log_every=0").exists()


def test_the_table_names_the_best_first_and_its_command_finds_everything_done(
    there: Path, tiny: Tiny, latentbits: Callable[..., Said]
) -> None:
    objective = LABEL_FREE
    said = latentbits("sweep", tiny.config, "--vary", MADE, "--out", there, "--objective", objective)
    assert said.status == 0
    assert objective in said.out.splitlines()[0]
    command = re.search("^the best again: latentbits (.*)$", said.out, re.MULTILINE)
    assert command is not None
    again = latentbits(*shlex.split(command.group(1)), "--json")
    assert again.status == 0
    assert all(stage["skipped"] for stage in json.loads(again.out)["stages"])


def test_shards_and_graph_are_made_once_and_are_in_each_trials_folder(there: Path, tiny: Tiny) -> None:
    for trial in there.iterdir():
        shutil.rmtree(trial / "shards")
        shutil.rmtree(trial / "graph", ignore_errors=True)
    found = sweep(asked(tiny, there, MADE))
    first, second = (Artifact.open(there / f"log_every={each}" / "shards") for each in (10, 20))
    assert first.path.resolve() == second.path.resolve()
    assert first.path.resolve().parent.parent == there / "shared"
    assert first.fingerprint == Artifact.open(tiny.folder / "shards").fingerprint
    assert len(list(there.glob("shared/*/shards"))) == 1
    one, other = (row["seconds"] for row in sorted(found["trials"], key=lambda row: str(row["name"])))
    assert one["tokenize"] > 0
    assert other["tokenize"] is None
    before = {path: path.stat().st_mtime_ns for path in there.rglob("manifest.json")}
    again = sweep(asked(tiny, there, MADE))
    assert {path: path.stat().st_mtime_ns for path in there.rglob("manifest.json")} == before
    assert again == found


def test_a_moved_sweep_keeps_what_its_trials_share(there: Path, tiny: Tiny, tmp_path: Path) -> None:
    shared = there / "shared" / "0" / "shards"
    shared.parent.mkdir(parents=True)
    (there / "log_every=10" / "shards").rename(shared)
    (there / "log_every=10" / "shards").symlink_to("../shared/0/shards")
    moved = there.rename(tmp_path / "moved")
    assert Artifact.open(moved / "log_every=10" / "shards").fingerprint == (
        Artifact.open(tiny.folder / "shards").fingerprint
    )


def test_trials_of_other_shards_are_refused_and_keep_theirs(there: Path, tiny: Tiny) -> None:
    for trial in there.iterdir():
        shutil.rmtree(trial / "shards")
        (trial / "shards").symlink_to("../shared/0/shards")
    with pytest.raises(LatentbitsError, match=r"all 2 trials failed\n.* with other settings of tokenize, embed, graph"):
        sweep(asked(tiny, there, MADE))
    assert all(os.readlink(trial / "shards") == "../shared/0/shards" for trial in there.glob("log_every=*"))


def test_where_every_trial_fails_the_sweep_does_and_says_why(tiny: Tiny, tmp_path: Path) -> None:
    config = asked(tiny, tmp_path / "sweep", MADE, settings=("corpus.files=[nothing.jsonl]",))
    with pytest.raises(LatentbitsError, match=r"all 2 trials failed\nlog_every=10: .*nothing.jsonl") as raised:
        sweep(config)
    assert raised.value.exit_status == 1
    rows = json.loads((tmp_path / "sweep" / RESULTS).read_text())["trials"]
    assert ["nothing.jsonl" in row["error"] for row in rows] == [True, True]


def test_what_no_trial_can_have_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, latentbits: Callable[..., Said]
) -> None:
    def refused(*more: str) -> str:
        said = latentbits("sweep", tiny.config, "--out", tmp_path / "sweep", *more)
        assert said.status == 2
        assert not (tmp_path / "sweep").exists()
        return said.err

    assert "no setting model.latent.bit; nearest: model.latent.bits" in refused("--vary", "model.latent.bit=8,16")
    assert "the folders of trials are made in --out" in refused("--vary", MADE, "--set", "out=elsewhere")
    assert "--trials is 3" in refused("--vary", MADE, "--trials", "3")


def test_an_address_for_the_results_is_refused_before_a_trial_is_run(tiny: Tiny) -> None:
    with pytest.raises(Misuse, match=r"--out s3:/+bucket/sweep: trials share folders by links"):
        sweep(asked(tiny, Path("s3://bucket/sweep"), MADE))


def test_what_a_trial_raises_beside_our_errors_is_its_result(there: Path, tiny: Tiny) -> None:
    shutil.rmtree(there / "log_every=20")
    (there / "log_every=20").write_text("a file where a folder is to be")
    found = sweep(asked(tiny, there, MADE))
    assert [row["error"] is None for row in found["trials"]] == [True, False]
    assert found["trials"][1]["error"].startswith("FileExistsError: ")


def test_an_objective_that_reports_lack_is_refused_with_those_they_have(there: Path, tiny: Tiny) -> None:
    with pytest.raises(Misuse) as raised:
        sweep(asked(tiny, there, MADE, objective="precision_at_100.logodds"))
    said = str(raised.value)
    assert "no number precision_at_100.logodds; nearest: precision_at_100.log_odds" in said
    listed = said.partition("They have ")[2].split(", ")
    report = json.loads((tiny.folder / "report" / "report.json").read_text())
    for name in listed:
        value: Any = report
        for key in name.split("."):
            value = value[key]
        assert isinstance(value, int | float)
    assert not {"baselines.simhash", "label_free.recall_at_100.tfidf", "intervals.level"} & set(listed)


def results(**objectives: dict[str, float]) -> list[Result]:
    trials = [Trial(name, {"model.latent.bits": name.lstrip("t")}) for name in objectives]
    return [Result(trial, Path("out"), objectives[trial.name]) for trial in trials]


def told(sweep: Sweep, rows: list[Result], *, labelled: bool = False) -> dict[str, Any]:
    return facts(sweep, rows, {}, labelled_queries=labelled)


def test_without_labels_the_objective_is_agreement_with_exact_neighbours() -> None:
    unnamed, named = (Sweep(config="c", vary=(), out=Path("out"), objective=name) for name in (None, "code_health.x"))
    found = told(unnamed, results(t8={LABEL_FREE: 0.4}, t16={LABEL_FREE: 0.6}, t32={LABEL_FREE: 0.5}))
    assert [row["name"] for row in found["trials"]] == ["t16", "t32", "t8"]
    assert (found["objective"], found["best"]) == (LABEL_FREE, "t16")
    assert "rises with the number of bits" in found["warnings"][0]
    assert told(unnamed, results(t8={LABEL_FREE: 0.4}))["warnings"] == []
    labelled = results(t8={LABEL_FREE: 0.4, "precision_at_100.log_odds": 0.9, "code_health.x": 1.0})
    assert told(unnamed, labelled)["objective"] == "precision_at_100.log_odds"
    assert told(unnamed, labelled)["warnings"] == []
    assert "chosen by them looks better" in told(unnamed, labelled, labelled=True)["warnings"][0]
    assert told(named, labelled, labelled=True)["warnings"] == []


def test_a_report_that_alone_lacks_the_objective_is_a_failed_trial() -> None:
    rows = results(t8={"a.rate": 1.0}, t16={"a.other": 9.0})
    found = told(Sweep(config="c", vary=(), out=Path("out"), objective="a.rate"), rows)
    assert [row["error"] for row in found["trials"]] == [None, "its report has no number a.rate"]


def found_of(values: dict[tuple[Any, Any], float]) -> dict[str, Any]:
    rows = [
        {
            "name": f"{first} {second}",
            "settings": {"a.first": first, "a.second": second},
            "objective": value,
            **{name: {"log_odds": value, "hamming": None} for name in ("precision_at_100", "precision_at_10")},
            "recall_at_100": {"log_odds": value, "hamming": value},
            "code_health": {"effective_bits": 1.0, "dead_bits": 0, "largest_bucket": 0.1},
            "seconds": {"tokenize": None, "pretrain": 2.5, "encode": 0.25},
            "error": None,
        }
        for (first, second), value in sorted(values.items(), key=lambda pair: -pair[1])
    ]
    failed = {**rows[0], "name": "failed", "objective": None, "error": "<b>diverged</b>", "seconds": {}}
    return {
        "config": "c",
        "varied": ["a.first", "a.second"],
        "objective": "precision_at_100.log_odds",
        "warnings": ["beware <of> this"],
        "command": "latentbits run c",
        "trials": [*rows, failed],
    }


class Tags(HTMLParser):
    """Every tag with its attributes, and the words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "


def points(page: str) -> list[tuple[str | None, float, float]]:
    drawn = [attributes for tag, attributes in Tags(page).tags if tag == "circle"]
    return [(one["class"], float(one["cx"] or ""), float(one["cy"] or "")) for one in drawn]


def test_the_plot_has_a_point_for_each_trial_at_its_place() -> None:
    """Values far apart lie by their logarithms: doubled bits are equally far from one another."""
    values = {(bits, rate): 0.1 + rate * place for place, bits in enumerate((16, 32, 64)) for rate in (0.1, 0.2)}
    page = html_report(found_of(values))
    drawn = points(page)
    assert len(drawn) == 6
    for colour, slope in (("c0", 0.1), ("c1", 0.2)):
        (x0, y0), (x1, y1), (x2, y2) = ((x, y) for of, x, y in drawn if of == colour)
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
        assert x1 > x0
        assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
        assert y1 < y0
        assert (y0 - y2) / slope == pytest.approx((drawn[0][2] - min(y for _, _, y in drawn)) / 0.2, rel=0.02)


@pytest.mark.parametrize("values", [(1.0, 2.0, 4.0 - 1e-9), ("mean", "max", "sum"), (-1, 0, 100)])
def test_numbers_near_one_another_are_to_scale_and_words_side_by_side(values: tuple[Any, ...]) -> None:
    drawn = points(html_report(found_of({(value, "x"): 0.1 * place for place, value in enumerate(values)})))
    (x0, _), (x1, _), (x2, _) = ((x, y) for _, x, y in drawn)
    expected = 1.0 if isinstance(values[0], str) else (values[2] - values[1]) / (values[1] - values[0])
    assert (x2 - x1) / (x1 - x0) == pytest.approx(expected, rel=0.05)


def test_the_page_stands_alone_and_shows_what_failed_as_text() -> None:
    page = html_report(found_of({(1, "x"): 0.5}))
    read = Tags(page)
    assert not {"script", "link", "img"} & {tag for tag, _ in read.tags}
    assert not any(name in ("src", "href") for _, attributes in read.tags for name in attributes)
    assert "prefers-color-scheme: dark" in page
    assert "<b>diverged</b>" in read.words
    assert "beware <of> this" in read.words
    assert "2.8" in read.words
    assert "latentbits run c" in read.words


class Heard:
    """Remembers what a stage told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        del total, unit
        self.words.append(stage)

    def advance(self, amount: int, note: str = "", metrics: Mapping[str, float] | None = None) -> None:
        del amount, metrics
        self.words.append(note)

    def finish(self) -> None:
        pass


def test_progress_says_which_trial_it_is_and_how_long_all_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first took 60 s, the second was there already; 20 s into the third of four, 40 and 60 s are left."""
    heard, now = Heard(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = TrialProgress(heard, 4)
    watch.begin()
    watch.start("pretrain", 10, "steps")
    watch.advance(1, "loss 3")
    now = 60.0
    watch.begin()
    now = 61.0
    watch.begin()
    watch.start("pretrain", 10, "steps")
    now = 81.0
    watch.advance(1, "loss 2")
    assert heard.words == ["1/4 pretrain", "loss 3", "3/4 pretrain", "loss 2  all: 1 min 40 s left"]


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on_and_ends_like_another(tiny: Tiny, tmp_path: Path) -> None:
    """Killed while the second of two trials trains: the first, and what both share, stay as they were."""
    out, vary = tmp_path / "sweep", "model.latent.bits=8,16"
    arguments = ["sweep", str(tiny.config), "--vary", vary, "--out", str(out)]
    program = [sys.executable, "-c", "from jobs.cli import main; main()", *arguments]
    killed = subprocess.Popen(program, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(out / "bits=16" / "model" / ".unfinished" / "plan.json", killed)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    assert {path.parent.name for path in before} >= {"shards", *OF_A_TRIAL}
    found = sweep(asked(tiny, out, vary))
    after = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    assert {path: after[path] for path in before} == before
    assert len(list(out.glob("shared/*/shards"))) == 1
    assert [row["error"] for row in found["trials"]] == [None, None]
    seconds = {row["name"]: row["seconds"] for row in found["trials"]}
    assert seconds["bits=8"]["pretrain"] > 0
    assert seconds["bits=16"]["pretrain"] > 0
    whole = Artifact.open(tiny.folder / "model").fingerprint
    assert Artifact.open(out / "bits=16" / "model").fingerprint == whole
    best = max((8, 16), key=lambda bits: precision(out / f"bits={bits}"))
    assert found["best"] == f"bits={best}"


def precision(run_folder: Path) -> float:
    report = json.loads((run_folder / "report" / "report.json").read_text())
    return float(report["precision_at_100"]["log_odds"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_at_once_make_what_they_make_one_after_the_other(tiny: Tiny, tmp_path: Path) -> None:
    """Also with settings' paths that begin where the sweep was called."""
    vary = "model.latent.bits=16,24"
    found = sweep(asked(tiny, tmp_path, vary, settings=("model.latent.components=8",), parallel=2))
    assert [row["error"] for row in found["trials"]] == [None, None]
    assert len(list(tmp_path.glob("shared/*/shards"))) == 1
    one, other = (Artifact.open(tmp_path / f"bits={bits}" / "model") for bits in (16, 24))
    assert one.input("shards").fingerprint == other.input("shards").fingerprint
    assert one.fingerprint != other.fingerprint
    again = sweep(asked(tiny, tmp_path, vary, settings=("model.latent.components=8",)))
    assert again == found


def test_more_trials_at_once_than_cores_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"--parallel is 400, and the cluster has \d+ cores.* give --parallel \d+"):
        sweep(asked(tiny, tmp_path, MADE, parallel=400))
