"""Models, datasets and uploads of the Hub, against local servers that speak its HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, TOKEN, Hub, UploadHub, closed_port, silent_server

from grpo_core import hub_probe
from grpo_core.errors import StudioError

ROOT = Path(__file__).parents[2]


def run(code: str, url: str, home: Path, *arguments: object, **environment: str) -> tuple[Any, str]:
    """The JSON on a process's last line, and all that it printed. Its Hub is at `url`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "GRPO_STUDIO_CACHE": str(home / "studio"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


# ---- models ----------------------------------------------------------------------------------

LOAD = """
import json, sys
from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig
from grpo_core.models import load_policy
results = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        policy = load_policy(ModelConfig(name=name, revision=revision), 0)
        results[name + "@" + revision] = policy.num_parameters
    except InvalidConfig as error:
        results[name + "@" + revision] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A dataset with the splits train (50 rows) and test (15 rows, 5 of them also in train)."""
    folder = tmp_path_factory.mktemp("sums")
    for split, numbers in (("train", range(50)), ("test", range(45, 60))):
        rows = [{"question": f"{i}+{i}?", "answer": f"so it is\n#### {2 * i}"} for i in numbers]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def hub(tiny_model, sums):
    hub = Hub(tiny_model, sums)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """What loading each repository gave, and the HF_HOME that now has owner/good in its cache."""
    home = tmp_path_factory.mktemp("home")
    names = ["good@main", "nothing@main", "gated@main", "good@nope", "cut@main"]
    models = [f"owner/{name}".split("@") for name in names]
    return run(LOAD, hub.url, home, json.dumps(models))[0], home


@pytest.mark.slow
def test_a_hub_model_loads_and_each_fault_is_one_line(loaded):
    results, home = loaded
    results = dict(results)
    assert results.pop("owner/good@main") > 1000
    assert "no such model, or a private one that needs a token" in results["owner/nothing@main"]
    assert "only to people who accepted its terms" in results["owner/gated@main"]
    assert "no such revision" in results["owner/good@nope"]
    assert "cannot be loaded" in results["owner/cut@main"]
    for text in results.values():
        assert text.startswith("model.name = 'owner/")
        assert "\n" not in text
        assert "Traceback" not in text
    # A download that was cut off is not taken for a whole file.
    files = (home / "hub" / "models--owner--cut").rglob("*.safetensors")
    assert not [file for file in files if file.resolve().is_file()]


@pytest.mark.slow
def test_a_token_opens_a_gated_model_and_is_written_nowhere(hub, tmp_path):
    models = [("owner/gated", "main"), ("owner/nothing", "main")]
    results, printed = run(LOAD, hub.url, tmp_path, json.dumps(models), HF_TOKEN=TOKEN)
    assert results["owner/gated@main"] > 1000
    assert f"Bearer {TOKEN}" in {token for _, token in hub.seen}
    assert TOKEN not in printed
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


FETCH = """
import json
from grpo_core.config import ModelConfig
from grpo_core.models import download, load_policy
download.POLL_SECONDS = 0.1
download.constants.DOWNLOAD_CHUNK_SIZE = 8192  # 10 MB by default, and the tiny model is smaller
lines = []
for name in ("owner/slow", "owner/slow", "owner/nothing", "bundled"):
    download.fetch(ModelConfig(name=name), lines.append, lambda: None)
    lines.append("|")
load_policy(ModelConfig(name="owner/slow"), 0)
print(json.dumps(lines))
"""


@pytest.mark.slow
def test_a_download_reports_its_progress_and_happens_once(hub, tiny_model, tmp_path):
    lines, _ = run(FETCH, hub.url, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="10")
    first, rest = lines[: lines.index("|")], lines[lines.index("|") :]
    assert rest == ["|"] * 4  # there already; not on the Hub; none needed
    total = sum(file.stat().st_size for file in tiny_model.iterdir()) / 1e6
    assert first[-1] == f"Downloading owner/slow: {total:,.1f} of {total:,.1f} MB (100%)."
    percents = [int(text.rpartition("(")[2].partition("%")[0]) for text in first]
    assert percents == sorted(percents)
    assert len({p for p in percents if 0 < p < 100}) >= 2
    paths = [path for path, _ in hub.seen if "owner/slow/resolve" in path]
    # The download's HEAD and GET, and one HEAD of the loader.
    assert len([path for path in paths if path.endswith(".safetensors")]) <= 3


