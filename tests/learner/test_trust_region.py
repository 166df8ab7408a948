"""The constrained step against dense linear algebra, naive loops, and common architectures."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from grpo_core.config import AlgorithmConfig, TrainConfig, nest, parse, with_preset
from grpo_core.learner import Batch, Learner, LearnerSettings
from grpo_core.learner import trust_region as tr
from grpo_core.learner.packing import GroupSize
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import StepCompleted

VOCABULARY = 7
TEMPERATURE = 0.8
# Two groups of two, 10 completion tokens
ROWS = [
    ((1, 2), (4, 5, 6)),
    ((1, 2), (3,)),
    ((3,), (1, 2)),
    ((3,), (4, 4, 4, 4)),
]
A = torch.tensor([1.0, -0.5, 0.25, -0.75], dtype=torch.float64)


class TinyLM(nn.Module):
    """A causal policy of 56 weights, small enough for a dense Fisher matrix.

    A token's logits depend on all tokens before it.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, 4, generator=g, dtype=torch.float64))
        self.head = nn.Linear(4, VOCABULARY, bias=False, dtype=torch.float64)
        self.head.weight.data = torch.randn(VOCABULARY, 4, generator=g, dtype=torch.float64)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, input_ids, attention_mask):
        x = self.embed[input_ids]
        if attention_mask.dim() == 2:
            weights = (
                torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril()
                * attention_mask[:, None, :]
            )
        else:
            weights = attention_mask[:, 0].softmax(-1)
        context = (weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)) @ x
        return SimpleNamespace(logits=self.head(torch.tanh(x + context)))


def make_batch(rows=tuple(ROWS), group_size=2) -> Batch:
    return Batch(
        [r[0] for r in rows][::group_size],
        [r[1] for r in rows],
        [True] * len(rows),
        pad_id=0,
        device=torch.device("cpu"),
    )


# ---- references: loops over single tokens, no batch, no padding, no packing ----------------------


def naive_logits(model, weights, batch) -> torch.Tensor:
    """(N, V) at TEMPERATURE, computed token by token."""
    out = []
    for i, completion in enumerate(batch.completions):
        prompt = next(p for p, rows in zip(batch.prompts, batch.siblings, strict=True) if i in rows)
        for t in range(len(completion)):
            ids = torch.tensor([[*prompt, *completion[:t]]])
            out.append(
                functional_call(model, weights, (ids, torch.ones_like(ids))).logits[0, -1]
                / TEMPERATURE
            )
    return torch.stack(out)


def naive_kl(old, new) -> torch.Tensor:
    p, q = old.log_softmax(-1), new.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def naive_surrogate(old, new, batch, advantages) -> torch.Tensor:
    """mean over tokens of w·A."""
    tokens = torch.tensor([t for c in batch.completions for t in c])[:, None]
    a = torch.tensor(
        [a for c, a in zip(batch.completions, advantages.tolist(), strict=True) for _ in c],
        dtype=old.dtype,
    )
    ratio = (new.log_softmax(-1).gather(-1, tokens) - old.log_softmax(-1).gather(-1, tokens)).exp()[
        :, 0
    ]
    return (ratio * a).mean()


def weights_of(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def flat(weights) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights.values()])


def unflat(model, vector) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    return {
        n: v.view_as(p)
        for (n, p), v in zip(
            named.items(), vector.split([p.numel() for p in named.values()]), strict=True
        )
    }


def dense_fisher(model, batch) -> torch.Tensor:
    """The Hessian of the KL, by differentiating the naive loop twice."""
    old = naive_logits(model, weights_of(model), batch)
    return torch.func.hessian(
        lambda v: naive_kl(old, naive_logits(model, unflat(model, v), batch))
    )(flat(weights_of(model)))


def put_gradient(model, batch, advantages) -> torch.Tensor:
    """The gradient of the naive surrogate; its negative is left in `.grad`, as when minimising."""
    model.zero_grad()
    logits = naive_logits(model, dict(model.named_parameters()), batch)
    (-naive_surrogate(logits.detach(), logits, batch, advantages)).backward()
    return -torch.cat([p.grad.flatten() for p in model.parameters()])


def minus_surrogate(batch, advantages, new, old, num_tokens=10) -> torch.Tensor:
    return (
        -(torch.where(batch.completion_mask, (new - old).exp(), 0.0) * advantages[:, None]).sum()
        / num_tokens
    )


