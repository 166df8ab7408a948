"""What if: controls for other weights, estimator, gate and clip, and what they would have changed. Rows -> escaped HTML; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.analysis.what_if import Answer, Changed, Pull
from grpo_core.config.options import ADVANTAGES
from ui.render.recorded_config import criteria_of
from ui.render.text import count, esc, format_number, is_number, percent, plain, short, signed

LISTED = 12  # flipped completions of a whole run that are shown


def controls(config: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The form. It starts at the run's own settings; `asked` is what a person has changed of them."""
    rubric, now = config.get("rubric") or {}, own(config) | dict(asked)
    weights = "".join(
        f'<label class="knob"><span>{esc(c["name"])}</span><input type="range" name="{esc("w:" + str(c["name"]))}" min="0" max="{_most(c)}" step="0.05" '
        f'value="{esc(now["w:" + str(c["name"])])}" aria-label="Weight of {esc(c["name"])}"><output>{esc(now["w:" + str(c["name"])])}</output></label>'
        for c in criteria_of(config)
    )
    estimators = "".join(
        f'<option value="{esc(n)}"{" selected" if n == now["advantage"] else ""}>{esc(n)}</option>'
        for n in ADVANTAGES
        if n != "value"
    )
    gate = " checked" if now["gate"] in (True, "true") else ""
    outcome = any(c.get("outcome") for c in criteria_of(config))
    return (
        f'<form class="whatif" onsubmit="return false"><div class="knobs">{weights}</div><div class="knobs">'
        f'<label class="knob"><span>Advantage</span><select name="advantage">{estimators}</select></label>'
        f'<label class="knob"><span>Outcome gate</span><input type="checkbox" name="gate"{gate}{"" if outcome else " disabled"}></label>'
        f'<label class="knob"><span>Lowest reward</span><input type="text" name="clip_low" inputmode="decimal" value="{esc(now["clip_low"])}" placeholder="off"></label>'
        f'<label class="knob"><span>Highest reward</span><input type="text" name="clip_high" inputmode="decimal" value="{esc(now["clip_high"])}" placeholder="off"></label>'
        f'<label class="knob"><span>KL coefficient</span><input type="text" name="kl_coef" inputmode="decimal" value="{esc(now["kl_coef"])}"></label>'
        f'<label class="knob"><span>OnGroupDone run</span><input type="checkbox" name="run"{" checked" if now["run"] is True else ""}></label></div>'
        '<div class="tools"><button type="button" data-do="use">Use in a new run</button>'
        f'<button type="button" data-do="reset">Back to the run’s own</button><span class="note">{"Scaled rewards: every step before counts too. " if rubric.get("scale") else ""}'
        "The completions stay those that this run’s own settings made.</span></div></form>"
    )


def own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The form's values for the run's own settings."""
    rubric, algorithm = config.get("rubric") or {}, config.get("algorithm") or {}
    limits = {
        name: plain(rubric[name]) if is_number(rubric.get(name)) else ""
        for name in ("clip_low", "clip_high")
    }
    estimator = str(algorithm.get("advantage", "group_std"))
    return (
        {f"w:{c['name']}": f"{float(c.get('weight') or 0):g}" for c in criteria_of(config)}
        | limits
        | {
            "gate": bool(rubric.get("gate")),
            "kl_coef": plain(float(algorithm.get("kl_coef") or 0)),
            "advantage": "group_std" if estimator == "value" else estimator,
            "run": False,
        }
    )


def read(config: Mapping[str, Any], said: Any) -> dict[str, Any]:
    """What the form says, as far as it makes sense; anything may arrive from a browser."""
    start = own(config)
    said = said if isinstance(said, Mapping) else {}
    out = {
        name: value
        for name, value in said.items()
        if name in start and isinstance(value, (str, bool, int, float)) and len(str(value)) < 40
    }
    if out.get("advantage") not in ADVANTAGES or out.get("advantage") == "value":
        out.pop("advantage", None)
    return {name: value for name, value in out.items() if value != start[name]}


def changes(
    config: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Weights and dotted fields for whatif.settings. ValueError for what is no number."""
    weights = {
        name.removeprefix("w:"): _number(value)
        for name, value in asked.items()
        if name.startswith("w:")
    }
    fields: dict[str, Any] = {}
    if "gate" in asked:
        fields["rubric.gate"] = asked["gate"] is True
    if "advantage" in asked:
        fields["algorithm.advantage"] = asked["advantage"]
    if "kl_coef" in asked:
        fields["algorithm.kl_coef"] = _number(asked["kl_coef"])
    for name in ("clip_low", "clip_high"):
        if name in asked:
            text = str(asked[name]).strip()
            fields[f"rubric.{name}"] = _number(text) if text else None
    if (config.get("algorithm") or {}).get("advantage") == "value":
        fields.setdefault("algorithm.advantage", "group_std")
    return weights, fields


def _number(text: Any) -> float:
    value = float(str(text).replace("\N{MINUS SIGN}", "-").replace(",", "."))
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number to calculate with")
    return value


def _most(criterion: Mapping[str, Any]) -> str:
    """The slider's end: twice the weight, at least 2."""
    return f"{max(2.0, 2 * float(criterion.get('weight') or 0)):g}"


