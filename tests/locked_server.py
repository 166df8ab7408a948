"""The real server with a password and a run in its store, in a process of its own."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import processes
from processes import ROOT

from grpo_core.config import RunConfig
from grpo_core.rubric import resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout, RunStatus

SECRET = "hf_averysecrettokenthatnobodymaysee"
ENV = {**processes.ENV, "HF_TOKEN": SECRET}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Locked:
    """app.py with --auth, with a run in its store. At the end of a `with` block it is ended."""

    def __init__(self, folder: Path):
        self.db = folder / "runs.sqlite"
        store = Store(self.db)
        config = RunConfig().model_copy(update={"rubric": resolve_rubric(RunConfig().rubric)})
        self.run_id = store.create_run(config, "PRIVATE RUN", status=RunStatus.STOPPED)
        with Recorder(store, self.run_id) as record:
            completion = Completion("PRIVATE COMPLETION", "stop", 3)
            record(
                GroupsScored(
                    1,
                    (
                        Group(
                            Prompt("p", "PRIVATE PROMPT", "1", "sums"),
                            (Rollout(completion, {"accuracy": 1.0}, 1.0, 0.0),) * 2,
                            1.0,
                            0.0,
                            "all_right",
                        ),
                    ),
                )
            )
        store.close()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "app.py",
                "--port",
                str(self.port),
                "--db",
                str(self.db),
                "--auth",
                "me:secret",
            ],
            cwd=ROOT,
            env=ENV,
            stdout=self.log,
            stderr=self.log,
        )
        # "ready" comes after the page: torch is loaded, and its memory is taken.
        log = folder / "log"
        deadline = time.monotonic() + 90
        while "ready\n" not in log.read_text() and time.monotonic() < deadline:
            assert self.process.poll() is None, "it did not start"
            time.sleep(0.2)

    def __enter__(self) -> Locked:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(15)

    def ask(
        self,
        path: str,
        data: object = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        raw: bool = False,
    ) -> tuple[int, str]:
        """Status and body. Status 0: no answer."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.url + path,
            body,
            {"Content-Type": "application/json", **(headers or {})},
            method=method,
        )
        try:
            with urllib.request.build_opener(NoRedirect).open(request, timeout=3) as answer:
                return answer.status, answer.read(2_000_000).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read(2_000_000).decode("utf-8", "replace")
        except http.client.IncompleteRead as error:
            return 200, error.partial.decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            return 0, str(error)

    def sign_in(self) -> str:
        request = urllib.request.Request(
            self.url + "/login",
            b"username=me&password=secret",
            {"Content-Type": "application/x-www-form-urlencoded"},
        )
        with urllib.request.urlopen(request) as answer:
            return "; ".join(c.split(";")[0] for c in answer.headers.get_all("set-cookie"))


class Visitor:
    """Somebody at an address, signed in or not."""

    def __init__(self, server: Locked, address: str, cookie: str = ""):
        self.server, self.address, self.cookie = server, address, cookie

    def connect(self, data: bytes = b"", seconds: float = 30) -> socket.socket:
        to = ("127.0.0.1", self.server.port)
        connection = socket.create_connection(to, seconds, (self.address, 0))
        connection.sendall(data)
        return connection

    def head(self, method: str, path: str, *lines: str) -> bytes:
        cookie = [f"Cookie: {self.cookie}"] if self.cookie else []
        host = [f"Host: 127.0.0.1:{self.server.port}"]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *host, *cookie, *lines, "", ""]).encode(
            "latin-1"
        )

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """Status, text and seconds. Status 0: no answer."""
        started = time.monotonic()
        link = http.client.HTTPConnection(
            "127.0.0.1", self.server.port, 20, source_address=(self.address, 0)
        )
        headers = {"Content-Type": "application/json", **headers}
        if self.cookie:
            headers["Cookie"] = self.cookie
        try:
            link.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = link.getresponse()
            is_stream = "event-stream" in (answer.getheader("content-type") or "")
            text = "" if is_stream else answer.read().decode("utf-8", "replace")
            return answer.status, text, time.monotonic() - started
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error), time.monotonic() - started
        finally:
            link.close()

    def show(self, name: str, given: list) -> tuple[int, str, float]:
        return self.ask("POST", "/studio/show", json.dumps({"name": name, "given": given}).encode())


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def routes_of(folder: Path) -> list[tuple[str, str]]:
    """Every (method, path) of the application that app.py serves."""
    code = """
import json, sys
from gradio.routes import App
from grpo_core.preflight.service import PreflightService
from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from ui.page import build_app, launch_options
store = Store(sys.argv[1])
page = build_app(store, RunManager(store, None), PreflightService(store))
def walk(routes, prefix=""):
    for r in routes:
        inner = getattr(r, "original_router", None)
        if hasattr(r, "path") and getattr(r, "methods", None):
            yield from ((m, prefix + r.path) for m in sorted(r.methods))
        elif getattr(r, "routes", None):
            yield from walk(r.routes, prefix + getattr(r, "path", ""))
        elif inner is not None:
            context = getattr(r, "include_context", None)
            yield from walk(inner.routes, prefix + getattr(context, "prefix", ""))
        elif hasattr(r, "path"):
            yield ("GET", prefix + r.path)
app = App.create_app(page, app_kwargs=launch_options(page)["app_kwargs"])
print(json.dumps(sorted(set(walk(app.routes)))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "x.sqlite")],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(r) for r in json.loads(done.stdout.strip().splitlines()[-1])]


def filled(path: str, value: str = "x") -> str:
    return re.sub(r"\{[^}]*\}", lambda _: value, path)
