"""The right side of Inspect: one group opened, its arithmetic, and six ways to look into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gradio as gr

from grpo_core.analysis import token_loss
from grpo_core.analysis import what_if as whatif
from grpo_core.config import RunConfig, flatten, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.store import GroupRow, RunRow
from ui.components import form
from ui.components.html_panel import QUIET, html_panel, one_of, script
from ui.render import arithmetic, cards, history, status, tokens
from ui.render.recorded_config import criteria_of
from ui.render.text import esc
from ui.server import group_ref as place
from ui.server.views import Views
from ui.tabs import what_if as what
from ui.tabs.setup import Setup
from ui.tabs.train import SKIP, Frame, parse_tokens, token

LOOKS = [
    ("Completions", "cards"),
    ("Best and worst", "ends"),
    ("Tokens", "tokens"),
    ("What if", "whatif"),
    ("Through time", "time"),
    ("Two runs", "runs"),
]


@dataclass(frozen=True)
class Opened:
    opened: gr.Textbox  # the place of the opened group, "37/2"; empty: the first of the table
    inputs: list[Any]
    outputs: list[Any]
    show: ShowOpened
    wire: Callable[[Any, Any], None]  # (then_show, show_on) -> None, once the whole tab is there


def build_opened(frame: Frame, views: Views, setup: Setup, tabs: gr.Tabs, at: gr.Textbox) -> Opened:
    """Lay the side out. Must be called inside gr.Blocks. `at`: what is shown now, as the list says."""
    with gr.Column(elem_id="opened", elem_classes="card-box stack", min_width=0, scale=1):
        head = html_panel(
            events=("walk", "order"), script=script("group.js"), elem_id="opened-group"
        )
        look = gr.Radio(
            LOOKS,
            value="cards",
            label="Look at",
            show_label=False,
            elem_id="look",
            interactive=True,
        )
        controls = html_panel(
            events=("say", "use", "reset"), script=script("controls.js"), elem_id="look-controls"
        )
        body = html_panel(events=("open",), script=script("tokens.js"), elem_id="look-body")
    opened, order, said, seen = (
        gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-inspect-{n}")
        for n, v in (("opened", ""), ("order", "best"), ("said", "{}"), ("looked", "{}"))
    )
    inputs, outputs = [look, order, said, seen], [head, controls, body, seen]

    def use(run_id: Any, now: Any) -> list[Any]:
        return use_in_new_run(views, run_id, now)

    def wire(then_show: Any, show_on: Any) -> None:
        then_show(
            head.walk(
                None, [opened, at], opened, js="(opened, at) => studioWalk(opened || at)", **QUIET
            )
        )
        then_show(head.order(None, None, order, js="() => studioPressed.order", **QUIET))
        show_on(look.input)
        then_show(
            controls.say(
                None,
                [said, look],
                said,
                js="(said, look) => studioLook(said, look, 'look-controls')",
                **QUIET,
            )
        )
        then_show(
            controls.reset(
                None,
                [said, look],
                [said, seen],
                js="(said, look) => [studioLook(said, look), '{}']",
                **QUIET,
            )
        )
        then_show(body.open(None, None, opened, js="() => studioPressed.at", **QUIET))
        controls.use(
            use, [frame.run, said], [*setup.values, tabs, frame.tab, frame.notice], **QUIET
        )

    return Opened(opened, inputs, outputs, ShowOpened(views), wire)


# ---- what a person does ----------------------------------------------------------------------------------------------


def use_in_new_run(views: Views, run_id: Any, said: Any) -> list[Any]:
    """The run's settings with what was tried here, in the form of the Train tab."""
    run, nothing = views.run(run_id), [SKIP] * (len(form.NAMES) + 2)
    if run is None:
        return [*nothing, SKIP]
    try:
        weights, fields = what.changes(
            run.config, what.read(run.config, parse_tokens(said).get("whatif"))
        )
        flat = flatten(whatif.settings(run.config, weights, **fields))
    except (InvalidConfig, ValueError) as error:
        return [*nothing, status.banner("These settings cannot be used.", str(error))]
    flat["rubric.name"] = form.rubric_name([form.row_of(c) for c in flat[form.CRITERIA]])
    said_so = status.banner(
        f"The form has the settings of “{run.name}”, with what you tried.",
        "Look them over and press Start training.",
        tone="good",
    )
    return [
        *(form.shown(n, flat[n]) for n in form.NAMES),
        gr.update(selected="train"),
        "train",
        said_so,
    ]


