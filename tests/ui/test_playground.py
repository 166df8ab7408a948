"""The Playground, the workbench and the set-up's questions, with a stand-in service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Record

import pytest
from recorded import HOSTILE, FakeService, record_run

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.exporting.play_request import PlayRequest
from grpo_core.types import Completion, Prompt, Rollout
from ui.tabs.form_fields import default_values
from ui.tabs.model import model_card, show_model
from ui.tabs.playground import (
    SKIP,
    PlayInputs,
    ShowPlayground,
    play,
    sides,
    take_prompt,
)
from ui.tabs.prompts import counted, show_preview, take_upload
from ui.tabs.start_bar import Starter, findings
from ui.tabs.workbench import pasted, probes, tried


def rollout(text: str) -> Rollout:
    return Rollout(Completion(text, "stop", 3), {text: 1.0}, 1.0, 0.5)


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
        sides(Record(sides=[Record(step=0, rollouts=[rollout(payload)])])),
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
    service = FakeService(
        Record(
            sides=[
                Record(step=0, rollouts=[rollout("a")]),
                Record(step=20, rollouts=[rollout("b")]),
            ]
        )
    )
    page = play(views, service, PlayInputs(run_id, "Q: 1+1=?", "2", 0, 20, 4, "0.5"))
    assert service.asked == [("play", (run_id, PlayRequest("Q: 1+1=?", "2", [0, 20], 4, 0.5)), {})]
    assert page.index("before training") < page.index("after step 20")
    assert "mean reward 1.000" in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": "nosuch"}, "no run yet"),
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
        "run": record_run(store),
        "text": "Q",
        "answer": "",
        "left": 0,
        "right": 0,
        "num": 1,
        "temperature": "1",
        **change,
    }
    service = FakeService("never")
    assert says in play(views, service, PlayInputs(**given))
    assert service.asked == []


def test_an_error_of_the_service_becomes_one_line(views, store):
    run_id = record_run(store)
    service = FakeService(StudioError("the checkpoint <b> is damaged"))
    assert "&lt;b&gt; is damaged" in play(views, service, PlayInputs(run_id, "Q", "", 0, 0, 1, "1"))
    assert "&lt;b&gt; is damaged" in take_prompt(views, service, run_id, "0")[3]
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
    assert take_prompt(views, service, run_id, "4") == ["Q: 1+1=?", "2", "5", ""]
    assert service.asked == [("run_prompt", (run_id, 4), {})]
    assert take_prompt(views, service, run_id, "-1; DROP")[2] == "1"


def test_the_states_offered_follow_the_run_and_keep_the_choice(views, store, tmp_path):
    from grpo_core.store import Recorder
    from grpo_core.types import Checkpointed

    run_id, show = record_run(store), ShowPlayground(views)
    first = show(run_id, "{}")
    assert "no saved state yet" in first[0]
    with Recorder(store, run_id) as record:
        for step in (20, 40):
            record(Checkpointed(step, str(tmp_path / f"step-{step}"), 1, "0" * 64))
    about, left, right, seen = show(run_id, "{}")
    assert "2 saved states" in about
    assert right["choices"] == [
        ("before training", 0),
        ("after step 20", 20),
        ("after step 40", 40),
    ]
    assert (left["value"], right["value"]) == (0, 40)
    assert show(run_id, seen) == [SKIP] * 4
    with Recorder(store, run_id) as record:
        record(Checkpointed(60, str(tmp_path / "step-60"), 1, "0" * 64))
    assert "value" not in show(run_id, seen)[2]


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
