"""The parts of a TRL script that make a run's environment: TRL 1.16's tools or environment_factory.

TRL's contract is this program's, so a class runs in both. There it runs unlocked, in TRL's process.
"""

from __future__ import annotations

from pathlib import Path

from grpo_core.config import RunConfig
from grpo_core.environments.registry import BUILT_IN, named_environments
from grpo_core.tasks import environment_named

# Fields of the script: what makes a completion of a row, and what a row of the data set holds.
COMPLETION = """\
def completion(ids, i):
    reason = "stop" if ids[-1] in policy.end_ids else "length"
    return Completion(opening(i) + policy.decode(ids), reason, len(ids))


def completed(ids, rows, _):
    return [completion(*each) for each in zip(ids, rows, strict=True)]
"""
COMPLETION_OF_TURNS = '''\
def completion(messages, ids, i, environment):
    """What the policy wrote without its calls, and what get_reward returns."""
    said = "".join(m.get("content") or "" for m in messages if m["role"] == "assistant")
    reason = "stop" if ids[-1] in policy.end_ids else "length"
    earned = Base.get_reward(environment) if hasattr(Base, "get_reward") else None
    return Completion(opening(i) + said, reason, len(ids), environment_reward=earned)


def completed(ids, rows, more):
    environments = more.get("environments") or [None] * len(rows)
    return [
        completion(*each)
        for each in zip(more["completions"], ids, rows, environments, strict=True)
    ]
'''
ARGUMENTS = """
        tools=TOOLS,
        environment_factory=None if Base is object else Environment,"""
CHECK = """
    if not policy.tokenizer.chat_template:
        raise SystemExit("TRL calls tools by a chat template, and this model has none.")"""
_FROM_FILE = """\
import inspect
import runpy

from grpo_core.environments.trajectories import row_of

found = runpy.run_path({file!r})  # the file that --environments named: put it beside this script
Base = found.get({name!r}, object)
TOOLS = []
if Base is object:  # the file has functions only
    TOOLS = [f for n, f in found.items() if n[0] != "_" and inspect.isfunction(f)]
"""
_BUILT_IN = """\
from grpo_core.environments.calculator import {name} as Base
from grpo_core.environments.trajectories import row_of

TOOLS = []
"""
_ENVIRONMENT = """

class Environment(Base):
    get_reward = None  # TRL would add it to the rubric with weight 1
"""


def trl_environment(config: RunConfig) -> str:
    """The script's lines that define the run's environment; "" if there is none, or none in TRL."""
    name = environment_named(config.task)
    if not name.isidentifier():  # none, or one that an adapter serves
        return ""
    if name in BUILT_IN:
        return _BUILT_IN.format(name=name) + _ENVIRONMENT
    files = {e.name: Path(e.path).name for e in named_environments()}
    return _FROM_FILE.format(file=files.get(name, "environments.py"), name=name) + _ENVIRONMENT
