"""The Playground, the workbench and the set-up's questions, with a stand-in service."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Record

import pytest
from recorded import HOSTILE, FakeService, record_run

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.exporting.play_request import PlayRequest, PlayResult, Side
from grpo_core.store import Recorder
from grpo_core.types import Checkpointed, Completion, Prompt, Rollout
from ui.components import form
from ui.render.played import Asked, played
from ui.tabs.form_fields import default_values
from ui.tabs.model import model_card, show_model
from ui.tabs.playground import (
    SKIP,
    PlayInputs,
    ShowPlayground,
    play,
    reply_to,
    take_prompt,
)
from ui.tabs.prompts import counted, show_preview, take_upload
from ui.tabs.start_bar import Starter, findings, start_label
from ui.tabs.workbench import pasted, probes, tried


def rollout(text: str, **scores: float | None) -> Rollout:
    return Rollout(Completion(text, "stop", 3), scores or {text: 1.0}, 1.0, 0.5)


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
                    Side(step, rollout(payload), (rollout(payload), rollout(payload + "x")))
                    for step in (0, 2)
                ),
            ),
            Asked(payload, 1.0, {}),
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


def test_both_sides_are_sampled_in_one_request_with_the_fields(views, store):
    run_id = record_run(store)
    sides = [
        Side(step, rollout(text), (rollout(text, accuracy=1.0), rollout("c", accuracy=None)))
        for step, text in ((0, "a"), (20, "b"))
    ]
    service = FakeService(answered(*sides))
    page = play(views, service, views.run(run_id), PlayInputs("Q: 1+1=?", "2", 0, 20, 4, "0.5"))
    assert service.asked == [("play", (run_id, PlayRequest("Q: 1+1=?", "2", [0, 20], 4, 0.5)), {})]
    assert page.index("before training") < page.index("after step 20")
    assert "mean reward <b>1.000</b>" in page
    assert page.count("<b>1 of 1</b> sampled answers right") == 2  # the other is not judged
    assert "<b>40 %</b> of held-out prompts right" in page  # recorded at step 0
    assert "Answers of <b" in page
    assert "sampled at temperature 0.5" in page


def test_answers_are_marked_and_pairs_show_their_differences():
    page = played(
        answered(
            Side(0, rollout("it is 3", accuracy=0.0), (rollout("it is 2", accuracy=1.0),)),
            Side(9, rollout("it is 2", accuracy=1.0), (rollout("it is 2", accuracy=1.0),)),
        ),
        Asked("a run", 1.0, {}),
    )
    greedy, sampled = page.split('<section class="pair"')[1:]
    assert greedy.index("✗ wrong") < greedy.index("✓ right")
    assert "it is <del>3</del>" in greedy
    assert "it is <ins>2</ins>" in greedy
    assert sampled.count("same text") == sampled.count("✓ right") == 2
    assert "<ins>" not in sampled


def test_one_state_on_both_sides_is_asked_once(views, store):
    service = FakeService(answered(Side(0, rollout("a"), ())))
    run = views.run(record_run(store))
    page = play(views, service, run, PlayInputs("Q", "", 0, 0, 4, "0"))
    assert service.asked[0][1][1].steps == [0]
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
    assert says in play(views, service, run, PlayInputs(**given))
    assert service.asked == []


def asked(views, service, ask: object, **given) -> dict:
    values = {"text": "", "answer": "", "left": 0, "right": 0, "num": 1, "temperature": "1"}
    question = ask if isinstance(ask, str) else json.dumps(ask)
    return json.loads(reply_to(views, service, question, PlayInputs(**values | given)))


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
    given = PlayInputs("", "", 0, 0, 1, "1", json.dumps({"text": "Q: 0+1=?", "next": 4}))
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


def test_the_states_offered_follow_the_run_and_keep_the_choice(views, store, tmp_path):
    service = FakeService()
    run_id, show = record_run(store), ShowPlayground(views, service)
    first = show(run_id, "{}", "", "{}")
    assert "no saved state yet" in first[0]
    assert show(run_id, first[3], "", "{}") == [SKIP] * 5  # without a state there is no question
    save_steps(store, run_id, tmp_path, 20, 40)
    about, left, right, seen, ask = show(run_id, "{}", "", "{}")
    assert "2 saved states" in about
    assert right["choices"] == [
        ("before training", 0),
        ("after step 20", 20),
        ("after step 40", 40),
    ]
    assert (left["value"], right["value"]) == (0, 40)
    assert ask == SKIP  # until the page shows this run
    *unchanged, ask = show(run_id, seen, "", "{}")
    assert unchanged == [SKIP] * 4
    assert (json.loads(ask)["run"], json.loads(ask)["take"]) == (run_id, "first")
    assert show(run_id, seen, ask, "{}") == [SKIP] * 5  # once
    save_steps(store, run_id, tmp_path, 60)
    assert "value" not in show(run_id, seen, ask, "{}")[2]
    assert show(run_id, seen, ask, '{"waits": true}')[2]["value"] == 60


def test_a_question_that_waited_is_asked_when_nothing_trains(views, store, tmp_path):
    service, run_id = FakeService(), record_run(store)
    save_steps(store, run_id, tmp_path, 20)
    show, waits = ShowPlayground(views, service), '{"waits": true}'
    ask, seen = json.dumps({"run": run_id}), show(run_id, "{}", "", "{}")[3]
    service.waits = "Another run is training."
    assert show(run_id, seen, ask, waits) == [SKIP] * 5
    service.waits = ""
    assert json.loads(show(run_id, seen, ask, waits)[4])["take"] == ""


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
    assert "/my-prompts-" in kept


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
