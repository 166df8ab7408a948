"""Random steps in a store, and all numbers of their groups by plain loops over floats."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import dataclass, field

from grpo_core.config import nest, parse
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    StepTokens,
    TokenRecord,
)

WEIGHTS = {"right": 1.0, "form": 0.3}
MAX_NEW_TOKENS = 12
KL_COEF = 0.07


@dataclass
class Row:
    """A completion: what is recorded, and what follows from it."""

    scores: dict[str, float | None]
    tokens: TokenRecord
    finish_reason: str
    reward: float | None
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.token_ids)


def floats(rng: random.Random, n: int, low: float, high: float) -> array:
    return array("f", [rng.uniform(low, high) for _ in range(n)])


def random_row(rng: random.Random) -> Row:
    scores = {
        "right": rng.choice([0.0, 0.0, 1.0, None]),
        "form": rng.choice([0.0, 0.25, 0.5, 1.0, None]),
    }
    known = [WEIGHTS[name] * s for name, s in scores.items() if s is not None]
    n = rng.randint(1, 6)
    old = floats(rng, n, -3, -0.1)
    new = array("f", [x + rng.uniform(-0.5, 0.5) for x in old])
    tokens = TokenRecord(
        token_ids=array("i", [rng.randint(1, 50) for _ in range(n)]),
        sampling_logprobs=old,
        logprobs=old + new,
        ref_logprobs=array("f", [x + rng.uniform(-0.7, 0.7) for x in old]),
        entropy=floats(rng, 2 * n, 0, 2),
        logprobs_after=array("f", [x + rng.uniform(-0.5, 0.5) for x in new]),
    )
    return Row(scores, tokens, rng.choice(["stop", "length"]), sum(known) if known else None)


def config(**fields):
    criteria = [
        {"name": name, "check": check, "weight": weight}
        for (name, weight), check in zip(WEIGHTS.items(), ("accuracy", "format"), strict=True)
    ]
    given = {
        "rubric.name": "custom",
        "rubric.criteria": criteria,
        "algorithm.kl_coef": KL_COEF,
        "algorithm.updates_per_batch": 2,
        "train.max_new_tokens": MAX_NEW_TOKENS,
        "train.prompts_per_step": 5,
    }
    return parse(nest(given | fields))


def record_steps(store: Store, settings, num_steps: int, seed: int):
    """A run of steps of five groups of equal size. Returns its id, and the rows of each step."""
    rng = random.Random(seed)
    run_id = store.create_run(settings, "random", status=RunStatus.FINISHED)
    steps = []
    with Recorder(store, run_id) as record:
        for step in range(1, num_steps + 1):
            size = rng.randint(2, 6)
            groups = [[random_row(rng) for _ in range(size)] for _ in range(5)]
            compute(groups, settings)
            record(GroupsScored(step, tuple(_group(p, rows) for p, rows in enumerate(groups))))
            records = {
                (p, i): row.tokens for p, rows in enumerate(groups) for i, row in enumerate(rows)
            }
            pieces = {i: b"t%d" % i for i in range(1, 51)}
            tokens = StepTokens(records, pieces if step == 1 else {})
            metrics = StepMetrics(kl_coef=KL_COEF, entropy_coef=0.0, loss=0.5, kl=0.25)
            record(StepCompleted(step, metrics, {}, tokens))
            steps.append(groups)
    return run_id, steps


def _group(place: int, rows: list[Row]) -> Group:
    rollouts = tuple(
        Rollout(
            Completion(f"text {i}", row.finish_reason, row.num_tokens),
            row.scores,
            row.reward,
            row.numbers["advantage"],
        )
        for i, row in enumerate(rows)
    )
    known = [row.reward for row in rows if row.reward is not None]
    return Group(
        Prompt(f"p{place}", f"question {place}", "4", "sums"),
        rollouts,
        mean(known) if known else None,
        std(known) if len(known) > 1 else None,
        "healthy",
    )


# ---- by plain loops --------------------------------------------------------------------------


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def std(values: list[float], centre: float | None = None) -> float:
    """Sample standard deviation; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    m = mean(values) if centre is None else centre
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))


