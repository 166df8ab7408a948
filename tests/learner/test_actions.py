"""Trajectories of several turns: only the tokens that the policy wrote are trained on."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from grpo_core.config import AlgorithmConfig, RubricConfig
from grpo_core.learner import OBJECTIVES, Batch, logprobs
from grpo_core.learner.aggregation import AGGREGATIONS, LossNormalizer
from grpo_core.learner.batch import packed, separate
from grpo_core.learner.critic import gae
from grpo_core.learner.logprobs import ScoreOptions, score_tokens
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.packed_attention import attend_by_kernel
from grpo_core.learner.varlen_attention import REFERENCE
from grpo_core.rubric import build_rubric
from grpo_core.training.scoring import group_metrics, turn_metrics
from grpo_core.types import Completion, Group, Prompt, Rollout, Turn, TurnRole
from tests.tiny_lm import VOCABULARY, TinyLM, make_learner
from tests.tiny_shapes import make_model

LONGEST = 24  # max_new_tokens


def trajectories(seed: int, num_prompts: int = 2, size: int = 3) -> Batch:
    """Random trajectories of 1 to 6 turns; a turn is 1 to 3 tokens, an observation 1 to 2."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(n)]

    completions, actions = [], []
    for _ in range(num_prompts * size):
        row, mask = ids(n := rng.randint(1, 3)), [True] * n
        for _ in range(rng.randint(0, 5)):
            for acts, most in ((False, 2), (True, 2)):
                row += ids(n := rng.randint(1, most))
                mask += [acts] * n
        completions.append(row)
        actions.append(mask)
    return Batch(
        prompts=[ids(rng.randint(1, 4)) for _ in range(num_prompts)],
        completions=completions,
        trains=[rng.random() < 0.9 for _ in completions],
        pad_id=0,
        device=torch.device("cpu"),
        actions=actions,
    )


