"""Training through real Ray Train and DeepSpeed, undisturbed and disturbed. A run costs some ten seconds, so runs are
shared and each asks several things.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipelines import pretrain as module
from pipelines.artifact import UNFINISHED, Artifact, write_text
from pipelines.corpus import CorpusConfig
from pipelines.encoder import Encoder
from pipelines.files.arrow import record_batches
from pipelines.pretrain import components_for, pretrain
from pipelines.progress import Silent
from pipelines.tokenize import TokenizeConfig, tokenize
from pipelines.tracking import NoTracking
from pipelines.training.batches import digest, rows_of_step
from pipelines.training.worker import CHECKPOINTS, METRICS, PretrainConfig
from vae_core.errors import LatentbitsError, Misuse, Stale
from vae_core.model import WEIGHTS_FILE, Composition, VAEConfig
from vae_core.objectives import Objective

pytestmark = pytest.mark.usefixtures("ray_cluster")
DOCUMENTS, TOPICS, BATCH, STEPS = 400, 4, 40, 200
MODEL = Composition.model_validate(
    {
        "encoder": {"kind": "transformer", "width": 16, "hidden": 32, "heads": 2, "grow_after": 0.5},
        "latent": {"bits": 16, "components": 4},
    }
)
CONFIG = PretrainConfig(
    epochs=20, batch_size=BATCH, learning_rate=0.01, log_every=5, checkpoint_every=20, seed=3, held_out=0
)
SHORT = CONFIG.model_copy(update={"epochs": 5.0})


def planted_texts() -> Iterator[dict[str, str]]:
    """Documents of 5 to 30 words, nine in ten from the 40 words of one of the topics."""
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(40 * TOPICS)]
    for number in range(DOCUMENTS):
        topic = number % TOPICS
        own = words[40 * topic : 40 * (topic + 1)]
        text = [dice.choice(own if dice.random() < 0.9 else words) for _ in range(dice.randint(5, 30))]
        yield {"id": f"d{number}", "text": " ".join(text), "topic": str(topic)}


@pytest.fixture(scope="module")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del ray_cluster
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in planted_texts()))
    corpus = CorpusConfig(files=(str(folder / "a.jsonl"),), id="id", labels="topic")
    return tokenize(corpus, folder / "shards", TokenizeConfig(subwords=300)).path


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> Artifact:
    return pretrain(shards, shards.parent / "undisturbed", MODEL, CONFIG)


@pytest.fixture(scope="module")
def two_workers(shards: Path) -> Artifact:
    return pretrain(shards, shards.parent / "two", MODEL, SHORT.model_copy(update={"workers": 2}))


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def rows_by_step(artifact: Artifact) -> dict[int, str]:
    return {line["step"]: line["rows"] for line in lines(artifact.path / METRICS)}


def planned_rows(steps: int) -> dict[int, str]:
    return {
        step: digest(rows_of_step(step, documents=DOCUMENTS, batch_size=BATCH, seed=CONFIG.seed))
        for step in [*range(0, steps, 5), steps - 1]
    }


def same_training(one: Artifact, other: Artifact) -> None:
    """Every logged step once, with the same documents and loss; and the same bytes in the end."""
    for key in ("step", "rows", "loss", "rate", "active_units", "learning_rate"):
        assert [line[key] for line in lines(one.path / METRICS)] == [line[key] for line in lines(other.path / METRICS)]
    weights = [artifact.path / "model.safetensors" for artifact in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def wait_for_step(folder: Path, step: int) -> dict[str, Any]:
    """The newest line of metrics, once it is of `step` or a later one."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        written = lines(folder / UNFINISHED / METRICS)
        if written and written[-1]["step"] >= step:
            return written[-1]
        time.sleep(0.005)
    raise TimeoutError(f"no step {step} in {folder}")


def resumed_at(artifact: Artifact) -> int:
    """The first logged step that another process did than the one that did step 0."""
    written = lines(artifact.path / METRICS)
    return next(int(line["step"]) for line in written if line["process"] != written[0]["process"])


