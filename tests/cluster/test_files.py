"""The Kubernetes files: known fields, one cluster in both, nothing that runs as root or shows a secret."""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.scripts.scripts import start

import muki_ray
from tests.cluster.kuberay_fields import SCHEMAS, Schema, complaints
from tests.cluster.shipped import (
    CLUSTER,
    KUBERAY,
    ROOT,
    constraint,
    document,
    documents,
    pod_specs,
    ray_cluster,
)

STORAGE = "kuberay-storage.yaml"
OPERATORS = Path(os.environ.get("MUKI_DATA", ROOT / "no-such-folder")) / "kuberay-schema"
operators_schema = pytest.mark.skipif(
    not OPERATORS.is_dir(), reason="MUKI_DATA names no folder with kuberay-schema/"
)
Place = tuple[str | int, ...]


def fixed_fields(node: Any, schema: Schema, place: Place = ()) -> Iterator[Place]:
    """Where the fields of a manifest are that have a fixed name, by the schema."""
    if isinstance(node, dict) and "properties" in schema:
        for name, value in node.items():
            yield (*place, name)
            yield from fixed_fields(value, schema["properties"][name], (*place, name))
    if isinstance(node, list):
        for i, value in enumerate(node):
            yield from fixed_fields(value, schema["items"], (*place, i))


def changed(manifest: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A copy with another value at one place."""
    result = copy.deepcopy(manifest)
    node: Any = result
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    return result


def renamed(manifest: dict[str, Any], place: Place) -> dict[str, Any]:
    """A copy with a letter too many in one field's name."""
    result = copy.deepcopy(manifest)
    node: Any = result
    for step in place[:-1]:
        node = node[step]
    node[f"{place[-1]}s"] = node.pop(place[-1])
    return result


@pytest.mark.parametrize("name", [*KUBERAY, STORAGE])
def test_every_field_is_known_and_of_its_type(name: str) -> None:
    for manifest in documents(name):
        assert complaints(manifest) == []


@pytest.mark.parametrize("name", [*KUBERAY, STORAGE])
def test_a_typo_in_any_field_is_noticed(name: str) -> None:
    for manifest in documents(name):
        schema = SCHEMAS[manifest["kind"]]
        # `kind` chooses the schema: without it there is nothing to check against
        places = [place for place in fixed_fields(manifest, schema) if place != ("kind",)]
        assert len(places) > 5
        for place in places:
            assert complaints(renamed(manifest, place)), place


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "submissionMode"), "K8sJob"),
        (("spec", "ttlSecondsAfterFinished"), "300"),
        (("spec", "shutdownAfterJobFinishes"), "yes"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "maxReplicas"), "many"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
        (("spec", "rayClusterSpec", "autoscalerOptions", "resources", "limits", "memory"), "1 GB"),
    ],
)
def test_a_wrong_value_is_noticed(place: Place, value: Any) -> None:
    assert complaints(changed(document("kuberay-rayjob.yaml"), place, value))


@operators_schema
@pytest.mark.parametrize("name", KUBERAY)
def test_the_operators_own_schema_agrees(name: str) -> None:
    manifest = document(name)
    validator = Draft202012Validator(json.loads((OPERATORS / f"{manifest['kind']}.json").read_text()))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    typo = renamed(
        manifest, ("spec", *(["rayClusterSpec"] if manifest["kind"] == "RayJob" else []), "rayVersion")
    )
    assert not validator.is_valid(typo)


@operators_schema
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_the_operators_schema_has_every_field_that_ours_allows(kind: str) -> None:
    def missing(ours: Schema, theirs: Schema, where: str) -> Iterator[str]:
        for name, inner in ours.get("properties", {}).items():
            if name not in theirs.get("properties", {}):
                yield f"{where}.{name}"
            else:
                yield from missing(inner, theirs["properties"][name], f"{where}.{name}")
        if "items" in ours:
            yield from missing(ours["items"], theirs["items"], where)

    spec = json.loads((OPERATORS / f"{kind}.json").read_text())["properties"]["spec"]
    assert list(missing(SCHEMAS[kind]["properties"]["spec"], spec, kind)) == []


def test_job_and_cluster_are_the_same_machines() -> None:
    assert ray_cluster(KUBERAY[0]) == ray_cluster(KUBERAY[1])


@pytest.mark.parametrize("name", KUBERAY)
def test_start_parameters_are_options_of_ray_start(name: str) -> None:
    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    spec = ray_cluster(name)["spec"]
    given = [
        spec["headGroupSpec"]["rayStartParams"],
        *(g["rayStartParams"] for g in spec["workerGroupSpecs"]),
    ]
    assert {key for one in given for key in one} <= options
    assert "num-cpu" not in options  # what a typo would be
    assert given[0]["num-cpus"] == "0"


@pytest.mark.parametrize("name", KUBERAY)
def test_the_cluster_scales_from_nothing(name: str) -> None:
    spec = ray_cluster(name)["spec"]
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert all(g["minReplicas"] == 0 < g["maxReplicas"] for g in spec["workerGroupSpecs"])
    assert len({group["groupName"] for group in spec["workerGroupSpecs"]}) == len(spec["workerGroupSpecs"])