def compute(groups: list[list[Row]], settings) -> None:
    """Fill `numbers` of every row of a step."""
    advantages(groups, settings.algorithm.advantage)
    rows = [row for group in groups for row in group]
    a = settings.algorithm
    training = [r for r in rows if not (a.mask_truncated and r.finish_reason == "length")]
    num_tokens = sum(row.num_tokens for row in training)
    for row in rows:
        token_numbers(row, settings, len(rows), num_tokens, row in training)


def advantages(groups: list[list[Row]], estimator: str) -> None:
    scored = [r.reward for group in groups for r in group if r.reward is not None]
    for group in groups:
        known = [r.reward for r in group if r.reward is not None]
        m = mean(known) if known else 0.0
        for row in group:
            d, spread, eps = 0.0, None, 1e-4
            if row.reward is not None:
                d = row.reward - m
                if estimator == "leave_one_out":
                    d = (
                        row.reward - (sum(known) - row.reward) / (len(known) - 1)
                        if len(known) > 1
                        else 0
                    )
                if estimator == "rank":
                    lower = sum(k < row.reward - 1e-9 for k in known)
                    equal = sum(abs(k - row.reward) < 1e-9 for k in known)
                    d = lower + (equal + 1) / 2 - (len(known) + 1) / 2
            if estimator == "group_std":
                spread = std(known)
            elif estimator == "batch_std":
                spread = std(scored)
            elif estimator == "rank":
                ranks = [
                    sum(k < r - 1e-9 for k in known)
                    + (sum(abs(k - r) < 1e-9 for k in known) + 1) / 2
                    for r in known
                ]
                spread, eps = std(ranks) or 1.0, 0.0
            row.numbers |= {"difference": d, "spread": spread, "eps": eps}
    if estimator == "per_criterion":
        weighted_criteria(groups)
    for row in (row for group in groups for row in group):
        d, spread, eps = (row.numbers[name] for name in ("difference", "spread", "eps"))
        row.numbers["advantage"] = d if spread is None else d / (spread + eps)


def weighted_criteria(groups: list[list[Row]]) -> None:
    for group in groups:
        for row in group:
            row.numbers["difference"] = 0.0
        for name, weight in WEIGHTS.items():
            known = [r.scores[name] for r in group if r.scores[name] is not None]
            for row in group:
                if row.scores[name] is not None:
                    z = (row.scores[name] - mean(known)) / (std(known) + 1e-4)
                    row.numbers["difference"] += weight * z
    scored = [r.numbers["difference"] for g in groups for r in g if r.reward is not None]
    for row in (row for group in groups for row in group):
        row.numbers["spread"] = std(scored, centre=0.0)


def token_numbers(row: Row, settings, num_rows: int, num_tokens: int, trains: bool) -> None:
    a, n, t, numbers = settings.algorithm, row.num_tokens, row.tokens, row.numbers
    old, new, ref = t.logprobs[:n], t.logprobs[n:], t.ref_logprobs
    advantage, low, high = numbers["advantage"], 1 - a.clip_eps_low, 1 + a.clip_eps_high
    changes = [new[i] - old[i] for i in range(n)]
    if a.ratio_level == "sequence":
        changes = [mean(changes)] * n
    ratios = [math.exp(c) for c in changes]
    weight = {
        "token_mean": 1 / max(num_tokens, 1),
        "sequence_mean": 1 / (num_rows * n),
        "constant": 1 / (num_rows * MAX_NEW_TOKENS),
    }[a.aggregation] * trains
    distances = [ref[i] - new[i] for i in range(n)]
    kl = {
        "k1": [-d for d in distances],
        "k2": [d * d / 2 for d in distances],
        "k3": [math.exp(d) - d - 1 for d in distances],
    }
    policy = kl_loss = 0.0
    clipped = 0
    for i, w in enumerate(ratios):
        policy -= weight * min(w * advantage, min(max(w, low), high) * advantage)
        kl_loss += weight * a.kl_coef * kl[a.kl_estimator][i]
        clipped += trains and ((w > high and advantage > 0) or (w < low and advantage < 0))
    numbers |= {
        "num_clipped": clipped,
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "policy_loss": policy,
        "kl_loss": kl_loss,
        "loss": policy + kl_loss,
        "before": sum(old),
        "after": sum(t.logprobs_after),
        **{name: mean(values) for name, values in kl.items()},
    }
