"""The page over a store, without a browser: what it shows, skips and refuses.

Also what an outsider can reach.
"""

from __future__ import annotations

import gc
import itertools
import sys
import weakref
from pathlib import Path

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.routes import App
from recorded import FakeService, record_run, record_step
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import app
from grpo_core.errors import StudioError
from grpo_core.runs.run_log import RunLog
from grpo_core.store import Recorder
from grpo_core.types import Checkpointed, Intervened, Intervention, Paused, RunStatus
from ui.components import form
from ui.page import Arrival, build_app, launch_options, read_address
from ui.render import charts, run_end
from ui.server import group_ref
from ui.server.api import ENDPOINTS, Api
from ui.server.guard import Guard, own_hosts
from ui.server.login import Login
from ui.server.views import CURVES, Newest
from ui.tabs import runs
from ui.tabs.form_fields import default_values
from ui.tabs.run_control import RunCommands, states
from ui.tabs.setup_live import show_setup
from ui.tabs.start_bar import start_run
from ui.tabs.train import pinned_step
from ui.tabs.train_view import ShowTrain

SKIP = gr.skip()
UPLOADS = gr.UploadButton, gr.File
# The outputs of ShowTrain.
PICKER, PILL, LINE, BANNER, STOP = 0, 1, 3, 4, 8
SLIDER, FOLLOW, GROUP, ADVICE, AT, SEEN = range(STOP + 1 + len(CURVES), STOP + 7 + len(CURVES))


@pytest.fixture
def page(store, runs):
    return build_app(store, runs, FakeService())


def show(
    views,
    run_id,
    pin="",
    order="best",
    x="step",
    smoothing=0,
    log=False,
    overlay=(),
    detail="entropy",
    seen="{}",
):
    return ShowTrain(views)(run_id, pin, order, x, smoothing, log, list(overlay), detail, seen)


# ---- nothing is held open, nothing leaves the machine ----------------------------------------


def test_a_tab_holds_no_connection_open(page):
    assert page.get_config_file()["connect_heartbeat"] is False


def test_no_event_is_queued_and_only_named_endpoints_are_public(page):
    listed = [event for event in page.fns.values() if event.api_visibility == "public"]
    assert sorted(event.api_name for event in listed) == sorted(ENDPOINTS)
    for event in page.fns.values():
        if event.fn is not None:
            assert event.queue is False
            assert event in listed or (event.show_progress, event.api_visibility) == (
                "hidden",
                "private",
            )


def test_the_page_makes_no_request_to_another_machine(page):
    options = launch_options(page)
    assert options["run_history"] is False
    assert options["enable_monitoring"] is False
    assert "http://" not in options["head"]
    assert "https://" not in options["head"]
    assert options["theme"]._stylesheets == []


