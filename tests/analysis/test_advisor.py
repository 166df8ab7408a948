"""The advisor names each fault on rows that show it, and not just below its threshold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from grpo_core.analysis.advisor import CODES, Facts, advise, assess
from grpo_core.analysis.advisor.advise import DIAGNOSES
from grpo_core.cli import main
from grpo_core.config import RunConfig
from grpo_core.rubric import resolve_rubric
from grpo_core.store import GroupRow, Recorder, RolloutRow, Source, Store
from grpo_core.types import (
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    Notice,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    Turn,
    TurnRole,
)

CONFIG = {
    "rubric": {
        "criteria": [
            {"name": "accuracy", "check": "accuracy", "weight": 1.0, "outcome": True},
            {"name": "format", "check": "format", "weight": 0.2},
        ]
    },
    "train": {
        "group_size": 4,
        "prompts_per_step": 8,
        "temperature": 1.0,
        "max_new_tokens": 48,
        "warmup_steps": 5,
        "learning_rate": None,
    },
    "algorithm": {"advantage": "group_std", "objective": "clip", "ref_every": 0},
}


def ramp(first, last, n):
    return [first + (last - first) * i / (n - 1) + (0.01 if i % 2 else -0.01) for i in range(n)]


def group(
    rewards, verdict="healthy", lengths=None, texts=None, finish="stop", number=1, scores=None
):
    lengths, centre = lengths or [10] * len(rewards), sum(rewards) / len(rewards)
    return GroupRow(
        number,
        "r",
        40,
        number,
        "p",
        "Q",
        "1",
        centre,
        0.5,
        verdict,
        tuple(
            RolloutRow(
                i,
                number,
                i,
                (texts or ["<answer>1</answer>"] * len(rewards))[i],
                finish,
                n,
                r,
                r - centre,
                (scores or [{"accuracy": float(r >= 1), "format": 1.0}] * 9)[i]
                if scores
                else {"accuracy": float(r >= 1), "format": 1.0},
                False,
            )
            for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))
        ),
    )


def facts(n=40, config=CONFIG, groups=None, error=None, metrics=None, **columns):
    """A run that learns: reward .5 -> 1.1, accuracy .3 -> .9, nothing else changes.

    columns: a list of n values, or one value for all steps.
    """
    usual = {
        "reward_mean": ramp(0.5, 1.1, n),
        "kl": ramp(0.011, 0.05, n),
        "tied_group_frac": 0.1,
        "tied_best_frac": 0.05,
        "tied_worst_frac": 0.05,
        "advantage_std": 0.9,
        "truncated_frac": 0.0,
        "entropy": ramp(0.5, 0.4, n),
        "unique_frac": 0.9,
        "completion_tokens_mean": 12.0,
        "loss": -0.01,
        "num_updates": 1,
        "learning_rate": 1e-4,
    }
    table = {k: v if isinstance(v, list) else [v] * n for k, v in {**usual, **columns}.items()}
    steps = [{"step": i + 1, **{k: v[i] for k, v in table.items()}} for i in range(n)]
    right = list(enumerate(ramp(0.3, 0.9, n), 1))
    return Facts(
        {**CONFIG, **config},
        steps,
        {"score/accuracy": right, **(metrics or {})},
        groups
        if groups is not None
        else [group([1.2, 0.2, 1.2, 0.2], number=i) for i in range(1, 21)],
        error,
    )


def flat(value, n=40):
    return [(i, value + (0.01 if i % 2 else -0.01)) for i in range(1, n + 1)]


def changed(section, **values):
    return {section: {**CONFIG[section], **values}}


def answered(error: str, tool: str = "calculate") -> Turn:
    return Turn(TurnRole.OBSERVATION, "…", 0, 1, tool, "{}", error, 0.1)


def calling(num_answered, num_failed, reason="ValueError: {i} is too large"):
    """Groups of four completions with a call each."""
    errors = [""] * num_answered + [reason.format(i=i) for i in range(num_failed)]
    groups = []
    for n in range(0, len(errors), 4):
        made = group([1.0, 0.0, 1.0, 0.0][: len(errors[n : n + 4])], number=100 + n)
        rollouts = [
            replace(r, turns=(answered(error),))
            for r, error in zip(made.rollouts, errors[n:], strict=False)
        ]
        groups.append(replace(made, rollouts=tuple(rollouts)))
    return groups


WATCHED = changed(
    "rubric",
    criteria=[
        {"name": "length", "check": "length", "weight": 1.0},
        {"name": "accuracy", "check": "accuracy", "weight": 0.0, "outcome": True},
    ],
)
LEARNT = changed(
    "rubric",
    criteria=[
        {"name": "liked", "check": "reward_model", "weight": 1.0},
        {"name": "accuracy", "check": "accuracy", "weight": 0.0, "outcome": True},
    ],
)
LIKED = {"score/liked": list(enumerate(ramp(0.4, 0.8, 40), 1))}
ALWAYS_WRONG = {"score/accuracy": [(i, 0.0) for i in range(1, 41)]}
TIED = [group([0.2] * 4, "all_wrong", number=i) for i in range(1, 21)]

# code -> (rows that show it, rows just short of it)
CASES = {
    "non_finite": (
        facts(error="NonFinite: loss nan, gradient norm 1.0"),
        facts(error="Out of memory"),
    ),
    "lr_too_high": (
        facts(reward_mean=[0.9] * 20 + [0.5] * 20, kl=[0.01] * 20 + [0.4] * 20),
        facts(reward_mean=[0.9] * 20 + [0.5] * 20, kl=[0.01] * 20 + [0.29] * 20),
    ),
    "lr_too_low": (
        facts(reward_mean=[0.5, 0.6] * 20, kl=1e-5),
        facts(reward_mean=[0.5, 0.6] * 20, kl=1e-4, metrics={"score/accuracy": flat(0.95)}),
    ),
    "truncation": (facts(truncated_frac=0.21), facts(truncated_frac=0.19)),
    "end_token": (
        facts(
            truncated_frac=0.95,
            groups=[group([0.2] * 4, texts=["<answer>1</answer> and so on"] * 4, finish="length")],
        ),
        facts(
            truncated_frac=0.95,
            groups=[
                group(
                    [0.2] * 4,
                    texts=["<answer>1</answer>", "so", "on", "<answer>1</answer> x"],
                    finish="length",
                )
            ],
        ),
    ),
    "flat_reward": (
        facts(
            advantage_std=0.0,
            metrics=ALWAYS_WRONG,
            groups=TIED,
        ),
        facts(advantage_std=[0.1] * 36 + [0.0] * 4),
    ),
    "hacking": (
        facts(metrics={"score/accuracy": flat(0.3)}, config=WATCHED, groups=[]),
        facts(config=WATCHED, groups=[]),
    ),
    "over_optimisation": (
        facts(metrics={**LIKED, "score/accuracy": flat(0.3)}, config=LEARNT, groups=[]),
        facts(metrics=LIKED, config=LEARNT, groups=[]),
    ),
    "phantom": (
        facts(
            groups=[group([0.1, 0.2, 0.1, 0.2], "phantom", number=i) for i in range(1, 7)]
        ),  # 6 of 6
        facts(
            groups=[group([0.1, 0.2, 0.1, 0.2], "phantom", number=i) for i in range(1, 7)]
            + [group([1.2, 0.2, 1.2, 0.2], number=i) for i in range(7, 21)]
        ),
    ),  # 6 of 20
    "dead_groups": (
        facts(
            tied_group_frac=0.5,
            tied_worst_frac=0.5,
            metrics={"score/accuracy": flat(0.2)},
            reward_mean=[0.4, 0.5] * 20,
        ),
        facts(
            tied_group_frac=0.49,
            tied_worst_frac=0.49,
            metrics={"score/accuracy": flat(0.95)},
            reward_mean=[1.1, 1.2] * 20,
        ),
    ),
    "kl_burst": (
        facts(kl=[0.0] + [0.02] * 29 + [0.3] + [0.02] * 9),
        facts(kl=[0.0] + [0.02] * 29 + [0.19] + [0.02] * 9),
    ),
    "entropy_collapse": (
        facts(
            entropy=ramp(0.5, 0.05, 40),
            unique_frac=ramp(0.9, 0.2, 40),
            metrics={"score/accuracy": flat(0.5)},
            reward_mean=[0.6, 0.7] * 20,
        ),
        facts(
            entropy=ramp(0.5, 0.05, 40),
            unique_frac=ramp(0.9, 0.2, 40),
            metrics={"score/accuracy": flat(0.95)},
            reward_mean=[1.1, 1.2] * 20,
        ),
    ),
    "length_drift": (
        facts(
            completion_tokens_mean=ramp(10, 30, 40),
            metrics={"score/accuracy": flat(0.5)},
            reward_mean=[0.6, 0.7] * 20,
            groups=[
                group([1.2, 0.2, 1.2, 0.2], lengths=[30, 10, 30, 10], number=i)
                for i in range(1, 21)
            ],
        ),
        facts(
            completion_tokens_mean=ramp(10, 30, 40),
            groups=[
                group([1.2, 0.2, 1.2, 0.2], lengths=[30, 10, 30, 10], number=i)
                for i in range(1, 21)
            ],
        ),
    ),
    "mute_criterion": (
        facts(
            groups=[
                group(
                    [1.0, 0.0, 1.0, 0.0],
                    scores=[{"accuracy": a, "format": 0.0} for a in (1.0, 0.0, 1.0, 0.0)],
                    number=i,
                )
                for i in range(1, 21)
            ]
        ),
        facts(
            groups=[
                group(
                    [1.2, 0.2, 1.0, 0.0],
                    scores=[
                        {"accuracy": a, "format": f}
                        for a, f in ((1.0, 1.0), (0.0, 0.5), (1.0, 0.0), (0.0, 0.0))
                    ],
                    number=i,
                )
                for i in range(1, 21)
            ]
        ),
    ),
    "tool_errors": (
        facts(tool_error_frac=0.31, groups=calling(12, 8)),  # 20 calls
        facts(tool_error_frac=0.29, groups=calling(12, 8)),
    ),
    "tool_unused": (
        facts(groups=[group([0.0] * 4, "no_call", number=i) for i in range(1, 11)]),
        facts(groups=[group([0.0] * 4, "no_call", number=i) for i in range(1, 11)] + calling(1, 0)),
    ),
    "noise": (
        facts(
            reward_mean=[0.5, 0.7] * 20,
            metrics={"score/accuracy": flat(0.5)},
            groups=[group([0.2 + 0.4 * (i % 2)] * 4, number=i) for i in range(1, 41)],
        ),
        facts(groups=[group([0.2 + 0.4 * (i % 2)] * 4, number=i) for i in range(1, 41)]),
    ),
}


CASES["disagreement"] = tuple(
    replace(
        facts(groups=[group([1, 0, 0, 1], verdict="disagrees")]),
        source=Source("TRL 1.16.0", "trl", "k", {}, disagreements=num),
    )
    for num in (1, 0)
)
DIAGNOSIS = {diagnose.__name__: diagnose for diagnose in DIAGNOSES}


def test_every_code_of_the_advisor_is_tested_here():
    assert set(CASES) == set(CODES)
    assert len(CODES) == 18


@pytest.mark.parametrize("code", CASES)
def test_a_fault_is_named_with_its_threshold_and_advice(code):
    diagnose = DIAGNOSIS[code]
    faulty, just_short = CASES[code]
    notice = diagnose(faulty)
    assert notice is not None
    assert notice.code == code
    assert notice.message
    assert notice.advice
    assert notice.evidence or code == "non_finite"
    assert code in [n.code for n in assess(faulty)]
    assert diagnose(just_short) is None


def test_a_healthy_run_has_no_notice_at_any_of_its_steps():
    for n in range(1, 41):
        whole = facts()
        seen = Facts(
            whole.config,
            whole.steps[:n],
            {k: v[:n] for k, v in whole.metrics.items()},
            whole.groups,
        )
        assert assess(seen) == []
    assert assess(Facts(CONFIG, [], {}, [])) == []


def test_a_solved_task_gets_no_notice_on_tied_groups():
    solved = facts(tied_group_frac=0.8, tied_best_frac=0.8)  # accuracy went from .3 to .9
    assert assess(solved) == []


def test_tied_groups_are_reported_with_chance_and_a_sufficient_group_size():
    # CoursIA #10603: p = .18, G = 2: .18² + .82² = .705; G = 8 gives .204
    tied = facts(
        config=changed("train", group_size=2),
        tied_group_frac=0.7,
        tied_worst_frac=0.65,
        tied_best_frac=0.05,
        metrics={"score/accuracy": [(i, 0.18) for i in range(1, 41)]},
    )
    notice = DIAGNOSIS["dead_groups"](tied)
    assert notice is not None
    assert notice.evidence["expected"] == 0.705
    assert "chance alone ties 70 %" in notice.message
    assert notice.advice == "Raise the group size: with 8 completions 20 % would tie."


def test_a_consequence_of_a_reported_fault_is_not_reported():
    wild = facts(
        reward_mean=[0.9] * 20 + [0.1] * 20,
        kl=[0.01] * 20 + [5.0] * 20,
        truncated_frac=0.6,
        groups=[group([0.1, 0.2, 0.1, 0.2], "phantom", number=i) for i in range(1, 21)],
    )
    assert DIAGNOSIS["truncation"](wild)
    assert DIAGNOSIS["phantom"](wild)
    assert [n.code for n in assess(wild)] == ["lr_too_high"]


@pytest.mark.parametrize(
    ("settings", "effect"),
    [
        ({"kl_coef": 0.0, "entropy_coef": 0.0}, ", so they have no gradient."),
        ({"kl_coef": 0.02}, ", so their only gradient is that of KL."),
        ({"entropy_coef": 0.1}, ", so their only gradient is that of the entropy bonus."),
        ({"grouping": "batch"}, "."),
        ({"advantage": "value"}, "."),
    ],
)
def test_a_tie_has_no_gradient_only_without_kl_and_entropy_terms(settings, effect):
    notice = DIAGNOSIS["dead_groups"](
        facts(config=changed("algorithm", **settings), tied_group_frac=0.6, metrics=ALWAYS_WRONG)
    )
    assert notice is not None
    assert notice.message.startswith(
        "60 % of the groups are tied (5 % all right, 5 % all wrong): "
        f"all their rewards are equal{effect}"
    )


# ---- in the store and on the command line ----------------------------------------------------


@pytest.fixture
def cut_short(tmp_path):
    """A recorded run in which every completion is cut."""
    store = Store(tmp_path / "runs.sqlite")
    config = RunConfig()
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(config, "cut")
    siblings = tuple(
        Rollout(Completion("so", "length", 48), {"accuracy": 0.0}, 0.1 * i, i - 0.5)
        for i in range(2)
    )
    with Recorder(store, run_id) as record:
        record(Evaluated(0, {"heldout/accuracy": 0.4}))
        for step in range(1, 6):
            record(
                GroupsScored(
                    step, (Group(Prompt("p", "Q", "1", "sums"), siblings, 0.05, 0.07, "truncated"),)
                )
            )
            record(
                StepCompleted(
                    step,
                    StepMetrics(
                        reward_mean=0.05, truncated_frac=1.0, kl=0.0, num_updates=1, loss=0.1
                    ),
                    {"score/accuracy": 0.0},
                )
            )
    store.set_status(run_id, RunStatus.FINISHED)
    yield store, run_id
    store.close()


def test_notices_are_written_down_replaced_and_stay_dismissed(cut_short):
    store, run_id = cut_short
    notices = advise(store, run_id)
    assert [n.code for n in notices] == ["truncation"]
    assert store.group_ref_of(notices[0].group_id) == (5, 0)
    other = Notice("noise", "info", 1, "gone soon")
    store.set_alerts(run_id, [other, *notices])
    store.set_alerts(run_id, notices)
    assert store.alerts(run_id) == notices
    before = store.cursor(run_id)
    store.dismiss(run_id, notices[0])
    assert store.cursor(run_id) != before  # other tabs see it go
    store.set_alerts(run_id, notices)
    assert store.alerts(run_id) == []
    assert store.dismissed(run_id) == {"truncation"}


def test_the_command_line_prints_notices_as_text_and_as_json(cut_short, capsys):
    store, run_id = cut_short
    assert main(["advise", "last", "--db", str(store.path), "--json"]) == 0
    (notice,) = json.loads(capsys.readouterr().out)
    assert {"code", "severity", "step", "message", "evidence", "group_id"} <= set(notice)
    assert (notice["code"], notice["severity"], notice["step"]) == ("truncation", "warning", 5)
    assert main(["advise", run_id, "--db", str(store.path)]) == 0
    assert (
        "truncation, step 5: 100 % of the completions are cut at 48 tokens"
        in capsys.readouterr().out
    )


def test_tool_errors_name_the_tool_and_the_commonest_reason():
    found = DIAGNOSIS["tool_errors"](facts(tool_error_frac=0.4, groups=calling(12, 8)))
    assert found is not None
    assert found.message == (
        "40 % of the tool calls are answered with an error. Most often it is calculate, 8 of 8 "
        "times: ValueError: 0 is too large."
    )
    assert (found.evidence["calls"], found.evidence["failed"]) == (20, 8)
    assert found.group_id == 112  # the first with an error
    few = facts(tool_error_frac=0.4, groups=calling(11, 8))
    assert DIAGNOSIS["tool_errors"](few) is None


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("it took longer than 5 s", "Time for a tool"),
        ("the call cannot be read: it is not JSON (char {i})", "how a call is written"),
        ("there is no tool 'x{i}'. There are: calculate", "how a call is written"),
        ("line 3: KeyError: {i}", "The tool itself fails"),
    ],
)
def test_the_advice_on_tool_errors_follows_their_reason(reason, advice):
    found = DIAGNOSIS["tool_errors"](facts(tool_error_frac=0.9, groups=calling(0, 20, reason)))
    assert found is not None
    assert advice in found.advice


@pytest.mark.parametrize(("agrees", "named"), [(5, True), (8, False)])
def test_fresh_judgements_against_the_reward_model_are_evidence(agrees, named):
    # Wilson's upper bound for 5 of 20 is 0.469, for 8 of 20 it is 0.613.
    judged = [({"liked": float(i < agrees)}, {"liked": 0.5}) for i in range(20)]
    found = assess(replace(facts(metrics=LIKED, config=LEARNT, groups=[]), judged=judged))
    assert ("over_optimisation" in [n.code for n in found]) is named


def test_a_reward_model_that_stays_as_it_was_is_no_over_optimisation():
    stays = facts(
        metrics={"score/liked": flat(0.8), "score/accuracy": flat(0.3)}, config=LEARNT, groups=[]
    )
    assert "over_optimisation" not in [n.code for n in assess(stays)]
