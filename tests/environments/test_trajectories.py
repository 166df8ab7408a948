"""Rollouts of several turns: appended ids, masks, budgets, and the same again on a resume."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from grpo_core.config.sections import RolloutConfig
from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import find_environment
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.environments.trajectories import World, sample_trajectories, started
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import StopRequested
from grpo_core.models.policy import text_of
from grpo_core.rollout import SamplingHooks, SamplingParams, sample_groups
from grpo_core.types import Prompt, TurnRole
from tests.environments.conftest import ASKED, CALL, RESULT

PARAMS = SamplingParams(8, 100, 1.0, keep_logprobs=True)
PROMPTS = [Prompt("a", ASKED, "12", "products"), Prompt("b", "Q: 5*6=?", "30", "products")]


@pytest.fixture(scope="module")
def worlds(policy):
    worlds = Worlds(policy, lambda: None)
    yield worlds
    worlds.close()


@pytest.fixture(scope="module")
def world(worlds) -> World:
    return worlds.of("Calculator", RolloutConfig())


NO_HOOKS = SamplingHooks()


def play(policy, world, params=PARAMS, prompts=PROMPTS, seed=0, hooks=NO_HOOKS):
    begun = started(world, prompts, params.group_size, [p.id for p in prompts])
    asked = [(p.id, world.chat.encode(p, "")) for p in begun]
    rng = torch.Generator().manual_seed(seed)
    return sample_trajectories(policy, asked, params, rng, world, hooks)


@pytest.fixture(scope="module")
def rollouts(policy, world):
    return play(policy, world)


def test_observations_stand_between_actions_and_are_masked(policy, rollouts):
    calls = [sum(t.role == TurnRole.OBSERVATION for t in r.completion.turns) for r in rollouts]
    assert {0, 1, 2} <= set(calls), "the case must have trajectories of 1, 2 and 3 turns"
    for r in rollouts:
        turns = r.completion.turns
        assert [t.role for t in turns] == [
            TurnRole.OBSERVATION if i % 2 else TurnRole.ACTION for i in range(len(turns))
        ]
        mask = []
        for t in turns:
            assert t.first_token == len(mask)
            mask += [t.role == TurnRole.ACTION] * t.num_tokens
            ids = r.completion_ids[t.first_token : t.first_token + t.num_tokens]
            if t.role == TurnRole.ACTION:
                assert policy.decode(ids) == t.text
            else:
                assert text_of(policy.tokenizer, ids) == f"<result>{t.text}</result>"
        assert mask == r.action_mask
        assert r.completion.num_tokens == sum(mask)
        assert len(r.sampling_logprobs) == len(mask) == len(r.completion_ids)


def test_a_tools_answer_is_what_the_policy_reads_next(rollouts):
    text = next(r.completion.text for r in rollouts if CALL in r.completion.text)
    assert CALL + RESULT in text
    turn = next(t for r in rollouts for t in r.completion.turns if t.text == "12")
    assert (turn.tool, turn.arguments, turn.error) == ("calculate", '{"expression": "3*4"}', "")
    failed = next(t for r in rollouts for t in r.completion.turns if t.error)
    assert (failed.text, failed.arguments) == ("error", '{"expression": "3*"}')
    assert "this is not an arithmetic expression" in failed.error


def test_log_probabilities_of_a_replay_are_those_of_sampling(policy, rollouts):
    """The ids in the record are those that the model was fed."""
    for r in rollouts:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        logprobs = policy.model(ids).logits[0].log_softmax(-1)
        start = len(r.prompt_ids)
        for t, (token, acts) in enumerate(zip(r.completion_ids, r.action_mask, strict=True)):
            if acts:
                again = float(logprobs[start + t - 1, token])
                assert abs(again - r.sampling_logprobs[t]) <= 1e-4


def test_a_rubric_reads_no_observation_and_no_call(rollouts):
    for r in rollouts:
        graded = r.completion.graded.text
        assert "<tool>" not in graded
        assert "<result>" not in graded
    assert any(r.completion.graded.text == "<answer>12</answer>" for r in rollouts)


def test_the_same_random_numbers_give_the_same_trajectories(policy, world, rollouts):
    def seen(found):
        return [(list(r.completion_ids), list(r.sampling_logprobs)) for r in found]

    assert seen(play(policy, world)) == seen(rollouts)
    assert seen(play(policy, world, seed=1)) != seen(rollouts)


def test_a_trajectory_does_not_depend_on_its_neighbours(policy, world, rollouts):
    alone = play(policy, world, prompts=PROMPTS[:1])
    assert [r.completion_ids for r in alone] == [r.completion_ids for r in rollouts[:8]]


def test_without_a_call_the_tokens_are_those_of_a_single_turn(policy, world, rollouts):
    prompts = [world.chat.encode(p, "") for p in PROMPTS]
    plain = sample_groups(policy, prompts, PARAMS, torch.Generator().manual_seed(0))
    quiet = [i for i, r in enumerate(rollouts) if len(r.completion.turns) == 1]
    assert quiet
    for i in quiet:
        assert plain[i].completion_ids == rollouts[i].completion_ids
        assert plain[i].sampling_logprobs == rollouts[i].sampling_logprobs


@pytest.mark.parametrize("most", [1, 2])
def test_a_call_in_the_last_turn_is_not_run(policy, world, most):
    found = play(policy, replace(world, max_turns=most))
    for r in found:
        actions = [t for t in r.completion.turns if t.role == TurnRole.ACTION]
        assert len(actions) <= most
        if r.completion.turns[-1].text.endswith("</tool>"):
            assert r.completion.finish_reason == "length"
    assert any(r.completion.finish_reason == "length" for r in found)


@pytest.mark.parametrize("budget", [10, 20, 34, 41, 60])
def test_the_token_budget_counts_observations(policy, world, budget):
    for r in play(policy, world, replace(PARAMS, max_new_tokens=budget)):
        assert len(r.completion_ids) <= budget
        assert len(r.completion_ids) == len(r.action_mask)
        assert r.action_mask[-1], "an observation that nobody answers is not kept"
        if r.completion.finish_reason == "stop":
            assert r.completion_ids[-1] in policy.end_ids


def test_a_group_is_reported_once_when_all_its_trajectories_have_ended(policy, world):
    reported = {}
    hooks = SamplingHooks(on_group_done=reported.__setitem__)
    found = play(policy, world, hooks=hooks)
    assert sorted(reported) == [0, 1]
    assert [r.completion for p in (0, 1) for r in reported[p]] == [r.completion for r in found]


def test_reset_adds_to_the_prompt_and_get_reward_is_a_score(policy, worlds, bad_environment):
    world = worlds.of(bad_environment, RolloutConfig())
    row = Prompt("a", ASKED, "12", "file", {"columns": {"start": 5}})
    [begun] = started(world, [row], 4, ["k"])
    assert begun.text.startswith(f"{ASKED} Begin with ")
    found = play(policy, world, prompts=[row])
    assert [r.completion.environment_reward for r in found] == [5.0] * 8


def test_a_stop_ends_a_rollout_within_two_seconds_while_a_tool_hangs(policy, tmp_path):
    file = tmp_path / "hangs.py"
    file.write_text(
        "import signal\n"
        "class Hangs:\n"
        "    def reset(self, **row): ...\n"
        "    def wait(self, text: str) -> str:\n"
        '        """\n        Never end.\n\n        Args:\n            text: Any.\n        """\n'
        "        signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "        while True: pass\n"
    )
    from grpo_core.environments.registry import add_environments

    add_environments([str(file)])
    stop = threading.Event()

    def interrupt() -> None:
        if stop.is_set():
            raise StopRequested

    environment = find_environment("Hangs")
    instances = Instances(environment, 60, interrupt)
    world = World(ToolChat(policy, environment), instances, 8)
    timer = threading.Timer(1.5, stop.set)
    timer.start()
    with pytest.raises(StopRequested):
        play(policy, world, hooks=SamplingHooks(interrupt))
    ended = time.monotonic()
    instances.close()
    timer.join()
    assert time.monotonic() - ended < 20  # and not 60
