"""The form: every field has a control, input is kept, and problems are shown beside it."""

from __future__ import annotations

import json

import pytest
from recorded import HOSTILE

from grpo_core.config import PRESETS, RunConfig, flatten, nest, parse, with_preset
from grpo_core.rubric import PRESETS as RUBRICS
from grpo_core.rubric import resolve_rubric
from ui.components import form, form_help
from ui.components.form_uses import unused
from ui.tabs import rubric, setup
from ui.tabs.algorithm import choose_preset
from ui.tabs.form_fields import default_values
from ui.tabs.score_text import score_text
from ui.tabs.start_from import fill


def values(**typed) -> list:
    """The form's first values with some replaced; a__b means a.b."""
    typed = {k.replace("__", "."): v for k, v in typed.items()}
    assert set(typed) <= set(form.NAMES)
    return [typed.get(n, default) for n, default in zip(form.NAMES, default_values(), strict=True)]


def test_the_untouched_form_is_the_default_run_with_its_rubric_written_out():
    config, problems = form.read(values())
    assert problems == []
    default = RunConfig()
    assert config == default.model_copy(update={"rubric": resolve_rubric(default.rubric)})


def test_the_name_of_a_prompt_file_is_said_first():
    def said(path: str) -> str:
        return form_help.notes(values(task__name="file", task__path=path))["task.path"]

    assert '<p class="help">The file <code>sums.csv</code>. A CSV' in said("/a/long/path/sums.csv")
    for path in ("", "sums.csv", "openai/gsm8k"):
        assert '<p class="help">A CSV' in said(path)


def test_every_configuration_field_has_a_control_a_label_and_help():
    assert set(form.NAMES) == set(flatten(RunConfig()))
    placed = {
        "model.name",
        "task.name",
        "rubric.name",
        form.CRITERIA,
        "algorithm.preset",
        *form.MODEL,
        *form.GYM,
        *form.PROMPTS,
        *form.HELDOUT,
        *form.ENVIRONMENT,
        *form.REWARD,
        *form.ALGORITHM,
        *form.NUMBERS,
        *form.EVALUATION,
        *form.SAVING,
        *form.OPTIMISER,
        *form.SERVER,
    }
    assert placed == set(form.NAMES)
    notes = form_help.notes(values())
    assert all(len(notes[n]) > 25 and form.label(n) for n in form.NAMES if n != form.CRITERIA)


def test_the_labels_that_tests_and_scripts_rely_on():
    labels = {form.label(n) for n in form.NAMES}
    assert {
        "Model",
        "Task",
        "Rubric",
        "Algorithm",
        "Steps",
        "Prompts per step",
        "Group size",
        "Max new tokens",
        "Learning rate",
        "Seed",
    } <= labels


@pytest.mark.parametrize(
    ("field", "typed", "says"),
    [
        ("train.group_size", 1, "at least 2"),
        ("train.steps", None, "must not be empty"),
        ("train.steps", 2.5, "whole number"),
        ("train.learning_rate", "abc", "number"),
        ("train.temperature", "", "must not be empty"),
        ("train.temperature", "nan", "finite"),
        ("algorithm.clip_eps_low", "1,5", "number"),
        ("task.name", "nosuch", "no such task"),
        ("algorithm.preset", "nosuch", "no such preset"),
        ("algorithm.advantage", "x", "group_std"),
        ("model.name", "", "must not be empty"),
        ("train.seed", -1, "at least 0"),
    ],
)
def test_wrong_input_is_answered_under_its_own_field_with_the_way_out(field, typed, says):
    config, problems = form.read(values(**{field: typed}))
    assert config is None
    said = form_help.messages(problems)
    assert list(said) == [field]
    assert says in said[field].lower()
    assert form.label(field) in form_help.summary(problems)


@pytest.mark.parametrize(
    "typed", [None, [], {}, "x", 3, True, float("inf"), "9" * 400, [1, 2], "\ud800"]
)
@pytest.mark.parametrize("field", form.NAMES)
def test_any_browser_input_is_answered_without_a_traceback(field, typed):
    answers = setup.check(*values(**{field: typed}), "some text")
    assert (
        len(answers) == len(form.NAMES) + 4
    )  # a line for every field, the summary, the cards, the objective, the scores


def test_numbers_are_read_as_they_were_typed():
    config, _ = form.read(
        values(train__learning_rate=" 1e-4 ", algorithm__kl_coef="0", train__steps=7.0)
    )
    assert (config.train.learning_rate, config.algorithm.kl_coef, config.train.steps) == (
        1e-4,
        0.0,
        7,
    )
    assert form.read(values(train__learning_rate=""))[0].train.learning_rate is None
    sizes = [form.read(values(task__heldout_size=n))[0].task.heldout_size for n in (None, "", 0, 7)]
    assert sizes == [None, None, 0, 7]


