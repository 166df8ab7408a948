"""RunConfig <-> components.

Titles, types, bounds and help texts come from the fields themselves (config.sections.fields).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component

from grpo_core.config import PRESETS, RunConfig, fields_by_name, flatten, nest, parse
from grpo_core.config.sections.task import MAX_DEFAULT_HELDOUT
from grpo_core.environments.registry import known_environments
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import PRESETS as RUBRICS
from grpo_core.rubric import build_rubric
from grpo_core.tasks import CHOICES as TASKS
from grpo_core.tasks import FILE, check_task, is_gym
from grpo_core.tasks.reasoning_gym import PREFIX, gym_tasks

CRITERIA = "rubric.criteria"
FIELDS = fields_by_name()
NAMES: tuple[str, ...] = tuple(FIELDS)  # the order in which handlers receive and return values
DEFAULTS: dict[str, Any] = flatten(RunConfig())
# Placeholders; others: off.
EMPTY = {
    "train.learning_rate": "by model size",
    "task.second": "none",
    "task.level": "usual",
    "rollout.url": "http://127.0.0.1:8000",
    "rollout.shared_folder": "a temporary one",
    "task.heldout_size": f"up to {MAX_DEFAULT_HELDOUT}",
}
# Columns of the file or dataset; a preview reads their names and offers them.
COLUMNS = ("task.prompt_column", "task.answer_column")
MULTILINE = ("task.template", "task.instruction", "task.system")
LABELS = {"algorithm.preset": "Algorithm"}  # where the label is not the field's title
CHOICES: dict[str, list[Any]] = {
    "model.name": [("bundled · tiny reasoner", "bundled")],
    "model.device": ["auto"],  # build_train puts the server's devices here
    "task.name": [
        *((task.title, name) for name, task in TASKS.items()),
        *((f"{n} · reasoning-gym, {k.group}", f"{PREFIX}{n}") for n, k in gym_tasks().items()),
    ],
    "rubric.name": [*RUBRICS, "custom"],
    "algorithm.preset": list(PRESETS),
}
# field -> option -> its help
OPTIONS: dict[str, dict[str, str]] = {
    name: extra["options"]
    for name, info in FIELDS.items()
    if "options" in (extra := info.json_schema_extra or {})
}

# The sections of the set-up, and their fields by the part of a field's name before its first dot.
SECTIONS = {
    "model": "Model",
    "prompts": "Prompts",
    "rubric": "Rubric",
    "algorithm": "Algorithm",
    "run": "Run",
}
_SECTION_OF = {"task": "prompts", "rollout": "prompts", "train": "run"}

# The fields by their part of a section.
MODEL = tuple(n for n in NAMES if n.startswith("model.") and n != "model.name")
# How prompts are read from a file or a dataset.
SOURCE = ("task.path", *COLUMNS)
HELDOUT = ("task.heldout_size", "task.second")
# What the policy acts in.
ENVIRONMENT = ("task.environment", "rollout.max_turns", "rollout.tool_seconds")
# Who samples; all but the first belong to a server.
SERVER = tuple(n for n in NAMES if n.startswith("rollout.") and n not in ENVIRONMENT)
# How a task of reasoning-gym makes its prompts.
GYM = ("task.size", "task.seed", "task.level")
PROMPTS = tuple(
    n
    for n in NAMES
    if n.startswith("task.") and n not in ("task.name", *GYM, *HELDOUT, *ENVIRONMENT)
)
# Those of PROMPTS that hold for the prompts of reasoning-gym too.
GYM_PROMPTS = ("task.instruction", "task.system", "task.too_long")
REWARD = tuple(n for n in NAMES if n.startswith("rubric.") and n not in ("rubric.name", CRITERIA))
ALGORITHM = tuple(n for n in NAMES if n.startswith("algorithm.") and n != "algorithm.preset")
NUMBERS = (
    "train.steps",
    "train.seed",
    "train.prompts_per_step",
    "train.group_size",
    "train.max_new_tokens",
    "train.learning_rate",
    "train.workers",
)
EVALUATION = tuple(f"train.eval_{name}" for name in ("every", "samples", "mode", "records"))
SAVING = (
    "train.checkpoint_every",
    "train.checkpoint_keep",
    "train.checkpoint_keep_every",
    "train.token_records",
    "train.after_records",
)
OPTIMISER = tuple(
    n for n in NAMES if n.startswith("train.") and n not in (*NUMBERS, *EVALUATION, *SAVING)
)


def section_of(name: str) -> str:
    """The key in SECTIONS of a field's section."""
    prefix = name.partition(".")[0]
    return "run" if name in SERVER else _SECTION_OF.get(prefix, prefix)


# ---- controls --------------------------------------------------------------------------------


def label(name: str) -> str:
    return LABELS.get(name) or FIELDS[name].title or name


def element_id(name: str) -> str:
    return "field-" + name.replace(".", "-").replace("_", "-")


def component(name: str) -> Component:
    """The control of one field.

    It does not get the field's bounds: a browser would correct or refuse what was typed without
    saying why.
    """
    kind, default = _kind(name), shown(name, DEFAULTS[name])
    common: dict[str, Any] = {
        "value": default,
        "label": label(name),
        "elem_id": element_id(name),
        "interactive": True,
    }
    if name in CHOICES:
        free = name in ("model.name", "model.device")
        can_search = free or name == "task.name"
        return gr.Dropdown(CHOICES[name], allow_custom_value=free, filterable=can_search, **common)
    if name == "task.environment":  # those that the operator named are known by now
        choices = [("the task’s own", ""), "none", *known_environments()]
        return gr.Dropdown(choices, allow_custom_value=True, **common)
    if name in COLUMNS:
        return gr.Dropdown([], allow_custom_value=True, **common)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), filterable=False, **common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind is int and not _may_be_empty(name):  # an empty gr.Number becomes 0 when it is built
        return gr.Number(**common)
    if name in MULTILINE:
        return gr.Textbox(lines=2, max_lines=8, **common)
    # Fractions are text too: 1e-4 stays as it was typed, and a message can quote invalid input.
    placeholder = EMPTY.get(name, "off" if default == "" else None)
    return gr.Textbox(max_lines=1, placeholder=placeholder, **common)


