"""The turns of a completion in an environment, in the store and its exports."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict

import pytest

from grpo_core.config import RunConfig
from grpo_core.errors import StoreError
from grpo_core.store import Store
from grpo_core.store.export import export_messages_jsonl, export_rollouts_jsonl
from grpo_core.store.recorder import Recorder
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout, Turn, TurnRole

TURNS = (
    Turn(TurnRole.ACTION, "<tool>3*4</tool>", 0, 5),
    Turn(TurnRole.OBSERVATION, "12", 5, 3, "calculate", '{"expression": "3*4"}', "", 0.25),
    Turn(TurnRole.OBSERVATION, "error", 8, 0, "calculate", "3*", "it is \ud800 not", None),
    Turn(TurnRole.ACTION, "12", 8, 2),
)


def groups(step: int) -> GroupsScored:
    with_turns = Rollout(Completion("all of it", "stop", 7, TURNS, "12"))
    plain = Rollout(Completion("12", "stop", 1))
    prompt = Prompt("p", "3*4", "12", "products")
    return GroupsScored(step, (Group(prompt, (plain, with_turns), None, None, "unscored"),))


def test_turns_come_back_as_they_were(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        record(groups(1))
        record(groups(1))  # again, as a resumed run does
    [group] = store.iter_groups(run_id)
    plain, with_turns = group.rollouts
    assert plain.turns == ()
    expected = [asdict(t) for t in TURNS]
    found = [asdict(t) for t in with_turns.turns]
    expected[2]["error"] = found[2]["error"]
    assert found == expected
    assert "\ud800" not in found[2]["error"]
    assert with_turns.num_tokens == 7


def test_an_unknown_role_is_damage(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        record(groups(1))
    store.close()
    with closing(sqlite3.connect(store.path)) as conn:
        conn.execute("UPDATE turns SET role = 'nobody'")
        conn.commit()
    with pytest.raises(StoreError, match="is damaged"):
        list(store.iter_groups(run_id))


def test_an_export_has_the_turns(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        record(groups(1))
    out = io.StringIO()
    export_rollouts_jsonl(store, run_id, out)
    plain, with_turns = map(json.loads, out.getvalue().splitlines())
    assert plain["turns"] == []
    assert [t["role"] for t in with_turns["turns"]] == [
        "action",
        "observation",
        "observation",
        "action",
    ]
    assert with_turns["turns"][1]["arguments"] == '{"expression": "3*4"}'


def messages(store: Store, run_id: str) -> str:
    out = io.StringIO()
    export_messages_jsonl(store, run_id, out)
    return out.getvalue()


def test_messages_are_chats_of_user_assistant_and_tool(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        record(groups(1))
    plain, with_turns = map(json.loads, messages(store, run_id).splitlines())
    assert [(m["role"], m["content"]) for m in plain["messages"]] == [
        ("user", "3*4"),
        ("assistant", "12"),
    ]
    assert [(m["role"], m["content"], m["name"]) for m in with_turns["messages"]] == [
        ("user", "3*4", ""),
        ("assistant", "<tool>3*4</tool>", ""),
        ("tool", "12", "calculate"),
        ("tool", "error", "calculate"),
        ("assistant", "12", ""),
    ]
    assert with_turns["answer"] == "12"
    assert with_turns["reward"] is None


def test_messages_begin_with_those_before_the_prompt(store: Store) -> None:
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
    ]
    prompt = Prompt("p", "user: 1+1", "2", "file", {"before": before})
    only_system = Prompt("q", "1+1", "2", "file", {"before": before[:1]})
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        rollout = Rollout(Completion("2", "stop", 1))
        asked = (Group(p, (rollout,), None, None, "unscored") for p in (prompt, only_system))
        record(GroupsScored(1, tuple(asked)))
    whole, short = (json.loads(line)["messages"] for line in messages(store, run_id).splitlines())
    assert [m["content"] for m in whole] == ["Be brief.", "Hi", "Yes?", "user: 1+1", "2"]
    assert [m["content"] for m in short] == ["Be brief.", "1+1", "2"]


def test_datasets_loads_the_messages_with_one_schema(store: Store, tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    run_id = store.create_run(RunConfig(), "r")
    with Recorder(store, run_id) as record:
        record(groups(1))
    file = tmp_path / "messages.jsonl"
    file.write_text(messages(store, run_id))
    rows = datasets.Dataset.from_json(str(file), cache_dir=str(tmp_path / "cache"))
    assert [len(row["messages"]) for row in rows] == [2, 5]
    assert rows[1]["messages"][2] == {"role": "tool", "content": "12", "name": "calculate"}
