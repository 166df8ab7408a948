"""What does a reward model learn from 300 judged pairs, and what does a policy learn from it?

    python -m benchmarks.preferences [--seeds 3] [--pairs 300] [--db FILE]

A simulated rater has a hidden rule: it prefers right answers, and the shorter of two equally right
ones; one verdict in ten is flipped. It judges pairs of completions that the bundled model sampled
for a stored run. A reward model is trained on its verdicts and measured against the rule without
noise, on held-out prompts. Then GRPO trains on that reward model alone. The last runs are made to
go wrong: their reward model learnt from a rater that always prefers the shorter answer.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.analysis.advisor import advise
from grpo_core.analysis.heldout import heldout, paired
from grpo_core.config import nest, parse
from grpo_core.preferences.judged_pairs import judged_pairs, split_by_prompt
from grpo_core.preferences.reward_folder import save
from grpo_core.preferences.reward_settings import reward_settings
from grpo_core.preferences.reward_training import train_reward_model
from grpo_core.rubric.check import Notes
from grpo_core.rubric.predict import wilson_interval
from grpo_core.rubric.reward_model import RewardModelParams, reward_model
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import prepare
from grpo_core.store import GroupRow, RolloutRow, Store, preferences
from grpo_core.store.preferences import Preference
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import Completion, GroupKind, Prompt, RunStatus

NOISE = 0.1
ACCURACY = {"name": "accuracy", "check": "accuracy", "weight": 1.0, "outcome": True}
# The bundled model's own samples: its weights do not move.
STILL = {
    "rubric.name": "custom",
    "rubric.criteria": [ACCURACY],
    "train.learning_rate": 1e-12,
    "train.token_records": 0,
    "train.eval_samples": 4,
}
PAGE = {"train.steps": 15, "train.prompts_per_step": 32, "train.group_size": 4}
FRESH = {"train.steps": 1, "train.prompts_per_step": 1, "train.group_size": 2}

Rule = Callable[[RolloutRow], tuple[float, ...]]  # the larger is the better one


def hidden_rule(answer: RolloutRow) -> tuple[float, ...]:
    """Right before wrong; then the shorter."""
    return (answer.scores["accuracy"] or 0.0, -len(answer.text))


def short_rule(answer: RolloutRow) -> tuple[float, ...]:
    """The shorter, right or wrong."""
    return (-len(answer.text),)


@dataclass(frozen=True)
class Judged:
    """Two completions of a group, the better one by the rule first."""

    group: GroupRow
    better: RolloutRow
    worse: RolloutRow


def decided_pairs(groups: Sequence[GroupRow], rule: Rule, rng: random.Random) -> list[Judged]:
    """At most one pair a group that the rule decides, so that the pairs are independent."""
    found = []
    for group in groups:
        pairs = [(a, b) for a, b in combinations(group.rollouts, 2) if rule(a) != rule(b)]
        if pairs:
            worse, better = sorted(rng.choice(pairs), key=rule)
            found.append(Judged(group, better, worse))
    return found


def run(store: Store, name: str, settings: Mapping[str, Any]) -> str:
    """Train the run unless the store has it; its id."""
    for row in store.runs():
        if row.name == name and row.status is RunStatus.FINISHED:
            return row.id
    config = prepare(parse(nest(settings)))
    run_id = store.create_run(config, name)
    status = execute(store, Job(run_id, config, RunControl()), train)
    assert status is RunStatus.FINISHED, store.run(run_id).error
    return run_id


def groups_of(store: Store, run_id: str, kind: GroupKind, step: int | None = None):
    return [
        store.group(group_id)
        for s in ([row["step"] for row in store.steps(run_id)] if step is None else [step])
        for group_id in store.group_ids(run_id, s, kind)
    ]


def judge(pairs: Sequence[Judged], rng: random.Random, who: str) -> list[Preference]:
    """The rater's verdicts on pairs whose sides are drawn."""
    verdicts = []
    for pair in pairs:
        left_is_better = rng.random() < 0.5
        says_left = left_is_better != (rng.random() < NOISE)
        left, right = (pair.better, pair.worse)[:: 1 if left_is_better else -1]
        verdicts.append(
            Preference(
                prompt=pair.group.prompt,
                prompt_id=pair.group.prompt_id,
                left=left.text,
                right=right.text,
                verdict="left" if says_left else "right",
                created_at=time.time(),
                source="terminal",
                who=who,
                run_id=pair.group.run_id,
                group_id=pair.group.id,
            )
        )
    return verdicts