def test_without_its_package_the_tool_server_is_refused_with_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mcp", None)  # as on a machine without the package
    assert app.main(["--mcp", "--db", str(tmp_path / "runs.sqlite")]) == 2
    assert (
        capsys.readouterr().err
        == "error: --mcp needs the package mcp. Install it: pip install 'gradio[mcp]'.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_colours_and_sizes_stand_in_one_file():
    ui = Path(runs.__file__).parents[1]
    for source in [*ui.rglob("*.py"), *ui.rglob("*.js")]:
        assert not [
            line
            for line in source.read_text("utf-8").splitlines()
            if "rgb(" in line or "#fff" in line.lower() or "px;" in line
        ], source.name


# ---- what anybody can send -------------------------------------------------------------------


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
def test_every_handler_answers_any_input(recorded_page, junk):
    page, store = recorded_page
    client = TestClient(App.create_app(page))
    for number, event in page.fns.items():
        if event.fn is None or any(isinstance(c, UPLOADS) for c in event.inputs):
            continue
        for data in (
            junk,
            {
                "step": junk,
                "by": junk,
                "run": junk,
                "at": junk,
                "code": junk,
                "key": junk,
                "order": junk,
            },
        ):
            answer = client.post(
                "/gradio_api/run/predict",
                json={
                    "fn_index": number,
                    "data": [junk] * len(event.inputs),
                    "event_data": data,
                    "session_hash": "s",
                    "trigger_id": None,
                },
            )
            if event.api_visibility == "public":  # these may refuse with a message of one line
                assert answer.status_code == 200 or (
                    answer.status_code == 500
                    and 0 < len(answer.json()["error"]) < 3000
                    and "Traceback" not in answer.text
                ), answer.text
            else:
                assert answer.status_code == 200, f"{event.name} of {event.targets}: {answer.text}"
    assert len(store.runs()) == 1


def test_a_file_of_the_server_cannot_be_named_as_an_upload(page, tmp_path):
    (tmp_path / "theirs.json").write_text(
        '{"criteria": [{"name": "secret", "check": "length", "weight": 1}]}'
    )
    page.has_launched = True  # Gradio checks paths only after the launch
    client = TestClient(App.create_app(page))
    numbers = [n for n, e in page.fns.items() if any(isinstance(c, UPLOADS) for c in e.inputs)]
    # A rubric, prompts, settings, preferences, and a run: its preview and its import.
    assert len(numbers) == 6
    for number, name in itertools.product(numbers, ("/etc/passwd", str(tmp_path / "theirs.json"))):
        file = {"path": name, "meta": {"_type": "gradio.FileData"}}
        data = [
            None if not isinstance(c, UPLOADS) else [file] if c.file_count == "multiple" else file
            for c in page.fns[number].inputs
        ]
        answer = client.post(
            "/gradio_api/run/predict",
            json={"fn_index": number, "data": data, "session_hash": "s"},
        )
        assert "secret" not in answer.text
        assert "root:" not in answer.text


async def _ok(request):
    return PlainTextResponse("ok")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": "127.0.0.1:7860"}, 200),
        ("GET", {"host": "[::1]:7860"}, 200),
        ("GET", {"host": "localhost:7860"}, 200),
        ("GET", {"host": "evil.example"}, 400),
        ("GET", {"host": "127.0.0.1.evil.example"}, 400),
        ("GET", {"host": ""}, 400),
        ("POST", {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ("POST", {"host": "localhost:7860"}, 200),  # no browser
        ("POST", {"host": "localhost:7860", "origin": "https://evil.example"}, 403),
        ("POST", {"host": "localhost:7860", "origin": "null"}, 403),
        ("POST", {"host": "localhost:7860", "origin": "http://localhost:9999"}, 403),
        ("POST", {"host": "localhost:7860", "sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_hosts_and_other_websites_are_refused(method, headers, status):
    client = TestClient(
        Guard(
            Starlette(routes=[Route("/{rest:path}", _ok, methods=["GET", "POST"])]),
            hosts=own_hosts("127.0.0.1"),
        )
    )
    path = "/" if method == "GET" else "/studio/show"
    assert client.request(method, path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/gradio_api/mcp", None, 401),
        ("/gradio_api/mcp/http", "Basic bWU6d3Jvbmc=", 401),
        ("/gradio_api/%6dcp/", None, 401),
        ("/gradio_api/MCP/", "Bearer x", 401),
        ("/gradio_api/mcp/", "Basic bWU6c2VjcmV0", 200),
        ("/gradio_api/mcp/", "Basic \u00e4", 401),
        ("/", None, 200),
    ],
)
def test_tools_for_language_models_want_the_password_too(path, authorization, status):
    # Gradio's own login does not cover them. bWU6c2VjcmV0 is me:secret
    client = TestClient(
        Guard(
            Starlette(routes=[Route("/{rest:path}", _ok)]),
            hosts=["testserver"],
            login=Login("me", "secret"),
        )
    )
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    assert client.get(path, headers=headers).status_code == status


# ---- the Train tab ---------------------------------------------------------------------------


def test_an_empty_store_shows_what_will_appear_and_how_to_make_it(views):
    out = show(views, None)
    assert "no run yet" in out[PILL]
    assert "Start training" in out[LINE]
    assert "The groups of each step appear here" in out[GROUP]
    assert out[STOP]["interactive"] is False


def test_only_the_newest_curves_of_recently_viewed_runs_are_kept():
    class Curves(list):  # a plain list has no weak references
        pass

    made = []

    def draw(run, version):
        curves = Curves([run, version])
        made.append(weakref.ref(curves))
        return curves

    newest = Newest(2, draw)
    for version in range(50):  # as in a live run: new curves at every step
        assert newest("a", version) == ["a", version]
    assert newest("a", 49) is newest("a", 49)
    assert len(made) == 50
    gc.collect()
    assert sum(ref() is not None for ref in made) == 1
    newest("b", 0)
    newest("a", 49)
    newest("c", 0)  # b was used before a
    assert len(made) == 52
    newest("a", 49)
    assert len(made) == 52
    newest("b", 0)
    assert len(made) == 53


def test_nothing_is_sent_when_nothing_changed(views, store):
    run_id = record_run(store)
    first = show(views, run_id)
    assert SKIP not in first
    assert show(views, run_id, seen=first[SEEN]) == [SKIP] * len(first)


def test_a_new_step_updates_only_status_curves_and_the_followed_group(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    first = show(views, run_id)
    with Recorder(store, run_id) as record:
        record_step(record, 4)
    out = show(views, run_id, seen=first[SEEN])
    changed = {i for i, value in enumerate(out) if value != SKIP}
    assert changed == {
        PILL,
        LINE,
        BANNER,
        *range(STOP - 3, STOP + 1 + len(CURVES) - len(charts.OF_TURNS)),
        SLIDER,
        GROUP,
        AT,
        SEEN,
    }  # four buttons, then the curves
    assert "step <b>4</b>" in out[GROUP]


def test_a_pinned_group_stays_while_the_run_goes_on(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    first = show(views, run_id, pin="2/1")
    assert (first[AT], first[FOLLOW]) == ("2/1", False)
    with Recorder(store, run_id) as record:
        record_step(record, 4)
    out = show(views, run_id, pin="2/1", seen=first[SEEN])
    assert out[GROUP] == SKIP
    assert out[SLIDER]["value"] == 2
    assert out[SLIDER]["maximum"] == 4


def test_an_answer_that_was_overtaken_is_put_right_by_the_next_poll(views, store):
    run_id = record_run(store)
    # A poll that was sent before the person chose step 1, and answered after it.
    overtaken = show(views, run_id)
    put_right = show(views, run_id, pin="1/0", seen=overtaken[SEEN])
    assert "step <b>1</b>" in put_right[GROUP]


def test_a_phase_is_shown_without_sending_the_curves_again(views, store):
    from grpo_core.types import Phase, PhaseStarted

    run_id = record_run(store, status=RunStatus.RUNNING)
    first = show(views, run_id)
    with Recorder(store, run_id) as record:
        record(PhaseStarted(Phase.EVALUATING, 3, 3))
    out = show(views, run_id, seen=first[SEEN])
    assert "Evaluating" in out[LINE]
    assert out[STOP + 1 : STOP + 1 + len(CURVES)] == [SKIP] * len(CURVES)


def test_only_the_curve_that_was_switched_is_drawn_again(views, store):
    run_id = record_run(store)
    first = show(views, run_id)
    out = show(views, run_id, detail="gradient", seen=first[SEEN])
    assert [i for i, v in enumerate(out) if v != SKIP] == [
        STOP + 1 + CURVES.index("detail"),
        AT,
        SEEN,
    ]


def test_the_estimate_is_asked_again_when_a_run_ends(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    *first, seen = show_setup(views, run_id, "{}")
    assert first[2] == SKIP
    store.set_status(run_id, RunStatus.FINISHED)
    *_, ended, seen = show_setup(views, run_id, seen)
    assert ended == "1"
    assert show_setup(views, run_id, seen) == [SKIP] * 4


def test_a_second_tab_costs_no_second_drawing(views, store):
    run_id = record_run(store)
    assert show(views, run_id)[STOP + 1] is show(views, run_id)[STOP + 1]


def test_a_deleted_run_in_view_gives_way_to_another(views, store):
    kept, gone = record_run(store, "kept"), record_run(store, "gone")
    first = show(views, gone)
    store.delete(gone)
    out = show(views, gone, seen=first[SEEN])
    assert out[PICKER]["value"] == kept
    assert "finished" in out[PILL]


def test_the_running_run_is_in_view_first(views, store):
    going = record_run(store, status=RunStatus.RUNNING)
    record_run(store)
    assert views.default_run() == going


def test_starting_submits_the_form_and_shows_the_new_run(views, runs, store):
    values = default_values()
    values[form.NAMES.index("train.steps")] = 7
    picked, pin, notice, answer, *complaints = start_run(runs, views, values, "  mine ")
    [(config, name)] = runs.started
    assert (config.train.steps, name) == (7, "mine")
    assert picked["value"] == store.runs()[0].id
    assert (pin, notice, answer, complaints[len(form.NAMES)]) == ("", "", "", "")


def test_a_wrong_field_starts_nothing_and_touches_nothing_that_was_typed(views, runs):
    values = default_values()
    values[form.NAMES.index("train.group_size")] = 1
    picked, _, _, _, *complaints = start_run(runs, views, values, "")
    assert runs.started == []
    assert picked == SKIP
    assert "at least 2" in complaints[form.NAMES.index("train.group_size")]
    assert (
        len(complaints) == len(form.NAMES) + 2
    )  # only the lines beside the fields and the cards are written, never a field


def test_the_run_managers_errors_appear_beside_their_field(views, runs, no_such_model):
    runs.refuse = no_such_model
    _, _, notice, _, *complaints = start_run(runs, views, default_values(), "")
    assert (
        "there is no folder &lt;b&gt;/nowhere&lt;/b&gt;"
        in complaints[form.NAMES.index("model.name")].lower()
    )
    assert notice == ""


def test_an_error_of_no_field_becomes_a_banner(views, runs):
    runs.refuse = StudioError("the disk is full <b>")
    _, _, _, answer, *_ = start_run(runs, views, default_values(), "")
    assert "the disk is full &lt;b&gt;" in answer


def test_only_a_run_that_exists_is_stopped(views, runs, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    commands = RunCommands(runs, views)
    assert (commands.stop(run_id), runs.stopped) == ("", [run_id])
    assert "Choose a run first" in commands.stop("nosuch")
    assert runs.stopped == [run_id]


@pytest.mark.parametrize("step", [0, -1, 1e300, float("nan"), "x", None, True])
def test_a_step_that_is_none_pins_nothing(step):
    assert pinned_step(step) in (SKIP, "1/0")  # True is 1


# ---- addresses -------------------------------------------------------------------------------


def test_an_address_leads_back_to_its_tab_run_and_group(views, store):
    run_id = record_run(store)
    record_run(store, "newer")
    query = {"tab": "inspect", "run": run_id, "step": "2", "group": "2"}
    assert read_address(views, query) == Arrival(run_id, "inspect", "", "2/1", "")
    query = {"run": run_id, "step": "2"}
    assert read_address(views, query) == Arrival(run_id, "train", "2/0", "", "")


def test_an_address_of_a_deleted_run_shows_the_newest(views, store):
    newest = record_run(store)
    arrived = read_address(views, {"run": "<script>", "step": "3", "tab": "nosuch"})
    assert (arrived.run_id, arrived.tab, arrived.pin) == (newest, "train", "")
    assert "not here" in arrived.notice
    assert "<script>" not in arrived.notice


@pytest.mark.parametrize(
    "query", [{"step": "x"}, {"step": "-1"}, {"step": "٣"}, {"step": "9" * 30}, {}]
)
def test_an_invalid_group_reference_is_ignored(query):
    assert group_ref.from_query(query) is None


# ---- run control -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, "----"),
        (RunStatus.QUEUED, "p--s"),
        (RunStatus.LOADING, "pn-s"),
        (RunStatus.RUNNING, "pn-s"),
        (RunStatus.PAUSED, "-nrs"),
        (RunStatus.STOPPED, "--r-"),
        (RunStatus.FAILED, "--r-"),
        (RunStatus.INTERRUPTED, "--r-"),
        (RunStatus.FINISHED, "----"),
    ],
)
def test_only_the_buttons_that_mean_something_now_can_be_pressed(store, state, expected):
    run = None if state is None else store.run(record_run(store, status=state))
    assert (
        "".join(c if u["interactive"] else "-" for c, u in zip("pnrs", states(run), strict=True))
        == expected
    )  # pause, next, resume, stop


def test_browser_input_is_validated_before_it_reaches_a_run(views, runs, store):
    run_id, commands = record_run(store, status=RunStatus.RUNNING), RunCommands(runs, views)
    assert "from the next step on" in commands.turn(run_id, "algorithm.kl_coef", "0.5")
    assert "this is not a number" in commands.turn(run_id, "algorithm.kl_coef", "<b>much</b>")
    assert "<b>much" not in commands.turn(run_id, "algorithm.kl_coef", "<b>much</b>")
    commands.turn(run_id, {"no": "field"}, "1e-5")
    commands.step(run_id, ["phase"])
    commands.step(run_id, "phase")
    commands.edit(run_id, "3/1", 2, "1.5")
    for here, completion, reward in (
        ("", 1, "1"),
        ("3/1", 1.5, "1"),
        ("3/1", "x", "1"),
        ("3/1", 1, "nan"),
        ("3/1", 1, None),
    ):
        assert "No reward was changed" in commands.edit(run_id, here, completion, reward)
    assert runs.commands == [
        ("set_knob", run_id, "algorithm.kl_coef", 0.5),
        ("set_knob", run_id, "train.learning_rate", 1e-5),
        ("step", run_id, "step"),
        ("step", run_id, "phase"),
        ("edit_reward", run_id, 3, 1, 1, 1.5),
    ]
    runs.refuse = StudioError("break = 'x': no <i>condition</i>")
    assert "no &lt;i&gt;condition&lt;/i&gt;" in commands.arm(run_id, "x")


def test_a_waiting_run_says_why_and_the_log_is_shown_as_text(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    with Recorder(store, run_id) as record:
        record(Paused("Breakpoint “kl > 0.2” before the update of step 4. Press <b>Resume</b>."))
        record(
            Checkpointed(
                3, str(store.checkpoint_folder(run_id) / "step-00000003"), 2_000_000, "0" * 64
            )
        )
    banner = run_end.run_banner(store.run(run_id))
    assert "before the update of step 4.</b>" in banner
    assert "&lt;b&gt;Resume" in banner
    with RunLog(store.log_file(run_id), run_id) as log:
        log.write("info", "\x1b[31m<script>alert(1)</script>")
    shown = RunCommands(None, views).log(run_id)
    assert "step 3 (2.0 MB)" in shown
    assert "\x1b" not in store.log_file(run_id).read_text()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_manual_changes_are_marked_on_every_curve_of_the_run(store, views):
    run_id = record_run(store)
    with Recorder(store, run_id) as record:
        record(Intervened((Intervention(2, "setting", 0.5, "algorithm.kl_coef"),)))
    for name in ("reward", "kl", "loss", "length", "detail"):
        figure = views.figure(name, [run_id], charts.View())
        assert [(s["x0"], s["x1"]) for s in figure["layout"]["shapes"]] == [(2.0, 2.0)], name
        assert "KL coefficient 0.5 from step 2" in figure["note"]


# ---- the named endpoints ---------------------------------------------------------------------


def test_endpoints_read_rows_and_control_the_run(views, runs, store):
    run_id, api = record_run(store), Api(views, runs)
    assert (api.status()["id"], api.status(run_id)["status"], api.runs()[0]["steps_done"]) == (
        run_id,
        "finished",
        3,
    )
    assert [g["verdict"] for g in api.groups(run_id, 2)] == ["healthy", "all_wrong"]
    assert api.groups(run_id)[0]["step"] == 3
    numbers = api.metrics(run_id)
    assert [row[numbers["columns"].index("loss")] for row in numbers["steps"]] == [-0.001] * 3
    assert numbers["metrics"]["heldout/accuracy"] == [(0, 0.4)]
    api.change("algorithm.kl_coef", 0.5, run_id)
    api.edit_reward(3, 1, 2, 0.5)
    assert runs.commands == [
        ("set_knob", run_id, "algorithm.kl_coef", 0.5),
        ("edit_reward", run_id, 3, 0, 1, 0.5),
    ]
    started = api.start({"train.steps": 7, "algorithm.preset": "Dr. GRPO"}, "by hand")
    assert (started["name"], started["num_steps"], runs.started[0][0].algorithm.advantage) == (
        "by hand",
        7,
        "group_mean",
    )
    with pytest.raises(StudioError, match="there is no such run"):
        api.status("../../etc/passwd")
