"""The Kubernetes manifests: what KubeRay's and Kubernetes' own schemas say, and what they cannot say."""

import copy
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kuberay import problems

from jobs.config import RunConfig
from jobs.submit import STOP_S
from pipelines.serving.config import ServeConfig

FOLDER = Path(__file__).parent.parent.parent / "infra" / "kubernetes"
KUBERNETES = "1.33"
IMAGES = {"latentbits:0.1.0-cpu", "latentbits:0.1.0-cuda"}


def objects() -> dict[str, dict[str, Any]]:
    files = [path for path in sorted(FOLDER.glob("*.yaml")) if path.name != "kustomization.yaml"]
    found = [one for path in files for one in yaml.safe_load_all(path.read_text())]
    return {one["kind"]: one for one in found}


OBJECTS = objects()


def clusters() -> dict[str, dict[str, Any]]:
    return {
        "RayCluster": OBJECTS["RayCluster"]["spec"],
        "RayJob": OBJECTS["RayJob"]["spec"]["rayClusterSpec"],
        "RayService": OBJECTS["RayService"]["spec"]["rayClusterConfig"],
    }


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, cluster in clusters().items():
        yield f"{kind} head", cluster["headGroupSpec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{kind} {group['groupName']}", group


GROUPS = dict(groups())


def test_the_objects_are_those_that_are_promised() -> None:
    assert set(OBJECTS) == {"ConfigMap", "NetworkPolicy", "RayCluster", "RayJob", "RayService"}
    kept = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert all((FOLDER / name).is_file() for name in kept)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_kuberay_knows_every_key_and_value(kind: str) -> None:
    assert problems(OBJECTS[kind]) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1, "minReplica"),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "2", "is not of type 'integer'"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "is not of type 'string'"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePullPolciy"), "Never", "imagePullPolciy"),
        (("metadata", "lables"), {}, "lables"),
        (("kind",), "RayClusterr", ""),
    ],
)
def test_a_slip_in_a_manifest_is_found(path: tuple[Any, ...], value: Any, said: str) -> None:
    """The check itself: a key misspelt or a value of the wrong type does not pass."""
    broken: Any = copy.deepcopy(OBJECTS["RayCluster"])
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if path == ("kind",):
        with pytest.raises(KeyError):
            problems(broken)
    else:
        assert any(said in problem for problem in problems(broken))


@pytest.mark.parametrize("kind", ["ConfigMap", "NetworkPolicy"])
def test_kubernetes_knows_every_key_and_value(kind: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", GROUPS)
def test_the_pods_are_what_kubernetes_takes(name: str) -> None:
    """KubeRay's schema has a copy of the pod's; this is the original."""
    template = GROUPS[name]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"} | template["metadata"],
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", GROUPS)
def test_every_pod_runs_without_rights_and_says_what_it_needs(name: str) -> None:
    spec = GROUPS[name]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["image"] in IMAGES
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_secrets_are_named_and_never_written() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert "kind: Secret" not in text
    assert "secretKeyRef: {name: latentbits-search, key: token}" in text
    for cluster in clusters().values():
        assert cluster["authOptions"] == {"mode": "token"}
    for name, group in GROUPS.items():
        names = {one["secretRef"]["name"] for one in group["template"]["spec"]["containers"][0]["envFrom"]}
        assert names == {"latentbits-storage", "latentbits-tracking"}, name


def test_the_version_of_ray_is_the_one_of_the_image() -> None:
    """constraints.txt decides what the image holds; the tests run with the same."""
    for kind, cluster in clusters().items():
        assert cluster["rayVersion"] == version("ray"), kind


def test_there_is_a_pool_for_each_kind_of_stage() -> None:
    for kind in ("RayCluster", "RayJob"):
        pools = {group["groupName"]: group for group in clusters()[kind]["workerGroupSpecs"]}
        assert set(pools) == {"cpu", "gpu", "encode"}
        gpus = {
            name: pool["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            for name, pool in pools.items()
        }
        assert gpus == {"cpu": None, "gpu": "1", "encode": None}
        assert pools["gpu"]["template"]["spec"]["containers"][0]["image"] == "latentbits:0.1.0-cuda"
        assert clusters()[kind]["enableInTreeAutoscaling"] is True
        assert pools["encode"]["minReplicas"] == 0
        assert pools["encode"]["maxReplicas"] > 1
        for pool in pools.values():
            assert pool["minReplicas"] <= pool["replicas"] <= pool["maxReplicas"]


def test_workers_may_be_spot_nodes_and_have_time_for_a_checkpoint() -> None:
    for kind in ("RayCluster", "RayJob"):
        for group in clusters()[kind]["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            assert spec["terminationGracePeriodSeconds"] >= STOP_S
            if group["groupName"] != "gpu":
                assert {one["key"] for one in spec["tolerations"]} >= {"cloud.google.com/gke-spot", "latentbits/spot"}
        assert "tolerations" not in clusters()[kind]["headGroupSpec"]["template"]["spec"], "the head must stay"
    assert OBJECTS["RayJob"]["spec"]["backoffLimit"] > 0


@pytest.mark.parametrize("name", GROUPS)
def test_ray_is_told_the_cores_that_the_pod_has(name: str) -> None:
    """Of the head none, so that no stage runs where the cluster is planned."""
    group = GROUPS[name]
    cores = group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    assert group["rayStartParams"]["num-cpus"] == ("0" if name.endswith("head") else cores)


def test_the_run_is_the_command_and_the_config_that_the_program_takes() -> None:
    job = OBJECTS["RayJob"]["spec"]
    RunConfig.model_validate(yaml.safe_load(OBJECTS["ConfigMap"]["data"]["run.yaml"]))
    assert job["entrypoint"] == "exec latentbits run /config/run.yaml --json"
    mounts = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "run", "mountPath": "/config", "readOnly": True} in mounts
    environment = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_S)
    assert job["shutdownAfterJobFinishes"] is True


def test_the_two_clusters_that_run_pipelines_are_alike() -> None:
    """All but what the run mounts and how many GPU nodes it keeps, which a job cannot ask for beforehand."""
    standing, own = (copy.deepcopy(clusters()[kind]) for kind in ("RayCluster", "RayJob"))
    for cluster in (standing, own):
        spec = cluster["headGroupSpec"]["template"]["spec"]
        spec["volumes"] = [one for one in spec["volumes"] if one["name"] != "run"]
        container = spec["containers"][0]
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "run"]
        for group in cluster["workerGroupSpecs"]:
            if group["groupName"] == "gpu":
                del group["minReplicas"], group["replicas"]
    assert json.dumps(standing, sort_keys=True) == json.dumps(own, sort_keys=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_search_service_is_the_application_of_the_program() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(OBJECTS["RayService"]["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, name = application.import_path.split(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    ServeConfig.model_validate(application.args["serve"])
    (group,) = clusters()["RayService"]["workerGroupSpecs"]
    assert group["replicas"] >= 2, "one node may go"


def test_the_policy_lets_pods_reach_one_another_and_names_every_other_door() -> None:
    policy = OBJECTS["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    selector = policy["podSelector"]["matchLabels"]
    for name, group in GROUPS.items():
        assert selector.items() <= group["template"]["metadata"]["labels"].items(), name
    assert selector.items() <= OBJECTS["RayJob"]["spec"]["submitterPodTemplate"]["metadata"]["labels"].items()
    for rule in policy["ingress"]:
        inside = rule["from"][0].get("podSelector", {}).get("matchLabels") == selector
        assert inside or rule["ports"], "whoever comes from outside comes to a port that is named"
