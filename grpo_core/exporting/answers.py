"""A run's trained policy: its answers after any saved step, turn by turn in an environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from grpo_core.config import RunConfig, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.exporting.play_request import PlayRequest, PlayResult, PlayWatch, Side
from grpo_core.models import Policy
from grpo_core.models.model_cache import ModelCache
from grpo_core.rollout import SamplingHooks, SamplingParams
from grpo_core.rubric import build_rubric
from grpo_core.runs.resume import checkpoint_of
from grpo_core.store import CheckpointRow, RunRow, Store
from grpo_core.tasks import TASKS, heldout_prompts, load_task, prompt_id, train_prompts
from grpo_core.time_limit import SCORING_SECONDS, time_limit
from grpo_core.training.beside import session_beside
from grpo_core.training.checkpoint import load_weights, put_weights
from grpo_core.training.rollout_batch import Asked, Session, ask, sample
from grpo_core.training.scoring import Progress, score_groups
from grpo_core.types import Completion, Prompt, Rollout, TurnRole

PLAY_STEP = -2  # keys the random numbers of tools; evaluation has -1
LOOK_SECONDS = 0.2  # between two looks at answers that are being written


def load_checkpoint(policy: Policy, row: CheckpointRow) -> None:
    """Set the policy's trained weights to those of a checkpoint."""
    put_weights(policy.model, load_weights(row.path))


def heldout_prompt(config: RunConfig, number: int) -> Prompt:
    """The run's held-out prompt of that number, modulo their count.

    A run without held-out prompts uses those of its first training step.
    """
    task = load_task(config.task)
    prompts = heldout_prompts(task, config.task.heldout_size)
    prompts = prompts or train_prompts(task, config.train.seed, 1, 8)
    return prompts[number % len(prompts)]


def _asked(config: RunConfig, request: PlayRequest) -> Prompt:
    """The held-out prompt that the text was taken from, with its earlier messages and columns.

    A text that was typed or edited follows the run's system prompt alone.
    """
    if request.number is not None:
        prompt = heldout_prompt(config, request.number)
        if prompt.text == request.text:
            return replace(prompt, answer=request.answer)
    name = config.task.name
    system = config.task.system if name not in TASKS else ""  # built-in ones have none
    meta = {"before": [{"role": "system", "content": system}]} if system else {}
    return Prompt(prompt_id(name, request.text), request.text, request.answer, name, meta)


def play(
    store: Store,
    models: ModelCache,
    run_id: str,
    request: PlayRequest,
    watch: PlayWatch | None = None,
) -> PlayResult:
    """Answer greedily and by sampling, with the same random numbers for each state.

    The run's own prompt and rubric count for every state; a state of another run answers with that
    run's instruction, length and environment. watch: is shown the answers as they are written;
    its `partial` are those of one turn fewer, which stay until their next turn begins.
    Raises StudioError; PlayStopped where the watch says so.
    """
    watch = watch or PlayWatch()
    config = parse(store.run(run_id).config)
    prompt, rubric = _asked(config, request), build_rubric(config.rubric)
    known = watch.partial.sides if watch.partial else [Side(s, None, ()) for s in request.states]
    sides = [*known]

    def show(n: int, read: Prompt, rollouts: Sequence[Rollout]) -> None:
        begun = read.text[len(prompt.text) :]
        shown = [r for r in (known[n].greedy, *known[n].sampled) if r is not None]
        rollouts = [*rollouts, *shown[len(rollouts) :]]
        sides[n] = Side(request.states[n], rollouts[0], tuple(rollouts[1:]), begun)
        watch.show(PlayResult(prompt, rubric.outcome, tuple(sides)))

    for n, state in enumerate(request.states):
        run = store.run(state.run_id)
        own = parse(run.config)
        watch.check()
        with _policy_of(store, models, run, state.step) as policy:
            train = own.train.model_copy(update={"seed": config.train.seed})
            seeded = own.model_copy(update={"train": train})
            with session_beside(seeded, policy, watch.check, request.turns) as session:
                read, rollouts = _answers(session, prompt, request, watch, partial(show, n))
        show(n, read, rollouts)
        if any(not r.completion.finish_reason for r in rollouts):
            continue  # it pauses, and is scored when all answers are whole
        with time_limit(SCORING_SECONDS):
            progress = Progress(state.step, own.train.steps)
            [(_, answers)], _ = score_groups([read], rollouts, rubric, progress=progress)
        show(n, read, answers)
    return PlayResult(prompt, rubric.outcome, tuple(sides))


