"""Completions of several turns as they are drawn: cards, tokens, curves, verdict, walk."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest
from acting_runs import REASON, action, call, called, failed, guessed, record_acting_run
from recorded import CONFIG, HOSTILE, group, record_run, rollout
from shown import Shown

from grpo_core.analysis.token_loss import loss_context, token_terms
from grpo_core.config import parse
from grpo_core.types import Turn, TurnRole
from ui.render import cards, charts, history, tokens, turns
from ui.tabs.inspect import FIRST, ShowInspect
from ui.tabs.learn_walk import ShowWalk
from ui.tabs.train_view import NUM_OUTPUTS, ShowTrain


def row(position: int, completion, reward: float, **more):
    return rollout(
        position,
        reward,
        reward - 0.5,
        completion.text,
        turns=completion.turns,
        num_tokens=completion.num_tokens,
        **more,
    )


def card(completion) -> str:
    return cards.card_grid(group([row(0, completion, 1.0)]), [row(0, completion, 1.0)], CONFIG)


# ---- cards -----------------------------------------------------------------------------------


def test_a_card_folds_a_trajectory_into_turns():
    shown = card(called())
    assert shown.count('<li class="action">') == 2
    assert shown.count('<li class="call">') == 1
    summary = Shown(re.search(r"<summary>(.*?)</summary>", shown, re.DOTALL)[1]).text
    assert summary == "calculate 34*57 → 1938"
    folded = re.search(r"</summary>(.*?)</details>", shown, re.DOTALL)[1]
    assert Shown(folded).text.split() == ["expression", "34*57answer", "1938took", "0.02", "s"]
    # 17 + 21 characters are its own tokens, <result>1938</result> has 21.
    assert f"2 turns · ended · {called().num_tokens} tok" in shown
    assert f"The policy wrote {called().num_tokens} tokens; it read 21." in shown


def test_an_error_is_shown_with_its_reason():
    shown = card(failed())
    assert 'class="call failed"' in shown
    summary = re.search(r"<summary>(.*?)</summary>", shown, re.DOTALL)[1]
    assert f"error: {REASON}" in Shown(summary).text
    assert "the policy read" in shown


def test_a_call_that_was_never_made_shows_no_seconds():
    unread = call("error", "x", 0, "the call cannot be read", tool="", seconds=0.0)
    shown = card(replace(called(), turns=(action("<tool>x"), unread)))
    assert "unreadable call" in shown
    assert "took" not in shown


def test_arguments_that_are_no_object_are_shown_as_written():
    written = replace(call("error", "", 0, "bad"), arguments="<tool>3 and " + "[" * 100_000)
    shown = card(replace(called(), turns=(action("x"), written)))
    assert "as written" in shown
    assert "&lt;tool&gt;3 and" in shown


def test_an_answer_without_room_says_that_it_was_not_read():
    unread = replace(call("1938", "34*57", 18), num_tokens=0)
    assert "No tokens were left" in card(replace(called(), turns=(action("x"), unread)))
    assert "No tokens were left" not in card(called())


def test_a_completion_without_a_call_looks_as_without_an_environment():
    plain = replace(guessed(), turns=())
    assert card(guessed()) == card(plain)
    assert "turns" not in card(guessed())


def test_equal_completions_share_a_card_and_a_range_of_seconds():
    slow = called()
    slow = replace(slow, turns=(slow.turns[0], replace(slow.turns[1], seconds=0.5), slow.turns[2]))
    rows = [row(0, called(), 1.0), row(1, slow, 1.0)]
    shown = cards.card_grid(group(rows), rows, CONFIG)
    assert shown.count("<article") == 1
    assert "×2" in shown
    assert '<span class="took">0.02–0.50 s</span>' in shown


def test_equal_texts_with_different_errors_have_their_own_cards():
    other = failed()
    late = replace(other.turns[1], error="it took longer than 5 s")
    rows = [
        row(0, failed(), 0.0),
        row(1, replace(other, turns=(other.turns[0], late, other.turns[2])), 0.0),
    ]
    assert cards.card_grid(group(rows), rows, CONFIG).count("<article") == 2


def test_differences_between_siblings_are_marked_in_every_turn():
    best, other = called("1938", "34*57"), called("1943", "34*58")
    rows = [row(0, best, 1.0), row(1, other, 0.0)]
    shown = cards.card_grid(group(rows), rows, CONFIG)
    assert re.findall(r"<mark>(.*?)</mark>", shown) == ["58", "1943", "1943", "1943"]


def test_a_group_of_64_has_a_histogram_and_merged_cards():
    some = [called(), failed(), guessed()]
    rows = [row(i, some[i % 3], float(i % 3 == 0)) for i in range(64)]
    shown = cards.group_view(group(rows), 1, CONFIG)
    assert 'class="histogram"' in shown
    assert shown.count("<article") == 3


@pytest.mark.parametrize("text", [*HOSTILE, "\n\nlines", "\ud800", "a" * 5_000])
def test_hostile_turns_stay_text(text):
    observation = Turn(TurnRole.OBSERVATION, text, 1, 1, text, json.dumps({text: text}), text, 0.1)
    rest = replace(observation, error="", arguments=text)
    hostile = replace(called(), text=text, turns=(action(text), observation, rest))
    rows = [row(0, hostile, 1.0), row(1, called(), 0.0)]
    for shown in (
        cards.group_view(group(rows), 1, CONFIG),
        history.best_and_worst(group(rows)),
        turns.body([rows[0]], [html.escape(t) for t in turns.texts_of(rows[0])], "x"),
    ):
        parsed = Shown(shown)
        assert not {"script", "img", "h1", "a"} & set(parsed.tags)
        assert not [a for a in parsed.attributes if a.startswith("on")]
    visible = text.replace("\ud800", "\ufffd").strip()[:100]
    assert visible in Shown(cards.group_view(group(rows), 1, CONFIG)).text.replace(
        "\\ud800", "\ufffd"
    )


def test_best_and_worst_compare_turn_by_turn():
    shown = history.best_and_worst(group([row(0, called(), 1.0), row(1, guessed("5"), 0.0)]))
    assert shown.count('<div class="turns"') == 1
    assert "2 turns" in shown


# ---- tokens ----------------------------------------------------------------------------------


def test_tokens_of_observations_are_grey_and_say_so(views, store):
    run_id = record_acting_run(store)
    stored = store.group(store.group_ids(run_id, 1)[0])
    config = parse(store.run(run_id).config)
    context = loss_context(store, run_id, 1, config)
    grey = turns.observed(stored.rollouts[1].turns)
    token_row = store.token_row(stored.rollouts[1].id)
    terms = token_terms(token_row, 1.0, "stop", context)
    for by in tokens.SCALES:
        shown = tokens.token_view(token_row, terms, by, stored.rollouts[1])
        spans = re.findall(r'<span class="tok([^"]*)"[^>]*data-says="([^"]*)"', shown)
        assert {i for i, (kind, _) in enumerate(spans) if "observed" in kind} == grey
        for i, (_, says) in enumerate(spans):
            assert ("not trained on" in says) == (i in grey)
            assert ("log p" in says) != (i in grey)
            assert "nan" not in says
        assert shown.count('class="swatch observed"') == 1
    without = stored.rollouts[0]
    plain = tokens.token_view(store.token_row(without.id), None, "kl", without)
    assert "observed" not in plain


def test_inspect_shows_tokens_of_a_trajectory(views, store):
    run_id = record_acting_run(store)
    options = json.dumps({"tokens": {"rollout": "1", "by": "ratio"}})
    filters = json.dumps(FIRST)
    *_, body, _ = ShowInspect(views)(
        run_id, "inspect", "", "", "", filters, "1/0", "{}", "tokens", "best", options, "{}"
    )
    assert "tok observed" in body


# ---- curves and verdict ----------------------------------------------------------------------


def figures(views, run_id, seen="{}", overlay=()):
    """(name -> figure or None for a skipped one, seen)"""
    from ui.server.views import CURVES

    out = ShowTrain(views)(run_id, "", "best", "step", 0, False, list(overlay), "entropy", seen)
    assert len(out) == NUM_OUTPUTS
    first = 9
    found = dict(zip(CURVES, out[first : first + len(CURVES)], strict=True))
    shown = {n: f if isinstance(f, dict) and "traces" in f else None for n, f in found.items()}
    return shown, next((v for v in out if isinstance(v, str) and v.startswith('{"line"')), "")


def test_curves_of_turns_appear_only_for_runs_that_have_them(views, store):
    plain, acting = record_run(store), record_acting_run(store)
    shown, seen = figures(views, acting)
    assert [shown[name]["traces"][0]["y"][0] for name in charts.OF_TURNS] == [
        1.125,
        0.125,
        0.33333,
        0.2,
    ]
    shown, seen = figures(views, plain, seen)
    assert [shown[name]["traces"] for name in charts.OF_TURNS] == [[]] * 4
    shown, seen = figures(views, plain, seen, [acting])
    assert all(shown[name]["traces"] for name in charts.OF_TURNS)
    assert all(f is None for f in figures(views, plain, seen, [acting])[0].values())


def test_a_group_that_never_called_says_what_that_means(views, store):
    run_id = record_acting_run(store)
    shown = views.group(store.run(run_id), 1, 1, "best")
    assert "tool never called" in shown
    assert "None of 4 called a tool, so no advantage speaks for calling one." in shown
    assert "so only the KL term gives a gradient" in shown


# ---- Learn -----------------------------------------------------------------------------------


def test_the_walk_counts_only_the_tokens_of_the_policy(views, store):
    run_id = record_acting_run(store)
    own = [guessed(), called(), failed(), called()]
    num_own = sum(c.num_tokens for c in own)

    def screen(name):
        _, numbers, _, notes, _, _ = ShowWalk(views)(run_id, f"1/0:{name}", "{}", "{}")
        assert "nan" not in Shown(numbers).text
        return numbers, notes

    assert "written in 2 turns, 21 tokens read" in screen("completions")[0]
    numbers, _ = screen("ratio")
    assert f"of {num_own} tokens get no more push" in Shown(numbers).text
    numbers, notes = screen("loss")
    assert "64 tokens that the environment wrote" in Shown(notes).text  # 21 + 22 + 21
    # d = log π_ref − log π = −0.1 at each of the policy's tokens: k1 = 0.1
    numbers, _ = screen("kl")
    assert numbers.count('<data value="0.10000') == 4
