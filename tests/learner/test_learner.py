"""Numbers against hand values and naive float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_lm import NAN, ROWS, A, NoMaskLM, TinyLM, make_batch, make_learner

from grpo_core.config import AlgorithmConfig
from grpo_core.errors import NonFinite
from grpo_core.learner import (
    ADVANTAGES,
    AGGREGATIONS,
    KL_ESTIMATORS,
    OBJECTIVES,
    Batch,
    Siblings,
    packed,
    packing_is_exact,
    separate,
    token_logprobs,
)
from grpo_core.learner.aggregation import LossNormalizer
from grpo_core.learner.kl import Divergence
from grpo_core.learner.objectives import Terms
from grpo_core.learner.packing import GroupSize

# ---- advantages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"), [("group_mean", 0.875), ("group_std", 2.474), ("leave_one_out", 1.0)]
)
def test_one_winner_in_a_group_of_eight_has_the_textbook_advantage(name, expected):
    # mean 1/8; sample std sqrt(7·(1/8)² + (7/8)²)/7) = .35355; .875/(.35355 + 1e-4) = 2.4742
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    a = ADVANTAGES[name](Siblings(rewards)).advantages
    assert a[0, 0].item() == pytest.approx(expected, abs=5e-4)


def test_group_std_gives_the_golden_values_with_unscored_and_tied_rows():
    rewards = torch.tensor(
        [[1, 0.25, 1.25, 0], [0.1] * 4, [1, NAN, 0.15, 1.05]], dtype=torch.float64
    )
    golden = torch.tensor(
        [[0.63002, -0.63002, 1.05003, -1.05003], [0, 0, 0, 0], [0.52711, 0, -1.15306, 0.62595]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(
        ADVANTAGES["group_std"](Siblings(rewards)).advantages, golden, atol=1e-5, rtol=0
    )


# ---- objectives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside: -wA
        (1.5, 2.0, -2.4, 0.0),  # good and already up: clipped at 1.2
        (0.5, 2.0, -1.0, -2.0),  # good but down: never clipped
        (0.5, -1.0, 0.8, 0.0),  # bad and already down: clipped at .8
        (1.5, -1.0, 1.5, 1.0),  # bad but up: never clipped
    ],
)
def test_clip_stops_the_gradient_exactly_where_ppo_does(ratio, advantage, loss, gradient):
    w = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)
    some = torch.ones(1, 1, dtype=torch.bool)
    value = OBJECTIVES["clip"](
        Terms(w.log(), w.log(), w, torch.tensor([[advantage]], dtype=torch.float64), some, some),
        AlgorithmConfig(),
    )
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert w.grad.item() == pytest.approx(gradient)


def test_kl_estimators_have_closed_forms_and_k3_averages_to_kl():
    d = torch.tensor([0.5, -0.5], dtype=torch.float64)
    assert KL_ESTIMATORS["k1"](Divergence(d)).tolist() == [-0.5, 0.5]
    assert KL_ESTIMATORS["k2"](Divergence(d)).tolist() == [0.125, 0.125]
    assert KL_ESTIMATORS["k3"](Divergence(d)).tolist() == pytest.approx(
        [math.exp(0.5) - 1.5, math.exp(-0.5) - 0.5]
    )
    new, ref = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    true = (new * (new / ref).log()).sum()
    for name in ("k1", "k3"):  # E over the policy's own samples: both are unbiased
        assert (new * KL_ESTIMATORS[name](Divergence((ref / new).log()))).sum() == pytest.approx(
            true
        )


def test_aggregations_weigh_completions_or_tokens_as_documented():
    values = torch.tensor([[1.0, 1, 1, 1], [4, 0, 0, 0]]).double()
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    size = LossNormalizer(num_rows=2, num_tokens=5, max_new_tokens=8)
    assert AGGREGATIONS["sequence_mean"](values, mask, size).item() == pytest.approx((1 + 4) / 2)
    assert AGGREGATIONS["token_mean"](values, mask, size).item() == pytest.approx((4 + 4) / 5)
    assert AGGREGATIONS["constant"](values, mask, size).item() == pytest.approx((4 + 4) / (2 * 8))


# ---- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [separate, packed])
def test_token_logprobs_equal_a_loop_over_single_tokens(layout):
    model, batch = TinyLM(), make_batch()
    logprobs, entropy = token_logprobs(model, batch, temperature=0.7, layout=layout)
    for row, (prompt, completion) in enumerate(ROWS):
        for t, token in enumerate(completion):
            seen = torch.tensor([[*prompt, *completion[:t]]])
            logits = model(seen, torch.ones_like(seen)).logits[0, -1].float() / 0.7
            p = logits.softmax(-1)
            assert logprobs[row, t].item() == pytest.approx(p[token].log().item(), abs=1e-5)
            assert entropy[row, t].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_loss_and_gradient_equal_a_naive_loop(aggregation, kl_coef):
    model, reference, advantages = TinyLM(), TinyLM(seed=1), torch.tensor([1.0, -0.5, 0.25, -0.75])
    batch = make_batch()
    learner = make_learner(model, reference, aggregation=aggregation, kl_coef=kl_coef)
    twin = TinyLM()
    learner.optimizer.step = lambda: None  # keep the gradient, not the step
    update = learner.update(batch, advantages)

    total = torch.zeros((), dtype=torch.float64)
    for (prompt, completion), a in zip(ROWS, advantages.tolist(), strict=True):
        row = torch.zeros((), dtype=torch.float64)
        for t, token in enumerate(completion):
            seen = torch.tensor([[*prompt, *completion[:t]]])
            new = twin(seen, torch.ones_like(seen)).logits[0, -1].log_softmax(-1)[token]
            ref = (
                reference(seen, torch.ones_like(seen)).logits[0, -1].log_softmax(-1)[token].detach()
            )
            row = (
                row
                - (new - new.detach()).exp() * a
                + kl_coef * ((ref - new).exp() - (ref - new) - 1)
            )
        total = (
            total
            + row
            / {"sequence_mean": len(completion) * 4, "token_mean": 10, "constant": 4 * 6}[
                aggregation
            ]
        )
    total.backward()
    assert update.loss == pytest.approx(total.item(), abs=1e-5)
    for ours, naive in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, naive.grad, atol=1e-5, rtol=1e-4)


def gradient(batch: Batch, advantages: torch.Tensor, model=None, **train: object) -> torch.Tensor:
    learner = make_learner(model, train=train, kl_coef=0.1)
    learner.optimizer.step = lambda: None
    learner.update(batch, advantages)
    return torch.cat([p.grad.flatten() for p in learner.model.parameters()])


def test_micro_batch_size_padding_and_order_change_nothing():
    whole = gradient(make_batch(), A)
    for budget in (1, 7, 12, 19):  # 1: every group alone, its padding cut off
        torch.testing.assert_close(
            gradient(make_batch(), A, micro_batch_tokens=budget), whole, atol=1e-6, rtol=0
        )
    siblings_swapped = make_batch([ROWS[i] for i in (3, 2, 0, 1)])
    torch.testing.assert_close(
        gradient(siblings_swapped, A[[3, 2, 0, 1]]), whole, atol=1e-6, rtol=0
    )


def test_sharing_a_prompt_in_one_row_changes_neither_loss_nor_gradient():
    packing, alone = make_learner(kl_coef=0.1), make_learner(kl_coef=0.1)
    alone.packing.inexact_from = GroupSize(0, 0)
    for learner in (packing, alone):
        learner.optimizer.step = lambda: None
    a, b = packing.update(make_batch(), A), alone.update(make_batch(), A)
    assert packing.packing.allows(make_batch())
    assert a.loss == pytest.approx(b.loss, abs=1e-6)
    assert a.kl == pytest.approx(b.kl, abs=1e-6)
    assert a.entropy == pytest.approx(b.entropy, abs=1e-6)
    for p, q in zip(packing.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=0)


def test_an_architecture_that_cannot_pack_is_computed_row_by_row():
    assert packing_is_exact(TinyLM(), make_batch())
    assert not packing_is_exact(NoMaskLM(), make_batch())
    torch.testing.assert_close(
        gradient(make_batch(), A, NoMaskLM()), gradient(make_batch(), A), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPT2", "Gemma3Text", "GPTNeoX"])
def test_real_architectures_pack_exactly_or_fall_back(name):
    """Whatever packing_is_exact returns, training uses the numbers of separate rows."""
    import transformers

    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3Text" else f"{name}Config")(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        sliding_window=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rows = [((5, 6, 7, 8, 9, 10, 11), tuple(range(12, 12 + n))) for n in (1, 9, 4)] + [
        ((5, 6), (7, 8, 9))
    ] * 3
    batch = make_batch(rows, group_size=3)
    exact = packing_is_exact(model, batch.groups(0, 1))
    with torch.no_grad():
        used = token_logprobs(model, batch if exact else batch.ungrouped(), 1.0)[0]
        for row, (prompt, completion) in enumerate(rows):
            full = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            expected = full[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None])[
                :, 0
            ]
            torch.testing.assert_close(used[row, : len(completion)], expected, atol=1e-4, rtol=0)
    if name in ("Llama", "Qwen3", "GPT2"):
        assert exact, "the speed of the common architectures rests on this"


def test_a_masked_row_trains_nothing_and_leaves_the_token_count():
    masked = gradient(make_batch(trains=[True, True, True, False]), A)
    separate_rows = make_batch().ungrouped()
    without = Batch(
        separate_rows.prompts[:3], separate_rows.completions[:3], [True] * 3, 0, torch.device("cpu")
    )
    torch.testing.assert_close(masked, gradient(without, A[:3]), atol=1e-6, rtol=0)


def test_the_first_update_has_ratio_one_no_clipping_and_kl_zero():
    update = make_learner(TinyLM(), TinyLM()).update(make_batch(), torch.tensor([1.0, -1, 1, -1]))
    assert (update.ratio_mean, update.ratio_max, update.clip_low_frac, update.clip_high_frac) == (
        1.0,
        1.0,
        0.0,
        0.0,
    )
    assert update.kl == pytest.approx(0, abs=1e-7)


def test_kl_is_measured_even_where_it_is_not_trained_on():
    measured = make_learner(kl_coef=0.0).update(make_batch(), torch.zeros(4))
    trained = make_learner(kl_coef=0.5).update(make_batch(), torch.zeros(4))
    assert measured.kl > 0
    assert measured.loss == 0
    assert measured.grad_norm == 0
    # Advantages are 0: only the KL term is left
    assert trained.loss == pytest.approx(0.5 * trained.kl)


def test_kl_of_the_whole_batch_is_the_mean_over_its_tokens():
    batch, learner = make_batch(), make_learner(kl_coef=0.5)
    new, _ = token_logprobs(TinyLM(), batch, 1.0)
    ref, _ = token_logprobs(learner.reference, batch, 1.0)
    expected = (((ref - new).exp() - (ref - new) - 1) * batch.completion_mask).sum() / 10
    assert learner.update(batch, torch.zeros(4)).kl == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused_and_the_weights_stay():
    model = TinyLM()
    learner = make_learner(model)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NonFinite, match="nan"):
        learner.update(make_batch(), torch.tensor([NAN, 0, 0, 0]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_learning_rate_warms_up_linearly_and_is_recorded():
    learner = make_learner(train={"warmup_steps": 4})
    for expected in (0.00025, 0.0005, 0.00075, 0.001, 0.001):
        assert learner.update(make_batch(), torch.ones(4)).learning_rate == pytest.approx(expected)


def test_training_raises_the_probability_of_better_completions():
    model, batch = TinyLM(), make_batch()
    learner = make_learner(model, kl_coef=0.0)
    before, _ = token_logprobs(model, batch, 1.0)
    for _ in range(5):
        learner.update(batch, torch.tensor([1.0, -1, 1, -1]))
    after, _ = token_logprobs(model, batch, 1.0)
    gain = ((after - before) * batch.completion_mask).sum(1)
    assert (gain[[0, 2]] > 0).all()
    assert (gain[[1, 3]] < 0).all()
