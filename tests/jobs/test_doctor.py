"""What doctor says about this machine, checked against the system's own tools."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import doctor
from jobs.doctor import Finding, examine


def finding(name: str, folder: Path | None = None) -> Finding:
    (found,) = [one for one in examine(folder) if one.name == name]
    return found


def test_names_are_unique_and_whatever_is_not_well_has_a_remedy() -> None:
    found = examine()
    assert len({one.name for one in found}) == len(found)
    assert all(one.what for one in found)
    assert all(bool(one.remedy) == (one.state != "ok") for one in found)


def test_versions_are_those_that_the_packages_report_themselves() -> None:
    program = "import torch, pyarrow, faiss; print(torch.__version__, pyarrow.__version__, faiss.__version__)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [finding(name).what for name in ("torch", "pyarrow", "faiss-cpu")] == printed


def test_a_package_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-at-all",))
    found = finding("no-such-package-at-all")
    assert found.state == "missing"
    assert "pip install no-such-package-at-all" in found.remedy
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(found.name)


def test_cores_are_those_that_nproc_counts() -> None:
    nproc = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
    assert finding("cores").what.split()[0] == nproc


def test_disk_space_is_that_of_the_folder(tmp_path: Path) -> None:
    printed = subprocess.run(
        ["df", "--output=avail", "-B1", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert finding("disk", tmp_path).what.endswith(f"GB free in {tmp_path}")
    assert float(finding("disk", tmp_path).what.split()[0]) == pytest.approx(int(printed[-1]) / 1e9, rel=0.05, abs=0.1)


def test_little_space_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    assert finding("disk", tmp_path).state == "warning"


def test_a_temporary_folder_that_cannot_hold_files_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    found = finding("temporary files")
    assert found.state == "missing"
    assert str(tmp_path / "nowhere") in found.what
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert finding("temporary files").state != "missing"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vpopcntdq\n", "with avx2, avx512f, avx512_vpopcntdq"),
        ("processor\t: 0\nflags\t\t: fpu avx2\n", "with avx2; search is slower without avx512_vpopcntdq"),
        ("processor\t: 0\n", "its instruction sets are not known"),
    ],
)
def test_the_processor_is_described_by_the_flags_it_lists(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "cpuinfo").write_text(lines)
    assert doctor._processor(tmp_path / "cpuinfo").what.endswith(said)


def test_the_cluster_is_the_one_that_ray_address_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "10.0.0.1:6379" in finding("cluster").what
    monkeypatch.delenv("RAY_ADDRESS")
    assert "this machine" in finding("cluster").what


def test_reading_doctor_imports_nothing_heavy() -> None:
    program = "import sys, jobs.doctor; print({'torch', 'ray', 'mlflow', 'faiss', 'deepspeed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "set()"
