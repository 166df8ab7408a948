"""What a person asks before and after a run, each a question with a frozen answer: how prompts will be read, whether a model fits, what a rubric pays."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpo_core.config import RunConfig, parse
from grpo_core.errors import StudioError
from grpo_core.exporting.trained_model import Played, export_model, play, some_prompt
from grpo_core.models import Reader, load_reader
from grpo_core.models.context_fit import too_long_rows
from grpo_core.models.model_cache import ModelCache
from grpo_core.preflight.model_report import ModelReport, report
from grpo_core.preflight.preflight import Finding, findings, first_step, refusal
from grpo_core.rollout import sample_groups
from grpo_core.rubric import Rubric, RunningStd, build_rubric, resolve_rubric, total
from grpo_core.rubric.predict import GROUP_SIZES, tied_share
from grpo_core.rubric.probes import Probe, probe
from grpo_core.runs.zerogpu import Train, measured_before, outlook
from grpo_core.store import Store
from grpo_core.tasks import Task, heldout_prompts, load_task, prompt_id, train_prompts
from grpo_core.training.scoring import compare_groups
from grpo_core.training.trainer import train
from grpo_core.types import Completion, Group, Prompt, Rollout

GREEDY = 0.0
KEPT_REPORTS = 16


@dataclass(frozen=True, slots=True)
class PromptAsRead:
    """A prompt exactly as the model reads it: the decoded tokens, special ones included."""

    prompt_id: str
    text: str
    num_tokens: int
    answer: str
    heldout: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """Some prompts, and what was counted while reading all of them; counts is empty for a task that makes its own."""

    prompts: tuple[PromptAsRead, ...]
    chat_template: bool
    context: int | None
    counts: dict[str, Any]


def counted(task: Task, reader: Reader, config: RunConfig) -> dict[str, Any]:
    """What was found while reading a file or dataset; nothing for a task that makes its own prompts."""
    if task.table is None:
        return {}
    table = task.table
    return {
        **asdict(table.counts),
        "train": len(table.train),
        "heldout": len(table.heldout),
        "prompt_column": table.columns.prompt,
        "answer_column": table.columns.answer,
        "too_long": 0 if reader.context is None else len(too_long_rows(task, reader, config)),
    }


@dataclass(frozen=True, slots=True)
class Tried:
    """Groups that were sampled and scored without training: what would be learned from them, and what scoring took."""

    groups: tuple[Group, ...]
    seconds: dict[str, float]  # by criterion
    notes: dict[str, dict[str, int]]
    tied: dict[int, float | None]  # group size -> expected share of tied groups
    key: str = ""  # with which `reweigh` finds these very groups


def _settings(config: RunConfig) -> str:
    """One text for settings that make the same run, however its rubric was named."""
    return config.model_copy(update={"rubric": resolve_rubric(config.rubric)}).model_dump_json()


def _judged(
    pairs: Sequence[tuple[Prompt, tuple[Rollout, ...]]], rubric: Rubric, config: RunConfig
) -> dict[str, Any]:
    """Groups with advantages, and how many of them would tie, for Tried. A critic's advantages need a critic: siblings are compared instead."""
    by_siblings = (
        config.model_copy(
            update={"algorithm": config.algorithm.model_copy(update={"advantage": "group_std"})}
        )
        if config.algorithm.advantage == "value"
        else config
    )
    groups, _, _ = compare_groups(pairs, rubric, by_siblings, RunningStd())
    rewards = [[r.reward for r in g.rollouts] for g in groups]
    return {"groups": groups, "tied": {g: tied_share(rewards, g) for g in GROUP_SIZES}}


