"""The Learn tab without a browser: its glossary, its address and what each part shows."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from grpo_core.config import fields_by_name
from grpo_core.rubric import CHECKS, VERDICTS
from grpo_core.types import StepMetrics
from ui.render.glossary import address, glossary, keys
from ui.tabs.learn import FIRST_PLACE, Place, read_place


def test_every_metric_check_verdict_and_option_is_in_the_glossary_once():
    shown = re.findall(r'class="term" data-term="([^"]+)"', glossary())
    assert len(shown) == len(set(shown))
    wanted = {f.name for f in fields(StepMetrics)} | set(fields_by_name())
    wanted |= {f"check/{name}" for name in CHECKS} | {f"verdict/{code}" for code in VERDICTS}
    assert wanted <= set(shown)
    assert shown == keys()
    rest = {key for key in shown if key not in wanted}
    assert rest == {
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
    for key in keys():
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
