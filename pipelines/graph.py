"""graph: shards -> graph. For every document its neighbours, and the mean of their words.

In steps, each kept until the whole is done: the words as vectors; LSI coordinates (and embeddings) beside them; the
most similar documents of each; from the graph that these make the neighbours, and their words. A large corpus is
searched in an order of likeness (`order.npy`) and walked in one of meetings (`walk_order.npy`), in which a document has
a place; the parts have the shards' order. Shapes: N documents, n of a part, D dimensions, S of a sketch.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix, load_npz, save_npz

from pipelines.artifact import Artifact, Draft, Part, Plan, begin, find_part, record_part, replacing, require_disk
from pipelines.embeddings import Embeddings
from pipelines.evaluation.references import unit_rows
from pipelines.files.arrow import record_batches
from pipelines.lsi import fit_lsi
from pipelines.neighbours.diffusion import ROWS_AT_ONCE, neighbours, reach_among, transitions
from pipelines.neighbours.nearest import Nearest
from pipelines.neighbours.order import order_of_likeness, order_of_meetings
from pipelines.neighbours.similar import Similar, Similarity
from pipelines.neighbours.word_matrix import WordMatrix
from pipelines.neighbours.words import GraphRows, graph_schema, graph_table
from pipelines.progress import Progress, Silent
from pipelines.scatter import scatter
from vae_core.config import Config
from vae_core.errors import Misuse

ROWS_OF_A_PART = 4096
COMPARED_WITH_ALL = 50_000
"""Documents up to which each one is compared with all others; beyond, with CANDIDATES of them."""
CANDIDATES, SKETCH = 400, 192
"""How many, and the dimensions of the words' projection by which they are found."""
BYTES_A_DOCUMENT, COPIES = 10_500, 3
"""Of disk, and how often an embedding is written in float32."""
WORDS_OF_AN_EMBEDDING = 32
"""Different words from which on those of a text tell its neighbours better than a sentence encoder does.

Chosen on validation parts of 20 Newsgroups with MiniLM: subject lines, of 4 words, gain eleven points by 8 instead of
1; articles, of 86, lose with 4 what they gain with 1 or less.
"""


class GraphConfig(Config):
    """How a document's neighbours are found."""

    lsi: int = Field(default=64, ge=2, description="dimensions of latent semantic indexing")
    words_weight: float = Field(default=4.0, ge=0, description="of the words' cosine, beside LSI's")
    embeddings_weight: float | None = Field(
        default=None,
        ge=0,
        description="of the embeddings' cosine, where there are some; null: 32 / the middle document's different words",
    )
    joined: int = Field(
        default=10, ge=1, lt=CANDIDATES, description="most similar documents that each one is joined to"
    )
    neighbours: int | None = Field(
        default=None, ge=1, description="of a document; null: the root of their number, from 10 to 100"
    )
    words: int = Field(default=512, ge=1, description="of a document's neighbours that are kept, the most frequent")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of LSI and random projections")
    workers: int | None = Field(default=None, ge=1, description="null: one for each core of the cluster")


