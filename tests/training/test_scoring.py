"""Why a run waits when too few completions could be scored."""

from __future__ import annotations

import pytest

from grpo_core.config import Criterion, RubricConfig
from grpo_core.rubric import Notes, build_rubric
from grpo_core.training.scoring import group, score_groups, too_many_unscored
from grpo_core.types import Completion, Prompt, Rollout


def waits(criteria: tuple[Criterion, ...], answer: str = "5", num_right: int = 0) -> str | None:
    """The message for two groups of four; `num_right` completions of each answer 5."""
    rubric = build_rubric(RubricConfig(criteria=criteria))
    prompts = [Prompt(p, "2+3?", answer, "file") for p in "pq"]
    texts = (["<answer>5</answer>"] * num_right + ["five"] * 4)[:4] * 2
    rollouts = [Rollout(Completion(text, "stop", 3)) for text in texts]
    groups, scored = score_groups(prompts, rollouts, rubric)
    return too_many_unscored([group(p, r, rubric) for p, r in groups], scored.notes)


def snippet(body: str) -> Criterion:
    code = f"def score(completion, prompt, answer, tokens):\n    {body}\n"
    return Criterion(name="mine", check="python", weight=1, params={"code": code})


def test_the_message_has_the_reason_its_count_and_its_line():
    assert waits((snippet("return 1 / 0"),)) == (
        "8 of 8 completions could not be scored (null: mine 8 times). "
        "First reason of mine (8 times): "
        "the snippet failed: line 2: ZeroDivisionError: division by zero. "
        "Once the cause is gone, or to go on without these scores, press Resume. "
        "To correct a criterion, press Stop and start a new run."
    )


def test_the_most_frequent_of_several_reasons_is_named():
    body = "return len(completion) / 0 if completion == 'five' else 'x'"
    said = waits((snippet(body),), num_right=1)
    assert said is not None
    assert "First reason of mine (6 times): the snippet failed: line 2: ZeroDivision" in said
    assert "(and 1 more)" in said


@pytest.mark.parametrize(
    ("criterion", "answer", "says"),
    [
        (Criterion(name="right", check="accuracy", weight=1), "", "prompts have no right answer"),
        (snippet("return None"), "5", "mine gave no reason"),
    ],
)
def test_a_check_that_gives_no_reason_is_named_too(criterion, answer, says):
    assert says in (waits((criterion,), answer) or "")


def test_a_run_goes_on_when_half_of_the_completions_are_scored():
    body = "return 1 / 0 if completion == 'five' else 1.0"
    assert waits((snippet(body),), num_right=2) is None
    assert waits((snippet(body),), num_right=1) is not None


def test_no_reason_is_lost_where_notes_are_missing():
    rubric = build_rubric(RubricConfig(criteria=(snippet("return None"),)))
    prompt = Prompt("p", "?", "5", "file")
    groups, _ = score_groups([prompt], [Rollout(Completion("x", "stop", 1))], rubric)
    compared = [group(p, r, rubric) for p, r in groups]
    assert "gave no reason" in (too_many_unscored(compared, {"other": Notes({"no": 1})}) or "")
