"""What one visitor can do to the others: attacks over real sockets on the running server."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from locked_server import Locked, Visitor
from processes import until

ATTACKER, OTHER = "127.0.0.2", "127.0.0.3"  # two visitors: loopback has many addresses
SECONDS = 8.0  # in which the page answers the other visitor
HANGING = "def score(completion, prompt, answer, tokens):\n    while True:\n        pass\n"
DOUBLING = (
    "def score(completion, prompt, answer, tokens):\n    x = [1]\n"
    "    for i in range(24):\n        x = [x, x]\n    return x\n"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Locked(tmp_path_factory.mktemp("limits")) as server:
        yield server


@pytest.fixture(scope="module")
def cookie(server):
    return server.sign_in()


@pytest.fixture(scope="module")
def attacker(server, cookie):
    return Visitor(server, ATTACKER, cookie)


@pytest.fixture(scope="module")
def other(server, cookie):
    return Visitor(server, OTHER, cookie)


@pytest.fixture(scope="module")
def views(other):
    """The page's views by name, and what their inputs hold at first."""
    config = json.loads(other.ask("GET", "/config")[1])
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    views = {}
    for event in config["dependencies"]:
        _, found, rest = str(event["js"]).partition("studioRefresh('")
        if found and "window.location" not in rest:
            views[rest.split("'")[0]] = [values[i] for i in event["inputs"]]
    return views


def until_closed(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server answers or closes, while a byte a second is sent."""
    started = time.monotonic()
    connection.settimeout(0.5)
    while time.monotonic() - started < 30:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.fixture(scope="module", autouse=True)
def slow_connections(server, cookie):
    """Connections that send too slowly; they go on while the other tests run."""
    slow = Visitor(server, "127.0.0.4", cookie)
    post = slow.head("POST", "/studio/show", "Content-Length: 100000")
    form = "Content-Type: multipart/form-data; boundary=x"
    upload = slow.head("POST", "/gradio_api/upload", form, "Content-Length: 100000") + b"--x\r\n"
    kinds = {
        "silent": (b"", b""),
        "half a header": (b"GET / HTTP/1.1\r\nHos", b""),
        "a dripping header": (slow.head("GET", "/")[:-2] + b"X: ", b"x"),
        "no body": (post, b""),
        "a dripping body": (post, b" "),
        "a dripping upload": (upload, b"x"),
        "half a second request": (slow.head("GET", "/gradio_api/app_id") + b"GET / HTT", b""),
    }
    pool = ThreadPoolExecutor(len(kinds))
    ends = {
        kind: pool.submit(until_closed, slow.connect(data), drip)
        for kind, (data, drip) in kinds.items()
    }
    yield ends
    pool.shutdown()


def memory_mib(server: Locked) -> float:
    with open(f"/proc/{server.process.pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("length", ["announced", "chunked"])
def test_a_huge_body_is_refused_and_not_kept(server, attacker, length):
    size, block = 60_000_000, b"1" * 1_000_000
    before = memory_mib(server)
    for path in ("/studio/show", "/gradio_api/run/predict", "/gradio_api/call/status", "/login"):
        how = f"Content-Length: {size}" if length == "announced" else "Transfer-Encoding: chunked"
        kind = "Content-Type: application/json"
        connection = attacker.connect(attacker.head("POST", path, kind, how))
        for _ in range(size // len(block)):
            part = block if length == "announced" else b"f4240\r\n" + block + b"\r\n"
            connection.sendall(part)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 "), path
        connection.close()
    assert memory_mib(server) - before < 30


def _status(connection: socket.socket) -> bytes:
    try:
        return connection.recv(12)[9:]
    except BlockingIOError:
        return b""


def slowest(visitor: Visitor, views: dict, seconds: float) -> float:
    """The longest answer to the page and to its poll, in that time."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for status, text, taken in (visitor.ask("GET", "/"), visitor.show("poll", views["poll"])):
            assert status == 200, text
            times.append(taken)
        time.sleep(0.05)
    return max(times)


@pytest.mark.parametrize("code", [HANGING, DOUBLING])
def test_hanging_snippets_of_one_visitor_do_not_delay_another(attacker, other, views, code):
    given = list(views["check"])
    [table] = [i for i, v in enumerate(given) if isinstance(v, list) and v and "check" in v[0]]
    snippet = json.dumps({"code": code, "seconds": 1})
    row = {"check": "python", "weight": "1", "params": snippet, "outcome": False}
    given[table] = [{**row, "name": f"c{i}"} for i in range(3)]
    given[-1] = "a text to score"
    body = json.dumps({"name": "check", "given": given}).encode()
    head = attacker.head(
        "POST", "/studio/show", "Content-Type: application/json", f"Content-Length: {len(body)}"
    )
    requests = [attacker.connect(head + body) for _ in range(200)]
    assert slowest(other, views, 2.0) < SECONDS
    # Two are worked on and 32 wait; the others were refused.
    for connection in requests:
        connection.settimeout(0)
    assert sum(_status(c) == b"429" for c in requests) >= 150
    for connection in requests:
        connection.close()
    assert other.show("check", views["check"])[2] < 20  # the attacker's line is gone with them


def test_five_hundred_open_streams_do_not_stop_the_page(server, attacker, other, views):
    streams = ("/gradio_api/heartbeat/abc", "/gradio_api/queue/data?session_hash=s")
    open_ones = [attacker.connect(attacker.head("GET", streams[i % 2])) for i in range(500)]
    assert slowest(other, views, 1.0) < SECONDS
    assert slowest(attacker, views, 0.5) < SECONDS  # nor for whoever opened them
    for connection in open_ones:
        connection.close()


@pytest.mark.parametrize(
    "line",
    [
        "Host: [::1",
        "Host: a]b",
        "Host: localhost:99999",
        "Host: localhost:x",
        "Host: me@localhost",
        "Host: localhost/x",
        "Host: l\xf6calhost",
        "Host: localhost\r\nHost: localhost",
        "Host: localhost\r\nOrigin: http://[",
        "Host: localhost\r\nOrigin: http://a:b:c",
        "Host: localhost\r\nOrigin: http://\xff",
        "Host: localhost\r\nX-Forwarded-Host: [::1",
        "Host: localhost\r\nContent-Length: -1",
        "Host: localhost\r\nContent-Length: 1e3",
        "Origin: http://localhost",
    ],
)
def test_malformed_headers_are_a_bad_request(other, line):
    for version in ("1.1", "1.0"):
        request = f"POST /studio/show HTTP/{version}\r\n{line}\r\nConnection: close\r\n\r\n"
        connection = other.connect(request.encode("latin-1"))
        assert b" 400 " in connection.recv(100).split(b"\r\n")[0]
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:9/x",
        "/gradio_api/file=http://127.0.0.1:9/x",
        "/gradio_api/file=//127.0.0.1/x",
        "/gradio_api/token",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link?session_hash=s",
        "/monitoring",
    ],
)
def test_what_the_page_does_not_need_is_not_there(other, path):
    assert other.ask("GET", path)[0] == 404


