"""The Playground, the workbench and the set-up's questions, with a stand-in desk: what is asked, refused and shown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Record

import pytest
from recorded import HOSTILE, FakeDesk, record_run

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.types import Completion, Prompt, Rollout
from ui.tabs import setup
from ui.tabs.model import model_card, show_model
from ui.tabs.playground import SKIP, ShowPlayground, play, sides, take_prompt
from ui.tabs.prompts import counted, show_preview, take_upload
from ui.tabs.workbench import findings, pasted, probes, tried


def rollout(text: str) -> Rollout:
    return Rollout(Completion(text, "stop", 3), {text: 1.0}, 1.0, 0.5)


@pytest.mark.parametrize("payload", HOSTILE)
def test_whatever_a_model_a_file_or_a_grader_wrote_is_shown_as_text(payload):
    preview = Record(
        prompts=[Record(text=payload, num_tokens=1, heldout=False, answer=payload)],
        chat_template=True,
        context=1,
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
        show_preview(FakeDesk(preview), setup._defaults()),
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


def test_both_sides_are_asked_for_at_once_with_what_stands_in_the_fields(views, store):
    run_id = record_run(store)
    desk = FakeDesk(
        Record(
            sides=[
                Record(step=0, rollouts=[rollout("a")]),
                Record(step=20, rollouts=[rollout("b")]),
            ]
        )
    )
    page = play(views, desk, run_id, "Q: 1+1=?", "2", 0, 20, 4, "0.5")
    assert desk.asked == [("play", (run_id, "Q: 1+1=?", "2", [0, 20], 4, 0.5), {})]
    assert page.index("before training") < page.index("after step 20")
    assert "mean reward 1.000" in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run_id": "nosuch"}, "no run yet"),
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
def test_what_cannot_be_answered_is_said_and_the_desk_not_asked(views, store, change, says):
    given = {
        "run_id": record_run(store),
        "text": "Q",
        "answer": "",
        "left": 0,
        "right": 0,
        "num": 1,
        "temperature": "1",
        **change,
    }
    desk = FakeDesk("never")
    assert says in play(views, desk, *given.values())
    assert desk.asked == []


def test_an_error_of_the_desk_becomes_one_line(views, store):
    run_id = record_run(store)
    desk = FakeDesk(StudioError("the checkpoint <b> is damaged"))
    assert "&lt;b&gt; is damaged" in play(views, desk, run_id, "Q", "", 0, 0, 1, "1")
    assert "&lt;b&gt; is damaged" in take_prompt(views, desk, run_id, "0")[3]
    wrong = FakeDesk(
        InvalidConfig([FieldProblem("model.name", "<x>", "no such <model>", "Choose another.")])
    )
    for page in (show_model(wrong, setup._defaults()), show_preview(wrong, setup._defaults())):
        assert "&lt;model&gt;" in page


def test_held_out_prompts_are_taken_one_after_the_other(views, store):
    run_id, desk = record_run(store), FakeDesk(Prompt("p", "Q: 1+1=?", "2", "sums"))
    assert take_prompt(views, desk, run_id, "4") == ["Q: 1+1=?", "2", "5", ""]
    assert desk.asked == [("run_prompt", (run_id, 4), {})]
    assert take_prompt(views, desk, run_id, "-1; DROP")[2] == "1"


def test_the_states_to_choose_from_follow_the_run_in_view_and_new_ones_leave_the_choice_alone(
    views, store, tmp_path
):
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


def test_an_upload_that_is_no_prompt_file_changes_nothing_and_a_good_one_stays(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.exe").write_text("MZ")
    unchanged, said = take_upload(str(tmp_path / "x.exe"))
    assert unchanged == SKIP
    assert 'class="problem"' in said
    (tmp_path / "my prompts.csv").write_text("question,answer\n1+1?,2\n")
    kept, _ = take_upload(str(tmp_path / "my prompts.csv"))
    (tmp_path / "my prompts.csv").unlink()
    assert "1+1?" in Path(kept).read_text()
    assert "/my-prompts-" in kept


def test_what_preflight_found_holds_a_start_back_until_a_person_answers(views, runs):
    from recorded import FakeDesk

    from ui.tabs.setup import _defaults
    from ui.tabs.train import held_back

    desk = FakeDesk()
    assert held_back(desk, _defaults(), False) == ""
    desk.refuses = (
        "Preflight would stop this run. Rubric: <i> Null. Mend it, or choose to start anyway."
    )
    held = held_back(desk, _defaults(), False)
    assert "<b>Preflight would stop this run.</b>" in held
    assert "&lt;i&gt;" in held
    assert held_back(desk, _defaults(), True) == ""