def graph(
    shards: Path,
    out: Path,
    config: GraphConfig | None = None,
    *,
    embeddings: Path | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> Artifact:
    """Find the neighbours of every document of `shards`, and write the graph artifact to `out`.

    `embeddings` of the shards are one more sign of likeness, where there are some. Raises Misuse for fewer than three
    documents, and Stale for embeddings of other shards.
    """
    config = config or GraphConfig()
    source = Artifact.open(shards, "shards")
    documents = int(source.manifest.statistics["documents"])
    if documents < 3:
        raise Misuse(
            f"{source.path} has {documents} documents, and neighbours need at least 3; "
            f"go on without a graph, with --set graph=null"
        )
    beside = Embeddings.open(embeddings, source) if embeddings else None
    inputs = [source.as_input("shards"), *([beside.artifact.as_input("embeddings")] if beside else [])]
    reach = reach_among(documents, _neighbours(config, documents))._asdict()
    settings = config.model_dump(mode="json", exclude={"workers"}) | {"reach": reach}
    draft = begin(out, Plan(kind="graph", config=settings, inputs=tuple(inputs)), overwrite=overwrite)
    if isinstance(draft, Artifact):
        return draft
    require_disk(out, needed=(BYTES_A_DOCUMENT + 4 * COPIES * (beside.dimensions if beside else 0)) * documents)
    progress.start("graph", 2 * documents, "documents")
    progress.advance(0, "latent topics")
    _write_space(draft.scratch, source, beside, config)
    _write_walk(draft.scratch, documents, config, progress)
    _write_neighbours(draft.scratch, documents, config, progress)
    parts = _write_parts(draft, documents)
    progress.finish()
    statistics: dict[str, Any] = {"documents": documents, "neighbours": _neighbours(config, documents)}
    if beside:
        statistics["embeddings_weight"] = round(_embeddings_weight(config, WordMatrix(draft.scratch)), 3)
    return draft.finish(parts, statistics)


def _neighbours(config: GraphConfig, documents: int) -> int:
    derived = min(100, max(10, round(documents**0.5)))
    return min(config.neighbours or derived, documents - 1)


def _embeddings_weight(config: GraphConfig, words: WordMatrix) -> float:
    derived = WORDS_OF_AN_EMBEDDING / max(1.0, words.median_terms)
    return derived if config.embeddings_weight is None else config.embeddings_weight


def _write_space(scratch: Path, shards: Artifact, embeddings: Embeddings | None, config: GraphConfig) -> None:
    """The words' vectors, `dense.npy`, `order.npy`, and for large corpora the sketch by which candidates are found."""
    words = WordMatrix.write(shards, scratch)
    if not (scratch / "dense.npy").exists():
        vectors_VD, _ = fit_lsi(words.blocks, words.terms, config.lsi, config.seed)
        weight = _embeddings_weight(config, words)
        width = vectors_VD.shape[1] + (embeddings.dimensions if embeddings else 0)

        def dense(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            topics = unit_rows(words.rows(rows) @ vectors_VD)
            if embeddings is None:
                return topics
            return np.hstack([topics, weight**0.5 * embeddings.rows(rows)])

        _write_rows(scratch / "dense.npy", len(words), width, dense)
    if not (scratch / "order.npy").exists():
        _write_order(scratch / "order.npy", _likeness(scratch, len(words), config))
    if len(words) > COMPARED_WITH_ALL and not (scratch / "sketch.faiss").exists():
        _write_sketch(scratch, words, config)


def _write_order(path: Path, order_N: NDArray[np.int64]) -> None:
    """Which document has each place."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, order_N)


def _likeness(scratch: Path, documents: int, config: GraphConfig) -> NDArray[np.int64]:
    """The order of a search: in a small corpus, which the cache holds in any order, the place is the row."""
    if documents <= COMPARED_WITH_ALL:
        return np.arange(documents)
    return order_of_likeness(np.load(scratch / "dense.npy", mmap_mode="r"), config.seed)


def _write_sketch(scratch: Path, words: WordMatrix, config: GraphConfig) -> None:
    """Vectors whose products are about the similarities (Johnson & Lindenstrauss), and an index over them."""
    dense_ND = np.load(scratch / "dense.npy", mmap_mode="r")
    projection = np.random.default_rng(config.seed).standard_normal((words.terms, SKETCH)).astype(np.float32)
    projection *= (config.words_weight / SKETCH) ** 0.5

    def sketch(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.hstack([words.rows(rows) @ projection, dense_ND[rows]])

    _write_rows(scratch / "sketch.npy", len(words), SKETCH + dense_ND.shape[1], sketch)
    _write_index(scratch / "sketch.faiss", np.load(scratch / "sketch.npy", mmap_mode="r"))


def _write_walk(scratch: Path, documents: int, config: GraphConfig, progress: Progress) -> None:
    """`ordered_walk.npz`, after the most similar documents of each have been found by all workers."""
    if (scratch / "ordered_walk.npz").exists():
        progress.advance(documents)
        return
    progress.advance(0, "similar documents")
    joined = min(config.joined, documents - 1)
    pieces = {scratch / f"joined-{rows.start:012d}.npz": rows for rows in _pieces(documents)}
    waiting = [(path, rows) for path, rows in pieces.items() if not path.exists()]
    progress.advance(documents - sum(len(rows) for _, rows in waiting))
    for count in scatter(partial(_make_searcher, scratch, config, joined), waiting, workers=config.workers):
        progress.advance(count)
    found = Similar(*(np.concatenate(some) for some in zip(*map(_read_similar, pieces), strict=True)))
    similar = found.at(np.argsort(np.load(scratch / "order.npy")))
    order_N = _meetings(scratch, similar, config)
    _write_order(scratch / "walk_order.npy", order_N)
    there = similar.at(order_N)
    walk = transitions(there._replace(rows=np.argsort(order_N)[there.rows]))
    with replacing(scratch / "ordered_walk.npz") as temporary, temporary.open("wb") as file:
        save_npz(file, walk, compressed=False)


def _meetings(scratch: Path, similar: Similar, config: GraphConfig) -> NDArray[np.int64]:
    """The order of the walks."""
    documents = len(similar.rows)
    if documents <= COMPARED_WITH_ALL:
        return np.arange(documents)
    topics_ND = np.load(scratch / "dense.npy", mmap_mode="r")[:, : config.lsi]
    return order_of_meetings(transitions(similar)[:documents], topics_ND, config.seed)


def _make_searcher(scratch: Path, config: GraphConfig, joined: int) -> Callable[[tuple[Path, range]], int]:
    dense_ND, candidates = np.load(scratch / "dense.npy", mmap_mode="r"), None
    if (scratch / "sketch.faiss").exists():
        sketch_NS = np.load(scratch / "sketch.npy", mmap_mode="r")
        candidates = partial(_candidates, Nearest.load(scratch / "sketch.faiss"), sketch_NS)
    similarity = Similarity(WordMatrix(scratch), dense_ND, config.words_weight, candidates)
    return partial(_write_similar, similarity, np.load(scratch / "order.npy", mmap_mode="r"), joined)


def _candidates(index: Nearest, sketch_NS: NDArray[np.float32], rows_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Documents that may be among the most similar, (n, C); a document's own row stands in where too few are found."""
    found_nC = index.search(sketch_NS[rows_n], min(CANDIDATES, len(sketch_NS)))
    return np.where(found_nC < 0, rows_n[:, None], found_nC)


def _write_similar(similarity: Similarity, order_N: NDArray[np.int64], joined: int, item: tuple[Path, range]) -> int:
    path, places = item
    similar = similarity.of(order_N[places.start : places.stop], joined)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, rows=similar.rows.astype(np.int32), scores=similar.scores)
    return len(places)


def _read_similar(path: Path) -> Similar:
    with np.load(path) as found:
        return Similar(found["rows"], found["scores"])


def _write_neighbours(scratch: Path, documents: int, config: GraphConfig, progress: Progress) -> None:
    """The graph's rows in the order of places, by all workers."""
    progress.advance(0, "neighbours")
    waiting = [(path, places) for path, places in _placed(scratch, documents).items() if not path.exists()]
    progress.advance(documents - sum(len(places) for _, places in waiting))
    make_worker = partial(_make_walker, scratch, _neighbours(config, documents), config.words)
    for count in scatter(make_worker, waiting, workers=config.workers):
        progress.advance(count)


def _placed(scratch: Path, documents: int) -> dict[Path, range]:
    return {scratch / f"walked-{places.start:012d}.arrow": places for places in _pieces(documents)}


def _make_walker(scratch: Path, count: int, kept: int) -> Callable[[tuple[Path, range]], int]:
    order_N = np.load(scratch / "walk_order.npy", mmap_mode="r")
    return partial(_write_placed, load_npz(scratch / "ordered_walk.npz"), order_N, WordMatrix(scratch), count, kept)


def _write_placed(
    walk: csr_matrix, order_N: NDArray[np.int64], words: WordMatrix, count: int, kept: int, item: tuple[Path, range]
) -> int:
    path, places = item
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), graph_schema()) as writer:
        for start in range(places.start, places.stop, ROWS_AT_ONCE):
            here = np.arange(start, min(start + ROWS_AT_ONCE, places.stop))
            found = [order_N[met] for met in neighbours(walk, here, count)]
            writer.write_table(graph_table(found, words, kept))
    return len(places)


