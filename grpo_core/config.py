"""RunConfig: everything that decides a run. One dotted name per field, the same in form, `--set`, JSON and help."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError


def knob(default: Any, title: str, help: str, *, unit: str = "", way_out: str = "", **bounds: Any) -> Any:
    """A field with what the form, `--help` and error messages need to know about it."""
    return Field(default, title=title, description=help, json_schema_extra={"unit": unit, "way_out": way_out}, **bounds)


class Section(BaseModel):
    # allow_inf_nan: a learning rate of nan passes every bound check otherwise.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    name: str = knob("bundled", "Model", "`bundled` (a tiny reasoner, no download), a local folder, or a Hub id such as Qwen/Qwen3-0.6B.",
        min_length=1, max_length=512, way_out="Write bundled, a folder with config.json and *.safetensors, or owner/name.")
    revision: str = knob("main", "Revision", "Branch, tag or commit of a Hub model.", min_length=1, max_length=200)
    init: Literal["weights", "random"] = knob("weights", "Initial weights",
        "`weights` loads what was trained; `random` keeps the configuration and starts from noise.")
    dtype: Literal["auto", "float32", "bfloat16"] = knob("auto", "Precision",
        "`auto`: bfloat16 on CUDA, float32 elsewhere. With small learning rates bfloat16 weights round small updates away.")


class TaskConfig(Section):
    name: str = knob("sums", "Task", "Where prompts come from, and how an answer is judged right.", min_length=1, max_length=64)
    heldout_size: int = knob(200, "Held-out prompts", "Prompts kept out of training and used to measure accuracy.",
        unit="prompts", ge=0, le=5000, way_out="Use 200 or more for a narrow interval, 0 for no evaluation.")


class Criterion(Section):
    """One line of a rubric: a check, its weight in the reward and its parameters."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    check: str = Field(min_length=1, max_length=64)
    weight: float = Field(ge=0, le=1000)
    params: dict[str, Any] = Field(default_factory=dict)
    outcome: bool = False


class RubricConfig(Section):
    name: str = knob("answer", "Rubric", "A preset, or `custom` for the criteria below.", min_length=1, max_length=64)
    criteria: tuple[Criterion, ...] = knob((), "Criteria", "name, check, weight, params, outcome. Empty: those of the preset.", max_length=32)


class AlgorithmConfig(Section):
    preset: str = knob("GRPO", "Preset", "A named set of the values below.", max_length=64)
    advantage: Literal["group_std", "group_mean", "leave_one_out", "value"] = knob("group_std", "Advantage",
        "How a completion is compared with its siblings: standardised, centred, against the mean of the others; or, with `value`, each token with "
        "what a critic foresaw (PPO).")
    gae_gamma: float = knob(1.0, "Discount γ", "With a critic: how much less a reward counts for each token that it comes later.",
        gt=0, le=1, way_out="1 is usual for text: the reward comes at the end.")
    gae_lambda: float = knob(0.95, "GAE λ", "With a critic: 1 trusts the reward that came, 0 the critic's next guess.",
        ge=0, le=1, way_out="0.95 is usual.")
    value_coef: float = knob(0.5, "Value coefficient", "With a critic: weight of its squared error in the loss.",
        ge=0, le=100, way_out="0.5 is usual.")
    entropy_coef: float = knob(0.0, "Entropy bonus", "How strongly the policy is kept undecided. 0: entropy is measured, not trained on.",
        ge=0, le=10, way_out="0 is usual, or try 0.001.")
    updates_per_batch: int = knob(1, "Updates per batch", "Optimiser steps on each batch of completions; the clip range bounds what more than one can do.",
        unit="updates", ge=1, le=64, way_out="1 is usual; PPO takes up to 4.")
    objective: Literal["clip", "reinforce"] = knob("clip", "Objective",
        "`clip` stops pushing a token once its probability moved by the clip range; `reinforce` never stops.")
    clip_eps_low: float = knob(0.2, "Clip range, low", "How far below 1 the ratio may fall before a bad token is left alone.",
        gt=0, lt=1, way_out="0.2 is usual.")
    clip_eps_high: float = knob(0.2, "Clip range, high", "How far above 1 the ratio may rise before a good token is left alone.",
        gt=0, le=10, way_out="0.2 is usual, DAPO uses 0.28.")
    kl_coef: float = knob(0.02, "KL coefficient", "How strongly the policy is held near its reference. 0: KL is measured, not trained on.",
        ge=0, le=100, way_out="0.02 is usual, 0 switches it off.")
    kl_estimator: Literal["k1", "k2", "k3"] = knob("k3", "KL estimator", "How KL is estimated from sampled tokens. k3 is never negative.")
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = knob("token_mean", "Aggregation",
        "Whether each completion, each token, or each token over a fixed length weighs the same.")
    mask_truncated: bool = knob(False, "Mask truncated", "Completions cut at the token limit train nothing, but still count in their group.")


