"""Parquet files: values as a person would write them, and small files that unpack to huge ones."""

from __future__ import annotations

import datetime
import time
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo_core.config import TaskConfig
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import load_task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))


def prompts(path, **more):
    table = load_task(TaskConfig(path=str(path), **more)).table
    return [table.prompt(row) for row in sorted([*table.train, *table.heldout])]


def refusal(path) -> str:
    begun = time.monotonic()
    with pytest.raises(InvalidConfig) as caught:
        prompts(path)
    assert time.monotonic() - begun < 60
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_structs_lists_and_odd_numbers_are_chats_and_answers(tmp_path):
    part = {"type": "text", "text": "Who?", "image": None}
    chat = [{"role": "user", "content": [part], "from": None}]
    columns = {
        "messages": [chat, [{"role": None, "content": None, "from": "human"}], None, chat],
        "answer": pa.array([0.1, None, 2.0, 48.0], pa.float32()),
        "price": [Decimal("1.50"), None, Decimal("2.00"), Decimal("3.00")],
        "day": [datetime.date(2026, 1, 2)] * 4,
        "photo": [b"\x89PNG\xff"] * 4,
        "far": [float("inf"), float("nan"), 1.5, 2.0],
    }
    columns["messages"][3] = [{"role": "user", "content": [{**part, "text": "Why?"}], "from": None}]
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = prompts(tmp_path / "p.parquet")
    assert [(p.text, p.answer) for p in found] == [("Who?", "0.1"), ("Why?", "48")]
    [first, _] = prompts(tmp_path / "p.parquet", template="{prompt} {price} {day} {far}")
    assert first.text == "Who? 1.50 2026-01-02 inf"
    with pytest.raises(InvalidConfig, match="row 1, column 'photo': it holds bytes that are no"):
        prompts(tmp_path / "p.parquet", template="{prompt} {photo}")


def test_more_rows_than_one_answer_of_the_helper_arrive_in_order(tmp_path):
    texts = [f"{i} " + "word " * 2_000 for i in range(1_500)]  # 15 MB
    pq.write_table(pa.table({"question": texts}), tmp_path / "p.parquet")
    assert [p.text for p in prompts(tmp_path / "p.parquet")] == texts


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["question", "question"])
    pq.write_table(table, tmp_path / "p.parquet")
    assert "share a name" in refusal(tmp_path / "p.parquet")


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for size in (4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "p.parquet").write_bytes(whole[:size])
        assert "not a readable Parquet file" in refusal(tmp_path / "p.parquet")


@pytest.mark.slow
def test_one_long_text_for_many_rows_is_refused_within_memory(tmp_path):
    # The footer states 100 MB, the size of the dictionary; 256 rows of it are 25 GB.
    rows = pa.array(np.zeros(2_000, np.int32))
    texts = pa.DictionaryArray.from_arrays(rows, pa.array(["a" * 100_000_000]))
    pq.write_table(pa.table({"question": texts}), tmp_path / "p.parquet", compression="zstd")
    assert (tmp_path / "p.parquet").stat().st_size < 50_000
    assert "rows need more than" in refusal(tmp_path / "p.parquet")


@pytest.mark.slow
def test_one_row_of_a_long_list_is_refused_within_memory(tmp_path):
    zeros = pa.array(np.zeros(12_000_000, np.int8))
    lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    table = pa.table({"question": ["x"], "numbers": lists})
    pq.write_table(table, tmp_path / "p.parquet", compression="zstd")
    assert (tmp_path / "p.parquet").stat().st_size < 50_000
    assert "1 rows hold 12,000,002 values" in refusal(tmp_path / "p.parquet")
