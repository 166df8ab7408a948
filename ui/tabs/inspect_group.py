"""The right side of Inspect: one group, its arithmetic, and six views of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gradio as gr

from grpo_core.analysis import token_loss
from grpo_core.analysis import what_if as analysis
from grpo_core.analysis.provenance import is_absent, why_missing
from grpo_core.analysis.update_effect import update_effects
from grpo_core.config import RunConfig, flatten, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.rubric.verdict import DISAGREES
from grpo_core.store import GroupRow, RunRow
from grpo_core.types import GroupKind
from ui.components import form
from ui.components.html_panel import QUIET, html_panel, one_of, script
from ui.render import (
    arithmetic,
    cards,
    disagreement,
    history,
    learn_walk,
    provenance,
    status,
    tokens,
    update_effect,
)
from ui.render.place import Place
from ui.render.recorded_config import Config, shown_config
from ui.render.text import esc
from ui.server.refresh import RefreshEvents
from ui.server.views import Views
from ui.tabs import what_if
from ui.tabs.frame import SKIP, hidden_values, parse_tokens, token
from ui.tabs.inspect_prompts import VIEWS as PROMPT_VIEWS
from ui.tabs.inspect_prompts import PromptView, prompts_of
from ui.tabs.start_from import fill

VIEWS = [
    ("Completions", "cards"),
    ("Best and worst", "ends"),
    ("Tokens", "tokens"),
    ("What if", "whatif"),
    ("Through time", "time"),
    ("Two runs", "runs"),
]
LISTED_MISMATCHES = 4


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """The inputs of this side: components on the page, in a request their values."""

    view: Any
    order: Any
    options: Any  # JSON: view -> what its controls say
    seen: Any


@dataclass(frozen=True, slots=True)
class GroupSide:
    """The components of this side."""

    head: gr.HTML
    controls: gr.HTML
    body: gr.HTML
    opened: gr.Textbox  # hidden: the open group, "37/2"; empty: that of the table's first row
    inputs: GroupInputs


def build_group() -> GroupSide:
    """Build this side. Call it inside gr.Blocks."""
    with gr.Column(elem_id="opened", elem_classes="card-box stack", min_width=0, scale=1):
        head = html_panel(
            events=("walk", "order"), script=script("group.js"), elem_id="opened-group"
        )
        view = gr.Radio(
            VIEWS,
            value="cards",
            label="Look at",
            show_label=False,
            elem_id="look",
            interactive=True,
        )
        controls = html_panel(
            events=("edit", "use", "reset"), script=script("controls.js"), elem_id="look-controls"
        )
        body = html_panel(events=("open",), script=script("tokens.js"), elem_id="look-body")
    opened, order, options, seen = hidden_values(
        "state-inspect-", opened="", order="best", said="{}", looked="{}"
    )
    return GroupSide(head, controls, body, opened, GroupInputs(view, order, options, seen))


def wire_group(side: GroupSide, at: gr.Textbox, refresh: RefreshEvents) -> None:
    """Connect the events of this side. at: the group that is shown now."""
    opened, view, options = side.opened, side.inputs.view, side.inputs.options
    walk = "(opened, at) => studioWalk(opened || at)"
    refresh.after(side.head.walk(None, [opened, at], opened, js=walk, **QUIET))
    order = "() => studioPressed.order"
    refresh.after(side.head.order(None, None, side.inputs.order, js=order, **QUIET))
    refresh.on(view.input)
    edit = "(options, view) => studioOptions(options, view, 'look-controls')"
    refresh.after(side.controls.edit(None, [options, view], options, js=edit, **QUIET))
    reset = "(options, view) => [studioOptions(options, view), '{}']"
    both = [options, side.inputs.seen]
    refresh.after(side.controls.reset(None, [options, view], both, js=reset, **QUIET))
    refresh.after(side.body.open(None, None, opened, js="() => studioPressed.at", **QUIET))


# ---- what a person does ----------------------------------------------------------------------


def use_in_new_run(views: Views, run_id: Any, options: Any) -> list[Any]:
    """The run's settings with the changes of “What if”, for the form of the Train tab.

    Returns the values of Setup.filled, the tabs, the name of the tab, and the notice.
    """
    run, unchanged = views.run(run_id), [SKIP] * (len(form.NAMES) + 3)
    if run is None:
        return [*unchanged, SKIP]
    try:
        changed = what_if.read(run.config, parse_tokens(options).get("whatif"))
        weights, fields = what_if.changes(run.config, changed)
        flat = flatten(analysis.settings(run.config, weights, **fields))
    except (InvalidConfig, ValueError) as error:
        return [*unchanged, status.banner("These settings cannot be used.", str(error))]
    notice = status.banner(
        f"The set-up has the settings of “{run.name}”, with your changes.",
        "Check them and press Start training.",
        tone="good",
    )
    return [*fill(flat), gr.update(selected="train"), "train", notice]


# ---- what is shown ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """The group that is shown, and how."""

    run: RunRow
    group: GroupRow
    view: str
    order: str
    options: Any  # what the controls of the view say, unchecked

    @property
    def config(self) -> Config:
        """Of the run, for what draws its groups."""
        return shown_config(self.run)


class ShowGroup:
    """Fills every output that is out of date, as ShowTrain does. Everything is read from rows."""

    def __init__(self, views: Views):
        self.views = views
        self._cached_answer = lru_cache(maxsize=16)(self._answer)
        self._cached_check = lru_cache(maxsize=64)(self._check)

    def __call__(self, run: RunRow | None, ref: Place | None, given: GroupInputs) -> list[Any]:
        was = parse_tokens(given.seen)
        view = one_of(given.view, [key for _, key in VIEWS], "cards")
        order = one_of(given.order, ("best", "sampled"), "best")
        options = parse_tokens(given.options).get(view)
        edited = self.views.store.edited(run.id, ref[0]) if run and ref else None
        which = [run and run.id, ref, edited]
        now = {
            "head": token([*which, order]),
            "controls": token([*which, view, prompts_of(self.views, run, view)]),
            "body": token([*which, view, order, options, self._rest(run, view, options)]),
        }
        new = {key for key in now if now[key] != was.get(key)}
        if not new:
            return [SKIP] * 4
        group = self._group(run, ref)
        if run is None or group is None:
            return [_no_group(run, ref), "", "", json.dumps(now)]
        shown = _Shown(run, group, view, order, options)
        return [
            self._head(shown) if "head" in new else SKIP,
            self._controls(shown) if "controls" in new else SKIP,
            self._body(shown) if "body" in new else SKIP,
            json.dumps(now),
        ]

    def _rest(self, run: RunRow | None, view: str, options: Any) -> Any:
        """A key of what a view shows beyond the open group: it changes when that changes."""
        whole_run = isinstance(options, Mapping) and options.get("run") is True
        if run is not None and (view in PROMPT_VIEWS or (view == "whatif" and whole_run)):
            return self.views.curves_key(run)
        return None

    def _group(self, run: RunRow | None, ref: Place | None) -> GroupRow | None:
        if run is None or ref is None:
            return None
        ids = self.views.store.group_ids(run.id, ref.step, ref.kind)
        return self.views.store.group(ids[ref.position]) if ref.position < len(ids) else None

    def _head(self, shown: _Shown) -> str:
        run, group = shown.run, shown.group
        rollouts = cards.in_order(group.rollouts, shown.order)
        if group.kind == GroupKind.EVALUATION:
            num_groups = len(self.views.store.group_ids(run.id, group.step, group.kind))
            head = cards.group_head(group, num_groups, shown.order)
            head += provenance.of_config(shown.config)
            return head + arithmetic.why_table(group, rollouts, shown.config)
        step = self.views.store.scored(run.id, group.step, group.step)
        weights = [(r.advantage or 0.0, r.num_tokens, r.finish_reason) for r in step]
        shares = token_loss.share_of_gradient(weights, run.config)
        by_rollout = {r.rollout_id: share for r, share in zip(step, shares, strict=True)}
        if is_absent(run.source, "advantage"):
            by_rollout = None  # no advantages, no gradient
        num_groups = len({r.group_id for r in step})
        return (
            cards.group_head(group, num_groups, shown.order)
            + provenance.of_config(shown.config)
            + self._cached_check(run.id, group.id, group.verdict)
            + arithmetic.why_table(group, rollouts, shown.config, by_rollout)
            + learn_walk.link(Place(group.step, group.position))
        )

    def _check(self, run_id: str, group_id: int, verdict: str) -> str:
        """A banner where the stored numbers are not those that the run's settings give."""
        run = self.views.run(run_id)
        if run is None or (run.source is not None and verdict != DISAGREES):
            return ""  # what another trainer recorded was compared when it was imported
        try:
            config = analysis.settings(run.config)
            answer = analysis.what_if(self.views.store, run_id, config, group_id)
            if run.source is not None:
                return disagreement.disagreement(answer, shown_config(run))
            return mismatch(answer)
        except (InvalidConfig, StudioError):
            # A critic, or a configuration of another version: nothing can be recomputed. The
            # formula on the page says so.
            return ""

    def _controls(self, shown: _Shown) -> str:
        config, group = shown.run.config, shown.group
        if shown.view == "whatif" and group.kind == GroupKind.TRAINING:
            return what_if.controls(config, what_if.read(config, shown.options))
        if shown.view == "tokens" and group.kind == GroupKind.TRAINING:
            return tokens.controls(group, *tokens.read(shown.options, len(group.rollouts)))
        if shown.view in PROMPT_VIEWS:
            return self._prompt_view(shown).controls()
        return ""

    def _body(self, shown: _Shown) -> str:
        group = shown.group
        if shown.view == "ends":
            return history.best_and_worst(group)
        if shown.view == "tokens":
            return self._tokens(shown)
        if shown.view == "whatif":
            return self._what_if(shown)
        if shown.view in PROMPT_VIEWS:
            return self._prompt_view(shown).body()
        return cards.card_grid(group, cards.in_order(group.rollouts, shown.order), shown.config)

    def _prompt_view(self, shown: _Shown) -> PromptView:
        return PromptView(self.views, shown.run, shown.group, shown.view, shown.options)

    def _tokens(self, shown: _Shown) -> str:
        run, group, store = shown.run, shown.group, self.views.store
        if group.kind == GroupKind.EVALUATION:
            return tokens.no_tokens(group)
        position, by = tokens.read(shown.options, len(group.rollouts))
        rollout = group.rollouts[position]
        row, terms = store.token_row(rollout.id), None
        if row is None:
            return tokens.no_tokens(group, run.source)
        try:
            context = token_loss.loss_context(store, run.id, group.step, parse(run.config))
            # Without an advantage there is no gradient; 0 would be one.
            unknown = math.nan if run.source is not None else 0.0
            advantage = unknown if rollout.advantage is None else rollout.advantage
            terms = token_loss.token_terms(row, advantage, rollout.finish_reason or "", context)
        except InvalidConfig:  # a configuration of another version
            terms = None
        view = tokens.token_view(row, terms, by, rollout, run.source)
        if by == "change":
            rollouts = group.rollouts[: update_effect.MAX_ROWS]
            effects = update_effects(store, rollouts)
            view += update_effect.effect_table(rollouts, effects, position)
        return view

    def _what_if(self, shown: _Shown) -> str:
        run, group, views = shown.run, shown.group, self.views
        if group.kind == GroupKind.EVALUATION:
            return status.empty(
                "A held-out group has no advantages to change", "Open a group of a training step."
            )
        changed = what_if.read(run.config, shown.options)
        whole_run = changed.get("run") is True
        try:
            weights, fields = what_if.changes(run.config, changed)
            config = analysis.settings(run.config, weights, **fields)
        except (InvalidConfig, ValueError) as error:
            return f'<p class="problem" role="alert">{esc(error)}</p>'
        group_id = None if whole_run else group.id
        key = views.curves_key(run) if whole_run else ()
        answer = self._cached_answer(run.id, group_id, key, config.model_dump_json())
        why = why_missing(run.source, "advantage")
        html = (what_if.of_run if whole_run else what_if.of_group)(answer, why)
        if "kl_coef" not in changed:
            return html
        kl_coef = config.algorithm.kl_coef
        if whole_run:
            return what_if.kl_of_run(views.curves(run).steps, kl_coef) + html
        pull = analysis.kl_pull(views.store, run.id, group.id, parse(run.config), kl_coef)
        return what_if.kl_of_group(pull) + html

    def _answer(
        self, run_id: str, group_id: int | None, key: tuple[Any, ...], config: str
    ) -> analysis.Answer:
        """key: changes when the run's rows do, so that the cache is never out of date."""
        parsed = RunConfig.model_validate_json(config)
        return analysis.what_if(self.views.store, run_id, parsed, group_id)