class TrainConfig(Section):
    steps: int = knob(80, "Steps", "Optimiser steps.", unit="steps", ge=1, le=1_000_000, way_out="Use 80 for the bundled model.")
    prompts_per_step: int = knob(8, "Prompts per step", "Different prompts, and so groups, in each step.", unit="prompts", ge=1, le=4096)
    group_size: int = knob(8, "Group size", "Completions of each prompt. A completion is compared with its siblings, so it needs at least one.",
        unit="completions", ge=2, le=1024, way_out="Use 8; 2 is the least that can be compared.")
    max_new_tokens: int = knob(48, "Max new tokens", "A completion is cut here.", unit="tokens", ge=1, le=32_768, way_out="48 fits the built-in tasks.")
    learning_rate: float | None = knob(None, "Learning rate", "Empty: by model size, 1e-4 below 50 M parameters, else 1e-6.",
        gt=0, le=1, way_out="Leave it empty, or try 1e-4 for a tiny and 1e-6 for a large model.")
    seed: int = knob(0, "Seed", "Same seed, same settings, same machine: the same run.", ge=0, le=2**31 - 1)
    temperature: float = knob(1.0, "Temperature", "Sampling temperature; log-probabilities use it too. No top-p or top-k.",
        gt=0, le=10, way_out="1 is usual. 0 would make all siblings equal, so every group would tie.")
    warmup_steps: int = knob(5, "Warm-up", "Steps over which the learning rate rises from 0.", unit="steps", ge=0, le=1_000_000)
    max_grad_norm: float = knob(1.0, "Gradient clip", "The gradient is scaled down to this norm.", gt=0, le=1e6)
    micro_batch_tokens: int = knob(16_384, "Micro-batch", "Padded tokens a forward pass may hold. Memory only: the result never depends on it.",
        unit="tokens", ge=1, le=100_000_000)
    eval_every: int = knob(20, "Evaluate every", "Steps between held-out evaluations; 0: only before and after.", unit="steps", ge=0, le=1_000_000)


