"""Loading from the Hub, against a local stand-in that serves its HTTP API for a few repositories, faults included."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40
ASK = """
import json, sys
from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig
from grpo_core.policy import load_policy
out = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        policy = load_policy(ModelConfig(name=name, revision=revision), 0)
        out[name + "@" + revision] = policy.num_parameters
    except InvalidConfig as error:
        out[name + "@" + revision] = str(error)
print(json.dumps(out))
"""


class Hub:
    """owner/good is whole; owner/gated and owner/private ask for a token; owner/cut sends half of its weights; the rest is not there."""

    def __init__(self, folder: Path, datasets: Path | None = None):
        self.seen: list[tuple[str, str | None]] = []
        outer, models = self, folder

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self, body=True):
                outer.seen.append((self.path, self.headers.get("authorization")))
                parts = self.path.split("?")[0].strip("/").split("/")
                folder = datasets if "datasets" in parts[:2] else models
                if parts[0] == "datasets":  # /datasets/owner/name/resolve/main/file
                    parts = parts[1:]
                if parts[0] == "api":  # /api/models/owner/name[/revision/main | /tree/main]
                    repo = "/".join(parts[2:4])
                    if not self.allowed(repo):
                        return
                    if len(parts) > 5 and parts[5] not in ("main", COMMIT):
                        self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
                        return
                    files = [
                        {
                            "rfilename": f.name,
                            "type": "file",
                            "path": f.name,
                            "size": f.stat().st_size,
                            "oid": "0" * 40,
                        }
                        for f in sorted(folder.iterdir())
                    ]
                    self.answer(
                        200,
                        json.dumps(
                            files
                            if "tree" in parts
                            else {
                                "id": repo,
                                "sha": COMMIT,
                                "siblings": files,
                                "private": False,
                                "tags": [],
                            }
                        ).encode(),
                        {},
                        body,
                    )
                    return
                repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
                if not self.allowed(repo):
                    return
                file = folder / name
                if revision not in ("main", COMMIT):
                    self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
                elif not file.is_file():
                    self.answer(
                        404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body
                    )
                else:
                    data = file.read_bytes()
                    cut = repo == "owner/cut" and name.endswith(".safetensors") and body
                    self.answer(
                        200,
                        data,
                        {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT},
                        body,
                        len(data) // 2 if cut else None,
                    )

            def do_POST(self):  # /api/datasets/owner/name/paths-info/main
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
                outer.seen.append((self.path, self.headers.get("authorization")))
                there = [datasets / p for p in asked.get("paths", []) if (datasets / p).is_file()]
                self.answer(
                    200,
                    json.dumps(
                        [
                            {
                                "type": "file",
                                "path": f.name,
                                "size": f.stat().st_size,
                                "oid": "0" * 40,
                            }
                            for f in there
                        ]
                    ).encode(),
                    {},
                    True,
                )

            def do_HEAD(self):
                self.do_GET(body=False)

            def allowed(self, repo: str) -> bool:
                token = self.headers.get("authorization")
                if repo == "owner/gated" and token != "Bearer hf_canary":
                    self.answer(
                        403 if token else 401,
                        b"",
                        {
                            "X-Error-Code": "GatedRepo",
                            "X-Error-Message": "Access to model owner/gated is restricted.",
                        },
                        True,
                    )
                elif repo not in ("owner/good", "owner/cut", "owner/gated", "owner/slow"):
                    self.answer(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"}, True)
                else:
                    return True
                return False

            def answer(self, status, data, headers, body, sent=None):
                if (
                    status == 200
                    and (span := self.headers.get("range", "").removeprefix("bytes="))
                    and self.command == "GET"
                ):
                    first, _, last = span.partition("-")
                    status, headers = 206, {**headers, "content-range": f"bytes {span}/{len(data)}"}
                    data = data[int(first) : int(last) + 1 if last else None]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if body and self.command in ("GET", "POST"):
                    if "/owner/slow/resolve/" in self.path and len(data) > 10_000:
                        for i in range(
                            0, len(data), len(data) // 8
                        ):  # eight parts, a fifth of a second each
                            self.wfile.write(data[i : i + len(data) // 8])
                            time.sleep(0.2)
                        return
                    self.wfile.write(data[:sent])
                    if sent is not None:
                        self.close_connection = True
                        self.connection.shutdown(1)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def hub(tiny_model):
    hub = Hub(tiny_model)
    yield hub
    hub.server.shutdown()


def ask(
    url: str, home: Path, models: list[tuple[str, str]], **environment: str
) -> tuple[dict, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(models)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


def test_a_model_of_the_hub_loads_and_its_faults_are_said_on_one_line_each(hub, tmp_path):
    found, _ = ask(
        hub.url,
        tmp_path,
        [
            ("owner/good", "main"),
            ("owner/nothing", "main"),
            ("owner/gated", "main"),
            ("owner/good", "nope"),
            ("owner/cut", "main"),
        ],
    )
    assert found.pop("owner/good@main") > 1000
    assert "no such model, or a private one that needs a token" in found["owner/nothing@main"]
    assert "only to people who accepted its terms" in found["owner/gated@main"]
    assert "no such revision" in found["owner/good@nope"]
    assert "cannot be loaded" in found["owner/cut@main"]
    assert all(
        said.startswith("model.name = 'owner/") and "\n" not in said and "Traceback" not in said
        for said in found.values()
    )
    # What was cut off is no model: the same name is asked for again, and nothing half is taken for whole.
    whole = list((tmp_path / "hub" / "models--owner--cut").rglob("*.safetensors"))
    assert not [f for f in whole if f.resolve().is_file()]
    # Once there, it is there without a network too; what is not there is said to be out of reach.
    gone, _ = ask("http://127.0.0.1:9", tmp_path, [("owner/good", "main"), ("owner/other", "main")])
    assert gone["owner/good@main"] > 1000
    assert "not on this machine, and the Hub could not be reached" in gone["owner/other@main"]


def test_a_token_opens_a_gated_model_and_is_written_nowhere(hub, tmp_path):
    found, said = ask(
        hub.url,
        tmp_path,
        [("owner/gated", "main"), ("owner/nothing", "main")],
        HF_TOKEN="hf_canary",
    )
    assert found["owner/gated@main"] > 1000
    assert "Bearer hf_canary" in {token for _, token in hub.seen}
    assert "hf_canary" not in said
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"hf_canary" in f.read_bytes()]


ASK_DATASET = """
import json, sys
from grpo_core.config import TaskConfig
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import heldout_prompts, load_task, train_prompts
out = []
for config in json.loads(sys.argv[1]):
    try:
        task = load_task(TaskConfig(**config))
        out.append([len(task.table.train), len(task.table.heldout), task.table.counts.leaks, train_prompts(task, 0, 1, 1)[0].answer])
    except InvalidConfig as error:
        out.append(str(error))