def test_training_on_planted_topics_lowers_the_loss_and_its_codes_tell_the_topics(undisturbed: Artifact) -> None:
    undisturbed.verify()
    losses = [line["distortion"] for line in lines(undisturbed.path / METRICS)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 5
    encoder = Encoder.load(undisturbed.path)
    (table,) = (
        batch
        for path in Artifact.open(undisturbed.input_path("shards")).files(".arrow")
        for batch in record_batches(path)
    )
    bits = encoder.encode(table).codes.unpack().numpy()
    topics = np.array([labels[0] for labels in table.column("labels").to_pylist()])
    distances = (bits[:, None] != bits[None]).sum(axis=2) + 99 * np.eye(len(bits))
    assert (topics[distances.argmin(axis=1)] == topics).mean() > 0.8


def test_the_model_artifact_has_everything_a_model_needs(undisturbed: Artifact) -> None:
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocabulary.parquet", "README.md", "metrics.jsonl"}
    assert {part.name for part in undisturbed.manifest.parts} == names
    assert {path.name for path in undisturbed.path.iterdir()} == names | {"manifest.json"}
    statistics = undisturbed.manifest.statistics
    assert (statistics["steps"], statistics["documents"]) == (STEPS, DOCUMENTS)


def test_each_step_trains_on_the_documents_that_the_plan_names(undisturbed: Artifact) -> None:
    assert rows_by_step(undisturbed) == planned_rows(STEPS)


def test_two_workers_share_out_the_documents_that_the_plan_names(two_workers: Artifact) -> None:
    assert rows_by_step(two_workers) == planned_rows(50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "workers", "precision"),
    [(1, 2, "fp32"), (2, 2, "fp32"), (3, 2, "fp32"), (3, 1, "fp32"), (1, 2, "bf16")],
)
def test_every_zero_stage_trains_alike(
    shards: Path, two_workers: Artifact, stage: int, workers: int, precision: str
) -> None:
    changes = {"zero_stage": stage, "workers": workers, "precision": precision}
    name = f"zero-{stage}-{workers}-{precision}"
    artifact = pretrain(shards, shards.parent / name, MODEL, SHORT.model_copy(update=changes))
    losses, expected = (
        np.array([line["loss"] for line in lines(one.path / METRICS)]) for one in (artifact, two_workers)
    )
    same_noise = workers == 2 and precision == "fp32"
    np.testing.assert_allclose(losses, expected, rtol=1e-4 if same_noise else 0.1)
    assert Encoder.load(artifact.path).bits == 16


