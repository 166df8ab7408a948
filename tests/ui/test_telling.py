"""“See why” opens the group that shows what the run learned."""

from __future__ import annotations

from recorded import record_run

from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Evaluated, Group, Prompt, Rollout
from ui.server.telling import telling_group


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