def test_another_website_can_link_here_but_read_nothing(other):
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=s"):
        assert other.ask("GET", path, Origin="http://evil.example")[0] == 403
        assert other.ask("GET", path, Sec_Fetch_Site="cross-site")[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert other.ask("GET", "/", **link)[0] == 200
    own = f"http://127.0.0.1:{other.server.port}"
    assert other.ask("GET", "/config", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


def test_headers_that_gradio_fails_on_do_not_reach_it(other):
    head = json.loads(other.ask("GET", "/config")[1])["head"]
    file = head.partition('name="plotly-js" content="')[2].partition('"')[0]
    assert other.ask("GET", "/" + file, Range="bytes=0-9")[:1] == (206,)
    assert other.ask("GET", "/" + file, Range="bytes=0-0,2-3")[0] == 200
    assert other.ask("GET", "/" + file, Range="bytes=" + "0-1," * 900)[0] == 200
    for server in ("http://[::1", "http://evil.example"):
        status, text, _ = other.ask("GET", "/config", X_Gradio_Server=server)
        assert (status, "evil.example" in text) == (200, False)
    for name in ("Referer", "Cookie", "If_None_Match", "Accept_Encoding", "X_Forwarded_Proto"):
        for value in ("http://[", "\xff", '"\\', "a" * 9000):
            if name != "Cookie":
                assert other.ask("GET", "/config", **{name: value})[0] == 200


def test_guesses_of_a_password_are_slow_and_an_honest_person_is_not(server, other):
    guesser, form = Visitor(server, "127.0.0.9"), "application/x-www-form-urlencoded"

    def guess(number: int) -> int:
        body = f"username=me&password=guess{number}".encode()
        return guesser.ask("POST", "/login", body, Content_Type=form)[0]

    assert [guess(i) for i in range(5)] == [400] * 5
    with ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        statuses = pool.map(guess, range(8))
        person = Visitor(server, "127.0.0.5")
        right = person.ask("POST", "/login", b"username=me&password=secret", Content_Type=form)
        assert right[0] == 200
        # Four are looked at, one by one; the others are told to wait.
        assert sorted(statuses) == [400] * 4 + [429] * 4
        seconds = time.monotonic() - started
        assert seconds > 1.5
        assert right[2] < 0.75 * seconds  # who stands in their line has the last answer


def test_an_upload_is_a_form_of_few_files_and_leaves_nothing_else(other):
    kind = "multipart/form-data; boundary=x"

    def upload(num_files: int, name: str = "a.jsonl", field: str = "files") -> tuple[int, str]:
        part = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body = (part + '{"prompt": "1"}\r\n') * num_files + "--x--\r\n"
        return other.ask("POST", "/gradio_api/upload", body.encode(), Content_Type=kind)[:2]

    status, text = upload(16)
    assert (status, len(json.loads(text))) == (200, 16)
    assert upload(17)[0] == 413
    [kept] = json.loads(upload(1, "../../../../tmp/evil.jsonl")[1])
    assert kept.endswith("/evil.jsonl")
    assert "/gradio/" in kept
    assert upload(1, "n" * 5000)[0] in (200, 400, 413)
    assert upload(1, field="other")[0] == 400
    assert other.ask("POST", "/gradio_api/upload", b"{}")[0] == 400

    head = f"Content-Type: {kind}", "Content-Length: 9000000"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
    cut_off = other.connect(other.head("POST", "/gradio_api/upload", *head) + part)
    cut_off.sendall(b"1" * 1_234_567)
    folder = Path(kept).parent.parent

    def written() -> bool:
        return any(file.stat().st_size > 1_200_000 for file in folder.glob("tmp*"))

    until(written)
    cut_off.close()
    until(lambda: not written())


def test_slow_headers_and_slow_bodies_are_cut_off(slow_connections):
    for kind, end in slow_connections.items():
        assert end.result() < 25, kind  # they are asked for 30 s
