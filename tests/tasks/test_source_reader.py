"""Rows that differ: columns that some lack, prompts that are equal, and the split they decide."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_core.config import TaskConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.tasks import heldout_prompts, load_task, train_prompts
from grpo_core.tasks import table as table_module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))


def written(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table_of(tmp_path, rows, **more):
    path = written(tmp_path / "p.jsonl", rows)
    return load_task(TaskConfig(path=str(path), **more)).table


def prompts(table):
    return [table.prompt(row) for row in sorted([*table.train, *table.heldout])]


def refusal(tmp_path, rows, **more) -> str:
    with pytest.raises(InvalidConfig) as caught:
        table_of(tmp_path, rows, **more)
    return str(caught.value)


def questions(count, first=0):
    return [{"question": f"{i}+1?", "answer": i + 1} for i in range(first, first + count)]


# ---- columns -------------------------------------------------------------------------------------


def test_a_first_row_without_an_answer_drops_no_column(tmp_path):
    table = table_of(tmp_path, [{"question": "first?"}, *questions(9)])
    assert (table.columns.answer, table.counts.unanswered) == ("answer", 1)
    assert [p.answer for p in prompts(table)] == ["", *map(str, range(1, 10))]


def test_rows_without_the_prompt_column_are_empty_and_counted(tmp_path):
    rows = [{"note": "first"}, *questions(5), {"answer": "5"}, {"question": None}]
    table = table_of(tmp_path, rows)
    assert (table.counts.rows, table.counts.empty, len(prompts(table))) == (8, 3, 5)


def test_the_name_that_most_rows_have_is_the_prompt(tmp_path):
    rows = [*questions(5), {"prompt": "rare?", "answer": "1"}]
    table = table_of(tmp_path, rows)
    assert (table.columns.prompt, table.counts.empty) == ("question", 1)


def test_an_answer_column_that_comes_late_is_still_read(tmp_path):
    early = [{"question": f"early {i}"} for i in range(1_000)]
    table = table_of(tmp_path, [*early, *questions(3)])
    assert (table.columns.answer, table.counts.unanswered) == ("answer", 1_000)
    assert [p.answer for p in prompts(table)[-3:]] == ["1", "2", "3"]


def test_a_named_column_of_any_of_the_first_rows_is_found(tmp_path):
    rows = [*questions(5), {"question": "q", "key": "7"}]
    assert table_of(tmp_path, rows, answer_column="key").counts.unanswered == 5
    assert "Columns: question, answer, key." in refusal(tmp_path, rows, answer_column="nope")


def test_a_template_leaves_nothing_where_a_row_lacks_the_column(tmp_path):
    rows = [{"question": "a", "hint": "h"}, {"question": "b"}, {"question": "c", "hint": None}]
    table = table_of(tmp_path, rows, template="{prompt}({hint}){nope}")
    assert [p.text for p in prompts(table)] == ["a(h){nope}", "b(){nope}", "c(){nope}"]


def test_a_template_column_that_comes_too_late_is_refused(tmp_path):
    rows = [*questions(1_000), {"question": "q", "hint": "h"}]
    assert "row 1,001 is the first with the column 'hint'" in refusal(
        tmp_path, rows, template="{prompt} {hint}"
    )


def test_a_heldout_file_may_have_other_column_names(tmp_path):
    held = written(tmp_path / "h.jsonl", [{"problem": "new?", "solution": "so\n#### 7"}])
    table = table_of(tmp_path, questions(9), heldout_source=str(held))
    [prompt] = [table.prompt(row) for row in table.heldout]
    assert (prompt.text, prompt.answer, len(table.train)) == ("new?", "7", 9)


@pytest.mark.parametrize("side", ["path", "heldout_source"])
def test_a_side_without_any_prompt_is_refused_by_name(tmp_path, side):
    empty = written(tmp_path / "h.jsonl", [{"question": ""}])
    full = written(tmp_path / "p.jsonl", questions(9))
    paths = {"path": str(full), "heldout_source": str(full), side: str(empty)}
    with pytest.raises(InvalidConfig, match=rf"task\.{side} = .*no row with a prompt"):
        load_task(TaskConfig(**paths))


def test_a_cell_that_is_no_text_is_refused_with_its_row(tmp_path):
    image = {"type": "image_url", "image_url": {"url": "x"}}
    row = {"question": [{"role": "user", "content": [image]}], "answer": "1"}
    said = refusal(tmp_path, [*questions(2), row])
    assert "row 3, column 'question': message 1 of its chat holds a part of type 'image" in said
    assert "row 2, column 'answer': it holds 2 answers ('1', '2')" in refusal(
        tmp_path, [*questions(1), {"question": "q", "answer": [1, 2]}]
    )


# ---- equal prompts -------------------------------------------------------------------------------


def chat(*texts, system=""):
    turns = [{"role": "system", "content": system}] if system else []
    roles = ["user", "assistant"] * len(texts)
    return turns + [
        {"role": role, "content": text} for role, text in zip(roles, texts, strict=False)
    ]


def test_chats_are_equal_only_if_all_their_messages_are(tmp_path):
    rows = [
        {"messages": chat(f"Document {i}", "Yes?", "Sum it up."), "answer": f"{i}"}
        for i in range(20)
    ]
    rows += [{"messages": chat("Sum it up.", system=f"Style {i}"), "answer": ""} for i in range(5)]
    table = table_of(tmp_path, rows)
    assert (len(prompts(table)), table.counts.duplicates) == (25, 0)
    assert len({p.id for p in prompts(table)}) == 25
    again = {"messages": chat("document  3", "YES?", "Sum it up."), "answer": "other"}
    counts = table_of(tmp_path, [*rows, again]).counts
    assert (counts.duplicates, counts.contradictions) == (1, 1)


def test_whole_chats_decide_the_split_and_what_leaks(tmp_path):
    rows = [{"messages": chat(f"Document {i}", "Yes?", "Sum it up.")} for i in range(100)]
    table = table_of(tmp_path, rows)
    held = {p.meta["before"][0]["content"] for p in prompts(table) if int(p.id, 16) % 10 == 0}
    assert {table.prompt(r).meta["before"][0]["content"] for r in table.heldout} == held
    assert 2 <= len(held) <= 25
    other = written(tmp_path / "h.jsonl", rows[:3])
    table = table_of(tmp_path, rows, heldout_source=str(other))
    assert (table.counts.leaks, len(table.train), len(table.heldout)) == (3, 97, 3)


def test_alpacas_rows_differ_by_their_input(tmp_path):
    rows = [{"instruction": "Add.", "input": f"{i} 1", "output": str(i + 1)} for i in range(30)]
    table = table_of(tmp_path, rows)
    assert {p.text for p in prompts(table)} == {f"Add.\n\n{i} 1" for i in range(30)}


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("cell", ["What IS\n 2+2?", chat("What IS\n 2+2?", "4")])
def test_one_message_keeps_the_id_it_always_had(tmp_path, system, cell):
    [prompt] = prompts(table_of(tmp_path, [{"prompt": cell, "answer": "4"}], system=system))
    assert prompt.id == blake2b(b"what is 2+2?", digest_size=8).hexdigest()


def test_prompts_of_a_file_are_split_as_before(tmp_path):
    def is_held(text):
        return int(blake2b(text.encode(), digest_size=8).hexdigest(), 16) % 10 == 0

    table = table_of(tmp_path, questions(200))
    expected = {q["question"] for q in questions(200) if is_held(q["question"])}
    assert {table.prompt(r).text for r in table.heldout} == expected


# ---- the default of held-out prompts -------------------------------------------------------------


def test_a_small_task_holds_out_what_it_has_by_default(tmp_path):
    path = written(tmp_path / "p.jsonl", questions(150))
    task = load_task(TaskConfig(path=str(path)))
    held = heldout_prompts(task, TaskConfig().heldout_size)
    assert 0 < len(held) == len(task.table.heldout) < 40
    assert not {p.id for p in held} & {p.id for p in train_prompts(task, 0, 1, 150)}
    with pytest.raises(InvalidConfig, match=rf"heldout_size = 200: .* only {len(held)} .*empty"):
        heldout_prompts(task, 200)


def test_a_large_file_holds_out_two_hundred_by_default(tmp_path):
    task = load_task(TaskConfig(path=str(written(tmp_path / "p.jsonl", questions(3_000)))))
    assert heldout_prompts(task, None) == heldout_prompts(task, 200)


# ---- anything ------------------------------------------------------------------------------------

values = st.one_of(
    st.none(),
    st.text(max_size=6),
    st.integers(0, 3),
    st.floats(),
    st.lists(st.text(max_size=3), max_size=2),
    st.just([{"role": "user", "content": "hi"}]),
)
rows_of_any_shape = st.lists(
    st.fixed_dictionaries({}, optional={"question": values, "answer": values, "note": values}),
    min_size=1,
    max_size=12,
)


@given(rows=rows_of_any_shape)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_row_is_a_prompt_empty_a_duplicate_or_refused(tmp_path, rows):
    # A new name each time: two files of one name, size and moment would be one source.
    path = written(tmp_path / f"{uuid4().hex}.jsonl", rows)
    try:
        table = load_task(TaskConfig(path=str(path))).table
    except StudioError:
        return
    counts = table.counts
    kept = len(table.train) + len(table.heldout)
    assert kept + counts.duplicates + counts.empty == counts.rows == len(rows)
    for prompt in prompts(table):
        assert "<object" not in prompt.text
        assert not prompt.text.startswith(("[{", "{'role'", '{"role"'))


# ---- the copy that is kept -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".arrow", ".json", ".npz"])
@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_damaged_copy_of_prompts_is_read_anew(tmp_path, suffix, fault):
    path = written(tmp_path / "p.jsonl", questions(30))
    before = prompts(load_task(TaskConfig(path=str(path))).table)
    table_module._open.cache_clear()
    [copy] = (tmp_path / "cache").rglob(f"*{suffix}")
    if fault == "gone":
        copy.unlink()
    else:
        copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    assert prompts(load_task(TaskConfig(path=str(path))).table) == before


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, small_disk, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(small_disk))
    rows = [{"question": f"{i} " + "word " * 4_000} for i in range(1_500)]  # 30 MB
    path = written(tmp_path / "p.jsonl", rows)
    with pytest.raises(StudioError, match="cannot be kept: No space left") as caught:
        load_task(TaskConfig(path=str(path)))
    assert "\n" not in str(caught.value)
    assert not [file for file in small_disk.rglob("*") if file.is_file()]