class PreflightService:
    """Answers questions about models and prompts. Holds little between them: the last models, Preflight's last reports, the last groups that were tried."""

    def __init__(
        self,
        store: Store | None = None,
        busy: Callable[[], bool] = lambda: False,
        check: Callable[[RunConfig], None] = lambda config: None,
        train: Train = train,
        lease_seconds: int | None = None,
        may_push: bool = True,
    ) -> None:
        """store: where runs are, for questions about them. busy: whether a run has the device. check: raises for what this server does not allow.

        train: what takes Preflight's step. lease_seconds: for how long ZeroGPU lends its GPU to a run, None elsewhere.
        may_push: whether whoever asks may use the server's token for the Hub.
        """
        self.may_push = may_push
        self._tried: dict[str, Tried] = {}
        self._reports: dict[str, list[Finding]] = {}  # settings -> Preflight's report
        self._models, self._store, self._busy, self._check, self._train, self.lease_seconds = (
            ModelCache(),
            store,
            busy,
            check,
            train,
            lease_seconds,
        )

    def outlook(self, config: RunConfig) -> str:
        """On ZeroGPU: how much of this run fits into one lease, from what was measured there; "" elsewhere."""
        return (
            ""
            if self.lease_seconds is None
            else outlook(
                self.lease_seconds,
                config,
                measured_before(self._runs.runs(), self._runs.steps, config),
            )
        )

    def preview(self, config: RunConfig, count: int = 5) -> Preview:
        """The first prompts of training and one held-out one, as the model will read them. Raises InvalidConfig."""
        self._check(config)
        task, reader = load_task(config.task), load_reader(config.model)
        shown = [(p, False) for p in train_prompts(task, config.train.seed, 1, count)] + [
            (p, True) for p in heldout_prompts(task, min(1, config.task.heldout_size))
        ]
        prompts = []
        for prompt, heldout in shown:
            ids = reader.encode(prompt, task.instruction)
            prompts.append(
                PromptAsRead(
                    prompt.id, reader.tokenizer.decode(ids), len(ids), prompt.answer, heldout
                )
            )
        return Preview(
            tuple(prompts),
            bool(reader.tokenizer.chat_template),
            reader.context,
            counted(task, reader, config),
        )

    def check_model(self, config: RunConfig, sample: bool = True) -> tuple[ModelReport, str]:
        """What can be said of the model for this run, and one greedily sampled answer to the task's first prompt ("" if it was not asked for or does not fit)."""
        self._check(config)
        found = report(config)
        if not sample or found.problems:
            return found, ""
        task = load_task(config.task)
        [prompt] = train_prompts(task, config.train.seed, 1, 1)
        with self._models.use(config.model, config.train.seed) as policy:
            [answer] = sample_groups(
                policy,
                [policy.encode(prompt, task.instruction)],
                1,
                min(64, config.train.max_new_tokens),
                GREEDY,
                torch.Generator(policy.device).manual_seed(0),
            )
            return found, policy.decode(answer.token_ids)

    def preflight(self, config: RunConfig) -> list[Finding]:
        """One report before step 1, a real first step among it. Raises StudioError for what cannot even begin."""
        self._check(config)
        if self._busy():
            raise StudioError(
                "A run is going on this device. Preflight takes a step of its own: pause or stop the run, or wait."
            )
        self._models.forget()
        heldout_prompts(load_task(config.task), config.task.heldout_size)
        model, reader = report(config), load_reader(config.model)
        counts = counted(load_task(config.task), reader, config)
        if model.problems:
            found = [Finding("red", "Model", p, final=True) for p in model.problems]
        else:
            found = findings(config, model, counts, first_step(config, self._train))
        self._reports[_settings(config)] = found
        while len(self._reports) > KEPT_REPORTS:
            self._reports.pop(next(iter(self._reports)))
        return found

    def refusal(self, config: RunConfig, anyway: bool) -> str:
        """Why these very settings, if Preflight has seen them here, may not start or ask first; "" if they may, or were not looked at."""
        return refusal(self._reports.get(_settings(config), ()), anyway)

    def try_rubric(self, config: RunConfig, num_prompts: int = 3) -> Tried:
        """A few groups of the run's own size, sampled from the model as it is, scored and compared; nothing is trained."""
        self._check(config)
        task, rubric, t = load_task(config.task), build_rubric(config.rubric), config.train
        prompts = train_prompts(task, t.seed, 1, num_prompts)
        with self._models.use(config.model, t.seed) as policy:
            sampled = sample_groups(
                policy,
                [policy.encode(p, task.instruction) for p in prompts],
                t.group_size,
                t.max_new_tokens,
                t.temperature,
                torch.Generator(policy.device).manual_seed(t.seed),
            )
            return self._compared(
                prompts,
                [
                    Completion(policy.decode(s.token_ids), s.finish_reason, len(s.token_ids))
                    for s in sampled
                ],
                rubric,
                config,
            )

    def score_texts(self, config: RunConfig, texts: Sequence[str]) -> Tried:
        """Pasted completions as one group of the task's first prompt."""
        self._check(config)
        task, rubric, reader = (
            load_task(config.task),
            build_rubric(config.rubric),
            load_reader(config.model),
        )
        completions = [
            Completion(text, "stop", len(reader.tokenizer(text)["input_ids"])) for text in texts
        ]
        return self._compared(
            train_prompts(task, config.train.seed, 1, 1), completions, rubric, config
        )

    def probe(self, config: RunConfig) -> list[Probe]:
        """What texts that deserve nothing would earn from this rubric, on the task's first prompt."""
        self._check(config)
        task, reader = load_task(config.task), load_reader(config.model)
        [prompt] = train_prompts(task, config.train.seed, 1, 1)
        return probe(
            build_rubric(config.rubric),
            prompt,
            lambda text: len(reader.tokenizer(text)["input_ids"]),
        )

    def reweigh(self, config: RunConfig, key: str) -> Tried | None:
        """The groups that were tried last under that key, with other weights: nothing is sampled or scored again. None if they are gone, or criteria changed."""
        kept, rubric = self._tried.get(key), build_rubric(config.rubric)
        if kept is None or list(kept.seconds) != list(rubric.weights):
            return None
        pairs = [
            (
                g.prompt,
                tuple(replace(r, reward=total(r.scores, rubric.weights)) for r in g.rollouts),
            )
            for g in kept.groups
        ]
        return replace(kept, **_judged(pairs, rubric, config))

    def _compared(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        rubric: Rubric,
        config: RunConfig,
    ) -> Tried:
        size = len(completions) // len(prompts)
        scored = rubric.score_all(completions, [p for p in prompts for _ in range(size)])
        rollouts = [
            Rollout(*one, 0.0)
            for one in zip(completions, scored.scores, scored.rewards, strict=True)
        ]
        pairs = [(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(prompts)]
        tried = Tried(
            **_judged(pairs, rubric, config),
            seconds=scored.seconds,
            notes={name: dict(why) for name, why in scored.notes.items()},
            key=secrets.token_hex(8),
        )
        self._tried[tried.key] = tried
        while len(self._tried) > KEPT_REPORTS:
            self._tried.pop(next(iter(self._tried)))
        return tried

    # ---- after a run ---------------------------------------------------------------------------------------------------

    def run_prompt(self, run_id: str, number: int) -> Prompt:
        """A held-out prompt of the run's task."""
        return some_prompt(parse(self._runs.run(run_id).config), number)

    def play(
        self,
        run_id: str,
        text: str,
        answer: str,
        steps: Sequence[int],
        count: int,
        temperature: float,
    ) -> Played:
        """Before and after, or any two saved steps (0 = before): answers to one prompt, scored by the run's rubric. Works while a run is paused."""
        config = parse(self._runs.run(run_id).config)
        prompt = Prompt(prompt_id(config.task.name, text), text, answer, config.task.name)
        return play(self._runs, self._models, run_id, prompt, steps, count, temperature)

    def export_model(
        self, run_id: str, folder: Path, step: int | None = None, adapter_only: bool = False
    ) -> Path:
        return export_model(self._runs, run_id, folder, step, adapter_only)

    def push_model(self, run_id: str, repository: str, adapter_only: bool = False) -> str:
        """The exported model as a commit on the Hub, with the server's own token; returns its address. Raises StudioError."""
        if not self.may_push:
            raise StudioError(
                "This server does not push to the Hub: the token would be its operator's. Export the model and upload it yourself."
            )
        from grpo_core.exporting.hub import check_repository, push_folder

        check_repository(repository)
        with tempfile.TemporaryDirectory(prefix="grpo-push-") as folder:
            return push_folder(
                self.export_model(run_id, Path(folder) / "model", adapter_only=adapter_only),
                repository,
            )

    @property
    def _runs(self) -> Store:
        assert self._store is not None, "this desk was given no store"
        return self._store
