"""The objective as the form shows it: the chosen options' formulas with the chosen numbers in them. Plain text; pure."""

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
    """One line each for advantage, loss, aggregation and whatever is switched on. Values are a form's: anything is possible, `?` stands for nonsense."""
    g = dict(algorithm)
    low, high, coef = number(g["clip_eps_low"]), number(g["clip_eps_high"]), number(g["kl_coef"])
    delta = number(g["clip_delta"])
    numbers = {
        name: "?" if number(value) is None else plain(number(value)) for name, value in g.items()
    } | {
        "low": "?" if low is None else plain(round(1 - low, 6)),
        "high": "?" if high is None else plain(round(1 + high, 6)),
        "w": "w" if delta is None else f"min(w, {plain(delta)})",
        "max_new_tokens": max_new_tokens,
    }

    def formula(table: Mapping[str, options.Option], field: str) -> str:
        chosen = table.get(g[field]) if isinstance(g[field], str) else None
        return Formatter().vformat(chosen.formula, (), numbers) if chosen else "?"

    policy, *where = formula(options.OBJECTIVES, "objective").split("; ")
    over = "" if g["grouping"] == "prompt" else f", {formula(options.GROUPINGS, 'grouping')}"
    kl = (
        ""
        if coef == 0
        else f" + {'?' if coef is None else plain(coef)}·{'w·' if g['kl_ratio_corrected'] is True else ''}KL"
    )
    bonus = number(g["entropy_coef"])
    entropy = (
        f" − {plain(bonus)}·H" if bonus else " − β·H" if g["entropy_target"] not in OFF else ""
    )
    lines = [
        f"A = {formula(options.ADVANTAGES, 'advantage')}{over}",
        f"L = {policy}{kl}{entropy}",
        *where,
        formula(options.AGGREGATIONS, "aggregation"),
    ]
    lines += (
        [formula(options.RATIO_LEVELS, "ratio_level")] if g["ratio_level"] == "sequence" else []
    )
    lines += [f"KL = {formula(options.KL_ESTIMATORS, 'kl_estimator')}"] if kl else []
    lines += [
        text
        for holds, text in (
            (gate, "where nobody reached the outcome, r = the outcome alone"),
            (scale, "r = reward / std of all rewards so far"),
            (
                g["kl_control"] == "adaptive",
                f"KL coefficient moves to hold KL at {numbers['kl_target']}",
            ),
            (
                g["kl_control"] == "hard",
                f"KL > {numbers['kl_target']}: a step back instead of an update",
            ),
            (
                number(g["entropy_quantile"]) != 1,
                f"only the {numbers['entropy_quantile']} of tokens with the highest entropy",
            ),
            (g["entropy_target"] not in OFF, f"β grows while H ≤ {numbers['entropy_target']}"),
            (
                g["off_policy_threshold"] not in OFF,
                f"A < 0 and drift > {numbers['off_policy_threshold']}: dropped",
            ),
            (g["updates_per_batch"] != 1, f"{numbers['updates_per_batch']} updates a batch"),
            (
                g["dynamic_sampling"] != 0,
                f"tied groups: sampled anew, up to {numbers['dynamic_sampling']} times",
            ),
            (g["mask_truncated"] is True, "truncated completions: masked"),
        )
        if holds
    ]
    return lines


def number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
