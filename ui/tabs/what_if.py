"""“What if”: controls for other weights, estimator, gate and clip, and what they would change.

Rows -> escaped HTML; pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.analysis.what_if import Answer, Changed, Pull
from grpo_core.config.options import ADVANTAGES
from ui.render.provenance import empty_place
from ui.render.recorded_config import criteria_of
from ui.render.text import count, esc, format_number, is_number, percent, plain, short, signed

LISTED = 12  # flipped completions of a whole run that are listed
MAX_VALUE_CHARS = 40

_KL_STAYS = (
    "The coefficient weighs KL in the loss, not in the reward: rewards and advantages stay. "
    "It is applied here to the measured KL. Another coefficient would have made another policy, "
    "and stored rows cannot give the KL of that policy."
)


# ---- the form --------------------------------------------------------------------------------


def controls(config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """The form, with the run's own settings and what a person changed of them."""
    now = own_settings(config) | dict(changed)
    weights = "".join(_weight(c, now) for c in criteria_of(config))
    estimators = "".join(
        f'<option value="{esc(n)}"{" selected" if n == now["advantage"] else ""}>{esc(n)}</option>'
        for n in ADVANTAGES
        if n != "value"
    )
    gate = _checkbox(now["gate"] in (True, "true"))
    if not any(c.get("outcome") for c in criteria_of(config)):
        gate += " disabled"
    scaled = ""
    if (config.get("rubric") or {}).get("scale"):
        scaled = "Scaled rewards: every step before counts too. "
    return (
        '<form class="whatif" onsubmit="return false">'
        f'<div class="knobs">{weights}</div><div class="knobs">'
        '<label class="knob"><span>Advantage</span>'
        f'<select name="advantage">{estimators}</select></label>'
        '<label class="knob"><span>Outcome gate</span>'
        f'<input type="checkbox" name="gate"{gate}></label>'
        f"{_decimal('clip_low', 'Lowest reward', now, empty='off')}"
        f"{_decimal('clip_high', 'Highest reward', now, empty='off')}"
        f"{_decimal('kl_coef', 'KL coefficient', now)}"
        '<label class="knob"><span>Whole run</span>'
        f'<input type="checkbox" name="run"{_checkbox(now["run"] is True)}></label></div>'
        '<div class="tools"><button type="button" data-do="use">Use in a new run</button>'
        '<button type="button" data-do="reset">Back to the run’s own</button>'
        f'<span class="note">{scaled}'
        "The completions stay those that this run’s own settings made.</span></div></form>"
    )