# ---- what is shown ---------------------------------------------------------------------------------------------------


class ShowOpened:
    """Fills what is out of date. Everything asked for is worked out from rows, and kept by what it depends on."""

    def __init__(self, views: Views):
        self.views = views
        self._answer = lru_cache(maxsize=16)(self._ask)
        self._checked = lru_cache(maxsize=64)(self._check)

    def __call__(
        self,
        run: RunRow | None,
        at: place.GroupRef | None,
        look: Any,
        order: Any,
        said: Any,
        seen: Any,
    ) -> list[Any]:
        was, look = parse_tokens(seen), one_of(look, [key for _, key in LOOKS], "cards")
        order = "sampled" if order == "sampled" else "best"
        mine = parse_tokens(said).get(look)
        place_now = [run and run.id, at]
        tokens_now = {
            "head": token([*place_now, order]),
            "controls": token([*place_now, look]),
            "body": token([*place_now, look, order, mine]),
        }
        new = {key for key in tokens_now if tokens_now[key] != was.get(key)}
        if not new:
            return [SKIP] * 4
        group = self._group(run, at)
        if run is None or group is None:
            return [self._nothing(run, at), "", "", json.dumps(tokens_now)]
        return [
            self._head(run, group, order) if "head" in new else SKIP,
            self._controls(run, group, look, mine) if "controls" in new else SKIP,
            self._body(run, group, look, order, mine) if "body" in new else SKIP,
            json.dumps(tokens_now),
        ]

    def _nothing(self, run: RunRow | None, at: place.GroupRef | None) -> str:
        if run is None or at is None:
            return status.empty(
                "A group opens here",
                "Its prompt, the arithmetic of its advantages, and every completion.",
            )
        return status.empty(
            f"Step {at[0]:,} has no group {at[1] + 1}.", "Choose a row of the table."
        )

    def _group(self, run: RunRow | None, at: place.GroupRef | None) -> GroupRow | None:
        ids = self.views.store.group_ids(run.id, at[0]) if run and at else []
        return self.views.store.group(ids[at[1]]) if at and at[1] < len(ids) else None

    def _head(self, run: RunRow, group: GroupRow, order: str) -> str:
        step = self.views.store.scored(run.id, group.step, group.step)
        shares = token_loss.share_of_gradient(
            [(r[9] or 0.0, r[11], r[12]) for r in step], run.config
        )
        mine = {r[5]: share for r, share in zip(step, shares, strict=True)}
        rollouts, places = cards.in_order(group.rollouts, order), len({r[1] for r in step})
        return (
            cards.group_head(group, places, order)
            + self._checked(run.id, group.id)
            + arithmetic.why_table(group, rollouts, run.config, mine)
        )

    def _check(self, run_id: str, group_id: int) -> str:
        """An error where the stored numbers are not what the run's own settings give."""
        run = self.views.run(run_id)
        try:
            answer = whatif.what_if(self.views.store, run_id, whatif.settings(run.config), group_id)
        except (InvalidConfig, StudioError):
            return ""  # a critic, or a configuration of another version: nothing can be worked out again, and the formula says so
        return mismatch(answer)

    def _controls(self, run: RunRow, group: GroupRow, look: str, mine: Any) -> str:
        if look == "whatif":
            return what.controls(run.config, what.read(run.config, mine))
        if look == "tokens":
            return tokens.controls(group, *tokens.read(mine, len(group.rollouts)))
        if look == "runs":
            return history.choose_run(*self._others(run, group, mine))
        return ""

    def _body(self, run: RunRow, group: GroupRow, look: str, order: str, mine: Any) -> str:
        if look == "ends":
            return history.best_and_worst(group)
        if look == "tokens":
            return self._tokens(run, group, mine)
        if look == "whatif":
            return self._what_if(run, group, mine)
        if look == "time":
            outcome = next(
                (c["name"] for c in criteria_of(run.config) if c.get("outcome")), None
            )
            return history.through_time(
                self.views.store.visits(run.id, group.prompt_id), group, outcome
            )
        if look == "runs":
            others, chosen = self._others(run, group, mine)
            other = self.views.run(chosen) if others else None
            return (
                history.two_runs(
                    self.views.label(run),
                    group,
                    other,
                    history.nearest(self.views.store.visits(other.id, group.prompt_id), group.step),
                )
                if other
                else ""
            )
        return cards.card_grid(group, cards.in_order(group.rollouts, order), run.config)

    def _others(
        self, run: RunRow, group: GroupRow, mine: Any
    ) -> tuple[list[tuple[str, str]], str | None]:
        met = set(self.views.store.runs_with_prompt(group.prompt_id)) - {run.id}
        others = [(label, run_id) for label, run_id in self.views.choices() if run_id in met]
        wanted = mine.get("other") if isinstance(mine, Mapping) else None
        return others, wanted if isinstance(wanted, str) and wanted in met else others[0][
            1
        ] if others else None

    def _tokens(self, run: RunRow, group: GroupRow, mine: Any) -> str:
        chosen, by = tokens.read(mine, len(group.rollouts))
        rollout = group.rollouts[chosen]
        row = self.views.store.token_row(rollout.id)
        try:
            context = token_loss.loss_context(
                self.views.store, run.id, group.step, parse(run.config)
            )
            terms = (
                token_loss.token_terms(
                    row, rollout.advantage or 0.0, rollout.finish_reason, context
                )
                if row
                else None
            )
        except InvalidConfig:
            terms = None
        return tokens.token_view(row, terms, by)

    def _what_if(self, run: RunRow, group: GroupRow, mine: Any) -> str:
        asked = what.read(run.config, mine)
        whole = asked.get("run") is True
        try:
            weights, fields = what.changes(run.config, asked)
            config = whatif.settings(run.config, weights, **fields)
        except (InvalidConfig, ValueError) as error:
            return f'<p class="problem" role="alert">{esc(error)}</p>'
        answer = self._answer(
            run.id,
            None if whole else group.id,
            self.views.curves_key(run) if whole else (),
            config.model_dump_json(),
        )
        if "kl_coef" not in asked:
            return what.of_run(answer) if whole else what.of_group(answer)
        if whole:
            return what.kl_of_run(
                self.views.curves(run).steps, config.algorithm.kl_coef
            ) + what.of_run(answer)
        return what.kl_of_group(
            whatif.kl_pull(
                self.views.store, run.id, group.id, parse(run.config), config.algorithm.kl_coef
            )
        ) + what.of_group(answer)

    def _ask(
        self, run_id: str, group_id: int | None, key: tuple[Any, ...], config: str
    ) -> whatif.Answer:
        return whatif.what_if(
            self.views.store, run_id, RunConfig.model_validate_json(config), group_id
        )


def mismatch(answer: whatif.Answer) -> str:
    """Stored numbers that are not what the settings give: shown, never hidden."""
    wrong = [
        r
        for r in answer.rollouts
        if abs(r.advantage - r.advantage_then) > whatif.TOLERANCE
        or (r.reward is None) != (r.reward_then is None)
        or (
            r.reward is not None
            and r.reward_then is not None
            and abs(r.reward - r.reward_then) > whatif.TOLERANCE
        )
    ]
    if not wrong:
        return ""
    said = "; ".join(
        f"#{r.position + 1}: stored reward {r.reward!r}, A {r.advantage:+.6f}, recomputed {r.reward_then!r}, {r.advantage_then:+.6f}"
        for r in wrong[:4]
    )
    return status.banner(
        f"{len(wrong)} of {len(answer.rollouts)} completions do not have the advantage that the run's settings give.",
        f"{said}. The stored numbers are shown; they are what the policy was trained on.",
    )