def naive_logprobs(model: TinyLM, batch: Batch) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Log-probability and entropy of every action token, one row and one token at a time."""
    rows = []
    for i, completion in enumerate(batch.completions):
        prompt = batch.prompts[i // 3]
        row = []
        for t, token in enumerate(completion):
            if batch.actions[i][t]:
                text = torch.tensor([[*prompt, *completion[:t]]])
                p = model(text, torch.ones_like(text)).logits[0, -1].log_softmax(-1)
                row.append((p[token], -(p.exp() * p).sum()))
        rows.append(row)
    return rows


def ours(model, batch: Batch, layout, a: AlgorithmConfig, extra: dict) -> torch.Tensor:
    """The loss as the learner computes it, with old and reference values of the same shape."""
    scored = score_tokens(model, batch, 1.0, ScoreOptions(layout=layout, entropy_gradient=True))
    mask = batch.completion_mask
    x = Tokens(
        scored.logprobs,
        old_logprobs=torch.zeros(mask.shape).double().masked_scatter(mask, extra["old"]),
        entropy=scored.entropy,
        completion_mask=mask,
        loss_mask=batch.loss_mask,
        advantages=extra["advantages"][:, None],
        ref_logprobs=torch.zeros(mask.shape).double().masked_scatter(mask, extra["ref"]),
    )
    n = int(batch.loss_mask.sum())
    size = LossNormalizer(len(batch), n, LONGEST, num_carrying=n)
    return loss_of(x, a, Coefficients(a.kl_coef, a.entropy_coef), size).total


def beside(batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    n = sum(map(sum, batch.actions))
    old = -torch.rand(n, generator=g, dtype=torch.float64) * 3
    ref = old + 0.3 * torch.randn(n, generator=g, dtype=torch.float64)
    return {
        "old": old,
        "ref": ref,
        "advantages": torch.randn(len(batch), generator=g, dtype=torch.float64),
    }


def gradient(loss: torch.Tensor, model: TinyLM) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])


@pytest.mark.parametrize("layout", [packed, separate])
@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_loss_and_gradient_equal_a_loop_over_action_tokens(aggregation, layout):
    a = AlgorithmConfig(aggregation=aggregation, kl_coef=0.1, entropy_coef=0.05)
    for seed in range(6):
        model, batch = TinyLM(), trajectories(seed)
        extra = beside(batch, seed)
        old, ref = iter(extra["old"]), iter(extra["ref"])
        rows = naive_logprobs(model, batch)
        num_tokens = sum(len(r) for r, t in zip(rows, batch.trains, strict=True) if t)
        expected = torch.zeros((), dtype=torch.float64)
        for row, trains, advantage in zip(rows, batch.trains, extra["advantages"], strict=True):
            for logprob, entropy in row:
                before, reference = next(old), next(ref)
                if not trains:
                    continue
                ratio = (logprob - before).exp()
                bounded = ratio.clamp(1 - a.clip_eps_low, 1 + a.clip_eps_high)
                value = -torch.minimum(ratio * advantage, bounded * advantage)
                d = reference - logprob
                kl = d.exp() - d - 1
                value = value + 0.1 * (kl * ratio if a.kl_ratio_corrected else kl)
                weight = {
                    "token_mean": 1 / num_tokens,
                    "sequence_mean": 1 / (len(row) * len(rows)),
                    "constant": 1 / (len(rows) * LONGEST),
                }[aggregation]
                expected = expected + weight * value - 0.05 * entropy / num_tokens
        loss = ours(model, batch, layout, a, extra)
        assert abs(float(loss - expected)) <= 1e-9
        apart = (gradient(loss, model) - gradient(expected, model)).abs().max()
        assert apart <= 1e-9


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"trust_region"}))
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_objective_reads_action_tokens_alone(objective, level):
    """The loss equals that of rows from which the observations were cut out."""
    a = AlgorithmConfig(objective=objective, ratio_level=level, kl_coef=0.1)
    model, batch = TinyLM(), trajectories(7)
    extra = beside(batch, 7)
    rows = naive_logprobs(model, batch)
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(r) for r in rows])[:, None]

    def padded(values):
        return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, values)

    short = Tokens(
        padded(torch.stack([p for r in rows for p, _ in r])),
        padded(extra["old"]),
        padded(torch.stack([h for r in rows for _, h in r])),
        mask,
        mask & torch.tensor(batch.trains)[:, None],
        extra["advantages"][:, None],
        ref_logprobs=padded(extra["ref"]),
    )
    n = int(short.loss_mask.sum())
    size = LossNormalizer(len(batch), n, LONGEST, num_carrying=n)
    expected = loss_of(short, a, Coefficients(0.1, 0.0), size).total
    found = ours(model, batch, packed, a, extra)
    assert abs(float(found - expected)) <= 1e-9
    assert (gradient(found, model) - gradient(expected, model)).abs().max() <= 1e-9


def test_an_observation_changes_only_what_follows_it_in_its_row():
    batch = trajectories(3)
    row, start = next(
        (i, mask.index(False)) for i, mask in enumerate(batch.actions) if not all(mask)
    )
    changed = [list(c) for c in batch.completions]
    changed[row][start] = (changed[row][start] + 1) % VOCABULARY
    other = replace(batch, completions=changed)
    model = TinyLM()
    before, after = (score_tokens(model, b, 1.0).logprobs for b in (batch, other))
    moved = before != after
    assert moved[row].any()
    assert not moved[:, :start][row].any()
    moved[row] = False
    assert not moved.any()
    assert not after[~batch.completion_mask].any()


@pytest.mark.parametrize("tokens", [10, 1000])
def test_metrics_and_records_of_an_update_leave_observations_out(tokens):
    batch = trajectories(5)
    learner = make_learner(train={"micro_batch_tokens": tokens}, kl_coef=0.1)
    rows = naive_logprobs(learner.model, batch)
    entropies = [float(h) for row in rows for _, h in row]
    result = learner.update(batch, torch.ones(len(batch)))
    assert result.entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-6)
    assert (result.ratio_mean, result.ratio_max) == (1.0, 1.0)
    records = learner.log.records()
    for record, row, mask in zip(records, rows, batch.actions, strict=True):
        known = torch.tensor(record.logprobs)
        assert known.isnan().tolist() == [not acts for acts in mask]
        expected = torch.stack([p for p, _ in row]).float()
        torch.testing.assert_close(known[torch.tensor(mask)], expected.detach())


def as_prompts(batch: Batch) -> tuple[Batch, Batch]:
    """Rows that begin with an observation, and the same with that observation in the prompt.

    Both ask the policy for the same tokens after the same text, so an update must be the same.
    """
    rng = random.Random(1)
    seen = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 4))] for _ in batch.trains]
    written = [
        [t for t, acts in zip(c, a, strict=True) if acts]
        for c, a in zip(batch.completions, batch.actions, strict=True)
    ]
    sampled = [[-rng.random() for _ in row] for row in written]
    masked = replace(
        batch,
        completions=[[*s, *w] for s, w in zip(seen, written, strict=True)],
        actions=[[False] * len(s) + [True] * len(w) for s, w in zip(seen, written, strict=True)],
        sampling_logprobs=[[9.0] * len(s) + p for s, p in zip(seen, sampled, strict=True)],
    )
    plain = replace(
        batch,
        prompts=[[*batch.prompts[i // 3], *s] for i, s in enumerate(seen)],
        completions=written,
        sampling_logprobs=sampled,
        actions=None,
        sizes=[1] * len(seen),
    )
    return masked, plain


UPDATES = {
    **{name: {"objective": name} for name in OBJECTIVES if name != "trust_region"},
    "trust region": {"objective": "trust_region", "kl_coef": 0.0},
    "one ratio a sequence": {"ratio_level": "sequence"},
    "entropy quantile": {"entropy_quantile": 0.5},
    "off-policy threshold": {"off_policy_threshold": 0.2},
    "constant": {"aggregation": "constant"},
    "mean of sequences": {"aggregation": "sequence_mean"},
    "exact KL": {"kl_estimator": "exact"},
    "entropy bonus, two updates": {"entropy_coef": 0.1, "updates_per_batch": 2},
    "value": {"advantage": "value"},
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_observation_counts_as_little_as_a_prompt(name):
    """The weights and metrics of an update, whatever it computes."""
    masked, plain = as_prompts(trajectories(11))
    rewards = torch.linspace(-1, 2, len(masked), dtype=torch.float64)
    found = []
    for batch in (masked, plain):
        learner = make_learner(**{"kl_coef": 0.1, **UPDATES[name]})
        estimates = learner.estimate_values(batch, rewards)
        result = learner.update(batch, estimates or rewards)
        weights = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
        after = [r.logprobs_after for r in learner.log.records()]
        numbers = {f.name: getattr(result, f.name) for f in fields(result)}
        rows = None if estimates is None else estimates.row_advantages
        found.append((weights, numbers, rows, after))
    (weights, numbers, rows, _), (expected, others, other_rows, _) = found
    assert (weights - expected).abs().max() <= 1e-9
    assert numbers == pytest.approx(others, abs=1e-6, nan_ok=True)  # float32 metrics
    if rows is not None:
        torch.testing.assert_close(rows, other_rows)


@pytest.mark.parametrize("attention", ["grids", "sequences of different lengths"])
def test_the_fast_layouts_leave_out_what_separate_rows_leave_out(monkeypatch, attention):
    """On a CPU in grids; as on a GPU, whose kernel is computed by its reference here."""
    if attention != "grids":
        by_kernel = partial(attend_by_kernel, kernel=REFERENCE)
        monkeypatch.setattr(logprobs, "make_flat_attention", lambda *_: by_kernel)
    model, batch = make_model("Qwen3", torch.float64), trajectories(2)
    found, expected = (
        score_tokens(model, batch, 1.0, ScoreOptions(layout=x)) for x in (None, separate)
    )
    mask = batch.completion_mask
    assert not mask[batch.token_mask].all()
    for a, b in ((found.logprobs, expected.logprobs), (found.entropy, expected.entropy)):
        assert (a - b)[mask].abs().max() <= 1e-5  # angles are float32
        assert not a[~mask].any()
    apart = gradient(found.logprobs.sum(), model) - gradient(expected.logprobs.sum(), model)
    assert apart.abs().max() <= 1e-4


def test_lengths_and_rewards_of_a_step_count_what_the_policy_wrote():
    turns = (
        Turn(TurnRole.ACTION, "ab", 0, 2),
        Turn(TurnRole.OBSERVATION, "seen", 2, 4, "tool"),
        Turn(TurnRole.ACTION, "c", 6, 1),
    )
    long = Rollout(Completion("abseenc", "stop", 3, turns, "abc"), completion_ids=range(7))
    short = Rollout(Completion("d", "length", 1, (Turn(TurnRole.ACTION, "d", 0, 1),), "d"))
    short = replace(short, completion_ids=(1,))
    group = Group(Prompt("p", "?", "", "file"), (long, short), 0.0, 0.0, "tied")
    numbers = group_metrics([group], build_rubric(RubricConfig()))
    assert (numbers["completion_tokens_mean"], numbers["completion_tokens_max"]) == (2, 3)
    assert numbers["observation_frac"] == 4 / 8
    assert (numbers["turns_mean"], numbers["tool_calls_mean"]) == (1.5, 0.5)


def test_rows_without_an_environment_are_no_trajectories_of_no_turns():
    turns = tuple(
        Turn(TurnRole.OBSERVATION if i % 2 else TurnRole.ACTION, "ab", 2 * i, 2) for i in range(3)
    )
    acting = Rollout(Completion("ababab", "stop", 4, turns), completion_ids=range(6))
    plain = Rollout(Completion("c" * 18, "stop", 18), completion_ids=range(18))
    numbers = turn_metrics([acting, plain, plain])
    assert (numbers["turns_mean"], numbers["tool_calls_mean"]) == (2, 1)
    assert numbers["observation_frac"] == 2 / 6
    assert turn_metrics([plain]) == {}


def test_a_critic_steps_from_action_to_action():
    """γλ decays once a token that the policy wrote, not once an observation's token."""
    values = torch.tensor([[0.5, 9.0, 9.0, 0.25]], dtype=torch.float64)
    mask = torch.tensor([[True, False, False, True]])
    found = gae(values, torch.tensor([1.0], dtype=torch.float64), mask, 0.9, 0.5)
    last = 1 - 0.25
    first = 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last
    torch.testing.assert_close(found, torch.tensor([[first, 0.0, 0.0, last]], dtype=torch.float64))
