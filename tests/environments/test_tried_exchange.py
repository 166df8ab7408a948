"""What Preflight says of an environment: template, tools, time of calls, token budget."""

from __future__ import annotations

import dataclasses
import re

import pytest

from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import BUILT_IN, find_environment
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.environments.trajectories import World
from grpo_core.models import Reader, load_reader
from grpo_core.preflight import exchange
from grpo_core.preflight.service import PreflightService
from grpo_core.types import Completion, Rollout, Turn, TurnRole
from tests.environments.test_play_turns import config
from tests.environments.test_tool_chat import CASES, chat_policy

PROBE = Turn(TurnRole.OBSERVATION, "7", 0, 0, "calculate", '{"expression": "1"}', "", 0.5)
# Thinking is dropped from every turn but the last, as some reasoning models' templates do.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and not loop.index >= messages|length - 1 %}"
    "{{ m['content'].split('</think>')[-1].strip() }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def reader_of(policy, name="smollm2", template=None) -> Reader:
    chatty = chat_policy(policy, name, CASES[name][0])
    if template:
        chatty.tokenizer.chat_template = template
    return Reader(chatty.tokenizer, None, chatty.end_ids)


def history(reader: Reader):
    [finding] = exchange._history(ToolChat(reader, BUILT_IN["Calculator"]), reader, PROBE)
    return finding


@pytest.fixture(scope="module")
def report(calling_model):
    """Preflight's whole report on products with a model that calls its tool."""
    asked = config(calling_model, **{"train.prompts_per_step": 2, "train.steps": 2})
    return {f.title: f for f in PreflightService().preflight(asked)}


def test_preflight_reports_on_the_environment(report):
    assert report["Turns"].level == "green"
    assert report["Tool works"].level == "green"
    assert "calculate" in report["Tool works"].text
    assert "answered '1'" in report["Tool works"].text
    assert " calls in the first step" in report["Tool calls"].text
    assert re.search(r"s a call, the longest .* of 5 s", report["Tool calls"].text)
    assert report["Token budget"].level == "green"
    assert report["Tools"].level == "green"  # it has no chat template, and calls its tool


def test_a_task_without_environment_has_no_such_findings(calling_model):
    asked = config(calling_model, **{"task.environment": "none"})
    assert exchange.exchange_findings(asked, load_reader(asked.model), ()) == []


@pytest.mark.parametrize("name", CASES)
def test_templates_that_keep_earlier_turns_are_green(policy, name):
    finding = history(reader_of(policy, name))
    assert (finding.level, finding.title) == ("green", "Turns"), finding.text
    assert "exchange of 3 turns" in finding.text


def test_a_template_that_rewrites_history_is_named_with_the_place(policy):
    finding = history(reader_of(policy, template=FORGETS))
    assert finding.level == "amber"
    assert "rewrites turn" in finding.text
    assert "think" in finding.text


def test_whether_the_template_shows_tools_is_said(policy):
    def said(reader, *calls):
        chat = ToolChat(reader, BUILT_IN["Calculator"])
        finding = exchange._shown(chat, ["calculate"], calls)
        return finding.level, finding.text

    assert said(reader_of(policy, "qwen3"))[0] == "green"
    level, text = said(reader_of(policy, "smollm2"))
    assert (level, "system message describes calculate" in text) == ("amber", True)
    assert said(reader_of(policy, "smollm2"), PROBE)[0] == "green"  # it called one
    level, text = said(policy)
    assert (level, "reads no chats" in text) == ("amber", True)


def rollout(*turns: Turn) -> Rollout:
    return Rollout(Completion("", "stop", 1, turns))


def action(tokens: int) -> Turn:
    return Turn(TurnRole.ACTION, "a", 0, tokens)


def observation(tokens: int, seconds: float = 0.1, error: str = "") -> Turn:
    return Turn(TurnRole.OBSERVATION, "o", 0, tokens, "calculate", "{}", error, seconds)


def seen(*rollouts: Rollout) -> exchange._Seen:
    calls = [t for r in rollouts for t in r.completion.turns if t.tool]
    return exchange._Seen(rollouts, calls, PROBE)


@pytest.mark.parametrize(
    ("budget", "level", "turns"),
    # An action takes 10 tokens and an observation 5: n turns take 15 n - 5.
    [(80, "green", "about 5 turns"), (25, "green", "about 2 turns"), (24, "red", "about 1 turns")],
)
def test_the_token_budget_is_counted_in_turns(calling_model, budget, level, turns):
    case = seen(rollout(action(10), observation(5), action(10)))
    asked = config(calling_model, **{"train.max_new_tokens": budget})
    finding = exchange._budget(asked, case, (99, 99))
    assert finding.level == level
    assert turns in finding.text


def test_without_calls_the_budget_is_that_of_a_made_up_call(calling_model):
    asked = config(calling_model, **{"train.max_new_tokens": 60})
    finding = exchange._budget(asked, seen(rollout(action(3))), (20, 10))
    assert "about 20 tokens and an observation 10" in finding.text
    assert "about 2 turns" in finding.text  # 20 + 10 + 20 = 50 of 60


def test_slow_failing_and_missing_calls_are_amber(calling_model):
    asked = config(calling_model, **{"rollout.tool_seconds": 2.0})

    def of(*rollouts: Rollout):
        return {f.title: f for f in exchange._calls(asked, seen(*rollouts))}["Tool calls"]

    assert of(rollout(action(1), observation(1), action(1))).level == "green"
    slow = of(rollout(action(1), observation(1, 1.5), action(1)))
    assert (slow.level, "longest 1.50 s of 2 s" in slow.text) == ("amber", True)
    failed = of(rollout(action(1), observation(1, error="no"), action(1)))
    assert (failed.level, "1 of them" in failed.text) == ("amber", True)
    assert "None of the 1 completions" in of(rollout(action(1))).text


def test_a_tool_that_fails_is_named_with_its_error(policy, bad_environment):
    environment = dataclasses.replace(find_environment(bad_environment))
    fails = {n: s for n, s in environment.schemas.items() if n == "fail"}
    only = dataclasses.replace(
        environment, tools=tuple({"type": "function", "function": s} for s in fails.values())
    )
    with Instances(only, 2.0, lambda: None) as instances:
        instances.start([{}], [0])
        probe = exchange._probe(World(ToolChat(policy, only), instances, 8))
    case = exchange._Seen((), (), probe)
    asked = config("x")
    [works, _] = exchange._calls(asked, case)
    assert works.level == "amber"
    assert "no such key" in works.text
