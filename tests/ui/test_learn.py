"""The Learn tab without a browser: its glossary, its address and what each part shows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import gradio as gr
import pytest
from recorded import record_run

from grpo_core.config import fields_by_name
from grpo_core.errors import StudioError
from grpo_core.rubric import CHECKS, VERDICTS
from grpo_core.runs import comparisons
from grpo_core.runs.compare import Measured
from grpo_core.runs.comparisons import Interval, interval
from grpo_core.store import Recorder
from grpo_core.types import (
    Completion,
    Evaluated,
    Group,
    Prompt,
    Rollout,
    RunStatus,
    StepMetrics,
)
from ui.render import methods
from ui.render.glossary import address, entries, glossary
from ui.tabs.learn import FIRST_PLACE, Place, read_place
from ui.tabs.learn_methods import ShowMethods, start_comparison
from ui.tabs.learn_thinking import ShowThinking

SKIP = gr.skip()


def test_every_metric_check_verdict_and_option_is_in_the_glossary_once():
    shown = re.findall(r'class="term" data-term="([^"]+)"', glossary())
    assert len(shown) == len(set(shown))
    wanted = {f.name for f in fields(StepMetrics)} | set(fields_by_name())
    wanted |= {f"check/{name}" for name in CHECKS} | {f"verdict/{code}" for code in VERDICTS}
    assert wanted <= set(shown)
    assert shown == list(entries())
    rest = {key for key in shown if key not in wanted}
    assert rest == {
        "verdict",
        "score/NAME",
        "used/NAME/WHAT",
        "reward_scale",
        "heldout/accuracy",
        "heldout/accuracy_low",
        "heldout/pass@K",
        "heldout/reward",
        "heldout/NAME",
        "heldout/completion_tokens",
        "second/NAME",
    }


def test_an_option_shows_its_choices_with_formulas_in_field_names():
    html = glossary()
    assert "−min(w·A, clip(w, 1 − clip_eps_low, 1 + clip_eps_high)·A)" in html
    assert re.search(r"\{(low|high|w|clip_eps_low|gae_gamma)\}", html) is None


def test_every_address_of_the_glossary_leads_to_its_entry():
    for key in entries():
        at = address(key).rpartition("&at=")[2]
        assert read_place({"part": "glossary", "at": at}) == Place("glossary", key)


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({}, FIRST_PLACE),
        ({"part": "<script>", "at": "kl"}, FIRST_PLACE),
        ({"part": "glossary", "at": "<img src=x>"}, Place("glossary")),
        ({"part": "glossary", "at": "k" * 81}, Place("glossary")),
    ],
)
def test_an_address_with_other_text_names_no_place(query, place):
    assert read_place(query) == place


# ---- beside PPO ------------------------------------------------------------------------------


def run_of(preset: str, seed: int, after: float, seconds: float = 20.0) -> Measured:
    """A finished run of a comparison."""
    return Measured(
        run_id=f"{preset}-{seed}",
        preset=preset,
        seed=seed,
        status=RunStatus.FINISHED,
        reward_last=1.0,
        heldout_before=0.3,
        heldout_after=after,
        tokens=1000,
        seconds=seconds,
        peak_memory_mib=500.0,
        evaluation_seconds=4.0,
    )


def test_the_interval_over_seeds_is_students():
    # mean .9, sd .02, t(.975, 2) 4.303: half-width 4.303·.02/√3 = .04969
    found = interval([0.88, 0.90, 0.92])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.9), 3)
    assert found.low == pytest.approx(0.9 - 0.04969, abs=1e-5)
    assert found.high == pytest.approx(0.9 + 0.04969, abs=1e-5)
    assert interval([0.5, None]) == Interval(0.5)
    assert interval([None]) is None


def test_a_methods_line_says_what_it_costs_and_gains_over_grpo():
    runs = [run_of("GRPO", 0, 0.80), run_of("PPO (critic)", 0, 0.90, 30.0)]
    runs += [run_of("GRPO", 1, 0.90), run_of("PPO (critic)", 1, 0.92, 34.0)]
    grpo, ppo = methods.lines(runs)
    assert (grpo.preset, grpo.gain, grpo.seconds) == ("GRPO", None, 20.0)
    assert (ppo.seconds, ppo.evaluation_seconds, ppo.memory_mib) == (32.0, 4.0, 500.0)
    # gains .10 and .02: mean .06, sd .05657, half-width 12.706·.05657/√2 = .50824
    assert ppo.gain is not None
    assert ppo.gain.mean == pytest.approx(0.06)
    assert ppo.gain.low == pytest.approx(0.06 - 0.50824, abs=1e-4)
    html = methods.results([grpo, ppo], "")
    assert "+6.0" in html
    assert "shows no difference" in html
    assert 'href="?run=PPO (critic)-1"' in html


def test_recorded_figures_are_those_of_the_documents():
    docs = Path(__file__).parents[2] / "docs"
    options = (docs / "algorithms.md").read_text("utf-8")
    names = ("| defaults | 3", "| value (PPO) | 3", "| Trust-region GRPO | 3", "| RLOO | 3")
    for line, name in zip(methods.RECORDED, names, strict=True):
        row = next(row for row in options.splitlines() if row.startswith(name))
        assert line.before is not None
        assert line.after is not None
        low, high = line.after.low, line.after.high
        assert low is not None
        assert high is not None
        assert f"{line.before.mean:.1%}," in row
        assert f"{line.after.mean:.1%} ({low:.1%}–{high:.1%})" in row
        assert f"{line.tokens:,}" in row
    figures = (docs / "measurements.md").read_text("utf-8")
    for line, name in zip(methods.RECORDED[:2], ("| GRPO | 3", "| PPO (critic) | 3"), strict=True):
        row = next(row for row in figures.splitlines() if row.startswith(name))
        assert f"| {line.seconds} ± " in row
        assert f"| {line.memory_mib} ± " in row


def test_a_comparison_is_found_by_its_names_and_settings(store):
    planned = comparisons.plan(1)
    ids = [store.create_run(config, name) for config, name in planned]
    record_run(store, "another run")
    other = planned[0][0].model_copy(
        update={"train": planned[0][0].train.model_copy(update={"steps": 5})}
    )
    store.create_run(planned[1][0], "renamed by a person")
    found = comparisons.newest(store.runs())
    assert found is not None
    assert {run.id for run in found.runs} == set(ids)
    assert found.presets == comparisons.METHODS
    # A newer comparison of other settings replaces it whole.
    newer = store.create_run(other, planned[0][1])
    found = comparisons.newest(store.runs())
    assert found is not None
    assert [run.id for run in found.runs] == [newer]


def test_the_button_queues_all_methods_seed_by_seed(views, runs):
    answer = start_comparison(views, runs, "1")
    assert "4 runs" in answer
    assert [name for _, name in runs.started] == [
        f"compare sums: {preset}, seed 0" for preset in comparisons.METHODS
    ]
    assert {config.train.steps for config, _ in runs.started} == {comparisons.STEPS}
    # Its runs wait now, so a second press starts nothing and the buttons are disabled.
    assert "going on" in start_comparison(views, runs, "1")
    assert len(runs.started) == 4
    _, offers, _ = ShowMethods(views, runs)("{}")
    assert offers.count("disabled") == 4  # two buttons, each with aria-disabled
    assert "A comparison is going on" in offers


def test_a_refused_comparison_is_disabled_with_its_reason(views, runs):
    runs.refuse = StudioError("this server allows at most <b>2</b> runs")
    table, offers, seen = ShowMethods(views, runs)("{}")
    assert "this server allows at most &lt;b&gt;2&lt;/b&gt; runs" in offers
    assert offers.count(" disabled ") == 2
    assert "Recorded example" in table
    assert ShowMethods(views, runs)(seen) == [SKIP, SKIP, SKIP]
    assert "allows at most" in start_comparison(views, runs, "3")
    assert runs.started == []
    assert start_comparison(views, runs, "1000") == ""


# ---- longer thinking -------------------------------------------------------------------------


def thinking_run(store, visits: int, name: str = "<img src=x>") -> str:
    """A run whose held-out prompt comes up `visits` times; it learns to think in the middle."""
    run_id = record_run(store, name, steps=2)
    with Recorder(store, run_id) as record:
        for i in range(visits):
            text = "<think>1+1</think>" if i else ""
            done = Completion(f"{text}<answer><b>{i}</b></answer>", "stop", 5 + i)
            scores = {"accuracy": float(i > 1), "reasoning": float(i > 0)}
            prompt = Prompt("held", "Q: <i>1+1</i>?", "2", "sums")
            group = Group(prompt, (Rollout(done, scores, 1.0),), 1.0, 0.0, "evaluation")
            metrics = {"heldout/reasoning": float(i > 0), "heldout/completion_tokens": 5.0 + i}
            record(Evaluated(10 * (i + 1), metrics, (group,)))
    return run_id


def test_three_visits_show_one_prompt_from_beginning_to_end(store, views):
    run_id = thinking_run(store, visits=4)
    about, share, length, three, _ = ShowThinking(views)(run_id, "", "{}")
    assert "share that reasons <b>0 %</b> → <b>100 %</b>" in about
    assert "length in tokens <b>5.00</b> → <b>8.00</b>" in about
    assert "criterion <b>reasoning</b>" in about
    assert (share["title"], length["title"]) == ("Share that reasons", "Completion length")
    # Of four visits the first, the second and the last.
    found = re.findall(r'aria-label="(Beginning|Middle|End), evaluation after step (\d+)"', three)
    assert found == [("Beginning", "10"), ("Middle", "20"), ("End", "40")]
    assert three.count("✗ wrong") == 2
    assert three.count("✓ right") == 1
    assert re.findall(r"reasons|does not reason", three) == [
        "does not reason",
        "reasons",
        "reasons",
    ]
    query = f"?tab=inspect&amp;run={run_id}&amp;step=40&amp;group=1&amp;kind=evaluation"
    assert query in three


def test_names_and_texts_of_a_run_are_literal(store, views):
    shown = ShowThinking(views)(thinking_run(store, visits=3), "1", "{}")
    html = shown[0] + shown[3]
    assert re.search(r"<(img|i>|b>0<)", html) is None
    assert "&lt;img src=x&gt;" in html
    assert "&lt;answer&gt;&lt;b&gt;0&lt;/b&gt;" in html


def test_without_three_visits_the_page_says_what_is_needed(store, views):
    run_id = thinking_run(store, visits=2)
    *_, three, seen = ShowThinking(views)(run_id, "", "{}")
    assert "a prompt that came up three times. 1 prompt came up twice." in three
    assert "Held-out prompts come up at every evaluation" in three
    assert ShowThinking(views)(run_id, "", seen) == [SKIP] * 5


def test_a_rubric_without_the_check_says_so(store, views):
    run_id = record_run(store, **{"rubric.name": "reasoned answer"})
    about, share, *_ = ShowThinking(views)(run_id, "", "{}")
    assert "has no criterion with the" in about
    assert share["traces"] == []
    assert "no criterion" in share["empty"]


def test_without_a_run_the_part_says_how_to_get_one(views):
    about, *_, three, _ = ShowThinking(views)(None, "", "{}")
    assert "Start a run" in about
    assert three == ""
