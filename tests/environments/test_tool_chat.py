"""The chat templates of model families: earlier turns keep their ids when a tool answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trl
from trl.chat_template_utils import add_response_schema

from grpo_core.environments.registry import BUILT_IN
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.errors import InvalidConfig
from grpo_core.models.chat_template import ids_of
from grpo_core.models.policy import text_of
from grpo_core.types import Completion, Prompt, Rollout

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# As SmolLM2's: it knows no tools.
SMOLLM2 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "3*4"}}\n</tool_call>'
LLAMA_CALL = '{"name": "calculate", "parameters": {"expression": "3*4"}}'
GLM_CALL = (
    "<tool_call>calculate\n<arg_key>expression</arg_key>\n<arg_value>3*4</arg_value>\n</tool_call>"
)
CASES = {
    "qwen2_5": ("<|im_end|>", QWEN_CALL),
    "qwen3": ("<|im_end|>", QWEN_CALL),
    "llama3_1": ("<|eot_id|>", LLAMA_CALL),
    "smollm2": ("<|im_end|>", QWEN_CALL),
    "glm4moe": ("<|observation|>", GLM_CALL),  # by its response template
}
CALCULATOR = BUILT_IN["Calculator"]
PROMPT = Prompt("p", "What is 3*4?", "12", "products")


def chat_policy(policy, name: str, end: str):
    """The policy with this chat template and its end of a turn."""
    import copy

    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", end]})
    file = TEMPLATES / f"{name}.jinja"
    tokenizer.chat_template = file.read_text() if file.exists() else SMOLLM2
    if name == "glm4moe":
        add_response_schema(tokenizer)
    ends = frozenset([tokenizer.convert_tokens_to_ids(end)])
    return dataclasses.replace(policy, tokenizer=tokenizer, end_ids=ends)


@pytest.mark.parametrize("name", CASES)
def test_the_ids_of_the_next_turn_begin_with_those_of_this_one(policy, name):
    end, call = CASES[name]
    chatty = chat_policy(policy, name, end)
    chat = ToolChat(chatty, CALCULATOR)
    prompt = chat.encode(PROMPT, "Work it out.")
    assert "calculate" in text_of(chatty.tokenizer, prompt)
    action = ids_of(chatty.tokenizer, call + end)
    sampled = Rollout(Completion(call, "stop", len(action)), completion_ids=action)
    parsed = chat.parse(prompt, sampled)
    assert [(c.tool, dict(c.arguments)) for c in parsed.calls] == [
        ("calculate", {"expression": "3*4"})
    ]
    assert parsed.said == "", "a rubric reads no call"
    observation = chat.observation_ids([("calculate", "12")])
    text = text_of(chatty.tokenizer, [*prompt, *action, *observation])
    assert text.startswith(text_of(chatty.tokenizer, prompt) + call + end)
    answered = text.removeprefix(text_of(chatty.tokenizer, prompt) + call + end)
    assert "12" in answered
    assert answered.rstrip().endswith(
        (
            "<|im_start|>assistant",
            "<|start_header_id|>assistant<|end_header_id|>",
            "<|assistant|>",
        )
    )


def test_a_template_that_knows_tools_gives_the_ids_of_trl(policy):
    chatty = chat_policy(policy, "qwen2_5", "<|im_end|>")
    chatty.tokenizer.eos_token = "<|im_end|>"
    from types import SimpleNamespace

    trainer = SimpleNamespace(
        processing_class=chatty.tokenizer,
        _tokenizer=chatty.tokenizer,
        chat_template=None,
        chat_template_kwargs={},
        _is_vlm=False,
    )
    messages = [{"role": "tool", "name": "calculate", "content": "12"}]
    expected = trl.GRPOTrainer._get_tool_suffix_ids(trainer, messages)
    found = ToolChat(chatty, CALCULATOR).observation_ids([("calculate", "12")])
    assert found == expected


def test_a_template_that_refuses_an_answer_is_named_before_a_run(policy):
    chatty = chat_policy(policy, "none", "<|im_end|>")
    chatty.tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + SMOLLM2
    )
    with pytest.raises(InvalidConfig, match="one turn only"):
        ToolChat(chatty, CALCULATOR)
