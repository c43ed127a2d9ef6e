"""The compose file: what its schema says, and that its parts fit one another."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parent.parent.parent / "infra"
FILE = INFRA / "compose" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_it_is_what_the_compose_specification_allows() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_it_has_everything_that_is_promised() -> None:
    assert set(SERVICES) == {"head", "worker", "database", "mlflow", "search", "prometheus", "grafana"}
    assert SERVICES["worker"]["deploy"]["replicas"] > 1


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_and_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


def test_nothing_is_reached_from_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_are_files_that_a_script_makes_and_git_does_not_keep(tmp_path: Path) -> None:
    copied = tmp_path / "make_secrets.sh"
    copied.write_bytes((FILE.parent / "make_secrets.sh").read_bytes())
    for _ in range(2):  # a second time it keeps what is there
        subprocess.run(["sh", str(copied)], check=True, capture_output=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {name: f"./secrets/{name}" for name in made} == {
        name: secret["file"] for name, secret in COMPOSE["secrets"].items()
    }
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in made.values())
    assert len(set(made.values())) == len(made)
    assert stat.S_IMODE(os.stat(tmp_path / "secrets").st_mode) == 0o700
    assert "secrets/" in (FILE.parent / ".gitignore").read_text().split()
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == set(made)


def test_every_file_that_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("../"):
                assert (FILE.parent / source).is_file(), source
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"], source
        if "build" in service:
            build = service["build"]
            root = (FILE.parent / build["context"]).resolve()
            assert (root / build["dockerfile"]).is_file()
            stages = re.findall(r"^FROM .* AS (\S+)$", (root / build["dockerfile"]).read_text(), re.MULTILINE)
            assert build["target"] in stages


def test_prometheus_reads_the_nodes_and_the_search_service() -> None:
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((INFRA / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    }
    (nodes,) = jobs["ray"]["dns_sd_configs"]
    assert set(nodes["names"]) <= set(SERVICES)
    for name in nodes["names"]:
        assert f"--metrics-export-port={nodes['port']}" in SERVICES[name]["command"]
    ((target,),) = [config["targets"] for config in jobs["search"]["static_configs"]]
    host, port = target.split(":")
    assert host in SERVICES
    assert f"--port {port}" in SERVICES[host]["command"][-1]
    secret = Path(jobs["search"]["authorization"]["credentials_file"]).name
    assert secret in SERVICES["prometheus"]["secrets"]
    assert secret in SERVICES["search"]["secrets"]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((INFRA / "grafana/datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((INFRA / "grafana/dashboards.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/latentbits.json" in mounted
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted


def test_jobs_have_their_time_to_stop() -> None:
    from jobs.submit import STOP_S

    for name in ("head", "worker"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > STOP_S
