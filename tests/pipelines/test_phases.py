"""Phases of training on DeepSpeed's real engine, in this process: one worker needs no cluster."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from pipelines.artifact import Artifact
from pipelines.corpus import CorpusConfig
from pipelines.tokenize import TokenizeConfig, tokenize
from pipelines.training import aggressive, checkpoint
from pipelines.training import worker as training
from pipelines.training.aggressive import Lag, aggressive_step, looked_at
from pipelines.training.batches import among_the_rest, held_out_count, held_out_rows, rows_of_step
from pipelines.training.engine import PretrainConfig
from pipelines.training.held_out import held_out_loss
from pipelines.training.phases import Job, PhaseRun, Schedule
from pipelines.training.worker import EXPORT, train
from vae_core.latents import BernoulliMixtureConfig, GaussianConfig, LatentConfig
from vae_core.model import VAE, Composition, VAEConfig
from vae_core.objectives import UNWEIGHTED, Annealing, Beta, Loss, MinimumRate, Objective
from vae_core.schedule import INFERENCE, Aggressive, Phase, part_of

DOCUMENTS, BATCH = 160, 16
AUTO = Phase(share=0.4, objective=Objective.model_validate({"rate": {"annealing": {"beta": 0}}}))
NEW_DECODER = Phase(share=0.6, reset=("decoder",), objective=Objective(rate=MinimumRate(nats=2.0)))
CONFIG = PretrainConfig(epochs=3, batch_size=BATCH, checkpoint_every=4, log_every=1, phases=(AUTO, NEW_DECODER))
MODEL = Composition.model_validate(
    {
        "encoder": {
            "kind": "transformer",
            "width": 16,
            "hidden": 32,
            "heads": 2,
            "layers": 1,
            "lsi": 0,
            "grow_after": 0.5,
        },
        "latent": {"kind": "gaussian", "dimensions": 8, "prior": "learned"},
        "condition": {"kind": "class", "classes": ["0", "1"]},
    }
)


@pytest.fixture(scope="module")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    del ray_cluster
    folder, dice = tmp_path_factory.mktemp("phases"), random.Random(0)
    words = ["".join(dice.choices("abcdefgh", k=5)) for _ in range(60)]
    rows = [f'"{" ".join(dice.choices(words, k=12))}",{n % 2}' for n in range(DOCUMENTS)]
    (folder / "a.csv").write_text("text,topic\n" + "\n".join(rows) + "\n")
    corpus = CorpusConfig(files=(str(folder / "a.csv"),), labels="topic")
    return tokenize(corpus, folder / "shards", TokenizeConfig(subwords=300))


@pytest.fixture(scope="module", autouse=True)
def _one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process group for all tests: DeepSpeed keeps the first that it sees."""
    threads, rendezvous = torch.get_num_threads(), tmp_path_factory.mktemp("group") / "rendezvous"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def job_of(shards: Artifact, scratch: Path, config: PretrainConfig = CONFIG) -> Job:
    scratch.mkdir(exist_ok=True)
    terms = pq.read_metadata(shards.path / "vocabulary.parquet").num_rows
    return Job(shards.path, scratch, VAEConfig(**MODEL.model_dump(), terms=terms, tokens=300), config)


PATIENT = PretrainConfig(epochs=3, batch_size=BATCH, checkpoint_every=7, log_every=5, held_out=0.1, patience=1000)


def looks_of(scratch: Path) -> dict[int, float]:
    """The held-out loss after each step at which it was looked at."""
    lines = [json.loads(line) for line in (scratch / "metrics.jsonl").read_text().splitlines()]
    return {line["step"] + 1: line["held_out_loss"] for line in lines if "held_out_loss" in line}


def test_held_out_documents_are_never_trained_on_and_all_others_are(shards: Artifact, tmp_path: Path) -> None:
    run = PhaseRun(job_of(shards, tmp_path, PATIENT), 0)
    assert len(run.held_out) == 16
    assert run.schedule.documents == 144
    epoch = np.concatenate([run.rows(step, BATCH, seed=0) for step in range(9)])
    assert sorted([*epoch, *run.held_out]) == list(range(DOCUMENTS))
    run.engine.destroy()


