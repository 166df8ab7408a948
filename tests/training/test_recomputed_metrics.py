"""Every recorded metric recomputed from the stored rows and token records alone.

In numpy and float64, one completion at a time, without this project's own code.

Not in the records, so tested otherwise: the gradient's norm (recomputed from the stored tokens for
the first step), a critic's values (its loss must be the rest of the total), KL over whole
distributions (tests/learner/test_update.py) and the clock (parts within the whole).
"""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_core.config import nest, parse
from grpo_core.models import load_policy
from grpo_core.models.source import BUNDLED
from grpo_core.rubric.rubric import resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.training.checkpoint import WEIGHTS
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import STEP_METRICS

G, STEPS, MAX_TOKENS = 4, 3, 24
BASE = {
    "train.steps": STEPS,
    "train.prompts_per_step": 4,
    "train.group_size": G,
    "train.max_new_tokens": MAX_TOKENS,
    "train.learning_rate": 1e-3,
    "train.warmup_steps": 2,
    "train.after_records": 9,
    "task.heldout_size": 0,
    "task.name": "arithmetic",
}
RUNS: dict[str, dict[str, Any]] = {
    "clip, two-sided, k3 corrected, sequence_mean, truncated masked": {
        "updates_per_batch": 3,
        "clip_delta": 1.3,
        "clip_eps_low": 0.1,
        "kl_coef": 0.1,
        "kl_ratio_corrected": True,
        "aggregation": "sequence_mean",
        "mask_truncated": True,
    },
    "sequence ratio, k2, entropy bonus and share": {
        "updates_per_batch": 2,
        "ratio_level": "sequence",
        "clip_eps_low": 1e-3,
        "clip_eps_high": 1e-3,
        "kl_estimator": "k2",
        "entropy_coef": 0.01,
        "entropy_quantile": 0.37,
    },
    "cispo, constant, no KL, off-policy drop, group_mean": {
        "updates_per_batch": 2,
        "objective": "cispo",
        "cispo_cap": 1.05,
        "kl_coef": 0.0,
        "aggregation": "constant",
        "off_policy_threshold": 0.02,
        "advantage": "group_mean",
    },
    "vespo, siblings of the step, k1 steered": {
        "updates_per_batch": 2,
        "objective": "vespo",
        "grouping": "batch",
        "kl_estimator": "k1",
        "kl_control": "adaptive",
        "kl_target": 0.001,
        "kl_horizon": 40,
    },
    "gmpo, leave_one_out, entropy target": {
        "updates_per_batch": 2,
        "objective": "gmpo",
        "gmpo_eps": 0.02,
        "advantage": "leave_one_out",
        "aggregation": "sequence_mean",
        "entropy_coef": 0.01,
        "entropy_target": 5.0,
    },
    "spo": {
        "updates_per_batch": 2,
        "objective": "spo",
        "clip_eps_low": 0.01,
        "clip_eps_high": 0.03,
    },
    "sapo, rank": {"updates_per_batch": 2, "objective": "sapo", "advantage": "rank"},
    "reinforce, per_criterion": {"objective": "reinforce", "advantage": "per_criterion"},
    "batch_std, rewards clipped": {"advantage": "batch_std", "rubric.clip_high": 1.0},
    "trust region": {"objective": "trust_region", "kl_coef": 0.0},
    "critic": {"advantage": "value", "updates_per_batch": 2},
}


@dataclass
class Row:
    """A stored completion with the log-probabilities and entropy of its tokens for each pass.

    A pass that left the completion out has none.
    """

    prompt: str
    token_ids: np.ndarray
    reward: float | None
    advantage: float
    scores: dict[str, float | None]
    text: str
    cut: bool
    num_tokens: int
    sampled: np.ndarray
    passes: list[tuple[np.ndarray, np.ndarray]]
    ref: np.ndarray | None
    after: np.ndarray | None
    trains: bool = True


@dataclass
class Step:
    groups: list[tuple[str, list[Row]]]
    steps: dict[str, float]
    metrics: dict[str, float]

    @property
    def rows(self) -> list[Row]:
        return [row for _, rows in self.groups for row in rows]