def test_versions_are_those_of_constraints_and_package() -> None:
    assert constraint("ray") == ray.__version__
    for name in KUBERAY:
        assert ray_cluster(name)["spec"]["rayVersion"] == constraint("ray")
    for name in (*KUBERAY, STORAGE):
        for _, pod in pod_specs(name):
            for container in pod["containers"]:
                assert re.fullmatch(rf"muki-ray:{muki_ray.__version__}-(cpu|gpu)", container["image"])


def gpus(container: dict[str, Any]) -> int:
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("name", KUBERAY)
def test_gpu_groups_take_the_gpu_image_and_machines_of_different_kinds(name: str) -> None:
    chosen = []
    for _, pod in pod_specs(name):
        container = pod["containers"][0]
        assert container["image"].endswith("-gpu" if gpus(container) else "-cpu")
        if gpus(container):
            chosen.append(json.dumps(pod["nodeSelector"]))
            assert [taint["key"] for taint in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert len(chosen) == len(set(chosen)) == 2


@pytest.mark.parametrize("name", [*KUBERAY, STORAGE])
def test_requests_stay_within_limits(name: str) -> None:
    all_resources = [c["resources"] for _, pod in pod_specs(name) for c in pod["containers"]]
    if name in KUBERAY:
        all_resources.append(ray_cluster(name)["spec"]["autoscalerOptions"]["resources"])
    for resources in all_resources:
        requests, limits = resources["requests"], resources["limits"]
        assert {"cpu", "memory"} <= set(requests) and set(requests) == set(limits)
        for kind, amount in requests.items():
            assert 0 < parse_quantity(amount) <= parse_quantity(limits[kind])
        # a GPU cannot be promised twice
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@pytest.mark.parametrize("name", [*KUBERAY, STORAGE])
def test_pods_fit_the_restricted_security_standard(name: str) -> None:
    contexts = [c["securityContext"] for _, pod in pod_specs(name) for c in pod["containers"]]
    if name in KUBERAY:
        contexts.append(ray_cluster(name)["spec"]["autoscalerOptions"]["securityContext"])
    for context in contexts:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for what, pod in pod_specs(name):
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # the autoscaler, on the head, talks to Kubernetes; nobody else has to
        assert pod.get("automountServiceAccountToken", True) is (what == "head")


def test_all_pods_that_work_share_the_claim() -> None:
    claim = documents(STORAGE)[0]
    assert claim["kind"] == "PersistentVolumeClaim" and claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in (*KUBERAY, STORAGE):
        for what, pod in pod_specs(name):
            if what == "submitter":
                continue
            volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
            mounts = {
                volumes[m["name"]]: m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"]
            }
            assert mounts == {claim["metadata"]["name"]: "/shared"}, (name, what)


@pytest.mark.parametrize("name", KUBERAY)
def test_mlflow_comes_from_a_secret_that_the_readme_makes(name: str) -> None:
    head = dict(pod_specs(name))["head"]["containers"][0]
    secrets = [source["secretRef"] for source in head["envFrom"]]
    needed = [secret["name"] for secret in secrets if not secret.get("optional")]
    readme = (CLUSTER / "README.md").read_text()
    made = re.findall(r"^kubectl create secret generic (\S+) --from-literal=(\w+)", readme, re.M)
    assert needed == ["muki-ray-mlflow"] and ("muki-ray-mlflow", "MLFLOW_TRACKING_URI") in made
    assert {secret["name"] for secret in secrets} == {name for name, _ in made}


# a value after the name of a secret, unless it comes from a command or a variable; a user and password in a URI; keys
_CLEAR = re.compile(
    r"(?i:\w*(?:password|token|secret|access_key|api_key)['\"]?\s*[=:]\s*['\"]?)(?![\"'$]|\$\(|token\b|true\b|false\b)[A-Za-z0-9+/_-]{4}"
    r"|://[^\s/:@]+:[^\s/@]+@|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{16}|-----BEGIN"
)


def secrets_in(text: str) -> list[str]:
    return [match.group() for match in _CLEAR.finditer(text)]


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_no_credential_lies_open(path: Path) -> None:
    assert secrets_in(path.read_text()) == []
    if path.suffix == ".yaml" and path.name.startswith("kuberay"):
        assert "Secret" not in [manifest["kind"] for manifest in documents(path.name)]
        for _, pod in pod_specs(path.name):
            for container in pod["containers"]:
                names = [entry["name"] for entry in container.get("env", ())]
                assert not [name for name in names if re.search("PASSWORD|TOKEN|SECRET|KEY|URI", name)]


@pytest.mark.parametrize(
    "line",
    [
        "MLFLOW_TRACKING_PASSWORD: hunter2",
        "  - --env RAY_AUTH_TOKEN=abcdef0123",
        "--from-literal=HF_TOKEN=hf_AbCdEfGhIjKlMnOpQrSt",
        "tracking.uri=http://me:hunter2@mlflow:5000",
        "aws_secret_access_key = 'wJalrXUtnFEMI'",
    ],
)
def test_a_credential_would_be_found(line: str) -> None:
    assert secrets_in(line)
