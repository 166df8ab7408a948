"""Writes a run of another trainer into the store, so that every view works on it.

The run goes through the recorder's own events. What the source lacks is filled where it follows
from the rest, and the run's `source` says of every field whether it was recorded.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from grpo_core.config import RunConfig, flatten, parse, with_changes
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.records.compare import compare, evaluated, find_estimator, step_metrics
from grpo_core.records.provenance import Provenance
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.rubric import TOTAL, SourceRubric
from grpo_core.records.settings import map_settings
from grpo_core.rubric import total
from grpo_core.store import Store, foreign
from grpo_core.store.foreign import Part, PartRecorder
from grpo_core.store.plain import finite_or_none
from grpo_core.store.rows import GroupRow, Source
from grpo_core.tasks import prompt_id
from grpo_core.types import (
    STEP_METRICS,
    Completion,
    Evaluated,
    Event,
    Group,
    GroupKind,
    GroupsScored,
    Phase,
    PhaseStarted,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    StepTokens,
    TokenRecord,
)

MAX_STEP = 2**53
MAX_TRIES = 20  # steps that are asked for the estimator before it stays assumed
TASK = "recorded"  # the task and the rubric of such a run
PER_TOKEN = ("sampling_logprobs", "logprobs", "ref_logprobs", "entropy")


class RecordWriter:
    """One run of another trainer. Holds the file for the life of the `with` block.

    The source's key finds the run, or a new one is made. With `live` the run is running from the
    first record on, until `finish`; every record is a sign of life. Without, it has ended at once.
    batch: so many completions are written in one transaction; 0: each step in its own.
    """

    def __init__(self, store: Store, source: SourceRun, *, live: bool = False, batch: int = 0):
        self.store = store
        self.source = source
        self.live = live
        self.batch = batch
        self.num_written = 0  # steps, or parts of steps, that were new or changed
        self._holding = ExitStack()
        self._transaction = ExitStack()
        self._in_transaction = False
        self._pending = 0  # completions in the open transaction

    def __enter__(self) -> RecordWriter:
        self._writer = self._holding.enter_context(self.store.writing())
        try:
            self._open()
        except BaseException:
            self._holding.close()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._holding:
            if exception[0] is None:
                self._commit()
            self._transaction.__exit__(*exception)
            self._in_transaction = False

    def _open(self) -> None:
        run_id = foreign.run_of(self.store, self.source.key)
        if run_id is None:
            run_id = self._create()
        self.run_id: str = run_id
        self._recorder = PartRecorder(self.store, run_id)
        known = self.store.run(run_id)
        assert known.source is not None
        self._config = self._written_config = parse(known.config)
        self._source = known.source
        self._provenance = Provenance(known.source)
        self._is_live = known.status.is_live
        # Before anything is recorded, the criteria stand for nothing.
        criteria = [c.model_dump() for c in self._config.rubric.criteria]
        self._rubric = SourceRubric(
            criteria if known.source.recorded else (), _weights(self.source.settings)
        )
        self._estimator = known.source.estimator
        self._tries = 0  # steps that were asked for the estimator

    def _create(self) -> str:
        mapped = map_settings(self.source.settings, _fixed(SourceRubric()))
        config, num_steps = mapped.config, self.source.num_steps
        if num_steps and "train.steps" not in mapped.fields:
            config = _changed(config, {"train.steps": num_steps})
        named = "algorithm.advantage" in mapped.fields
        source = Source(
            self.source.trainer,
            self.source.format,
            self.source.key,
            dict(self.source.settings),
            estimator="settings" if named else "assumed",
        )
        return foreign.create(self.store, config, self.source.name, source, num_steps)

    # ---- what callers say -----------------------------------------------------------------------

    def write(self, step: SourceStep) -> bool:
        """Write a step, or a part of one. False: it was there already, and nothing changed."""
        _check(step)
        digest = blake2b(repr(step).encode("utf-8", "replace"), digest_size=16).hexdigest()
        self._begin()
        if self._recorder.digest(step.step, step.part) == digest:
            if not self.batch:
                self._commit()
            return False
        self._start()
        part, events = self._events(step, digest)
        self._recorder.put(part, events)
        self.num_written += 1
        self._pending += sum(len(g.rollouts) for g in step.groups)
        if self._pending >= self.batch:
            self._commit()
        return True

    def progress(self, step: int) -> None:
        """The source works on this step. A sign of life."""
        self._commit()
        self._start()
        self._recorder(PhaseStarted(Phase.UPDATING, step, self.source.num_steps or step))

    def heartbeat(self) -> None:
        """A sign of life."""
        self._commit()
        self._recorder.heartbeat()

    def finish(self, status: RunStatus, error: str | None = None) -> None:
        """The run has ended so. Nothing changes if it had ended so before."""
        self._commit()
        known = self.store.run(self.run_id)
        if (known.status, known.error) != (status, error) or self.num_written:
            self.store.set_status(self.run_id, status, error)
        self._is_live = status.is_live

    # ---- from records to events -----------------------------------------------------------------

    def _events(self, step: SourceStep, digest: str) -> tuple[Part, list[Event]]:
        self._provenance.see(step)
        self._learn(step)
        events: list[Event] = [
            PhaseStarted(Phase.UPDATING, step.step, self.source.num_steps or step.step)
        ]
        training = [g for g in step.groups if g.kind == GroupKind.TRAINING]
        pairs = [self._pair(group) for group in training]
        self._settle_estimator(pairs)
        found = compare(pairs, self._config)
        if found.num_filled:
            self._provenance.fill({"advantage": self._config.algorithm.advantage})
        if training:
            events.append(GroupsScored(step.step, found.marked))
        if training or step.metrics:
            events.append(self._completed(step, training, found.groups))
        evaluation = [g for g in step.groups if g.kind == GroupKind.EVALUATION]
        if evaluation:
            groups = evaluated([self._pair(group) for group in evaluation])
            events.append(
                Evaluated(step.step, heldout_metrics(groups, self._rubric.outcome), groups)
            )
        part = Part(step.step, step.part, digest, sum(found.disagrees))
        return part, events

    def _learn(self, step: SourceStep) -> None:
        """What the groups tell of rubric and sizes goes into the configuration."""
        rollouts = [r for g in step.groups for r in g.rollouts]
        first = "completion" not in self._source.recorded and not self._rubric.weights
        if self._rubric.learn(rollouts):
            foreign.reward_as_score(self.store, self.run_id, TOTAL)
        changes = _fixed(self._rubric)
        if first and rollouts:
            changes |= self._observed(step, rollouts)
        if any(flatten(self._config)[name] != value for name, value in changes.items()):
            self._config = _changed(self._config, changes)

    def _observed(self, step: SourceStep, rollouts: Sequence[SourceRollout]) -> dict[str, Any]:
        """Sizes that the settings do not name, as the first groups have them."""
        named = map_settings(self.source.settings).fields
        cut = [r.num_tokens for r in rollouts if r.finish_reason == "length" and r.num_tokens]
        seen = {
            "train.group_size": max(len(g.rollouts) for g in step.groups),
            "train.prompts_per_step": len(step.groups),
            "train.max_new_tokens": max(cut, default=0),
        }
        return {name: value for name, value in seen.items() if value and name not in named}

    def _settle_estimator(self, pairs: Sequence[Any]) -> None:
        """Without a word in the settings: the estimator that gives the recorded advantages."""
        if self._estimator != "assumed" or self._tries >= MAX_TRIES or not pairs:
            return
        name = find_estimator(pairs, self._config)
        self._tries += any(r.advantage for _, rollouts in pairs for r in rollouts)
        if name is not None:
            self._config = _changed(self._config, {"algorithm.advantage": name})
            self._estimator = "found"

    def _pair(self, group: SourceGroup) -> tuple[Prompt, tuple[Rollout, ...]]:
        prompt = Prompt("", group.prompt, group.answer or "", TASK, {"before": list(group.before)})
        name = prompt_id(TASK if group.prompt_id is None else group.prompt_id, prompt.conversation)
        return replace(prompt, id=name), tuple(map(self._rollout, group.rollouts))

    def _rollout(self, rollout: SourceRollout) -> Rollout:
        scores = self._rubric.scores(rollout)
        reward = finite_or_none(rollout.reward)
        if reward is None and rollout.reward is None and scores:
            reward = total(scores, self._rubric.weights)
            self._provenance.fill({"reward": "sum of scores times weights"})
        completion = Completion(
            rollout.text, rollout.finish_reason, _num_tokens(rollout), rollout.turns
        )
        return Rollout(
            completion,
            scores,
            reward,
            finite_or_none(rollout.advantage),
            completion_ids=rollout.token_ids or (),
        )

    def _completed(
        self, step: SourceStep, training: Sequence[SourceGroup], groups: tuple[Group, ...]
    ) -> StepCompleted:
        """Metrics of the whole step, parts that came before included, and the tokens of this one.

        A metric that the source recorded stays as it is.
        """
        others = self._groups_of_other_parts(step)
        numbers: dict[str, Any] = step_metrics((*groups, *others), self._config) if groups else {}
        extra: dict[str, float | None] = {}
        if groups:
            rollouts = [r for g in (*groups, *others) for r in g.rollouts]
            for name in self._rubric.weights:
                known = [s for r in rollouts if (s := r.scores.get(name)) is not None]
                extra[f"score/{name}"] = sum(known) / len(known) if known else None
        for name, value in step.metrics.items():
            if name in STEP_METRICS:
                numbers[name] = finite_or_none(value)
            else:
                extra[name] = finite_or_none(value)
        return StepCompleted(
            step.step, StepMetrics(**numbers), extra, tokens_of(training, step.pieces)
        )

    def _groups_of_other_parts(self, step: SourceStep) -> list[Group]:
        spans = self._recorder.parts(step.step)
        if not any(part != step.part and size for part, _, size in spans):
            return []
        self._commit()  # reading connections see only what is committed
        own = next(((first, size) for part, first, size in spans if part == step.part), (0, 0))
        return [
            _stored(group)
            for group in self.store.iter_groups(self.run_id, step.step, step.step)
            if not own[0] <= group.position < own[0] + own[1]
        ]

    # ---- transactions ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._in_transaction:
            self._transaction.enter_context(self._writer.transaction())
            self._in_transaction = True

    def _commit(self) -> None:
        """Say what is known of the run by now, and end the open transaction."""
        if self._in_transaction:
            self._describe()
            self._in_transaction, self._pending = False, 0
            self._transaction.close()

    def _start(self) -> None:
        if self.live and not self._is_live:
            self.store.set_status(self.run_id, RunStatus.RUNNING)
            self._is_live = True

    def _describe(self) -> None:
        recorded, recomputed, absent = self._provenance.lists
        source = replace(
            self._source,
            settings=dict(self.source.settings) or self._source.settings,
            recorded=recorded,
            recomputed=recomputed,
            absent=absent,
            estimator=self._estimator,
            disagreements=self._recorder.disagreements(),
        )
        if (source, self._config) != (self._source, self._written_config):
            foreign.describe(self.store, self.run_id, self._config, source)
            self._source, self._written_config = source, self._config


# ---- plain helpers ------------------------------------------------------------------------------


def tokens_of(
    groups: Sequence[SourceGroup], pieces: Mapping[int, str | bytes]
) -> StepTokens | None:
    """The token records of a step's groups; None without any. nan: a token of a tool."""
    records = {
        (i, j): _token_record(rollout)
        for i, group in enumerate(groups)
        for j, rollout in enumerate(group.rollouts)
        if rollout.token_ids
    }
    texts = {
        i: t if isinstance(t, bytes) else t.encode("utf-8", "replace") for i, t in pieces.items()
    }
    return StepTokens(records, texts) if records or texts else None


