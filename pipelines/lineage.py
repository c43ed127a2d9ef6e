"""Where something is from: an artifact back to its files, or one document back to the line of its file."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipelines.artifact import MANIFEST, Artifact
from pipelines.corpus import CorpusConfig, Document, plan_slices, read_slice
from pipelines.files.digests import digests
from pipelines.mlflow_runs import Sent
from pipelines.storage import is_folder, shown, uri_of
from pipelines.tokenizing.slices import Slice
from vae_core.errors import LatentbitsError, Misuse

GONE, CHANGED = "gone", "changed since"
STAGES = {
    "shards": "tokenize",
    "embeddings": "embed",
    "graph": "graph",
    "model": "pretrain",
    "codes": "encode",
    "index": "index",
    "report": "evaluate",
    "duplicates": "dedup",
}
"""The stage that makes each kind, by which tracking calls its run."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One step back: what it is, where it lies, and what it was made from; `state` is set where it is no longer so."""

    name: str
    place: str
    facts: dict[str, str]
    made_from: "tuple[Origin, ...]" = ()
    state: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def lineage(path: Path) -> Origin:
    """What the artifact at `path` was made from, down to files. Raises Misuse, Unfinished or Damaged."""
    return _of_artifact(Artifact.open(path), "")


def document_lineage(path: Path, document: str) -> Origin:
    """Where the document with this id is from: `path` is an index, codes, shards, or a run folder that has one.

    Raises Misuse where the document is not there.
    """
    artifact = _holder(path)
    steps = {"index": _in_index, "codes": _in_codes, "shards": _in_shards}
    if artifact.manifest.kind not in steps:
        raise Misuse(f"{shown(path)} holds {artifact.manifest.kind}; give an index, codes or shards, or a run folder")
    found = steps[artifact.manifest.kind](artifact, document)
    if found is None:
        raise Misuse(f"{shown(path)} has no document {document!r}; give the id of a hit")
    return Origin("document", document, {}, (found,))


def _holder(path: Path) -> Artifact:
    """The artifact at `path`, or in the run folder `path` the one that holds its documents."""
    for name in ("index", "codes", "shards"):
        if not (path / MANIFEST).exists() and is_folder(path / name):
            return Artifact.open(path / name)
    return Artifact.open(path)


def _of_artifact(artifact: Artifact, name: str, facts: dict[str, str] | None = None, state: str = "") -> Origin:
    manifest = artifact.manifest
    own = {"fingerprint": artifact.fingerprint, "created": manifest.created}
    own |= {"revision": manifest.git_revision[:12]} if manifest.git_revision else {}
    run = manifest.tracking_run or _tracking_run(artifact)
    own |= {"tracking run": run} if run else {}
    title = manifest.kind if name in ("", manifest.kind) else f"{name}: {manifest.kind}"
    made_from = tuple(_origin(artifact, item.name) for item in manifest.inputs)
    return Origin(title, artifact.place, (facts or {}) | own, made_from, state)


def _tracking_run(artifact: Artifact) -> str | None:
    """The stage's run as tracking noted it beside the artifact: a quick stage is done before it has one."""
    notes = sorted((artifact.path.parent / ".tracking").glob("sent-*.json"), key=lambda note: note.stat().st_mtime)
    for note in reversed(notes):
        try:
            run = Sent.model_validate_json(note.read_bytes()).runs.get(STAGES.get(artifact.manifest.kind, ""))
        except ValidationError:
            continue
        if run is not None:
            return run.id
    return None


def _origin(artifact: Artifact, name: str) -> Origin:
    path, expected = artifact.input_path(name), artifact.input(name).fingerprint
    facts = {"fingerprint": expected[:16]}
    if not (path.exists() or is_folder(path)):
        return Origin(name, shown(path), facts, state=GONE)
    if not (path / MANIFEST).exists():
        return Origin(name, shown(path), facts, state=_file_state(path, expected))
    found = Artifact.open(path)
    return _of_artifact(found, name, state="" if found.fingerprint == expected else CHANGED)


def _file_state(path: Path, expected: str) -> str:
    if not path.is_file() or len(expected) != 64:
        return ""
    return "" if digests([path])[path] == expected else CHANGED


def _in_index(artifact: Artifact, document: str) -> Origin | None:
    from pipelines.search import Index

    index = Index.open(artifact.path)
    row = index.row_of(document)
    if row is None:
        return None
    number = max(place for place, start in enumerate(index.starts[:-1]) if start <= row)
    segment = index.opened.version.segments[number]
    facts = {"version": str(index.version), "segment": segment.name, "row": str(row - index.starts[number])}
    made_from = [_in_source(Path(source.uri), source.fingerprint, document, artifact) for source in segment.sources]
    held = [one for one in made_from if one.state != "not in it"] or made_from
    whole = _of_artifact(artifact, "", facts)
    return Origin(whole.name, whole.place, whole.facts, tuple(held))


