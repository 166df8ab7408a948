"""What-if: the run's own settings reproduce the stored numbers; others give hand-computed ones."""

from __future__ import annotations

import math

import pytest
import torch
from golden import config

from grpo_core.analysis import what_if as whatif
from grpo_core.analysis.token_loss import loss_context, share_of_gradient, token_terms
from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.learner.aggregation import LossNormalizer
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import prepare
from grpo_core.store import Recorder
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout, RunStatus

LENGTH_AND_LANGUAGE = {
    "rubric.name": "custom",
    "rubric.criteria": [
        {"name": "length", "check": "length", "weight": 1.0, "params": {"min_tokens": 8}},
        {"name": "language", "check": "language", "weight": 1.0},
    ],
    "train.learning_rate": 0.01,
}


def stored(store, scores, rewards, advantages, **fields):
    """One group of a run, as given."""
    run_id = store.create_run(config(**fields), "golden", status=RunStatus.FINISHED)
    rows = tuple(
        Rollout(Completion("x", "stop", 5), dict(zip(("accuracy", "format"), s, strict=True)), r, a)
        for s, r, a in zip(scores, rewards, advantages, strict=True)
    )
    with Recorder(store, run_id) as record:
        record(
            GroupsScored(1, (Group(Prompt("p", "Q", "1", "sums"), rows, None, None, "healthy"),))
        )
    return run_id, store.group_ids(run_id, 1)[0]


def trained(store, fields):
    """A finished run with these settings."""
    settings = prepare(parse(nest(fields)))
    run_id = store.create_run(settings, "tiny")
    assert execute(store, Job(run_id, settings, RunControl()), train) == "finished"
    return run_id, settings


def ask(store, run_id, weights=None, **fields):
    return whatif.what_if(
        store, run_id, whatif.settings(store.run(run_id).config, weights, **fields)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rubric.gate": True, "algorithm.advantage": "batch_std"},
        {"rubric.scale": True, "rubric.clip_high": 1.5},
        {"algorithm.advantage": "per_criterion", "algorithm.grouping": "batch"},
    ],
)
def test_the_runs_own_settings_reproduce_the_stored_values(store, tiny_settings, fields):
    run_id, settings = trained(store, tiny_settings | {"rubric.name": "answer"} | fields)
    answer = ask(store, run_id)
    assert len(answer.rollouts) == 3 * 2 * 4
    assert [(c.reward, c.advantage) for c in answer.rollouts] == [
        (c.reward_then, c.advantage_then) for c in answer.rollouts
    ]
    assert (answer.flips, answer.largest_change) == (0, 0.0)
    group = answer.rollouts[-1].group_id
    assert [c for c in answer.rollouts if c.group_id == group] == list(
        whatif.what_if(store, run_id, settings, group).rollouts
    )


def test_first_golden_group_without_the_std(store):
    # rewards 1.2, .2, .1, .1: mean .4. group_mean: .8, -.2, -.3, -.3
    run_id, _ = stored(
        store, [(1, 1), (0, 1), (0, 0.5), (0, 0.5)], [1.2, 0.2, 0.1, 0.1], [1.5, -0.4, -0.6, -0.6]
    )
    then = ask(store, run_id, **{"algorithm.advantage": "group_mean"})
    assert [c.advantage_then for c in then.rollouts] == pytest.approx([0.8, -0.2, -0.3, -0.3])


def test_second_golden_group_with_another_weight_flips_a_sign(store):
    # format ×2 instead of ×.2: rewards 1, 2, 0 -> mean 1, sample std 1.
    # A = 0/1.0001, 1/1.0001, -1/1.0001
    run_id, _ = stored(store, [(1, 0), (0, 1), (0, 0)], [1.0, 0.2, 0.0], [1.155, -0.378, -0.777])
    then = ask(store, run_id, {"format": 2.0})
    assert [c.reward_then for c in then.rollouts] == [1.0, 2.0, 0.0]
    assert [c.advantage_then for c in then.rollouts] == pytest.approx(
        [0.0, 1 / 1.0001, -1 / 1.0001]
    )
    # -.378 -> +1 is a flip; 1.155 -> 0 is not
    assert [c.flips for c in then.rollouts] == [False, True, False]