def _weight(criterion: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    name = f"w:{criterion['name']}"
    value = esc(now[name])
    highest = max(2.0, 2 * float(criterion.get("weight") or 0))
    return (
        f'<label class="knob"><span>{esc(criterion["name"])}</span>'
        f'<input type="range" name="{esc(name)}" min="0" max="{highest:g}" step="0.05" '
        f'value="{value}" aria-label="Weight of {esc(criterion["name"])}">'
        f"<output>{value}</output></label>"
    )


def _decimal(name: str, label: str, now: Mapping[str, Any], empty: str = "") -> str:
    placeholder = f' placeholder="{empty}"' if empty else ""
    return (
        f'<label class="knob"><span>{label}</span><input type="text" name="{name}" '
        f'inputmode="decimal" value="{esc(now[name])}"{placeholder}></label>'
    )


def _checkbox(checked: bool) -> str:
    return " checked" if checked else ""


# ---- reading the form ------------------------------------------------------------------------


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The form's values for the run's own settings."""
    rubric, algorithm = config.get("rubric") or {}, config.get("algorithm") or {}
    values: dict[str, Any] = {
        f"w:{c['name']}": f"{float(c.get('weight') or 0):g}" for c in criteria_of(config)
    }
    for name in ("clip_low", "clip_high"):
        values[name] = plain(rubric[name]) if is_number(rubric.get(name)) else ""
    estimator = str(algorithm.get("advantage", "group_std"))
    return values | {
        "gate": bool(rubric.get("gate")),
        "kl_coef": plain(float(algorithm.get("kl_coef") or 0)),
        # A critic's advantages cannot be recomputed from rows.
        "advantage": "group_std" if estimator == "value" else estimator,
        "run": False,
    }


def read(config: Mapping[str, Any], form: Any) -> dict[str, Any]:
    """The valid values of the form that differ from the run's own settings."""
    own = own_settings(config)
    form = form if isinstance(form, Mapping) else {}
    values = {
        name: value
        for name, value in form.items()
        if name in own
        and isinstance(value, (str, bool, int, float))
        and len(str(value)) < MAX_VALUE_CHARS
    }
    if values.get("advantage") not in ADVANTAGES or values.get("advantage") == "value":
        values.pop("advantage", None)
    return {name: value for name, value in values.items() if value != own[name]}


def changes(
    config: Mapping[str, Any], changed: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Weights and dotted fields for analysis.what_if.settings.

    Raises ValueError for what is not a finite number.
    """
    weights = {
        name.removeprefix("w:"): _parse_number(value)
        for name, value in changed.items()
        if name.startswith("w:")
    }
    fields: dict[str, Any] = {}
    if "gate" in changed:
        fields["rubric.gate"] = changed["gate"] is True
    if "advantage" in changed:
        fields["algorithm.advantage"] = changed["advantage"]
    if "kl_coef" in changed:
        fields["algorithm.kl_coef"] = _parse_number(changed["kl_coef"])
    for name in ("clip_low", "clip_high"):
        if name in changed:
            text = str(changed[name]).strip()
            fields[f"rubric.{name}"] = _parse_number(text) if text else None
    if (config.get("algorithm") or {}).get("advantage") == "value":
        fields.setdefault("algorithm.advantage", "group_std")
    return weights, fields


def _parse_number(text: Any) -> float:
    value = float(str(text).replace("\N{MINUS SIGN}", "-").replace(",", "."))
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


# ---- the answer ------------------------------------------------------------------------------


def of_group(answer: Answer, absent: str = "") -> str:
    """Every completion of the group, stored and recomputed.

    A flipped sign is also written as a word, because colour alone is not enough. absent: why there
    are no stored advantages.
    """
    rows = "".join(_completion(r, absent) for r in answer.rollouts)
    return (
        f'{_summary(answer, absent)}<div class="scroll" tabindex="0" role="region" '
        'aria-label="Stored and recomputed, by completion"><table class="why"><thead><tr>'
        '<th scope="col"><span class="sr">completion</span></th><th scope="col">reward</th>'
        '<th scope="col">then</th><th scope="col">A stored</th><th scope="col">A then</th>'
        '<th scope="col"><span class="sr">change</span></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _completion(r: Changed, absent: str) -> str:
    stored, then = (
        f'<td class="{_side(value)}"><b>{signed(value, 3)}</b></td>'
        for value in (r.advantage, r.advantage_then)
    )
    if absent:
        stored = f"<td>{empty_place(absent)}</td>"
    return (
        f'<tr{" class=flips" if r.flips else ""}><th scope="row">#{r.position + 1}</th>'
        f"<td>{_reward(r.reward)}</td><td>{_reward(r.reward_then)}</td>"
        f"{stored}{then}<td>{'' if absent else _change(r)}</td></tr>"
    )


def of_run(answer: Answer, absent: str = "") -> str:
    """The whole run: a summary, and the completions whose sign flips, largest change first."""
    if absent:
        return _summary(answer, absent)
    flipped = [r for r in answer.rollouts if r.flips]
    listed = sorted(flipped, key=lambda r: -abs(r.advantage_then - r.advantage))[:LISTED]
    if not listed:
        return _summary(answer)
    rows = "".join(
        f'<tr><td class="num">{r.step:,}</td><td><button type="button" class="link" '
        f'data-do="open" data-at="{r.step}/{r.group}">group {r.group + 1}, #{r.position + 1}'
        f'</button></td><td class="num">{signed(r.advantage, 3)}</td>'
        f'<td class="num">{signed(r.advantage_then, 3)}</td></tr>'
        for r in listed
    )
    return (
        f'{_summary(answer)}<h2>Turned the furthest</h2><div class="scroll"><table class="list">'
        '<thead><tr><th scope="col" class="num">Step</th><th scope="col">Completion</th>'
        '<th scope="col" class="num">A stored</th><th scope="col" class="num">A then</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def kl_of_group(pull: Pull | None) -> str:
    """What another KL coefficient changes in one group."""
    if pull is None:
        return _note(
            "No tokens of this group were recorded, so the coefficient’s effect on its loss "
            "cannot be computed."
        )
    if not pull.measured:
        return _note(
            "KL was not measured on this group’s completions, so its effect cannot be computed."
        )
    share = "<span>KL alone would have pushed</span>"
    if math.isfinite(pull.share):
        share = f"<span>KL’s pull is <b>{percent(pull.share)}</b> of the advantages’ push</span>"
    part = ""
    if pull.measured != pull.size:
        part = f" KL was measured on {pull.measured} of its {pull.size} completions."
    return (
        f'<p class="calc"><span>KL coefficient <b>{plain(pull.coef)}</b> → '
        f"<b>{plain(pull.coef_then)}</b></span><span>this group’s part of the loss "
        f"<b>{short(pull.loss)}</b> → <b>{short(pull.loss_then)}</b></span>{share}"
        f"<span><b>{pull.turned:,}</b> of {pull.num_tokens:,} tokens would have been pushed "
        f'the other way</span></p><p class="note">{_KL_STAYS}{part}</p>'
    )


def kl_of_run(steps: Sequence[Mapping[str, Any]], coef: float) -> str:
    """The mean KL term over the run, with the run's coefficients and with `coef`.

    Both use the measured KL.
    """
    known = [
        (row["kl"], row["kl_coef"])
        for row in steps
        if is_number(row.get("kl")) and is_number(row.get("kl_coef"))
    ]
    if not known:
        return f'<p class="note">{_KL_STAYS}</p>'
    now = sum([kl * own_coef for kl, own_coef in known]) / len(known)
    then = sum([kl * coef for kl, _ in known]) / len(known)
    return (
        f'<p class="calc"><span>coefficient × KL, mean over {count(len(known), "step")} '
        f"<b>{short(now)}</b> → <b>{short(then)}</b></span></p>"
        f'<p class="note">{_KL_STAYS}</p>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{text} {_KL_STAYS}</p>'


def _summary(answer: Answer, absent: str = "") -> str:
    if absent:
        return f'<p class="note">{esc(absent)} So nothing can have turned round.</p>'
    groups = f", over {count(answer.num_groups, 'group')}" if answer.num_groups != 1 else ""
    if answer.num_groups > 1:
        tied, tied_then = percent(answer.tied), percent(answer.tied_then)
        learned = f"<span>tied groups <b>{tied}</b> → <b>{tied_then}</b></span>"
    else:
        now = "nothing" if answer.tied else "something"
        then = "nothing" if answer.tied_then else "something"
        learned = f"<span>teaches <b>{now}</b> → <b>{then}</b></span>"
    return (
        f'<p class="calc"><span><b>{answer.flips:,}</b> of {len(answer.rollouts):,} completions '
        f"would have been pushed the other way{groups}</span>{learned}"
        f"<span>largest change of A <b>{format_number(answer.largest_change, 3)}</b></span></p>"
    )


def _change(r: Changed) -> str:
    if r.flips:
        return '<span class="verdict warn">flips</span>'
    if r.advantage == r.advantage_then:
        return ""
    if not r.advantage_then:
        return "no longer pushed"
    return "now pushed" if not r.advantage else ""


def _reward(value: float | None) -> str:
    return format_number(value, 3) if is_number(value) else "null"


def _side(value: float) -> str:
    if abs(value) < 5e-7:
        return "zero"
    return "up" if value > 0 else "down"
