"""The groups of one step: sample them, score them, and replace tied groups by fresh prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b

import torch

from grpo_core.config import RunConfig
from grpo_core.environments.trajectories import World, sample_trajectories, started
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import FieldProblem, InvalidConfig, OutOfMemory
from grpo_core.learner.workers import ALONE, Workers
from grpo_core.models import Policy
from grpo_core.models.device import is_out_of_memory
from grpo_core.rollout import SamplingHooks, SamplingParams, TurnSampler, sample_groups
from grpo_core.rollout.vllm_engine import VllmEngine
from grpo_core.rubric import Notes, Rubric
from grpo_core.tasks import Task, environment_of, train_prompts
from grpo_core.training.async_scoring import AsyncScorer
from grpo_core.training.control import ControlPoints
from grpo_core.training.scoring import Progress, PromptRollouts, is_informative, score
from grpo_core.types import Phase, PhaseStarted, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Session:
    """What every step of a run uses. `config` has the settings in force in the present step."""

    config: RunConfig
    policy: Policy
    task: Task
    rubric: Rubric
    points: ControlPoints
    worlds: Worlds | None = None  # only a task with an environment needs them
    pauses_after: int | None = None  # see World; a run never pauses there
    workers: Workers = ALONE  # each samples and scores every world-th group
    engine: VllmEngine | None = None  # None: the policy samples itself

    def world_of(self, prompt: Prompt) -> World | None:
        """What the policy acts in to answer a prompt; None without an environment."""
        if not (name := environment_of(self.task, prompt)):
            return None
        assert self.worlds is not None
        world = self.worlds.of(name, self.config.rollout)
        turns = TurnSampler if self.engine is None else self.engine.turns
        return replace(world, pauses_after=self.pauses_after, turns=turns)

    def by_world(self, prompts: Sequence[Prompt]) -> list[tuple[World | None, list[int]]]:
        """The worlds of some prompts, each with the places of its prompts in order."""
        places: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            places.setdefault(environment_of(self.task, prompt), []).append(i)
        return [(self.world_of(prompts[at[0]]), at) for at in places.values()]

    def close(self) -> None:
        """End the processes of its environments, and leave the server."""
        if self.worlds is not None:
            self.worlds.close()
        if self.engine is not None:
            self.engine.close()

    def give_weights(self) -> None:
        """Before sampling: a server gets the policy's weights where they have changed."""
        if (engine := self.engine) is not None and engine.is_stale:
            temperature = self.config.train.temperature
            engine.use(self.workers.first(lambda: engine.load(temperature)))


@dataclass(slots=True)
class RolloutBatch:
    """The P scored groups of a step, and what it cost to get them."""

    groups: list[PromptRollouts] = field(default_factory=list)
    num_prompts: int = 0  # sampled, replaced ones included
    tokens: int = 0  # completion tokens sampled, those of replaced groups included
    sampling_seconds: float = 0.0
    scoring_seconds: float = 0.0
    notes: dict[str, Notes] = field(default_factory=dict)  # criterion -> why scores are null

    def add(
        self, parts: Sequence[RolloutBatch], groups: Sequence[PromptRollouts], places: Sequence[int]
    ) -> None:
        """Put further groups at these places, and count what the parts that made them cost.

        Workers work at the same time: the seconds are those of the slowest.
        """
        self.groups += groups[len(self.groups) :]
        for i, group in zip(places, groups, strict=True):
            self.groups[i] = group
        self.num_prompts += sum(part.num_prompts for part in parts)
        self.tokens += sum(part.tokens for part in parts)
        self.sampling_seconds += max(part.sampling_seconds for part in parts)
        self.scoring_seconds += max(part.scoring_seconds for part in parts)
        for part in parts:
            for name, more in part.notes.items():
                self.notes.setdefault(name, Notes()).add(more)

    @property
    def replaced_groups(self) -> int:
        return self.num_prompts - len(self.groups)

    @property
    def rollouts(self) -> list[Rollout]:
        """All B rollouts, siblings together."""
        return [r for _, siblings in self.groups for r in siblings]


def collect_rollouts(session: Session, step: int) -> RolloutBatch:
    """P prompts with G scored completions each; every worker gets those of all.

    With `dynamic_sampling` n, tied groups are replaced by the step's next prompts in up to n
    rounds (DAPO, arXiv:2503.14476 §3.2). What is tied after the last round stays, so that every
    step has P groups.
    """
    config, workers, batch = session.config, session.workers, RolloutBatch()
    session.give_weights()
    for _ in range(1 + config.algorithm.dynamic_sampling):
        places = [*range(config.train.prompts_per_step)]
        if batch.groups:
            places = [
                i
                for i, (_, rollouts) in enumerate(batch.groups)
                if not is_informative(rollouts, session.rubric, config.rubric.gate)
            ]
        if not places:
            break
        first = batch.num_prompts  # a group's number counts all prompts of the step
        numbers = [first + i for i in workers.mine(len(places))]
        found = workers.gather(partial(_sample_and_score, session, step, numbers))
        batch.add(found, workers.in_order([part.groups for part in found]), places)
    if session.engine is not None:
        session.engine.is_stale = True  # an update follows
    return batch