@pytest.mark.slow
def test_steps_in_micro_batches_are_those_of_whole_batches(shards: Path) -> None:
    """Nothing is random here, and the loss is a mean over documents. Blocks are left out: where they start their
    gradient is next to zero, and Adam makes whole steps of its rounding.
    """
    quiet = Composition.model_validate(
        {
            "encoder": {"width": 16, "hidden": 32, "layers": 0, "dropout": 0, "term_dropout": 0},
            "latent": {"bits": 16, "components": 4, "noise": False},
        }
    )
    config = CONFIG.model_copy(update={"epochs": 1.0, "objective": Objective(decorrelation=0)})
    whole, cut = (
        pretrain(shards, shards.parent / f"in-{count}", quiet, config.model_copy(update={"accumulation": count})).path
        for count in (1, 2)
    )
    torch.testing.assert_close(load_file(cut / WEIGHTS_FILE), load_file(whole / WEIGHTS_FILE), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_word_vectors_stay_as_they_started_without_zero_and_with_its_last_stage(shards: Path) -> None:
    kept = MODEL.model_copy(update={"encoder": MODEL.encoder.model_copy(update={"word_vectors": "lsi"})})
    config = SHORT.model_copy(update={"workers": 2})
    both = [
        pretrain(shards, shards.parent / f"kept-{stage}", kept, config.model_copy(update={"zero_stage": stage}))
        for stage in (0, 3)
    ]
    losses, expected = (np.array([line["loss"] for line in lines(one.path / METRICS)]) for one in both)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    first, second = (load_file(one.path / WEIGHTS_FILE)["encoder.embedding.weight"] for one in both)
    assert torch.equal(first, second)
    assert float(first.std()) == pytest.approx(0.1, rel=1e-5)  # which learning changes


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_leaves_no_trace_in_the_model(
    shards: Path, undisturbed: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called with relative paths, from a folder that the workers are not in."""
    monkeypatch.chdir(shards.parent)
    folder = shards.parent / "worker-killed"
    killer = threading.Thread(target=lambda: os.kill(wait_for_step(folder, 70)["process"], signal.SIGKILL))
    killer.start()
    artifact = pretrain(Path("shards"), Path("worker-killed"), MODEL, CONFIG)
    killer.join()
    assert 40 <= resumed_at(artifact) < STEPS
    same_training(artifact, undisturbed)


@pytest.mark.slow
def test_a_run_whose_driver_is_killed_goes_on_from_the_last_whole_checkpoint(
    shards: Path, undisturbed: Artifact
) -> None:
    """The newest checkpoint is cut short before the second call, so that the one before must do."""
    folder = shards.parent / "driver-killed"
    kill_driver(shards, folder, CONFIG, after=70)
    checkpoints = sorted((folder / UNFINISHED / CHECKPOINTS).glob("*/complete.json"))
    states = sorted(checkpoints[-1].parent.glob("*.pt"))
    states[0].write_bytes(states[0].read_bytes()[:-100])
    artifact = pretrain(shards, folder, MODEL, CONFIG)
    assert resumed_at(artifact) == int(checkpoints[-2].parent.name.removeprefix("step-")) > 0
    same_training(artifact, undisturbed)


@pytest.mark.slow
def test_a_run_under_zero_goes_on_with_its_number_of_workers_and_names_it_otherwise(shards: Path) -> None:
    config = CONFIG.model_copy(update={"workers": 2, "zero_stage": 1})
    folder = shards.parent / "zero-killed"
    kill_driver(shards, folder, config, after=70)
    with pytest.raises(
        Misuse, match=r"was written by 2 workers with ZeRO stage 1, and there are 1 now; .*workers to 2"
    ):
        pretrain(shards, folder, MODEL, config.model_copy(update={"workers": 1}))
    assert resumed_at(pretrain(shards, folder, MODEL, config)) > 0


def kill_driver(shards: Path, folder: Path, config: PretrainConfig, *, after: int) -> None:
    """Run the stage in a process group of its own and kill that once a step is done."""
    call = (
        "from pathlib import Path; from pipelines.pretrain import PretrainConfig, pretrain;"
        "from vae_core.model import Composition;"
        f"pretrain(Path({str(shards)!r}), Path({str(folder)!r}),"
        f"Composition.model_validate_json({MODEL.model_dump_json()!r}),"
        f"PretrainConfig.model_validate_json({config.model_dump_json()!r}))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen([sys.executable, "-c", call], start_new_session=True, env=environment)
    worker = psutil.Process(wait_for_step(folder, after)["process"])
    os.killpg(driver.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.kill()  # Ray would end it too, but so late that it may have done all steps
        worker.wait(timeout=30)
    driver.wait()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_training_at_once_and_keeps_the_checkpoint(shards: Path) -> None:
    """At the step named; the checkpoint is of a step before the loss broke."""
    config = SHORT.model_copy(update={"learning_rate": 1e30, "checkpoint_every": 1, "log_every": 50})
    folder = shards.parent / "diverged"
    with pytest.raises(LatentbitsError, match=r"training diverged at step \d+: loss (nan|inf).*learning_rate") as error:
        pretrain(shards, folder, MODEL, config)
    step = int(str(error.value).split("step ")[1].split(":")[0])
    kept = sorted((folder / UNFINISHED / CHECKPOINTS).glob("*/complete.json"))
    assert kept[-1].parent.name == f"step-{step:09d}"
    processes = {line["process"] for line in lines(folder / UNFINISHED / METRICS)}
    assert len(processes) == 1


def test_metrics_that_a_restart_wrote_anew_are_carried_on_and_no_step_twice(tmp_path: Path) -> None:
    """Between two looks the file lost its last steps and grew past where the first look ended, inside a line."""

    class Heard(NoTracking):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
            del stage, metrics
            self.steps.append(step)

    def record(step: int, loss: float) -> str:
        numbers = dict.fromkeys(("distortion", "rate", "beta", "tokens_per_second"), 1.0)
        return json.dumps({"step": step, "loss": loss, **numbers}) + "\n"

    path, heard = tmp_path / METRICS, Heard()
    job = module.Job(tmp_path, tmp_path, VAEConfig(terms=1, tokens=1), PretrainConfig())
    watcher = module._Watcher(job, 1, 100, Silent(), heard)
    path.write_text("".join(record(step, 0.5) for step in range(6)))
    watcher._carry()
    write_text(path, "".join(record(step, 0.123456) for step in range(9)))
    watcher._carry()
    assert heard.steps == list(range(9))


def test_what_cannot_be_met_is_said_before_anything_starts(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"batch_size 40 cannot be divided among 3 workers x 1 .* a multiple of 3"):
        pretrain(shards, tmp_path / "a", MODEL, CONFIG.model_copy(update={"workers": 3}))
    config = CONFIG.model_copy(update={"workers": 2, "accumulation": 250, "batch_size": 500})
    with pytest.raises(Misuse, match=r"400 documents cannot be shared out among 2 workers x 250"):
        pretrain(shards, tmp_path / "b", MODEL, config)
    config = config.model_copy(update={"accumulation": 195, "batch_size": 390, "held_out": 0.5})
    with pytest.raises(Misuse, match=r"200 documents cannot be shared out among 2 workers x 195"):
        pretrain(shards, tmp_path / "c", MODEL, config)
    with pytest.raises(ValidationError, match="less than 2147483648"):
        PretrainConfig(seed=20250101120000)
    with pytest.raises(ValidationError, match=r"bf16 needs zero_stage 1, 2 or 3, got 0; set pretrain.zero_stage to 1"):
        PretrainConfig(precision="bf16")
    assert not list(tmp_path.iterdir())


def test_more_bits_than_documents_are_refused_with_what_is_sensible(shards: Path, tmp_path: Path) -> None:
    wide = Composition.model_validate({"latent": {"bits": 512}})
    with pytest.raises(Misuse, match=r"learn 512 bits from; set model\.latent\.bits to \d+, or add documents"):
        pretrain(shards, tmp_path / "model", wide, PretrainConfig())
    assert not (tmp_path / "model").exists()


def test_where_no_width_is_sensible_only_more_documents_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one word\ntwo words\nthree words\n")
    few = tokenize(CorpusConfig(files=(str(tmp_path / "few.txt"),)), tmp_path / "few", TokenizeConfig(subwords=300))
    with pytest.raises(Misuse, match=r"has 3 documents, too few to learn 64 bits from; add documents$"):
        pretrain(few.path, tmp_path / "model", Composition(), PretrainConfig())


@pytest.mark.parametrize(("documents", "components"), [(100, 8), (11_314, 21), (1_000_000, 200), (100_000_000, 256)])
def test_components_follow_from_the_documents(documents: int, components: int) -> None:
    assert components_for(documents) == components


def test_more_workers_than_cores_are_refused_with_the_number_there_is(shards: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"workers": 400, "batch_size": 400})
    with pytest.raises(Misuse, match=r"pretrain.workers is 400, and the cluster has \d+ cores; set it to \d+ or less"):
        pretrain(shards, tmp_path / "out", MODEL, config)


def test_the_same_settings_find_the_model_there_and_others_name_what_changed(
    shards: Path, undisturbed: Artifact
) -> None:
    before = (undisturbed.path / "manifest.json").stat().st_mtime_ns
    elsewhere = CONFIG.model_copy(update={"log_every": 7, "checkpoint_every": 9, "workers": 2})
    for config in (CONFIG, elsewhere):
        assert pretrain(shards, undisturbed.path, MODEL, config).fingerprint == undisturbed.fingerprint
    with pytest.raises(Stale, match=r"pretrain.seed was 3 and is now 4"):
        pretrain(shards, undisturbed.path, MODEL, CONFIG.model_copy(update={"seed": 4}))
    latent = MODEL.latent.model_copy(update={"bits": 24})
    with pytest.raises(Stale, match=r"model.latent.bits was 16 and is now 24"):
        pretrain(shards, undisturbed.path, MODEL.model_copy(update={"latent": latent}), CONFIG)
    assert (undisturbed.path / "manifest.json").stat().st_mtime_ns == before


def test_overwriting_keeps_the_old_model_until_the_new_one_is_whole(
    shards: Path, undisturbed: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(shards, undisturbed.path, MODEL, CONFIG.model_copy(update={"seed": 4}), overwrite=True)
    Artifact.open(undisturbed.path, "model").verify()
    assert Encoder.load(undisturbed.path).fingerprint == undisturbed.fingerprint