# ---- datasets --------------------------------------------------------------------------------

LOAD_DATASETS = """
import json, sys
from grpo_core.config import TaskConfig
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import load_task, train_prompts
results = []
for config in json.loads(sys.argv[1]):
    try:
        task = load_task(TaskConfig(**config))
        table = task.table
        answer = train_prompts(task, 0, 1, 1)[0].answer
        results.append([len(table.train), len(table.heldout), table.counts.leaks, answer])
    except InvalidConfig as error:
        results.append(str(error))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_a_hub_dataset_streams_its_splits_and_each_fault_is_one_line(hub, tmp_path):
    configs = [
        {"path": "owner/good"},
        {"path": "owner/good", "heldout_source": "test"},
        {"path": "owner/good", "split": "nope"},
        {"path": "owner/nothing"},
    ]
    results, _ = run(
        LOAD_DATASETS, hub.url, tmp_path, json.dumps(configs), HF_HUB_DOWNLOAD_TIMEOUT="10"
    )
    alone, with_test, no_split, nothing = results
    assert alone[0] + alone[1] == 50
    assert with_test[:3] == [45, 15, 5]  # 45 to 49 are in both splits
    assert int(with_test[3]) % 2 == 0  # the answer after ####
    assert "nope" in no_split
    for text in (no_split, nothing):
        assert text.startswith("task.path = 'owner/")
        assert "\n" not in text


# ---- a Hub that cannot be reached ------------------------------------------------------------

CACHE_DATASET = """
import datasets
print(len(datasets.load_dataset("owner/good", split="train")))
"""
UNREACHABLE = """
import json, time
import datasets
from grpo_core import hub_probe
from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig
from grpo_core.models import download, load_policy
from grpo_core.tasks.source import read_rows

def load(name):
    config = ModelConfig(name=name)
    download.fetch(config, print, lambda: None)
    return load_policy(config, 0).num_parameters

