"""Inspect, “Compare” and “Rank the group”: people judge answers; run and rewards stay hidden.

Every judgement is stored at once. The next pair depends on who judges and on the store, so a reload
shows the same pair again, and two people do not disturb each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from secrets import token_hex
from typing import Any

import gradio as gr

from grpo_core.errors import NotFound, StudioError
from grpo_core.preferences.agreement import summary
from grpo_core.preferences.pairs import (
    Asker,
    Pair,
    Ranking,
    key_of,
    next_pair,
    next_ranking,
    pair_of,
)
from grpo_core.store import GroupRow, preferences
from grpo_core.store.preferences import VERDICTS, Preference
from ui.components.html_panel import QUIET, data_of, html_panel, one_of, script
from ui.render import pairs as render
from ui.render import status
from ui.server import pair_ref
from ui.server.calls import slow
from ui.server.quick_scorer import QuickScorer
from ui.server.refresh import SKIP
from ui.server.views import Views
from ui.tabs.frame import Frame, Tab, components_of, hidden_values, parse_list, parse_tokens, token
from ui.tabs.pair_files import build_files, wire_files

MODES = [("Explore", "explore"), ("Compare", "compare"), ("Rank the group", "rank")]
MAX_NAME = 80  # characters of a person's name
MAX_SECONDS = 24 * 3600.0
MAX_UNDO = 200  # judgements that a browser can take back
NOT_STORED = "Nothing was stored."


@dataclass(frozen=True, slots=True)
class PairInputs:
    """What a pair depends on: components on the page, in a request their values."""

    tab: Any
    run: Any
    mode: Any
    who: Any
    everywhere: Any
    seed: Any
    shown: Any  # JSON: the pair or the ranking in view
    made: Any  # JSON: lists of ids that this browser can take back, the last one first to go
    seen: Any


@dataclass(frozen=True, slots=True)
class Pairs(Tab):
    """The part of Inspect in which people judge. restore: arguments of the page's load event."""

    restore: Mapping[str, Any]


def build_mode() -> gr.Radio:
    """What Inspect shows: groups with their rewards, or answers to judge without them."""
    return gr.Radio(
        MODES,
        value="explore",
        label="Inspect by",
        show_label=False,
        elem_id="inspect-mode",
        interactive=True,
    )


def build_pairs(frame: Frame, views: Views, mode: gr.Radio, scorer: QuickScorer) -> Pairs:
    """Build this part and connect its events. Call it inside gr.Blocks.

    scorer: of the newest reward model; the pair comes of which the model is least sure.
    """
    with gr.Column(elem_id="pairs", elem_classes="card-box stack", min_width=0):
        with gr.Row(elem_id="pair-tools"):
            who = gr.Textbox(
                label="Your name",
                placeholder="optional",
                max_lines=1,
                max_length=MAX_NAME,
                elem_id="pair-who",
                interactive=True,
            )
            everywhere = gr.Checkbox(
                False, label="All runs", elem_id="pair-all", interactive=True, min_width=0
            )
            counts = html_panel(elem_id="pair-counts")
        panel = html_panel(
            events=("verdict", "undo", "rank"), script=script("pairs.js"), elem_id="pair-panel"
        )
        files = build_files()
        shown, made, seed, seen = hidden_values(
            "state-pairs-", shown="{}", made="[]", seed="", seen="{}"
        )
    inputs = PairInputs(frame.tab, frame.run, mode, who, everywhere, seed, shown, made, seen)
    given = components_of(inputs)
    outputs = [panel, counts, shown, made, seen]
    show = ShowPairs(views, scorer)
    refresh = frame.refresh.events("pairs", slow(show), given, outputs)
    judging = "(...given) => given[2] === 'explore' ? [] : ({})(...given)"  # the mode
    refresh = replace(
        refresh, js=judging.format(refresh.js), change_js=judging.format(refresh.change_js)
    )
    for event in (mode.change, everywhere.change, who.blur, who.submit, seed.change):
        refresh.on(event)
    refresh.on_change(frame.run.change)
    answered = [*outputs, frame.notice]
    failed = json.dumps(status.banner(NOT_STORED, "The server did not answer. Press again."))
    for event, act in (
        (panel.verdict, show.judge),
        (panel.rank, show.judge),
        (panel.undo, show.undo),
    ):
        done = event(act, given, answered, **QUIET)
        done.failure(None, None, frame.notice, js=f"() => {failed}", **QUIET)
    wire_files(files, frame, views, who, refresh)
    keep = "(who, mode, seed, made) => studioKeepPairs(who, mode, seed, made)"
    kept = [who, mode, seed, made]
    gr.on([c.change for c in kept], None, kept, None, js=keep, **QUIET)
    restore = {"fn": None, "inputs": None, "outputs": kept, "js": "() => studioRestorePairs()"}
    return Pairs(given, outputs, show, restore)