def test_golden_group_3_the_gate_removes_a_phantom_and_a_clip_flattens(store):
    # nobody right; format 1, .5: rewards .2, .1 -> ±.7066 = .05/(.0707107 + 1e-4)
    a = 0.05 / (math.sqrt(0.005) + 1e-4)
    run_id, group_id = stored(store, [(0, 1), (0, 0.5)], [0.2, 0.1], [a, -a])
    assert ask(store, run_id).largest_change < 1e-12
    gated = ask(store, run_id, **{"rubric.gate": True})
    assert [c.advantage_then for c in gated.rollouts] == [0.0, 0.0]
    assert (gated.tied, gated.tied_then) == (0.0, 1.0)
    clipped = ask(store, run_id, **{"rubric.clip_high": 0.1})
    assert [c.advantage_then for c in clipped.rollouts] == [0.0, 0.0]
    same = whatif.what_if(store, run_id, whatif.settings(store.run(run_id).config), group_id)
    assert [c.advantage_then for c in same.rollouts] == pytest.approx([a, -a])


def test_a_change_that_needs_new_samples_is_refused(store):
    run_id, _ = stored(store, [(1, 1), (0, 1)], [1.2, 0.2], [0.7, -0.7])
    with pytest.raises(InvalidConfig, match="critic"):
        ask(store, run_id, **{"algorithm.advantage": "value"})
    with pytest.raises(InvalidConfig, match="all weights are 0"):
        ask(store, run_id, {"accuracy": 0.0, "format": 0.0})


# ---- the tokens of a step --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"algorithm.kl_coef": 0.5},
        {
            "algorithm.aggregation": "sequence_mean",
            "algorithm.kl_coef": 0.1,
            "algorithm.kl_estimator": "k2",
        },
        {"algorithm.aggregation": "constant", "algorithm.entropy_coef": 0.01},
        {"algorithm.objective": "cispo", "algorithm.mask_truncated": True},
    ],
)
def test_the_token_terms_add_up_to_the_steps_recorded_loss(store, tiny_settings, fields):
    run_id, settings = trained(store, tiny_settings | LENGTH_AND_LANGUAGE | fields)
    for step in (1, 2, 3):
        context, total = loss_context(store, run_id, step, settings), 0.0
        for row in store.scored(run_id, step, step):
            terms = token_terms(store.token_row(row[5]), row[9], row[12], context)
            total += sum(terms.term) if terms else 0.0
        assert total == pytest.approx(store.steps(run_id)[step - 1]["loss"], abs=1e-5)


def test_another_kl_coefficient_changes_the_loss_but_no_advantage(store, tiny_settings):
    fields = tiny_settings | LENGTH_AND_LANGUAGE | {"algorithm.kl_coef": 0.5}
    run_id, settings = trained(store, fields)
    recorded = store.steps(run_id)[2]
    assert recorded["kl"] > 1e-3  # else KL has no weight to change
    at = {coef: pulls(store, run_id, settings, coef) for coef in (0.5, 0.1, 0.0)}
    # loss = rest + 0.5 · KL. Both are means over the step's tokens, so 0.1 gives 0.4 · KL less.
    assert sum(p.loss for p in at[0.1]) == pytest.approx(recorded["loss"], abs=1e-5)
    assert sum(p.loss_then for p in at[0.1]) == pytest.approx(
        recorded["loss"] - 0.4 * recorded["kl"], abs=1e-5
    )
    assert [(p.loss_then, p.turned) for p in at[0.5]] == [(p.loss, 0) for p in at[0.5]]
    assert [p.share for p in at[0.0]] == [0.0] * len(at[0.0])
    assert all(p.share > 0 for p in at[0.1])
    assert ask(store, run_id, **{"algorithm.kl_coef": 0.1}).largest_change == 0.0


