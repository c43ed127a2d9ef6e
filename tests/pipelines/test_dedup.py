"""Deduplication of a collection, against all its pairs compared one by one; and what a user may ask of it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest
from test_dedup_pairs import codes_near_one_another, edited, jaccard

import pipelines.dedup as stage
from pipelines.artifact import MANIFEST, Artifact, Draft, Plan, begin, record_part
from pipelines.dedup import DedupConfig, dedup
from pipelines.deduplication.radius import interval
from pipelines.index import IndexConfig, index
from pipelines.index_changes import delete
from pipelines.near_duplicates import Duplicate, NearDuplicates
from vae_core.errors import Damaged, Misuse, Stale


def write_collection(
    folder: Path,
    codes: np.ndarray,
    texts: list[str] | None,
    *,
    confidence: np.ndarray | None = None,
    prefix: str = "d",
    model: str = "cafe",
    files: int = 2,
) -> Path:
    """Codes as `encode` writes them; without `texts`, with no such column."""
    draft = begin(folder, Plan(kind="codes", config={"prefix": prefix, "sum": int(codes.sum())}, inputs=()))
    assert isinstance(draft, Draft)
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(len(codes)), files)):
        columns = {
            "id": [f"{prefix}{row}" for row in rows],
            "code": pa.array([codes[row].tobytes() for row in rows], pa.binary(codes.shape[1])),
            "component": pa.array(np.zeros(len(rows)), pa.uint16()),
            "confidence": pa.array(np.full(len(rows), 0.9) if confidence is None else confidence[rows], pa.float32()),
            "labels": pa.array([[]] * len(rows), pa.list_(pa.string())),
        }
        if texts is not None:
            columns["text"] = pa.array([texts[row] for row in rows], pa.string())
        facts = {b"bits": b"%d" % (8 * codes.shape[1]), b"bit_order": b"little", b"model": model.encode()}
        name = f"part-{number:05d}.parquet"
        pq.write_table(pa.table(columns).replace_schema_metadata(facts), draft.path / name)
        parts.append(record_part(draft.path, name, len(rows)))
    return draft.finish(parts, {"documents": len(codes), "bits": 8 * codes.shape[1]}).path


def planted(seed: int, count: int = 240, bits: int = 64) -> tuple[np.ndarray, list[str]]:
    """Families of edited texts, whose codes are near one another; some families share their code with another."""
    texts = edited(seed, count)
    chance = np.random.default_rng(seed)
    centres = chance.integers(0, 256, (count // 6, bits // 8), dtype=np.uint8)
    centres[: count // 12] = centres[count // 12 : 2 * (count // 12)]
    flips = np.packbits(chance.random((count, bits)) < 0.02, axis=1, bitorder="little")
    return np.repeat(centres, 6, axis=0) ^ flips, texts


def near(codes: np.ndarray, texts: list[str], radius: int, similar: float | None) -> np.ndarray:
    """Whether each pair is one of near duplicates, (N, N), found without any of the code under test."""
    bits = np.unpackbits(codes, axis=1)
    adjacent = (bits[:, None] != bits[None]).sum(axis=2) <= radius
    for i, j in zip(*np.nonzero(adjacent), strict=True):
        if similar is not None and jaccard(texts[i], texts[j]) < similar:
            adjacent[i, j] = False
    return adjacent


def clusters_of(adjacent: np.ndarray) -> list[set[int]]:
    labels = connected_components(coo_array(adjacent), directed=False)[1]
    return [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]


def clusters_found(found: NearDuplicates) -> list[set[int]]:
    labels = found.table["cluster"].to_numpy()
    return [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]


def in_order(clusters: list[set[int]]) -> list[list[int]]:
    return sorted(map(sorted, clusters))


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("radius", [0, 3, 6])
def test_clusters_are_those_of_all_pairs_compared(tmp_path: Path, confirm: bool, radius: int) -> None:
    codes, texts = planted(1)
    made = dedup(
        write_collection(tmp_path / "codes", codes, texts),
        tmp_path / "out",
        DedupConfig(radius=radius, confirm=confirm),
    )
    found = NearDuplicates.open(made.path)
    expected = clusters_of(near(codes, texts, radius, 0.7 if confirm else None))
    assert in_order(clusters_found(found)) == in_order(expected)
    assert found.selected == [f"d{row}" for row in sorted(min(cluster) for cluster in expected)]
    assert made.manifest.statistics["dropped"] == len(texts) - len(expected) == len(found.duplicates)
    assert made.manifest.statistics["clusters"] == sum(len(cluster) > 1 for cluster in expected)
    assert made.manifest.statistics["largest_cluster"] == max(map(len, expected))


@pytest.mark.parametrize("confirm", [True, False])
def test_every_duplicate_has_a_reason_that_holds(tmp_path: Path, confirm: bool) -> None:
    codes, texts = planted(2)
    config = DedupConfig(radius=4, confirm=confirm, jaccard=0.6)
    found = NearDuplicates.open(
        dedup(write_collection(tmp_path / "codes", codes, texts), tmp_path / "out", config).path
    )
    bits = np.unpackbits(codes, axis=1)
    kept = set(found.selected)
    by_id = {one.id: one for one in found.duplicates}
    assert len(by_id) > 50
    for one in by_id.values():
        row, other, stays = (int(name[1:]) for name in (one.id, one.near_id, one.kept_id))
        assert one.near_distance == (bits[row] != bits[other]).sum() <= 4
        assert one.distance == (bits[row] != bits[stays]).sum()
        assert one.near_jaccard == pytest.approx(jaccard(texts[row], texts[other]))
        assert not confirm or one.near_jaccard >= np.float32(0.6)
        assert one.kept_id in kept
        chain = one
        while chain.near_id in by_id:
            chain = by_id[chain.near_id]
        assert chain.near_id == one.kept_id


@pytest.mark.parametrize("confirm", [True, False])
def test_a_stricter_threshold_needs_no_second_run(tmp_path: Path, confirm: bool) -> None:
    codes, texts = planted(3)
    source = write_collection(tmp_path / "codes", codes, texts)
    wide = NearDuplicates.open(
        dedup(source, tmp_path / "wide", DedupConfig(radius=6, confirm=confirm, jaccard=0.5)).path
    )
    for number, value in enumerate((0.5, 0.6, 0.75, 0.9, 1.0) if confirm else (6, 4, 2, 0)):
        changes = {"jaccard": value} if confirm else {"radius": value}
        config = DedupConfig(**{"radius": 6, "confirm": confirm, "jaccard": 0.5} | changes)
        narrow = NearDuplicates.open(dedup(source, tmp_path / f"narrow{number}", config).path)
        again = wide.rethreshold(**changes)
        assert in_order(clusters_found(again)) == in_order(clusters_found(narrow))
        assert again.selected == narrow.selected
        for name in ("kept_id", "distance"):
            assert again.table[name].to_pylist() == narrow.table[name].to_pylist()
        assert again.facts["dropped"] == narrow.facts["dropped"]
        assert again.facts["clusters"] == narrow.facts["clusters"]
        assert again.rethreshold(**changes).selected == again.selected


def test_a_wider_or_another_threshold_needs_a_run_and_says_so(tmp_path: Path) -> None:
    codes, texts = planted(3, 60)
    source = write_collection(tmp_path / "codes", codes, texts)
    by_text = NearDuplicates.open(dedup(source, tmp_path / "a", DedupConfig(radius=2, confirm=True)).path)
    by_code = NearDuplicates.open(dedup(source, tmp_path / "b", DedupConfig(radius=2, confirm=False)).path)
    with pytest.raises(Misuse, match=r"beyond radius 2 and Jaccard 0\.7 were not kept; run dedup again"):
        by_text.rethreshold(jaccard=0.6)
    with pytest.raises(Misuse, match="run dedup again"):
        by_code.rethreshold(radius=3)
    with pytest.raises(Misuse, match=r"decided by jaccard; give jaccard= a stricter value than 0\.7"):
        by_text.rethreshold(radius=1)
    with pytest.raises(Misuse, match="decided by radius; give radius= a stricter value than 2"):
        by_code.rethreshold()


@pytest.mark.parametrize("confirm", [True, False])
def test_ten_thousand_identical_documents_are_one_cluster_without_their_pairs(tmp_path: Path, confirm: bool) -> None:
    codes, texts = planted(4, 60)
    codes = np.concatenate([codes, np.repeat(codes[:1], 10_000, axis=0)])
    source = write_collection(tmp_path / "codes", codes, texts + texts[:1] * 10_000)
    config = DedupConfig(radius=2, confirm=confirm)
    counted = []

    class Counting(stage.Links):
        def add(self, links: np.ndarray) -> None:
            counted.append(len(links))
            super().add(links)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "Links", Counting)
        found = NearDuplicates.open(dedup(source, tmp_path / "out", config).path)
    assert sum(counted) < 60 * 59 / 2
    assert max(map(len, clusters_found(found))) >= 10_001
    assert found.exact_duplicate_ratio >= 10_000 / 10_060
    assert found.facts["largest_cluster"] == max(map(len, clusters_found(found)))


def test_documents_without_a_known_word_are_never_duplicates(tmp_path: Path) -> None:
    codes = np.zeros((6, 8), np.uint8)
    confidence = np.array([0.5, 0.5, 0.5, 0.9, 0.9, 0.5])
    texts = ["zzz qqq vvv"] * 6
    source = write_collection(tmp_path / "codes", codes, texts, confidence=confidence)
    for confirm in (True, False):
        config = DedupConfig(radius=3, confirm=confirm)
        found = NearDuplicates.open(dedup(source, tmp_path / str(confirm), config).path)
        assert [one.id for one in found.duplicates] == ["d4"]
        assert found.facts["without_known_word"] == 4


def test_against_another_collection_its_documents_are_kept_and_named(tmp_path: Path) -> None:
    codes, texts = planted(5)
    half = 120
    known = write_collection(tmp_path / "known", codes[0::2], texts[0::2], prefix="k")
    fresh = write_collection(tmp_path / "fresh", codes[1::2], texts[1::2], prefix="n")
    config = DedupConfig(radius=4, confirm=True)
    found = NearDuplicates.open(dedup(fresh, tmp_path / "out", config, against=known).path)
    order = np.concatenate([np.arange(0, 240, 2), np.arange(1, 240, 2)])
    adjacent = near(codes[order], [texts[row] for row in order], 4, 0.7)
    adjacent[:half, :half] = np.eye(half, dtype=bool)
    adjacent_once = adjacent.copy()
    adjacent_once[:half, :half] = True  # the known ones count as one
    clusters = clusters_of(adjacent_once)
    keep = {min(cluster) - half for cluster in clusters if min(cluster) >= half}
    assert found.selected == [f"n{row}" for row in sorted(keep)]
    assert len(found) == half
    kept_known = {one.kept_id for one in found.duplicates if one.kept_id.startswith("k")}
    assert len(kept_known) > 5
    direct = [one for one in found.duplicates if one.near_id.startswith("k")]
    assert direct
    for one in direct:
        assert adjacent[int(one.near_id[1:]), half + int(one.id[1:])]
        assert one.kept_id == one.near_id
    stricter = found.rethreshold(jaccard=0.9)
    run = NearDuplicates.open(
        dedup(fresh, tmp_path / "strict", config.model_copy(update={"jaccard": 0.9}), against=known).path
    )
    assert stricter.selected == run.selected
    assert in_order(clusters_found(stricter)) == in_order(clusters_found(run))


def test_an_index_serves_as_the_known_collection(tmp_path: Path) -> None:
    codes, texts = planted(6, 120)
    known = write_collection(tmp_path / "known", codes[0::2], texts[0::2], prefix="k")
    fresh = write_collection(tmp_path / "fresh", codes[1::2], texts[1::2], prefix="n")
    made = index(known, tmp_path / "index", IndexConfig(segment_documents=25))
    config = DedupConfig(radius=4, confirm=True)
    by_index = NearDuplicates.open(dedup(fresh, tmp_path / "a", config, against=made.path).path)
    by_codes = NearDuplicates.open(dedup(fresh, tmp_path / "b", config, against=known).path)
    assert by_index.table.equals(by_codes.table)
    inputs = [item.name for item in Artifact.open(tmp_path / "a").manifest.inputs]
    assert inputs == ["codes", "against"]


def test_documents_that_the_index_deleted_or_knows_nothing_of_make_no_duplicates(tmp_path: Path) -> None:
    codes = np.repeat(np.array([2, 1, 0], np.uint8)[:, None], 8, axis=1)
    texts = ["a b c d", "e f g h", "i j k l"]
    known = write_collection(tmp_path / "known", codes, texts, confidence=np.array([0.9, 0.9, 0.5]), prefix="k")
    fresh = write_collection(tmp_path / "fresh", codes, texts, prefix="n")
    made = index(known, tmp_path / "index", IndexConfig())
    config = DedupConfig(radius=0, confirm=True)
    before = dedup(fresh, tmp_path / "out", config, against=made.path)
    assert [one.kept_id for one in NearDuplicates.open(before.path).duplicates] == ["k0", "k1"]
    delete(made.path, ["k0"])
    with pytest.raises(Stale, match="input against has changed"):
        dedup(fresh, tmp_path / "out", config, against=made.path)
    after = dedup(fresh, tmp_path / "out", config, against=made.path, overwrite=True)
    assert [one.kept_id for one in NearDuplicates.open(after.path).duplicates] == ["k1"]


def test_the_radius_is_the_largest_that_is_precise_on_a_sample(tmp_path: Path) -> None:
    """Copies are up to 2 bits apart, and other documents of the same kind 4: so 3 is the widest precise radius."""
    chance = np.random.default_rng(7)
    families = 400
    centres = chance.integers(0, 256, (families, 8), dtype=np.uint8)
    copies, others = centres.copy(), centres.copy()
    copies[:, 0] ^= 0b11
    others[:, 1] ^= 0b1111
    base = [" ".join(f"w{word}" for word in chance.integers(0, 10_000, 30)) for _ in range(2 * families)]
    texts = base[:families] + base[:families] + base[families:]
    source = write_collection(tmp_path / "codes", np.concatenate([centres, copies, others]), texts)
    made = dedup(source, tmp_path / "out", DedupConfig(precision=0.95))
    facts = made.manifest.statistics
    assert facts["radius"] == 3
    assert not facts["confirmed_by_text"]
    assert facts["codes_alone"]["precision"] == 1
    assert facts["codes_alone"]["low"] >= 0.95
    assert facts["dropped"] == families
    at_4 = next(one for one in facts["measured"] if one["radius"] == 4)
    # A document's pairs are all, half, or none of them copies, as it is the copy, the first, or the other.
    assert at_4["low"] <= 0.5 <= at_4["high"]
    assert json.loads(json.dumps(facts)) == facts


def test_texts_confirm_where_codes_alone_are_not_precise_enough(tmp_path: Path) -> None:
    codes, texts = planted(8)
    source = write_collection(tmp_path / "codes", codes, texts)
    facts = dedup(source, tmp_path / "out", DedupConfig()).manifest.statistics
    assert facts["confirmed_by_text"]
    assert facts["radius"] == 8
    assert facts["codes_alone"]["low"] < 0.95
    with pytest.raises(Misuse, match=r"codes alone do not reach a precision of 95%: at radius 0 it is .*give --radius"):
        dedup(source, tmp_path / "alone", DedupConfig(confirm=False))
    asked = dedup(source, tmp_path / "asked", DedupConfig(radius=3)).manifest.statistics
    assert asked["confirmed_by_text"]
    assert asked["radius"] == 3


@pytest.mark.parametrize(("good", "trials"), [(0, 10), (10, 10), (7, 9), (950, 1000)])
def test_the_interval_is_that_of_clopper_and_pearson(good: int, trials: int) -> None:
    expected = binomtest(good, trials).proportion_ci(0.95, method="exact")
    assert interval(good, trials) == pytest.approx((expected.low, expected.high))


def test_without_texts_a_radius_must_be_given(tmp_path: Path) -> None:
    codes = codes_near_one_another(64, 100, seed=9)
    source = write_collection(tmp_path / "codes", codes, None)
    with pytest.raises(Misuse, match="holds no texts, so no radius can be chosen for a precision; give --radius"):
        dedup(source, tmp_path / "out", DedupConfig())
    with pytest.raises(Misuse, match="holds no texts to compare"):
        dedup(source, tmp_path / "out", DedupConfig(radius=3, confirm=True))
    found = NearDuplicates.open(dedup(source, tmp_path / "out", DedupConfig(radius=3)).path)
    assert in_order(clusters_found(found)) == in_order(clusters_of(near(codes, [], 3, None)))
    assert found.duplicates[0].near_jaccard is None
    assert found.facts["codes_alone"] is None


def test_a_document_without_text_is_kept_where_texts_confirm(tmp_path: Path) -> None:
    codes = np.ones((4, 8), np.uint8)
    source = write_collection(tmp_path / "codes", codes, ["", "", "a b c d", "a b c d"])
    found = NearDuplicates.open(dedup(source, tmp_path / "out", DedupConfig(radius=3, confirm=True)).path)
    assert found.selected == ["d0", "d1", "d2"]


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, texts = planted(10)
    source = write_collection(tmp_path / "codes", codes, texts)
    config = DedupConfig(radius=4, confirm=False)
    whole = dedup(source, tmp_path / "whole", config)
    monkeypatch.setattr(stage, "SAVE_EVERY_S", 0.0)

    class Killed(Exception):
        pass

    class Dies:
        passes = 0

        def start(self, stage: str, total: int, unit: str) -> None:
            del stage, total
            self.unit = unit

        def advance(self, amount: int, note: str = "", metrics: object = None) -> None:
            del note, metrics
            if self.unit == "passes" and amount:
                self.passes += 1
                if self.passes == 3:
                    raise Killed

        def finish(self) -> None:
            pass

    with pytest.raises(Killed):
        dedup(source, tmp_path / "out", config, progress=Dies())
    assert not (tmp_path / "out" / MANIFEST).exists()
    joined: list[int] = []
    pairs = stage.HammingJoin.pairs
    monkeypatch.setattr(stage.HammingJoin, "pairs", lambda join, table: (joined.append(table), pairs(join, table))[1])
    finished = dedup(source, tmp_path / "out", config)
    assert joined
    assert min(joined) == 3
    assert finished.manifest.parts == whole.manifest.parts
    assert sorted(path.name for path in finished.path.iterdir()) == ["manifest.json", "part-00000.parquet"]


def test_what_is_up_to_date_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    codes, texts = planted(11, 60)
    source = write_collection(tmp_path / "codes", codes, texts)
    made = dedup(source, tmp_path / "out", DedupConfig(radius=2))
    written = (made.path / MANIFEST).stat().st_mtime_ns
    dedup(source, tmp_path / "out", DedupConfig(radius=2))
    assert (made.path / MANIFEST).stat().st_mtime_ns == written
    with pytest.raises(Stale, match="radius was 2 and is now 3"):
        dedup(source, tmp_path / "out", DedupConfig(radius=3))
    made.verify()
    (made.path / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(Damaged, match="part-00000"):
        Artifact.open(made.path).verify()


def test_codes_of_other_models_and_other_artifacts_are_refused(tmp_path: Path) -> None:
    codes, texts = planted(12, 60)
    source = write_collection(tmp_path / "codes", codes, texts)
    other = write_collection(tmp_path / "other", codes, texts, model="beef")
    with pytest.raises(Stale, match="their distances mean nothing; encode both with one model"):
        dedup(source, tmp_path / "out", DedupConfig(radius=2), against=other)
    with pytest.raises(Misuse, match="a radius of 64 holds every code of 64 bits"):
        dedup(source, tmp_path / "out", DedupConfig(radius=64))
    made = dedup(source, tmp_path / "out2", DedupConfig(radius=2))
    with pytest.raises(Misuse, match="holds duplicates; give codes that `encode` wrote, or an index"):
        dedup(made.path, tmp_path / "out3", DedupConfig(radius=2))


def test_the_result_is_shown_in_the_forms_that_people_know(tmp_path: Path) -> None:
    codes, texts = planted(13)
    found = NearDuplicates.open(
        dedup(write_collection(tmp_path / "codes", codes, texts), tmp_path / "out", DedupConfig(confirm=True)).path
    )
    frame = found.to_pandas()
    assert list(frame["id"]) == [f"d{row}" for row in range(240)]
    assert frame["keep"].sum() == len(found.selected) == 240 - len(found.duplicates)
    assert found.duplicate_ratio == pytest.approx(len(found.duplicates) / 240)
    groups = found.selected_with_duplicates
    assert sum(map(len, groups.values())) == len(found.duplicates)
    assert set(groups) <= set(found.selected)
    least = found.least_similar(5)
    assert isinstance(least[0], Duplicate)
    assert [one.near_jaccard for one in least] == sorted(one.near_jaccard for one in found.duplicates)[:5]