@pytest.mark.parametrize(
    ("objective", "price"), [(Objective(), 1), (Objective(rate=Beta(annealing=Annealing(beta=0.25))), 0.25)]
)
def test_the_held_out_loss_is_distortion_and_priced_rate_of_those_documents(
    shards: Artifact, tmp_path: Path, objective: Objective, price: float
) -> None:
    run = PhaseRun(job_of(shards, tmp_path, PATIENT.model_copy(update={"objective": objective})), 0)
    model = run.engine.module
    found = held_out_loss(run)
    assert model.training
    model.eval()
    with torch.no_grad():
        terms = model(run.shards.batch(run.held_out, tokens=False))
    expected = price * terms.kl_groups.sum(dim=1).mean() - terms.log_px.mean()
    assert found == pytest.approx(float(expected), rel=1e-5)
    run.engine.destroy()


def test_the_model_of_the_lowest_held_out_loss_is_exported(shards: Artifact, tmp_path: Path) -> None:
    job = job_of(shards, tmp_path, PATIENT.model_copy(update={"learning_rate": 0.3, "epochs": 10.0}))
    train(job)
    looks = looks_of(tmp_path)
    assert len(looks) == 20
    counted = {step: loss for step, loss in looks.items() if step >= 45}
    best = min(counted, key=counted.__getitem__)
    assert best < 90, "the last model is the best: the rate does not overshoot, and this test shows nothing"
    run = PhaseRun(job, 0, VAE.from_pretrained(tmp_path / EXPORT))
    assert held_out_loss(run) == pytest.approx(counted[best], rel=1e-5)
    run.engine.destroy()


def test_training_ends_where_so_many_looks_bring_nothing(shards: Artifact, tmp_path: Path) -> None:
    changes = {"learning_rate": 0.3, "epochs": 10.0, "patience": 1}
    train(job_of(shards, tmp_path, PATIENT.model_copy(update=changes)))
    looks = looks_of(tmp_path)
    steps = [step for step in looks if step >= 45]
    worse = next(step for before, step in itertools.pairwise(steps) if looks[step] >= looks[before])
    assert max(looks) == worse < 90


