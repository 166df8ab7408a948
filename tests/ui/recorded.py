"""Small recorded runs, hostile texts, and stand-ins for RunManager and PreflightService.

With them pages are tested without torch and without training.
"""

from __future__ import annotations

from grpo_core.config import RunConfig, nest, parse
from grpo_core.errors import StudioError
from grpo_core.rubric import resolve_rubric
from grpo_core.store import GroupRow, Recorder, RolloutRow, Store
from grpo_core.types import (
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    ModelLoaded,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

# What a model or a file may write. The page must show each as exactly this text.
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    r"$\frac{a}{b}$",
    "![x](http://203.0.113.7/beacon)",
    "${alert(1)}",
    "{{x}}",
    "{{constructor.constructor('alert(3)')()}}",
    '" onmouseover="alert(4)',
    "</pre><h1>",
    "&lt;b&gt;",
    "`${1}`",
]


class FakeRuns:
    """What the page needs of RunManager. `refuse` is raised by start()."""

    device = "CPU · 2 threads"
    devices = ("auto", "cpu")
    device_details, has_many_devices = "the device that trains", False

    def __init__(self, store: Store):
        self.store, self.refuse = store, None
        self.started, self.stopped, self.commands = [], [], []

    def __getattr__(self, name):
        """pause, step, resume, …: recorded, or refused with `refuse`."""

        def command(*arguments):
            if self.refuse:
                raise self.refuse
            self.commands.append((name, *arguments))

        return command

    def start(self, config: RunConfig, name: str | None = None, conditions: str = "") -> str:
        if self.refuse:
            raise self.refuse
        self.started.append((config, name))
        return self.store.create_run(config, name or "a run")

    def refusal(self, configs) -> str:
        return str(self.refuse or "")

    def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)


class FakeRewardTrainer:
    """Trains no reward model."""

    def start(self, values, name=""):
        raise StudioError("this service trains no reward model")

    def stop(self):
        pass


class FakeImports:
    """Imports nothing."""

    def preview(self, wanted):
        raise StudioError("this service imports nothing")

    run = columns = follow = preview

    def followed(self):
        return []

    def unfollow(self, place):
        pass


class FakeService:
    """What the page needs of PreflightService.

    Every question returns `answer`, or raises it if it is an exception.
    """

    lease_seconds: int | None = None
    may_push = True
    refuses = waits = ""
    reward_models = FakeRewardTrainer()
    imports = FakeImports()

    def refusal(self, config, anyway):
        return "" if anyway else self.refuses

    def estimate(self, config):
        return None

    def reason_to_wait(self, run_id):
        return self.waits

    def __init__(self, answer=None):
        self.answer, self.asked = answer or StudioError("this service knows nothing"), []

    def __getattr__(self, question):
        def ask(*arguments, **options):
            self.asked.append((question, arguments, options))
            if isinstance(self.answer, Exception):
                if question in ("look_at_play", "stop_play"):
                    return None  # nothing is being answered
                raise self.answer
            return self.answer

        return ask


def rollout(
    position: int, reward: float | None, advantage: float, text: str = "<answer>1</answer>", **more
) -> RolloutRow:
    values = {
        "id": position + 1,
        "group_id": 1,
        "finish_reason": "stop",
        "num_tokens": 5,
        "scores": {"accuracy": reward},
        "edited": False,
    }
    return RolloutRow(
        position=position, text=text, reward=reward, advantage=advantage, **{**values, **more}
    )


def group(rollouts, mean=0.5, std=0.5, verdict="healthy", **more) -> GroupRow:
    values = {
        "id": 1,
        "run_id": "r",
        "step": 37,
        "position": 1,
        "prompt_id": "p",
        "prompt": "Q: 1+1=?",
        "answer": "2",
    }
    return GroupRow(
        reward_mean=mean,
        reward_std=std,
        verdict=verdict,
        rollouts=tuple(rollouts),
        **{**values, **more},
    )


CONFIG = {
    "rubric": {
        "criteria": [
            {"name": "accuracy", "weight": 1.0, "outcome": True},
            {"name": "format", "weight": 0.2, "outcome": False},
        ]
    },
    "algorithm": {"advantage": "group_std", "preset": "GRPO"},
}


def record_run(
    store: Store,
    name: str = "sums, GRPO",
    steps: int = 3,
    status: RunStatus = RunStatus.FINISHED,
    **settings,
) -> str:
    """A run of `steps` steps with two groups each.

    Group 1 is healthy: one of two completions is right. Group 2 is tied.
    """
    config = parse(
        nest({"train.steps": steps, "train.group_size": 2, "train.prompts_per_step": 2, **settings})
    )
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(config, name)
    with Recorder(store, run_id) as record:
        record(ModelLoaded({"device": "cpu"}))
        record(
            Evaluated(
                0,
                {
                    "heldout/accuracy": 0.4,
                    "heldout/accuracy_low": 0.3,
                    "heldout/accuracy_high": 0.5,
                },
            )
        )
        for step in range(1, steps + 1):
            record_step(record, step)
    store.set_status(run_id, status)
    return run_id


def record_step(record: Recorder, step: int) -> None:
    right, wrong = (
        Completion(f"<answer>{step}</answer>", "stop", 5),
        Completion("no idea", "length", 8),
    )
    healthy = (
        Rollout(right, {"accuracy": 1.0}, 1.0, 0.7071),
        Rollout(wrong, {"accuracy": 0.0}, 0.0, -0.7071),
    )
    tied = (
        Rollout(wrong, {"accuracy": 0.0}, 0.0, 0.0),
        Rollout(wrong, {"accuracy": 0.0}, 0.0, 0.0),
    )
    record(
        GroupsScored(
            step,
            (
                Group(
                    Prompt(f"a{step}", f"Q: {step}+0=?", str(step), "sums"),
                    healthy,
                    0.5,
                    0.7071,
                    "healthy",
                ),
                Group(
                    Prompt(f"b{step}", f"Q: {step}+9=?", str(step + 9), "sums"),
                    tied,
                    0.0,
                    0.0,
                    "all_wrong",
                ),
            ),
        )
    )
    record(
        StepCompleted(
            step,
            StepMetrics(
                reward_mean=step / 10,
                reward_std=0.1,
                loss=-0.001,
                kl=0.01 * step,
                kl_coef=0.02,
                entropy=0.5,
                completion_tokens_mean=6.5,
                tokens=26,
                step_seconds=2.0,
            ),
            {"score/accuracy": 0.25},
        )
    )
