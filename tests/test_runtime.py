"""Ray's start-up, the mailbox, and user errors that cross process borders."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from muki_ray import runtime
from muki_ray.errors import ConfigError, ResourceError, StudentError, TeacherError, UserError
from muki_ray.runtime import (
    Cluster,
    Messenger,
    connected,
    heard_here,
    listening,
    ray,
    user_error,
    users_errors,
)

SENTENCE = "teacher 'x' is broken; mend it"


# -- joining ---------------------------------------------------------------------------------------------


def test_connected_joins_what_is_there(ray_session: None) -> None:
    with connected() as cluster:
        assert cluster.resources["CPU"] == 4
        assert cluster.may_grow
        assert [node["CPU"] for node in cluster.nodes] == [4]
    assert ray.is_initialized(), "what was there before stays"


@pytest.mark.parametrize(
    ("resources", "may_grow", "gpus", "here"),
    [
        ({"CPU": 2}, False, 0, True),
        ({"CPU": 2}, True, 0, False),  # somebody's cluster: its workers may be elsewhere
        ({"CPU": 2, "GPU": 1}, False, 1, True),
        ({"CPU": 2, "GPU": 1}, False, 0, False),  # this process sees a GPU that is not to be used
        ({"CPU": 2}, False, 1, False),
    ],
)
def test_where_work_may_run(resources: dict[str, float], may_grow: bool, gpus: float, here: bool) -> None:
    assert Cluster(resources, may_grow).is_here(gpus) is here


_A100 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0}
_L4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}


@pytest.mark.parametrize(
    ("nodes", "groups", "missing"),
    [
        ([{"CPU": 2.0}], [], []),
        ([{"CPU": 2.0}], [({"CPU": 2.0}, 3)], [{"CPU": 2.0}] * 2),
        ([{"CPU": 2.0, "memory": 1e9}, _A100], [(_L4, 1), (_A100, 2)], [_L4, _A100]),
        ([_A100, _A100, _A100], [(_A100, 2), (_A100, 2)], [_A100]),  # more than the first group may have
        ([_A100], [(_A100, 1)], []),
        ([], [({"CPU": 1.0}, -1)], [{"CPU": 1.0}] * 1000),
    ],
)
def test_nodes_that_an_autoscaler_may_still_add(nodes: Any, groups: Any, missing: Any) -> None:
    assert list(runtime.missing_nodes(nodes, groups)) == missing


def test_reach() -> None:
    cluster = Cluster({"CPU": 2.0}, True, ({"CPU": 2.0},), (_A100, _L4))
    assert (cluster.reach["CPU"], cluster.reach["GPU"]) == (18.0, 2.0)
    assert len(cluster.places) == 3
    assert not cluster.is_here(0)


def test_a_cluster_that_is_gone_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(runtime, "read_ray_address", lambda: gone)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert runtime._standing_address() is None
    monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at RAY_ADDRESS='{gone}'"):
        runtime._standing_address()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert runtime._standing_address() is None


def test_a_cluster_that_answers_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(runtime, "read_ray_address", lambda: here)
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        assert runtime._standing_address() == here
        monkeypatch.setenv("RAY_ADDRESS", here)
        assert runtime._standing_address() == here


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("http://127.0.0.1:8265", r"^RAY_ADDRESS='http://127\.0\.0\.1:8265' is .* jobs API.*API_SERVER.*host:6379"),
        ("HTTPS://cluster", r"^RAY_ADDRESS='HTTPS://cluster' is an address of the jobs API"),
        ("ray://127.0.0.1:10001", r"Ray's client, under which Ray Data does not run.*host:6379.*ray job submit"),
    ],
)  # fmt: skip
def test_addresses_of_other_servers_are_refused(
    address: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=match) as refusal:
        runtime._standing_address()
    assert "\n" not in str(refusal.value)


def _failing(monkeypatch: pytest.MonkeyPatch, address: str | None, error: BaseException) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(runtime, "_standing_address", lambda: address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)


_JOIN = "cannot join the Ray cluster at head:6379: "


@pytest.mark.parametrize(
    ("address", "error", "match"),
    [
        ("head:6379", ConnectionError("refused"), f"^{_JOIN}refused; check that cluster, or set RAY_ADDRESS=local"),
        ("head:6379", ValueError("Malformed\n address"), f"^{_JOIN}Malformed address; check"),
        ("head:6379", RuntimeError("Version mismatch:\n 2.9\n 2.8"), f"^{_JOIN}Version mismatch: 2.9 2.8; check"),
        ("head:6379", TimeoutError(), f"^{_JOIN}TimeoutError; check"),
        ("head:6379", ray.exceptions.RaySystemError("no"), f"^{_JOIN}System error: no; check"),
        ("head:6379", ray.exceptions.AuthenticationError("no token"),
         rf"^{_JOIN}no token \(RAY_AUTH_MODE='token'\); give its token by RAY_AUTH_TOKEN or [^;]*$"),
        (None, OSError("no space left"), "^cannot start Ray here: no space left; free memory, disk or ports"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined_or_started_is_one_line(
    address: str | None, error: Exception, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, address, error)
    with pytest.raises(ResourceError, match=match) as refusal, connected():
        pytest.fail("there is no cluster")
    assert "\n" not in str(refusal.value)
    assert refusal.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(15), TypeError("a defect")])
def test_what_is_not_rays_refusal_comes_through(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, "head:6379", error)
    with pytest.raises(type(error)), connected():
        pytest.fail("there is no cluster")


def test_errors_of_the_work_are_not_taken_for_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    shut = []
    monkeypatch.setattr(runtime, "_standing_address", lambda: "head:6379")
    monkeypatch.setattr(runtime, "_cluster", lambda may_grow: Cluster({}, may_grow))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: shut.append(True))
    with pytest.raises(ValueError, match="of the work"), connected():
        raise ValueError("of the work")
    assert shut == [True]


def test_a_process_that_uses_rays_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    with pytest.raises(ResourceError, match=r"this process uses Ray's client.*ray job submit"), connected():
        pytest.fail("there is no cluster")


# -- messages --------------------------------------------------------------------------------------------


class _Inbox:
    """Collects messages; `wait` until so many are there."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.changed = threading.Condition()

    def __call__(self, kind: str, content: Any) -> None:
        with self.changed:
            self.messages.append((kind, content))
            self.changed.notify_all()

    def wait(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.messages) >= count, timeout=60)


