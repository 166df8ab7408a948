"""A run in an environment, killed at random instants, has the rows of a calm one in the end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes import ENV, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.faults]
# Its answers and rewards are random, and now and then a tool never ends.
DICE = '''
import random, signal

LUCK = random.Random(7)


class Dice:
    thrown = []

    def reset(self, **row):
        self.total = random.randint(0, 3)

    def roll(self, expression: str) -> int:
        """
        Roll a die.

        Args:
            expression: Any.
        """
        Dice.thrown.append(LUCK.randint(1, 6) + random.randint(1, 6))
        if random.random() < 0.02:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            while True:
                pass
        if random.random() < 0.1:
            raise ValueError("lost " + " ".join({"a", "b", "c"}))
        self.total += sum(Dice.thrown)
        return self.total

    def get_reward(self) -> float:
        return self.total + random.random()
'''


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_a_killed_run_with_random_and_hanging_tools_repeats(calling_model, tmp_path, kills):
    file = tmp_path / "dice.py"
    file.write_text(DICE)
    criteria = [{"name": "environment", "check": "environment", "weight": 1.0}]
    settings = {
        "model.name": calling_model,
        "task.name": "products",
        "task.environment": "Dice",
        "rubric.criteria": json.dumps(criteria),
        "rollout.tool_seconds": 2,
        "train.steps": 12,
        "train.prompts_per_step": 2,
        "train.max_new_tokens": 60,
        "train.learning_rate": 1e-5,
        "train.token_records": 1,
    }
    options = ["--kills", str(kills), "--variants", "plain", "--environments", str(file), "--set"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.chaos",
            *options,
            *(f"{name}={value}" for name, value in settings.items()),
        ],
        env=ENV,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| plain | {kills} |" in done.stdout
    assert "| none |" in done.stdout
