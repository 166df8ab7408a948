"""compare-answers and preferences, as a terminal and as a script meet them."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from processes import ENV, ROOT
from stored import group, recorded, rollout

from grpo_core.cli import main
from grpo_core.store import Store, preferences
from grpo_core.types import GroupsScored


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    groups = [group(rollout(f"a{n}\x1b[2J"), rollout(f"b{n}"), prompt=f"p{n}") for n in range(4)]
    recorded(store, GroupsScored(1, groups))
    return store


def compare(store, capsys, monkeypatch, keys, *arguments):
    """Exit code, the last line of --json, and what was shown, after keys, one a line."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
    code = main(["compare-answers", "--db", str(store.path), "--json", *arguments])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


def test_each_line_of_the_input_is_one_key(store, capsys, monkeypatch):
    keys = ["l", "right", "x", "t", "\x1b[D"]
    code, last, shown = compare(store, capsys, monkeypatch, keys, "--who", "Ada", "--run", "last")
    assert (code, last["judged"], last["skipped"]) == (0, 4, 0)
    rows = preferences.read(store)
    assert [row.verdict for row in rows] == ["left", "right", "tie", "left"]
    assert {(row.who, row.source) for row in rows} == {("Ada", "terminal")}
    assert "There is no further pair." in shown
    assert "\x1b" not in shown


def test_undo_shows_the_same_pair_and_skip_is_kept(store, capsys, monkeypatch):
    _, last, shown = compare(store, capsys, monkeypatch, ["u", "l", "u", "s", "q"])
    assert (last["judged"], last["skipped"]) == (0, 1)
    assert "nothing to take back" in shown
    _, first, again, second, undone, _ = (p.split("← or l")[0] for p in shown.split("Pair "))
    assert first == again == undone != second


def test_agreement_of_two_people_is_in_the_last_line(store, capsys, monkeypatch):
    compare(store, capsys, monkeypatch, "llll", "--who", "Ada")
    _, last, _ = compare(store, capsys, monkeypatch, "llll", "--who", "Bob", "--seed", "1")
    assert last["with_others"]["Ada"]["pairs"] == 4
    assert last["with_self"] == {"kappa": None, "pairs": 0}


def in_terminal(store, keys: bytes, wait_for: int) -> bytes:
    """Press keys in a real terminal, then Ctrl-C once so many judgements are stored."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_core", "compare-answers", "--db", str(store.path)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=ENV,
        start_new_session=True,
        # A parent that runs in a shell's background ignores Ctrl-C, and hands that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    os.close(slave)
    os.write(master, keys)
    deadline = time.monotonic() + 60
    while len(preferences.read(store)) < wait_for and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = b""
    try:
        while part := os.read(master, 65536):
            said += part
    except OSError:  # the terminal is closed at the other side
        pass
    assert process.wait(30) == 0, said
    return said


@pytest.mark.slow
def test_arrows_of_a_terminal_judge_and_ctrl_c_loses_nothing(store):
    said = in_terminal(store, b"\x1b[D\x1b[Ct", 3)
    assert [row.verdict for row in preferences.read(store)] == ["left", "right", "tie"]
    assert "3 judged, 0 skipped." in said.decode()


def test_preferences_go_out_and_come_in(store, tmp_path, capsys, monkeypatch):
    compare(store, capsys, monkeypatch, "lrt")
    file, other = str(tmp_path / "p.parquet"), str(tmp_path / "other.sqlite")
    assert main(["preferences", "export", file, "--db", str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": file, "rows": 3}
    for added, known in ((3, 0), (0, 3)):
        assert main(["preferences", "import", file, "--db", other, "--json"]) == 0
        last = json.loads(capsys.readouterr().out)
        assert (last["added"], last["known"], last["bad"]) == (added, known, 0)
    assert len(preferences.read(Store(other))) == 3


def test_import_maps_columns_and_says_what_is_bad(store, tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "p", "good": "a", "bad": "b"}\n{"prompt": "p", "good": "a"}\n')
    names = ["--map", "chosen=good", "--map", "rejected=bad", "--who", "Ada"]
    assert main(["preferences", "import", str(file), "--db", str(store.path), *names]) == 0
    assert "1 added, 1 could not be read (row 2, column 'bad'" in capsys.readouterr().out
    assert [row.who for row in preferences.read(store)] == ["Ada"]
    for names in ([], ["--map", "chosen"]):
        assert main(["preferences", "import", str(file), "--db", str(store.path), *names]) == 2