print(json.dumps(out))
"""


def test_a_dataset_of_the_hub_is_streamed_split_by_split_and_its_faults_are_said_on_one_line(
    tmp_path,
):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, numbers in (("train", range(50)), ("test", range(45, 60))):
        (folder / f"{split}.jsonl").write_text(
            "".join(
                json.dumps({"question": f"{i}+{i}?", "answer": f"so it is\n#### {2 * i}"}) + "\n"
                for i in numbers
            )
        )
    hub = Hub(folder, folder)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "GRPO_STUDIO_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    wanted = [
        {"path": "owner/good"},
        {"path": "owner/good", "heldout_source": "test"},
        {"path": "owner/good", "split": "nope"},
        {"path": "owner/nothing"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASK_DATASET, json.dumps(wanted)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=120,
    )
    hub.server.shutdown()
    assert done.returncode == 0, done.stderr
    alone, with_test, no_split, nothing = json.loads(done.stdout.strip().splitlines()[-1])
    assert alone[0] + alone[1] == 50
    assert with_test[:3] == [45, 15, 5]  # 45 to 49 stand in both
    assert int(with_test[3]) % 2 == 0  # the answer after ####
    assert "nope" in no_split
    assert all(
        said.startswith("task.path = 'owner/") and "\n" not in said for said in (no_split, nothing)
    )


FETCH = """
import json
from grpo_core.config import ModelConfig
from grpo_core.policy import load_policy
from grpo_core.policy import download
download.BEAT_SECONDS = 0.1
download.constants.DOWNLOAD_CHUNK_SIZE = 8192  # 10 MB, and the tiny model has less
said = []
for name in ("owner/slow", "owner/slow", "owner/nothing", "bundled"):
    download.fetch(ModelConfig(name=name), said.append, lambda: None)
    said.append("|")
