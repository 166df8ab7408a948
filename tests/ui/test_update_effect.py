"""What an update did, as Inspect shows it."""

from __future__ import annotations

import json
import re
import shutil
from array import array
from pathlib import Path

import pytest
from recorded import HOSTILE
from stored import recorded
from test_inspect import inspect

from grpo_core.analysis.update_effect import Effect, update_effects
from grpo_core.store import Store
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    StepCompleted,
    StepMetrics,
    StepTokens,
    TokenRecord,
)
from ui.server.views import Views

BY_CHANGE = json.dumps({"tokens": {"by": "change"}})
SAMPLE = Path(__file__).parents[1] / "store" / "samples" / "version-5.sqlite"


def record_update(store: Store, after: dict[int, list[float]]) -> str:
    """Two completions of two tokens, A = +0.7 and −0.7, with two updates. after: by position."""
    rollouts = tuple(
        Rollout(Completion(HOSTILE[0], "stop", 2), {}, r, a) for r, a in ((1.0, 0.7), (0.0, -0.7))
    )
    group = Group(Prompt("p", "2+2=", "4", "sums"), rollouts, 0.5, 0.7, "healthy")
    records = {
        (0, i): TokenRecord(
            array("i", [5, 6]),
            logprobs=array("f", [-0.5, -1.0, -0.4, -0.9]),  # of two updates; the first counts
            logprobs_after=array("f", after[i]) if i in after else None,
        )
        for i in (0, 1)
    }
    pieces = {5: HOSTILE[0].encode(), 6: b"4"}
    return recorded(
        store,
        GroupsScored(1, (group,)),
        StepCompleted(1, StepMetrics(), {}, StepTokens(records, pieces)),
    )


def body(store: Store, run_id: str) -> str:
    return inspect(Views(store), run_id, view="tokens", options=BY_CHANGE)[-2]


def test_an_update_changes_the_sum_of_a_completions_log_probabilities(store):
    run_id = record_update(store, {0: [-0.25, -0.5], 1: [-0.5, -0.75]})
    group = store.group(store.group_ids(run_id, 1)[0])
    effects = update_effects(store, group.rollouts)
    assert effects == [Effect(-1.5, -0.75), Effect(-1.5, -1.25)]
    shown = body(store, run_id)
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</tr>", shown)
    texts = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]
    # e^0.75 = 2.117, e^0.25 = 1.284
    assert texts == [
        "#1 +0.70 −1.500 −0.750 +0.750 × 2.12",
        "#2 −0.70 −1.500 −1.250 +0.250 × 1.28",
    ]
    assert "1 of 1 with A &gt; 0 became likelier, 0 of 1 with A &lt; 0 became less" in shown
    # Tokens: +0.25 and +0.5 nats, drawn as the root.
    assert re.findall(r'class="tok" style="--v:([\d.]+)"', shown) == ["0.500", "0.707"]
    assert "change by the update 0.250" in shown
    assert HOSTILE[0] not in shown


def test_an_update_that_was_not_measured_says_so(store):
    run_id = record_update(store, {})
    group = store.group(store.group_ids(run_id, 1)[0])
    assert update_effects(store, group.rollouts) == [None, None]
    assert "The update was not measured on this group" in body(store, run_id)


def test_an_old_file_opens_without_what_its_updates_did(tmp_path):
    shutil.copyfile(SAMPLE, tmp_path / "runs.sqlite")
    store = Store(tmp_path / "runs.sqlite")
    run = next(r for r in store.runs() if r.name == "with changes by hand")
    rows = [store.token_row(r.id) for g in store.iter_groups(run.id) for r in g.rollouts]
    assert [row.logprobs_after for row in rows] == [None] * len(rows)
    assert "The update was not measured on this group" in body(store, run.id)


@pytest.mark.parametrize(("after", "times"), [(-1.0, 1.0), (800.0, float("inf"))])
def test_how_many_times_as_likely_never_overflows(after, times):
    assert Effect(-1.0, after).times == times
