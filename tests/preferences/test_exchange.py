"""Preferences as files: what is written reads back; foreign layouts; bad rows are named."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from grpo_core.errors import StudioError
from grpo_core.preferences.exchange import export_preferences, import_preferences
from grpo_core.store import Store, preferences
from grpo_core.store.preferences import Preference

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "=cmd|'x'!A1",
    "\u202e\x1b[2J",
    "\r\n",
    "[{",
    "ü 🎉",
    " ",
]
CHAT = (
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
)
ONE = Preference(
    prompt_id="p",
    prompt="2+2?",
    left="4",
    right="5",
    verdict="left",
    who="Ada",
    seconds=2.5,
    created_at=1764316800.123456,
    source="page",
)
ROWS = [
    ONE,
    replace(ONE, left="5", right="4", verdict="right", created_at=2.0),  # the same pair again
    replace(ONE, prompt="tie", verdict="tie", margin=0.25, who=""),
    replace(ONE, prompt="system: x\n\nuser: y", left="", right="\n\nHuman: a\n\nAssistant: b"),
    replace(ONE, prompt="ranked", ranking="r1", source="ranking", seconds=None),
    replace(ONE, before=CHAT[:1], prompt="with a system prompt"),
    replace(
        ONE, before=CHAT, prompt="system: Add.\n\nuser: 1+1?\n\nassistant: 2\n\nuser: And 3+3?"
    ),
    *(replace(ONE, prompt=f"h{n}", left=text, verdict="right") for n, text in enumerate(HOSTILE)),
]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs.sqlite")


def same(rows):
    return [replace(row, id=0, before=tuple(row.before)) for row in rows]


@pytest.mark.parametrize("as_chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_exported_file_reads_back_and_adds_nothing_twice(store, tmp_path, ending, as_chat):
    preferences.add(store, [*ROWS, replace(ONE, prompt="skipped", verdict="skip")])
    file = tmp_path / f"p.{ending}"
    assert export_preferences(store, file, as_chat) == len(ROWS)
    other = Store(tmp_path / "other.sqlite")
    found = import_preferences(other, str(file))
    assert (found.num_added, found.num_bad) == (len(ROWS), 0)
    assert same(preferences.read(other)) == ROWS
    for target in (other, store):
        again = import_preferences(target, str(file))
        assert (again.num_added, again.num_known) == (0, len(ROWS))


def test_an_export_has_the_columns_of_ultrafeedback(store, tmp_path):
    preferences.add(store, [ROWS[1], ROWS[2]])
    export_preferences(store, tmp_path / "p.parquet", as_chat=True)
    first, tie = pq.read_table(tmp_path / "p.parquet").to_pylist()
    ask = {"role": "user", "content": "2+2?"}
    assert first["prompt"] == "2+2?"
    assert first["chosen"] == [ask, {"role": "assistant", "content": "4"}]
    assert first["rejected"] == [ask, {"role": "assistant", "content": "5"}]
    assert (first["tie"], tie["tie"], tie["margin"]) == (False, True, 0.25)


def written(tmp_path, *rows) -> str:
    file = tmp_path / "given.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def read_one(store, file, **options) -> Preference:
    assert import_preferences(store, file, **options).num_added == 1
    [row] = preferences.read(store)
    return row


def test_ultrafeedback_scores_become_the_margin(store, tmp_path):
    ask = {"content": "Why?", "role": "user"}
    row = {
        "prompt": "Why?", "prompt_id": "f0",
        "chosen": [ask, {"content": "So.", "role": "assistant"}],
        "rejected": [ask, {"content": "No.", "role": "assistant"}],
        "messages": [ask], "score_chosen": 8.5, "score_rejected": 6.0,
    }  # fmt: skip
    found = read_one(store, written(tmp_path, row))
    assert (found.prompt, found.chosen, found.rejected) == ("Why?", "So.", "No.")
    assert (found.margin, found.prompt_id, found.source) == (2.5, "f0", "import")


def test_a_dialogue_of_hh_is_split_into_prompt_and_answers(store, tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    row = {"chosen": f"{start} So.", "rejected": f"{start} No."}
    found = read_one(store, written(tmp_path, row))
    assert (found.chosen, found.rejected) == ("So.", "No.")
    assert found.asked.text == "Why?"
    assert [m["content"] for m in found.before] == ["Hi", "Hello"]


def test_columns_are_mapped_also_into_objects(store, tmp_path):
    row = {"q": "Why?", "answers": {"a": "So.", "b": "No."}}
    names = {"prompt": "q", "chosen": "answers.a", "rejected": "answers.b"}
    found = read_one(store, written(tmp_path, row), columns=names, who="Bob")
    assert (found.prompt, found.chosen, found.who) == ("Why?", "So.", "Bob")


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "column 'rejected': it is missing"),
        ({**GOOD, "rejected": "a"}, "column 'rejected': it equals 'chosen'"),
        ({**GOOD, "chosen": 7}, "column 'chosen': it holds"),
        ({**GOOD, "chosen": [{"role": "robot", "content": "x"}]}, "column 'chosen': message 1"),
        ({**GOOD, "prompt": None}, "column 'prompt': it is missing"),
        ({**GOOD, "score_chosen": "high"}, "column 'score_chosen': it holds no number ('high')"),
        ({**GOOD, "margin": True}, "column 'margin': it holds no number"),
        ({**GOOD, "tie": "maybe"}, "column 'tie': it is neither true nor false"),
        ({**GOOD, "who": ["x"]}, "column 'who': it holds no text of at most 200 characters"),
        ({**GOOD, "chosen": "x" * 400_001}, "column 'chosen': it has more than 400,000 characters"),
        ({**GOOD, "tie": [1]}, "column 'tie': it is neither true nor false"),
    ],
)
def test_a_bad_row_is_counted_and_named_by_row_and_column(store, tmp_path, bad, reason):
    found = import_preferences(store, written(tmp_path, GOOD, bad))
    assert (found.num_added, found.num_bad) == (1, 1)
    [said] = found.reasons
    assert said.startswith("row 2, ")
    assert reason in said
    assert len(said) < 300
    assert "1 added, 1 could not be read (row 2, " in str(found)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"{oops}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"prompt": "p"}\n', "row 1, column 'chosen': it is missing"),
        ("a.jsonl", b"", "it has no rows"),
        ("a.jsonl", b"[" * 2000, "it is one JSON list"),
        ("a.jsonl", b'{"a":' * 3000 + b"1" + b"}" * 3000, "line 1 is"),
        ("a.jsonl", b'"' + b"x" * 1_100_000, "more than 1,000,000 characters"),
        ("a.jsonl", b"\xff\xfe\x00", "not UTF-8"),
        ("a.parquet", b"PAR1 nothing PAR1", "not a readable Parquet file"),
        ("a.txt", b"x", "files ending in '.txt' are not read"),
    ],
)
def test_a_file_that_holds_no_preferences_is_refused_and_adds_nothing(
    store, tmp_path, name, content, reason
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudioError, match=reason):
        import_preferences(store, str(tmp_path / name))
    assert preferences.read(store) == []


def test_a_file_that_breaks_off_in_the_middle_adds_nothing(store, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(GOOD) + '\n{"prompt": "q", "cho')
    with pytest.raises(StudioError, match="line 2 is not JSON"):
        import_preferences(store, str(file))
    assert preferences.read(store) == []


def test_no_name_of_a_hub_dataset_or_column_is_guessed(store, tmp_path):
    with pytest.raises(StudioError, match="is no file"):
        import_preferences(store, "openai/gsm8k")
    with pytest.raises(StudioError, match="'better' is no column of preferences"):
        import_preferences(store, written(tmp_path, GOOD), {"better": "x"})


def test_a_file_of_another_kind_is_not_written(store, tmp_path):
    with pytest.raises(StudioError, match=r"written as \.jsonl or \.parquet"):
        export_preferences(store, tmp_path / "p.csv")