def read(path, run_id: str, a: SimpleNamespace) -> list[Step]:
    """The steps of a run from its tables."""
    found = []
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        for step in db.execute("SELECT * FROM steps WHERE run_id = ? ORDER BY step", (run_id,)):
            groups = []
            for group in db.execute(
                "SELECT * FROM groups WHERE run_id = ? AND step = ? ORDER BY position",
                (run_id, step["step"]),
            ):
                rows = []
                for r in db.execute(
                    "SELECT * FROM rollouts LEFT JOIN token_records ON rollout_id = rollouts.id "
                    "WHERE group_id = ? ORDER BY position",
                    (group["id"],),
                ):
                    ids = np.frombuffer(r["token_ids"], np.int32)
                    new, entropy = (
                        np.frombuffer(r[c] or b"", np.float32).astype(float).reshape(-1, len(ids))
                        for c in ("logprobs", "entropy")
                    )
                    rows.append(
                        Row(
                            group["prompt"],
                            ids,
                            r["reward"],
                            r["advantage"],
                            json.loads(r["scores"]),
                            r["text"],
                            r["finish_reason"] == "length",
                            r["num_tokens"],
                            np.frombuffer(r["sampling_logprobs"], np.float32).astype(float),
                            list(zip(new, entropy, strict=True)),
                            floats(r["ref_logprobs"]),
                            floats(r["logprobs_after"]),
                            trains=not (a.mask_truncated and r["finish_reason"] == "length"),
                        )
                    )
                groups.append((group["verdict"], rows))
            named = dict(
                db.execute(
                    "SELECT name, value FROM metrics WHERE run_id = ? AND step = ?",
                    (run_id, step["step"]),
                ).fetchall()
            )
            found.append(Step(groups, dict(step), named))
    return found


def floats(column: bytes | None) -> np.ndarray | None:
    return None if column is None else np.frombuffer(column, np.float32).astype(float)


@pytest.fixture(scope="module", params=list(RUNS))
def recorded(request, tmp_path_factory):
    """A short run of the bundled model: configuration, algorithm section and stored steps."""
    settings = BASE | {
        k if "." in k else f"algorithm.{k}": v for k, v in RUNS[request.param].items()
    }
    config = parse(nest(settings))
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    folder = tmp_path_factory.mktemp("recomputed")
    store = Store(folder / "runs.sqlite")
    run_id = store.create_run(config, request.param)
    with Recorder(store, run_id) as recorder:
        train(config, recorder, RunControl(folder / "saved"))
    a = SimpleNamespace(**config.algorithm.model_dump())
    [last] = (folder / "saved").iterdir()
    return SimpleNamespace(config=config, a=a, steps=read(store.path, run_id, a), last=last)


# ---- rewards, groups, lengths --------------------------------------------------------------------


@pytest.mark.slow
def test_metrics_of_groups_are_recomputed_from_groups(recorded):
    for step in recorded.steps:
        rows, rewards = step.rows, np.array([r.reward for r in step.rows], float)
        spans = [np.ptp([r.reward for r in rows]) for _, rows in step.groups]
        right = [np.mean([r.scores["accuracy"] for r in rows]) for _, rows in step.groups]
        lengths = [len(r.sampled) for r in rows]
        assert_metrics(
            step,
            {
                "reward_mean": rewards.mean(),
                "reward_std": rewards.std(ddof=1),
                "advantage_std": np.std([r.advantage for r in rows]),
                "tied_group_frac": np.mean([s <= 1e-8 for s in spans]),
                "tied_best_frac": np.mean(
                    [s <= 1e-8 and p == 1 for s, p in zip(spans, right, strict=True)]
                ),
                "tied_worst_frac": np.mean(
                    [s <= 1e-8 and p == 0 for s, p in zip(spans, right, strict=True)]
                ),
                "tied_middle_frac": np.mean(
                    [s <= 1e-8 and 0 < p < 1 for s, p in zip(spans, right, strict=True)]
                ),
                "completion_tokens_mean": np.mean(lengths),
                "completion_tokens_max": max(lengths),
                "truncated_frac": np.mean([r.cut for r in rows]),
                "unique_frac": np.mean(
                    [len({r.text for r in rows}) / G for _, rows in step.groups]
                ),
                "unscored_frac": 0.0,
                "tokens": sum(lengths),
                "replaced_groups": 0,
            },
        )
        assert [r.num_tokens for r in rows] == lengths
        assert {n: v for n, v in step.metrics.items() if n.startswith("score/")} == pytest.approx(
            {f"score/{name}": np.mean([r.scores[name] for r in rows]) for name in rows[0].scores}
        )


