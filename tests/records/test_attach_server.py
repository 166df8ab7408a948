"""attach() to a running server: every row arrives once, whatever happens to the server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
import torch
from browser.live_server import Server
from trl_runs import Logs, assert_same, make_trainer, stored

from grpo_core import attach
from grpo_core.records import outbox
from grpo_core.store import Store

pytestmark = pytest.mark.slow
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRPO_INGEST_TOKEN", TOKEN)
    patch.setenv("GRADIO_ROOT_PATH", "/behind/a/proxy")
    patch.setattr(outbox, "FIRST_RETRY", 0.2)
    patch.setattr(outbox, "LAST_RETRY", 0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    server = Server(tmp_path_factory.mktemp("server") / "runs.sqlite")
    yield server
    server.close()
    torch.set_num_threads(before)
    patch.undo()


def train(server, folder, after_step=None, **options):
    """TRL's logs, and the new run in the server's file."""
    store = Store(server.db)
    known = {run.id for run in store.runs()}
    trainer = make_trainer(folder, **options)
    logs = Logs(trainer, after_step or {})
    attach(trainer, url=server.url + "/", token=TOKEN, name=folder.name)
    trainer.train()
    [run] = [run for run in store.runs() if run.id not in known]
    return logs, run, stored(store, run.id)


def test_a_run_arrives_whole_at_the_server(server, tmp_path):
    logs, run, recorded = train(server, tmp_path, num_iterations=2)
    assert_same(recorded, logs.generations)
    assert (run.status, run.step, run.steps_done) == ("finished", 10, 10)
    assert not list(tmp_path.rglob("*.gz"))


def test_rows_are_the_same_when_the_server_was_killed_in_between(server, tmp_path, caplog):
    logs, run, recorded = train(server, tmp_path, {3: server.kill, 7: server.start})
    assert_same(recorded, logs.generations)
    assert (run.status, run.steps_done) == ("finished", 10)
    assert [r.message for r in caplog.records if "does not answer" in r.message] != []
    steps = Store(server.db).steps(run.id)
    losses = [line["loss"] for line in logs.history if "loss" in line]
    assert [row["loss"] for row in steps] == pytest.approx(losses)


def test_the_page_needs_no_token_and_the_token_opens_no_page(server):
    def status(path, **headers):
        request = urllib.request.Request(server.url + path, b"{}", headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()) if path.endswith("ingest") else None

    assert status("/studio/ingest")[0] == 401
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert status("/studio/ingest", **bearer)[0] == 400
    assert status("/studio/nothing", **bearer)[0] == 404