# ---- what a person does, and what is shown -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request says, checked."""

    mode: str
    asker: Asker
    shown: Mapping[str, Any]
    made: list[list[int]]

    @property
    def question(self) -> str:
        """Differs when another pair is wanted."""
        a = self.asker
        return token([self.mode, a.who, a.run_id, a.seed])


class ShowPairs:
    """Fills this part of the page, stores judgements, and takes them back."""

    def __init__(self, views: Views, scorer: QuickScorer | None = None):
        self.views, self.store, self.scorer = views, views.store, scorer
        self._read = lru_cache(maxsize=2)(lambda token: preferences.read(views.store))

    def __call__(self, *values: Any) -> list[Any]:
        """A new pair only when the question changed; the counts whenever somebody judged."""
        given, asked = self._asked(values)
        if asked is None:
            return [SKIP] * 5
        was, seen = parse_tokens(given.seen), self._seen(asked)
        if was == seen:
            return [SKIP] * 5
        if was.get("question") == seen["question"]:
            return [SKIP, self._counts(asked), SKIP, SKIP, json.dumps(seen)]
        return self._next(asked)

    def judge(self, event: gr.EventData, *values: Any) -> list[Any]:
        """Store a verdict or a ranking about what was shown, and show the next."""
        _, asked = self._asked(values)
        if asked is None:
            return [SKIP] * 6
        data = data_of(event)
        rows = self._judged(asked, data)
        if not rows:
            return [*self._next(asked, "It is gone: its run was deleted."), ""]
        mine = [key_of(row) for row in self._mine(asked)]
        if mine.count(key_of(rows[0])) > _whole(asked.shown.get("times"), len(mine)):
            return [*self._next(asked, "It was judged already under this name."), ""]
        try:
            ids = preferences.add(self.store, rows)
        except StudioError as error:
            return [*[SKIP] * 5, status.banner(NOT_STORED, str(error))]
        asked.made.append(ids)
        said = "Ranking stored." if rows[0].ranking else f"Stored: {rows[0].verdict}."
        return [*self._next(asked, said), ""]

    def undo(self, *values: Any) -> list[Any]:
        """Take back what this browser stored last, and show it again."""
        _, asked = self._asked(values)
        if asked is None:
            return [SKIP] * 6
        rows = self._rows()
        while asked.made:
            ids = asked.made.pop()
            undone = [row for row in rows if row.id in ids and row.who == asked.asker.who]
            if not undone:  # deleted meanwhile
                continue
            try:
                preferences.remove(self.store, [row.id for row in undone])
            except StudioError as error:
                return [*[SKIP] * 5, status.banner("Nothing was taken back.", str(error))]
            return [*self._again(asked, undone[0]), ""]
        return [*self._next(asked, "There is nothing to take back."), ""]

    # ---- reading ----

    def _asked(self, values: Sequence[Any]) -> tuple[PairInputs, _Asked | None]:
        """What a browser sent, and what it means; None where nothing is to be judged."""
        given = PairInputs(*values)
        mode = one_of(given.mode, [key for _, key in MODES], "explore")
        run = self.views.run(given.run)
        everywhere = given.everywhere is True
        if given.tab != "inspect" or mode == "explore" or (run is None and not everywhere):
            return given, None
        who = str(given.who or "").strip()[:MAX_NAME]
        seed = int(given.seed) if str(given.seed).isdecimal() and len(given.seed) < 12 else 0
        asker = Asker(who, None if everywhere or run is None else run.id, seed)
        return given, _Asked(mode, asker, parse_tokens(given.shown), _read_made(given.made))

    def _rows(self) -> list[Preference]:
        return self._read(preferences.token(self.store))

    def _mine(self, asked: _Asked) -> list[Preference]:
        return [row for row in self._rows() if row.who == asked.asker.who]

    def _judged(self, asked: _Asked, data: Mapping[str, Any]) -> list[Preference]:
        """The judgements of a press; empty if what it is about is gone."""
        seconds, verdict = _seconds(data.get("seconds")), data.get("verdict")
        skipped = verdict == "skip"
        who = asked.asker.who
        if "order" not in asked.shown:
            pair = pair_ref.pair_at(self.store, self._rows(), asked.shown)
            verdict = one_of(verdict, VERDICTS, "")
            return [pair.judged(verdict, who, "page", seconds)] if pair and verdict else []
        found = pair_ref.ranking_at(self.store, asked.shown)
        if found is None:
            return []
        group, texts = found
        order = list(range(len(texts))) if skipped else _order(data.get("order"), len(texts))
        ranked = Ranking(token_hex(8), group, [texts[i] for i in order], skipped)
        return ranked.judged(who, seconds) if order else []

    # ---- showing ----

    def _seen(self, asked: _Asked) -> dict[str, str]:
        counted = token([asked.asker.who, preferences.token(self.store)])
        return {"question": asked.question, "counts": counted}

    def _counts(self, asked: _Asked) -> str:
        return render.counts(summary(self._rows(), asked.asker.who))

    def _outputs(self, asked: _Asked, html: str, shown: str) -> list[Any]:
        made = json.dumps(asked.made[-MAX_UNDO:])
        return [html, self._counts(asked), shown, made, json.dumps(self._seen(asked))]

    def _next(self, asked: _Asked, said: str = "") -> list[Any]:
        if asked.mode == "rank":
            found = next_ranking(self.store, self._rows(), asked.asker)
            if found is not None:
                return self._ranking(asked, *found, said)
        else:
            asker = replace(asked.asker, scorer=self.scorer and self.scorer.now())
            pair = next_pair(self.store, self._rows(), asker)
            if pair is not None:
                return self._pair(asked, pair, said)
        everywhere = asked.asker.run_id is None
        return self._outputs(asked, render.no_pair(everywhere, said), "{}")

    def _again(self, asked: _Asked, row: Preference) -> list[Any]:
        """The pair that was just taken back, unless its group is gone.

        The order of a ranking follows from the same seed and the same store.
        """
        if row.ranking is None and asked.mode == "compare" and row.group_id is not None:
            with suppress(NotFound, ValueError):
                return self._pair(asked, replace(pair_of(row), row_id=None), "Taken back.")
        return self._next(asked, "Taken back.")

    def _pair(self, asked: _Asked, pair: Pair, said: str) -> list[Any]:
        mine = self._mine(asked)
        shown = pair_ref.of_pair(self.store, pair, mine)
        answers = pair_ref.answers_of(self.store, pair)
        number = len({row.ranking or row.id for row in mine}) + 1
        html = render.pair_view(pair.prompt, answers, number, said)
        return self._outputs(asked, html, shown)

    def _ranking(self, asked: _Asked, group: GroupRow, texts: list[str], said: str) -> list[Any]:
        answers = [pair_ref.in_turns(group, text) for text in texts]
        html = render.ranking_view(group.prompt, answers, said)
        return self._outputs(asked, html, pair_ref.of_ranking(group, texts))


def _read_made(text: Any) -> list[list[int]]:
    """Lists of ids; empty for anything else that a browser may send."""
    made = parse_list(text)
    is_ids = all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in made)
    return made[-MAX_UNDO:] if is_ids else []


def _order(text: Any, num: int) -> list[int]:
    """ "2,0,1": each place once; empty for anything else."""
    try:
        order = [int(part) for part in str(text).split(",")]
    except ValueError:
        return []
    return order if sorted(order) == list(range(num)) else []


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return min(max(0.0, seconds), MAX_SECONDS) if math.isfinite(seconds) else None


def _whole(value: Any, otherwise: int) -> int:
    return value if type(value) is int else otherwise