def test_all_messages_arrive_in_order(ray_session: None) -> None:
    inbox = _Inbox()
    with listening(inbox, every=0.01) as messenger:
        for i in range(300):
            messenger.send("mine", i)
            if i == 100:
                assert inbox.wait(50), "messages are handled while the block runs"
    assert inbox.messages == [("mine", i) for i in range(300)]


def test_messages_sent_just_before_the_end_are_not_lost(ray_session: None) -> None:
    inbox = _Inbox()
    with listening(inbox, every=3600) as messenger:
        messenger.send("last", {"rows": 3})
    assert inbox.messages == [("last", {"rows": 3})]


def test_workers_send_too(ray_session: None) -> None:
    @ray.remote(num_cpus=0.1)
    def work(messenger: Messenger, name: str) -> None:
        for i in range(5):
            messenger.send(name, i)

    inbox = _Inbox()
    with listening(inbox, every=0.05) as messenger:
        ray.get([work.remote(messenger, name) for name in "ab"])
        assert inbox.wait(10)
    for name in "ab":
        assert [content for kind, content in inbox.messages if kind == name] == list(range(5))


def test_who_asks_is_told_when_nobody_listens_any_more(ray_session: None) -> None:
    with listening(_Inbox()) as messenger:
        assert messenger.is_open()
        messenger.close()
        assert not messenger.is_open()
        messenger.send("late", 1)
    with listening(_Inbox()) as messenger:
        assert messenger.is_open()
    assert not messenger.is_open()


def test_a_lost_mailbox_is_not_the_senders_problem(ray_session: None) -> None:
    @ray.remote(num_cpus=0.1)
    def work(messenger: Messenger) -> str:
        messenger.send("late", 1)
        return "done"

    inbox = _Inbox()
    with listening(inbox, every=0.05) as messenger:
        messenger.send("first", 0)
        assert inbox.wait(1)
        ray.kill(messenger.actor)
        with pytest.raises(ray.exceptions.RayActorError):
            for _ in range(600):  # until its death is known here
                ray.get(messenger.actor.take.remote())
                time.sleep(0.05)
        messenger.send("late", 0)
        assert ray.get(work.remote(messenger)) == "done"
    assert inbox.messages == [("first", 0)]


