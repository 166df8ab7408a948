"""Groups of evaluations are kept beside those of training, and counted in none of its figures."""

from __future__ import annotations

import io
import json

from stored import group, recorded, rollout

from grpo_core.analysis.advisor import advise
from grpo_core.store import Page, Recorder, Wanted, export_rollouts_jsonl
from grpo_core.types import Evaluated, Group, GroupsScored, Prompt, Rollout


def heldout(n: int, text: str, reward: float) -> Group:
    kept = Rollout(rollout(text).completion, {"accuracy": reward}, reward)
    return Group(
        Prompt(f"held-{n}", f"{n}+0=", str(n), "sums"), (kept,), reward, None, "evaluation"
    )


def evaluated(step: int, *groups: Group) -> Evaluated:
    return Evaluated(step, {"heldout/accuracy": 0.5}, groups)


def events():
    return [
        evaluated(0, heldout(1, "seven", 0.0), heldout(2, "2", 1.0)),
        GroupsScored(1, (group(),)),
        GroupsScored(2, (group(), group(rollout("7", 0.0), rollout("8", 0.0), verdict="tied"))),
        evaluated(2, heldout(1, "1", 1.0), heldout(2, "2", 1.0)),
    ]


def test_training_figures_leave_evaluations_out(store):
    both, alone = recorded(store, *events()), recorded(store, *events()[1:3])
    for read in (
        store.verdict_counts,
        store.verdict_series,
        store.last_step_with_groups,
        lambda run_id: store.groups(run_id).total,
        lambda run_id: store.find_rollouts(run_id, Wanted(), Page()).total,
        lambda run_id: [(r.step, r.group_position, r.reward) for r in store.scored(run_id)],
        lambda run_id: [(g.step, g.position) for g in store.newest_groups(run_id, 10)],
        lambda run_id: [(g.step, g.position) for g in store.iter_groups(run_id)],
        lambda run_id: [len(store.group_ids(run_id, step)) for step in range(4)],
        lambda run_id: [n.code for n in advise(store, run_id)],
    ):
        assert read(both) == read(alone)
    assert store.find_rollouts(both, Wanted(search="seven"), Page()).total == 0


def test_evaluation_groups_are_found_as_such(store):
    run_id = recorded(store, *events())
    assert store.num_evaluation_groups(run_id) == 4
    page = store.groups(run_id, kind="evaluation")
    assert [(g.step, g.position, g.kind) for g in page.rows] == [
        (2, 0, "evaluation"),
        (2, 1, "evaluation"),
        (0, 0, "evaluation"),
        (0, 1, "evaluation"),
    ]
    found = store.find_rollouts(run_id, Wanted(kind="evaluation", search="seven"), Page())
    assert [(r.step, r.kind, r.advantage) for r in found.rows] == [(0, "evaluation", None)]
    first = store.group(store.group_ids(run_id, 0, "evaluation")[0])
    assert (first.prompt, first.reward_mean, first.verdict) == ("1+0=", 0.0, "evaluation")
    assert [v.step for v in store.visits(run_id, "held-1")] == [0, 2]


def test_prompts_that_came_up_again_are_listed(store):
    run_id = recorded(store, *events())
    repeated = store.repeated_prompts(run_id)
    assert [(p.prompt_id, p.num_visits, p.is_heldout) for p in repeated] == [
        ("held-1", 2, True),
        ("held-2", 2, True),
        ("sums-7", 3, False),  # the prompt of stored.group(), at steps 1, 2 and 2
    ]
    assert store.shared_prompts(run_id) == []
    recorded(store, evaluated(0, heldout(2, "5", 0.0)))
    assert [(p.prompt, p.num_visits) for p in store.shared_prompts(run_id)] == [("2+0=", 2)]


def test_of_equally_many_visits_the_prompt_whose_reward_rose_comes_first(store):
    first, last = {1: 0.0, 2: 1.0, 3: 0.0}, {1: 0.0, 2: 0.0, 3: 1.0}
    run_id = recorded(
        store,
        *(
            evaluated(step, *(heldout(n, "x", r) for n, r in rewards.items()))
            for step, rewards in ((0, first), (2, last))
        ),
    )
    found = [p.prompt_id for p in store.repeated_prompts(run_id)]
    assert found == ["held-3", "held-1", "held-2"]


def test_an_evaluation_that_comes_again_replaces_the_first(store):
    run_id = recorded(store, *events())
    with Recorder(store, run_id) as record:
        record(evaluated(2, heldout(1, "anew", 0.5)))
    assert [g.prompt for g in store.iter_groups(run_id, kind="evaluation")] == [
        "1+0=",
        "2+0=",
        "1+0=",
    ]
    assert len(store.group_ids(run_id, 2)) == 2  # the training groups of that step stay
    store.rewind(run_id, 1)
    assert store.num_evaluation_groups(run_id) == 2  # those before the first step


def test_an_export_says_what_a_rollout_was_sampled_for(store):
    run_id, out = recorded(store, *events()), io.StringIO()
    export_rollouts_jsonl(store, run_id, out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [r["kind"] for r in rows] == ["training"] * 6 + ["evaluation"] * 4
    assert [r["advantage"] for r in rows[6:]] == [None] * 4