@pytest.mark.parametrize("payload", HOSTILE)
def test_typed_values_come_back_in_messages_as_text(payload):
    said = "".join(
        setup.check(*values(model__name=payload, task__name=payload, rubric__name=payload), payload)
    )
    assert payload not in said or "<" not in payload


# ---- the rubric table ------------------------------------------------------------------------


def rows(*criteria) -> list[dict]:
    return [
        {"name": "a", "check": "accuracy", "weight": "1", "params": "{}", "outcome": True, **c}
        for c in criteria
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"params": "{oops"}, "not a JSON object"),
        ({"params": "[1]"}, "not a JSON object"),
        ({"weight": "heavy"}, "number"),
        ({"weight": "-1"}, "at least 0"),
        ({"check": "nosuch"}, "no such check"),
        ({"name": ""}, "must not be empty"),
        ({"name": "a b"}, "only letters"),
        ({"weight": "0"}, "all weights are 0"),
        (
            {"check": "length", "params": '{"min_tokens": 9, "max_tokens": 3}'},
            "min_tokens 9 is above max_tokens 3",
        ),
        ({"params": '{"x": 1}'}, "Extra inputs"),
    ],
)
def test_a_wrong_criterion_is_answered_under_the_table(row, says):
    config, problems = form.read(values(rubric__criteria=rows(row)))
    assert config is None
    said = form_help.messages(problems)
    assert set(said) == {form.CRITERIA}
    assert says.lower() in said[form.CRITERIA].lower()


def test_a_message_says_which_criterion_it_means():
    _, problems = form.read(values(rubric__criteria=rows({}, {"name": "b", "weight": "x"})))
    assert "Criterion 2, weight:" in form_help.messages(problems)[form.CRITERIA]


@pytest.mark.parametrize("name", RUBRICS)
def test_a_preset_can_be_laid_out_as_rows_and_read_back(name):
    config, problems = form.read(values(rubric__name=name, rubric__criteria=form.preset_rows(name)))
    assert problems == []
    assert config.rubric.criteria == RUBRICS[name]
    assert form.rubric_name(form.preset_rows(name)) == name


def test_an_edited_preset_is_called_custom():
    edited = form.preset_rows("answer")
    edited[0]["weight"] = "2"
    assert form.rubric_name(edited) == "custom"


def test_a_saved_rubric_can_be_loaded_and_a_wrong_file_changes_nothing(tmp_path):
    good, bad = tmp_path / "r.json", tmp_path / "bad.json"
    good.write_text(
        json.dumps(
            {
                "criteria": [
                    {"name": "a", "check": "length", "weight": 0.5, "params": {"max_tokens": 9}}
                ]
            }
        )
    )
    loaded, name, said = rubric.load_rubric(str(good))
    assert loaded == [
        {
            "name": "a",
            "check": "length",
            "weight": "0.5",
            "params": '{"max_tokens": 9}',
            "outcome": False,
        }
    ]
    assert (name, said) == ("custom", "")
    for content in ("not json", "{}", "[]", '{"criteria": [1]}', '"x"'):
        bad.write_text(content)
        unchanged, _, said = rubric.load_rubric(str(bad))
        assert unchanged == rubric.SKIP
        assert 'class="problem"' in said


def test_the_score_box_answers_with_each_criterion_and_the_reward():
    from grpo_core.tasks import TASKS, train_prompts

    prompt = train_prompts(TASKS["sums"], 0, 1, 1)[0]
    # answer preset: accuracy 1·1 + format 1·0.2 + language 1·0.1 + reasoning 0·0 = 1.3
    said = score_text(f"<answer>{prompt.answer}</answer>", values())
    assert "<b>1.300</b>" in said
    assert all(name in said for name in ("accuracy", "format", "language", "reasoning"))
    assert score_text("", values()) == ""
    assert "Fix the rubric" in score_text("x", values(rubric__criteria=rows({"params": "{"})))


# ---- the algorithm ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_fields_and_the_rest_to_their_defaults(preset):
    shown = dict(zip(form.ALGORITHM, choose_preset(preset), strict=True))
    typed = {**dict(zip(form.NAMES, values(), strict=True)), **shown, "algorithm.preset": preset}
    config, problems = form.read([typed[n] for n in form.NAMES])
    assert problems == []
    expected = with_preset({}, preset)
    assert {k: v for k, v in flatten(config).items() if k in expected} == expected
    assert form_help.departures(typed) == []


