"""Several updates on a batch, moving coefficients, and skipped groups."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from tiny_lm import ROWS, A, TinyLM, make_batch, make_learner

from grpo_core.config import AlgorithmConfig
from grpo_core.learner import OBJECTIVES, Batch, token_logprobs
from grpo_core.learner.controls import KL_CONTROLS, CoefficientState
from grpo_core.learner.packing import ANY_SIZE

NO_KL = {"kl_coef": 0.0}


class Counting(TinyLM):
    """Counts the forward passes with a gradient, and those without."""

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.with_gradient = self.without = 0

    def forward(self, input_ids, attention_mask):
        if torch.is_grad_enabled():
            self.with_gradient += 1
        else:
            self.without += 1
        return super().forward(input_ids, attention_mask)


def flat_gradient(learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.model.parameters()])


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


# ---- several updates -----------------------------------------------------------------------------


def test_the_first_update_needs_no_forward_for_its_old_logprobs():
    model = Counting()
    learner = make_learner(model, Counting(1))
    learner.packing.exact_to = ANY_SIZE
    learner.update(make_batch(), A)
    assert (model.with_gradient, model.without) == (1, 0)


def test_a_second_update_takes_its_ratio_against_the_sampling_policy():
    a = {
        "updates_per_batch": 2,
        "clip_eps_low": 0.9,
        "clip_eps_high": 9.0,
        "aggregation": "token_mean",
        **NO_KL,
    }
    learner, twin = make_learner(train={"max_grad_norm": 1e6}, **a), TinyLM()
    batch = make_batch()
    old, _ = token_logprobs(twin, batch, 1.0)
    once = make_learner(twin, **a | {"updates_per_batch": 1})
    first = once.update(batch, A)  # the same first step
    update = learner.update(batch, A)
    new, _ = token_logprobs(twin, batch, 1.0)
    ratio = (new - old.detach()).exp()
    loss = -(torch.where(batch.completion_mask, ratio * A[:, None], 0.0)).sum() / 10
    twin.zero_grad()
    loss.backward()
    torch.testing.assert_close(
        flat_gradient(learner),
        torch.cat([p.grad.flatten() for p in twin.parameters()]),
        atol=1e-6,
        rtol=1e-4,
    )
    assert update.num_updates == 2
    assert update.loss == pytest.approx((first.loss + loss.item()) / 2, abs=1e-5)
    assert update.ratio_max == pytest.approx(
        max(1.0, ratio.detach()[batch.completion_mask].max().item()), abs=1e-5
    )
    assert update.ratio_max != 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "clip", "ratio_level": "sequence"},
        {"objective": "vespo", "entropy_quantile": 0.5},
        {"objective": "gmpo", "aggregation": "sequence_mean"},
        {"objective": "cispo", "entropy_coef": 0.1},
        {"objective": "sapo", "kl_estimator": "exact"},
        {"kl_ratio_corrected": True, "off_policy_threshold": 0.01},
    ],
)
def test_micro_batch_size_changes_nothing_over_three_updates(options):
    sampled = [[-0.5] * len(completion) for _, completion in ROWS]

    def run(budget):
        learner = make_learner(
            train={"micro_batch_tokens": budget},
            kl_coef=0.1,
            updates_per_batch=3,
            **{k: v for k, v in options.items() if k != "kl_coef"},
        )
        learner.update(Batch(**{**vars(make_batch()), "sampling_logprobs": sampled}), A)
        return weights(learner.model)

    whole = run(16_384)
    for budget in (1, 12):
        torch.testing.assert_close(run(budget), whole, atol=1e-6, rtol=0)


def test_drifted_rows_are_dropped_when_their_advantage_is_negative():
    new, _ = token_logprobs(TinyLM(), make_batch(), 1.0)
    # Every token lost one nat
    lost = [
        [float(p) + 1.0 for p in row[: len(c)]]
        for row, (_, c) in zip(new.detach(), ROWS, strict=True)
    ]
    batch = Batch(**{**vars(make_batch()), "sampling_logprobs": lost})
    update = make_learner(off_policy_threshold=0.5, **NO_KL).update(batch, A)
    assert update.off_policy_frac == 0.5  # rows 1 and 3 have A < 0
    assert make_learner(off_policy_threshold=1.5, **NO_KL).update(batch, A).off_policy_frac == 0


# ---- skipping what has no gradient ---------------------------------------------------------------


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_skipping_tied_groups_leaves_the_gradient_identical(objective):
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0])
    skipping, whole = (
        make_learner(objective=objective, **NO_KL),
        make_learner(objective=objective, **NO_KL),
    )
    whole._rows_with_gradient = lambda batch, advantages: batch
    for learner in (skipping, whole):
        learner.update(make_batch(), advantages)
    assert torch.equal(flat_gradient(skipping), flat_gradient(whole)) or torch.allclose(
        flat_gradient(skipping), flat_gradient(whole), atol=1e-9, rtol=0
    )
    assert len(skipping._rows_with_gradient(make_batch(), advantages)) == 2


def test_a_step_of_tied_groups_skips_backward_but_keeps_momentum_and_metrics():
    skipping, whole = make_learner(Counting(), **NO_KL), make_learner(Counting(), **NO_KL)
    whole._rows_with_gradient = lambda batch, advantages: batch
    for learner in (skipping, whole):
        learner.update(make_batch(), A)
        learner.model.with_gradient = 0
        update = learner.update(make_batch(), torch.zeros(4))
        assert update.grad_norm == 0
        assert update.kl > 0
        assert update.entropy > 0
    assert (skipping.model.with_gradient, whole.model.with_gradient) == (0, 1)
    torch.testing.assert_close(weights(skipping.model), weights(whole.model), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"kl_coef": 0.1},
        {"entropy_coef": 0.1, **NO_KL},
        {"entropy_target": 1.0, **NO_KL},
        {"kl_control": "hard", **NO_KL},
    ],
)
def test_nothing_is_skipped_where_kl_or_entropy_need_every_row(options):
    assert len(make_learner(**options)._rows_with_gradient(make_batch(), torch.zeros(4))) == 4


# ---- moving coefficients -------------------------------------------------------------------------


def test_adaptive_kl_follows_zieglers_rule_and_is_clipped_at_a_fifth():
    a = AlgorithmConfig(kl_control="adaptive", kl_target=0.1, kl_horizon=100)
    coef = KL_CONTROLS["adaptive"].coef
    # 10 % above the target, half a horizon
    assert coef(0.02, 0.11, 50, a) == pytest.approx(0.02 * (1 + 0.1 * 0.5))
    assert coef(0.02, 5.0, 50, a) == pytest.approx(0.02 * 1.1)
    assert coef(0.02, 0.0, 100, a) == pytest.approx(0.02 * 0.8)
    learner = make_learner(kl_control="adaptive", kl_target=1e-4, kl_horizon=4, kl_coef=0.02)
    # The reference is another model, so KL starts above the target
    first, second = (learner.update(make_batch(), A) for _ in range(2))
    assert first.kl_coef == 0.02
    assert second.kl_coef == pytest.approx(0.02 * 1.2)


def test_the_adaptive_coefficient_waits_a_bounded_time_before_it_falls():
    a = AlgorithmConfig(kl_control="adaptive", kl_target=0.1, kl_horizon=100, kl_coef=0.02)
    s = CoefficientState.start(a)
    for kl in (0.0, 0.05, 0.099):  # a run's first steps
        s = s.after_batch(kl, 50, a)
        assert s.kl_coef == 0.02
    s = s.after_batch(0.2, 50, a)
    assert s.kl_coef == pytest.approx(0.02 * 1.1)  # half a horizon, clipped at a fifth
    assert s.after_batch(0.0, 50, a).kl_coef == pytest.approx(0.02 * 1.1 * 0.9)
    s = CoefficientState.start(a)
    for _ in range(10):  # 500 completions, five horizons
        s = s.after_batch(0.01, 50, a)
    assert s.kl_coef == 0.02
    # KL never reached the target: the coefficient is too large
    assert s.after_batch(0.01, 50, a).kl_coef == pytest.approx(0.02 * 0.9)
    fixed = AlgorithmConfig(kl_coef=0.02)
    assert CoefficientState.start(fixed).after_batch(5.0, 50, fixed).kl_coef == 0.02


def test_the_adaptive_coefficient_reaches_its_kl_target_and_stays():
    # A process in which KL moves a tenth of the way to .001/coef at every step.
    a = AlgorithmConfig(kl_control="adaptive", kl_target=0.05, kl_coef=0.005)
    s, kl, seen = CoefficientState.start(a), 0.0, []
    for _ in range(300):
        kl += 0.1 * (0.001 / s.kl_coef - kl)  # .2 without control: four times the target
        seen.append(kl)
        s = s.after_batch(kl, 64, a)
    assert max(seen) < 0.2
    assert all(0.025 < kl < 0.075 for kl in seen[150:])


def test_above_the_hard_kl_limit_weights_move_a_tenth_to_the_reference():
    model, reference = TinyLM(), TinyLM(1)  # two models: KL starts far above the limit
    learner = make_learner(model, reference, kl_control="hard", kl_target=1e-6, updates_per_batch=3)
    before = weights(model)
    update = learner.update(make_batch(), A)
    assert (update.num_updates, update.grad_norm) == (0, None)
    torch.testing.assert_close(weights(model), 0.9 * before + 0.1 * weights(reference))


def test_a_hard_limit_is_exceeded_by_one_update_at_most():
    model = TinyLM()
    learner = make_learner(model, TinyLM(), kl_control="hard", kl_target=1e-5, updates_per_batch=8)
    # The update that crossed the limit was the last
    assert 0 < learner.update(make_batch(), A).num_updates < 8


def test_a_hard_limit_against_a_frozen_reference_is_no_wall():
    model, reference = TinyLM(), TinyLM(1)
    start = make_learner(model, reference).update(make_batch(), torch.zeros(4)).kl
    learner = make_learner(model, reference, kl_control="hard", kl_target=start / 4, **NO_KL)
    seen = [learner.update(make_batch(), torch.zeros(4)) for _ in range(30)]
    above = [u for u in seen if u.num_updates == 0]
    # (.9²)^n reaches 1/4 after 7 steps back where KL is quadratic in the weights
    assert 0 < len(above) < 20
    assert above == seen[: len(above)]
    assert all(later.kl < earlier.kl for earlier, later in pairwise(above))
    assert seen[-1].kl <= start / 4


def test_the_reference_moves_by_alpha_every_n_steps_and_never_otherwise():
    still, moving = make_learner(), make_learner(ref_every=2, ref_alpha=0.25)
    start = weights(moving.reference)
    for learner in (still, moving):
        learner.update(make_batch(), A)
        assert torch.equal(weights(learner.reference), start)
        learner.update(make_batch(), A)
    assert torch.equal(weights(still.reference), start)
    torch.testing.assert_close(
        weights(moving.reference), 0.25 * weights(moving.model) + 0.75 * start
    )


def test_a_branch_may_do_without_the_reference_that_its_parent_moved():
    moving = make_learner(ref_every=1)
    moving.update(make_batch(), A)
    without = make_learner(measure_kl=False, **NO_KL)
    without.reference = None
    without.load_state(moving.state())
    assert without.num_steps == 1


def test_a_restored_learner_continues_bit_for_bit():
    options = {
        "kl_control": "adaptive",
        "kl_target": 0.01,
        "kl_horizon": 10,
        "ref_every": 1,
        "entropy_coef": 0.1,
        "entropy_target": 5.0,
    }
    learner = make_learner(**options)
    learner.update(make_batch(), A)
    other = make_learner(copy.deepcopy(learner.model), **options)
    other.load_state(copy.deepcopy(learner.state()))
    assert [learner.update(make_batch(), A) for _ in range(3)] == [
        other.update(make_batch(), A) for _ in range(3)
    ]


def test_the_entropy_bonus_waits_for_its_target_and_moves_by_its_step():
    a = AlgorithmConfig(
        entropy_coef=0.01, entropy_target=1.0, entropy_coef_delta=0.005, entropy_coef_max=0.02
    )
    s = CoefficientState.start(a)
    assert s.entropy_weight(a) == 0.0  # nothing measured yet
    s = s.after_update(0.5, a)
    assert (s.entropy_weight(a), s.entropy_coef) == (0.015, 0.015)
    s = s.after_update(0.5, a).after_update(0.5, a)
    assert s.entropy_coef == 0.02  # the most
    assert s.after_update(2.0, a).entropy_weight(a) == 0.0


def test_an_entropy_bonus_raises_entropy():
    with_bonus, without = make_learner(entropy_coef=1.0, **NO_KL), make_learner(**NO_KL)
    nothing = torch.zeros(4)
    before = with_bonus.update(make_batch(), nothing)
    for _ in range(20):
        after = with_bonus.update(make_batch(), nothing)
    assert after.entropy > before.entropy + 0.01
    assert before.entropy_loss == pytest.approx(-before.entropy, rel=1e-5)
    assert without.update(make_batch(), nothing).entropy_loss == 0


def test_the_parts_of_the_loss_are_right_and_add_up():
    update = make_learner(kl_coef=0.3, entropy_coef=0.2).update(make_batch(), A)
    assert update.loss == pytest.approx(update.policy_loss + update.kl_loss + update.entropy_loss)
    # Token_mean: aggregated as it is measured
    assert update.kl_loss == pytest.approx(0.3 * update.kl)
    assert update.entropy_loss == pytest.approx(-0.2 * update.entropy)


def test_exact_kl_in_a_step_is_the_kl_of_the_two_distributions():
    model, reference, batch = TinyLM(), TinyLM(1), make_batch()
    total = 0.0
    for prompt, completion in ROWS:
        for t in range(len(completion)):
            seen = torch.tensor([[*prompt, *completion[:t]]])
            p, q = (
                torch.distributions.Categorical(logits=m(seen, torch.ones_like(seen)).logits[0, -1])
                for m in (model, reference)
            )
            total += torch.distributions.kl_divergence(p, q).item()
    assert make_learner(model, reference, kl_estimator="exact").update(
        batch, A
    ).kl == pytest.approx(total / 10, rel=1e-5)


def test_the_entropy_quantile_leaves_the_policy_term_to_the_forking_tokens():
    model, batch = TinyLM(), make_batch()
    new, entropy = token_logprobs(model, batch, 1.0)
    # Share .5 of 10 tokens: at or above the median
    chosen = entropy[batch.completion_mask].sort(descending=True).values[:5]
    carries = batch.completion_mask & (entropy >= chosen[-1])
    expected = -torch.where(carries, A[:, None].expand_as(new), 0.0).sum().item() / 10  # ratio 1
    assert make_learner(entropy_quantile=0.5, **NO_KL).update(
        batch, A
    ).policy_loss == pytest.approx(expected, abs=1e-6)


def test_a_nan_advantage_is_refused_even_where_groups_are_skipped():
    with pytest.raises(ArithmeticError, match="nan"):
        make_learner(**NO_KL).update(make_batch(), torch.tensor([math.nan, 0, 0, 0]))