def test_a_handler_that_fails_stops_nothing(ray_session: None, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def handle(kind: str, content: Any) -> None:
        seen.append(content)
        if content == 1:
            raise OSError("the tracking server is away")

    with listening(handle, every=0.01) as messenger:
        for i in range(3):
            messenger.send("step", i)
    assert seen == [0, 1, 2]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the tracking server is away"


def test_an_error_in_the_block_comes_through_and_ends_the_thread(ray_session: None) -> None:
    with pytest.raises(KeyError, match="mine"), listening(_Inbox(), every=0.01):
        raise KeyError("mine")
    assert "muki-ray-messages" not in {thread.name for thread in threading.enumerate()}


# -- user errors -----------------------------------------------------------------------------------------


def caught(ref: Any) -> Exception:
    with pytest.raises(Exception) as failure:
        ray.get(ref)
    return failure.value


def check(error: BaseException, kind: type[UserError] = TeacherError) -> None:
    found = user_error(error)
    assert type(found) is kind
    assert str(found) == SENTENCE


def test_behind_a_task_error(ray_session: None) -> None:
    @ray.remote(num_cpus=0.1)
    def fail() -> None:
        raise TeacherError(SENTENCE)

    error = caught(fail.remote())
    assert "\n" in str(error), "what Ray raises shows a traceback"
    check(error)


def test_behind_two_tasks(ray_session: None) -> None:
    @ray.remote(num_cpus=0.1)
    def inner() -> None:
        raise TeacherError(SENTENCE)

    @ray.remote(num_cpus=0.1)
    def outer() -> None:
        ray.get(inner.remote())

    check(caught(outer.remote()))


def test_behind_actor_errors(ray_session: None) -> None:
    class Failing:
        def __init__(self, healthy: bool) -> None:
            if not healthy:
                raise TeacherError(SENTENCE)

        def fail(self) -> None:
            raise TeacherError(SENTENCE)

    Actor: Any = ray.remote(num_cpus=0.1)(Failing)
    check(caught(Actor.remote(True).fail.remote()))
    never = Actor.remote(False)
    error = caught(never.fail.remote())
    assert isinstance(error, ray.exceptions.RayActorError)
    check(error)


def _raised(first: Exception, second: Exception, cause: Exception | None) -> Exception:
    try:
        try:
            raise first
        except Exception:
            if cause is None:
                raise second  # noqa: B904 (the point: only a context)
            raise second from cause
    except Exception as error:
        return error


def test_behind_causes_and_contexts() -> None:
    wanted = StudentError(SENTENCE)
    check(wanted, StudentError)
    check(_raised(wanted, ValueError("y"), None), StudentError)
    check(_raised(ValueError("x"), ValueError("y"), wanted), StudentError)
    check(_raised(ValueError("x"), ValueError("y"), _raised(wanted, KeyError("z"), None)), StudentError)


def test_behind_failures_of_ray_train() -> None:
    from ray.train import ControllerError, WorkerGroupError

    failures = {0: RuntimeError("connection reset"), 1: ResourceError(SENTENCE)}
    check(WorkerGroupError("two workers failed", failures), ResourceError)
    check(ControllerError(ConfigError(SENTENCE)), ConfigError)


def test_other_errors_are_not_the_users(ray_session: None) -> None:
    @ray.remote(num_cpus=0.1)
    def fail() -> None:
        raise ValueError("a defect")

    assert user_error(caught(fail.remote())) is None
    assert user_error(ValueError("x", ValueError("y"))) is None
    loop = ValueError("its own cause")
    loop.__context__ = _raised(loop, KeyError("z"), loop)
    assert user_error(loop) is None


def test_messages_of_this_process_come_in_order_and_a_failing_handler_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    def handle(kind: str, content: int) -> None:
        if content == 1:
            raise ValueError("no")
        heard.append(content)

    with heard_here(handle, every=0.01) as send:
        for number in range(100):
            send("step", number)
    assert heard == [0, *range(2, 100)], "all that was sent is heard before the block ends"
    assert "could not be handled" in caplog.text


def test_the_users_errors_are_raised_plainly() -> None:
    behind = ray.exceptions.RayTaskError(
        "sample", "a\ntraceback", TeacherError(SENTENCE)
    ).as_instanceof_cause()
    assert "\n" in str(behind)
    with pytest.raises(TeacherError) as plain, users_errors():
        raise behind
    assert type(plain.value) is TeacherError and str(plain.value) == SENTENCE
    defect = ray.exceptions.RayTaskError("sample", "a\ntraceback", ValueError("x")).as_instanceof_cause()
    with pytest.raises(ValueError) as other, users_errors():
        raise defect
    assert other.value is defect
