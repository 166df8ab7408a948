"""How the page is filled: one request, answered with what is new, behind the same guard."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from gradio.routes import App
from recorded import FakeService, record_run

from ui.page import build_app, launch_options
from ui.server.calls import SHOW
from ui.server.traffic import MAX_BYTES


@pytest.fixture
def page(store, runs):
    return build_app(store, runs, FakeService())


def client(page, auth=None):
    app = App.create_app(page, app_kwargs=launch_options(page)["app_kwargs"])
    if auth is not None:
        app.auth, app.cookie_id = {auth[0]: auth[1]}, "ours"
    return TestClient(app, base_url="http://127.0.0.1")


def inputs_of(page, view):
    """The first event that asks for the view, and what its inputs hold at first."""
    event = next(e for e in page.fns.values() if f"studioRefresh({view!r}" in str(e.js))
    return event, {c._id: getattr(c, "value", None) for c in event.inputs}


def test_the_poll_sends_only_what_the_page_does_not_show(page, store):
    record_run(store)
    event, holds = inputs_of(page, "poll")
    sizes = []
    for _ in range(3):  # the second answer still selects the run in view
        new = (
            client(page)
            .post(SHOW, json={"name": "poll", "given": [holds[c._id] for c in event.inputs]})
            .json()
        )
        for index, value in new:
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                holds[event.outputs[index]._id] = value
            elif "value" in value:
                holds[event.outputs[index]._id] = value["value"]
        sizes.append(len(new))
    assert sizes[0] > sizes[1] > sizes[2] == 0


def test_page_updates_do_not_go_through_gradio(page):
    """Gradio would build every output for each answer, also the unchanged ones."""
    many = {
        event.name for event in page.fns.values() if event.fn is not None and len(event.outputs) > 5
    }
    # One click each: Start answers beside every field, some fill the form, the questions of the
    # Runs tab fill their fields and close one another, and an import's preview fills its columns.
    fills = {"use", "copy", "from_defaults", "from_run", "from_address", "copy_file", "take_upload"}
    asks = {"deletion_of", "branch_of", "push_of", "preview"}
    judges = {"judge", "undo"}
    assert many == {"press", "insist", *fills, *asks, *judges}


def test_wait_when_holds_the_breakpoints_of_the_run_in_view(page, store):
    run_id = record_run(store)
    store.set_breakpoints(run_id, "kl > 0.2, step = 40")
    assert client(page).post(SHOW, json={"name": "breakpoints", "given": [run_id]}).json() == [
        [0, "kl > 0.2, step = 40"]
    ]
    assert client(page).post(
        SHOW, json={"name": "breakpoints", "given": ["no such run"]}
    ).json() == [[0, ""]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "junk",
    [
        None,
        "",
        -1,
        1e308,
        True,
        [[]],
        {"a": 1},
        "9" * 500,
        '{"offset": -5, "sort": "; DROP TABLE runs"}',
    ],
)
def test_every_view_answers_any_input(recorded_page, junk):
    page, store = recorded_page
    asks = client(page)
    for event in page.fns.values():
        if event.js and "studioRefresh" in str(event.js):
            name = event.js.split("studioRefresh('")[1].split("'")[0]
            _, num_values = page.refresh._fills[name]
            answer = asks.post(SHOW, json={"name": name, "given": [junk] * num_values})
            assert answer.status_code == 200, answer.text
            assert all(0 <= index < len(event.outputs) for index, _ in answer.json())
    assert len(store.runs()) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"name": "poll"}', 400),
        (b'{"name": "no such view", "given": []}', 400),
        (b'{"name": "poll", "given": 7}', 400),
        (b'{"name": "poll", "given": []}', 400),
        (b"x" * (MAX_BYTES + 1), 413),
    ],
)
def test_an_invalid_view_request_is_refused(recorded_page, body, status):
    page, _ = recorded_page
    assert client(page).post(SHOW, content=body).status_code == status


def test_with_a_password_only_who_signed_in_is_answered(page, store):
    record_run(store)
    event, holds = inputs_of(page, "poll")
    given = [holds[c._id] for c in event.inputs]
    asks = client(page, ("ann", "secret"))
    assert asks.post(SHOW, json={"name": "poll", "given": given}).status_code == 401
    asks.cookies.set("access-token-ours", "not a token")
    assert asks.post(SHOW, json={"name": "poll", "given": given}).status_code == 401
    asks.app.tokens["a token"] = "ann"
    asks.cookies.set("access-token-ours", "a token")
    assert asks.post(SHOW, json={"name": "poll", "given": given}).status_code == 200


def test_other_websites_are_refused(page):
    assert (
        client(page)
        .post(SHOW, json={"name": "poll", "given": []}, headers={"origin": "http://evil.example"})
        .status_code
        == 403
    )
