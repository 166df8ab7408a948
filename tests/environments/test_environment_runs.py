"""Whole runs in an environment: from the command line, and killed and resumed."""

from __future__ import annotations

import json

import pytest

from grpo_core.store import Store
from tests.processes import cli, sets

# In the shape of the documentation of TRL's `environment_factory`, in other words.
GAME = '''
class GuessGame:
    """Guess a number; the game says whether it is higher or lower."""

    def __init__(self):
        self.secret = None
        self.won = False

    def reset(self, **kwargs) -> str | None:
        self.secret = len(kwargs["prompt"]) % 10
        self.won = False
        return None

    def guess(self, number: str) -> str:
        """
        Guess the number.

        Args:
            number: The guess, such as "3*4".

        Returns:
            Whether it was right.
        """
        if "*" not in number:
            raise ValueError("Not a guess.")
        self.won = True
        return "right"

    def get_reward(self) -> float:
        return 1.0 if self.won else 0.0
'''


def settings(model) -> dict[str, object]:
    return {
        "model.name": str(model),
        "task.name": "products",
        "task.heldout_size": 8,
        "train.steps": 4,
        "train.prompts_per_step": 2,
        "train.group_size": 4,
        "train.max_new_tokens": 80,
        "train.eval_every": 0,
        "train.checkpoint_every": 2,
    }


def rows(store: Store, run_id: str):
    """What must repeat to the bit."""
    return [
        (g.step, g.prompt_id, r.text, r.reward, r.advantage, [t.text for t in r.turns])
        for g in store.iter_groups(run_id)
        for r in g.rollouts
    ]


@pytest.fixture(scope="module")
def finished(calling_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "runs.sqlite"
    done = cli("train", "--db", str(path), "--json", *sets(settings(calling_model)))
    assert done.returncode == 0, done.stderr
    return Store(path), json.loads(done.stdout)["run_id"]


def test_products_trains_with_the_calculator(finished):
    store, run_id = finished
    groups = [*store.iter_groups(run_id)]
    turns = [t for g in groups for r in g.rollouts for t in r.turns]
    assert any(t.tool == "calculate" and not t.error for t in turns)
    [steps] = [store.steps_between(run_id, 1, 4)]
    assert all(s["turns_mean"] > 1 and s["tool_calls_mean"] > 0 for s in steps)
    assert all(0 < s["observation_frac"] < 1 for s in steps)


def test_a_run_resumed_from_a_checkpoint_repeats_to_the_bit(finished):
    store, run_id = finished
    done = cli(
        "resume", run_id, "--step", "2", "--name", "again", "--json", "--db", str(store.path)
    )
    assert done.returncode == 0, done.stderr
    branch = json.loads(done.stdout)["run_id"]
    later = [row for row in rows(store, run_id) if row[0] > 2]
    assert [row for row in rows(store, branch) if row[0] > 2] == later


def test_a_class_written_for_trl_runs_from_a_file(calling_model, tmp_path):
    file = tmp_path / "game.py"
    file.write_text(GAME)
    path = tmp_path / "runs.sqlite"
    criteria = [{"name": "environment", "check": "environment", "weight": 1.0}]
    changed = settings(calling_model) | {
        "task.environment": "GuessGame",
        "rubric.criteria": json.dumps(criteria),
        "train.steps": 1,
        "train.seed": 1,
        "train.checkpoint_every": 0,
    }
    done = cli("train", "--db", str(path), "--json", "--environments", str(file), *sets(changed))
    assert done.returncode == 0, done.stderr
    store = Store(path)
    rollouts = [r for g in store.iter_groups(json.loads(done.stdout)["run_id"]) for r in g.rollouts]
    assert {r.reward for r in rollouts} == {0.0, 1.0}
    for r in rollouts:
        won = any(t.tool == "guess" and not t.error for t in r.turns)
        assert r.reward == float(won)


def test_none_switches_the_environment_of_a_task_off(calling_model, tmp_path):
    path = tmp_path / "runs.sqlite"
    changed = settings(calling_model) | {"task.environment": "none", "train.steps": 1}
    done = cli("train", "--db", str(path), "--json", *sets(changed))
    assert done.returncode == 0, done.stderr
    store = Store(path)
    groups = [*store.iter_groups(json.loads(done.stdout)["run_id"])]
    assert all(r.turns == () for g in groups for r in g.rollouts)