class RunConfig(Section):
    """A whole run. Validation here is about values; names of models, tasks and rubrics are checked where they live."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rubric: RubricConfig = RubricConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _algorithm_makes_sense(self) -> RunConfig:
        a = self.algorithm
        if a.advantage == "value" and a.value_coef == 0:
            raise _problem("algorithm.value_coef", a.value_coef, "a critic that is not trained values every state at 0, and `value` compares with nothing else",
                           "0.5 is usual; to compare siblings without a critic set algorithm.advantage to group_std.")
        if a.updates_per_batch > 1 and a.objective == "reinforce":
            raise _problem("algorithm.updates_per_batch", a.updates_per_batch,
                           "`reinforce` has no ratio, so every update after the first would learn from a policy that no longer exists",
                           "Use 1, or set algorithm.objective to clip.")
        return self

    @model_validator(mode="after")
    def _rubric_makes_sense(self) -> RunConfig:
        criteria = self.rubric.criteria
        if criteria and not any(c.weight > 0 for c in criteria):
            raise _problem("rubric.criteria", {c.name: c.weight for c in criteria}, "all weights are 0, so every reward would be 0",
                           "Give at least one criterion a weight above 0.")
        names = [c.name for c in criteria]
        if len(set(names)) < len(names):
            raise _problem("rubric.criteria", names, "two criteria share a name", "Give each its own name.")
        return self


def _problem(field: str, value: Any, problem: str, way_out: str) -> PydanticCustomError:
    return PydanticCustomError("studio", "{problem}", {"field": field, "value": value, "problem": problem, "way_out": way_out})


# Each preset is only a set of values; what it does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "GRPO": {"advantage": "group_std", "objective": "clip", "clip_eps_low": 0.2, "clip_eps_high": 0.2, "kl_coef": 0.02, "aggregation": "token_mean"},
    "PPO (critic)": {"advantage": "value", "gae_gamma": 1.0, "gae_lambda": 0.95, "value_coef": 0.5, "entropy_coef": 0.0, "objective": "clip",
                     "clip_eps_low": 0.2, "clip_eps_high": 0.2, "kl_coef": 0.02, "aggregation": "token_mean"},
    "Dr. GRPO": {"advantage": "group_mean", "objective": "clip", "clip_eps_low": 0.2, "clip_eps_high": 0.2, "kl_coef": 0.0, "aggregation": "constant"},
}


def parse(data: Mapping[str, Any]) -> RunConfig:
    """Nested plain data -> RunConfig. Raises InvalidConfig with every problem found, each with its dotted field."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise InvalidConfig([_explain(e) for e in error.errors(include_url=False)]) from None


def _explain(error: Mapping[str, Any]) -> FieldProblem:
    if error["type"] == "studio":
        c = error["ctx"]
        return FieldProblem(c["field"], c["value"], c["problem"], c["way_out"])
    dotted = ".".join(map(str, error["loc"])) or "config"
    way_out = ""
    known = fields_by_name()
    if error["type"] == "extra_forbidden":
        section = dotted.rpartition(".")[0]
        siblings = [n for n in known if n.rpartition(".")[0] == section] or sorted({n.split(".")[0] for n in known})
        return FieldProblem(dotted, error["input"], "there is no such field", f"Known: {', '.join(siblings)}.")
    if dotted in known:
        way_out = (known[dotted].json_schema_extra or {}).get("way_out", "")
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    message = message.replace("should be greater than or equal to", "must be at least").replace("should be less than or equal to", "must be at most")
    return FieldProblem(dotted, error["input"], message.replace("should be", "must be").rstrip("."), way_out)


def fields_by_name() -> dict[str, Any]:
    """Dotted name -> pydantic FieldInfo, in the order of the form."""
    return {f"{s}.{n}": info for s, sec in RunConfig.model_fields.items() for n, info in sec.annotation.model_fields.items()}


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value, JSON types only."""
    return dict(_leaves(config.model_dump(mode="json")))


def _leaves(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in data.items():
        for name, value in values.items():
            yield f"{section}.{name}", value


def nest(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted names -> nested plain data, the inverse of `flatten`."""
    data: dict[str, dict[str, Any]] = {}
    for dotted, value in flat.items():
        section, dot, name = dotted.partition(".")
        if not dot or not name:
            raise InvalidConfig([FieldProblem(dotted, value, "this is no field", "Use section.field, e.g. train.steps.")])
        data.setdefault(section, {})[name] = value
    return data


def with_preset(flat: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """`flat` with the values of `preset` under it: what a person set explicitly wins."""
    if preset not in PRESETS:
        raise InvalidConfig([FieldProblem("algorithm.preset", preset, "there is no such preset", f"Known: {', '.join(PRESETS)}.")])
    return {"algorithm.preset": preset, **{f"algorithm.{k}": v for k, v in PRESETS[preset].items()}, **flat}


def read_json(path: str | Path, what: str = "config") -> Any:
    """The JSON in a file, or one line saying why not."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise StudioError(f"{what} file {str(path)!r} does not exist. Check the path.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise StudioError(f"{what} file {str(path)!r} cannot be read as JSON: {error}. Mend it or export a new one.") from None
