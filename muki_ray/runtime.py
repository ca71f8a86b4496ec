"""Ray, quietly: join the cluster that is there or start one on this machine; carry messages to the driver.

Knows Ray's start-up and its actors; knows nothing of teachers, students or the paper.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

# read by Ray when it is imported or starts; a user's own settings win
for _name, _value in {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray._private.state import state  # noqa: E402
from ray._private.utils import read_ray_address  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from muki_ray.errors import ResourceError, UserError  # noqa: E402
from muki_ray.planning import total  # noqa: E402
from muki_ray.uris import scheme  # noqa: E402

_log = logging.getLogger("muki_ray")

# of one group: more nodes than this change no plan
_MOST_ADDED = 1000
_OWN_ADDRESS = "on a node, set RAY_ADDRESS to the cluster's own address, such as host:6379"
_NO_CLIENT = f"under which Ray Data does not run; {_OWN_ADDRESS}, or go through `ray job submit`"


@dataclass(frozen=True)
class Cluster:
    """What Ray offers now.

    Attributes:
        resources: of all nodes together, by name (`CPU`, `GPU`).
        may_grow: it is not one that this process started, so an autoscaler may add nodes.
        nodes: resources of each node; what one actor asks for has to fit one of them.
        may_add: of each node that the autoscaler may add, where it says so.
    """

    resources: dict[str, float]
    may_grow: bool
    nodes: tuple[dict[str, float], ...] = ()
    may_add: tuple[dict[str, float], ...] = ()

    @property
    def reach(self) -> dict[str, float]:
        """Resources once all nodes are there that may come."""
        return total([self.resources, *self.may_add])

    @property
    def places(self) -> tuple[dict[str, float], ...]:
        """Nodes that are there or may come."""
        return (*self.nodes, *self.may_add)

    def is_here(self, gpus: float) -> bool:
        """Whether work that asks for so many GPUs may as well run in this process.

        This process sees every GPU of the machine: it is the right place only if one is to be used, or there is none.
        """
        return not self.may_grow and (gpus > 0) == (self.reach.get("GPU", 0) > 0)


def _cluster(may_grow: bool) -> Cluster:
    nodes = tuple(dict(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return Cluster(ray.cluster_resources(), may_grow, nodes, _may_add(nodes) if may_grow else ())


def _may_add(nodes: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """Nodes that an autoscaler may still add, where it has told Ray of its groups; empty where nobody knows."""
    config = state.get_cluster_config()
    if config is None:
        return ()
    groups = [(dict(group.resources), group.max_count) for group in config.node_group_configs]
    return missing_nodes(nodes, groups)


def missing_nodes(
    nodes: Sequence[Mapping[str, float]], groups: Sequence[tuple[Mapping[str, float], int]]
) -> tuple[dict[str, float], ...]:
    """Nodes of groups (resources of one, most of them; below 0: no end) that are not there yet.

    A node belongs to the first group with its CPUs, GPUs and kinds of GPU; Ray does not say which it came from.
    """
    there = Counter(_kind(node) for node in nodes)
    missing: list[dict[str, float]] = []
    for resources, most in groups:
        kind = _kind(resources)
        present = min(there[kind], most) if most >= 0 else there[kind]
        there[kind] -= present
        count = _MOST_ADDED if most < 0 else most - present
        missing += [dict(resources)] * min(count, _MOST_ADDED)
    return tuple(missing)


def _kind(resources: Mapping[str, float]) -> tuple[float, float, frozenset[str]]:
    types = frozenset(name for name in resources if name.startswith("accelerator_type:"))
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0), types


@contextmanager
def connected() -> Iterator[Cluster]:
    """A Ray cluster for the length of a run.

    Joins the one that the process already uses, the one of the job or of `RAY_ADDRESS`, or the one that
    `ray start` left on this machine; else starts one here and ends it afterwards.

    Raises:
        ResourceError: `RAY_ADDRESS` names no cluster, or one that does not answer; it cannot be joined; none can be
            started here; the process is joined by Ray's client, under which Ray Data does not run.
    """
    if ray.is_initialized():
        if ray.util.client.ray.is_connected():
            raise ResourceError(f"this process uses Ray's client, {_NO_CLIENT}")
        yield _cluster(may_grow=True)
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    address = _standing_address()
    if address is None:
        # a private cluster on the loopback address: a token would be left in the user's home, and then be
        # asked for by every cluster started later on this machine
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options |= {"include_dashboard": False}
    _start(address, options)
    try:
        yield _cluster(may_grow=address is not None)
    finally:
        ray.shutdown()


def _start(address: str | None, options: Mapping[str, Any]) -> None:
    """Join the cluster at an address, or start one here (None).

    Raises:
        ResourceError: Ray cannot.
    """
    if address:
        what, remedy = (
            f"cannot join the Ray cluster at {address}",
            "check that cluster, or set RAY_ADDRESS=local to start one here",
        )
    else:
        what, remedy = "cannot start Ray here", "free memory, disk or ports, or join a cluster by RAY_ADDRESS"
    try:
        with _muffled():
            ray.init(address=address or "local", **options)
    except ray.exceptions.AuthenticationError as error:  # its own text is a paragraph
        mode = os.environ.get("RAY_AUTH_MODE", "")
        raise ResourceError(
            f"{what}: {error.message} (RAY_AUTH_MODE={mode!r}); give its token by RAY_AUTH_TOKEN or ~/.ray/auth_token, "
            "or set RAY_AUTH_MODE as the cluster has it"
        ) from error
    # what `ray.init` raises where address, network, disk or versions are at fault
    except (ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise ResourceError(f"{what}: {str(error) or type(error).__name__}; {remedy}") from error


@contextmanager
def _muffled() -> Iterator[None]:
    """Without what Ray's C++ side writes to stderr while it starts: its log level, on every start.

    Failures to start are Python exceptions and get through.
    """
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)


def _standing_address() -> str | None:
    """Address of the cluster to join; None to start one here.

    Ray itself waits minutes for a cluster that is gone, such as one whose `ray start` was killed: so ask first.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named not in ("", "auto"):
        if scheme(named) in ("http", "https"):
            raise ResourceError(
                f"RAY_ADDRESS={named!r} is an address of the jobs API, which `ray job submit` takes by "
                f"RAY_API_SERVER_ADDRESS or --address; {_OWN_ADDRESS}, or unset it"
            )
        if scheme(named):
            raise ResourceError(f"RAY_ADDRESS={named!r} is for Ray's client, {_NO_CLIENT}")
        if not _answers(named):
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={named!r}; start one or unset RAY_ADDRESS"
            )
        return named
    left = read_ray_address()
    return left if left and _answers(left) else None


