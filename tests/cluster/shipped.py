"""The files of `cluster/` as the tests read them. Knows YAML and the Dockerfile's syntax; judges nothing."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = ("kuberay-rayjob.yaml", "kuberay-raycluster.yaml")
RAY_UP = ("aws.yaml", "gcp.yaml")


def document(name: str) -> dict[str, Any]:
    """A file with one YAML document. Aliases are copied out, so that a test may change one place alone."""
    return documents(name)[0]


def documents(name: str) -> list[dict[str, Any]]:
    return [_own(one) for one in _parsed(name)]


@cache
def _parsed(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def _own(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _own(value) for key, value in node.items()}
    return [_own(value) for value in node] if isinstance(node, list) else node


def ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster that a KubeRay file brings up, as the operator would name it."""
    manifest = document(name)
    spec = manifest["spec"]
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": "RayCluster",
        "metadata": {"name": "muki-ray", "namespace": "muki-ray"},
        "spec": spec.get("rayClusterSpec", spec),
    }


def pod_specs(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod of a Kubernetes file: what for, and its spec."""
    for manifest in documents(name):
        spec = manifest["spec"]
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], spec
        if "submitterPodTemplate" in spec:
            yield "submitter", spec["submitterPodTemplate"]["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in cluster:
            yield "head", cluster["headGroupSpec"]["template"]["spec"]
            for group in cluster["workerGroupSpecs"]:
                yield group["groupName"], group["template"]["spec"]


def constraint(package: str) -> str:
    """The version that constraints.txt pins."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M | re.I)
    assert found, f"{package} is not in constraints.txt"
    return found[1]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; `stage` is the name that its stage has."""

    stage: str
    name: str
    text: str


def dockerfile(text: str | None = None) -> list[Instruction]:
    """Instructions in their order, continuation lines joined, comments gone."""
    text = (CLUSTER / "Dockerfile").read_text() if text is None else text
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.split()[-1]
        found.append(Instruction(stage, name, " ".join(rest.split())))
    return found


def in_image() -> dict[str, Path]:
    """What the image's last stages copy: absolute path there to path here."""
    folder = next(one.text for one in dockerfile() if one.name == "WORKDIR")
    copied = {}
    for one in dockerfile():
        if one.name == "COPY":
            *sources, target = shlex.split(one.text)
            for source in sources:
                name = Path(source).name if target.endswith("/") else target.lstrip("./") or Path(source).name
                copied[f"{folder}/{name}"] = ROOT / source
    return copied


def in_context(path: str) -> bool:
    """Whether `.dockerignore` lets a path reach the build: the last line that matches it or a parent decides."""
    kept = True
    parts = Path(path).parts
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!").removeprefix("**/")
        anywhere = line.strip().removeprefix("!").startswith("**/")
        names = list(parts) if anywhere else above
        if pattern and not line.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            kept = line.startswith("!")
    return kept