def _token_record(rollout: SourceRollout) -> TokenRecord:
    acts = rollout.action_mask

    def column(name: str) -> array[float] | None:
        values = getattr(rollout, name)
        if not values:
            return None
        if acts is None:
            return array("f", values)
        return array("f", [v if a else math.nan for v, a in zip(values, acts, strict=True)])

    return TokenRecord(array("i", rollout.token_ids or ()), *(column(name) for name in PER_TOKEN))


def heldout_metrics(groups: Sequence[Group], outcome: str | None) -> dict[str, float | None]:
    """Mean reward, and the share that reaches the outcome where the rubric has one."""
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    metrics: dict[str, float | None] = {}
    if rewards:
        metrics["heldout/reward"] = sum(rewards) / len(rewards)
    reached = [s >= 1 for r in rollouts if outcome and (s := r.scores.get(outcome)) is not None]
    if reached:
        metrics["heldout/accuracy"] = sum(reached) / len(reached)
    return metrics


def _num_tokens(rollout: SourceRollout) -> int | None:
    """Of the tokens that the policy wrote."""
    if rollout.num_tokens is not None or rollout.token_ids is None:
        return rollout.num_tokens
    return len(rollout.token_ids) if rollout.action_mask is None else sum(rollout.action_mask)


def _stored(group: GroupRow) -> Group:
    prompt = Prompt(group.prompt_id, group.prompt, group.answer, TASK)
    rollouts = tuple(
        Rollout(
            Completion(r.text, r.finish_reason, r.num_tokens, r.turns),
            r.scores,
            r.reward,
            r.advantage,
        )
        for r in group.rollouts
    )
    return Group(prompt, rollouts, group.reward_mean, group.reward_std, group.verdict)


