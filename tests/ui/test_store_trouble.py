"""The page says why nothing can be recorded, or read."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from recorded import FakeService, record_run
from test_refresh import client, inputs_of

from grpo_core.errors import StoreError, StudioError
from ui.page import build_app
from ui.server.calls import SHOW


@pytest.fixture
def poll(store, runs):
    """Sends what an open page sends each second."""
    record_run(store)
    page = build_app(store, runs, FakeService())
    event, holds = inputs_of(page, "poll")
    question = {"name": "poll", "given": [holds[c._id] for c in event.inputs]}
    return lambda: client(page).post(SHOW, json=question)


@pytest.mark.slow
def test_the_page_shows_a_lock_of_another_program(poll, store, monkeypatch):
    monkeypatch.setattr("grpo_core.store.connection.BUSY_SECONDS", 0.05)
    assert "Nothing can be recorded" not in poll().text
    with closing(sqlite3.connect(store.path, isolation_level=None)) as conn:
        conn.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError):
            store.recover()
        assert "is locked by another program" in poll().text
    store.recover()
    assert "Nothing can be recorded" not in poll().text


@pytest.mark.slow
def test_a_page_whose_file_is_gone_gets_one_line(poll, store):
    store.close()
    store.path.unlink()
    answer = poll()
    assert answer.status_code == 503
    assert answer.text.startswith(f"--db '{store.path}' cannot be opened")
    assert len(answer.text.splitlines()) == 1


def test_no_upload_is_taken_while_the_disk_is_used_up(store, runs):
    page = build_app(store, runs, FakeService())
    page.max_file_size = None  # launch() sets it
    upload = {"files": ("a.jsonl", b"{}")}

    def full():
        raise StudioError("The runs and files of this server use 6 MiB; the limit is 5 MiB")

    assert client(page).post("/gradio_api/upload", files=upload).status_code == 200
    page.check_upload = full
    answer = client(page).post("/gradio_api/upload", files=upload)
    assert answer.status_code == 507
    assert answer.text.endswith("the limit is 5 MiB")