def of_group(answer: Answer) -> str:
    """Every completion of the group: stored and then. A flipped sign is said in a word, not by colour alone."""
    rows = "".join(
        f'<tr{" class=flips" if r.flips else ""}><th scope="row">#{r.position + 1}</th><td>{_reward(r.reward)}</td><td>{_reward(r.reward_then)}</td>'
        f'<td class="{_side(r.advantage)}"><b>{signed(r.advantage, 3)}</b></td><td class="{_side(r.advantage_then)}"><b>{signed(r.advantage_then, 3)}</b></td>'
        f"<td>{_said(r)}</td></tr>"
        for r in answer.rollouts
    )
    return (
        f'{_sum(answer)}<div class="scroll" tabindex="0" role="region" aria-label="Stored and recomputed, by completion"><table class="why"><thead><tr><th scope="col"><span class="sr">completion</span></th><th scope="col">reward</th>'
        f'<th scope="col">then</th><th scope="col">A stored</th><th scope="col">A then</th><th scope="col"><span class="sr">change</span></th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def of_run(answer: Answer) -> str:
    """The whole run: how many flip, what ties, and the first completions whose sign turns, each a link to its group."""
    flipped = [r for r in answer.rollouts if r.flips]
    shown = sorted(flipped, key=lambda r: -abs(r.advantage_then - r.advantage))[:LISTED]
    links = "".join(
        f'<tr><td class="num">{r.step:,}</td><td><button type="button" class="link" data-do="open" data-at="{r.step}/{r.group}">group {r.group + 1}, #{r.position + 1}</button></td>'
        f'<td class="num">{signed(r.advantage, 3)}</td><td class="num">{signed(r.advantage_then, 3)}</td></tr>'
        for r in shown
    )
    table = (
        (
            '<h2>Turned the furthest</h2><div class="scroll"><table class="list"><thead><tr><th scope="col" class="num">Step</th><th scope="col">Completion</th>'
            f'<th scope="col" class="num">A stored</th><th scope="col" class="num">A then</th></tr></thead><tbody>{links}</tbody></table></div>'
        )
        if shown
        else ""
    )
    return _sum(answer) + table


def kl_of_group(pull: Pull | None) -> str:
    """What another KL coefficient changes in one group, and what it cannot."""
    if pull is None:
        return f'<p class="note">No tokens of this group were recorded, so what the coefficient does to its loss cannot be worked out. {_KL_STAYS}</p>'
    if not pull.measured:
        return f'<p class="note">KL was not measured on this group’s completions, so its pull cannot be worked out. {_KL_STAYS}</p>'
    part = (
        ""
        if pull.measured == pull.size
        else f" KL was measured on {pull.measured} of its {pull.size} completions."
    )
    share = (
        f"<span>KL’s pull is <b>{percent(pull.share)}</b> of the advantages’ push</span>"
        if math.isfinite(pull.share)
        else "<span>KL alone would have pushed</span>"
    )
    return (
        f'<p class="calc"><span>KL coefficient <b>{plain(pull.coef)}</b> → <b>{plain(pull.coef_then)}</b></span><span>this group’s part of the loss <b>{short(pull.loss)}</b> → '
        f'<b>{short(pull.loss_then)}</b></span>{share}<span><b>{pull.turned:,}</b> of {pull.num_tokens:,} tokens would have been pushed the other way</span></p><p class="note">{_KL_STAYS}{part}</p>'
    )


def kl_of_run(steps: Sequence[Mapping[str, Any]], coef: float) -> str:
    """Over the run: how large the KL term was and would have been, at the KL that was measured."""
    known = [
        (row["kl"], row["kl_coef"])
        for row in steps
        if is_number(row.get("kl")) and is_number(row.get("kl_coef"))
    ]
    if not known:
        return f'<p class="note">{_KL_STAYS}</p>'
    now, then = (
        sum(values) / len(known)
        for values in ([k * c for k, c in known], [k * coef for k, _ in known])
    )
    return f'<p class="calc"><span>coefficient × KL, mean over {count(len(known), "step")} <b>{short(now)}</b> → <b>{short(then)}</b></span></p><p class="note">{_KL_STAYS}</p>'


_KL_STAYS = (
    "The coefficient weighs KL in the loss, not in the reward: rewards and advantages stay. It is weighed here at the KL that was measured; "
    "another coefficient would have made another policy, and that policy’s KL no rows can tell."
)


def _sum(answer: Answer) -> str:
    groups = f", over {count(answer.num_groups, 'group')}" if answer.num_groups != 1 else ""
    tied = (
        f"<span>tied groups <b>{percent(answer.tied)}</b> → <b>{percent(answer.tied_then)}</b></span>"
        if answer.num_groups > 1
        else f"<span>is_informative <b>{'nothing' if answer.tied else 'something'}</b> → <b>{'nothing' if answer.tied_then else 'something'}</b></span>"
    )
    return (
        f'<p class="calc"><span><b>{answer.flips:,}</b> of {len(answer.rollouts):,} completions would have been pushed the other way{groups}</span>{tied}'
        f"<span>largest change of A <b>{format_number(answer.largest_change, 3)}</b></span></p>"
    )


def _said(r: Changed) -> str:
    if r.flips:
        return '<span class="verdict warn">flips</span>'
    if r.advantage == r.advantage_then:
        return ""
    return "no longer pushed" if not r.advantage_then else "now pushed" if not r.advantage else ""


def _reward(value: float | None) -> str:
    return format_number(value, 3) if is_number(value) else "null"


def _side(value: float) -> str:
    return "zero" if abs(value) < 5e-7 else "up" if value > 0 else "down"
