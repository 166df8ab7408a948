"""/studio/ingest: who may send, how much, how often, and what is written."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest
from loops import run_async

from grpo_core.errors import StudioError
from grpo_core.records import intake
from grpo_core.records.parcels import Finish, Parcel, pack, unzip
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.store import Store
from grpo_core.types import RunStatus
from ui.server import ingest
from ui.server.guard import Guard
from ui.server.ingest import INGEST, Desk, Ingest

TOKEN = "a-token-that-is-long-enough"
AUTHORIZATION = (b"authorization", f"Bearer {TOKEN}".encode())
ZIPPED = (b"content-encoding", b"gzip")
RUN = SourceRun(trainer="TRL 1.16.0", format="attach", key="k", name="elsewhere", num_steps=3)


def step(number: int, part: int = 0, reward: float = 1.0):
    rollouts = [
        SourceRollout(text=f"{number}.{part}", reward=r, scores={"a": r}) for r in (reward, 0)
    ]
    group = SourceGroup(prompt=f"prompt {part}", rollouts=rollouts)
    return "step", SourceStep(step=number, part=part, groups=[group], metrics={"kl": 0.1})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs.sqlite")


@pytest.fixture
def desk(store):
    desk = Desk(store, TOKEN)
    yield desk
    desk.close()


async def nothing_else(scope, receive, send):
    raise AssertionError(f"{scope['path']} reached the page")


@pytest.fixture
def app(desk):
    return Guard(Ingest(nothing_else, desk))


def post(app, body, *headers, path=INGEST, visitor="1.2.3.4", pieces=1):
    """Status, answer and headers; the body comes in so many pieces."""

    async def ask():
        size = max(1, -(-len(body) // pieces))
        waiting = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        sent = []

        async def receive():
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": (visitor, 1),
            "headers": [(b"host", b"127.0.0.1:7860"), *headers],
        }
        await app(scope, receive, send)
        text = b"".join(m.get("body", b"") for m in sent)
        return sent[0]["status"], text, dict(sent[0]["headers"])

    status, text, answered = run_async(ask())
    return status, orjson.loads(text), answered


def send(app, *events, run=RUN, headers=(AUTHORIZATION, ZIPPED), **options):
    return post(app, pack(Parcel(run, events)), *headers, **options)[:2]


def rows(store):
    return [
        (g.step, g.prompt, [r.text for r in g.rollouts], [r.reward for r in g.rollouts])
        for run in store.runs()
        for g in store.iter_groups(run.id)
    ]


def test_a_parcel_becomes_a_live_run_and_its_end_ends_it(app, store):
    status, said = send(app, step(1), ("progress", 2))
    [run] = store.runs()
    assert (status, said) == (200, {"run_id": run.id, "written": 1, "known": 0})
    assert (run.name, run.status, run.step) == ("elsewhere", "running", 2)
    assert rows(store) == [(1, "prompt 0", ["1.0", "1.0"], [1.0, 0.0])]
    send(app, ("finish", Finish(RunStatus.FAILED, "OutOfMemoryError: no")))
    [run] = store.runs()
    assert (run.status, run.error) == ("failed", "OutOfMemoryError: no")


def test_parts_may_come_twice_and_in_any_order(app, store):
    send(app, step(1, 1), step(2, 0), step(1, 0))
    assert send(app, step(1, 1), step(1, 0))[1]["known"] == 2
    assert send(app, step(2, 0, reward=0.5))[1]["written"] == 1  # it differs, so it replaces
    assert [(s, p, r[0]) for s, p, _, r in rows(store)] == [
        (1, "prompt 0", 1.0),
        (1, "prompt 1", 1.0),
        (2, "prompt 0", 0.5),
    ]


def test_the_server_goes_on_where_another_one_stopped(desk, app, store):
    send(app, step(1))
    desk.close()
    store.recover()
    [run] = store.runs()
    assert run.status == "interrupted"
    send(Guard(Ingest(nothing_else, Desk(store, TOKEN))), step(1), step(2))
    [run] = store.runs()
    assert (run.status, run.ended_at, len(rows(store))) == ("running", None, 2)


def test_plain_json_in_many_pieces_is_taken_too(app, store):
    body = unzip(pack(Parcel(RUN, [step(1)])))
    assert post(app, body, AUTHORIZATION, pieces=7)[0] == 200
    assert len(rows(store)) == 1


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \u00e9"]
)
def test_without_the_token_nothing_is_written(app, store, authorization):
    headers = [ZIPPED]
    if authorization is not None:
        headers.append((b"authorization", authorization.encode()))
    status, said = send(app, step(1), headers=headers)
    assert status == 401
    assert "Bearer TOKEN" in said["error"]
    assert store.runs() == []


def test_wrong_tokens_come_slower_and_slower_but_the_right_one_never_waits(app, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    guesses = app.app._guesses
    monkeypatch.setattr(
        guesses, "turn", lambda address: type(guesses).turn(guesses, address, sleep)
    )
    for _ in range(7):
        send(app, headers=[ZIPPED])
    assert len(waited) == 2
    assert send(app, ("progress", 1))[0] == 200
    assert len(waited) == 2


def test_without_a_token_there_is_nothing_here():
    status, said, _ = post(Guard(Ingest(nothing_else, None)), b"{}", AUTHORIZATION)
    assert status == 404
    assert "--ingest-token" in said["error"]


@pytest.mark.parametrize("token", ["short", "ä" * 20, "x" * 15])
def test_a_token_that_can_be_guessed_is_refused_at_the_start(store, token):
    with pytest.raises(StudioError, match="--ingest-token has"):
        Desk(store, token)


def test_other_addresses_reach_the_page(desk):
    reached = []

    async def page(scope, receive, send):
        reached.append(scope["path"])

    async def ask():
        scope = {"type": "http", "path": "/studio/show"}
        await Ingest(page, desk)(scope, None, None)

    run_async(ask())
    assert reached == ["/studio/show"]


def test_a_wrong_parcel_names_the_place_and_changes_nothing(app, store):
    body = b'{"run": {"trainer": "x", "format": "attach", "key": "k"}, "events": []}'
    status, said, _ = post(app, body, AUTHORIZATION)
    assert status == 400
    assert said["problems"][0]["field"] == "run.name"
    bad = step(1)[1].groups[0].rollouts[0]
    wrong = SourceGroup(prompt="p", rollouts=[bad], before=[{"role": 1}])
    assert send(app, ("step", SourceStep(step=1, groups=[wrong])))[0] == 400
    assert send(app, ("step", SourceStep(step=-1)))[0] == 400
    assert rows(store) == []
    assert send(app, step(1))[0] == 200  # the next one is taken


def test_sizes_are_limited_before_and_after_unpacking(app, store, monkeypatch):
    bomb = gzip.compress(b" " * 40_000_000)
    assert post(app, bomb, AUTHORIZATION, ZIPPED)[0] == 413
    monkeypatch.setattr(ingest, "MAX_PACKED", 100)
    body = pack(Parcel(RUN, [step(1)]))
    assert post(app, body, AUTHORIZATION, ZIPPED, pieces=3)[0] == 413
    announced = (b"content-length", b"101")
    assert post(app, b"", AUTHORIZATION, ZIPPED, announced)[0] == 413
    assert post(app, body, AUTHORIZATION, (b"content-encoding", b"br"))[0] == 415
    assert store.runs() == []


def test_an_address_that_sends_too_fast_is_told_when_to_come_again(app, monkeypatch):
    monkeypatch.setattr(ingest, "BURST", 2.0)
    monkeypatch.setattr(ingest, "PER_SECOND", 0.0)
    assert [send(app, ("progress", 1))[0] for _ in range(3)] == [200, 200, 429]
    body = pack(Parcel(RUN, []))
    assert post(app, body, AUTHORIZATION, ZIPPED)[2][b"retry-after"] == b"2"
    assert send(app, ("progress", 1), visitor="5.6.7.8")[0] == 200


def test_a_file_that_another_process_holds_is_tried_again_later(app, store, monkeypatch):
    from filelock import FileLock

    with FileLock(f"{store._writer.path}.lock", thread_local=False):
        status, said = send(app, step(1))
    assert status == 503
    assert "in use" in said["error"]
    assert send(app, step(1))[0] == 200


def test_a_full_disk_is_told(store):
    def full():
        raise StudioError("The disk of this server is full.")

    desk = Desk(store, TOKEN, full)
    assert send(Guard(Ingest(nothing_else, desk)), step(1))[0] == 507


def test_a_silent_trainer_is_interrupted_and_lives_again_when_it_speaks(desk, app, store):
    now = [0.0]
    desk._intake._clock = lambda: now[0]
    send(app, step(1))
    now[0] = intake.SILENT_SECONDS - 1
    assert desk._intake.interrupt_silent() == []
    now[0] += 2
    [run] = store.runs()
    assert desk._intake.interrupt_silent() == [run.id]
    assert store.runs()[0].status == "interrupted"
    assert store.is_free()
    send(app, step(2))
    assert store.runs()[0].status == "running"


def test_other_websites_cannot_send(app, store):
    origin = (b"origin", b"https://evil.example")
    with pytest.raises(orjson.JSONDecodeError):
        post(app, pack(Parcel(RUN, [step(1)])), AUTHORIZATION, ZIPPED, origin)
    assert store.runs() == []
