"""What the server does with requests that are too many, too long or abandoned."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from loops import run_async
from starlette.formparsers import MultiPartException

from ui.server import queued, traffic, uploads
from ui.server.guard import Guard, Refusal
from ui.server.queued import QueuedCalls
from ui.server.traffic import Traffic
from ui.server.visitor import RequestState, address, request_state
from ui.server.visitor import visitor as sender

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"done"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(traffic, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def one_place(monkeypatch):
    """The server works on one request at a time."""
    lanes = {"quick": {"total": 1, "each": 1, "waiting": 9, "seconds": 9}}
    monkeypatch.setattr(traffic, "LANES", lanes)


def scope(path="/studio/show", visitor="1.2.3.4", method="POST", headers=()):
    return {
        "type": "http",
        "method": method,
        "path": path,
        "client": (visitor, 1),
        "headers": [(b"content-type", b"application/json"), *headers],
    }


async def ask(app, request, body=b"{}", leaves_after=None):
    """Status and text of the answer; leaves_after: seconds until the sender goes away."""
    parts, sent = [body], []

    async def receive():
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.sleep(60 if leaves_after is None else leaves_after)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(request, receive, send)
    text = b"".join(m.get("body", b"") for m in sent)
    return next((m["status"] for m in sent if "status" in m), 0), text.decode()


def never_slow(scope, content):
    return False


def test_a_late_answer_is_replaced_and_its_place_kept_until_the_work_ends(monkeypatch, one_place):
    monkeypatch.setattr(traffic, "SHOW_SECONDS", 0.05)
    working, may_end = [], asyncio.Event()

    async def work(scope, receive, send):
        working.append(True)
        if len(working) == 1:
            await may_end.wait()
        await send(START)
        await send(BODY)

    async def both():
        app = Traffic(work, never_slow)
        late = await ask(app, scope())
        waits = await ask(app, scope())  # the first still works
        may_end.set()
        while (then := await ask(app, scope()))[0] == 429:
            await asyncio.sleep(0.01)
        return late, waits, then, len(working)

    late, waits, then, num = run_async(both())
    assert (late[0], waits[0]) == (503, 429)
    assert "0.05 s" in late[1]
    assert then == (200, "done")
    assert num == 2


def test_a_slow_reader_holds_no_place(one_place):
    read = asyncio.Event()

    async def stream(scope, receive, send):
        await send(START)
        await read.wait()
        await send(BODY)

    async def all_of_them():
        app = Traffic(stream, never_slow)
        readers = [asyncio.create_task(ask(app, scope())) for _ in range(5)]
        await asyncio.sleep(0.1)
        read.set()
        return await asyncio.wait_for(asyncio.gather(*readers), 60)

    assert run_async(all_of_them()) == [(200, "done")] * 5


def test_a_request_whose_sender_has_gone_is_not_worked_on(one_place):
    worked = []

    async def work(scope, receive, send):
        worked.append(scope["number"])
        await asyncio.sleep(0.1)
        await send(START)
        await send(BODY)

    async def queue():
        app = Traffic(work, never_slow)
        requests = [
            ask(app, scope() | {"number": i}, leaves_after=0.02 if i == 1 else None)
            for i in range(3)
        ]
        return await asyncio.gather(*requests)

    assert [status for status, _ in run_async(queue())] == [200, 0, 200]
    assert worked == [0, 2]


def test_bodies_that_wait_share_a_fixed_amount_of_memory(monkeypatch):
    monkeypatch.setattr(traffic, "MAX_BUFFERED", 1000)

    async def refuse(scope, receive, send):
        raise AssertionError

    async def flood():
        app = Traffic(refuse, never_slow)
        full = await ask(app, scope(), b"x" * 1001)
        return full, app._bodies.buffered

    full, buffered = run_async(flood())
    assert full[0] == 429
    assert buffered == 0


def form_of(content, name=b"files", end=b"--x--\r\n"):
    head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.csv"\r\n\r\n' % name
    return head + content + b"\r\n" + end


async def gradio(scope, receive, send):
    """Reads a form as Gradio does."""
    try:
        while (await receive())["more_body"]:
            pass
    except MultiPartException as error:
        await send(START | {"status": 400})
        await send(BODY | {"body": error.message.encode()})
        return
    await send(START)
    await send(BODY)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (form_of(b"1"), 200, "done"),
        (form_of(b"--x \r\n--y--"), 200, "done"),  # looks like a boundary
        (form_of(b"1", end=b""), 400, "cut off"),
        (form_of(b"1", end=b"--x--")[:40], 400, "cut off"),
        (form_of(b"1", end=b"") * 16 + b"--x--", 200, "done"),
        (form_of(b"1", end=b"") * 17 + b"--x--", 413, "at most 16 files"),
        (form_of(b"1", name=b"other"), 400, "called “files”"),
        (b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n1\r\n--x--', 400, "a file"),
        (b"--x\r\n\r\n1\r\n--x--", 400, "a file"),
        (b"no form", 400, "cannot be read"),
        (b"", 400, "cut off"),
    ],
)
def test_an_upload_is_a_complete_form_of_few_files(body, status, says):
    form = (b"content-type", b"multipart/form-data; boundary=x")
    request = scope("/gradio_api/upload") | {"headers": [form]}
    answer = run_async(ask(Traffic(gradio, never_slow), request, body))
    assert answer[0] == status
    assert says in answer[1]


def test_what_a_visitor_uploads_in_an_hour_is_limited(monkeypatch):
    monkeypatch.setattr(uploads, "HOUR_BYTES", 1000)
    form = (b"content-type", b"multipart/form-data; boundary=x")

    async def upload():
        app = Traffic(gradio, never_slow)
        statuses = []
        for visitor in ("1.1.1.1", "1.1.1.1", "2.2.2.2"):
            request = scope("/gradio_api/upload", visitor) | {"headers": [form]}
            statuses.append((await ask(app, request, form_of(b"x" * 500)))[0])
        return statuses

    assert run_async(upload()) == [200, 429, 200]


@pytest.mark.parametrize(
    ("forwarded", "is_space", "visitor"),
    [
        ("8.8.8.8", False, "10.0.0.7"),  # anybody can write this header
        ("8.8.8.8", True, "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8, 10.0.0.3", True, "8.8.8.8"),  # the left one may be invented
        ("x, [::1, 10.0.0.3", True, "10.0.0.7"),
        ("", True, "10.0.0.7"),
        ("2a00:1450:4001:830::200e", True, "2a00:1450:4001:830::/64"),
        ("::ffff:8.8.8.8", True, "8.8.8.8"),
    ],
)
def test_a_visitor_is_an_address_that_cannot_be_invented(monkeypatch, forwarded, is_space, visitor):
    monkeypatch.delenv("SPACE_ID", raising=False)
    if is_space:
        monkeypatch.setenv("SPACE_ID", "a/b")
    header = (b"x-forwarded-for", forwarded.encode())
    assert address(scope(visitor="10.0.0.7", headers=[header])) == visitor


def test_a_queued_call_counts_for_its_sender():
    async def queued_call():
        request_state.set(RequestState("1.1.1.1"))  # of the request that started the queue's task
        sent = SimpleNamespace(scope=scope(visitor="2.2.2.2"))
        LocalContext.request.set(SimpleNamespace(request=sent))
        return sender()

    assert run_async(queued_call()) == "address 2.2.2.2"


def test_answers_that_nobody_fetches_are_few_and_are_dropped(monkeypatch):
    waiting, numbers, working = {}, {}, {}
    queue = SimpleNamespace(
        pending_messages_per_session=waiting,
        pending_event_ids_session=numbers,
        event_ids_to_events=working,
    )
    calls = QueuedCalls()

    def call(visitor):
        content = {}
        calls.admit(visitor, content, queue)
        session = content["session_hash"]
        numbers[session], waiting[session], working[session] = {session}, object(), object()
        return session

    first = call("a")
    for _ in range(queued.MAX_CALLS - 1):
        call("a")
    with pytest.raises(Refusal):
        call("a")
    call("b")
    working.clear()
    numbers[first].clear()  # it was fetched
    call("a")
    with pytest.raises(Refusal):
        call("a")
    working.clear()
    monkeypatch.setattr(queued, "KEPT_SECONDS", -1.0)
    session = call("a")
    assert (set(waiting), set(numbers)) == ({session}, {session})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/gradio_api/file=/tmp/gradio/x.csv", 200),
        ("GET", "/gradio_api/file=C:/x.csv", 200),
        ("GET", "/gradio_api/file=https://a.example/x", 404),
        ("GET", "/gradio_api/proxy=https://a.example/mcp", 404),
        ("GET", "/monitoring/mcp", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("GET", "/gradio_api/mcp/sse", 200),
        ("GET", "/" + "x" * 300, 404),
        ("GET", "/assets/" + "x" * 300, 404),
        ("GET", "/assets/" + "x/" * 1500, 404),
        ("GET", "/config\x00", 400),
        ("TRACE", "/", 405),
        ("PATCH", "/studio/show", 405),
    ],
)
def test_only_what_the_page_needs_is_reached(method, path, status):
    async def found(scope, receive, send):
        await send(START)
        await send(BODY)

    request = scope(path, method=method, headers=[(b"host", b"localhost")])
    assert run_async(ask(Guard(found, hosts=["localhost"]), request))[0] == status