@pytest.mark.slow
def test_rewards_and_advantages_follow_from_the_scores(recorded):
    a, weights = recorded.a, {c.name: c.weight for c in recorded.config.rubric.criteria}
    high = recorded.config.rubric.clip_high or math.inf
    for step in recorded.steps:
        for row in step.rows:
            assert row.reward == pytest.approx(
                sum(w * row.scores[k] for k, w in weights.items()), abs=1e-12
            )
        if a.advantage == "value":
            continue
        groups = [step.rows] if a.grouping == "batch" else [rows for _, rows in step.groups]
        rewards = [np.minimum([r.reward for r in rows], high) for rows in groups]
        if a.advantage == "per_criterion":
            u = [
                sum(
                    w * standard(np.array([r.scores[k] for r in rows]))
                    for k, w in weights.items()
                    if w
                )
                for rows in groups
            ]
            spread = math.sqrt(sum((v**2).sum() for v in u) / (len(step.rows) - 1))
            expected = [v / (spread + 1e-4) for v in u]
        else:
            expected = [
                advantages(r, a.advantage, np.concatenate(rewards).std(ddof=1)) for r in rewards
            ]
        for rows, values in zip(groups, expected, strict=True):
            assert [r.advantage for r in rows] == pytest.approx(values.tolist(), abs=1e-6)


def advantages(r: np.ndarray, estimator: str, std_of_step: float) -> np.ndarray:
    centred = np.where(np.ptp(r) <= 1e-8, 0.0, r - r.mean())
    if estimator == "batch_std":
        return centred / (std_of_step + 1e-4)
    return {
        "group_std": standard(r),
        "group_mean": centred,
        "leave_one_out": centred * G / (G - 1),
        "rank": ranked(r),
    }[estimator]


def standard(values: np.ndarray) -> np.ndarray:
    return (
        np.zeros(len(values))
        if np.ptp(values) <= 1e-8
        else (values - values.mean()) / (values.std(ddof=1) + 1e-4)
    )


def ranked(values: np.ndarray) -> np.ndarray:
    ranks = np.array([np.sum(values < v - 1e-8) + np.sum(values <= v + 1e-8) for v in values]) / 2
    ranks = ranks - ranks.mean()
    return ranks / ranks.std(ddof=1) if np.ptp(ranks) > 0 else ranks


# ---- loss and its parts --------------------------------------------------------------------------


@pytest.mark.slow
def test_loss_kl_ratio_clip_and_entropy_follow_from_the_tokens(recorded):
    a = recorded.a
    if a.advantage == "value":
        pytest.skip("token advantages of a critic are not stored")
    coef_kl, coef_entropy, last_entropy, arrived, completions = (
        a.kl_coef,
        a.entropy_coef,
        math.inf,
        False,
        0,
    )
    for step in recorded.steps:
        passes, kl = [], None
        for u in range(a.updates_per_batch):
            entropy_on = (
                coef_entropy
                if a.entropy_target is None or last_entropy <= a.entropy_target
                else 0.0
            )
            passes.append(one_pass(step, u, a, coef_kl, entropy_on))
            last_entropy, kl = passes[-1].pop("carried_entropy"), passes[-1]["kl"]
            if a.entropy_target is not None:
                delta = (
                    a.entropy_coef_delta
                    if last_entropy <= a.entropy_target
                    else -a.entropy_coef_delta
                )
                coef_entropy = min(max(coef_entropy + delta, 0.0), a.entropy_coef_max)
        expected = {
            name: None if passes[0][name] is None else np.mean([p[name] for p in passes])
            for name in passes[0]
        }
        expected["ratio_max"] = max(p["ratio_max"] for p in passes)
        if not watched(
            a
        ):  # then KL is measured on the first eighth of the completions, before the first update
            share = step.rows[: math.ceil(len(step.rows) / 8)]
            expected["kl"] = np.concatenate(
                [kl_of(r.ref - r.passes[0][0], a) for r in share]
            ).mean()
        assert_metrics(
            step,
            expected
            | {
                "kl_coef": coef_kl,
                "clip_frac": expected["clip_low_frac"] + expected["clip_high_frac"],
            },
        )
        if a.kl_control == "adaptive":
            arrived = arrived or kl >= a.kl_target
            moved = coef_kl * (
                1 + np.clip(kl / a.kl_target - 1, -0.2, 0.2) * len(step.rows) / a.kl_horizon
            )
            completions += len(step.rows)
            coef_kl = moved if arrived or completions > 5 * a.kl_horizon else max(moved, coef_kl)


def watched(a: SimpleNamespace) -> bool:
    return a.kl_coef > 0 or a.kl_control != "fixed"


