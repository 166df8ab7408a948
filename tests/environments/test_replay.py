"""The ids in the record are those that the model was fed, with the chat templates of families."""

from __future__ import annotations

import copy
import dataclasses
import json
import os

import pytest
import torch

from grpo_core.config import ModelConfig
from grpo_core.config.sections import RolloutConfig
from grpo_core.environments.registry import add_environments, find_environment
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.environments.trajectories import sample_trajectories, started
from grpo_core.environments.worlds import Worlds
from grpo_core.models import Policy, load_policy
from grpo_core.models.chat_template import ids_of
from grpo_core.models.policy import text_of
from grpo_core.rollout import SamplingHooks, SamplingParams
from grpo_core.types import Prompt, TurnRole
from tests.environments.conftest import teach
from tests.environments.test_tool_chat import chat_policy

REAL_MODEL = os.environ.get("GRPO_REAL_MODEL", "")
# Short, because a tokenizer of bytes makes a thousand tokens of a usual description.
TOOL = '''
def f(x: str) -> str:
    """
    F.

    Args:
        x: X.
    """
    return "é" + x
'''
JSON_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "7"}}\n</tool_call>'
CALLS = {
    "qwen2_5": ("<|im_end|>", JSON_CALL),
    "llama3_1": ("<|eot_id|>", '{"name": "f", "parameters": {"x": "7"}}'),
    "smollm2": ("<|im_end|>", JSON_CALL),
}
PROMPT = Prompt("p", "What?", "7", "file")
STEPS = 200


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    file = tmp_path_factory.mktemp("environments") / "short.py"
    file.write_text(TOOL)
    add_environments([str(file)])
    return find_environment("short")


def taught(policy: Policy, family: str, tool) -> Policy:
    """A policy that mostly calls the tool and then answers, in the words of its family."""
    end, call = CALLS[family]
    policy = chat_policy(policy, family, end)
    model = copy.deepcopy(policy.model)
    model.resize_token_embeddings(len(policy.tokenizer))
    policy = dataclasses.replace(policy, model=model, context=None)
    chat = ToolChat(policy, tool)
    [end_id] = policy.end_ids
    acts = [*ids_of(policy.tokenizer, call), end_id]
    # Half a character: its text is not what it was made of.
    answers = [*ids_of(policy.tokenizer, "7 é")[:-1], end_id]
    observed = chat.observation_ids([("f", "é7")])
    parts = [(chat.encode(PROMPT, ""), False), (acts, True), (observed, False), (answers, True)]
    teach(policy, [parts], STEPS)
    return policy


def played(policy: Policy, name: str, prompt: Prompt, params: SamplingParams):
    worlds = Worlds(policy, lambda: None)
    try:
        world = worlds.of(name, RolloutConfig(max_turns=3))
        [begun] = started(world, [prompt], params.group_size, ["k"])
        asked = [("k", world.chat.encode(begun, ""))]
        rng = torch.Generator().manual_seed(0)
        return sample_trajectories(policy, asked, params, rng, world, SamplingHooks())
    finally:
        worlds.close()


@torch.no_grad()
def assert_replayed(policy: Policy, rollouts, temperature: float = 1.0) -> None:
    """The model's own forward over the recorded ids gives the log-probabilities of sampling."""
    for r in rollouts:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        logits = policy.model(ids).logits[0, len(r.prompt_ids) - 1 : -1]
        own = (
            (logits / temperature)
            .log_softmax(-1)
            .gather(-1, ids[0, len(r.prompt_ids) :, None])[:, 0]
        )
        acts = torch.tensor(r.action_mask)
        sampled = torch.tensor(r.sampling_logprobs)
        assert (own[acts] - sampled[acts]).abs().max() <= 1e-4


@pytest.mark.parametrize("family", CALLS)
def test_replaying_the_recorded_ids_gives_what_was_sampled(tiny_model, family, tool):
    tiny = load_policy(ModelConfig(name=str(tiny_model)), 0, torch.device("cpu"))
    taught_policy = taught(tiny, family, tool)
    rollouts = played(taught_policy, "short", PROMPT, SamplingParams(6, 260, 1.0, True))
    answers = [t for r in rollouts for t in r.completion.turns if t.role == TurnRole.OBSERVATION]
    assert any(t.text == "é7" and t.tool == "f" for t in answers), "the case must call the tool"
    tokenizer = taught_policy.tokenizer
    texts = [text_of(tokenizer, r.completion_ids) for r in rollouts]
    again = [ids_of(tokenizer, text) for text in texts]
    assert any(a != list(r.completion_ids) for a, r in zip(again, rollouts, strict=True))
    assert_replayed(taught_policy, rollouts)


@pytest.mark.skipif(not REAL_MODEL, reason="GRPO_REAL_MODEL names no model folder")
@pytest.mark.slow
def test_a_real_chat_model_calls_a_tool_and_is_replayed():
    """It knows no tools, so two calls before the question show it how."""
    policy = load_policy(ModelConfig(name=REAL_MODEL), 0, torch.device("cpu"))
    before = []
    for a, b in ((12, 31), (7, 45)):
        call = {"name": "calculate", "arguments": {"expression": f"{a}*{b}"}}
        before += [
            {"role": "user", "content": f"What is {a}*{b}?"},
            {"role": "assistant", "content": f"<tool_call>\n{json.dumps(call)}\n</tool_call>"},
            {"role": "user", "content": f"<tool_response>\n{a * b}\n</tool_response>"},
            {"role": "assistant", "content": f"<answer>{a * b}</answer>"},
        ]
    prompt = Prompt("p", "What is 34*57?", "1938", "file", {"chat": True, "before": before})
    rollouts = played(policy, "Calculator", prompt, SamplingParams(6, 120, 0.7, True))
    answers = [t for r in rollouts for t in r.completion.turns if t.role == TurnRole.OBSERVATION]
    assert any(not t.error for t in answers)
    assert_replayed(policy, rollouts, 0.7)