def _fixed(rubric: SourceRubric) -> dict[str, Any]:
    return {"rubric.name": TASK, "rubric.criteria": rubric.criteria}


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """With these fields changed; a value that we do not allow is left out."""
    for name, value in changes.items():
        with suppress(InvalidConfig):
            config = with_changes(config, {name: value})
    return config


def _weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = settings.get("reward_weights")
    return weights if isinstance(weights, Mapping) else {}


def _check(step: SourceStep) -> None:
    """Raises InvalidConfig for what cannot be stored."""
    problems = []
    for name, value in (("step.step", step.step), ("step.part", step.part)):
        if not 0 <= value <= MAX_STEP:
            problems.append(FieldProblem(name, value, "must be a whole number from 0 up", ""))
    for i, group in enumerate(step.groups):
        at = f"step.groups.{i}"
        if not group.rollouts:
            problems.append(FieldProblem(at, (), "has no completions", "Leave the group out."))
        for j, rollout in enumerate(group.rollouts):
            problems += _check_tokens(f"{at}.rollouts.{j}", rollout)
    if problems:
        raise InvalidConfig(problems[:20])


def _check_tokens(at: str, rollout: SourceRollout) -> list[FieldProblem]:
    ids = rollout.token_ids or ()
    problems = []
    if not all(-(2**31) <= i < 2**31 for i in ids):
        problems.append(FieldProblem(f"{at}.token_ids", "…", "an id does not fit 32 bits", ""))
    for name in ("action_mask", *PER_TOKEN):
        values = getattr(rollout, name)
        if values and len(values) != len(ids):
            problem = f"has {len(values)} values for {len(ids)} tokens"
            problems.append(FieldProblem(f"{at}.{name}", "…", problem, "One value a token."))
    return problems
