"""The objective under the form: formulas of the chosen options, with the chosen numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from grpo_core.config import options
from ui.render.text import plain

OFF = ("", None)


def objective_lines(
    algorithm: Mapping[str, Any], max_new_tokens: Any, gate: bool = False, scale: bool = False
) -> list[str]:
    """A line for the advantage, the loss, the aggregation and each feature that is on. Plain text.

    algorithm: field -> value of the form, which may be anything. A value that is not a number, or
    not an option, appears as `?`.
    """
    numbers = _numbers(algorithm) | {"max_new_tokens": max_new_tokens}

    def formula(table: Mapping[str, options.Option], field: str) -> str:
        value = algorithm[field]
        option = table.get(value) if isinstance(value, str) else None
        return Formatter().vformat(option.formula, (), numbers) if option else "?"

    grouping = ""
    if algorithm["grouping"] != "prompt":
        grouping = f", {formula(options.GROUPINGS, 'grouping')}"
    policy, *definitions = formula(options.OBJECTIVES, "objective").split("; ")
    kl = _kl_term(algorithm)
    lines = [
        f"A = {formula(options.ADVANTAGES, 'advantage')}{grouping}",
        f"L = {policy}{kl}{_entropy_term(algorithm)}",
        *definitions,
        formula(options.AGGREGATIONS, "aggregation"),
    ]
    if algorithm["ratio_level"] == "sequence":
        lines.append(formula(options.RATIO_LEVELS, "ratio_level"))
    if kl:
        lines.append(f"KL = {formula(options.KL_ESTIMATORS, 'kl_estimator')}")
    if gate:
        lines.append("if no completion of a group reaches the outcome, r = the outcome alone")
    if scale:
        lines.append("r = reward / std of all rewards so far")
    return lines + _feature_lines(algorithm, numbers)


def _numbers(algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the fields that formulas contain, as text."""
    numbers = {}
    for name, value in algorithm.items():
        number = parse_float(value)
        numbers[name] = "?" if number is None else plain(number)
    low, high = parse_float(algorithm["clip_eps_low"]), parse_float(algorithm["clip_eps_high"])
    delta = parse_float(algorithm["clip_delta"])
    numbers["low"] = "?" if low is None else plain(round(1 - low, 6))
    numbers["high"] = "?" if high is None else plain(round(1 + high, 6))
    numbers["w"] = "w" if delta is None else f"min(w, {plain(delta)})"
    return numbers


def _kl_term(algorithm: Mapping[str, Any]) -> str:
    coef = parse_float(algorithm["kl_coef"])
    if coef == 0:
        return ""
    ratio = "w·" if algorithm["kl_ratio_corrected"] is True else ""
    return f" + {'?' if coef is None else plain(coef)}·{ratio}KL"


def _entropy_term(algorithm: Mapping[str, Any]) -> str:
    coef = parse_float(algorithm["entropy_coef"])
    if coef:
        return f" − {plain(coef)}·H"
    return "" if algorithm["entropy_target"] in OFF else " − β·H"


def _feature_lines(algorithm: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    a = algorithm
    features = (
        (a["kl_control"] == "adaptive", "KL coefficient moves to hold KL at {kl_target}"),
        (a["kl_control"] == "hard", "KL > {kl_target}: a step back instead of an update"),
        (
            parse_float(a["entropy_quantile"]) != 1,
            "only the {entropy_quantile} of tokens with the highest entropy",
        ),
        (a["entropy_target"] not in OFF, "β grows while H ≤ {entropy_target}"),
        (
            a["off_policy_threshold"] not in OFF,
            "A < 0 and drift > {off_policy_threshold}: dropped",
        ),
        (a["updates_per_batch"] != 1, "{updates_per_batch} updates a batch"),
        (
            a["dynamic_sampling"] != 0,
            "tied groups: sampled again, up to {dynamic_sampling} times",
        ),
        (a["mask_truncated"] is True, "truncated completions: masked"),
    )
    return [text.format_map(numbers) for on, text in features if on]


def parse_float(value: Any) -> float | None:
    """A form's value as a float; None if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
