"""The named endpoints over HTTP: what they answer to a caller's mistakes."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from gradio.routes import App
from recorded import FakeService

from grpo_core.config import RunConfig
from grpo_core.runs.manager import RunManager
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    Turn,
    TurnRole,
)
from ui.page import build_app, launch_options

# Every endpoint that changes a run, with values for all but the run, and where the run stands.
CONTROLS = {
    "stop": ([], 0),
    "pause": ([], 0),
    "step": (["step"], 0),
    "resume": ([], 0),
    "checkpoint": ([], 0),
    "change": (["train.learning_rate", 1e-4], 2),
    "wait_when": (["kl > 1"], 1),
    "edit_reward": ([1, 1, 1, 0.5], 4),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Shared: every test makes the run that it needs."""
    store = Store(tmp_path_factory.mktemp("api") / "runs.sqlite")
    yield store
    store.close()


@pytest.fixture(scope="module")
def client(store):
    page = build_app(store, RunManager(store, lambda *_: None), FakeService())
    app = App.create_app(page, app_kwargs=launch_options(page)["app_kwargs"])
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def call(client):
    def call(name: str, *values: object):
        answer = client.post(f"/gradio_api/run/{name}", json={"data": list(values)})
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json().get("error") if is_json else answer.text

    return call


@pytest.mark.parametrize("name", CONTROLS)
def test_a_run_of_another_process_is_refused_in_one_line(call, store, name):
    run_id = store.create_run(RunConfig(), "elsewhere", status=RunStatus.RUNNING)
    values, at = CONTROLS[name]
    status, error = call(name, *values[:at], run_id, *values[at:])
    assert status == 409, error
    assert run_id in error
    assert "another process" in error
    assert "\n" not in error
    assert store.run(run_id).status is RunStatus.RUNNING
    assert store.run(run_id).breakpoints == ""


@pytest.mark.parametrize("name", [*CONTROLS, "status", "groups", "metrics"])
def test_a_run_that_does_not_exist_is_not_found(call, name):
    values, at = CONTROLS.get(name, ([], 0))
    extra = {"groups": [0], "metrics": [10]}.get(name, values[at:])
    status, error = call(name, *values[:at], "20260101-000000-abcd", *extra)
    assert status == 404, error
    assert "there is no such run" in error


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("start", [{"train.steps": "many"}, "", ""]),
        ("start", [{"train.stepz": 1}, "", ""]),
        ("start", [[], "", ""]),
        ("start", [None, "", ""]),
        ("start", [{}, "", "kl is large"]),
        ("groups", ["last", {}]),
        ("metrics", ["last", "x"]),
        ("status", []),
        ("status", ["last", "more"]),
    ],
)
def test_a_mistake_of_the_caller_is_no_error_of_the_server(call, store, name, values):
    if name != "start":
        store.create_run(RunConfig(), "a run", status=RunStatus.STOPPED)
    assert call(name, *values)[0] == 400


def test_groups_have_their_turns(client, store):
    run_id = store.create_run(RunConfig(), "acts", status=RunStatus.FINISHED)
    turns = (
        Turn(TurnRole.ACTION, "<tool>3*4</tool>", 0, 5),
        Turn(TurnRole.OBSERVATION, "12", 5, 3, "calculate", '{"expression": "3*4"}', "", 0.25),
        Turn(TurnRole.ACTION, "12", 8, 2),
    )
    rollouts = (
        Rollout(Completion("12", "stop", 7, turns, "12")),
        Rollout(Completion("1", "stop", 1)),
    )
    with Recorder(store, run_id) as record:
        prompt = Prompt("p", "3*4", "12", "products")
        record(GroupsScored(1, (Group(prompt, rollouts, None, None, "unscored"),)))
    answer = client.post("/gradio_api/run/groups", json={"data": [run_id, 0]}).json()
    [[group]] = answer["data"]
    acting, plain = group["rollouts"]
    assert plain["turns"] == []
    assert [t["role"] for t in acting["turns"]] == ["action", "observation", "action"]
    seen = {k: acting["turns"][1][k] for k in ("tool", "arguments", "text", "error", "seconds")}
    assert seen == {
        "tool": "calculate",
        "arguments": '{"expression": "3*4"}',
        "text": "12",
        "error": "",
        "seconds": 0.25,
    }