def step(model, parts, loss=minus_surrogate, delta=0.01, **options) -> tr.TrustRegionStep:
    return tr.trust_region_step(
        tr.Surrogate(model, tr.MasterWeights(model), parts, loss, TEMPERATURE, **options), delta
    )


# ---- against the dense solution ------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["one row a group", "one row a completion", "two micro-batches"])
def test_a_fisher_vector_product_equals_the_dense_hessian_product(parts):
    model, batch = TinyLM(), make_batch()
    dense = dense_fisher(model, batch)
    pieces = {
        "one row a group": [batch],
        "one row a completion": [batch.ungrouped()],
        "two micro-batches": [batch.groups(0, 1), batch.groups(1, 2)],
    }
    product = tr.fisher(model, [(b, A) for b in pieces[parts]], TEMPERATURE)
    for seed in range(5):
        v = torch.randn(
            len(dense), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        torch.testing.assert_close(product(v), dense @ v, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_the_step_equals_a_dense_natural_gradient_solve(seed):
    model, batch = TinyLM(seed), make_batch()
    before, dense, g = (
        flat(weights_of(model)),
        dense_fisher(model, batch),
        put_gradient(model, batch, A),
    )
    x = torch.linalg.solve(dense + 0.1 * torch.eye(len(dense), dtype=torch.float64), g)
    expected = x * math.sqrt(2 * 1e-4 / (x @ dense @ x))
    taken = step(model, [(batch, A)], delta=1e-4)
    moved = (flat(weights_of(model)) - before) / taken.trust_step_frac
    assert (moved - expected).norm() <= 1e-3 * expected.norm()
    plain = g * math.sqrt(2 * 1e-4 / (g @ dense @ g))
    # The tolerance separates it from the plain gradient
    assert (moved - plain).norm() > 0.1 * expected.norm()


def test_conjugate_gradient_is_exact_after_n_iterations_and_reports_its_residual():
    g = torch.Generator().manual_seed(0)
    root, b = (
        torch.randn(8, 8, dtype=torch.float64, generator=g),
        torch.randn(8, dtype=torch.float64, generator=g),
    )
    matrix = root @ root.T
    damped = matrix + 0.1 * torch.eye(8, dtype=torch.float64)
    exact = tr.conjugate_gradient(lambda v: matrix @ v, b, iterations=12)
    torch.testing.assert_close(exact.x, torch.linalg.solve(damped, b), atol=0, rtol=1e-6)
    assert exact.residual <= 1e-8
    short = tr.conjugate_gradient(lambda v: matrix @ v, b, iterations=3)
    assert short.residual == pytest.approx(float((b - damped @ short.x).norm() / b.norm()))
    assert float(short.x_fisher_x) == pytest.approx(float(short.x @ matrix @ short.x))
    assert short.residual > 1e-3


# ---- the constraint ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials():
    """(step, naive KL, naive gain) of 200 random policies, batches, advantages and deltas."""
    out = []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        model = TinyLM(seed)
        rows = [
            (
                (1 + p,),
                tuple(
                    torch.randint(
                        0, VOCABULARY, (int(torch.randint(1, 4, (), generator=g)),), generator=g
                    ).tolist()
                ),
            )
            for p in range(2)
            for _ in range(2)
        ]
        batch, advantages = make_batch(rows), torch.randn(4, generator=g, dtype=torch.float64)
        delta = float(10 ** (-4 * torch.rand((), generator=g)))
        old = naive_logits(model, weights_of(model), batch).detach()
        put_gradient(model, batch, advantages)
        num_tokens = sum(len(r[1]) for r in rows)
        reading = step(
            model, [(batch, advantages)], lambda *a, n=num_tokens: minus_surrogate(*a, n), delta
        )
        new = naive_logits(model, weights_of(model), batch)
        gain = naive_surrogate(old, new, batch, advantages) - naive_surrogate(
            old, old, batch, advantages
        )
        out.append((reading, float(naive_kl(old, new)), float(gain)))
    return out


@pytest.mark.slow
def test_the_reported_kl_is_exact_and_never_above_delta(
    trials,
):
    for reading, kl, _ in trials:
        assert kl <= reading.trust_delta
        assert kl == pytest.approx(reading.trust_kl, rel=1e-9, abs=1e-15)
    # The steps use most of the region
    assert sum(r.trust_kl > 0.2 * r.trust_delta for r, _, _ in trials) > 150


def test_the_surrogate_never_gets_worse(trials):
    for reading, _, gain in trials:
        assert gain == pytest.approx(reading.trust_gain, rel=1e-6, abs=1e-12)
        assert gain > 0 or reading.trust_step_frac == 0
    assert sum(r.trust_step_frac == 1 for r, _, _ in trials) < 200  # the line search had work to do


# ---- when no step is taken -----------------------------------------------------------------------


def test_a_failed_line_search_restores_the_weights_exactly_and_is_reported(caplog):
    model, batch = TinyLM(), make_batch()
    put_gradient(model, batch, -A)  # downhill, so that every fraction makes the surrogate worse
    before = weights_of(model)
    reading = step(model, [(batch, A)])
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert (reading.trust_step_frac, reading.trust_kl, reading.trust_gain) == (0, 0, 0)
    assert reading.trust_residual > 0
    assert "the weights stay" in caplog.text


def test_weights_stay_where_the_candidate_is_not_finite():
    model, batch = TinyLM(), make_batch()
    put_gradient(model, batch, A)
    before = weights_of(model)
    reading = step(model, [(batch, A)], loss=lambda *_: torch.tensor(math.nan))
    assert reading.trust_step_frac == 0
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_stop_at_any_interrupt_check_leaves_the_weights_unchanged():
    class Stop(Exception):
        pass

    def stop_after(limit: float) -> tuple[int, bool]:
        model, batch, count = TinyLM(), make_batch(), 0
        put_gradient(model, batch, A)
        before = weights_of(model)

        def check_interrupt():
            nonlocal count
            count += 1
            if count > limit:
                raise Stop

        with suppress(Stop):
            step(model, [(batch, A)], check_interrupt=check_interrupt)
        return count, all(torch.equal(before[n], p) for n, p in model.named_parameters())

    total, same = stop_after(math.inf)
    assert total >= 2 * tr.CG_ITERATIONS
    assert not same
    assert all(stop_after(limit)[1] for limit in range(total))


def test_frozen_weights_stay_and_the_others_move_as_if_they_were_alone():
    model, batch = TinyLM(), make_batch()
    model.embed.requires_grad_(False)
    put_only = naive_logits(model, dict(model.named_parameters()), batch)
    (-naive_surrogate(put_only.detach(), put_only, batch, A)).backward()
    before = weights_of(model)
    assert step(model, [(batch, A)]).trust_step_frac > 0
    assert torch.equal(before["embed"], model.embed)
    assert not torch.equal(before["head.weight"], model.head.weight)


# ---- through the learner -------------------------------------------------------------------------


def make_learner(model=None, train=None, **algorithm) -> Learner:
    model = model or TinyLM()
    settings = TrainConfig(**{"max_new_tokens": 6, "temperature": TEMPERATURE, **(train or {})})
    reference = (
        TinyLM(seed=9) if isinstance(model, TinyLM) else copy.deepcopy(model)
    ).requires_grad_(False)
    return Learner(
        model,
        reference,
        LearnerSettings(
            AlgorithmConfig(objective="trust_region", **algorithm), settings, learning_rate=1e-3
        ),
    )


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_neither_micro_batch_size_nor_packing_changes_the_step(kl_coef):
    def moved(packs=None, **train):
        learner = make_learner(kl_coef=kl_coef, train=train)
        if packs is False:
            learner.packing.inexact_from = GroupSize(0, 0)
        update = learner.update(make_batch(), A.float())
        return flat(weights_of(learner.model)), update

    whole, reading = moved()
    assert reading.trust_step_frac > 0
    for weights, other in [moved(micro_batch_tokens=budget) for budget in (1, 7, 12, 19)] + [
        moved(packs=False)
    ]:
        torch.testing.assert_close(weights, whole, atol=1e-6, rtol=0)
        assert other.trust_kl == pytest.approx(reading.trust_kl, rel=1e-4)
        assert other.trust_gain == pytest.approx(reading.trust_gain, rel=1e-4)
        assert other.trust_residual == pytest.approx(reading.trust_residual, rel=1e-2)


def test_the_learners_step_is_dense_and_ignores_learning_rate_and_clipping():
    dense, g = dense_fisher(TinyLM(), make_batch()), put_gradient(TinyLM(), make_batch(), A)
    x = torch.linalg.solve(dense + 0.1 * torch.eye(len(dense), dtype=torch.float64), g)
    learner = make_learner(
        kl_coef=0.0,
        trust_region_delta=1e-4,
        trust_region_damping=0.1,
        train={"max_grad_norm": 1e-3, "warmup_steps": 1000},
    )
    update = learner.update(make_batch(), A.float())
    moved = (flat(weights_of(learner.model)) - flat(weights_of(TinyLM()))) / update.trust_step_frac
    expected = x * math.sqrt(2 * 1e-4 / (x @ dense @ x))
    assert (moved - expected).norm() <= 1e-3 * expected.norm()
    assert update.learning_rate is None
    assert update.grad_norm == pytest.approx(float(g.norm()), rel=1e-5)


def test_zero_advantages_take_no_step():
    learner = make_learner(kl_coef=0.0)
    before = weights_of(learner.model)
    update = learner.update(make_batch(), torch.zeros(4))
    assert all(torch.equal(before[n], p) for n, p in learner.model.named_parameters())
    assert (update.trust_step_frac, update.trust_kl, update.trust_gain, update.grad_norm) == (
        0,
        0,
        0,
        0,
    )


def test_the_kl_term_to_the_reference_is_part_of_the_objective():
    """With advantages of 0, only the KL term is left."""
    learner = make_learner(kl_coef=0.5)
    batch = make_batch()
    first = learner.update(batch, torch.zeros(4))
    second = learner.update(batch, torch.zeros(4))
    assert second.kl < first.kl
    assert first.trust_gain == pytest.approx(0.5 * (first.kl - second.kl), rel=1e-3)


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_common_architectures_get_a_true_fisher_product_within_delta(
    name,
):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = (
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        .eval()
        .double()
    )
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)  # away from the nearly uniform initial policy
    batch = make_batch(
        [((5, 6, 7, 8), tuple(range(12, 12 + n))) for n in (1, 9, 4)] + [((5, 6), (7, 8, 9))] * 3,
        group_size=3,
    )

    # Two backward passes through the KL of the same model with eager attention, every completion
    # in an unpadded row of its own.
    eager = (
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        .eval()
        .double()
    )
    eager.load_state_dict(model.state_dict())

    def logits(m):
        return torch.cat(
            [
                m(torch.tensor([[*batch.prompts[i // 3], *c]])).logits[
                    0, len(batch.prompts[i // 3]) - 1 : -1
                ]
                / TEMPERATURE
                for i, c in enumerate(batch.completions)
            ]
        )

    now = logits(eager)
    gradients = torch.autograd.grad(
        naive_kl(now.detach(), now), list(eager.parameters()), create_graph=True
    )
    v = torch.randn(
        sum(p.numel() for p in model.parameters()),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
    )
    expected = torch.cat(
        [
            e.flatten()
            for e in torch.autograd.grad(
                torch.cat([g.flatten() for g in gradients]), list(eager.parameters()), v
            )
        ]
    )
    for parts in ([batch], [batch.groups(0, 1), batch.groups(1, 2)], [batch.ungrouped()]):
        product = tr.fisher(model, [(part, None) for part in parts], TEMPERATURE)(v)
        # Transformers takes softmax and RMS norm in float32
        assert (product - expected).norm() <= 1e-5 * expected.norm()

    learner = make_learner(model.float(), kl_coef=0.02)
    update = learner.update(batch, torch.tensor([1.0, -1, 0.5, -0.5, 1, 0]))
    with torch.no_grad():
        achieved = float(naive_kl(now.detach(), logits(model.double())))
    assert 0 < achieved <= 0.01
    assert achieved == pytest.approx(update.trust_kl, rel=1e-2)
    assert update.trust_gain > 0


def test_a_run_of_the_preset_records_its_readings_each_step(tiny_settings):
    events = []
    settings = with_preset({**tiny_settings, "rubric.name": "answer"}, "Trust-region GRPO")
    train(parse(nest(settings)), events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    assert len(steps) == 3
    for m in steps:
        assert m.learning_rate is None
        assert m.trust_delta == 0.01
        assert 0 <= m.trust_kl <= 0.01
        assert 0 <= m.trust_residual < 1
        assert (m.trust_gain > 0) == (m.trust_step_frac > 0)
    assert any(m.trust_step_frac > 0 for m in steps)
