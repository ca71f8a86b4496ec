"""What nodes hold. An actor lives on one node, so what counts is not what a cluster has in all but what fits its nodes.

Knows resources by name, as Ray counts them; knows no teachers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from muki_ray.config import TeacherConfig

Resources = Mapping[str, float]

# CPUs that the reading, integration and driver-side tasks need beside the actors
LIGHT_TASK_CPUS = 0.1
RESERVED_CPUS = 2 * LIGHT_TASK_CPUS
# an actor smaller than this only takes memory
_LEAST_CPUS = 0.05
_ROUNDING = 1e-9
# light tasks that run at once: each is a process of its own, which takes a second of CPU to start
_CPUS_PER_LIGHT_TASK = 4
# how Ray names what a node's GPUs are
_TYPE = "accelerator_type:"


def on_gpu(teacher: TeacherConfig, cluster: Resources) -> bool:
    """Whether a teacher runs on GPUs: as configured, else wherever the cluster has any."""
    if teacher.device != "auto":
        return teacher.device == "cuda"
    wanted = teacher.resources.num_gpus
    return cluster.get("GPU", 0) > 0 if wanted is None else wanted > 0


def light_tasks(cluster: Resources) -> int:
    """How many light tasks may run at once beside the actors."""
    return max(1, int(cluster.get("CPU", 0)) // _CPUS_PER_LIGHT_TASK)


def total(nodes: Iterable[Resources]) -> dict[str, float]:
    """All nodes' resources together."""
    found: Counter[str] = Counter()
    for node in nodes:
        found.update(node)
    return dict(found)


def less_light_tasks(nodes: Sequence[Resources]) -> list[dict[str, float]]:
    """The nodes, with what the light tasks need taken off the largest."""
    offered = [{"CPU": 0.0, "GPU": 0.0, **node} for node in nodes]
    if offered:
        largest = max(offered, key=lambda node: node["CPU"])
        largest["CPU"] = max(largest["CPU"] - RESERVED_CPUS, 0.0)
    return offered


def equal_share(nodes: Sequence[Resources], count: int, most: float, num_gpus: float = 0.0) -> float:
    """The most CPUs, in hundredths, that `count` equal actors can each have on these nodes, up to `most`.

    Args:
        num_gpus: what each takes beside; where the GPUs hold fewer than `count`, as many as they hold.

    Returns:
        0 where not even the smallest share fits.
    """
    # most clusters have few kinds of nodes: CPUs in hundredths, and how many actors the GPUs hold
    kinds = Counter((_hundredths(node.get("CPU", 0)), _gpu_places(node, num_gpus, count)) for node in nodes)
    wanted = min(count, sum(places * alike for (_, places), alike in kinds.items()))
    for share in range(_hundredths(most), _hundredths(_LEAST_CPUS) - 1, -1):
        held = sum(min(cpus // share, places) * alike for (cpus, places), alike in kinds.items())
        if held >= wanted > 0:
            return share / 100
    return 0.0


def _hundredths(cpus: float) -> int:
    return int(cpus * 100 + 1e-6)


def _gpu_places(node: Resources, num_gpus: float, otherwise: int) -> int:
    """Actors that a node's GPUs hold; Ray shares single GPUs by fractions, and hands out several only whole."""
    if num_gpus <= 0:
        return otherwise
    gpus = int(node.get("GPU", 0))
    return gpus * int(1 / num_gpus + _ROUNDING) if num_gpus <= 1 else gpus // int(num_gpus)


def accelerator_types(nodes: Iterable[Resources]) -> set[str]:
    """What kinds of GPUs the nodes have, as Ray calls them (`A100`)."""
    return {name.removeprefix(_TYPE) for node in nodes for name in node if name.startswith(_TYPE)}


class Room:
    """What nodes have left while actors are placed: the first node that fits takes an actor."""

    def __init__(self, nodes: Sequence[Resources]) -> None:
        self._cpus = [float(node.get("CPU", 0)) for node in nodes]
        self._gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]
        self._types = [accelerator_types([node]) for node in nodes]

    def take(self, actors: int, num_cpus: float, num_gpus: float, accelerator_type: str | None) -> bool:
        """Place so many actors of that size, all or none."""
        before = list(self._cpus), [list(gpus) for gpus in self._gpus]
        for _ in range(actors):
            if not any(
                self._take_on(node, num_cpus, num_gpus, accelerator_type) for node in range(len(self._cpus))
            ):
                self._cpus, self._gpus = before
                return False
        return True

    def _take_on(self, node: int, num_cpus: float, num_gpus: float, accelerator_type: str | None) -> bool:
        if accelerator_type is not None and accelerator_type not in self._types[node]:
            return False
        gpus = self._gpus[node]
        each = min(num_gpus, 1.0)
        fitting = [g for g, free in enumerate(gpus) if each <= free + _ROUNDING]
        needed = max(1, int(num_gpus)) if num_gpus else 0
        if num_cpus > self._cpus[node] + _ROUNDING or len(fitting) < needed:
            return False
        self._cpus[node] -= num_cpus
        for g in fitting[:needed]:
            gpus[g] -= each
        return True
