"""Ray, quietly: join the cluster that is there or start one on this machine; carry messages to the driver.

Knows Ray's start-up and its actors; knows nothing of teachers, students or the paper.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

# read by Ray when it is imported or starts; a user's own settings win
for _name, _value in {
    "RAY_BACKEND_LOG_LEVEL": "error",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from muki_ray.errors import ResourceError, UserError  # noqa: E402

_log = logging.getLogger("muki_ray")


@dataclass(frozen=True)
class Cluster:
    """What Ray offers now.

    Attributes:
        resources: of all nodes together, by name (`CPU`, `GPU`).
        may_grow: it is not one that this process started, so an autoscaler may add nodes.
        nodes: resources of each node; what one actor asks for has to fit one of them.
    """

    resources: dict[str, float]
    may_grow: bool
    nodes: tuple[dict[str, float], ...] = ()


def _cluster(may_grow: bool) -> Cluster:
    nodes = tuple(dict(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return Cluster(ray.cluster_resources(), may_grow, nodes)


@contextmanager
def connected() -> Iterator[Cluster]:
    """A Ray cluster for the length of a run.

    Joins the one that the process already uses, the one of the job or of `RAY_ADDRESS`, or the one that
    `ray start` left on this machine; else starts one here and ends it afterwards.

    Raises:
        ResourceError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield _cluster(may_grow=True)
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    local = False
    try:
        ray.init(address="auto", **options)
    except ConnectionError as error:
        if os.environ.get("RAY_ADDRESS"):
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']!r} ({error}); start one or unset RAY_ADDRESS"
            ) from error
        # a private cluster on the loopback address: a token would be left in the user's home, and then be
        # asked for by every cluster started later on this machine
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", include_dashboard=False, **options)
        local = True
    try:
        yield _cluster(may_grow=not local)
    finally:
        ray.shutdown()


class _Mailbox:
    """Actor that workers tell things to; the driver asks for what is new. Losing it loses only messages."""

    def __init__(self) -> None:
        self.messages: deque[tuple[str, Any]] = deque(maxlen=10_000)

    def put(self, kind: str, content: Any) -> None:
        self.messages.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        taken = list(self.messages)
        self.messages.clear()
        return taken


class Messenger:
    """Handle that workers send messages with; cheap to pickle; never makes its caller wait or fail."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def send(self, kind: str, content: Any) -> None:
        """Tell the driver something. A lost mailbox is not the sender's problem."""
        with suppress(ray.exceptions.RayError):
            self.actor.put.remote(kind, content)


@contextmanager
def listening(handle: Callable[[str, Any], None], every: float = 0.5) -> Iterator[Messenger]:
    """A mailbox whose messages `handle(kind, content)` gets, on a thread of the driver, until the block ends.

    Messages are for people's eyes: a handler that fails is logged and stops no work.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    stop = threading.Event()

    def drain() -> None:
        for kind, content in ray.get(actor.take.remote(), timeout=30):
            try:
                handle(kind, content)
            except Exception:
                _log.exception("a message of kind %r could not be handled", kind)

    def listen() -> None:
        while not stop.wait(every):
            try:
                drain()
            except ray.exceptions.GetTimeoutError:  # the mailbox is slow today, not dead
                continue
            except ray.exceptions.RayError:
                return

    thread = threading.Thread(target=listen, name="muki-ray-messages", daemon=True)
    thread.start()
    try:
        yield Messenger(actor)
    finally:
        stop.set()
        thread.join(timeout=60)
        with suppress(ray.exceptions.RayError):
            drain()
        ray.kill(actor)


def user_error(error: BaseException) -> UserError | None:
    """The user's error behind a failure that crossed process borders, if there is one."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)
        # Ray derives a class from ours, whose message is a traceback; the original is its cause
        if isinstance(current, UserError) and not isinstance(cause, UserError):
            return current
        queue += [cause, current.__cause__, current.__context__]
        # a failed actor constructor keeps its error in `args`, Ray Train keeps them by worker or controller
        queue += [*current.args, getattr(current, "controller_failure", None)]
        queue += getattr(current, "worker_failures", {}).values()
    return None
