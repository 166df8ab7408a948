"""Requests before and after a run: preview prompts, check a model, try a rubric, play, export."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpo_core.config import RunConfig
from grpo_core.config.devices import AUTO, CPU, candidates, free_devices
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import StudioError
from grpo_core.exporting.play_request import PlayRequest, PlayResult
from grpo_core.exporting.trained_model import export_model
from grpo_core.models import Reader, load_reader, pick_device
from grpo_core.models.context_fit import too_long_rows
from grpo_core.models.device import device_names
from grpo_core.models.model_cache import ModelCache
from grpo_core.models.policy import text_of
from grpo_core.preflight.estimate import Estimate, from_steps, from_store, same_work
from grpo_core.preflight.exchange import exchange_findings
from grpo_core.preflight.model_report import ModelReport, report
from grpo_core.preflight.playground import Playground
from grpo_core.preflight.preflight import Finding, findings, first_step, refusal
from grpo_core.rollout import SamplingParams
from grpo_core.rubric import Rubric, RunningStd, build_rubric, resolve_rubric, total
from grpo_core.rubric.check import Notes
from grpo_core.rubric.predict import GROUP_SIZES, tied_share
from grpo_core.rubric.probes import Probe, probe
from grpo_core.rubric.reward_model import RewardModelParams, reward_model
from grpo_core.runs.device_queue import placed
from grpo_core.runs.ray_cluster import cluster_of
from grpo_core.runs.subprocess_trainer import train_later
from grpo_core.runs.zerogpu import Train, measured_before, outlook
from grpo_core.store import Store, reward_models
from grpo_core.tasks import Task, environment_of, heldout_prompts, load_task, train_prompts
from grpo_core.time_limit import SCORING_SECONDS, time_limit
from grpo_core.training.beside import as_read, sampled_beside
from grpo_core.training.scoring import Progress, compare_groups, score_groups
from grpo_core.types import Completion, Group, Prompt, Rollout

GREEDY = 0.0
MAX_KEPT = 16  # reports, and trials
SAMPLE_TOKENS = 64  # of the answer that "Check model" samples
SAMPLE_TOKENS_OF_TURNS = 256  # where it calls tools


@dataclass(frozen=True, slots=True)
class PromptAsRead:
    """A prompt as the model reads it: `text` is its decoded tokens, special ones included."""

    prompt_id: str
    text: str
    num_tokens: int
    answer: str
    heldout: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """The first prompts of a task, and the counts of a file or dataset (empty otherwise)."""

    prompts: tuple[PromptAsRead, ...]
    chat_template: bool
    context: int | None
    counts: dict[str, Any]
    columns: tuple[str, ...] = ()  # of a file or dataset


def prompt_counts(task: Task, reader: Reader, config: RunConfig) -> dict[str, Any]:
    """Counts and columns of a file or dataset; empty for a built-in task."""
    if task.table is None:
        return {}
    table = task.table
    return {
        **asdict(table.counts),
        "train": len(table.train),
        "heldout": len(table.heldout),
        "prompt_column": table.columns.prompt,
        "answer_column": table.columns.answer,
        "too_long": 0 if reader.context is None else _num_too_long(task, reader, config),
    }


def _num_too_long(task: Task, reader: Reader, config: RunConfig) -> int:
    with closing(Worlds(reader, lambda: None)) as worlds:
        return len(too_long_rows(task, worlds.encoder(task, config.rollout), config))


@dataclass(frozen=True, slots=True)
class Trial:
    """Groups that were scored and compared without training."""

    groups: tuple[Group, ...]
    seconds: dict[str, float]  # criterion -> time to score
    notes: dict[str, dict[str, int]]  # criterion -> why it could not score -> how often
    tied: dict[int, float | None]  # group size -> expected share of tied groups
    key: str = ""  # finds these groups again in PreflightService.reweigh


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How a server differs from a local program.

    in_use: names of the devices that runs use. place: the configuration as a run would be trained
    now, None if it would wait; without it, on this machine's devices. check: raises for a
    configuration that is not allowed. train: the trainer that takes preflight's step.
    lease_seconds: length of a ZeroGPU lease; None elsewhere. may_push: whether users may push
    models with the server's own Hub token.
    """

    in_use: Callable[[], Collection[str]] = tuple
    place: Callable[[RunConfig], RunConfig | None] | None = None
    check: Callable[[RunConfig], None] = lambda config: None
    train: Train = train_later
    lease_seconds: int | None = None
    may_push: bool = True


