"""Calls to a store that is away for a while: order, patience, what is said about it."""

from __future__ import annotations

import pytest

from muki_ray import tracking_outbox
from muki_ray.tracking_outbox import Outbox


class Store:
    """Takes words; may be away, and refuses bad ones."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.asked = 0
        self.away = False

    def answers(self) -> None:
        if self.away:
            raise ConnectionError("nobody there")

    def take(self, word: str) -> None:
        self.asked += 1
        self.answers()
        if word == "bad":
            raise ValueError("refused")
        self.taken.append(word)


class Speaker:
    """An outbox for words, and the clock that it goes by."""

    def __init__(self, store: Store) -> None:
        self.now, self.store = 0.0, store
        self.outbox = Outbox(store.answers, clock=lambda: self.now)

    def say(self, word: str) -> None:
        self.outbox.send("words", lambda: self.store.take(word))


@pytest.fixture
def speaker() -> Speaker:
    return Speaker(Store())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_store_that_is_away_is_left_alone_for_a_while(
    speaker: Speaker, caplog: pytest.LogCaptureFixture
) -> None:
    speaker.store.away = True
    for word in ("a", "b", "c"):
        speaker.say(word)
    assert speaker.store.asked == 1, "each try costs the run seconds"
    speaker.now += tracking_outbox.REST_S
    speaker.say("d")
    assert speaker.store.asked == 2
    assert said(caplog) == ["MLflow does not answer (nobody there); the run goes on, and tells it later"]


def test_it_hears_everything_in_order_once_it_is_back(
    speaker: Speaker, caplog: pytest.LogCaptureFixture
) -> None:
    speaker.say("a")
    speaker.store.away = True
    speaker.say("b")
    speaker.say("c")
    speaker.store.away = False
    speaker.now += tracking_outbox.REST_S
    speaker.say("d")
    assert speaker.store.taken == ["a", "b", "c", "d"]
    speaker.outbox.close()
    assert len(said(caplog)) == 1


def test_what_is_refused_is_dropped_and_holds_nothing_up(
    speaker: Speaker, caplog: pytest.LogCaptureFixture
) -> None:
    for word in ("a", "bad", "bad", "b", "bad"):
        speaker.say(word)
    assert speaker.store.taken == ["a", "b"]
    line = "MLflow did not take the run's words (refused); the run goes on"
    assert said(caplog) == [line, line], "one line until it took words again"


def test_the_end_is_tried_even_while_it_is_left_alone(
    speaker: Speaker, caplog: pytest.LogCaptureFixture
) -> None:
    speaker.store.away = True
    speaker.say("a")
    speaker.store.away = False
    speaker.say("b")
    speaker.outbox.close()
    assert speaker.store.taken == ["a", "b"]
    speaker.store.away = True
    speaker.say("c")
    speaker.outbox.close()
    assert said(caplog)[-1] == (
        "MLflow has not got the run's words; run again to record what it lacks, but for a training's curves"
    )
