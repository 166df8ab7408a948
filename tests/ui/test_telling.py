"""“See why” opens the group that shows what the run learned."""

from __future__ import annotations

from statistics import fmean, stdev

from recorded import record_run

from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Evaluated, Group, GroupsScored, Prompt, Rollout
from ui.server.telling import opening_group, telling_group


def evaluate(store: Store, run_id: str, step: int, accuracy: float, **rewards: float) -> None:
    """rewards: of the one answer to each held-out prompt."""
    groups = tuple(
        Group(
            Prompt(name, f"Q {name}", "1", "sums"),
            (Rollout(Completion("said", "stop", 4), {"accuracy": reward}, reward),),
            reward,
            None,
            "evaluation",
        )
        for name, reward in rewards.items()
    )
    with Recorder(store, run_id) as record:
        record(Evaluated(step, {"heldout/accuracy": accuracy}, groups))


def telling(store: Store, run_id: str):
    found = telling_group(store, store.run(run_id), store.repeated_prompts(run_id))
    return (str(found.place), found.look)


def test_a_better_run_shows_a_held_out_prompt_that_became_right(store):
    run_id = record_run(store)  # 40 % before
    evaluate(store, run_id, 0, 0.4, lost=1.0, same=1.0, won=0.0)
    evaluate(store, run_id, 3, 0.9, lost=0.0, same=1.0, won=1.0)
    assert telling(store, run_id) == ("e3/2", "time")


def test_a_worse_run_shows_a_held_out_prompt_that_became_wrong(store):
    run_id = record_run(store)
    evaluate(store, run_id, 0, 0.4, lost=1.0, same=1.0, won=0.0)
    evaluate(store, run_id, 3, 0.1, lost=0.0, same=1.0, won=1.0)
    assert telling(store, run_id) == ("e3/0", "time")


def test_without_held_out_groups_the_rewards_of_the_last_step_decide(store):
    assert telling(store, record_run(store)) == ("3/0", "cards")  # group 2 is tied


def test_an_ended_run_opens_a_group_that_teaches(store):
    run_id = record_run(store)  # of two groups a step the first is healthy
    assert opening_group(store, run_id, 3) == 0
    tied = group(1.0, 1.0)
    with Recorder(store, run_id) as record:
        record(GroupsScored(4, (tied, group(1.0, 0.8), group(1.0, 0.0), tied)))
        record(GroupsScored(5, (tied, tied)))
    assert opening_group(store, run_id, 4) == 2
    assert opening_group(store, run_id, 5) == 0


def group(*rewards: float) -> Group:
    """A group with these rewards."""
    rollouts = tuple(Rollout(Completion("said", "stop", 4), {"a": r}, r, 0.0) for r in rewards)
    return Group(Prompt("p", "Q", "1", "sums"), rollouts, fmean(rewards), stdev(rewards), "any")