def agreement(pairs: Sequence[Judged], folder: Path) -> tuple[float, float, float]:
    """How often the folder, as the criterion reward_model, prefers what the rule prefers."""
    prompts = [Prompt(p.group.prompt_id, p.group.prompt, p.group.answer, "sums") for p in pairs]
    scores = [
        reward_model(
            [Completion(getattr(p, side).text, "stop", 1) for p in pairs],
            prompts,
            RewardModelParams.model_validate({"model": str(folder)}),
            Notes(),
        )
        for side in ("better", "worse")
    ]
    right = sum(a > b for a, b in zip(*scores, strict=True) if a is not None and b is not None)
    return (right / len(pairs), *wilson_interval(right, len(pairs)))


def reward_rubric(folder: Path) -> dict[str, Any]:
    """The reward model alone; accuracy is only watched."""
    liked = {"name": "liked", "check": "reward_model", "weight": 1.0}
    return {
        "rubric.name": "custom",
        "rubric.criteria": [
            {**liked, "params": {"model": str(folder)}},
            {**ACCURACY, "weight": 0.0},
        ],
        "train.eval_records": 200,
        "task.heldout_size": 200,
    }


def rule_gain(store: Store, run_id: str) -> str:
    """Right before and after; the paired difference; and how often the rule prefers the later."""
    found = heldout(store, run_id)
    assert found.before is not None
    assert found.after is not None
    last = store.run(run_id).steps_done
    first, later = (
        {g.prompt_id: g.rollouts[0] for g in groups_of(store, run_id, GroupKind.EVALUATION, step)}
        for step in (0, last)
    )
    gain = paired(*({p: hidden_rule(r)[0] for p, r in side.items()} for side in (first, later)))
    assert gain is not None
    wins = sum(hidden_rule(later[p]) > hidden_rule(first[p]) for p in first)
    losses = sum(hidden_rule(later[p]) < hidden_rule(first[p]) for p in first)
    low, high = wilson_interval(wins, wins + losses)
    scores = dict(store.metrics(run_id, ["heldout/reward"])["heldout/reward"])
    return (
        f"{scores[0]:.2f} → {scores[last]:.2f} | {found.before.value:.1%} | {found.after.value:.1%}"
        f" | {100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) | "
        f"{wins} : {losses} ({low:.0%}–{high:.0%})"
    )


def measure(store: Store, folder: Path, rule: Rule, seed: int, count: int) -> None:
    """One seed: pairs, reward model, agreement, GRPO. Prints its line of the table."""
    rng, name = random.Random(seed), rule.__name__
    source = run(store, f"samples {seed}", {**STILL, **PAGE, "train.seed": seed,
                                           "task.heldout_size": 0})  # fmt: skip
    fresh = run(store, "held out", {**STILL, **FRESH, "task.heldout_size": 500,
                                    "train.eval_records": 500})  # fmt: skip
    groups = groups_of(store, source, GroupKind.TRAINING)
    judged = judge(decided_pairs(groups, rule, rng)[:count], rng, f"{name} {seed}")
    assert len(judged) == count, len(judged)
    preferences.add(store, judged)
    settings = reward_settings({"seed": seed})
    split = split_by_prompt(judged_pairs(judged), settings.heldout_share, seed)
    trained = train_reward_model(split, settings)
    target = folder / f"{name}-{seed}"
    save(trained, split, settings, target)
    test = decided_pairs(groups_of(store, fresh, GroupKind.EVALUATION, 0), rule, random.Random(0))
    right, low, high = agreement(test, target)
    own = trained.heldout
    trained_id = run(store, f"grpo {name} {seed}", {**reward_rubric(target), "train.seed": seed})
    codes = [notice.code for notice in advise(store, trained_id)]
    print(
        f"| {name.replace('_', ' ')} | {seed} | {right:.1%} ({low:.1%}–{high:.1%}) | "
        f"{own.accuracy:.1%} ({own.low:.1%}–{own.high:.1%}) | {own.length_share:.0%} | "
        f"{trained.seconds:.0f} | {rule_gain(store, trained_id)} | {', '.join(codes) or 'none'} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--db", help="keep the runs here")
    options = parser.parse_args()
    print(
        "| rater | seed | pairs right by its rule (95 %) | noisy held-out pairs (95 %) | "
        "length alone | s | score | right before | after | points (95 %, paired) | "
        "rule prefers later : earlier | advisor |\n" + "|---" * 12 + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.db or f"{folder}/runs.sqlite")
        for rule in (hidden_rule, short_rule):
            for seed in range(options.seeds):
                measure(store, Path(folder), rule, seed, options.pairs)


if __name__ == "__main__":
    main()