def _no_group(run: RunRow | None, ref: Place | None) -> str:
    if run is None or ref is None:
        return status.empty(
            "A group opens here",
            "Its prompt, the arithmetic of its advantages, and every completion.",
        )
    has_none = f"has no group {ref.position + 1}."
    where = ref.when[0].upper() + ref.when[1:]
    return status.empty(f"{where} {has_none}", "Choose a row of the table.")


def mismatch(answer: analysis.Answer) -> str:
    """A banner with the stored numbers that differ from those that the settings give."""
    wrong = [
        r
        for r in answer.rollouts
        if abs(r.advantage - r.advantage_then) > analysis.TOLERANCE
        or _differs(r.reward, r.reward_then)
    ]
    if not wrong:
        return ""
    numbers = "; ".join(
        f"#{r.position + 1}: stored reward {r.reward!r}, A {r.advantage:+.6f}, "
        f"recomputed {r.reward_then!r}, {r.advantage_then:+.6f}"
        for r in wrong[:LISTED_MISMATCHES]
    )
    return status.banner(
        f"{len(wrong)} of {len(answer.rollouts)} completions do not have the advantage "
        "that the run's settings give.",
        f"{numbers}. The page shows the stored numbers; the policy was trained on them.",
    )


def _differs(stored: float | None, recomputed: float | None) -> bool:
    if stored is None or recomputed is None:
        return stored is not recomputed
    return abs(stored - recomputed) > analysis.TOLERANCE
