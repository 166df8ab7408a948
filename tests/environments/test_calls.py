"""Tool calls in what a policy wrote, in each format."""

from __future__ import annotations

import pytest

from grpo_core.environments.calls import (
    arguments_as_text,
    bundled_calls,
    calls_of_message,
    hermes_calls,
    llama_calls,
)
from grpo_core.environments.registry import BUILT_IN

TEXT = {"type": "string"}
SCHEMAS = {
    "look": {"parameters": {"properties": {"word": TEXT, "most": TEXT}, "required": ["word"]}},
    "wait": {"parameters": {"properties": {}}},
}
ONE = BUILT_IN["Calculator"].schemas


def read(parsed):
    return [(c.tool, dict(c.arguments)) if not c.error else c.error for c in parsed.calls]


def test_the_only_argument_of_the_only_tool_is_the_text():
    parsed = bundled_calls("<think>hm</think><tool>34*57</tool>", ONE)
    assert read(parsed) == [("calculate", {"expression": "34*57"})]
    assert parsed.said == "<think>hm</think>"
    numbers = {"f": {"parameters": {"properties": {"n": {"type": "integer"}}}}}
    assert read(bundled_calls("<tool>7</tool>", numbers)) == [("f", {"n": 7})]
    assert read(bundled_calls("<tool>seven</tool>", numbers)) == ["n is not a JSON integer"]


def test_several_tools_are_called_by_json():
    written = '<tool>{"name": "look", "arguments": {"word": "a"}}</tool>'
    assert read(bundled_calls(written, SCHEMAS)) == [("look", {"word": "a"})]


def test_hermes_calls_are_found_among_text():
    text = (
        'First <tool_call>\n{"name": "look", "arguments": {"word": "a"}}\n</tool_call>'
        '<tool_call>{"name": "wait", "arguments": {}}</tool_call> then.'
    )
    parsed = hermes_calls(text, SCHEMAS)
    assert read(parsed) == [("look", {"word": "a"}), ("wait", {})]
    assert parsed.said == "First  then."


def test_llama_calls_are_the_whole_answer():
    for text in (
        '{"name": "look", "parameters": {"word": "a"}}',
        '<|python_tag|>{"name": "look", "parameters": {"word": "a"}}\n',
    ):
        parsed = llama_calls(text, SCHEMAS)
        assert (read(parsed), parsed.said) == ([("look", {"word": "a"})], "")
    assert read(llama_calls("The answer is {5}.", SCHEMAS)) == []


def test_a_message_of_a_response_template_gives_its_calls():
    function = {"name": "look", "arguments": '{"word": "a"}'}
    message = {"content": "so", "tool_calls": [{"type": "function", "function": function}]}
    parsed = calls_of_message(message, SCHEMAS)
    assert (read(parsed), parsed.said) == ([("look", {"word": "a"})], "so")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "the call cannot be read: it is not JSON"),
        ("[]", "the call cannot be read: it names no tool"),
        ('{"name": "look", "arguments": {"word": NaN}}', "it is not JSON"),
        ('{"name": 3}', "the call cannot be read: it names no tool"),
        ('{"name": "fly"}', "there is no tool 'fly'. There are: look, wait"),
        ('{"name": "look", "arguments": {}}', "it lacks word"),
        ('{"name": "look", "arguments": [1]}', "its arguments are not a JSON object"),
    ],
)
def test_a_call_that_cannot_be_made_says_why(written, said):
    [call] = hermes_calls(f"<tool_call>{written}</tool_call>", SCHEMAS).calls
    assert said in call.error
    assert arguments_as_text(call) == written


def test_half_a_surrogate_pair_in_a_call_can_be_recorded():
    text = '<tool_call>{"name": "look", "arguments": {"word": "\\ud800"}}</tool_call>'
    [call] = hermes_calls(text, SCHEMAS).calls
    assert call.arguments == {"word": "\ud800"}
    assert arguments_as_text(call) == '{"word": "?"}'


def test_a_call_that_is_not_closed_says_so():
    assert "no </tool_call>" in read(hermes_calls("<tool_call>{}", SCHEMAS))[0]
    assert "a call is written <tool>" in read(bundled_calls("3*4</tool>", ONE))[0]


@pytest.mark.parametrize("parse", [bundled_calls, hermes_calls, llama_calls])
def test_an_answer_without_a_call_is_said_as_it_is(parse):
    text = "<answer>12</answer>"
    assert (parse(text, SCHEMAS).said, parse(text, SCHEMAS).calls) == (text, ())