def _write_parts(draft: Draft, documents: int) -> list[Part]:
    """The graph's rows in the order of the shards."""
    placed = GraphRows(batch for path in _placed(draft.scratch, documents) for batch in record_batches(path))
    place_N = np.argsort(np.load(draft.scratch / "walk_order.npy"))
    parts = []
    for number, rows in enumerate(_pieces(documents)):
        name = f"part-{number:05d}.arrow"
        part = find_part(draft.path, name)
        if part is None:
            with replacing(draft.path / name) as temporary, pa.ipc.new_file(str(temporary), graph_schema()) as writer:
                writer.write_table(placed.table(place_N[rows.start : rows.stop]))
            part = record_part(draft.path, name, len(rows))
        parts.append(part)
    return parts


def _pieces(documents: int) -> list[range]:
    starts = range(0, documents, ROWS_OF_A_PART)
    return [range(start, min(start + ROWS_OF_A_PART, documents)) for start in starts]


def _write_rows(path: Path, rows: int, width: int, read: Callable[[NDArray[np.int64]], NDArray[np.float32]]) -> None:
    """A matrix in a .npy file, made a block of rows at a time."""
    with replacing(path) as temporary:
        matrix = np.lib.format.open_memmap(temporary, "w+", np.float32, (rows, width))
        _reserve(temporary)
        for start in range(0, rows, ROWS_OF_A_PART):
            here = np.arange(start, min(start + ROWS_OF_A_PART, rows))
            matrix[here[0] : here[-1] + 1] = read(here)
        matrix.flush()


def _reserve(path: Path) -> None:
    """Have the disk give all of a file at once: where it is full, writing into a mapped hole would end the process."""
    with path.open("rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            error.filename = str(path)
            raise


def _write_index(path: Path, vectors_ND: NDArray[np.float32]) -> None:
    with replacing(path) as temporary:
        Nearest.build(vectors_ND).save(temporary)