def kl_of(d: np.ndarray, a: SimpleNamespace) -> np.ndarray:
    return {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[a.kl_estimator]


def one_pass(
    step: Step, u: int, a: SimpleNamespace, coef_kl: float, coef_entropy: float
) -> dict[str, float | None]:
    """What pass u over the batch recorded.

    With neither KL nor entropy in the loss, groups without an advantage are left out of it.
    """
    whole = watched(a) or a.entropy_coef or a.entropy_target is not None or a.entropy_quantile < 1
    rows = [
        r
        for _, siblings in step.groups
        for r in siblings
        if whole or any(s.advantage for s in siblings)
    ]
    num_tokens, num_rows = sum(len(r.sampled) for r in step.rows if r.trains), len(step.rows)
    entropies = np.concatenate([r.passes[u][1] for r in rows if r.trains])
    cut = np.quantile(entropies, 1 - a.entropy_quantile) if a.entropy_quantile < 1 else -math.inf
    policy = kl_loss = carried = 0.0
    num_carrying = (
        sum(int((r.passes[u][1] >= cut).sum()) for r in rows if r.trains)
        if a.entropy_quantile < 1
        else num_tokens
    )
    ratios, low, high, kls, dropped = [], 0, 0, [], 0
    for r in rows:
        new, entropy = r.passes[u]
        n, A, log_ratio = len(new), r.advantage, new - r.passes[0][0]
        w = np.exp(log_ratio) if a.ratio_level == "token" else np.full(n, np.exp(log_ratio.mean()))
        carries = (entropy >= cut) & r.trains
        if (
            a.off_policy_threshold is not None
            and A < 0
            and r.trains
            and (r.sampled - new).mean() > a.off_policy_threshold
        ):
            dropped, carries = dropped + 1, carries & False
        weight = {
            "sequence_mean": 1 / (n * num_rows),
            "token_mean": 1 / num_tokens,
            "constant": 1 / (num_rows * MAX_TOKENS),
        }[a.aggregation]
        policy += weight * (objective(a, A, w, log_ratio, new)[carries]).sum()
        ratios.append(w)
        lowest, highest = limits(a)
        low, high = (
            low + int((w < lowest).sum() if A < 0 else 0),
            high + int((w > highest).sum() if A > 0 else 0),
        )
        if r.trains:
            carried += entropy[entropy >= cut].sum() / num_carrying
        if watched(a):
            kl = kl_of(r.ref - new, a)
            kls.append(kl)
            if r.trains:
                kl_loss += coef_kl * weight * (kl * w if a.kl_ratio_corrected else kl).sum()
    ratio, looked_at = np.concatenate(ratios), sum(map(len, ratios))
    entropy_loss = -coef_entropy * carried if coef_entropy else 0.0
    return {
        "policy_loss": policy,
        "kl_loss": kl_loss,
        "entropy_loss": entropy_loss,
        "loss": policy + kl_loss + entropy_loss,
        "value_loss": None,
        "kl": np.concatenate(kls).mean() if kls else None,
        "entropy": np.concatenate([r.passes[u][1] for r in rows]).mean(),
        "entropy_coef": coef_entropy,
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "clip_low_frac": low / looked_at,
        "clip_high_frac": high / looked_at,
        "off_policy_frac": dropped / num_rows,
        "carried_entropy": carried,
    }


def objective(
    a: SimpleNamespace, A: float, w: np.ndarray, log_ratio: np.ndarray, new: np.ndarray
) -> np.ndarray:
    if a.objective == "clip":
        return -np.minimum(
            np.minimum(w, a.clip_delta or math.inf) * A,
            np.clip(w, 1 - a.clip_eps_low, 1 + a.clip_eps_high) * A,
        )
    if a.objective == "spo":
        return -(
            w * A - abs(A) * (w - 1) ** 2 / (2 * (a.clip_eps_high if A > 0 else a.clip_eps_low))
        )
    if a.objective == "cispo":
        return -np.minimum(w, a.cispo_cap) * A * new
    if a.objective == "sapo":
        tau = a.sapo_tau_pos if A > 0 else a.sapo_tau_neg
        return -A / (1 + np.exp(-tau * (w - 1))) * 4 / tau
    if a.objective == "vespo":
        k, lam = (
            (a.vespo_k_pos, a.vespo_lambda_pos) if A >= 0 else (a.vespo_k_neg, a.vespo_lambda_neg)
        )
        log_w = np.clip(np.clip(log_ratio, -20, 20).sum(), math.log(1e-8), 20)
        return -np.exp(lam + k * log_w - lam * np.exp(log_w)) * A * new
    if a.objective == "gmpo":
        clamped = np.clip(log_ratio, -a.gmpo_eps, a.gmpo_eps)
        c = np.minimum(log_ratio, clamped) if A > 0 else np.maximum(log_ratio, clamped)
        return np.full(len(new), -A * np.exp(c.mean()))
    return -A * (new if a.objective == "reinforce" else w)  # trust_region


def limits(a: SimpleNamespace) -> tuple[float, float]:
    inside = (1 - a.clip_eps_low, 1 + a.clip_eps_high)
    return {
        "clip": inside,
        "spo": inside,
        "cispo": (0, a.cispo_cap),
        "gmpo": (math.exp(-a.gmpo_eps), math.exp(a.gmpo_eps)),
    }.get(a.objective, (0, math.inf))


# ---- what the tokens do not say ------------------------------------------------------------------


@pytest.mark.slow
def test_updates_learning_rate_clock_and_memory_are_in_order(recorded):
    a, t = recorded.a, recorded.config.train
    for i, step in enumerate(recorded.steps, 1):
        s = step.steps
        assert s["num_updates"] == a.updates_per_batch
        assert s["learning_rate"] == (
            None
            if a.objective == "trust_region"
            else pytest.approx(t.learning_rate * min(1, i / t.warmup_steps))
        )
        assert s["grad_norm"] > 0
        assert s["peak_memory_mib"] > 0
        parts = s["sampling_seconds"] + s["scoring_seconds"] + s["update_seconds"]
        assert 0 < parts <= s["step_seconds"] + 1e-6
        assert s["loss"] == pytest.approx(
            s["policy_loss"]
            + s["kl_loss"]
            + s["entropy_loss"]
            + a.value_coef * (s["value_loss"] or 0.0),
            abs=1e-5,
            rel=3e-7,  # a few roundings of float32: a critic's first loss is 450
        )
        assert (
            (s["value_loss"] is None)
            == (s["explained_variance"] is None)
            == (a.advantage != "value")
        )
        assert (s["trust_kl"] is None) == (a.objective != "trust_region")
        if a.objective == "trust_region":
            assert s["trust_kl"] <= s["trust_delta"] == a.trust_region_delta
        for name in STEP_METRICS:
            assert s[name] is None or math.isfinite(s[name])


@pytest.mark.slow
def test_the_first_gradients_norm_is_that_of_the_stored_tokens_loss(recorded):
    """-Σ A·log π / N in the first update, a row at a time, unpadded.

    For every objective except those that weigh a completion otherwise.
    """
    a = recorded.a
    if a.updates_per_batch > 1 or a.advantage == "value":
        pytest.skip("the record is a mean over several updates")
    first = recorded.steps[0]
    policy = load_policy(recorded.config.model, 0)
    policy.model.double()
    num_tokens = sum(len(r.token_ids) for r in first.rows)
    for row in first.rows:
        prompt, ids = policy.tokenizer(row.prompt)["input_ids"], torch.tensor(row.token_ids).long()
        logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        (
            -row.advantage * logits.log_softmax(-1).gather(1, ids[:, None]).sum() / num_tokens
        ).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in policy.model.parameters()))
    assert first.steps["grad_norm"] == pytest.approx(
        norm, rel=1e-3
    )  # float32 there; KL has no gradient while policy and reference are one


@pytest.mark.slow
def test_log_probabilities_after_the_last_step_are_those_of_its_saved_weights(recorded):
    """By transformers' own forward pass in float64, a row at a time, unpadded."""
    tokenizer = load_policy(recorded.config.model, 0).tokenizer
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float64).eval()
    missing, unknown = model.load_state_dict(load_file(recorded.last / WEIGHTS), strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])  # tied to the embeddings
    changed = 0.0
    for row in recorded.steps[-1].rows:
        if not row.passes:
            assert row.after is None
            continue
        prompt, ids = tokenizer(row.prompt)["input_ids"], torch.tensor(row.token_ids).long()
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        assert row.after == pytest.approx(expected.numpy(), abs=2e-4)
        changed = max(changed, float(np.abs(row.after - row.passes[0][0]).max()))
    assert changed > 1e-3  # the update moved them, so before is not after


def assert_metrics(step: Step, expected: dict[str, float | None]) -> None:
    """Equal within the error of float32 tensors: 1e-4 relative, or 1e-6 absolute near 0."""
    for name, value in expected.items():
        got = step.steps[name]
        assert got == (
            None if value is None else pytest.approx(float(value), rel=1e-4, abs=2e-6)
        ), name