def pulls(store, run_id, settings, coef):
    """The KL pull of every group of step 3."""
    groups = store.group_ids(run_id, 3)
    measured = [whatif.kl_pull(store, run_id, group, settings, coef) for group in groups]
    assert None not in measured
    return [pull for pull in measured if pull is not None]


def test_a_group_without_recorded_tokens_has_no_kl_pull(store):
    run_id, group = stored(store, [(1, 1), (0, 1)], [1.2, 0.2], [0.707, -0.707])
    assert whatif.kl_pull(store, run_id, group, config(), 0.1) is None


def test_a_tokens_gradient_and_clip_state_are_those_of_the_loss(store):
    # two updates; in the second the ratios are e^.5 = 1.65 (clipped at 1.2 with A > 0) and e^-.1
    from array import array

    from grpo_core.analysis.token_loss import LossContext
    from grpo_core.store import TokenRow

    settings = config(**{"algorithm.kl_coef": 0.1})
    row = TokenRow(
        1,
        array("i", [5, 6]),
        (b"a", b"b"),
        None,
        array("f", [-1.0, -1.0, -0.5, -1.1]),
        array("f", [-0.7, -0.9]),
        array("f", [0.3, 0.2, 0.1, 0.4]),
    )
    terms = token_terms(row, 0.8, "stop", LossContext(settings, 4, 10, 0.1, 0.0))
    new = torch.tensor([[-0.5, -1.1]], dtype=torch.float64, requires_grad=True)
    there = torch.ones(1, 2, dtype=torch.bool)
    x = Tokens(
        new,
        torch.tensor([[-1.0, -1.0]], dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
        there,
        there,
        torch.tensor([[0.8]], dtype=torch.float64),
        ref_logprobs=torch.tensor([[-0.7, -0.9]], dtype=torch.float64),
    )
    loss = loss_of(x, settings.algorithm, Coefficients(0.1, 0.0), LossNormalizer(4, 10, 48)).total
    loss.backward()
    assert terms is not None
    assert new.grad is not None
    assert sum(terms.term) == pytest.approx(loss.item(), abs=1e-6)
    assert terms.gradient == pytest.approx(new.grad[0].tolist(), abs=1e-6)
    assert terms.clipped == [True, False]
    assert terms.ratio == pytest.approx([math.exp(0.5), math.exp(-0.1)], abs=1e-6)
    assert terms.entropy == pytest.approx([0.1, 0.4], abs=1e-6)


def test_shares_of_the_gradient_follow_the_aggregation_and_leave_masked_rows_out():
    rows = [(1.0, 10, "stop"), (-1.0, 30, "stop"), (2.0, 20, "length")]
    # per token: 10, 30, 40 of 80; per row: 1, 1, 2 of 4; masked: 10, 30 of 40
    assert share_of_gradient(rows, {"algorithm": {"aggregation": "token_mean"}}) == [
        0.125,
        0.375,
        0.5,
    ]
    assert share_of_gradient(rows, {"algorithm": {"aggregation": "sequence_mean"}}) == [
        0.25,
        0.25,
        0.5,
    ]
    assert share_of_gradient(
        rows, {"algorithm": {"aggregation": "token_mean", "mask_truncated": True}}
    ) == [0.25, 0.75, 0.0]
    assert share_of_gradient([(0.0, 5, "stop")], {}) == [0.0]


def test_a_stored_advantage_that_contradicts_the_scores_is_an_error(store):
    from ui.tabs.inspect_group import mismatch

    # the advantages follow as ±.5/(.7071 + 1e-4) = ±.707
    run_id, _ = stored(store, [(1, 1), (0, 1)], [1.2, 0.2], [0.9, -0.9])
    shown = mismatch(ask(store, run_id))
    assert "2 of 2 completions do not have the advantage" in shown
    assert "A +0.900000, recomputed 1.2, +0.707007" in shown
