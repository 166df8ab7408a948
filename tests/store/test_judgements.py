"""The cache of judges' answers: a bad file costs a question, never a run."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from grpo_core.store import judgements
from grpo_core.store.judgements import Judgements


def test_an_answer_is_kept_for_the_next_process(tmp_path):
    Judgements(tmp_path / "new" / "judge.sqlite").put("key", 0.5, "why", 3, 1.0)
    assert Judgements(tmp_path / "new" / "judge.sqlite").get("key") == (0.5, "why")


def test_a_damaged_file_of_answers_is_left_alone(tmp_path, caplog):
    path = tmp_path / "judge.sqlite"
    path.write_bytes(b"no database, but long enough to be one: " * 100)
    before = path.read_bytes()
    cache = Judgements(path)
    cache.put("key", 0.5, "why", 3, 1.0)
    assert cache.get("key") == (0.5, "why")  # in memory
    assert path.read_bytes() == before
    assert "answers of judges are not kept" in caplog.text


def test_a_locked_file_of_answers_costs_a_question(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(judgements, "BUSY_SECONDS", 0.05)
    cache = Judgements(tmp_path / "judge.sqlite")
    with closing(sqlite3.connect(tmp_path / "judge.sqlite", isolation_level=None)) as conn:
        conn.execute("BEGIN EXCLUSIVE")
        assert cache.get("key") is None
        cache.put("key", 0.5, "why", 3, 1.0)
    assert "was not kept" in caplog.text
