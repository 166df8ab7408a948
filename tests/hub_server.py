"""Local servers that speak the Hub's HTTP API: downloads, uploads, and their faults."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40
TOKEN = "hf_canary"
REPOSITORIES = ("owner/good", "owner/cut", "owner/gated", "owner/slow")


class LocalServer:
    """Serves one handler class on a free port of 127.0.0.1."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Shutting down waits for one poll: half a second by default.
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def bearer(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def start(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(length))
        self.end_headers()

    def send_json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.start(status, len(data), {"content-type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.start(status, 0, {"X-Error-Code": code} | headers)

    def log_message(self, *_: object) -> None:
        pass


class Hub(LocalServer):
    """Every repository has the files of one folder: `models`, or `datasets` for datasets.

    owner/good is whole; owner/slow sends large files in eight parts; owner/cut sends half of its
    weights; owner/gated asks for the token. All others are missing. Each answer waits `delay` s.
    """

    def __init__(self, models: Path, datasets: Path | None = None, delay: float = 0.0):
        self.seen: list[tuple[str, str | None]] = []  # path, authorization
        outer = self

        class Downloads(Handler):
            def do_GET(self) -> None:
                time.sleep(delay)
                outer.seen.append((self.path, self.bearer))
                parts = self.path.split("?")[0].strip("/").split("/")
                folder = datasets if datasets and "datasets" in parts[:2] else models
                if parts[0] == "api":  # /api/models/owner/name[/revision/main | /tree/main]
                    self.list_files("/".join(parts[2:4]), parts, folder)
                    return
                if parts[0] == "datasets":  # /datasets/owner/name/resolve/main/file
                    parts = parts[1:]
                if len(parts) < 5:
                    self.refuse(404, "EntryNotFound")
                    return
                self.send_file("/".join(parts[:2]), parts[3], folder / "/".join(parts[4:]))

            do_HEAD = do_GET

            def do_POST(self) -> None:  # /api/datasets/owner/name/paths-info/main
                outer.seen.append((self.path, self.bearer))
                paths = json.loads(self.body or b"{}").get("paths", [])
                files = [datasets / path for path in paths] if datasets else []
                self.send_json(200, [listed(file) for file in files if file.is_file()])

            def list_files(self, repo: str, parts: list[str], folder: Path) -> None:
                if not self.allowed(repo):
                    return
                if len(parts) > 5 and parts[5] not in ("main", COMMIT):
                    self.refuse(404, "RevisionNotFound")
                    return
                files = [listed(file) for file in sorted(folder.iterdir())]
                info = {"id": repo, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
                self.send_json(200, files if "tree" in parts else info)

            def send_file(self, repo: str, revision: str, file: Path) -> None:
                if not self.allowed(repo):
                    return
                if revision not in ("main", COMMIT):
                    self.refuse(404, "RevisionNotFound")
                    return
                if not file.is_file():
                    self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": COMMIT})
                    return
                data = file.read_bytes()
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                headers, status = {"ETag": etag, "X-Repo-Commit": COMMIT}, 200
                span = self.headers.get("range", "").removeprefix("bytes=")
                if span and self.command == "GET":
                    headers["content-range"] = f"bytes {span}/{len(data)}"
                    first, _, last = span.partition("-")
                    data, status = data[int(first) : int(last) + 1 if last else None], 206
                self.start(status, len(data), headers)
                if self.command == "HEAD":
                    return
                if repo == "owner/cut" and file.suffix == ".safetensors":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_WR)
                elif repo == "owner/slow" and len(data) > 10_000:
                    part = len(data) // 8
                    for i in range(0, len(data), part):
                        self.wfile.write(data[i : i + part])
                        time.sleep(0.2)
                else:
                    self.wfile.write(data)

            def allowed(self, repo: str) -> bool:
                if repo == "owner/gated" and self.bearer != f"Bearer {TOKEN}":
                    message = {"X-Error-Message": "Access to model owner/gated is restricted."}
                    self.refuse(403 if self.bearer else 401, "GatedRepo", **message)
                elif repo not in REPOSITORIES:
                    self.refuse(404 if self.bearer else 401, "RepoNotFound")
                else:
                    return True
                return False

        super().__init__(Downloads)


def listed(file: Path) -> dict[str, Any]:
    """A file as the Hub lists it."""
    name, size = file.name, file.stat().st_size
    return {"rfilename": name, "type": "file", "path": name, "size": size, "oid": "0" * 40}


class UploadHub(LocalServer):
    """Takes uploads of the owner `me` with the token. Cuts requests with `fail` in their path."""

    def __init__(self, fail: str = ""):
        self.files: dict[str, bytes] = {}  # committed
        self.requests: list[tuple[str, bytes]] = []  # path, body
        self.objects: dict[str, bytes] = {}  # large files by their id
        outer = self

        class Uploads(Handler):
            def do_POST(self) -> None:
                body, path = self.body, self.path.split("?")[0]
                outer.requests.append((path, body))
                if fail and fail in path:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif self.bearer != f"Bearer {TOKEN}":
                    self.send_json(401, {"error": "Invalid credentials"})
                elif path == "/api/repos/create":
                    self.send_json(200, {"url": f"{outer.url}/me/model"})
                elif path == "/api/validate-yaml":
                    self.send_json(200, {"errors": [], "warnings": []})
                elif "/preupload/" in path:
                    files = json.loads(body)["files"]
                    self.send_json(200, {"files": [upload_mode(f["path"]) for f in files]})
                elif path.endswith("/objects/batch"):
                    objects = [self.upload_address(o) for o in json.loads(body)["objects"]]
                    self.send_json(200, {"objects": objects, "transfer": "basic"})
                elif "/commit/" in path:
                    self.commit(body)
                else:
                    self.send_json(404, {})

            def do_PUT(self) -> None:
                outer.objects[self.path.rpartition("/")[2]] = self.body
                self.send_json(200, {})

            def do_GET(self) -> None:
                info = {"id": "me/model", "sha": COMMIT, "siblings": [], "private": True}
                self.send_json(200, info | {"tags": []})

            def upload_address(self, blob: dict[str, Any]) -> dict[str, Any]:
                href = f"{outer.url}/store/{blob['oid']}"
                kept = {"oid": blob["oid"], "size": blob["size"]}
                return kept | {"actions": {"upload": {"href": href}}}

            def commit(self, body: bytes) -> None:
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        outer.files[value["path"]] = base64.b64decode(value["content"])
                    if line["key"] == "lfsFile":
                        outer.files[value["path"]] = outer.objects[value["oid"]]
                url = f"{outer.url}/me/model/commit/{COMMIT}"
                self.send_json(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

        super().__init__(Uploads)


def upload_mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    """An address that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