def _kind(name: str) -> Any:
    """The field's type without None: a `float | None` is a float that may be empty."""
    annotation = FIELDS[name].annotation
    if NoneType not in get_args(annotation):
        return annotation
    return next(kind for kind in get_args(annotation) if kind is not NoneType)


def _may_be_empty(name: str) -> bool:
    return NoneType in get_args(FIELDS[name].annotation)


def shown(name: str, value: Any) -> Any:
    """A field's value as its control shows it."""
    if name == CRITERIA:
        return [row_of(criterion) for criterion in value]
    if _kind(name) is float or (_kind(name) is int and _may_be_empty(name)):
        return "" if value is None else _number(value)
    return value


def _number(value: float) -> str:
    """A number as a person would type it, without losing digits."""
    return f"{value:.12g}"


def row_of(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion as a row of the rubric table. Weight and params are text, to keep wrong input."""
    weight = criterion.get("weight", 1)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return {
        "name": str(criterion.get("name", "")),
        "check": str(criterion.get("check", "")),
        "weight": _number(weight) if is_number else str(weight),
        "params": json.dumps(criterion.get("params") or {}, ensure_ascii=False),
        "outcome": bool(criterion.get("outcome", False)),
    }


def preset_rows(name: str) -> list[dict[str, Any]] | None:
    """The rows of a rubric preset; None if there is no such preset."""
    return [row_of(c.model_dump(mode="json")) for c in RUBRICS[name]] if name in RUBRICS else None


def rubric_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """The preset with these rows, or "custom"."""
    return next((name for name in RUBRICS if preset_rows(name) == list(rows)), "custom")


def preset_values(preset: str) -> dict[str, Any]:
    """Every algorithm field as its control shows it under a preset; the rest has its default."""
    named = {f"algorithm.{name}": value for name, value in PRESETS.get(preset, {}).items()}
    return {name: shown(name, named.get(name, DEFAULTS[name])) for name in ALGORITHM}


# ---- reading ---------------------------------------------------------------------------------


def read(values: Sequence[Any]) -> tuple[RunConfig | None, list[FieldProblem]]:
    """The configuration, or None and every problem. A browser can send anything.

    values: control values in the order of NAMES.
    """
    flat = dict(zip(NAMES, values, strict=True))
    flat[CRITERIA], problems = read_rows(flat[CRITERIA])
    for name in NAMES:
        if isinstance(flat[name], str) and name != CRITERIA:
            flat[name] = flat[name].strip()
        if flat[name] == "" and _may_be_empty(name):
            flat[name] = None
    # These controls are hidden, so nobody could see or correct what they hold.
    flat |= {name: DEFAULTS[name] for name in unused_prompts(flat["task.name"])}
    try:
        config = parse(nest(flat))
    except InvalidConfig as error:
        return None, problems + [_readable(p) for p in error.problems]
    try:
        check_task(config.task)
    except InvalidConfig as error:
        problems += error.problems
    try:
        build_rubric(config.rubric)
    except InvalidConfig as error:
        problems += error.problems
    preset = config.algorithm.preset
    if preset not in PRESETS:
        hint = f"Known: {', '.join(PRESETS)}."
        problems.append(FieldProblem("algorithm.preset", preset, "there is no such preset", hint))
    return (None if problems else config), problems


def unused_prompts(task: Any) -> set[str]:
    """The fields of GYM and PROMPTS that have no effect on this task, which may be anything."""
    if task == FILE.name:
        return set(GYM)
    if isinstance(task, str) and is_gym(task):
        return set(PROMPTS) - set(GYM_PROMPTS)
    return {*GYM, *PROMPTS}


def _readable(problem: FieldProblem) -> FieldProblem:
    """An empty control sends None or ''; the message says that it is empty."""
    if problem.value in (None, ""):
        return FieldProblem(problem.field, problem.value, "must not be empty", problem.hint)
    return problem


def read_rows(rows: Any) -> tuple[list[dict[str, Any]], list[FieldProblem]]:
    """Rows of the rubric table -> criteria for RunConfig, and a problem for each invalid JSON."""
    criteria, problems = [], []
    for i, row in enumerate(rows if isinstance(rows, list) else []):
        row = row if isinstance(row, Mapping) else {}
        try:
            params = json.loads(str(row.get("params") or "{}"))
        except (ValueError, RecursionError):
            params = None
        if not isinstance(params, dict):
            problems.append(
                FieldProblem(
                    f"{CRITERIA}.{i}.params",
                    row.get("params"),
                    "is not a JSON object",
                    'Write {} or, for example, {"max_tokens": 16}.',
                )
            )
            params = {}
        criteria.append(
            {
                "name": str(row.get("name", "")).strip(),
                "check": str(row.get("check", "")),
                "weight": str(row.get("weight", "")).strip(),
                "params": params,
                "outcome": bool(row.get("outcome")),
            }
        )
    if not criteria:
        problem = "a rubric needs at least one criterion"
        problems.append(FieldProblem(CRITERIA, [], problem, "Add one, or choose a preset."))
    return criteria, problems
