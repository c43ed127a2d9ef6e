"""The command `dedup`, as it is typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from tiny_run import Said, Tiny


def test_dedup_writes_a_table_and_says_what_it_found(
    tiny: Tiny, latentbits: Callable[..., Said], tmp_path: Path
) -> None:
    out = tmp_path / "duplicates"
    said = latentbits("dedup", tiny.folder / "codes", "--out", out, "--radius", 3, "--json")
    assert said.status == 0
    facts = json.loads(said.out)
    table = pq.read_table(out / "part-00000.parquet")
    assert table.schema.names[:5] == ["id", "keep", "cluster", "kept_id", "distance"]
    assert facts["documents"] == len(table) == 300
    assert facts["kept"] == sum(table["keep"].to_pylist())
    assert facts["radius"] == 3
    shown = latentbits("dedup", tiny.folder / "codes", "--out", out, "--radius", 3)
    assert shown.out.startswith(f"keep {facts['kept']:,} of 300 documents; {facts['dropped']:,} (")
    assert "near duplicates: codes at most 3 bits apart" in shown.out
    assert shown.out.endswith(f"{out}\n")


def test_dedup_against_an_index_finds_the_documents_that_it_holds(
    tiny: Tiny, latentbits: Callable[..., Said], tmp_path: Path
) -> None:
    said = latentbits(
        "dedup",
        tiny.folder / "codes",
        "--against",
        tiny.folder / "index",
        "--out",
        tmp_path / "d",
        "--json",
        "--confirm",
    )
    assert said.status == 0
    facts = json.loads(said.out)
    assert facts["against"] == 300
    assert facts["kept"] == facts["without_known_word"]


def test_dedup_refuses_what_makes_no_sense_and_leaves_nothing(
    tiny: Tiny, latentbits: Callable[..., Said], tmp_path: Path
) -> None:
    out = tmp_path / "d"
    for arguments, message in (
        ((tiny.folder / "model", "--out", out), "holds model; give codes that `encode` wrote, or an index"),
        ((tmp_path / "nowhere", "--out", out), "nowhere is not a folder"),
        ((tiny.folder / "codes", "--out", out, "--precision", 1.5), "--precision 1.5: "),
        ((tiny.folder / "codes", "--out", out, "--jaccard", 0), "--jaccard 0.0: "),
        ((tiny.folder / "codes", "--out", out, "--radius", 64), "a radius of 64 holds every code"),
    ):
        said = latentbits("dedup", *arguments)
        assert said.status == 2
        assert message in said.err
        assert not out.exists()