def _answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


# longest that the driver waits for its mailbox
_MAILBOX_PATIENCE_S = 30.0


class _Mailbox:
    """Actor that workers tell things to; the driver asks for what is new. Losing it loses only messages, and whoever
    asks knows."""

    def __init__(self) -> None:
        self.messages: deque[tuple[str, Any]] = deque(maxlen=10_000)
        self.listened_to = True

    def put(self, kind: str, content: Any) -> None:
        self.messages.append((kind, content))

    def is_listened_to(self) -> bool:
        return self.listened_to

    def close(self) -> None:
        self.listened_to = False

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

    def is_open(self) -> bool:
        """Whether the driver still listens; waits for the answer."""
        try:
            return bool(ray.get(self.actor.is_listened_to.remote()))
        except ray.exceptions.RayError:
            return False

    def close(self) -> None:
        """Listen no more: what is told from now on is lost, and whoever asks knows."""
        with suppress(ray.exceptions.RayError):  # told first: a killed actor may still answer for a moment
            ray.get(self.actor.close.remote(), timeout=_MAILBOX_PATIENCE_S)
        ray.kill(self.actor)


@contextmanager
def listening(handle: Callable[[str, Any], None], every: float = 0.5) -> Iterator[Messenger]:
    """A mailbox whose messages `handle(kind, content)` gets, on a thread of the driver, until the block ends.

    Messages are for people's eyes: a handler that fails is logged and stops no work.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    stop = threading.Event()

    def drain() -> None:
        for kind, content in ray.get(actor.take.remote(), timeout=_MAILBOX_PATIENCE_S):
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
    messenger = Messenger(actor)
    thread.start()
    try:
        yield messenger
    finally:
        stop.set()
        thread.join(timeout=60)
        with suppress(ray.exceptions.RayError):
            drain()
        messenger.close()


@contextmanager
def heard_here(
    handle: Callable[[str, Any], None], every: float = 0.5
) -> Iterator[Callable[[str, Any], None]]:
    """`listening` for work in this very process: gives a `send` that never makes its caller wait or fail."""
    messages: deque[tuple[str, Any]] = deque(maxlen=10_000)
    stop = threading.Event()

    def drain() -> None:
        while messages:
            kind, content = messages.popleft()
            try:
                handle(kind, content)
            except Exception:
                _log.exception("a message of kind %r could not be handled", kind)

    def listen() -> None:
        while not stop.wait(every):
            drain()

    thread = threading.Thread(target=listen, name="muki-ray-messages", daemon=True)
    thread.start()
    try:
        yield lambda kind, content: messages.append((kind, content))
    finally:
        stop.set()
        thread.join(timeout=60)
        drain()


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


@contextmanager
def users_errors() -> Iterator[None]:
    """What Ray raises of a task or actor is, where it is the user's to mend, the plain error: one line.

    Raises:
        UserError: the one behind a Ray error.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