def test_how_often_checkpoints_are_written_changes_nothing(shards: Artifact, tmp_path: Path) -> None:
    for every in (3, 1000):
        train(job_of(shards, tmp_path / str(every), PATIENT.model_copy(update={"checkpoint_every": every})))
    assert looks_of(tmp_path / "3") == looks_of(tmp_path / "1000")
    ours, theirs = (load_file(tmp_path / folder / EXPORT / "model.safetensors") for folder in ("3", "1000"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_kill_after_any_checkpoint_keeps_the_same_best_model(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job_of(shards, tmp_path / "whole", PATIENT))
    step = training._step
    for last in (13, 16, 20, 26):

        def killed(run: PhaseRun, *rest: Any, last: int = last) -> Any:
            if rest[2] == last:
                raise KeyboardInterrupt
            return step(run, *rest)

        job = job_of(shards, tmp_path / str(last), PATIENT)
        with monkeypatch.context() as patch:
            patch.setattr(training, "_step", killed)
            with pytest.raises(KeyboardInterrupt):
                train(job)
        train(job)
        ours, theirs = (load_file(tmp_path / folder / EXPORT / "model.safetensors") for folder in (str(last), "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@given(documents=st.integers(1, 3000), share=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_places_among_the_rest_are_all_rows_but_the_held_out(documents: int, share: float, seed: int) -> None:
    held_out = held_out_rows(documents, share, seed)
    assert len(held_out) == held_out_count(documents, share) <= share * documents
    rest = among_the_rest(np.arange(documents - len(held_out)), held_out)
    assert sorted([*rest, *held_out]) == list(range(documents))


@pytest.mark.parametrize(
    ("documents", "latent", "epochs"),
    [
        (10_000, BernoulliMixtureConfig(bits=64), 15),
        (1_000_000, BernoulliMixtureConfig(bits=128), 1.5),
        (10_000, BernoulliMixtureConfig(bits=8), 30),
        (10_000, GaussianConfig(dimensions=8), 15),
    ],
)
def test_fewer_epochs_for_larger_corpora_and_more_for_few_bits(
    documents: int, latent: LatentConfig, epochs: float
) -> None:
    schedule = Schedule.of(PretrainConfig(batch_size=100, held_out=0), documents, latent)
    assert schedule.steps == epochs * documents / 100


def weights_of(run: PhaseRun) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.engine.module.named_parameters()}


def moved_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def rows_at(step: int) -> np.ndarray:
    return rows_of_step(step, documents=DOCUMENTS, batch_size=BATCH, seed=0)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(1, 400))
def test_phases_cut_the_steps_into_stretches_in_proportion(shares: list[float], epochs: int) -> None:
    config = PretrainConfig(epochs=epochs, batch_size=10, phases=tuple(Phase(share=share) for share in shares))
    schedule = Schedule.of(config, documents=10, latent=MODEL.latent)
    lengths = [schedule.length(number) for number in range(len(shares))]
    assert sum(lengths) == schedule.steps
    assert min(lengths) >= 1
    assert [schedule.phase_of(step) for step in range(schedule.steps)] == [
        number for number, length in enumerate(lengths) for _ in range(length)
    ]
    if schedule.steps > 100:
        expected = [schedule.steps * share / sum(shares) for share in shares]
        assert all(abs(a - b) <= 1 + len(shares) for a, b in zip(lengths, expected, strict=True))


def test_the_learning_rate_warms_up_and_falls_to_nothing_in_each_phase() -> None:
    config = PretrainConfig(epochs=200, batch_size=10, phases=(Phase(share=1), Phase(share=3)))
    schedule = Schedule.of(config, documents=10, latent=MODEL.latent)
    factors = [schedule.factor(step) for step in range(200)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[25] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(1 / 15)
    assert max(factors[49], factors[199]) < 2e-3
    assert [schedule.progress(step) for step in (0, 25, 50, 125)] == [0, 0.5, 0, 0.5]


def test_a_phase_goes_on_with_the_weights_except_those_it_resets_and_a_new_optimiser(
    shards: Artifact, tmp_path: Path
) -> None:
    run = PhaseRun(job_of(shards, tmp_path / "one"), 0)
    for step in range(3):
        run.minimise(rows_at(step), 0.9)
    trained = weights_of(run)
    later = run.next(1)
    assert moved_parts(trained, weights_of(later)) == {"decoder"}
    assert not any(later.engine.optimizer.state.values())
    fresh = weights_of(PhaseRun(job_of(shards, tmp_path / "two", CONFIG.model_copy(update={"seed": 1})), 0))
    for name, value in weights_of(later).items():
        assert part_of(name) != "decoder" or torch.equal(value, fresh[name])


def test_a_phase_moves_only_the_parts_that_it_trains(shards: Artifact, tmp_path: Path) -> None:
    phases = (Phase(trains=("decoder", "prior")),)
    run = PhaseRun(job_of(shards, tmp_path / "one", CONFIG.model_copy(update={"phases": phases})), 0)
    before = weights_of(run)
    run.minimise(rows_at(0), 0.9)
    assert moved_parts(before, weights_of(run)) == {"decoder", "prior"}


@pytest.mark.parametrize(
    ("latent", "share"),
    [
        (BernoulliMixtureConfig(bits=128), 1),
        (BernoulliMixtureConfig(bits=512), 1 / 4),
        (GaussianConfig(dimensions=512), 1),
    ],
)
def test_a_step_moves_no_words_logit_further_for_many_bits(
    shards: Artifact, tmp_path: Path, latent: LatentConfig, share: float
) -> None:
    """Adam's first step moves every weight that has a gradient by its learning rate."""
    job = job_of(shards, tmp_path / "one")
    alone = VAEConfig.model_validate(job.model.model_dump() | {"latent": latent.model_dump(), "condition": None})
    run = PhaseRun(replace(job, model=alone), 0)
    before = weights_of(run)
    run.minimise(rows_at(0), 0.9)
    after = weights_of(run)
    furthest = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert furthest["decoder.words.bias"] == pytest.approx(CONFIG.learning_rate, rel=0.01)
    assert furthest["decoder.words.weight"] == pytest.approx(CONFIG.learning_rate * share, rel=0.01)


def test_a_minimum_rates_multiplier_rises_while_the_rate_is_too_small(shards: Artifact, tmp_path: Path) -> None:
    run = PhaseRun(job_of(shards, tmp_path / "one"), 1)
    assert run.multiplier == UNWEIGHTED
    betas = [run.minimise(rows_at(step), 0.0)[1].beta for step in range(3)]
    assert run.multiplier.logit > 0
    assert betas[0] > betas[1] > betas[2]


def trained(job: Job) -> dict[str, Tensor]:
    train(job)
    return load_file(job.scratch / EXPORT / "model.safetensors")


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("saves", [1, 3, 4])
def test_training_cut_off_anywhere_ends_in_the_same_weights(
    shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int, stage: int
) -> None:
    """Thirty steps, of which the first phase has twelve: cut off in it, at its end, and in the second phase."""
    lagging = NEW_DECODER.model_copy(update={"aggressive": Aggressive(most=4, window=2, checks=6, documents=50)})
    config = CONFIG.model_copy(update={"phases": (AUTO, lagging), "zero_stage": stage})
    undisturbed = trained(job_of(shards, tmp_path / "undisturbed", config))
    job, count, save = job_of(shards, tmp_path / "cut", config), itertools.count(1), checkpoint.save

    def save_and_stop(*given: Any) -> None:
        save(*given)
        if next(count) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.checkpoint, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    found = trained(job)
    assert undisturbed.keys() == found.keys()
    assert all(torch.equal(undisturbed[name], found[name]) for name in undisturbed)


def test_aggressive_training_moves_the_inference_network_alone_and_then_the_rest_alone(
    shards: Artifact, tmp_path: Path
) -> None:
    settings = Aggressive(most=3)
    phases = (Phase(aggressive=settings),)
    run = PhaseRun(job_of(shards, tmp_path / "one", CONFIG.model_copy(update={"phases": phases})), 0)
    before = weights_of(run)
    aggressive_step(run, settings, Lag(), 20, rows_at(20))
    between = weights_of(run)
    assert moved_parts(before, between) == set(INFERENCE)
    run.minimise(rows_at(20), 0.9)
    assert moved_parts(between, weights_of(run)) == {"prior", "decoder", "condition"}


def test_a_lag_that_is_over_moves_nothing_ahead(shards: Artifact, tmp_path: Path) -> None:
    run = PhaseRun(job_of(shards, tmp_path / "one"), 0)
    before = weights_of(run)
    aggressive_step(run, Aggressive(), Lag(behind=False), 20, rows_at(20))
    assert not moved_parts(before, weights_of(run))


class ScriptedRun:
    """A run whose inner steps have given losses, to count how many are made."""

    def __init__(self, losses: list[float], checks: int = 4) -> None:
        self.losses, self.made = losses, 0
        self.job = SimpleNamespace(config=SimpleNamespace(batch_size=BATCH, seed=0))
        self.schedule = SimpleNamespace(
            documents=DOCUMENTS, progress=lambda step: step / checks, progress_after=lambda step: (step + 1) / checks
        )

    def rows(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        return rows_of_step(step, documents=DOCUMENTS, batch_size=batch_size, seed=seed)

    def minimise(self, rows: np.ndarray, progress: float) -> tuple[None, Loss]:
        assert len(rows) == BATCH
        total = torch.tensor(self.losses[min(self.made, len(self.losses) - 1)])
        self.made += 1
        return None, Loss(total, total, total, progress)


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([5.0], 100),  # no window is worse than the one before
        ([1.0] * 15 + [2.0] * 15, 30),
        ([3.0] * 15 + [1.0] * 15 + [2.0], 45),
        ([1.0] * 14 + [9.0] + [1.0] * 85, 100),  # one bad step in the first window
    ],
)
def test_inner_steps_end_with_the_first_window_that_is_worse_or_at_the_most(losses: list[float], steps: int) -> None:
    run = ScriptedRun(losses)
    aggressive._infer(run, Aggressive(most=100, window=15), 0, rows_at(0))
    assert run.made == steps


def test_the_lag_is_over_for_good_once_the_information_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([1.0, 2.0, 3.0, 2.9, 5.0])
    monkeypatch.setattr(aggressive, "_information", lambda *_: next(measured))
    run, settings, lag = ScriptedRun([1.0], checks=8), Aggressive(checks=8), Lag()
    behind = []
    for step in range(6):
        lag = looked_at(run, settings, lag, step)
        behind.append(lag.behind)
    assert behind == [True, True, True, False, False, False]
    assert lag.information == 2.9


def test_no_information_is_measured_at_the_first_step_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is learned the estimate is noise about 0, and a negative one would end it all."""
    phases = (Phase(share=1), Phase(share=1))
    schedule = Schedule.of(PretrainConfig(epochs=200, batch_size=10, phases=phases), documents=10, latent=MODEL.latent)
    looks: list[int] = []
    monkeypatch.setattr(aggressive, "_information", lambda *_: looks.append(step) or -1e-3)
    for step in range(200):
        lag = looked_at(SimpleNamespace(schedule=schedule), Aggressive(checks=4), Lag(), step)
        assert lag.behind
    assert looks == [24, 49, 74, 99, 124, 149, 174, 199]


def test_the_information_of_a_gaussian_posterior_is_between_nothing_and_the_most(
    shards: Artifact, tmp_path: Path
) -> None:
    run = PhaseRun(job_of(shards, tmp_path / "one"), 0)
    assert abs(aggressive._information(run, 100)) < 0.5
    with torch.no_grad():
        run.engine.module.latent.head.mean.weight.mul_(1e4)
        run.engine.module.latent.head.log_variance.bias.fill_(-10)
    assert aggressive._information(run, 100) == pytest.approx(np.log(100), abs=0.05)
