"""The sending thread: order, what waits on the disk, what killed trainers left, one warning."""

from __future__ import annotations

import threading
import time

import pytest
from foreign_steps import step
from processes import until

from grpo_core.records import outbox
from grpo_core.records.intake import Intake
from grpo_core.records.outbox import Outbox
from grpo_core.records.parcels import Finish, TooLarge, pack, read, unzip
from grpo_core.records.record import SourceRun, SourceStep
from grpo_core.records.sinks import Away, Refused
from grpo_core.types import RunStatus

ENDED = Finish(RunStatus.FINISHED)
TIMES = ("FIRST_RETRY", "LAST_RETRY", "BEAT_SECONDS", "PATIENCE_SECONDS")
FAST = {name: getattr(outbox, name) / 100 for name in TIMES}  # 20 s are 0.2 s


def source(key: str = "k") -> SourceRun:
    return SourceRun(trainer="TRL", format="attach", key=key, name="mine")


class Destination:
    """Takes parcels while it is there. `got`: (key of the run, step or status)."""

    name = "a destination"

    def __init__(self):
        self.got, self.here, self.refuses = [], True, False
        self.delay = threading.Event()
        self.delay.set()

    def send(self, parcel):
        self.delay.wait(10)
        if not self.here:
            raise Away("it does not answer")
        if self.refuses and any(kind == "step" for kind, _ in parcel.events):
            raise Refused("no room for this")
        for kind, value in parcel.events:
            if kind != "progress":
                self.got.append((parcel.run.key, value.step if kind == "step" else value.status))

    def resend(self, packed):
        self.send(read(unzip(packed)))

    def close(self):
        pass


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(outbox, "LAST_RETRY", 0.05)
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.3)


@pytest.fixture
def there():
    return Destination()


def as_events(item):
    yield ("finish", item) if isinstance(item, Finish) else ("step", SourceStep(step=item))


def start(there, folder, key="k", convert=as_events):
    return Outbox(source(key), there, folder, convert)


def test_what_is_put_in_arrives_in_order_and_leaves_no_file(there, tmp_path):
    box = start(there, tmp_path / "spool")
    for item in (1, 2, ENDED):
        box.put(item)
    box.close()
    assert there.got == [("k", 1), ("k", 2), ("k", "finished")]
    assert not (tmp_path / "spool").exists()


def test_what_cannot_be_sent_waits_on_the_disk_and_follows_in_order(there, tmp_path, caplog):
    there.here = False
    box = start(there, tmp_path)
    for item in range(5):
        box.put(item)
    until(lambda: len(list(tmp_path.rglob("*.gz"))) == 5)
    there.here = True
    until(lambda: len(there.got) == 5)
    box.put(5)
    box.put(ENDED)
    box.close()
    assert [what for _, what in there.got] == [0, 1, 2, 3, 4, 5, "finished"]
    assert [r.message for r in caplog.records if "does not answer" in r.message] == [
        f"GRPO Studio: it does not answer. What is recorded waits in {box._spool.folder}, and is "
        "sent when it can be. Training goes on."
    ]


def test_the_trainer_never_waits_for_a_destination_that_hangs(there, tmp_path):
    there.delay.clear()
    box = start(there, tmp_path)
    started = time.monotonic()
    for item in range(100):
        box.put(item)
    assert time.monotonic() - started < 5  # and not until it answers
    there.delay.set()
    box.close()
    assert [what for _, what in there.got] == list(range(100))