Show = Callable[[Prompt, Sequence[Rollout]], None]  # a prompt as it is read, and its answers


def _answers(
    session: Session, prompt: Prompt, request: PlayRequest, watch: PlayWatch, show: Show
) -> tuple[Prompt, list[Rollout]]:
    """The prompt with what an environment adds to it, and its answers, the greedy one first."""
    room = session.config.train.max_new_tokens
    ways = [SamplingParams(1, room, 0.0)]
    if request.temperature > 0:
        ways.append(SamplingParams(request.count, room, request.temperature))
    read, rollouts = prompt, []
    for params in ways:
        asked = _fitting(session, prompt, params.group_size)
        [read] = asked.prompts
        teller = _Teller(partial(show, read), rollouts, request.turns or 1)
        hooks = SamplingHooks(watch.check, on_look=teller.look, on_calls=teller.tell)
        rollouts += sample(session, asked, params, hooks)
    return read, rollouts


def _fitting(session: Session, prompt: Prompt, group_size: int) -> Asked:
    """The prompt, asked. Raises StudioError if the answer would not fit the context."""
    try:
        return ask(session, [prompt], group_size, PLAY_STEP)
    except InvalidConfig as error:
        [problem, *_] = error.problems
        if problem.field != "train.max_new_tokens":
            raise
        raise StudioError(
            f"The prompt leaves no room for the answer: {problem.problem}. Shorten it."
        ) from None


class _Teller:
    """Shows the finished answers and those that are being written, a few times a second.

    turn: those of earlier turns are not shown: they are on show already.
    """

    def __init__(
        self, show: Callable[[Sequence[Rollout]], None], finished: Sequence[Rollout], turn: int
    ) -> None:
        self._show, self._finished, self._turn = show, finished, turn
        self._last = 0.0

    def look(self, read: Callable[[], dict[int, Completion]]) -> None:
        if time.monotonic() - self._last > LOOK_SECONDS:
            self.tell(read)

    def tell(self, read: Callable[[], dict[int, Completion]]) -> None:
        """Show them now: a tool that is called may take long."""
        self._last = time.monotonic()
        written = [c for _, c in sorted(read().items())]
        if self._turn == 1 or max(map(_num_actions, written), default=0) >= self._turn:
            self._show([*self._finished, *(Rollout(_whole(c)) for c in written)])


def _num_actions(completion: Completion) -> int:
    return sum(turn.role is TurnRole.ACTION for turn in completion.turns)


def _whole(completion: Completion) -> Completion:
    """Without a character at the end of which only some bytes are written."""
    turns = completion.turns
    if turns:
        turns = (*turns[:-1], replace(turns[-1], text=turns[-1].text.rstrip("\ufffd")))
    return replace(completion, text=completion.text.rstrip("\ufffd"), turns=turns)


@contextmanager
def _policy_of(store: Store, models: ModelCache, run: RunRow, step: int) -> Iterator[Policy]:
    """The run's policy after this step, for this caller alone until the context ends."""
    config = parse(run.config)
    state_key, after_load = None, None
    if step:
        row = checkpoint_of(store, run, step)
        state_key = (run.id, step, row.sha256)
        after_load = partial(load_checkpoint, row=row)
    with models.use(config.model, config.train.seed, state_key, after_load) as policy:
        yield policy
