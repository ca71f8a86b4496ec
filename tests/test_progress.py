"""The progress line: on a terminal, in a job log, from several threads. The clock is a list of numbers."""

from __future__ import annotations

import io
import threading

import pytest

from muki_ray.progress import Progress, duration, say


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What a person sees: `\\r` goes back to the start of the line, later text overwrites."""
        lines = [""]
        for character in self.getvalue():
            if character == "\n":
                lines.append("")
                column = 0
            elif character == "\r":
                column = 0
            else:
                column = len(lines[-1]) if lines[-1] == "" else column
                lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (7.6, "8s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (65, "1m05s"),
        (3600, "1h00m"),
        (7390, "2h03m"),
        (90000, "1d01h"),
        (-3, "0s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_terminal_line_counts_rate_and_time_left() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 40_000, stream, clock=clock)
    clock.now += 10
    progress.update(12_345, "agnews")
    # 12,345 rows in 10 s are 1,234.5 a second; 27,655 rows are left: 22.4 s
    assert stream.screen() == ["score: 12,345/40,000 rows  30%  1,234 rows/s  ETA 22s  agnews"]


def test_terminal_is_rewritten_at_most_five_times_a_second() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 1000, stream, clock=clock)
    states = set()
    for done in range(1, 101):
        clock.now += 0.01
        progress.update(done)
        states.add(stream.screen()[0])
    assert len(states) == 5, "at 0.01, 0.21, 0.41, 0.61 and 0.81 s"
    assert stream.getvalue().count("\n") == 0


def test_shorter_line_leaves_nothing_of_the_longer_one() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", None, stream, clock=clock)
    progress.update(5, "a rather long note")
    clock.now += 1
    progress.update(15)
    assert stream.screen() == ["score: 15 rows  15 rows/s"]


def test_line_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream, clock = Terminal(), Clock()
    Progress("score", 10, stream, clock=clock).update(1, "x" * 100)
    assert stream.screen() == ["score: 1/10 rows  1"], "19 characters: a twentieth may wrap"


def test_reused_rows_are_neither_in_the_rate_nor_in_the_time_left() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 10_000, stream, skip=9_000, clock=clock)
    clock.now += 10
    progress.update(9_200)
    # 200 fresh rows in 10 s: 20 a second, 800 left: 40 s
    assert stream.screen()[-1] == "score: 9,200/10,000 rows  92%  20 rows/s  ETA 40s"
    clock.now += 10
    progress.update(9_700, skip=9_300)
    # 400 fresh rows in 20 s, 300 left: 15 s
    assert stream.screen()[-1] == "score: 9,700/10,000 rows  97%  20 rows/s  ETA 15s"
    clock.now += 20
    progress.update(10_000)
    progress.close()
    # 700 fresh rows in 40 s
    assert stream.screen() == ["score: 10,000 rows in 40s, 18 rows/s, 9,300 reused", ""]


def test_only_reused_rows_give_no_rate() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 100, stream, skip=50, clock=clock)
    clock.now += 1
    progress.update(50)
    assert stream.screen() == ["score: 50/100 rows  50%"]
    progress.close()
    assert stream.screen()[0] == "score: 50 rows in 1s, 50 reused"


def test_rate_looks_back_one_minute() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", None, stream, clock=clock)
    clock.now += 300  # models are loaded: a slow start
    progress.update(0)
    clock.now += 60
    progress.update(6_000)
    assert stream.screen() == ["score: 6,000 rows  100 rows/s"]
    progress.close()
    assert stream.screen()[0] == "score: 6,000 rows in 6m00s, 17 rows/s", "the mean over 360 s"


def test_slow_rates_keep_a_decimal() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 10, stream, clock=clock)
    clock.now += 4
    progress.update(3)
    assert stream.screen() == ["score: 3/10 rows  30%  0.8 rows/s  ETA 9s"]


def test_log_gets_a_line_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("score", 100, stream, clock=clock)
    for done in range(1, 26):
        clock.now += 1
        progress.update(done)
    progress.close("done")
    assert stream.getvalue().splitlines() == [
        "score: 10/100 rows  10%  1.0 rows/s  ETA 1m30s",
        "score: 20/100 rows  20%  1.0 rows/s  ETA 1m20s",
        "score: 25 rows in 25s, 1.0 rows/s, done",
    ]
    assert "\r" not in stream.getvalue()


def test_short_stage_in_a_log_is_one_line() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("labels", 3, stream, clock=clock) as progress:
        progress.update(3, "all read")
        clock.now += 2
    assert stream.getvalue() == "labels: 3 rows in 2s, 1.5 rows/s, all read\n"


def test_closing_twice_and_updating_a_closed_stage_print_nothing() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 10, stream, clock=clock)
    progress.close()
    before = stream.getvalue()
    progress.close()
    clock.now += 60
    progress.update(5)
    assert stream.getvalue() == before


def test_an_error_closes_the_line_with_its_name() -> None:
    stream = Terminal()
    with pytest.raises(KeyError), Progress("score", 10, stream, clock=Clock()):
        raise KeyError("x")
    assert stream.screen() == ["score: 0 rows in 0s, stopped by KeyError", ""]


@pytest.mark.parametrize("total", [0, 5])
def test_more_rows_than_expected_is_never_above_all(total: int) -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", total, stream, clock=clock)
    clock.now += 1
    progress.update(20)
    assert stream.screen() == [f"score: 20/{total} rows  100%  20 rows/s  ETA 0s"]


def test_say_keeps_the_progress_line_whole() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 10, stream, clock=clock)
    clock.now += 1
    progress.update(5)
    say("a word", stream)
    say("another", stream)
    assert stream.screen() == ["a word", "another", "score: 5/10 rows  50%  5.0 rows/s  ETA 1s"]
    progress.close()
    say("the end", stream)
    assert stream.screen() == ["a word", "another", "score: 5 rows in 1s, 5.0 rows/s", "the end", ""]


def test_say_in_a_log_is_a_plain_line() -> None:
    stream = io.StringIO()
    say("a word", stream)
    assert stream.getvalue() == "a word\n"


def test_say_goes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    say("a word")
    assert capsys.readouterr() == ("", "a word\n")


def test_two_stages_share_one_terminal_line() -> None:
    stream, clock = Terminal(), Clock()
    one, two = (Progress(name, 10, stream, clock=clock) for name in ("a teacher", "b"))
    one.update(1)
    two.update(2)
    assert stream.screen() == ["b: 2/10 rows  20%"]
    one.close()
    clock.now += 1
    two.update(3)
    assert stream.screen() == ["a teacher: 1 row in 0s", "b: 3/10 rows  30%  3.0 rows/s  ETA 2s"]


def test_closed_stream_does_not_stop_the_work() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("score", 10, stream, clock=clock)
    stream.close()
    clock.now += 1
    progress.update(5)
    progress.close()
    say("a word", stream)


def test_a_note_that_the_encoding_lacks_does_not_stop_the_work() -> None:
    raw = io.BytesIO()
    progress = Progress("score", 10, io.TextIOWrapper(raw, encoding="ascii"), clock=Clock())
    progress.close("\u65e5")
    assert raw.getvalue() == b"score: 0 rows in 0s, \\u65e5\n"


def test_threads_do_not_tear_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("score", 4000, stream, clock=clock)

    def work(worker: int) -> None:
        for i in range(200):
            clock.now += 10
            progress.update(i, f"worker{worker}")
            say(f"worker{worker} says {i}", stream)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    said = [line for line in lines if " says " in line]
    assert sorted(said) == sorted(f"worker{w} says {i}" for w in range(4) for i in range(200))
    assert all(line.startswith("score: ") and line.endswith(tuple(f"worker{w}" for w in range(4)))
               for line in lines if line not in said)  # fmt: skip