load("bundled")  # the time of imports is not the Hub's
results = {}
for name, call in {
    "cached model": lambda: load("owner/good"),
    "cached dataset": lambda: len(list(read_rows("owner/good"))),
    "model": lambda: load("owner/other"),
    "dataset": lambda: list(read_rows("owner/other")),
}.items():
    hub_probe._latest = None
    begun = time.monotonic()
    try:
        result = call()
    except InvalidConfig as error:
        result = str(error)
    results[name] = [time.monotonic() - begun, result]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def cached(hub, loaded):
    """An HF_HOME whose caches have the model and the dataset owner/good."""
    _, home = loaded
    assert run(CACHE_DATASET, hub.url, home, HF_HUB_DOWNLOAD_TIMEOUT="10")[0] == 50
    return home


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuses", "never answers"])
def test_an_unreachable_hub_is_reported_without_the_wait_of_its_client(cached, fault):
    with silent_server() as silent:
        url = silent if fault == "never answers" else closed_port()
        # The time limits of huggingface_hub are its own.
        limits = {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
        results, printed = run(UNREACHABLE, url, cached, **limits)
    assert {name: seconds for name, (seconds, _) in results.items() if seconds >= 30} == {}
    assert results["cached model"][1] > 1000
    assert results["cached dataset"][1] == 50
    assert "not on this machine, and the Hub could not be reached" in results["model"][1]
    assert "cannot be read from the Hub: it could not be reached" in results["dataset"][1]
    assert len(printed.strip().splitlines()) == 1


@pytest.fixture
def probe(monkeypatch):
    """Whether the Hub at an address is unreachable, asked anew each time."""
    import huggingface_hub

    def ask(url: str, patience: float) -> tuple[bool, float]:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(hub_probe, "_latest", None)
        begun = time.monotonic()
        return hub_probe.hub_unreachable(patience), time.monotonic() - begun

    huggingface_hub.close_session()
    yield ask
    huggingface_hub.close_session()


@pytest.mark.slow
def test_the_probe_tells_a_silent_hub_from_a_slow_one(probe, tmp_path):
    assert probe(closed_port(), 4.0)[0]
    with silent_server() as url:
        unreachable, seconds = probe(url, 0.5)
    assert unreachable
    assert seconds < 8  # it is silent for ever
    slow = Hub(tmp_path, delay=1.0)
    assert not probe(slow.url, 30.0)[0]
    slow.close()


def test_the_probe_goes_through_a_proxy(probe, tmp_path, monkeypatch):
    proxy = Hub(tmp_path)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    assert not probe("http://hub.invalid", 4.0)[0]
    proxy.close()
    assert [path for path, _ in proxy.seen] == ["http://hub.invalid/robots.txt"]


def test_offline_mode_sends_no_probe(monkeypatch):
    monkeypatch.setattr(hub_probe, "_answers_within", lambda _: pytest.fail("a request"))
    assert not hub_probe.hub_unreachable()


def test_the_result_of_a_probe_is_kept_for_a_short_while(probe, monkeypatch):
    answers = iter([False, True, False])
    monkeypatch.setattr(hub_probe, "_answers_within", lambda _: next(answers))
    assert probe("http://hub.invalid", 1.0)[0]
    assert hub_probe.hub_unreachable(1.0)
    assert not hub_probe.hub_unreachable(4.0)  # more patience asks again
    assert not hub_probe.hub_unreachable(1.0)
    monkeypatch.setattr(hub_probe, "ANSWER_KEPT_SECONDS", 0.0)
    assert hub_probe.hub_unreachable(1.0)


# ---- upload ----------------------------------------------------------------------------------

PUSH = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from huggingface_hub import constants
from huggingface_hub.utils import _http
from grpo_core.errors import StudioError
from grpo_core.exporting.hub import push_folder
_http.time = SimpleNamespace(sleep=lambda seconds: None)  # retries, without the waits between them
results = []
for repository, token, offline in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    constants.HF_HUB_OFFLINE = offline
    try:
        results.append(push_folder(Path(sys.argv[1]), repository))
    except StudioError as error:
        results.append("refused: " + str(error))
print(json.dumps(results))
"""


def push(
    hub: UploadHub, home: Path, folder: Path, *pushes: tuple[str, str, bool]
) -> tuple[list[str], str]:
    """The result of each push: (repository, token, whether HF_HUB_OFFLINE is set)."""
    results, printed = run(PUSH, hub.url, home, folder, json.dumps(pushes))
    hub.close()
    assert TOKEN not in printed
    return results, printed


@pytest.mark.slow
def test_a_push_is_whole_private_and_keeps_the_token_secret(tiny_model, tmp_path):
    hub = UploadHub()
    results, _ = push(hub, tmp_path, tiny_model, ("me/model", TOKEN, False))
    assert results == [f"{hub.url}/me/model/commit/{COMMIT}"]
    assert hub.files == {p.name: p.read_bytes() for p in tiny_model.iterdir()}
    made = json.loads(next(body for path, body in hub.requests if path == "/api/repos/create"))
    assert (made["name"], made["organization"], made["visibility"]) == ("model", "me", "private")
    assert not any(TOKEN.encode() in body for _, body in hub.requests)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_refused_push_says_why_and_leaves_nothing(tiny_model, tmp_path):
    hub = UploadHub()
    names = ("model", "../x/y", "a/b/c", "me/<b>")
    pushes = [("me/model", "hf_wrong", False), ("me/model", "", False)]
    pushes += [(name, TOKEN, False) for name in names]
    results, _ = push(hub, tmp_path, tiny_model, *pushes, ("me/model", TOKEN, True))
    wrong, without, *misnamed, offline = results
    refused = "export.push = 'me/model': the Hub refused it (401). Put a token that may write"
    assert refused in wrong
    assert "HF_TOKEN" in without
    assert len(misnamed) == 4
    assert all("is not a repository on the Hub. Write owner/name" in text for text in misnamed)
    assert "HF_HUB_OFFLINE forbids" in offline
    assert hub.files == {}
    cut = UploadHub(fail="/commit/")
    results, _ = push(cut, tmp_path, tiny_model, ("me/model", TOKEN, False))
    assert "could not be reached or the upload is incomplete" in results[0]
    assert cut.files == {}


def test_strangers_cannot_push_with_the_operators_token(store):
    from grpo_core.preflight.service import PreflightService, ServiceOptions

    with pytest.raises(StudioError, match="the token would be its operator's"):
        PreflightService(store, ServiceOptions(may_push=False)).push_model("any", "me/model")
