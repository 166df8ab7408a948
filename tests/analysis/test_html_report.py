"""The HTML report is one small file that loads nothing and escapes all untrusted text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from golden import config

from grpo_core.cli import main
from grpo_core.store import Recorder, Store
from grpo_core.store.downsample import min_max
from grpo_core.types import (
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
    Turn,
    TurnRole,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def record(path, steps, name="a run", text="<answer>1</answer>"):
    store = Store(path)
    run_id = store.create_run(config(), name, status=RunStatus.RUNNING)
    row = Rollout(Completion(text, "stop", 5), {"accuracy": 1.0, "format": None}, 1.0, 0.5)
    with store.writing() as writer, Recorder(store, run_id) as recorder, writer.transaction():
        recorder(Evaluated(0, {"heldout/accuracy": 0.4}))
        for step in range(1, steps + 1):
            recorder(
                GroupsScored(
                    step,
                    tuple(
                        Group(
                            Prompt("p", text, "1", "sums"), (row,) * 8, step / steps, 0.1, "healthy"
                        )
                        for _ in range(2)
                    ),
                )
            )
            recorder(
                StepCompleted(
                    step,
                    StepMetrics(
                        reward_mean=7.25 if step == steps // 2 + 1 else 0.5,
                        kl=None if step == 2 else 0.01,
                        loss=0.0,
                    ),
                    {"score/accuracy": 0.5},
                )
            )
    store.set_status(run_id, RunStatus.FINISHED)
    return store, run_id


def test_a_report_of_1000_steps_is_one_small_file_without_scripts(tmp_path, capsys):
    store, run_id = record(tmp_path / "s.db", 1000)
    out = tmp_path / "r.html"
    assert main(["report", run_id, "--db", str(store.path), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bytes"] == out.stat().st_size < 5_000_000
    html = out.read_text()
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", html)
    page = Tags(html)
    for part in (
        "Curves",
        "Verdicts",
        "Best groups",
        "Worst groups",
        "Settings",
        "healthy",
        "algorithm.kl_coef",
        "held-out",
    ):
        assert part in page.text
    # Downsampling keeps the one spike of the reward, at step 501 of 1000.
    assert "7.25" in page.text


def test_untrusted_text_is_shown_in_a_report_as_text(tmp_path, capsys):
    store, _ = record(tmp_path / "s.db", 3, HOSTILE, HOSTILE)
    out = tmp_path / "r.html"
    main(["report", "last", "--db", str(store.path), "--out", str(out)])
    page = Tags(out.read_text())
    assert {t for t, _ in page.tags} & {"script", "img"} == set()
    assert page.text.count(HOSTILE) >= 3
    unwritable = str(tmp_path / "no" / "r.html")
    assert main(["report", "last", "--db", str(store.path), "--out", unwritable]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_downsampling_keeps_every_spike_the_ends_and_the_gaps():
    rows = list(range(10_000))
    values: list[float | None] = [0.0] * 10_000
    values[4321], values[7777] = 9.0, -9.0
    values[2000:2500] = [None] * 500
    kept = min_max(rows, values, 1000)
    assert len(kept) <= 1000
    assert {0, 4321, 7777, 9999} <= set(kept)
    assert any(2000 <= i < 2500 for i in kept)  # a point without a value: the line breaks there
    assert kept == sorted(kept)
    assert min_max(rows[:5], values[:5], 1000) == rows[:5]


def test_a_report_shows_turns_and_their_curves(tmp_path, capsys):
    store = Store(tmp_path / "runs.sqlite")
    run_id = store.create_run(config(), "acts", status=RunStatus.RUNNING)
    turns = (
        Turn(TurnRole.ACTION, "<tool>3*4</tool>", 0, 5),
        Turn(TurnRole.OBSERVATION, HOSTILE, 5, 3, "calculate", '{"a": "3*4"}', "", 0.25),
        Turn(TurnRole.OBSERVATION, "error", 8, 0, "", "3*", HOSTILE, 0.0),
        Turn(TurnRole.ACTION, "it is 12", 8, 2),
    )
    rollout = Rollout(Completion("all", "stop", 7, turns, "it is 12"), {"accuracy": 1.0}, 1.0, 0.5)
    with Recorder(store, run_id) as record:
        group = Group(Prompt("p", "3*4", "12", "products"), (rollout,) * 2, 1.0, 0.1, "healthy")
        record(GroupsScored(1, (group,)))
        record(StepCompleted(1, StepMetrics(turns_mean=2.0, tool_error_frac=0.5), {}))
    out = tmp_path / "report.html"
    assert main(["report", run_id, "--db", str(store.path), "--out", str(out)]) == 0
    page = Tags(out.read_text())
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    for shown in ("<tool>3*4</tool>", '{"a": "3*4"}', "0.25 s", f"failed: {HOSTILE}", "it is 12"):
        assert shown in page.text
    assert {"Turns", "Tool errors"} <= {
        attributes.get("aria-label", "").partition(",")[0] for _, attributes in page.tags
    }