def test_a_departure_from_the_preset_is_named():
    assert (
        "Changed from the preset: KL coefficient."
        in form_help.notes(values(algorithm__kl_coef="0.5"))["algorithm.preset"]
    )


def test_the_objective_is_printed_with_the_chosen_values_in_it():
    said = form_help.formula(
        values(
            algorithm__clip_eps_low="0.2",
            algorithm__clip_eps_high="0.28",
            algorithm__kl_coef="0.04",
        )
    )
    assert "A = (r − mean)/(std + 1e-4)" in said
    assert "L = −min(w·A, clip(w, 0.8, 1.28)·A) + 0.04·KL" in said
    assert "KL" not in form_help.formula(values(algorithm__kl_coef="0"))
    assert "−A·log p" in form_help.formula(values(algorithm__objective="reinforce"))
    assert "clip(w, ?, 1.2)" in form_help.formula(values(algorithm__clip_eps_low="x"))
    assert "(completions · 48)" in form_help.formula(
        values(algorithm__aggregation="constant", train__max_new_tokens=48)
    )


def test_a_judge_is_not_called_at_every_key():
    criteria = rows(
        {"name": "long", "check": "length", "params": '{"min_tokens": 1, "max_tokens": 99}'},
        {
            "name": "liked",
            "check": "judge",
            "outcome": False,
            "params": '{"url": "http://127.0.0.1:9/v1"}',
        },
    )
    said = score_text("some text", values(rubric__criteria=criteria))
    assert "not while you type" in said
    assert "could not be scored" not in said
    assert "<b>1.000</b>" in said  # the length alone


# ---- what the form hides, and what it copies -------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "shown", "hidden"),
    [
        ({}, "algorithm.clip_eps_low", "algorithm.cispo_cap"),
        ({"algorithm__objective": "cispo"}, "algorithm.cispo_cap", "algorithm.clip_eps_low"),
        ({"algorithm__objective": "spo"}, "algorithm.clip_eps_low", "algorithm.clip_delta"),
        ({"algorithm__advantage": "value"}, "algorithm.gae_lambda", "task.path"),
        ({"algorithm__kl_control": "hard"}, "algorithm.kl_target", "algorithm.kl_horizon"),
        ({"model__lora_rank": 8}, "model.lora_alpha", "model.revision"),
        ({}, "rollout.engine", "rollout.url"),
        ({"rollout__engine": "vllm"}, "rollout.url", "rollout.correction_max"),
        (
            {"rollout__engine": "vllm", "rollout__correction": "mask"},
            "rollout.correction_max",
            "rollout.max_turns",
        ),
        ({"task__name": "file", "task__path": "a.csv"}, "task.template", "task.split"),
        ({"task__name": "file", "task__path": "openai/gsm8k"}, "task.split", "model.lora_alpha"),
    ],
)
def test_a_field_without_effect_is_hidden(typed, shown, hidden):
    notes = form_help.notes(values(**typed))
    assert "unused" not in notes[shown]
    assert "unused" in notes[hidden]


def test_copied_settings_keep_every_value():
    settings = {
        "rubric.clip_low": -1.5,
        "train.learning_rate": 1.2345678e-5,
        "task.heldout_size": 7,
        "train.steps": 9,
    }
    *copied, _ = fill(flatten(parse(nest(settings))))
    config, problems = form.read(copied)
    assert problems == []
    assert {name: flatten(config)[name] for name in settings} == settings


def test_a_number_that_is_none_says_what_to_enter():
    _, problems = form.read(values(train__learning_rate="fast"))
    said = form_help.messages(problems)["train.learning_rate"]
    assert "Must be a number. Leave it empty, or try 1e-4" in said


def test_a_task_of_reasoning_gym_shows_an_example_and_its_own_fields():
    flat = {**form.DEFAULTS, "task.name": "reasoning_gym:chain_sum"}
    values = [form.shown(name, flat[name]) for name in form.NAMES]
    assert "Example: State the final answer" in form_help.notes(values)["task.name"]
    hidden = unused(dict(zip(form.NAMES, values, strict=True)))
    assert hidden.isdisjoint((*form.GYM, *form.GYM_PROMPTS))
    assert {"task.path", "task.template"} <= hidden
    labels = [label for label, name in form.CHOICES["task.name"] if name == flat["task.name"]]
    assert labels == ["chain_sum · reasoning-gym, arithmetic"]
