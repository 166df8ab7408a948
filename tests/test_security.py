"""What a stranger can reach: tries every route and endpoint that the running server lists."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from locked_server import ROOT, SECRET, Locked, Visitor, filled, routes_of
from processes import cli

from grpo_core.config import RunConfig
from grpo_core.store import Store, export
from grpo_core.types import RunStatus
from ui.components import form
from ui.tabs.form_fields import default_values

# Open to everybody: what a browser needs to show the login form, and Gradio's sign of life.
OPEN = {
    "",
    "/",
    "/login",
    "/logout",
    "/login_check",
    "/user",
    "/token",
    "/app_id",
    "/startup-events",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/pwa_icon",
}


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with Locked(tmp_path_factory.mktemp("locked")) as server:
        yield server


@pytest.fixture(scope="module")
def signed_in(locked):
    return {"Cookie": locked.sign_in()}


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    return routes_of(tmp_path_factory.mktemp("routes"))


@pytest.mark.slow
def test_without_the_password_no_route_gives_anything_away_or_does_anything(locked, routes):
    assert len(routes) > 25, routes
    assert {"/config", "/gradio_api/info", "/gradio_api/upload", "/studio/show"} <= {
        path for _, path in routes
    }
    for method, path in routes:
        for value in ("x", "start"):
            data = (
                None
                if method in ("GET", "HEAD", "OPTIONS")
                else {"data": [], "fn_index": 0, "session_hash": "s"}
            )
            status, text = locked.ask(filled(path, value), data, method=method)
            assert "PRIVATE" not in text, f"{method} {path}"
            assert locked.run_id not in text, f"{method} {path}"
            if (
                (path.rstrip("/") or "/").removeprefix("/gradio_api") not in OPEN
                and "{" not in path
                and status not in (0, 301, 302, 303, 307, 308, 404, 405)
            ):
                assert status in (400, 401, 403, 422), f"{method} {path}: {status} {text[:200]}"
    assert len(Store(locked.db).runs()) == 1


@pytest.mark.slow
def test_without_the_password_no_endpoint_answers_by_name_or_by_number(locked, signed_in):
    status, text = locked.ask("/config", headers=signed_in)
    assert status == 200
    endpoints = json.loads(text)["dependencies"]
    assert len(endpoints) > 40
    for number, endpoint in enumerate(endpoints):
        data = {"fn_index": number, "data": [None] * len(endpoint["inputs"]), "session_hash": "s"}
        for path in (
            "/gradio_api/run/predict",
            "/gradio_api/queue/join",
            f"/gradio_api/call/{endpoint['api_name']}",
            f"/gradio_api/run/{endpoint['api_name']}",
        ):
            status, text = locked.ask(path, data)
            assert status in (401, 404, 405), f"{path} of {number}: {status} {text[:200]}"
    assert locked.ask("/gradio_api/call/status", {"data": ["last"]})[0] == 401
    assert locked.ask("/gradio_api/info")[0] == 401


@pytest.mark.slow
def test_other_websites_and_rebound_names_are_refused_despite_a_password(locked, signed_in, routes):
    for method, path in routes:
        status, text = locked.ask(
            filled(path),
            None if method in ("GET", "HEAD", "OPTIONS") else {},
            {**signed_in, "Host": f"evil.example:{locked.port}"},
            method,
        )
        assert (status, "PRIVATE" in text) == (400, False), f"{method} {path}: {status}"
        if method not in ("GET", "HEAD", "OPTIONS"):
            for headers in (
                {"Origin": "http://evil.example"},
                {"Origin": "null"},
                {"Sec-Fetch-Site": "cross-site"},
            ):
                status, _ = locked.ask(filled(path), {}, {**signed_in, **headers}, method)
                assert status == 403, f"{method} {path} {headers}: {status}"
    assert len(Store(locked.db).runs()) == 1


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"data":[' + b"[" * 900 + b"]" * 900 + b'],"fn_index":2,"session_hash":"s"}',
    b'{"data":[' + b"9" * 5000 + b'],"fn_index":2,"session_hash":"s"}',
    b'{"data":[1e400],"fn_index":2,"session_hash":"s"}',
    b'{"data":[NaN],"fn_index":2,"session_hash":"s"}',
    b'{"data":["\\u0000"],"fn_index":2,"session_hash":"\\u0000"}',
    b'{"data":["\xff\xfe"],"fn_index":2,"session_hash":"s"}',
    b'{"data":["\\ud800"],"fn_index":2,"session_hash":"s"}',
    b'{"data":[],"fn_index":-1,"session_hash":"s"}',
    b'{"data":[],"fn_index":0,"session_hash":"s"}',
    b'{"data":[[],{},-1],"fn_index":0,"session_hash":"s"}',
    b'{"data":["last"],"fn_index":2,"session_hash":"s","trigger_id":"x","batched":true}',
    b'{"name":[],"given":{}}',
]


@pytest.mark.slow
def test_garbage_is_answered_at_once_and_never_with_a_server_error(locked, signed_in, routes):
    attacker, asks = Visitor(locked, "127.0.0.1", signed_in["Cookie"]), []
    for method, path in routes:
        if path == "/logout":
            continue  # it would sign everybody out
        if method in ("POST", "PUT", "PATCH", "DELETE"):
            asks += [(method, filled(path, "status"), body, "application/json") for body in BODIES]
            for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "", "\xff"):
                asks.append((method, filled(path), b"--x\r\n\r\n\xff", kind))
        else:
            values = ("x", "%00", "%ff", "9" * 500) if "{" in path else ("x",)
            asks += [(method, filled(path, v), None, "application/json") for v in values]
    assert len(asks) > 500
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda a: attacker.ask(*a[:3], Content_Type=a[3]), asks)
        for ask, (status, text, seconds) in zip(asks, answers, strict=True):
            assert 200 <= status < 500, (ask, text)
            assert "Traceback" not in text, ask
            assert 'File "' not in text, ask
            assert seconds < 5, ask


TRAVERSALS = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "..\\..\\etc\\passwd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "%00/etc/passwd",
    "runs.sqlite",
]


@pytest.mark.slow
def test_no_route_gives_out_a_file_that_is_not_the_pages_own(locked, signed_in, routes):
    paths = [path for method, path in routes if method == "GET" and "{" in path]
    assert paths
    secrets = ("root:", "HF_TOKEN", "SQLite format 3")
    for path in paths:
        for value in [*TRAVERSALS, str(locked.db), str(ROOT / "app.py")]:
            status, text = locked.ask(
                filled(path, value).replace(" ", "%20").replace("\\", "%5c").replace("\x00", "%00"),
                headers=signed_in,
            )
            assert not any(s in text for s in secrets), f"{path} {value}: {status}"
            assert "composition root" not in text, f"{path} {value}"  # app.py itself


def test_a_run_id_is_an_id_and_never_a_path(tmp_path):
    from grpo_core.errors import StudioError

    store = Store(tmp_path / "runs.sqlite")
    for run_id in (
        "../../etc",
        "/etc/passwd",
        "..",
        "",
        "20260101-000000-abcd/../..",
        "20260101-000000-abcd\n",
    ):
        for ask in (store.checkpoint_folder, store.log_file, store.run, store.delete):
            with pytest.raises(StudioError):
                ask(run_id)


@pytest.mark.slow
def test_an_environment_token_never_reaches_store_log_page_or_export(locked, signed_in, tmp_path):
    status, text = locked.ask(
        "/gradio_api/call/start",
        {
            "data": [
                {
                    "train.steps": 2,
                    "task.heldout_size": 0,
                    "train.prompts_per_step": 2,
                    "train.group_size": 2,
                    "train.checkpoint_every": 1,
                },
                "t9",
                "",
            ]
        },
        signed_in,
    )
    assert status == 200, text
    store = Store(locked.db)
    deadline = time.monotonic() + 60
    while (
        not (ended := [r for r in store.runs() if r.name == "t9" and not r.status.is_live])
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert ended[0].status is RunStatus.FINISHED, ended[0].error
    with (tmp_path / "config.json").open("w") as out:
        export.export_config_json(store, ended[0].id, out)
    pages = "".join(
        locked.ask(path, headers=signed_in)[1] for path in ("/", "/config", "/gradio_api/info")
    )
    assert SECRET not in pages
    files = [p for folder in (locked.db.parent, tmp_path) for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 6
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


SQL = [
    "' OR 1=1 --",
    '"; DROP TABLE runs; --',
    "%",
    "_",
    "\\",
    "a' UNION SELECT name FROM sqlite_master --",
    "NEAR(a b)",
    "a*",
    '"a" AND (b',
    "^x",
    "{x}:y",
    "\x00",
    "😀" * 50,
    "(" * 300,
    "OR",
    "NOT",
    "-",
    "a:b",
    "col:*",
]


def test_fields_take_any_text_as_text(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    run_id = store.create_run(RunConfig(), SQL[0])
    for text in SQL:
        assert store.groups(run_id, search=text).total == 0
        assert store.groups(run_id, verdict=text).total == 0
        store.rename(run_id, text)
        assert store.run(run_id).name == text.replace("\x00", "\ufffd")
        for ask in (store.steps, store.metrics, store.verdict_counts):
            ask(text)
    assert len(store.runs()) == 1


DEF = "def score(completion, prompt, answer, tokens):\n    "
ENDLESS = {
    "regex": {"pattern": "x[a-z]{0,1000}" * 4 + "0"},
    "python": {"code": f"{DEF}x = [0]\n    for _ in range(40): x = [x, x]\n    return x"},
    "similarity": {"measure": "bleu"},
}


@pytest.mark.slow
def test_criteria_that_take_for_ever_do_not_make_others_wait(locked, signed_in):
    def attack(check: str) -> None:
        row = {"check": check, "weight": "1", "params": json.dumps(ENDLESS[check])}
        rows = [{"name": f"c{i}", **row} for i in range(32)]
        fields = zip(form.NAMES, default_values(), strict=True)
        values = [rows if name == form.CRITERIA else value for name, value in fields]
        question = {"name": "check", "given": [*values, "x" * 20_000]}
        request = urllib.request.Request(
            locked.url + "/studio/show",
            json.dumps(question).encode(),
            {"Content-Type": "application/json", **signed_in},
        )
        answers.append(urllib.request.urlopen(request, timeout=60).read())

    answers: list[bytes] = []
    threads = [threading.Thread(target=attack, args=[check]) for check in ENDLESS]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    waits = []
    while any(thread.is_alive() for thread in threads):
        asked = time.monotonic()
        assert locked.ask("/", headers=signed_in)[0] == 200
        waits.append(time.monotonic() - asked)
        time.sleep(0.05)
    assert time.monotonic() - started < 55
    assert sum(b"could not be scored" in answer for answer in answers) >= 2
    assert max(waits) < 5, waits


@pytest.mark.slow
def test_gradio_client_and_command_line_work_with_the_password(locked):
    from gradio_client import Client

    client = Client(locked.url, auth=("me", "secret"), verbose=False)
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/start", "/status", "/stop", "/groups", "/metrics"} <= set(endpoints)
    assert all(
        parameter["parameter_has_default"] or parameter["type"]
        for e in endpoints.values()
        for parameter in e["parameters"]
    )
    tiny = {
        "train.steps": 100_000,
        "task.heldout_size": 0,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.max_new_tokens": 8,
        "train.checkpoint_every": 0,
    }
    run_id = client.predict(settings=tiny, name="by api", wait_when="step = 2", api_name="/start")[
        "id"
    ]

    def until(status: str, **fields) -> dict:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = client.predict(run=run_id, api_name="/status")
            if now["status"] == status and all(now[k] == v for k, v in fields.items()):
                return now
            time.sleep(0.1)
        raise AssertionError(now)

    assert "Breakpoint “step = 2”" in until("paused", steps_done=1)["error"]
    groups = client.predict(run=run_id, step=2, api_name="/groups")
    assert [len(g["rollouts"]) for g in groups] == [2, 2]
    client.predict(step=2, group=1, completion=2, reward=7.5, run=run_id, api_name="/edit_reward")
    deadline = time.monotonic() + 60
    while (
        not (r := client.predict(run=run_id, step=2, api_name="/groups")[0]["rollouts"][1])[
            "edited"
        ]
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert r["reward"] == 7.5
    with pytest.raises(Exception, match="cannot be changed while a run goes on"):
        client.predict(setting="train.seed", value=1, run=run_id, api_name="/change")

    def tell(*arguments: str) -> dict:
        login = ("--server", locked.url, "--auth", "me:secret")
        done = cli("tell", run_id, *arguments, *login, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    tell("resume", "--set", "algorithm.kl_coef=0.5", "--wait-when", "")
    deadline = time.monotonic() + 120
    while (
        client.predict(run=run_id, api_name="/status")["steps_done"] < 6
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    numbers = client.predict(run=run_id, max_points=10_000, api_name="/metrics")
    coefs = [row[numbers["columns"].index("kl_coef")] for row in numbers["steps"]]
    assert (coefs[0], coefs[-1]) == (0.02, 0.5)
    assert tell("stop")["id"] == run_id
    until("stopped")
    wrong = cli("tell", run_id, "pause", "--server", locked.url)
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1), wrong.stderr
