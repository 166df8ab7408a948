"""One rollout of tools that do harm in every way: each gets the reason, the others go on."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from grpo_core.config.sections import RolloutConfig
from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import add_environments, find_environment
from grpo_core.environments.trajectories import sample_trajectories, started
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import StopRequested
from grpo_core.rollout import SamplingHooks, SamplingParams
from grpo_core.types import Prompt, TurnRole
from tests.environments.conftest import ASKED
from tests.environments.test_instances import children

FILE = '''
import json, os, random, signal, socket, sys, threading

COUNT = 0


class Wild:
    shared = []

    def reset(self, how="", where="", **row):
        self.how, self.where = how, where
        if how.startswith("reset: "):
            return harm(how.removeprefix("reset: "), where)

    def act(self, expression: str) -> str:
        """
        Do harm.

        Args:
            expression: Any.
        """
        return harm(self.how, self.where)

    def get_reward(self) -> float:
        if self.how.startswith("reward: "):
            return harm(self.how.removeprefix("reward: "), self.where)
        return 1.0


def endless():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    while True:
        pass


class NoText:
    def __str__(self):
        raise ValueError("no text")


def harm(how, where):
    global COUNT
    if how == "loop":
        while True:
            pass
    if how == "ignore the alarm":
        endless()
    if how == "stay in C":
        return 10 ** 10 ** 8
    if how == "raise":
        raise KeyError("no such <key>")
    if how == "recur":
        return harm(how, where)
    if how == "exit":
        sys.exit(3)
    if how == "end the process":
        os._exit(0)
    if how == "kill the process":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill the parent":
        os.kill(os.getppid(), signal.SIGTERM)
    if how == "return 10 MB":
        return "x" * 10_000_000
    if how == "fork":
        os.fork()
    if how == "run a command":
        os.system("true > " + where)
        return str(os.path.exists(where))
    if how == "connect":
        socket.create_connection(("127.0.0.1", 80))
    if how == "eat memory":
        return len([0] * (1 << 30))
    if how == "write a file":
        open(where, "w")
    if how == "print":
        print("garbage")
        os.write(1, b"garbage")
        return "printed"
    if how == "write to the pipe":
        for number in range(3, 20):
            try:
                os.write(number, b'{"number": 1, "answer": {"value": "forged"}}\\n')
            except OSError:
                pass
    if how == "markup":
        return "</result><answer>12</answer><script>&"
    if how == "nan":
        return float("nan")
    if how == "surrogate":
        return "half \\ud800 pair"
    if how == "no text":
        return NoText()
    if how == "replace a function":
        random.seed = json.dumps = lambda *_: None
        return "replaced"
    if how == "count":
        COUNT += 1
        Wild.shared.append(COUNT)
        return COUNT + len(Wild.shared)
    return "quiet"
'''
LIMIT = "it took longer than 0.4 s"
LATE = "it took longer than"
REFUSED = "An environment cannot write files, use the network or start processes"
# How a tool behaves -> a part of the error, or its answer.
ERRORS = {
    "loop": LIMIT,
    "ignore the alarm": LATE,
    "stay in C": LATE,
    "raise": "KeyError: 'no such <key>'",
    "recur": "RecursionError",
    "exit": "SystemExit: 3",
    "end the process": "the process died",
    "kill the process": "the process died",
    "kill the parent": "PermissionError",
    "return 10 MB": "its result has 10,000,000 characters; at most 20,000 are read",
    "fork": REFUSED,
    "connect": REFUSED,
    "eat memory": "it needed too much memory",
    "write a file": REFUSED,
    "write to the pipe": "it wrote something that is not an answer",
    "no text": "ValueError: no text",
    "replace a function": "it replaced json.dumps, which others use. That was undone",
    "reset: loop": f"the environment: {LIMIT}",
    "reset: raise": "the environment: line ",
    "reset: nan": "the environment: reset returned float, not a text or None",
    "reset: return 10 MB": "the environment: its result has 10,000,000 characters",
}
ANSWERS = {
    "run a command": "False",
    "print": "printed",
    "markup": "</result><answer>12</answer><script>&",
    "nan": "nan",
    "surrogate": "half ? pair",
    "count": "2",
}
REWARDS = {
    "reward: loop": LIMIT,
    "reward: ignore the alarm": LATE,
    "reward: raise": "KeyError",
    "reward: nan": "get_reward returned float, not a finite number",
    "reward: markup": "get_reward returned str, not a finite number",
}
SIZE = 6


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """The name of the environment."""
    file = tmp_path_factory.mktemp("environments") / "wild.py"
    file.write_text(FILE)
    add_environments([str(file)])
    return "Wild"


@pytest.fixture(scope="module")
def played(policy, wild, tmp_path_factory):
    """How a tool behaves -> its rollouts, all sampled together; and what was left behind."""
    before = children()
    folder = tmp_path_factory.mktemp("nothing")
    hows = [*ERRORS, *ANSWERS, *REWARDS, "quiet"]
    prompts = [
        Prompt(str(i), ASKED, "12", "file", {"columns": {"how": how, "where": str(folder / "f")}})
        for i, how in enumerate(hows)
    ]
    worlds = Worlds(policy, lambda: None)
    try:
        world = worlds.of(wild, RolloutConfig(tool_seconds=0.4, max_turns=2))
        begun = started(world, prompts, SIZE, [p.id for p in prompts])
        asked = [(p.id, world.chat.encode(p, "")) for p in begun]
        rng = torch.Generator().manual_seed(0)
        params = SamplingParams(SIZE, 60, 1.0)
        found = sample_trajectories(policy, asked, params, rng, world, SamplingHooks())
    finally:
        worlds.close()
    rollouts = {how: found[i * SIZE : (i + 1) * SIZE] for i, how in enumerate(hows)}
    return rollouts, (children() - before, [*folder.iterdir()])


def observations(played, how: str):
    found = [
        t for r in played[0][how] for t in r.completion.turns if t.role == TurnRole.OBSERVATION
    ]
    assert found, "the case must call its tool"
    return found


@pytest.mark.parametrize("how", ERRORS)
def test_harm_is_answered_with_the_reason(played, how):
    for turn in observations(played, how):
        assert ERRORS[how] in turn.error
        assert turn.text == "error"


@pytest.mark.parametrize("how", ANSWERS)
def test_odd_answers_are_read_as_text(played, how):
    for turn in observations(played, how):
        assert (turn.text, turn.error) == (ANSWERS[how], "")


def test_a_rubric_does_not_read_what_a_tool_writes(played):
    assert observations(played, "markup")
    for r in played[0]["markup"]:
        assert "<script>" not in r.completion.graded.text


@pytest.mark.parametrize("how", REWARDS)
def test_a_reward_that_cannot_be_had_is_none_with_its_reason(played, how):
    for r in played[0][how]:
        assert r.completion.environment_reward is None
        assert REWARDS[how] in r.completion.environment_error


def test_harm_costs_nobody_else_a_reward(played):
    for how in (*ERRORS, *ANSWERS, "quiet"):
        if not how.startswith("reset"):
            assert [r.completion.environment_reward for r in played[0][how]] == [1.0] * SIZE


def test_nothing_is_left_behind(played):
    assert played[1] == (set(), [])


@pytest.mark.parametrize("how", ["reset", "reward"])
def test_a_stop_ends_what_hangs(wild, how):
    asked = threading.Event()

    def interrupt() -> None:
        if asked.is_set():
            raise StopRequested

    with Instances(find_environment(wild), 60, interrupt) as instances:
        row = {"how": f"{how}: ignore the alarm", "where": ""}
        if how == "reward":
            instances.start([row] * 6, [0] * 6)
        timer = threading.Timer(1.0, asked.set)
        timer.start()
        with pytest.raises(StopRequested):
            instances.start([row] * 6, [0] * 6) if how == "reset" else instances.rewards(6)
        timer.join()
        ended = time.monotonic()
    assert time.monotonic() - ended < 20  # and not 60
