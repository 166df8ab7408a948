"""The Playground, the workbench and the set-up's questions, with a stand-in service."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Record

import pytest
from recorded import HOSTILE, FakeService, record_run

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.exporting.play_request import PlayRequest, PlayResult, PlayStopped, Side, State
from grpo_core.store import Recorder
from grpo_core.types import Checkpointed, Completion, Prompt, Rollout
from ui.components import form
from ui.render.played import Asked, played
from ui.tabs.form_fields import default_values
from ui.tabs.kept import drop_answer, export_kept, keep_answer, kept_panel, use_kept
from ui.tabs.model import model_card, show_model
from ui.tabs.play_answers import STOP, PlayInputs, look, play, reply_to, take_prompt
from ui.tabs.playground import SKIP, ShowPlayground
from ui.tabs.prompts import counted, show_preview, take_upload
from ui.tabs.start_bar import Starter, findings, start_label
from ui.tabs.workbench import pasted, probes, tried


def rollout(text: str, **scores: float | None) -> Rollout:
    return Rollout(Completion(text, "stop", 3), scores or {text: 1.0}, 1.0, 0.5)


def side(step: int, greedy: Rollout | None, sampled: tuple[Rollout, ...] = (), run="r") -> Side:
    return Side(State(run, step), greedy, sampled)


def inputs(*values: object, **more: object) -> PlayInputs:
    """Values in the order text, answer, left, right, num, temperature, taken."""
    names = ("text", "answer", "left", "right", "num", "temperature", "taken")
    runs = {"left_run": "", "right_run": ""}
    return PlayInputs(**{**runs, **dict(zip(names, values, strict=False)), **more})


def asked_of(name: str, temperature: float = 1.0) -> Asked:
    return Asked("r", name, temperature, {"r": name}, {})


def answered(*sides: Side, text: str = "Q: 1+1=?", answer: str = "2") -> PlayResult:
    return PlayResult(Prompt("p", text, answer, "sums"), "accuracy", sides)


@pytest.mark.parametrize("payload", HOSTILE)
def test_output_of_models_files_and_graders_is_shown_as_text(payload):
    preview = Record(
        prompts=[Record(text=payload, num_tokens=1, heldout=False, answer=payload)],
        chat_template=True,
        context=1,
        columns=(),
        counts={
            "rows": 1,
            "train": 1,
            "heldout": 0,
            "prompt_column": payload,
            "answer_column": payload,
            "cut": False,
            **dict.fromkeys(
                ("duplicates", "contradictions", "leaks", "empty", "unanswered", "too_long"), 0
            ),
        },
    )
    group = Record(prompt=Prompt("p", payload, payload, "file"), rollouts=[rollout(payload)])
    report = Record(
        name=payload,
        architecture=payload,
        parameters=1,
        trained_parameters=1,
        dtype=payload,
        device=payload,
        context=1,
        chat_template=False,
        end_tokens={payload: [payload]},
        ends_agree=True,
        bytes_by_part={payload: 1},
        free_bytes=1,
        needed_bytes=1,
        fitting_micro_batch=1,
        workers=1,
        problems=(),
        remarks=(payload,),
    )
    shown = [
        show_preview(FakeService(preview), default_values())[0],
        counted(preview.counts),
        model_card(report, payload),
        played(
            PlayResult(
                Prompt("p", payload, payload, "file"),
                payload,
                tuple(
                    side(step, rollout(payload), (rollout(payload), rollout(payload + "x")))
                    for step in (0, 2)
                ),
            ),
            asked_of(payload),
        ),
        tried(
            Record(
                groups=[group], seconds={payload: 0.1}, notes={payload: {payload: 1}}, tied={2: 0.5}
            )
        ),
        probes([Record(name=payload, reward=1.0, cheats=True, scores={payload: 1.0})]),
        findings([Record(level="red", title=payload, text=payload)]),
    ]
    for page in shown:
        assert payload not in page or "<" not in payload
        assert page.count("<script") == 0


def test_equal_completions_of_a_tried_group_share_a_row_best_first():
    texts = ["no", "yes", "no", "no"]
    rows = [rollout("{x}" + t, accuracy=float(t == "yes")) for t in texts]
    rows[1] = replace(rows[1], advantage=1.5)
    group = Record(prompt=Prompt("p", "1+1=?", "2", "sums"), rollouts=rows)
    html = tried(Record(groups=[group], seconds={"accuracy": 0.1}, notes={}, tied={2: 0.5}))
    shown = re.findall(r"<pre>(.*?)</pre></td><td class=.number.>(.*?)</td>", html)
    assert shown == [("{x}yes", ""), ("{x}no", "×3")]


def test_both_sides_are_sampled_in_one_request_with_the_fields(views, store):
    run_id = record_run(store)
    sides = [
        side(
            step, rollout(text), (rollout(text, accuracy=1.0), rollout("c", accuracy=None)), run_id
        )
        for step, text in ((0, "a"), (20, "b"))
    ]
    service = FakeService(answered(*sides))
    page = play(views, service, views.run(run_id), inputs("Q: 1+1=?", "2", 0, 20, 4, "0.5"))
    states = [State(run_id, 0), State(run_id, 20)]
    request = PlayRequest("Q: 1+1=?", "2", states, 4, 0.5)
    assert service.asked == [("play", (run_id, request, ""), {})]
    assert page.index("before training") < page.index("after step 20")
    assert "mean reward <b>1.000</b>" in page
    assert page.count("<b>1 of 1</b> sampled answers right") == 2  # the other is not judged
    assert "<b>40 %</b> of held-out prompts right" in page  # recorded at step 0
    assert "Answers of <b" in page
    assert "sampled at temperature 0.5" in page


def test_answers_are_marked_and_pairs_show_their_differences():
    page = played(
        answered(
            side(0, rollout("it is 3", accuracy=0.0), (rollout("it is 2", accuracy=1.0),)),
            side(9, rollout("it is 2", accuracy=1.0), (rollout("it is 2", accuracy=1.0),)),
        ),
        asked_of("a run"),
    )
    greedy, sampled = page.split('<section class="pair"')[1:]
    assert greedy.index("✗ wrong") < greedy.index("✓ right")
    assert "it is <del>3</del>" in greedy
    assert "it is <ins>2</ins>" in greedy
    assert sampled.count("same text") == sampled.count("✓ right") == 2
    assert "<ins>" not in sampled


def test_one_state_on_both_sides_is_asked_once(views, store):
    service = FakeService(answered(side(0, rollout("a"), ())))
    run = views.run(record_run(store))
    page = play(views, service, run, inputs("Q", "", 0, 0, 4, "0"))
    assert service.asked[0][1][1].states == [State(run.id, 0)]
    assert page.count("<article") == 1
    assert "Marked words" not in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": " "}, "Prompt"),
        ({"text": None}, "Prompt"),
        ({"left": None}, "Left and Right"),
        ({"right": "x"}, "Left and Right"),
        ({"num": 0}, "1 to 16"),
        ({"num": 99}, "1 to 16"),
        ({"num": float("nan")}, "1 to 16"),
        ({"temperature": "warm"}, "Temperature"),
        ({"temperature": "nan"}, "Temperature"),
        ({"temperature": "-1"}, "Temperature"),
    ],
)
def test_invalid_playground_input_is_reported_without_sampling(views, store, change, says):
    given = {
        "text": "Q",
        "answer": "",
        "left": 0,
        "right": 0,
        "num": 1,
        "temperature": "1",
        **change,
    }
    service, run = FakeService("never"), views.run(record_run(store))
    assert says in play(views, service, run, inputs(**given))
    assert service.asked == []


def asked(views, service, ask: object, **given) -> dict:
    values = {"text": "", "answer": "", "left": 0, "right": 0, "num": 1, "temperature": "1"}
    question = ask if isinstance(ask, str) else json.dumps(ask)
    return json.loads(reply_to(views, service, question, inputs(**values | given)))


def test_an_error_of_the_service_becomes_one_line(views, store):
    run_id = record_run(store)
    service = FakeService(StudioError("the checkpoint <b> is damaged"))
    ask = {"run": run_id, "id": "1"}
    assert "&lt;b&gt; is damaged" in asked(views, service, ask, text="Q")["html"]
    taken = asked(views, service, {**ask, "take": "next"})
    assert "&lt;b&gt; is damaged" in taken["html"]
    assert "text" not in taken
    for unknown in ({"run": "nosuch"}, "nonsense", [1], {"run": {}}):
        assert "no run yet" in asked(views, service, unknown)["html"]
    wrong = FakeService(
        InvalidConfig([FieldProblem("model.name", "<x>", "no such <model>", "Choose another.")])
    )
    for page in (
        show_model(wrong, default_values()),
        show_preview(wrong, default_values())[0],
    ):
        assert "&lt;model&gt;" in page


def test_held_out_prompts_are_taken_one_after_the_other(views, store):
    run_id, service = record_run(store), FakeService(Prompt("p", "Q: 1+1=?", "2", "sums"))
    given = inputs("", "", 0, 0, 1, "1", json.dumps({"text": "Q: 0+1=?", "next": 4}))
    said = take_prompt(service, run_id, "next", given)
    assert said == {"text": "Q: 1+1=?", "right": "2", "next": 5, "html": ""}
    assert service.asked == [("run_prompt", (run_id, 4), {})]
    for nonsense in ("-1; DROP", "[]", '{"next": -1}', '{"next": true}', None):
        assert take_prompt(service, run_id, "next", replace(given, taken=nonsense))["next"] == 1


def test_a_typed_prompt_stays_when_another_run_comes_into_view(views, store):
    run_id, service = record_run(store), FakeService(Prompt("p", "Q: 1+1=?", "2", "sums"))
    ask = {"run": run_id, "id": "1", "take": "first"}
    assert asked(views, service, ask, text="Hello?", answer="Hi")["text"] == "Hello?"
    taken = json.dumps({"text": "Q: 0+1=?", "next": 4})
    said = asked(views, service, ask, text="Q: 0+1=?", taken=taken)
    assert (said["text"], said["next"]) == ("Q: 1+1=?", 1)  # the first one of the new run


def test_a_prompt_waits_while_a_run_trains_and_says_so(views, store):
    run_id, service = record_run(store), FakeService(Prompt("p", "Q: 1+1=?", "2", "sums"))
    service.waits = "Another run <b> is training."
    said = asked(views, service, {"run": run_id, "id": "1", "take": "first"})
    assert said["text"] == "Q: 1+1=?"
    assert "&lt;b&gt; is training. Press Answer to ask now." in said["html"]


def save_steps(store, run_id: str, folder: Path, *steps: int) -> None:
    with Recorder(store, run_id) as record:
        for step in steps:
            record(Checkpointed(step, str(folder / f"step-{step}"), 1, "0" * 64))


def shown(show: ShowPlayground, run_id: str, seen="{}", ask="", taken="{}", **runs: str) -> dict:
    """What the tab shows, by name."""
    values = show(run_id, seen, ask, taken, runs.get("left_run", ""), runs.get("right_run", ""))
    names = ("about", "left_run", "left", "right_run", "right", "kept", "seen", "ask")
    return dict(zip(names, values, strict=True))


def test_the_states_offered_follow_the_run_and_keep_the_choice(views, store, tmp_path):
    service = FakeService()
    run_id, show = record_run(store), ShowPlayground(views, service)
    first = shown(show, run_id)
    assert "no saved state yet" in first["about"]
    again = shown(show, run_id, first["seen"])
    assert set(map(str, again.values())) == {str(SKIP)}  # without a state there is no question
    save_steps(store, run_id, tmp_path, 20, 40)
    page = shown(show, run_id)
    assert "2 saved states" in page["about"]
    assert page["right"]["choices"] == [
        ("before training", 0),
        ("after step 20", 20),
        ("after step 40", 40),
    ]
    assert (page["left"]["value"], page["right"]["value"]) == (0, 40)
    assert page["left_run"]["value"] == page["right_run"]["value"] == run_id
    assert page["ask"] == SKIP  # until the page shows this run
    seen = page["seen"]
    *unchanged, ask = shown(show, run_id, seen).values()
    assert unchanged == [SKIP] * 7
    assert (json.loads(ask)["run"], json.loads(ask)["take"]) == (run_id, "first")
    assert list(shown(show, run_id, seen, ask).values()) == [SKIP] * 8  # once
    save_steps(store, run_id, tmp_path, 60)
    assert "value" not in shown(show, run_id, seen, ask)["right"]
    assert shown(show, run_id, seen, ask, '{"waits": true}')["right"]["value"] == 60


def test_a_side_of_another_run_offers_that_runs_states(views, store, tmp_path):
    show, other, run_id = ShowPlayground(views, FakeService()), record_run(store), record_run(store)
    save_steps(store, other, tmp_path, 5, 10)
    save_steps(store, run_id, tmp_path, 20)
    first = shown(show, run_id)
    page = shown(show, run_id, first["seen"], left_run=other, right_run=run_id)
    assert [value for _, value in page["left"]["choices"]] == [0, 5, 10]
    assert page["left"]["value"] == 10  # its last state
    assert (page["left_run"]["value"], page["right_run"]["value"]) == (other, run_id)
    assert "value" not in page["right"]
    back = shown(show, other, page["seen"], left_run=other, right_run=run_id)
    assert (back["left_run"]["value"], back["right_run"]["value"]) == (other, other)
    unknown = shown(show, run_id, left_run="<b>", right_run="nosuch")
    assert unknown["left_run"]["value"] == run_id


def test_a_question_that_waited_is_asked_when_nothing_trains(views, store, tmp_path):
    service, run_id = FakeService(), record_run(store)
    save_steps(store, run_id, tmp_path, 20)
    show, waits = ShowPlayground(views, service), '{"waits": true}'
    ask, seen = json.dumps({"run": run_id}), shown(show, run_id)["seen"]
    service.waits = "Another run is training."
    assert shown(show, run_id, seen, ask, waits)["ask"] == SKIP
    service.waits = ""
    assert json.loads(shown(show, run_id, seen, ask, waits)["ask"])["take"] == ""


def test_two_runs_are_asked_together_and_the_rubrics_run_is_named(views, store):
    other, run_id = record_run(store, "the <other>"), record_run(store, "mine")
    result = answered(side(0, rollout("a"), run=other), side(20, rollout("b"), run=run_id))
    service = FakeService(result)
    given = inputs("Q", "", 0, 20, 4, "0", left_run=other, right_run=run_id)
    page = play(views, service, views.run(run_id), given)
    assert service.asked[0][1][1].states == [State(other, 0), State(run_id, 20)]
    assert "<h3>the &lt;other&gt;, before training</h3>" in page
    assert "<h3>mine, after step 20</h3>" in page
    assert 'scored by the rubric of <b class="clip">mine</b>' in page
    alone = play(views, service, views.run(run_id), inputs("Q", "", 0, 20, 4, "0"))
    assert "scored by the rubric" not in alone


def written(text: str) -> Rollout:
    """An answer that is still being written."""
    return Rollout(Completion(text, "", 0))


def test_answers_are_shown_while_they_are_written(views, store):
    run_id = record_run(store)
    partial = answered(
        side(0, rollout("a"), (written("<i>"), written("be")), run_id), side(20, None, (), run_id)
    )
    service, ask = FakeService((3, partial)), json.dumps({"run": run_id, "id": "q"})
    given = ("Q", "", "", 0, "", 20, 2, "1", "{}")
    [page] = look(views, service, 2, ask, *given)
    assert 'data-revision="3"' in page
    assert page.count("writing…") == 2
    assert "&lt;i&gt;" in page
    assert "<span>waits</span>" in page  # the other side has not begun
    assert page.count('data-do="keep"') == 1  # only the whole answer can be kept
    assert look(views, service, 3, ask, *given) == [SKIP]  # the page shows it already
    assert service.asked[-1] == ("look_at_play", ("q",), {})
    assert look(views, service, STOP, ask, *given) == [SKIP]
    assert service.asked[-1] == ("stop_play", ("q",), {})
    for nonsense in ("", "[]", json.dumps({"run": run_id, "id": 7})):
        assert look(views, service, 0, nonsense, *given) in ([SKIP], [page])


def test_stopped_answers_stay_as_far_as_they_were_written(views, store):
    run_id, stopped = record_run(store), PlayStopped("The answers were stopped.")
    stopped.partial = answered(side(0, rollout("whole"), (written("half of"),), run_id))
    page = play(views, FakeService(stopped), views.run(run_id), inputs("Q", "", 0, 0, 1, "1"), "q")
    assert "You stopped the answers." in page
    assert "half of" in page


def test_a_kept_answer_becomes_a_row_of_a_prompt_file(views, store):
    run_id = record_run(store, "mine")
    payload, before = HOSTILE[0], [{"role": "system", "content": "Be brief."}]
    said = {"run": run_id, "step": 20, "prompt": "Q: 1+1=?", "right": "2", "answer": payload}
    panel, notice = keep_answer(views, json.dumps({**said, "before": json.dumps(before)}))
    assert notice == ""
    assert payload not in panel
    keep_answer(views, json.dumps({**said, "right": "", "answer": "two", "step": 0}))
    path, _ = export_kept(store)
    rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    assert rows == [
        {
            "prompt": [*before, {"role": "user", "content": "Q: 1+1=?"}],
            "answer": "2",
            "completion": payload,
        },
        {"prompt": "Q: 1+1=?", "answer": "two", "completion": "two"},
    ]
    store.delete(run_id)
    panel, _ = kept_panel(views, None)
    assert panel.count("a deleted run") == 2
    drop_answer(views, "1")
    drop_answer(views, "; DROP")
    assert kept_panel(views, None)[0].count("<tr>") == 2  # the heading and one row


def test_kept_answers_become_the_prompts_of_a_new_run(views, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    nothing = use_kept(views, None)
    assert nothing[:-1] == [SKIP] * (len(nothing) - 1)
    assert "Press Keep on one first" in nothing[-1]
    keep_answer(views, json.dumps({"step": 0, "prompt": "1+1?", "right": "2", "answer": "it is 2"}))
    filled = dict(zip(form.NAMES, use_kept(views, None), strict=False))
    assert filled["task.name"] == "file"
    assert filled["task.answer_column"] == "answer"
    assert json.loads(Path(filled["task.path"]).read_text("utf-8"))["prompt"] == "1+1?"


def test_pasted_completions_are_split_at_lines_of_dashes():
    assert pasted("one\n---\ntwo\nlines\n----\nthree") == ["one", "two\nlines", "three"]
    with pytest.raises(StudioError, match="two or more"):
        pasted("only one")


def test_an_upload_without_prompts_changes_nothing_and_a_good_one_becomes_the_task(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.exe").write_text("MZ")
    *unchanged, said, _ = take_upload(str(tmp_path / "x.exe"))
    assert unchanged == [SKIP] * 4
    assert 'class="problem"' in said
    (tmp_path / "my prompts.csv").write_text("question,answer\n1+1?,2\n")
    task, kept, *_ = take_upload(str(tmp_path / "my prompts.csv"))
    (tmp_path / "my prompts.csv").unlink()
    assert task == "file"
    assert "1+1?" in Path(kept).read_text()
    assert kept.endswith("/my-prompts.csv")  # the name that cards, runs and fields show


def test_preflight_problems_hold_a_start_until_a_person_confirms(views, runs):
    service = FakeService()
    starter, insist = Starter(runs, views, service), Record(_data={"anyway": "1"})
    service.refuses = (
        "Preflight would stop this run. Rubric: <i> Null. Fix it, or choose to start anyway."
    )
    held = starter.press(*default_values(), "")[3]
    assert "<b>Preflight would stop this run.</b>" in held
    assert "&lt;i&gt;" in held
    assert "Start anyway" in held
    assert runs.started == []
    starter.insist(insist, *default_values(), "")
    assert len(runs.started) == 1


def test_a_second_identical_start_asks_first(views, runs, store):
    starter = Starter(runs, views, FakeService())
    starter.press(*default_values(), "first")
    assert start_label(views.runs()) == "Queue another"
    asked = starter.press(*default_values(), "second")[3]
    assert "“first” has exactly these settings." in asked
    assert len(runs.started) == 1
    other = default_values()
    other[form.NAMES.index("train.seed")] = 1
    assert starter.press(*other, "another seed")[3] == ""
    starter.insist(Record(_data={"again": "1"}), *default_values(), "second")
    assert [name for _, name in runs.started] == ["first", "another seed", "second"]
