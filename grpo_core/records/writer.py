"""Writes a run of another trainer into the store, so that every view works on it.

The run goes through the recorder's own events. What the source lacks is filled where it follows
from the rest, and the run's `source` says of every field whether it was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from grpo_core.config import flatten, parse
from grpo_core.records.advice import Advice
from grpo_core.records.compare import compare, evaluated, find_estimator
from grpo_core.records.convert import (
    TASK,
    changed,
    check,
    check_run,
    heldout_metrics,
    kept_text,
    num_tokens,
    reward_weights,
    rubric_fields,
    tokens_of,
)
from grpo_core.records.provenance import Provenance
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.rubric import TOTAL, SourceRubric, bounded
from grpo_core.records.settings import map_settings
from grpo_core.records.step_totals import StepTotals, metrics_of
from grpo_core.rubric import total
from grpo_core.store import GroupRow, Store, foreign
from grpo_core.store.foreign import Part, PartRecorder
from grpo_core.store.rows import Source
from grpo_core.tasks import prompt_id
from grpo_core.types import (
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
)

MAX_TRIES = 20  # steps that are asked for the estimator before it stays assumed


class RecordWriter:
    """One run of another trainer. Holds the file for the life of the `with` block.

    The source's key finds the run, or a new one is made. With `live` the run is running from the
    first record on, until `finish`; every record is a sign of life. Without, it has ended at once.
    batch: so many completions are written in one transaction; 0: each step in its own.
    """

    def __init__(self, store: Store, source: SourceRun, *, live: bool = False, batch: int = 0):
        """Raises InvalidConfig for a run that cannot be stored."""
        check_run(source)
        self.store = store
        self.source = source
        self.live = live
        self.batch = batch
        self.num_written = 0  # steps, or parts of steps, that were new or changed
        self.marks: tuple[tuple[str, int, str], ...] = ()  # of its files, see Source
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
                self.settle()
            self._transaction.__exit__(*exception)
            self._in_transaction = False

    def _open(self) -> None:
        run_id = foreign.run_of(self.store, self.source.key)
        if run_id is None:
            run_id = self._create()
        self.run_id: str = run_id
        self._recorder = PartRecorder(self.store, run_id)
        self._advice = Advice(self.store, run_id)
        known = self.store.run(run_id)
        assert known.source is not None
        self._config = self._written_config = parse(known.config)
        self._source = known.source
        self._provenance = Provenance(known.source)
        self._is_live = known.status.is_live
        # Before anything is recorded, the criteria stand for nothing.
        criteria = [c.model_dump() for c in self._config.rubric.criteria]
        self._rubric = SourceRubric(
            criteria if known.source.recorded else (), reward_weights(self.source.settings)
        )
        self._estimator = known.source.estimator
        self._named = map_settings(self.source.settings).fields  # what the source sets itself
        self._totals = StepTotals(self._other_parts)
        self._tries = 0  # steps that were asked for the estimator

    def _create(self) -> str:
        mapped = map_settings(self.source.settings, rubric_fields(SourceRubric()))
        config, num_steps = mapped.config, self.source.num_steps
        if num_steps and "train.steps" not in mapped.fields:
            config = changed(config, {"train.steps": num_steps})
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

    def describe(self, source: SourceRun) -> None:
        """The source says more of the same run: its settings, or how many steps it will have."""
        check_run(source)
        self.source = source
        self._rubric.give(reward_weights(source.settings))

    def write(self, step: SourceStep) -> bool:
        """Write a step, or a part of one. False: it was there already, and nothing changed."""
        check(step)
        # Its rewards depend on the weights too, which may come later.
        content = f"{step!r}{sorted(self._rubric.given.items())}{'cut' * step.is_cut}"
        digest = blake2b(content.encode("utf-8", "replace"), digest_size=16).hexdigest()
        self._begin()
        if self._recorder.digest(step.step, step.part) == digest:
            if not self.batch:
                self._commit()
            return False
        self._start()
        self._settle_steps(but=step.step)
        part, events = self._events(step, digest)
        self._recorder.put(part, events)
        self.num_written += 1
        self._pending += sum(len(g.rollouts) for g in step.groups)
        if self._pending >= self.batch:
            self._commit()
        return True

    def progress(self, step: int) -> None:
        """The source works on this step. A sign of life."""
        self.settle()
        self._start()
        self._recorder(PhaseStarted(Phase.UPDATING, step, self.source.num_steps or step))
        self._advice.look()
        self._recorder.heartbeat()

    @property
    def is_live(self) -> bool:
        """Whether the run is running, or waits, as far as the store says."""
        return self._is_live

    def settle(self) -> None:
        """Write everything that was given until now, with the metrics of the last steps."""
        self._settle_steps()
        self._commit()

    def heartbeat(self) -> None:
        """A sign of life."""
        self._commit()
        self._advice.look()
        self._recorder.heartbeat()

    def finish(self, status: RunStatus, error: str | None = None) -> None:
        """The run has ended so. Nothing changes if it had ended so before."""
        self.settle()
        known = self.store.run(self.run_id)
        if (known.status, known.error) != (status, error) or self.num_written:
            self.store.set_status(self.run_id, status, error)
            self._advice.last_look()
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
        self._settle_estimator(pairs, step.is_cut)
        found = compare(pairs, self._config, step.is_cut)
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
        changes = rubric_fields(self._rubric)
        if first and rollouts:
            changes |= self._observed(step, rollouts)
        known = flatten(self._config)
        if any(known[name] != value for name, value in changes.items()):
            self._config = changed(self._config, changes)

    def _observed(self, step: SourceStep, rollouts: Sequence[SourceRollout]) -> dict[str, Any]:
        """Sizes that the settings do not name, as the first groups have them."""
        cut = [r.num_tokens for r in rollouts if r.finish_reason == "length" and r.num_tokens]
        seen = {
            "train.group_size": max(len(g.rollouts) for g in step.groups),
            "train.prompts_per_step": len(step.groups),
            "train.max_new_tokens": max(cut, default=0),
        }
        return {name: value for name, value in seen.items() if value and name not in self._named}

    def _settle_estimator(self, pairs: Sequence[Any], is_cut: bool) -> None:
        """Without a word in the settings: the estimator that gives the recorded advantages."""
        if self._estimator != "assumed" or self._tries >= MAX_TRIES or not pairs:
            return
        name = find_estimator(pairs, self._config, is_cut)
        self._tries += any(r.advantage for _, rollouts in pairs for r in rollouts)
        if name is not None:
            self._config = changed(self._config, {"algorithm.advantage": name})
            self._estimator = "found"

    def _pair(self, group: SourceGroup) -> tuple[Prompt, tuple[Rollout, ...]]:
        text = kept_text(group.prompt, "a prompt")
        prompt = Prompt("", text, group.answer or "", TASK, {"before": list(group.before)})
        name = prompt_id(TASK if group.prompt_id is None else group.prompt_id, prompt.conversation)
        return replace(prompt, id=name), tuple(map(self._rollout, group.rollouts))

    def _rollout(self, rollout: SourceRollout) -> Rollout:
        scores = self._rubric.scores(rollout)
        reward = bounded(rollout.reward)
        if reward is None and rollout.reward is None and scores:
            reward = total(scores, self._rubric.weights)
            self._provenance.fill({"reward": "sum of scores times weights"})
        text = kept_text(rollout.text, "a completion")
        completion = Completion(text, rollout.finish_reason, num_tokens(rollout), rollout.turns)
        return Rollout(
            completion,
            scores,
            reward,
            bounded(rollout.advantage),
            completion_ids=rollout.token_ids or (),
        )

    def _completed(
        self, step: SourceStep, training: Sequence[SourceGroup], groups: Sequence[Group]
    ) -> StepCompleted:
        """Metrics of the step, parts that came before included, and the tokens of this part."""
        own = {name: bounded(value) for name, value in step.metrics.items()}
        numbers, extra = {}, {}
        self._totals.add(step.step, step.part, groups, own)
        if groups and self._totals.is_due(step.step):
            numbers, extra = self._totals.numbers(step.step, self._config)
        if "algorithm.kl_coef" in self._named:
            numbers["kl_coef"] = self._config.algorithm.kl_coef
        metrics, others = metrics_of(numbers, extra, own)
        return StepCompleted(step.step, metrics, others, tokens_of(training, step.pieces))

    def _other_parts(self, step: int, but: int) -> dict[int, list[GroupRow]]:
        """The groups of the parts of a step that were written before this writer was opened."""
        spans = [span for span in self._recorder.parts(step) if span[0] != but and span[2]]
        if not spans:
            return {}
        self._commit()  # reading connections see only what is committed
        self._begin()
        ids = self.store.group_ids(self.run_id, step)
        return {
            part: [self.store.group(i) for i in ids[first : first + size]]
            for part, first, size in spans
        }

    def _settle_steps(self, but: int | None = None) -> None:
        """Write the metrics of steps whose groups have all come, so far as is known."""
        for step in self._totals.stale(but):
            metrics, extra = metrics_of(*self._totals.numbers(step, self._config), {})
            self._recorder(StepCompleted(step, metrics, extra))

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
            if self.live:
                self._advice.look(is_news=True)

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
            marks=self.marks or self._source.marks,
        )
        if (source, self._config) != (self._source, self._written_config):
            foreign.describe(self.store, self.run_id, self._config, source)
            self._source, self._written_config = source, self._config