class PreflightService:
    """Answers requests about models, prompts and runs.

    Keeps the last models, the last preflight reports and the last trials. Every method raises
    StudioError; InvalidConfig where one field of the configuration is the cause.
    """

    def __init__(self, store: Store | None = None, options: ServiceOptions | None = None) -> None:
        """store: the runs; only requests about runs need it."""
        self._options = options or ServiceOptions()
        self._optional_store = store
        self._models = ModelCache(self._device)
        if store is not None:
            self._playground = Playground(store, self._models, self._device)
        self._trials: OrderedDict[str, Trial] = OrderedDict()
        self._reports: OrderedDict[str, list[Finding]] = OrderedDict()  # settings -> report
        self._measured: OrderedDict[str, tuple[RunConfig, Estimate]] = OrderedDict()
        self.may_push = self._options.may_push
        self.lease_seconds = self._options.lease_seconds

    def _device(self, wanted: str) -> torch.device:
        """Where questions are answered: not on a GPU on which a run goes on.

        A recorded run may name a device of another machine; then any free one does.
        """
        there = device_names()
        names = candidates(wanted if wanted in there else AUTO, there)
        [device] = free_devices(names, self._options.in_use()) or (CPU,)
        return torch.device(device)

    def _placed(self, config: RunConfig) -> RunConfig | None:
        """As ServiceOptions.place. Raises InvalidConfig."""
        if self._options.place is not None:
            return self._options.place(config)
        if cluster_of(os.environ):
            return config  # Ray chooses
        workers = config.train.workers
        names = candidates(config.model.device, device_names(), workers)
        free = free_devices(names, self._options.in_use(), workers)
        if free is None or self.lease_seconds is not None:
            return config if free else None  # the process of a lease finds its GPU by itself
        return placed(config, ",".join(free))

    def release_models(self) -> None:
        """Leave the GPU to a run that starts. An answer that takes over a minute keeps it."""
        if pick_device().type != CPU:
            with contextlib.suppress(StudioError):
                self._models.clear()

    def outlook(self, config: RunConfig) -> str:
        """On ZeroGPU: how much of this run fits into one lease, by earlier runs; "" elsewhere."""
        if self.lease_seconds is None:
            return ""
        measured = measured_before(self._store.runs(), self._store.steps, config)
        return outlook(self.lease_seconds, config, measured)

    def estimate(self, config: RunConfig) -> Estimate | None:
        """Time and memory of a step, measured by Preflight or in a run of the same size."""
        for measured, estimate in reversed(self._measured.values()):
            if same_work(measured, config):
                return estimate
        return from_store(self._store, config) if self._optional_store else None

    def preview(self, config: RunConfig, count: int = 5) -> Preview:
        """The first `count` training prompts and one held-out prompt, as the model reads them."""
        self._options.check(config)
        task, reader = load_task(config.task), load_reader(config.model)
        prompts = [(p, False) for p in train_prompts(task, config.train.seed, 1, count)]
        size = config.task.heldout_size
        heldout = heldout_prompts(task, size if size is None else min(1, size))
        prompts += [(p, True) for p in heldout[:1]]
        rows = []
        read = as_read(config, reader, [p for p, _ in prompts])
        for (prompt, ids), (_, heldout) in zip(read, prompts, strict=True):
            text = text_of(reader.tokenizer, ids)
            rows.append(PromptAsRead(prompt.id, text, len(ids), prompt.answer, heldout))
        return Preview(
            tuple(rows),
            bool(reader.tokenizer.chat_template),
            reader.context,
            prompt_counts(task, reader, config),
            _column_names(prompts[0][0]) if task.table is not None and prompts else (),
        )

    def check_model(self, config: RunConfig, sample: bool = True) -> tuple[ModelReport, str]:
        """The model's report for this run, and a greedy answer to the task's first prompt.

        The answer is "" without `sample`, or if the report has problems.
        """
        self._options.check(config)
        model_report = report(self._placed(config) or config)
        if not sample or model_report.problems:
            return model_report, ""
        task = load_task(config.task)
        [prompt] = train_prompts(task, config.train.seed, 1, 1)
        most = SAMPLE_TOKENS_OF_TURNS if environment_of(task, prompt) else SAMPLE_TOKENS
        train = config.train.model_copy(
            update={"max_new_tokens": min(most, config.train.max_new_tokens)}
        )
        config = config.model_copy(update={"train": train})
        params = SamplingParams(1, train.max_new_tokens, GREEDY)
        with self._models.use(config.model, train.seed) as policy:
            _, [answer] = sampled_beside(config, policy, [prompt], params)
        return model_report, answer.completion.text

    def preflight(self, config: RunConfig) -> list[Finding]:
        """The report before step 1; takes a real first step on a copy of the model."""
        self._options.check(config)
        key = _settings(config)
        now = self._placed(config)
        if now is None:
            raise StudioError(
                "A run is using this device, and Preflight needs the device for one step. "
                "Stop the run, wait, or name another device."
            )
        config = now
        self._models.clear()
        task = load_task(config.task)
        heldout_prompts(task, config.task.heldout_size)  # raises if there are too few
        model_report, reader = report(config), load_reader(config.model)
        counts = prompt_counts(task, reader, config)
        if model_report.problems:
            result = [Finding("red", "Model", p, final=True) for p in model_report.problems]
        else:
            first = first_step(config, self._options.train)
            turns = exchange_findings(config, reader, first.groups)
            result = findings(config, model_report, counts, first, turns)
            if first.metrics and (measured := from_steps([asdict(first.metrics)], "one step")):
                _keep(self._measured, key, (config, measured))
        _keep(self._reports, key, result)
        return result

    def refusal(self, config: RunConfig, anyway: bool) -> str:
        """Why a run with these settings may not start, by their last preflight report.

        "" if it may, or if there is no report for exactly these settings.
        """
        return refusal(self._reports.get(_settings(config), ()), anyway)

    def try_rubric(self, config: RunConfig, num_prompts: int = 3) -> Trial:
        """Sample groups of the run's size from the untrained model, score and compare them."""
        self._options.check(config)
        task, rubric, t = load_task(config.task), build_rubric(config.rubric), config.train
        prompts = train_prompts(task, t.seed, 1, num_prompts)
        params = SamplingParams(t.group_size, t.max_new_tokens, t.temperature)
        with self._models.use(config.model, t.seed) as policy:
            prompts, rollouts = sampled_beside(config, policy, prompts, params)
        return self._try(prompts, rollouts, rubric, config)

    def score_texts(self, config: RunConfig, texts: Sequence[str]) -> Trial:
        """Score and compare typed completions as one group of the task's first prompt."""
        self._options.check(config)
        task, rubric = load_task(config.task), build_rubric(config.rubric)
        reader = load_reader(config.model)
        rollouts = [Rollout(Completion(text, "stop", _num_tokens(reader, text))) for text in texts]
        prompts = train_prompts(task, config.train.seed, 1, 1)
        return self._try(prompts, rollouts, rubric, config)

    def reward_scorer(
        self,
    ) -> Callable[[Sequence[tuple[Prompt, str]]], list[float | None]] | None:
        """Logits of (prompt, completion) by the newest reward model; None if there is none."""
        row = reward_models.newest_usable(self._store)
        if row is None:
            return None
        params = RewardModelParams.model_validate(
            {"model": str(row.folder.resolve()), "sigmoid": False}
        )

        def score(texts: Sequence[tuple[Prompt, str]]) -> list[float | None]:
            completions = [Completion(text, "stop", 1) for _, text in texts]
            with time_limit(SCORING_SECONDS):
                return reward_model(completions, [prompt for prompt, _ in texts], params, Notes())

        return score

    def probe(self, config: RunConfig) -> list[Probe]:
        """The rewards of texts that deserve none, on the task's first prompt."""
        self._options.check(config)
        task, reader = load_task(config.task), load_reader(config.model)
        [prompt] = train_prompts(task, config.train.seed, 1, 1)
        with time_limit(SCORING_SECONDS):
            return probe(
                build_rubric(config.rubric), prompt, lambda text: _num_tokens(reader, text)
            )

    def reweigh(self, config: RunConfig, key: str) -> Trial | None:
        """An earlier trial with other weights; samples and scores nothing again.

        None if that trial is no longer kept, or the criteria changed.
        """
        trial, rubric = self._trials.get(key), build_rubric(config.rubric)
        if trial is None or list(trial.seconds) != list(rubric.weights):
            return None
        pairs = []
        for group in trial.groups:
            rollouts = [replace(r, reward=total(r.scores, rubric.weights)) for r in group.rollouts]
            pairs.append((group.prompt, tuple(rollouts)))
        return replace(trial, **_compare(pairs, rubric, config))

    def _try(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        rubric: Rubric,
        config: RunConfig,
    ) -> Trial:
        """Score rollouts, of each prompt equally many and in its order, and keep the trial."""
        is_sampled = all(r.completion_ids for r in rollouts)
        progress = Progress(0, config.train.steps) if is_sampled else None
        with time_limit(SCORING_SECONDS):
            pairs, scored = score_groups(prompts, rollouts, rubric, progress=progress)
        trial = Trial(
            **_compare(pairs, rubric, config),
            seconds=scored.seconds,
            notes={name: dict(reasons) for name, reasons in scored.notes.items()},
            key=secrets.token_hex(8),
        )
        _keep(self._trials, trial.key, trial)
        return trial

    # ---- after a run ----------------------------------------------------------------------------

    def run_prompt(self, run_id: str, number: int) -> Prompt:
        """A held-out prompt of the run's task."""
        return self._playground.prompt(run_id, number)

    def reason_to_wait(self, run_id: str) -> str:
        """Why this run's models answer only when somebody asks; "" if they may at once."""
        return self._playground.reason_to_wait(run_id)

    def play(self, run_id: str, request: PlayRequest, question: str = "") -> PlayResult:
        """Answers to one prompt by several states, scored by the run's rubric.

        Also works while the run is paused. question: for look_at_play and stop_play.
        """
        return self._playground.play(run_id, request, question)

    def look_at_play(self, question: str) -> tuple[int, PlayResult] | None:
        """(revision, what is written so far) of a question that is being answered."""
        return self._playground.look(question)

    def stop_play(self, question: str) -> None:
        """End the answers of a question; its play() raises PlayStopped."""
        self._playground.stop(question)

    def export_model(
        self, run_id: str, folder: Path, step: int | None = None, adapter_only: bool = False
    ) -> Path:
        return export_model(self._store, run_id, folder, step, adapter_only)

    def push_model(self, run_id: str, repository: str, adapter_only: bool = False) -> str:
        """Push the exported model to the Hub with the server's token. Returns its address."""
        if not self.may_push:
            raise StudioError(
                "This server does not push to the Hub: the token would be its operator's. "
                "Export the model and upload it yourself."
            )
        from grpo_core.exporting.hub import check_repository, push_folder

        check_repository(repository)
        with tempfile.TemporaryDirectory(prefix="grpo-push-") as folder:
            model = self.export_model(run_id, Path(folder) / "model", adapter_only=adapter_only)
            return push_folder(model, repository)

    @property
    def _store(self) -> Store:
        assert self._optional_store is not None, "this request needs a store"
        return self._optional_store


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    """Add a value; drop the oldest beyond MAX_KEPT."""
    kept[key] = value
    while len(kept) > MAX_KEPT:
        kept.popitem(last=False)