def _in_source(path: Path, fingerprint: str, document: str, index: Artifact) -> Origin:
    beside = index.path.resolve().parent / path.name
    path = beside if not is_folder(path) and is_folder(beside) else path
    if not is_folder(path):
        return Origin("codes", shown(path), {"fingerprint": fingerprint}, state=GONE)
    codes = Artifact.open(path)
    if codes.fingerprint != fingerprint:
        return Origin("codes", codes.place, {"fingerprint": fingerprint}, state=CHANGED)
    return _in_codes(codes, document) or Origin("codes", codes.place, {"fingerprint": fingerprint}, state="not in it")


def _in_codes(codes: Artifact, document: str) -> Origin | None:
    for path in codes.files(".parquet"):
        row = pc.index(pq.read_table(path, columns=["id"])["id"], document).as_py()
        if row >= 0:
            source = (pq.read_schema(path).metadata or {}).get(b"source", b"").decode()
            facts = {"part": path.name, "row": str(row)}
            return _with(_of_artifact(codes, ""), facts, _documents_of(codes, document, source))
    return None


def _documents_of(codes: Artifact, document: str, source: str) -> dict[str, Origin]:
    """The inputs of codes that can be followed to the one document."""
    names = [item.name for item in codes.manifest.inputs]
    if "shards" in names:
        path = codes.input_path("shards")
        found = _in_shards(Artifact.open(path), document) if is_folder(path) else None
        return {"shards": found} if found else {}
    files = {item.name: Path(item.uri) for item in codes.manifest.inputs if item.name.startswith("file:")}
    return _in_files(codes.manifest.config, files, document, source.split(", "), 0.0)


def _in_shards(shards: Artifact, document: str) -> Origin | None:
    from pipelines.files.arrow import record_batches

    parts = shards.files(".arrow")
    for number, path in enumerate(parts):
        before = 0
        for batch in record_batches(path):
            row = pc.index(batch["id"], document).as_py()
            if row >= 0:
                facts = {"part": path.name, "row": str(before + row)}
                files = {item.name: Path(item.uri) for item in shards.manifest.inputs if item.name.startswith("file:")}
                lines = _in_files(shards.manifest.config["corpus"], files, document, [], number / len(parts))
                return _with(_of_artifact(shards, ""), facts, lines)
            before += len(batch)
    return None


def _in_files(
    settings: dict[str, Any], files: dict[str, Path], document: str, named: list[str], share: float
) -> dict[str, Origin]:
    """The file that holds the document, with its position, sought first where `share` of the corpus is passed."""
    there = {name: path for name, path in files.items() if uri_of(path) or path.exists()}
    corpus = CorpusConfig(files=tuple(map(str, there.values())), **settings)
    try:
        pieces = plan_slices(corpus) if there else []
    except LatentbitsError:  # a file that is no longer what it was
        pieces = []
    start = int(share * len(pieces))
    order = sorted(range(len(pieces)), key=lambda place: (pieces[place].name not in named, abs(place - start)))
    for piece in (pieces[place] for place in order):
        position = _position(corpus, piece, document)
        if position is not None:
            name = next(name for name, path in there.items() if str(path) == piece.file)
            return {name: Origin(name, piece.file, {"position": str(position)})}
    return {}


def _position(corpus: CorpusConfig, piece: Slice, document: str) -> int | None:
    rows: Iterator[Any] = read_slice(corpus, piece)
    return next((row.position for row in rows if isinstance(row, Document) and row.id == document), None)


def _with(origin: Origin, facts: dict[str, str], followed: dict[str, Origin]) -> Origin:
    """The origin of one document: of the files it was made from only its own, where that is known."""
    is_file = any(name.startswith("file:") for name in followed)
    made_from = []
    for one in origin.made_from:
        name = one.name.partition(": ")[0] if not one.name.startswith("file:") else one.name
        if name in followed:
            state = one.state or followed[name].state
            merged = one.facts | followed[name].facts
            made_from.append(Origin(one.name, one.place, merged, followed[name].made_from or one.made_from, state))
        elif not (is_file and one.name.startswith("file:")):
            made_from.append(one)
    return Origin(origin.name, origin.place, facts | origin.facts, tuple(made_from), origin.state)
