"""Which fields the present choices use: the form hides the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from grpo_core.config import options
from grpo_core.tasks import FILE, Task, find_task
from grpo_core.tasks.source import SUFFIXES
from ui.components.form import ENVIRONMENT, GYM, PROMPTS, SERVER, unused_prompts
from ui.render.formula import parse_float

Flat = Mapping[str, Any]

# The fields that formulas name in another way, see render/formula.py.
_IN_FORMULAS = {
    "low": ("clip_eps_low",),
    "high": ("clip_eps_high",),
    "w": ("clip_delta",),
}
# Objectives that take no ratio from “Ratio level”.
_OWN_RATIO = ("vespo", "gmpo", "reinforce", "trust_region")


def _is(name: str, value: str) -> Callable[[Flat], bool]:
    return lambda flat: flat[name] == value


def _is_set(name: str) -> Callable[[Flat], bool]:
    return lambda flat: flat[name] not in (None, "", "0") and parse_float(flat[name]) != 0


def _from_hub(flat: Flat) -> bool:
    path = str(flat["task.path"]).strip().lower()
    return flat["task.name"] == FILE.name and bool(path) and not path.endswith(tuple(SUFFIXES))


def task_of(flat: Flat) -> Task | None:
    """The chosen task; None if there is none, or for anything else that a browser may send."""
    name = flat["task.name"]
    return find_task(name) if isinstance(name, str) else None


def _in_environment(flat: Flat) -> bool:
    named = str(flat["task.environment"] or "").strip()
    task = task_of(flat)
    return named != "none" and bool(named or (task and task.environment))


def _in_prompts(name: str) -> Callable[[Flat], bool]:
    return lambda flat: name not in unused_prompts(flat["task.name"])


_KL = _is_set("algorithm.kl_coef")

# field -> when it is used. Fields that are not here are always used.
USED_WHEN: dict[str, Callable[[Flat], bool]] = {
    **{name: _in_prompts(name) for name in (*GYM, *PROMPTS)},
    **{name: _in_environment for name in ENVIRONMENT if name != "task.environment"},
    "task.subset": _from_hub,
    "task.split": _from_hub,
    "model.revision": lambda flat: flat["model.name"] != "bundled",
    "model.base_bits": _is_set("model.lora_rank"),
    "model.lora_alpha": _is_set("model.lora_rank"),
    "algorithm.similarity_threshold": _is("algorithm.grouping", "similarity"),
    "algorithm.value_coef": _is("algorithm.advantage", "value"),
    "algorithm.trust_region_damping": _is("algorithm.objective", "trust_region"),
    "algorithm.ratio_level": lambda flat: flat["algorithm.objective"] not in _OWN_RATIO,
    "algorithm.kl_ratio_corrected": _KL,
    "algorithm.kl_estimator": lambda flat: _KL(flat) or flat["algorithm.measure_kl"] is not False,
    "algorithm.kl_control": lambda flat: _KL(flat) or flat["algorithm.kl_control"] != "fixed",
    "algorithm.measure_kl": lambda flat: not _KL(flat),
    "algorithm.kl_target": lambda flat: flat["algorithm.kl_control"] != "fixed",
    "algorithm.kl_horizon": _is("algorithm.kl_control", "adaptive"),
    "algorithm.ref_alpha": _is_set("algorithm.ref_every"),
    "algorithm.entropy_coef_delta": _is_set("algorithm.entropy_target"),
    "algorithm.entropy_coef_max": _is_set("algorithm.entropy_target"),
    **{name: _is("rollout.engine", "vllm") for name in SERVER if name != "rollout.engine"},
    "rollout.correction_max": lambda flat: (
        flat["rollout.engine"] == "vllm" and flat["rollout.correction"] != "none"
    ),
    "train.checkpoint_keep": _is_set("train.checkpoint_every"),
    "train.checkpoint_keep_every": _is_set("train.checkpoint_every"),
    "train.after_records": _is_set("train.token_records"),
}
_WITH_FORMULAS = {
    "algorithm.advantage": options.ADVANTAGES,
    "algorithm.objective": options.OBJECTIVES,
}


def unused(flat: Flat) -> set[str]:
    """The fields that have no effect with these values, which may be anything."""
    names = {name for name, used in USED_WHEN.items() if not used(flat)}
    for field, table in _WITH_FORMULAS.items():
        chosen = flat[field] if isinstance(flat[field], str) else ""
        if chosen in table:
            named = {option: _fields_of(row.formula) for option, row in table.items()}
            names |= set().union(*named.values()) - named[chosen]
    return names


def _fields_of(formula: str) -> set[str]:
    """The fields in a formula of one of the tables of options."""
    names = [name for _, name, _, _ in Formatter().parse(formula) if name]
    return {f"algorithm.{field}" for name in names for field in _IN_FORMULAS.get(name, (name,))}
