"""The advisor's notices on the page."""

from __future__ import annotations

from types import SimpleNamespace

from recorded import HOSTILE, record_run

from grpo_core.analysis.advisor.advise import CODES
from grpo_core.types import Notice, RunStatus
from ui.render.advice import TITLES, advice
from ui.tabs.train import dismiss


def notice(code="truncation", **more):
    return Notice(
        **{
            "code": code,
            "severity": "warning",
            "step": 3,
            "message": "m",
            "evidence": {"truncated": 0.4},
            "group_id": 7,
            "advice": "a",
            **more,
        }
    )


def test_every_notice_has_a_title_in_words():
    assert set(CODES) <= set(TITLES)


def test_at_most_three_notices_show_evidence_a_hint_and_a_group():
    html = advice([notice(c) for c in ("truncation", "phantom", "hacking", "noise")], {7: (3, 1)})
    assert html.count("<article") == 3
    assert "1 smaller notice" in html
    assert "truncated <b>0.4</b>" in html
    assert 'data-at="3/1"' in html
    assert 'aria-label="Dismiss: Cut short"' in html
    assert advice([], {}) == ""


def test_foreign_text_in_a_notice_is_shown_as_text():
    for text in HOSTILE:
        html = advice([notice(code=text, message=text, advice=text, evidence={text: text})], {})
        assert "<img" not in html
        assert "<script" not in html
        assert "</pre>" not in html


def test_a_dismissed_notice_is_gone_and_a_running_run_shows_recorded_ones(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    store.set_alerts(run_id, [notice(group_id=None)])
    assert "Cut short" in views.advice(views.run(run_id))
    assert dismiss(views, run_id, SimpleNamespace(_data={"code": "truncation"})) == ""
    assert views.advice(views.run(run_id)) == ""
