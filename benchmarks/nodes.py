"""Several Ray nodes on this machine, for tests and benchmarks: a head, nodes with fake GPUs, an autoscaler.

Every node is a child process (`ray start --block`) that is ended by its process id: other Ray clusters of the machine
are left alone, and so is the default folder in which Ray notes the address of the latest one. A fake GPU is a number
that Ray schedules by; there is no CUDA behind it. Knows Ray; knows nothing of teachers or students. Linux only.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_STARTED = "Ray runtime started"
_OBJECT_STORE = 80 << 20  # bytes; Ray's least is 75 MiB
# a dead node is noticed after 2 seconds; by default after 14
_ENVIRONMENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
    "RAY_AUTH_MODE": "disabled",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
_HEAD_TYPE = "ray.head.default"  # the name that Ray's fake provider gives the head
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider"


def gpu_node(kind: str, cpus: float = 1) -> dict[str, float]:
    """Resources of a node with one fake GPU of this type, such as A100."""
    return {"CPU": cpus, "GPU": 1, f"accelerator_type:{kind}": 1}


@dataclass
class Node:
    """One `ray start`."""

    process: subprocess.Popen[bytes]
    log: Path
    resources: Mapping[str, float]

    def raylet(self) -> psutil.Process:
        """The process that is the node: its workers end with it."""
        return next(p for p in psutil.Process(self.process.pid).children() if p.name() == "raylet")

    @property
    def id(self) -> str:
        """As Ray calls it."""
        flag = "--node_id="
        return next(word.removeprefix(flag) for word in self.raylet().cmdline() if word.startswith(flag))

    def family(self) -> list[psutil.Process]:
        """All of the node's processes, the raylet first. Looking for them takes a tenth of a second."""
        raylet = self.raylet()
        return [raylet, *(process for process in _family(self.process.pid) if process != raylet)]

    def wait_until_started(self, seconds: float = 90) -> None:
        """Raises RuntimeError with what Ray said if it does not start."""
        deadline = time.monotonic() + seconds
        while _STARTED not in (said := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node with {dict(self.resources)} did not start: {said[-2000:]}")
            time.sleep(0.1)


@dataclass
class Cluster:
    """A head without GPU, and nodes that are added to it; a context manager that ends them all.

    Attributes:
        head: its resources.
        scaled: node types that the autoscaler (version 2) may start: name to resources, at most `most` of each.
        idle_minutes: after which a node that it started ends.
    """

    head: Mapping[str, float] = field(default_factory=lambda: {"CPU": 2})
    scaled: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    most: int = 1
    idle_minutes: float = 0.1
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For `RAY_ADDRESS`."""
        return self._address

    def __enter__(self) -> Cluster:
        from ray.util import get_node_ip_address

        # a socket's path has at most 107 characters
        self._folder = Path(tempfile.mkdtemp(prefix="nodes", dir="/tmp"))
        self._address = f"{get_node_ip_address()}:{_free_port()}"
        try:
            self.nodes.append(self._start(self.head, head=True))
            self.nodes[0].wait_until_started()
        except BaseException:
            self._close()
            raise
        return self

    def add(self, *resources: Mapping[str, float]) -> list[Node]:
        """Start nodes with these resources and wait until the cluster has them.

        One after the other: Ray gives a node 30 seconds to come up, which several at once may need on a busy machine.
        """
        fresh = []
        for one in resources:
            fresh.append(self._start(one, head=False))
            self.nodes.append(fresh[-1])
            fresh[-1].wait_until_started()
        return fresh

    def alive(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that the cluster takes to be alive, by node id."""
        from ray._raylet import GcsClient

        found = GcsClient(address=self._address).get_all_node_info(timeout=30).values()
        return {node.node_id.hex(): dict(node.resources_total) for node in found if node.state == 0}

    def wait(self, count: int, seconds: float = 90) -> None:
        """Wait until so many nodes are alive, the head counted. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (alive := len(self.alive())) != count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} s for {count} nodes, there are {alive}")
            time.sleep(0.2)

    def _start(self, resources: Mapping[str, float], head: bool) -> Node:
        # nodes that start at once in one folder would choose the same names for their sockets
        own = self._folder / str(len(list(self._folder.glob("*.log"))))
        named = {name: value for name, value in resources.items() if name not in ("CPU", "GPU")}
        environment = {**os.environ, **_ENVIRONMENT}
        command = [
            *_START,
            f"--num-cpus={resources.get('CPU', 0):g}",
            f"--num-gpus={resources.get('GPU', 0):g}",
            f"--resources={json.dumps(named)}",
            f"--object-store-memory={_OBJECT_STORE}",
            f"--temp-dir={own}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--include-log-monitor=false",
        ]
        if head:
            command += ["--head", f"--port={self._address.rpartition(':')[2]}", "--include-dashboard=false"]
            if self.scaled:
                command.append(f"--autoscaling-config={self._autoscaling()}")
                environment |= _scaling_head()
        else:
            command.append(f"--address={self._address}")
        log = own.with_suffix(".log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Node(process, log, resources)

    def _autoscaling(self) -> Path:
        """The cluster configuration that `ray up` would write, for Ray's fake provider.

        Ray's own `AutoscalingCluster` needs a file that its wheel lacks, and ends every Ray of the machine.
        """
        types: dict[str, Any] = {
            name: {
                "resources": {**of, "object_store_memory": _OBJECT_STORE},
                "node_config": {},
                "min_workers": 0,
                "max_workers": self.most,
            }
            for name, of in self.scaled.items()
        }
        types[_HEAD_TYPE] = {"resources": dict(self.head), "node_config": {}, "max_workers": 0}
        lists = [
            f"{who}_{what}" for who in ("head", "worker") for what in ("setup_commands", "start_ray_commands")
        ]
        lists += [
            "initialization_commands",
            "setup_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        ]
        content = {
            "cluster_name": "here",
            "max_workers": self.most * len(self.scaled),
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": self.idle_minutes,
            "provider": {
                "type": "external",
                "module": f"{_PROVIDER}.FakeMultiNodeProvider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": _head_id(),
                "gcs_address": self._address,
            },
            "available_node_types": types,
            "head_node_type": _HEAD_TYPE,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in lists},
        }
        path = self._folder / "autoscaling.json"
        path.write_text(json.dumps(content))
        return path

    def _close(self) -> None:
        for node in reversed(self.nodes):
            family = _family(node.process.pid)  # nodes of the autoscaler are children of the head's monitor
            kill(family)
            node.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _head_id() -> str:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return str(FAKE_HEAD_NODE_ID)


def _scaling_head() -> dict[str, str]:
    """What the head's environment needs for the fake provider to know it."""
    return {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _head_id(),
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _head_id(),
    }


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it; those that would start or end others come first."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(family: Sequence[psutil.Process]) -> None:
    """End processes without a word to them, as a machine does that loses its power."""
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