def test_a_full_queue_loses_records_and_says_so_once(there, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_QUEUED", 10)
    there.delay.clear()
    box = start(there, tmp_path)
    for item in range(9):
        box.put(item, num_bytes=5)
    there.delay.set()
    box.close()
    assert len(there.got) < 9
    assert sum("some are lost" in r.message for r in caplog.records) == 1


def test_the_next_trainer_sends_what_a_killed_one_left(there, tmp_path):
    there.here = False
    dead = start(there, tmp_path, "dead")
    dead.put(1)
    until(lambda: list(tmp_path.rglob("*.gz")))
    with dead._changed:  # the system frees the lock of a killed process
        dead._spool.close()
    dead._retry_at = float("inf")
    there.here = True
    box = start(there, tmp_path, "next")
    box.put(7)
    box.put(ENDED)
    box.close()
    # It cannot end by itself any more.
    assert there.got[:2] == [("dead", 1), ("dead", "interrupted")]
    assert there.got[2:] == [("next", 7), ("next", "finished")]


def test_a_run_that_goes_on_keeps_the_order_of_its_parcels(there, tmp_path, caplog):
    there.here = False
    first = start(there, tmp_path)
    first.put(1)
    first.close()
    assert "1 parcels of this run wait in" in caplog.text
    there.here = True
    second = start(there, tmp_path)
    second.put(2)
    second.close()
    assert there.got == [("k", 1), ("k", 2)]
    assert list(tmp_path.rglob("*.gz")) == []


def test_what_is_refused_is_told_once_and_the_rest_arrives(there, tmp_path, caplog):
    there.refuses = True
    box = start(there, tmp_path)
    for item in (1, 2, ENDED):
        box.put(item)
    box.close()
    assert there.got == [("k", "finished")]
    assert sum("no room for this" in r.message for r in caplog.records) == 1


def test_a_fault_of_ours_is_told_and_ends_nothing(there, tmp_path, caplog):
    def breaks(item):
        if item == 1:
            raise ZeroDivisionError("oh")
        return as_events(item)

    box = start(there, tmp_path, convert=breaks)
    for item in (1, 2):
        box.put(item)
    box.close()
    assert there.got == [("k", 2)]
    assert "recording failed: ZeroDivisionError: oh. Training goes on." in caplog.text


def test_a_group_that_is_too_large_goes_without_its_tokens(there, tmp_path, caplog, monkeypatch):
    seen = []

    def send(parcel):
        seen.append(parcel)
        if len(seen) == 2:  # after the first sign of life
            raise TooLarge("a parcel of 9 bytes is too large")

    monkeypatch.setattr(there, "send", send)
    monkeypatch.setattr(outbox, "without_tokens", lambda parcel: "small")
    box = start(there, tmp_path)
    until(lambda: len(seen) == 1)
    box.put(1)
    box.close()
    assert seen[2] == "small"
    assert "recorded without their tokens" in caplog.text


def test_a_disk_that_takes_nothing_is_told_and_ends_nothing(there, tmp_path, caplog):
    there.here = False
    (tmp_path / "file").write_text("in the way")
    box = start(there, tmp_path / "file" / "spool")
    box.put(1)
    box.close()
    assert "records are lost" in caplog.text


def test_signs_of_life_come_while_nothing_else_does(there, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "BEAT_SECONDS", 0.02)
    beats = []
    monkeypatch.setattr(there, "send", lambda parcel: beats.append(parcel.events))
    box = start(there, tmp_path)
    until(lambda: len(beats) >= 4)
    box.close()
    assert set(map(str, beats)) == {"[('progress', 0)]"}


class Restarted:
    """A server that takes step 10, dies before it answers, and is back after AWAY seconds."""

    name, AWAY = "a server", 20 / 100

    def __init__(self, store):
        self._store, self._intake = store, Intake(store)
        self.left_at = self.back_at = 0.0
        self.num_known = 0  # steps that it had already

    def send(self, parcel):
        self.resend(pack(parcel))

    def resend(self, packed):
        parcel, now = read(unzip(packed)), time.monotonic()
        if self.left_at and not self.back_at:
            if now - self.left_at < self.AWAY:
                raise Away("it does not answer")
            self._intake.close()
            self._intake, self.back_at = Intake(self._store), now
        self.num_known += self._intake.take(parcel).known
        if not self.left_at and any(k == "step" and v.step == 10 for k, v in parcel.events):
            self.left_at = now
            raise Away("the answer was lost")

    def close(self):
        self._intake.close()


def test_a_server_away_for_20_s_loses_nothing_and_gets_nothing_twice(store, tmp_path, monkeypatch):
    for name, seconds in FAST.items():
        monkeypatch.setattr(outbox, name, seconds)
    server = Restarted(store)
    box = Outbox(source(), server, tmp_path, as_groups)
    for number in range(1, 11):
        box.put(number)
    until(lambda: server.left_at)
    for number in range(11, 26):
        box.put(number)
    until(lambda: server.back_at)
    for number in (*range(26, 31), ENDED):
        box.put(number)
    box.close()
    late = server.back_at - server.left_at - server.AWAY
    assert 0 <= late < 5  # it is asked every 0.15 s; a busy machine may be slow
    [run] = store.runs()
    assert [g.step for g in store.iter_groups(run.id)] == [*range(1, 31)]
    assert (run.status, run.steps_done, server.num_known) == ("finished", 30, 1)
    assert list(tmp_path.rglob("*.gz")) == []


def as_groups(item):
    yield ("finish", item) if isinstance(item, Finish) else ("step", step(item))
