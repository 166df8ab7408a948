"""Completions beside a run: previews, checks and the Playground ask as training does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from grpo_core.config import RunConfig
from grpo_core.environments.trajectories import started
from grpo_core.environments.worlds import Worlds
from grpo_core.models import Policy, Reader
from grpo_core.rollout import SamplingParams
from grpo_core.rubric import build_rubric
from grpo_core.tasks import environment_of, load_task
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import Session, ask, sample
from grpo_core.types import Prompt, Rollout


@contextmanager
def session_beside(
    config: RunConfig,
    policy: Policy,
    check_interrupt: Callable[[], None] = lambda: None,
    pauses_after: int | None = None,
) -> Iterator[Session]:
    """A session of a run's settings for `ask` and `sample`, in the environment of its task.

    check_interrupt: ends tools too. The environment's processes end with the context. Raises
    InvalidConfig for an unknown environment.
    """
    session = Session(
        config,
        policy,
        load_task(config.task),
        build_rubric(config.rubric),
        RunControl().points,
        Worlds(policy, check_interrupt),
        pauses_after,
    )
    with closing(session):
        yield session


def sampled_beside(
    config: RunConfig, policy: Policy, prompts: Sequence[Prompt], params: SamplingParams
) -> tuple[list[Prompt], list[Rollout]]:
    """Prompts with what their environment adds to them, and their completions in it."""
    with session_beside(config, policy) as session:
        asked = ask(session, prompts, params.group_size, 1)
        return asked.prompts, sample(session, asked, params)


def as_read(
    config: RunConfig, reader: Reader, prompts: Sequence[Prompt]
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with what their environment adds to them, and their ids, tools included.

    Too long ones too. Raises StudioError for an environment that does not start.
    """
    task, read = load_task(config.task), []
    with closing(Worlds(reader, lambda: None)) as worlds:
        encoder = worlds.encoder(task, config.rollout)
        for prompt in prompts:
            if name := environment_of(task, prompt):
                [prompt] = started(worlds.of(name, config.rollout), [prompt], 1, [prompt.id])
            read.append((prompt, encoder.encode(prompt, task.instruction)))
    return read
