"""A recorded run whose completions call a calculator: turns, tokens and metrics, without torch."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence

from grpo_core.config import RunConfig, nest, parse
from grpo_core.rubric import resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    StepTokens,
    TokenRecord,
    Turn,
    TurnRole,
)

REASON = "line 31: ValueError: this is not an arithmetic expression"
SLOW = "it took longer than 5 s"
NUM_STEPS = 3


def action(text: str, first: int = 0) -> Turn:
    return Turn(TurnRole.ACTION, text, first, len(text))


def call(text: str, expression: str, first: int, error: str = "", **more) -> Turn:
    """An answer of the calculator, as the bundled model reads it: <result>1938</result>."""
    values = {"tool": "calculate", "seconds": 0.0213, **more}
    written = f'{{"expression": "{expression}"}}'
    return Turn(
        TurnRole.OBSERVATION,
        text,
        first,
        len(f"<result>{text}</result>"),
        arguments=written,
        error=error,
        **values,
    )


def completion(*turns: Turn, finish: str = "stop") -> Completion:
    """Of one token a character; turns have their places already."""
    texts = [
        t.text if t.role == TurnRole.ACTION else f"<result>{t.text}</result>" * bool(t.num_tokens)
        for t in turns
    ]
    num_tokens = sum(len(t.text) for t in turns if t.role == TurnRole.ACTION)
    return Completion("".join(texts), finish, num_tokens, tuple(turns), has_tools=True)


def called(answer: str = "1938", expression: str = "34*57") -> Completion:
    """Calls the calculator once, then answers."""
    first = f"<tool>{expression}</tool>"
    observation = call(answer, expression, len(first))
    after = len(first) + observation.num_tokens
    return completion(action(first), observation, action(f"<answer>{answer}</answer>", after))


def failed() -> Completion:
    """Its call is answered with an error."""
    first = "<tool>34*</tool>"
    observation = call("error", "34*", len(first), REASON)
    after = len(first) + observation.num_tokens
    return completion(action(first), observation, action("<answer>91</answer>", after))


def guessed(answer: str = "2000") -> Completion:
    """Calls nothing."""
    return completion(action(f"<answer>{answer}</answer>"))


def scored(prompt: Prompt, completions: Sequence[Completion], verdict: str) -> Group:
    rewards = [float(prompt.answer in c.text) for c in completions]
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    rollouts = tuple(
        Rollout(c, {"accuracy": r}, r, (r - mean) / (std + 1e-4))
        for c, r in zip(completions, rewards, strict=True)
    )
    return Group(prompt, rollouts, mean, std, verdict)


def record_of(c: Completion, after: float = 0.1) -> TokenRecord:
    """One token a character; of observations nothing is known but the ids."""
    acts = [True] * len(c.text)
    for t in c.turns:
        if t.role == TurnRole.OBSERVATION:
            acts[t.first_token : t.first_token + t.num_tokens] = [False] * t.num_tokens

    def values(number: float) -> array:
        return array("f", [number if a else math.nan for a in acts])

    return TokenRecord(
        array("i", [ord(char) for char in c.text]),
        values(-0.5),
        values(-0.5),
        values(-0.6),
        values(0.3),
        values(-0.5 + after),
    )


def groups_of(step: int) -> tuple[Group, ...]:
    """A group that learns to call, and one that never calls."""
    prompt = Prompt("p1", "Q: 34*57=?", "1938", "products")
    other = Prompt(f"q{step}", f"Q: {step}1*99=?", "none of these", "products")
    return (
        scored(prompt, [guessed(), called(), failed(), called()], "healthy"),
        scored(other, [guessed("1"), guessed("2"), guessed("3"), guessed("4")], "no_call"),
    )


def two_trajectories(step: int) -> tuple[Group, ...]:
    """A group of two: one calls well, one is answered with an error."""
    prompt = Prompt(f"p{step}", f"Q: {step}?", "1938", "products")
    return (scored(prompt, [called(), failed()], "healthy"),)


def record_acting_run(store: Store, name: str = "products", groups=groups_of) -> str:
    """NUM_STEPS steps of two groups of four, with tokens."""
    settings = {
        "task.name": "products",
        "train.steps": NUM_STEPS,
        "train.group_size": 4,
        "train.prompts_per_step": 2,
        "rubric.name": "accuracy only",
        "algorithm.kl_coef": 0.02,
    }
    config: RunConfig = parse(nest(settings))
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(config, name)
    with Recorder(store, run_id) as record:
        for step in range(1, NUM_STEPS + 1):
            found = groups(step)
            record(GroupsScored(step, found))
            texts = {
                (g, i): r.completion
                for g, group in enumerate(found)
                for i, r in enumerate(group.rollouts)
            }
            pieces = {ord(char): char.encode() for c in texts.values() for char in c.text}
            tokens = StepTokens({at: record_of(c) for at, c in texts.items()}, pieces)
            metrics = StepMetrics(
                reward_mean=0.25,
                reward_std=0.46,
                loss=0.0,
                kl=0.01 * (step - 1),
                kl_coef=0.02,
                entropy=0.3,
                completion_tokens_mean=24.0,
                turns_mean=1.0 + 0.125 * step,
                tool_calls_mean=0.125 * step,
                tool_error_frac=1 / 3,
                observation_frac=0.2,
                tokens=200,
                step_seconds=1.0,
            )
            record(StepCompleted(step, metrics, {"score/accuracy": 0.25}, tokens))
    store.set_status(run_id, RunStatus.FINISHED)
    return run_id
