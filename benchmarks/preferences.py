"""What does a reward model learn from 300 judged pairs, and what does a policy learn from it?

    python -m benchmarks.preferences [--seeds 3] [--rounds 2] [--db FILE]

A simulated rater has a hidden rule: it prefers right answers, and the shorter of two equally right
ones; one verdict in ten is flipped. It judges pairs of completions that the bundled model sampled
for a stored run. A reward model is trained on its verdicts and measured against the rule without
noise, on held-out prompts. Then GRPO trains on that reward model alone: held near the first policy
by KL, and with the default settings, under which it may find texts that the model never saw. With
a second round the rater judges half as many pairs of what the held policy wrote in training; a new
reward model learns from all pairs, and a new policy from it (Stiennon et al. 2020,
arXiv:2009.01325, section 3.1). The last runs are made to go wrong: their reward model learnt from
a rater that always prefers the shorter answer.
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
# How GRPO trains on the reward model. A learned reward is right only near what it learnt from.
HELD = "held by KL"
TRAININGS = {HELD: {"train.steps": 40, "algorithm.kl_coef": 0.2}, "default": {}}
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


def collect(
    store: Store, groups: Sequence[GroupRow], rule: Rule, count: int, rng: random.Random
) -> list[Preference]:
    """The rater's verdicts on pairs of these groups, stored."""
    pairs = decided_pairs(groups, rule, rng)[:count]
    assert len(pairs) == count, len(pairs)
    judged = judge(pairs, rng, rule.__name__)
    preferences.add(store, judged)
    return judged


def measure(store: Store, target: Path, rule: Rule, seed: int, judged: list[Preference]) -> str:
    """Train a reward model on the verdicts, into the folder, and measure it. Returns columns."""
    many = {"task.heldout_size": 500, "train.eval_records": 500}
    fresh = run(store, "held out", {**STILL, **FRESH, **many})
    settings = reward_settings({"seed": seed})
    split = split_by_prompt(judged_pairs(judged), settings.heldout_share, seed)
    trained = train_reward_model(split, settings)
    save(trained, split, settings, target)
    test = decided_pairs(groups_of(store, fresh, GroupKind.EVALUATION, 0), rule, random.Random(0))
    right, low, high = agreement(test, target)
    own = trained.heldout
    return (
        f"{rule.__name__.replace('_', ' ')} | {seed} | {len(judged)} | "
        f"{right:.1%} ({low:.1%}–{high:.1%}) | "
        f"{own.accuracy:.1%} ({own.low:.1%}–{own.high:.1%}) | {own.length_share:.0%} | "
        f"{trained.seconds:.0f}"
    )


def train_on(store: Store, target: Path, seed: int, how: str) -> tuple[str, str]:
    """Train on the reward model alone. Returns the run's id and its columns."""
    settings = {**reward_rubric(target), "train.seed": seed, **TRAININGS[how]}
    run_id = run(store, f"{target.name}, {how}", settings)
    codes = [notice.code for notice in advise(store, run_id)]
    return run_id, f"{how} | {rule_gain(store, run_id)} | {', '.join(codes) or 'none'}"


def follow(store: Store, folder: Path, rule: Rule, seed: int, options: argparse.Namespace) -> None:
    """Print a line for each training of one seed."""
    is_hidden = rule is hidden_rule
    page = {**STILL, **PAGE, "train.seed": seed, "task.heldout_size": 0}
    samples = groups_of(store, run(store, f"samples {seed}", page), GroupKind.TRAINING)
    judged = collect(store, samples, rule, options.pairs, random.Random(seed))
    for number in range(1, 1 + (options.rounds if is_hidden else 1)):
        target = folder / f"{rule.__name__}-{seed}-{number}"
        measured = measure(store, target, rule, seed, judged)
        for how in TRAININGS if is_hidden and number == 1 else [HELD if is_hidden else "default"]:
            run_id, columns = train_on(store, target, seed, how)
            print(f"| {measured} | {columns} |", flush=True)
            if how == HELD and number < options.rounds:
                rng, written = random.Random(seed), groups_of(store, run_id, GroupKind.TRAINING)
                written = rng.sample(written, len(written))  # from all steps
                judged += collect(store, written, rule, options.pairs // 2, rng)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--db", help="keep the runs here")
    options = parser.parse_args()
    print(
        "| rater | seed | pairs | right by its rule (95 %) | noisy held-out pairs (95 %) | "
        "length alone | s | GRPO | score | right before | after | points (95 %, paired) | "
        "rule prefers later : earlier | advisor |\n" + "|---" * 14 + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.db or f"{folder}/runs.sqlite")
        for rule in (hidden_rule, short_rule):
            for seed in range(options.seeds):
                follow(store, Path(folder), rule, seed, options)


if __name__ == "__main__":
    main()
