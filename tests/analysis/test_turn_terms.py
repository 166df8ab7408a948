"""Loss terms of a trajectory's tokens: those of observations take no part in anything."""

from __future__ import annotations

import math

import pytest
from acting_runs import record_acting_run

from grpo_core.analysis.token_loss import kl_measures, loss_context, token_terms
from grpo_core.analysis.walk import Walker
from grpo_core.analysis.walk_picture import token_ratios
from grpo_core.config import parse
from ui.render.turns import observed

D = 0.6 - 0.5  # log π − log π_ref of each own token in the fixture


@pytest.fixture
def first(store):
    """The run's id and its first group."""
    run_id = record_acting_run(store)
    return run_id, store.group(store.group_ids(run_id, 1)[0])


def test_terms_of_a_trajectory_equal_a_sum_over_its_own_tokens(store, first):
    run_id, group = first
    config = parse(store.run(run_id).config)
    context = loss_context(store, run_id, 1, config)
    num_tokens = sum(r.num_tokens for r in store.scored(run_id, 1, 1))
    assert context.num_tokens == num_tokens
    k3 = math.exp(-D) - 1 + D
    for r in group.rollouts:
        terms = token_terms(store.token_row(r.id), r.advantage, "stop", context)
        each = (-r.advantage + 0.02 * k3) / num_tokens  # every ratio is 1
        assert sum(terms.term) == pytest.approx(r.num_tokens * each, rel=1e-5)
        grey = observed(r.turns)
        for i in range(len(terms.term)):
            assert math.isnan(terms.ratio[i]) == math.isnan(terms.kl[i]) == (i in grey)
            assert (terms.gradient[i] == 0) == (terms.term[i] == 0) == (i in grey)
            assert not (terms.clipped[i] and i in grey)


def test_a_share_of_high_entropy_tokens_counts_own_tokens_only(store, first):
    run_id, _ = first
    config = parse(store.run(run_id).config)
    changed = config.algorithm.model_copy(update={"entropy_quantile": 0.5})
    config = config.model_copy(update={"algorithm": changed})
    context = loss_context(store, run_id, 1, config)
    # Every own token has the entropy 0.3, so all of them carry the policy term.
    assert context.entropy_threshold == pytest.approx(0.3)
    assert context.num_carrying == context.num_tokens


def test_kl_and_ratios_of_a_trajectory_are_means_over_own_tokens(store, first):
    run_id, group = first
    for r in group.rollouts:
        assert kl_measures(store.token_row(r.id))["k1"] == pytest.approx(D)
    walk = Walker(store, store.run(run_id), group).walk()
    assert [row.ratio_span for row in walk.rows] == [(1.0, 1.0)] * 4
    num_own = sum(r.num_tokens for r in group.rollouts)
    ratios, after = token_ratios(walk)
    assert (len(ratios), after) == (num_own, True)
    assert sum(len(row.ratios) for row in walk.rows) == num_own