def _sample_and_score(session: Session, step: int, numbers: Sequence[int]) -> RolloutBatch:
    """The groups of the step's prompts with these numbers."""
    t, a, points = session.config.train, session.config.algorithm, session.points
    now = points.timer.now
    points.begin_phase(PhaseStarted(Phase.SAMPLING, step, t.steps))
    if not numbers:
        return RolloutBatch()
    started = now()
    drawn = train_prompts(session.task, t.seed, step, numbers[-1] + 1)
    asked = ask(session, [drawn[n] for n in numbers], t.group_size, step, numbers)
    keep_logprobs = (
        a.off_policy_threshold is not None or t.token_records > 0 or session.engine is not None
    )
    params = SamplingParams(t.group_size, t.max_new_tokens, t.temperature, keep_logprobs)
    with AsyncScorer(session.rubric, asked.prompts) as scorer:
        on_group_done = scorer.submit if scorer.is_wanted else None
        hooks = SamplingHooks(points.check_interrupt, on_group_done)
        sampled = sample(session, asked, params, hooks)
        sampled_at = now()
        points.begin_phase(PhaseStarted(Phase.SCORING, step, t.steps))
        progress = Progress(step - 1, t.steps)
        groups, notes = score(asked.prompts, sampled, session.rubric, scorer, progress)
    return RolloutBatch(
        groups,
        num_prompts=len(numbers),
        tokens=sum(r.completion.num_tokens or 0 for r in sampled),
        sampling_seconds=sampled_at - started,
        scoring_seconds=now() - sampled_at,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts as a policy reads them.

    keys: of the random numbers that their tools may draw. draws: the random numbers of each
    prompt's tokens.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    keys: list[str]
    draws: list[torch.Generator]


def ask(
    session: Session,
    prompts: Sequence[Prompt],
    group_size: int,
    step: int,
    numbers: Iterable[int] | None = None,
) -> Asked:
    """Encode prompts. In an environment, first make the instances of their completions.

    numbers: of the prompts in their step; with seed and step they decide the random numbers. None:
    from 0. An evaluation is step -1. Raises InvalidConfig for a prompt that leaves no room, and
    StudioError for an environment that does not start.
    """
    seed, device = session.config.train.seed, session.policy.device
    keys = [f"{seed}/{step}/{prompt.id}" for prompt in prompts]
    draws = [group_draws(seed, step, n, device) for n in numbers or range(len(prompts))]
    begun = list(prompts)
    for world, places in session.by_world(prompts):
        if world is not None:
            asked = [prompts[i] for i in places]
            texts = started(world, asked, group_size, [keys[i] for i in places])
            for i, prompt in zip(places, texts, strict=True):
                begun[i] = prompt
    return Asked(begun, [encode(session, prompt) for prompt in begun], keys, draws)


def sample(
    session: Session,
    asked: Asked,
    params: SamplingParams,
    hooks: SamplingHooks | None = None,
) -> list[Rollout]:
    """Completions of prompts that are asked. Raises OutOfMemory, naming what to lower.

    hooks: by default the run's interruption points alone.
    """
    hooks = hooks or SamplingHooks(session.points.check_interrupt)
    size = params.group_size
    sampled: dict[int, Rollout] = {}  # by the completion's place
    try:
        for world, places in session.by_world(asked.prompts):
            found = _sample_in(session, asked, params, (world, places, hooks))
            for n, rollout in enumerate(found):
                sampled[places[n // size] * size + n % size] = rollout
        return [sampled[i] for i in range(len(sampled))]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    num_completions = len(asked.prompt_ids) * size
    longest = max(map(len, asked.prompt_ids)) + params.max_new_tokens
    raise OutOfMemory(
        f"train.group_size: there is not enough memory to sample {num_completions:,} completions "
        f"of up to {longest:,} tokens, prompt included, at once. "
        "Lower prompts_per_step, group_size or max_new_tokens, or use a smaller model."
    )


def _sample_in(
    session: Session,
    asked: Asked,
    params: SamplingParams,
    part: tuple[World | None, Sequence[int], SamplingHooks],
) -> list[Rollout]:
    """Completions of the prompts at some places, which share a world.

    part: the world, the places, and the hooks of all prompts.
    """
    world, places, hooks = part
    if (told := hooks.on_group_done) is not None:
        hooks = replace(hooks, on_group_done=lambda p, rollouts: told(places[p], rollouts))
    prompt_ids = [asked.prompt_ids[i] for i in places]
    draws = [asked.draws[i] for i in places]
    if world is None:
        groups = sample_groups if session.engine is None else session.engine.sample_groups
        return groups(session.policy, prompt_ids, params, draws, hooks)
    prompts = [*zip((asked.keys[i] for i in places), prompt_ids, strict=True)]
    return sample_trajectories(session.policy, prompts, params, draws, world, hooks)


def with_rewards(
    groups: Sequence[PromptRollouts], edited: Mapping[tuple[int, int], float]
) -> list[PromptRollouts]:
    """The groups with rewards that a person gave: (group, completion) -> reward, from 0."""
    return [
        (
            prompt,
            tuple(
                replace(r, reward=edited[p, i], edited=True) if (p, i) in edited else r
                for i, r in enumerate(rollouts)
            ),
        )
        for p, (prompt, rollouts) in enumerate(groups)
    ]


def encode(session: Session, prompt: Prompt) -> list[int]:
    """Prompt ids. Raises InvalidConfig for a prompt that leaves no room for the completion."""
    context, room = session.policy.context, session.config.train.max_new_tokens
    world = session.world_of(prompt)
    encoder = session.policy if world is None else world.chat
    ids = encoder.encode(prompt, session.task.instruction)
    if context is not None and len(ids) + room > context:
        problem = FieldProblem(
            "train.max_new_tokens",
            room,
            f"a prompt of {len(ids)} tokens and this many do not fit the model's context of "
            f"{context}",
            f"Use {max(1, context - len(ids))} or fewer.",
        )
        raise InvalidConfig([problem])
    return ids


def group_draws(seed: int, step: int, number: int, device: torch.device) -> torch.Generator:
    """The random numbers of one group: they depend on neither other groups nor the workers."""
    key = blake2b(f"{seed}/{step}/{number}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key) >> 1)
