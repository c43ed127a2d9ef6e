"""Send a run to a cluster: the same `latentbits run`, with its settings in one file, named by what it is."""

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jobs import needs
from jobs.cluster import MARK, Cluster, Job
from jobs.config import RunConfig
from jobs.events import RUN
from jobs.shipped_config import as_yaml, shipped
from jobs.stages import FIRST, LAST, chosen
from pipelines.tokenizing.slices import find_files
from vae_core.errors import Misuse

CONFIG_FILE = "run.yaml"
PACKAGES = ("vae_core", "pipelines", "jobs")
STOP_S = 120
"""How long a job that is told to stop has to end in order before it is killed; Ray gives 3 s of its own accord."""
LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job, and whether it was sent now or was there already."""

    job: Job
    new: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run: `code` is a wheel, or the folder of a checkout; None: what the nodes have."""

    config: RunConfig
    first: str = FIRST
    last: str = LAST
    overwrite: bool = False
    code: Path | None = None


def submit(
    request: Request,
    cluster: Cluster,
    *,
    again: bool = False,
    patience: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Submitted:
    """Send the run, unless the cluster has had the same one; with `again` a new job even then.

    Raises Misuse where another job writes to the same folder, and where the cluster lacks what the run needs for
    `patience` seconds; `say` hears what it waits for.
    """
    tree = shipped(request.config)
    stages = _stages(request)
    with tempfile.TemporaryDirectory() as folder:
        _pack(Path(folder), as_yaml(tree), request.code)
        fingerprint = _fingerprint(Path(folder), request)
        jobs = cluster.jobs()
        same = [job for job in jobs if job.metadata.get("fingerprint") == fingerprint]
        if same and not again:
            return Submitted(same[0], new=False)
        _require_own_folder(tree["out"], jobs)
        needs.require(needs.needs(request.config, stages), cluster, patience, say)
        name = f"{_word(tree['out'])}-{fingerprint}"
        facts = {
            MARK: version("latentbits"),
            "name": name,
            "fingerprint": fingerprint,
            "out": tree["out"],
            "stages": ",".join(stages),
            "arguments": json.dumps(_arguments(request)),
            "code": request.code.name if request.code else "",
            "config": as_yaml(tree),
        }
        return _send(cluster, _attempt(name, len(same) + 1), folder, facts)


def resume(name: str, cluster: Cluster, *, code: Path | None = None) -> Submitted:
    """Send a job that failed or was stopped once more, as it was; it goes on where it ended.

    Raises Misuse where it is not over, is done, or came with code that the cluster does not hold any more.
    """
    job = cluster.job(name)
    if MARK not in job.metadata:
        raise Misuse(f"{name} is no job of latentbits; submit it again with the program that sent it")
    if job.status == "SUCCEEDED":
        raise Misuse(f"{name} is done; to run its stages anew, submit its config with --again --overwrite")
    jobs = cluster.jobs()
    _require_own_folder(job.metadata["out"], jobs)
    attempts = [one for one in jobs if one.metadata["fingerprint"] == job.metadata["fingerprint"]]
    facts = {key: value for key, value in job.metadata.items() if not key.startswith("job_")}
    with tempfile.TemporaryDirectory() as folder:
        if code is None and facts["code"]:
            if job.package is None or not cluster.has_package(job.package):
                raise Misuse(f"the cluster no longer holds {facts['code']}, which {name} came with; add --wheel FILE")
            place = job.package
        else:
            _pack(Path(folder), facts["config"], code)
            place = folder
        facts["code"] = code.name if code else facts["code"]
        return _send(cluster, _attempt(facts["name"], len(attempts) + 1), place, facts)


def _stages(request: Request) -> list[str]:
    """The stages that will have work. Raises Misuse where the choice cannot be met, before anything is sent."""
    found = chosen(request.first, request.last, request.config)
    if request.first == FIRST and not request.config.corpus.files:
        find_files(())
    return found


def _send(cluster: Cluster, name: str, place: str, facts: dict[str, str]) -> Submitted:
    environment = {RUN: name, "LATENTBITS_LOG": "json", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    program = "python -m jobs" if facts["code"] else "latentbits"
    # exec: what Ray tells to stop is then the program itself, and not a shell around it.
    entrypoint = " ".join(["exec", program, "run", CONFIG_FILE, "--json", *json.loads(facts["arguments"])])
    new = cluster.submit(name, entrypoint, {"working_dir": place, "env_vars": environment}, facts)
    return Submitted(cluster.job(name), new)


def _pack(folder: Path, config: str, code: Path | None) -> None:
    """What travels: the settings, and the program where it is not the one that the nodes have."""
    if code is None:
        pass
    elif code.is_dir():
        _copy_packages(code, folder)
    elif code.suffix == ".whl" and zipfile.is_zipfile(code):
        with zipfile.ZipFile(code) as wheel:
            wheel.extractall(folder)
    else:
        what = "no wheel" if code.exists() else "no such file"
        raise Misuse(f"--wheel {code}: {what}; give a .whl (pip wheel --no-deps .), or the folder of a checkout")
    if code is not None and not all((folder / name).is_dir() for name in PACKAGES):
        raise Misuse(f"--wheel {code} does not hold {', '.join(PACKAGES)}; give a wheel or a checkout of latentbits")
    (folder / CONFIG_FILE).write_text(config)


def _copy_packages(checkout: Path, folder: Path) -> None:
    for name in PACKAGES:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _fingerprint(folder: Path, request: Request) -> str:
    """Hash of what is sent: settings, stages, and the program where it goes along."""
    digest = hashlib.sha256(json.dumps(_arguments(request)).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _arguments(request: Request) -> list[str]:
    chosen = ["--from", request.first, "--until", request.last]
    return [*chosen, "--overwrite"] if request.overwrite else chosen


def _attempt(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _word(out: str) -> str:
    """The name of the run's folder, of letters that a job's name may have."""
    return re.sub(r"[^a-z0-9]+", "-", Path(out).name.lower()).strip("-")[:LONGEST_NAME] or "run"


def _require_own_folder(out: str, jobs: list[Job]) -> None:
    for job in jobs:
        if not job.over and job.metadata.get("out") == out:
            raise Misuse(
                f"job {job.id} is {job.status} and writes to the same folder, {out}; wait for it, stop it with "
                f"`latentbits stop {job.id}`, or give another folder with --set out=..."
            )