def _column_names(prompt: Prompt) -> tuple[str, ...]:
    """The columns of the row that a prompt of a file or dataset was read from."""
    named = [prompt.meta.get("prompt_column"), prompt.meta.get("answer_column")]
    others = prompt.meta.get("columns")
    names = [*named, *(others if isinstance(others, dict) else ())]
    return tuple(dict.fromkeys(str(name) for name in names if name))


def _num_tokens(reader: Reader, text: str) -> int:
    return len(reader.tokenizer(text)["input_ids"])


def _settings(config: RunConfig) -> str:
    """A key that is equal for settings of the same run; a named rubric equals its criteria."""
    return config.model_copy(update={"rubric": resolve_rubric(config.rubric)}).model_dump_json()


def _compare(
    pairs: Sequence[tuple[Prompt, tuple[Rollout, ...]]], rubric: Rubric, config: RunConfig
) -> dict[str, Any]:
    """A trial's `groups`, with advantages, and `tied`."""
    algorithm = config.algorithm
    if algorithm.advantage == "value":  # there is no critic before training: compare siblings
        algorithm = algorithm.model_copy(update={"advantage": "group_std"})
    config = config.model_copy(update={"algorithm": algorithm})
    groups, *_ = compare_groups(pairs, rubric, config, RunningStd())
    rewards = [[r.reward for r in g.rollouts] for g in groups]
    return {"groups": groups, "tied": {g: tied_share(rewards, g) for g in GROUP_SIZES}}