load_policy(ModelConfig(name="owner/slow"), 0)
print(json.dumps(said))
"""


def test_a_download_says_how_far_it_is_and_is_not_made_twice(hub, tiny_model, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    first, rest = said[: said.index("|")], said[said.index("|") :]
    assert rest == ["|"] * 4  # there already; not on the Hub; none needed
    total = sum(f.stat().st_size for f in tiny_model.iterdir()) / 1e6
    assert first[-1] == f"Downloading owner/slow: {total:,.1f} of {total:,.1f} MB (100%)."
    shares = [int(text.rpartition("(")[2].partition("%")[0]) for text in first]
    assert shares == sorted(shares)
    assert len({s for s in shares if 0 < s < 100}) >= 2  # seen on its way
    weights = [
        path
        for path, _ in hub.seen
        if "owner/slow/resolve" in path and path.endswith(".safetensors")
    ]
    assert len(weights) <= 3  # a HEAD and a GET, and one HEAD of the loader


# ---- upload ------------------------------------------------------------------------------------------------------------------


class Uploads:
    """The Hub's endpoints that take an upload, for the owner `me` with the token hf_canary. Files are kept by name; `fail` names the request that is cut."""

    def __init__(self, fail: str = ""):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                path = self.path.split("?")[0]
                outer.requests.append(("POST", path, body))
                if fail and fail in path:
                    self.connection.shutdown(2)
                    self.close_connection = True
                    return
                if self.headers.get("authorization") != "Bearer hf_canary":
                    return self.answer(401, {"error": "Invalid credentials"})
                if path == "/api/repos/create":
                    return self.answer(200, {"url": f"{outer.url}/me/model"})
                if path == "/api/validate-yaml":
                    return self.answer(200, {"errors": [], "warnings": []})
                if "/preupload/" in path:
                    files = json.loads(body)["files"]
                    return self.answer(
                        200,
                        {
                            "files": [
                                {
                                    "path": f["path"],
                                    "uploadMode": "lfs"
                                    if f["path"].endswith(".safetensors")
                                    else "regular",
                                    "shouldIgnore": False,
                                }
                                for f in files
                            ]
                        },
                    )
                if path.endswith("/objects/batch"):
                    return self.answer(
                        200,
                        {
                            "objects": [
                                {
                                    "oid": o["oid"],
                                    "size": o["size"],
                                    "actions": {
                                        "upload": {"href": f"{outer.url}/store/{o['oid']}"}
                                    },
                                }
                                for o in json.loads(body)["objects"]
                            ],
                            "transfer": "basic",
                        },
                    )
                if "/commit/" in path:
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            outer.files[line["value"]["path"]] = base64.b64decode(
                                line["value"]["content"]
                            )
                        if line["key"] == "lfsFile":
                            outer.files[line["value"]["path"]] = outer.objects[line["value"]["oid"]]
                    return self.answer(
                        200,
                        {
                            "commitUrl": f"{outer.url}/me/model/commit/{COMMIT}",
                            "commitOid": COMMIT,
                            "success": True,
                        },
                    )
                return self.answer(404, {})

            def do_PUT(self):
                outer.objects[self.path.rpartition("/")[2]] = self.rfile.read(
                    int(self.headers["content-length"])
                )
                self.answer(200, {})

            def do_GET(self):
                self.answer(
                    200,
                    {"id": "me/model", "sha": COMMIT, "siblings": [], "private": True, "tags": []},
                )

            def answer(self, status, data):
                data = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


PUSH = """
import sys
from pathlib import Path
from grpo_core.errors import StudioError
from grpo_core.push import push_folder
try:
    print(push_folder(Path(sys.argv[1]), sys.argv[2]))
except StudioError as error:
    print("refused:", error)
"""


def push(
    url: str, home: Path, folder: Path, repository: str = "me/model", **environment: str
) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), repository],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_canary" not in done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_model_is_pushed_whole_into_a_private_repository_and_the_token_goes_nowhere_else(
    tiny_model, tmp_path
):
    hub = Uploads()
    assert (
        push(hub.url, tmp_path, tiny_model, HF_TOKEN="hf_canary")
        == f"{hub.url}/me/model/commit/{COMMIT}"
    )
    hub.server.shutdown()
    assert hub.files == {p.name: p.read_bytes() for p in tiny_model.iterdir()}
    made = json.loads(next(body for _, path, body in hub.requests if path == "/api/repos/create"))
    assert (made["name"], made["organization"], made["visibility"]) == ("model", "me", "private")
    assert not any(b"hf_canary" in body for _, _, body in hub.requests)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_canary" in p.read_bytes()]


def test_a_push_that_cannot_be_says_why_and_leaves_nothing_half_done(tiny_model, tmp_path):
    hub = Uploads()
    assert "export.push = 'me/model': the Hub refused it (401). Put a token that may write" in push(
        hub.url, tmp_path, tiny_model, HF_TOKEN="hf_wrong"
    )
    assert "HF_TOKEN" in push(hub.url, tmp_path, tiny_model)
    for name in ("model", "../x/y", "a/b/c", "me/<b>"):
        assert "is no repository of the Hub. Write owner/name" in push(
            hub.url, tmp_path, tiny_model, name, HF_TOKEN="hf_canary"
        )
    assert "HF_HUB_OFFLINE forbids" in push(
        hub.url, tmp_path, tiny_model, HF_TOKEN="hf_canary", HF_HUB_OFFLINE="1"
    )
    hub.server.shutdown()
    assert hub.files == {}
    cut = Uploads(fail="/commit/")
    assert "could not be reached or took it only in part" in push(
        cut.url, tmp_path, tiny_model, HF_TOKEN="hf_canary"
    )
    cut.server.shutdown()
    assert cut.files == {}


def test_strangers_cannot_push_with_the_operators_token(store):
    from grpo_core.errors import StudioError
    from grpo_core.preflight.service import PreflightService

    with pytest.raises(StudioError, match="the token would be its operator's"):
        PreflightService(store, may_push=False).push_model("any", "me/model")
