"""A server of its own to measure, and the requests that a browser tab makes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 60


class Page:
    """The page of a running server: its components, and the requests of one tab."""

    def __init__(self, url: str):
        self.url = url
        config = self.ask("/config")
        components, self.calls = config["components"], config["dependencies"]
        self.values = {c["id"]: c["props"].get("value") for c in components}
        self.ids = {c["props"].get("elem_id"): c["id"] for c in components}
        self.labels = {
            c["props"].get("label"): c["id"]
            for c in components
            if c["type"] in ("number", "textbox")
        }
        # The page has several timers; this one asks for what all tabs show.
        self.tick = next(c for c in self.calls if "studioRefresh('poll'" in str(c["js"]))

    def ask(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)

    def changes(self, shown: dict[int, Any]) -> list[tuple[int, Any]]:
        """What a tab that shows these component values gets from one poll: (output, value)."""
        given = [shown.get(i) for i in self.tick["inputs"]]
        return self.ask("/studio/show", {"name": "poll", "given": given})

    def poll(self, shown: dict[int, Any]) -> float:
        """One poll, whose answer is kept in `shown` as a browser keeps it; its seconds."""
        began = time.perf_counter()
        for output, value in self.changes(shown):
            component = self.tick["outputs"][output]
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                shown[component] = value
            elif "value" in value:
                shown[component] = value["value"]
        return time.perf_counter() - began

    def press_start(self) -> None:
        """Press "Start training" with the present values of the form."""
        click = [self.ids["start"], "click"]
        start = next(c for c in self.calls if click in c["targets"])
        data = [self.values.get(i) for i in start["inputs"]]
        self.ask(
            "/gradio_api/run/predict",
            {"fn_index": start["id"], "data": data, "session_hash": "starts"},
        )


class Server(Page):
    """app.py on a free port, with a store of its own.

    up_seconds: from the command until it printed its address.
    """

    def __init__(self, db: Path | str, *, is_new: bool = False):
        """Start the server without the example run, and wait until it has imported torch.

        is_new: with the example run, as on a first visit, and wait only until the page is served.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        began = time.perf_counter()
        flags = [] if is_new else ["--no-example"]
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--db", str(db), *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for_line(self.process, "GRPO Studio")
        self.up_seconds = time.perf_counter() - began
        if not is_new:
            wait_for_line(self.process, "ready")
        super().__init__(f"http://127.0.0.1:{port}")

    def memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def wait_for_line(process: subprocess.Popen[str], beginning: str = "") -> None:
    """Wait until the process prints a line with this beginning."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(beginning):
            return
    raise RuntimeError(f"the process ended before it printed {beginning!r}")
