"""The command line as its user meets it: exit status, one clear message on stderr, results alone on stdout."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import Said, Tiny, write_config, write_corpus

from jobs.cli import app
from pipelines.artifact import Artifact

Cli = Callable[..., Said]
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)
BINARY = Path(sys.executable).with_name("latentbits")


def jsonl(*rows: dict[str, object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def filled(words: tuple[str, ...], tiny: Tiny, new: Path) -> list[str]:
    """The words of a command, with the places that its first letters stand for."""
    places = {"CONFIG": tiny.config, "CORPUS": tiny.corpus, "RUN": tiny.folder, "NEW": new}
    heads = [(word, word.partition("/")) for word in words]
    return [f"{places[head]}{slash}{rest}" if head in places else word for word, (head, slash, rest) in heads]


def good(count: int = 40) -> list[dict[str, object]]:
    return [{"id": f"d{number}", "text": f"ship storm harbour number {number}"} for number in range(count)]


def truncated_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["ship storm"] * 50}), sink)
    return sink.getvalue().to_pybytes()[:-9]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_begins_with_it(latentbits: Cli, command: str) -> None:
    said = latentbits(command, "--help")
    assert said.status == 0
    assert "Example" in said.out
    assert f"latentbits {command} " in f"{said.out} ".replace("\n", " ")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, jobs.cli; print(*{'torch', 'ray', 'numpy', 'pyarrow', 'faiss', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_version_is_that_of_the_project(latentbits: Cli) -> None:
    said = latentbits("--version")
    assert said.status == 0
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{said.out.split()[1]}"' in project


@pytest.mark.parametrize(
    ("content", "options", "status", "words"),
    [
        (jsonl(*good()), ["--text", "body"], 2, "has no field 'body'; its fields: id, text"),
        (jsonl(*good()), ["--id", "idd"], 2, "has no field 'idd'; its fields: id, text; nearest: id"),
        (jsonl(*good(), *good(30)), ["--id", "id"], 1, "duplicate"),
        (b"", [], 1, "no documents in"),
        (jsonl(*[{"text": " "}] * 40), [], 1, "docs.jsonl:1 empty text"),
        (jsonl(*good(), *[{"text": "x " * 600}] * 20), ["--set", "corpus.max_bytes=1000"], 1, "text too long"),
        (jsonl(*good()) + b'{"text": "\xff"}\n' * 20, [], 1, "invalid UTF-8"),
    ],
    ids=["text-field", "id-field", "duplicates", "empty-file", "empty-documents", "huge-documents", "not-utf8"],
)
@pytest.mark.usefixtures("ray_cluster")
def test_a_corpus_that_cannot_be_used_says_where_and_why(
    latentbits: Cli, tmp_path: Path, content: bytes, options: list[str], status: int, words: str
) -> None:
    (tmp_path / "docs.jsonl").write_bytes(content)
    said = latentbits("tokenize", tmp_path / "docs.jsonl", "--out", tmp_path / "out", *options)
    assert (said.status, said.out) == (status, "")
    assert words in said.err
    assert "docs.jsonl" in said.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("nowhere.jsonl", 2, "nearest: docs.jsonl"),
        ("*.csv", 2, "no file matches"),
        (".", 2, "is a folder; name its files by a glob"),
        ("short.parquet", 1, "short.parquet cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    latentbits: Cli, tmp_path: Path, name: str, status: int, words: str
) -> None:
    (tmp_path / "docs.jsonl").write_bytes(jsonl(*good()))
    (tmp_path / "short.parquet").write_bytes(truncated_parquet())
    said = latentbits("tokenize", tmp_path / name, "--out", tmp_path / "out")
    assert (said.status, said.out) == (status, "")
    assert words in said.err
    assert not (tmp_path / "out").exists()


def test_a_few_bad_rows_do_not_stop_a_run(latentbits: Cli, tmp_path: Path, ray_cluster: None) -> None:
    del ray_cluster
    path = tmp_path / "docs.jsonl"
    path.write_bytes(jsonl(*good(), good()[0], {"id": "e", "text": ""}) + b"{\n" + b'{"id": "u", "text": "\xff"}\n')
    said = latentbits("tokenize", path, "--id", "id", "--out", tmp_path / "out", "--json")
    assert said.status == 0
    statistics = json.loads(said.out)["statistics"]
    assert (statistics["documents"], statistics["rejected"]) == (40, 4)


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_overwrite_leaves_the_old_artifact_whole(latentbits: Cli, tiny: Tiny, tmp_path: Path) -> None:
    shards = tiny.copy(tmp_path).folder / "shards"
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    (tmp_path / "docs.jsonl").write_bytes(jsonl(*[{"text": ""}] * 40))
    said = latentbits("tokenize", tmp_path / "docs.jsonl", "--out", shards, "--overwrite")
    assert said.status == 1
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before
    Artifact.open(shards).verify()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "CONFIG", "--out", "RUN"),
        ("evaluate", "RUN", "--set", "tracking.enabled=false"),
        ("query", "RUN/index", "ship storm"),
        ("inspect", "RUN"),
        ("inspect", "RUN/codes", "--verify"),
        ("doctor",),
        ("index", "RUN/codes", "--out", "NEW/index"),
        ("encode", "RUN/model", "RUN/shards", "--out", "NEW/codes"),
        ("encode", "RUN/model", "CORPUS", "--id", "id", "--out", "NEW/raw"),
        ("tokenize", "CORPUS", "--id", "id", "--out", "NEW/shards"),
    ],
    ids=lambda command: "-".join(command[:2]).replace("/", "-"),
)
def test_json_is_one_object_alone_on_standard_output(
    latentbits: Cli, tiny: Tiny, tmp_path: Path, command: tuple[str, ...]
) -> None:
    said = latentbits(*filled(command, tiny, tmp_path), "--json")
    assert said.status == 0, said.err
    assert said.out.count("\n") == 1
    assert isinstance(json.loads(said.out), dict)


def test_pretrain_says_json_too_where_its_model_is_there(latentbits: Cli, tiny: Tiny) -> None:
    changes = ["model.encoder.width=16", "model.encoder.hidden=32", "model.latent.bits=16", "model.latent.components=4"]
    changes += ["pretrain.epochs=1", "pretrain.batch_size=64"]
    options = [word for change in changes for word in ("--set", change)]
    options += ["--graph", str(tiny.folder / "graph"), "--json"]
    said = latentbits("pretrain", tiny.folder / "shards", "--out", tiny.folder / "model", *options)
    assert json.loads(said.out)["kind"] == "model"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("query", "RUN/index"), "give either a text or --input"),
        (("query", "RUN/index", "ship", "--input", "q.txt"), "give either a text or --input"),
        (("query", "RUN/index", "ship", "--output", "out"), "--output goes with --input"),
        (("query", "RUN/index", ""), "the query is empty"),
        (("query", "RUN/index", "ship", "-k", "0"), "'-k'"),
        (("query", "RUN/index", "ship", "--rank", "foo"), "choose log-odds or hamming"),
        (("query", "RUN/codes", "ship"), "holds codes, and index is needed here"),
        (("query", "RUN", "ship"), "has no manifest.json: it is not a latentbits artifact"),
        (("query", "nowhere", "ship"), "nowhere is not a folder"),
        (("index", "RUN/model", "--out", "NEW/made"), "holds model, and codes is needed here"),
        (("encode", "RUN/codes", "RUN/shards", "--out", "NEW/made"), "holds codes, and model is needed here"),
        (("encode", "RUN/model", "RUN/shards", "--id", "id", "--out", "NEW/made"), "leave out --id"),
        (("pretrain", "RUN/codes", "--out", "NEW/made"), "holds codes, and shards is needed here"),
        (("pretrain", "RUN/shards", "--out", "RUN/codes"), "holds codes, not model"),
        (("evaluate", "nowhere"), "nowhere/index, which is not there"),
        (("run", "default", "--out", "NEW/made"), "corpus.files is empty"),
        (("run", "demos"), "nearest recipe: demo"),
        (("run", "CONFIG", "--from", "encod"), "no stage 'encod'"),
        (("run", "CONFIG", "--set", "model.encoder.widht=3"), "nearest: model.encoder.width"),
        (("run", "CONFIG", "--set", "pretrain.epochs=9"), "pretrain.epochs was 1.0 and is now 9.0"),
        (("inspect", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_misuse_exits_with_2_and_says_what_to_do(
    latentbits: Cli, tiny: Tiny, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    found = latentbits(*filled(words, tiny, tmp_path))
    assert (found.status, found.out) == (2, "")
    assert said in found.err
    assert not (tmp_path / "made").exists()
    Artifact.open(tiny.folder / "codes").verify()


def test_words_that_the_model_does_not_know_are_said_on_standard_error(latentbits: Cli, tiny: Tiny) -> None:
    said = latentbits("query", tiny.folder / "index", "qqq zzz", "-k", 1)
    assert said.status == 0
    assert "the model knows no word of this query" in said.err
    assert said.out == ""


def test_hits_show_whole_ids_and_a_score_each(latentbits: Cli, tiny: Tiny) -> None:
    lines = latentbits("query", tiny.folder / "index", "ship", "-k", 5).out.splitlines()
    assert lines[0].split() == ["score", "distance", "id", "text"]
    ids = {json.loads(line)["id"] for line in tiny.corpus.read_text().splitlines()}
    assert len(lines) == 6
    for line in lines[1:]:
        score, distance, identity, *_ = line.split()
        assert identity in ids
        assert float(score) < 0
        assert 0 <= int(distance) <= 16


@pytest.mark.parametrize("command", [("query", "index", "ship", "-k", "300"), ("inspect", ".", "--json"), ("doctor",)])
def test_a_reader_that_leaves_early_gets_no_traceback(tiny: Tiny, command: tuple[str, ...]) -> None:
    piped = subprocess.Popen(
        [BINARY, *command], cwd=tiny.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert piped.stdout is not None
    assert piped.stderr is not None
    piped.stdout.close()
    assert piped.stderr.read() == ""
    piped.wait(60)


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_corpus(tmp_path / "docs.jsonl", documents=50)
    config = write_config(tmp_path, tmp_path / "docs.jsonl", tmp_path / "run")
    command = [BINARY, "run", config, "--until", "tokenize", "--json"]
    stopped = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert stopped.stderr is not None
    while "tokenize" not in stopped.stderr.readline():
        assert stopped.poll() is None
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert (stopped.returncode, out) == (130, "")
    assert "the same command again goes on" in err
    assert "Traceback" not in err
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["stages"][0]["statistics"]["documents"] == 50


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tiny: Tiny, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    said = subprocess.run(
        [BINARY, "index", tiny.folder / "codes", "--out", tmp_path / "index"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert said.returncode == 1, said.stderr
    assert "File too large" in said.stderr
    assert "make room on that disk, and the same command again goes on" in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_evaluate_shows_every_ranking_and_the_drift_from_other_codes(
    latentbits: Cli, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tiny.copy(tmp_path).folder
    again = ("evaluate", folder, "--set", "tracking.enabled=false", "--overwrite")
    said = latentbits(*again, "--compare-codes", tiny.folder / "codes")
    assert said.status == 0, said.err
    assert "LSI + ITQ, asymmetric" in said.out
    assert "exact neighbours: the 100 nearest by tf-idf cosine" in said.out
    drift = json.loads((folder / "report" / "report.json").read_text())["drift"]
    assert (drift["documents"], drift["mean_distance"], drift["neighbours_kept_at_10"]) == (300, 0.0, 1.0)
    assert "Drift from the other codes" in (folder / "report" / "report.html").read_text()
    wrong = latentbits(*again, "--compare-codes", folder / "model")
    assert wrong.status == 2
    assert "holds model, and codes is needed here" in wrong.err
