"""Prompts of files: what is read, recognised, counted and refused, in little memory."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.config import RunConfig, TaskConfig, nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import grade_answer, heldout_prompts, load_task, train_prompts
from grpo_core.tasks.answers import given_answer, same_answer
from grpo_core.tasks.columns import (
    Reading,
    choose_columns,
    fill_template,
    final_answer,
    last_boxed,
    row_to_prompt,
)
from grpo_core.tasks.source import read_rows
from grpo_core.types import Prompt

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(60)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        with path.open("w", newline="") as out:
            table = csv.DictWriter(
                out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            table.writeheader()
            table.writerows(rows)
    return path


def task_of(path: Path, **more):
    return load_task(TaskConfig(path=str(path), **more))


def read(row, **more):
    """The prompt of one row whose columns have usual names."""
    return row_to_prompt(row, choose_columns([row], "", ""), Reading(**more))


def refusal(path: Path, **more) -> str:
    with pytest.raises(InvalidConfig) as caught:
        task_of(path, **more)
    [problem] = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


# ---- kinds of files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl", "p.parquet"])
def test_every_file_type_gives_the_same_prompts_and_splits(tmp_path, name):
    task = task_of(write(tmp_path / name))
    train, heldout = (
        train_prompts(task, 0, 1, 100)[: len(task.table.train)],
        heldout_prompts(task, len(task.table.heldout)),
    )
    assert {(p.text, p.answer) for p in [*train, *heldout]} == {
        (r["question"], r["answer"]) for r in ROWS
    }
    assert not {p.id for p in train} & {p.id for p in heldout}
    assert all(p.task == "file" and grade_answer(p.answer, p) == 1.0 for p in train)


def test_a_semicolon_table_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfquestion;answer\n"a; b";1,5\n')
    assert list(read_rows(str(tmp_path / "p.csv"))) == [{"question": "a; b", "answer": "1,5"}]


def test_naming_a_path_alone_chooses_the_file_task():
    assert parse(nest({"task.path": "x.csv"})).task.name == "file"
    with pytest.raises(InvalidConfig, match=r"task\.path.*no file"):
        parse(nest({"task.name": "file"}))
    with pytest.raises(InvalidConfig, match=r"task\.path = 'x\.csv'.*built-in"):
        parse(nest({"task.name": "sums", "task.path": "x.csv"}))


# ---- steps ---------------------------------------------------------------------------------------


def test_a_steps_prompts_depend_only_on_seed_and_step(
    tmp_path,
):
    task = task_of(write(tmp_path / "p.csv"))
    draw = train_prompts(task, 3, 7, 20)
    assert draw == train_prompts(task, 3, 7, 20)
    assert draw[:5] == train_prompts(
        task, 3, 7, 5
    )  # dynamic sampling asks for more of the same step
    assert len({p.id for p in draw}) == 20
    assert draw != train_prompts(task, 3, 8, 20)
    assert heldout_prompts(task, 2) == heldout_prompts(task, 3)[:2]


def test_prompts_of_another_process_are_the_same(tmp_path):
    path = write(tmp_path / "p.csv")
    code = (
        "import sys; from grpo_core.tasks import *; from grpo_core.config import TaskConfig;"
        "print([p.id for p in train_prompts(load_task(TaskConfig(path=sys.argv[1])), 1, 2, 5)])"
    )
    here = [p.id for p in train_prompts(task_of(path), 1, 2, 5)]
    assert subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.strip() == str(here)


def test_a_run_continues_when_its_file_vanishes_and_notices_changes(tmp_path):
    path = write(tmp_path / "p.csv")
    task = task_of(path)
    before = train_prompts(task, 0, 1, 3)
    path.unlink()
    assert train_prompts(task, 0, 1, 3) == before
    write(path, [{"question": "new?", "answer": "1"}] * 1 + ROWS)
    assert len(task_of(path).table.train) + len(task_of(path).table.heldout) == 61


# ---- what is counted -----------------------------------------------------------------------------


def test_duplicates_contradictions_empty_rows_and_missing_answers_are_counted_and_used_once(
    tmp_path,
):
    rows = [
        *ROWS,
        {"question": "WHAT is  1 + 1?", "answer": "2"},
        {"question": "What is 2 + 2?", "answer": "5"},
        {"question": "  ", "answer": "1"},
        {"question": "Why?", "answer": ""},
    ]
    counts = task_of(write(tmp_path / "p.csv", rows)).table.counts
    # 64 rows: 60, a copy in other case and spacing, a copy with another answer, an empty one, and
    # one without an answer.
    assert (
        counts.rows,
        counts.duplicates,
        counts.contradictions,
        counts.empty,
        counts.unanswered,
    ) == (64, 2, 1, 1, 1)


def test_training_prompts_that_are_also_in_the_heldout_file_leave_training(tmp_path):
    train, held = (
        write(tmp_path / "train.csv"),
        write(tmp_path / "test.csv", [*ROWS[50:], {"question": "What is 7 + 8?", "answer": "15"}]),
    )
    task = task_of(train, heldout_source=str(held))
    assert (len(task.table.train), len(task.table.heldout), task.table.counts.leaks) == (50, 11, 10)
    texts = {p.text for p in train_prompts(task, 0, 1, 50)}
    assert not texts & {p.text for p in heldout_prompts(task, 11)}


def test_reading_stops_at_max_rows_and_says_so(tmp_path):
    table = task_of(write(tmp_path / "p.jsonl"), max_rows=10).table
    assert (table.counts.rows, table.counts.cut) == (10, True)


def test_a_row_without_the_prompt_column_is_empty(tmp_path):
    path = write(tmp_path / "p.jsonl", [*ROWS, {"answer": "5"}])
    table = task_of(path).table
    assert (table.counts.rows, table.counts.empty) == (61, 1)
    assert len(table.train) + len(table.heldout) == 60


def test_half_a_character_in_a_chat_is_stored_as_a_question_mark(tmp_path):
    # JSON writes a lone surrogate as \\ud800; UTF-8 has no code for it.
    system = {"role": "system", "content": "\ud800"}
    chat = [system, {"role": "user", "content": "2+2?"}]
    table = task_of(write(tmp_path / "p.jsonl", [{"messages": chat, "answer": "4"}])).table
    [row] = np.concatenate([table.train, table.heldout])
    assert table.prompt(row).meta["before"] == [{"role": "system", "content": "?"}]


# ---- columns, chat, templates --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q", "answer": "a"}, "question", "answer"),
        ({"Problem": "q", "Solution": "a"}, "Problem", "Solution"),
        ({"id": 1, "problem": "q", "solution": "long", "answer": "a"}, "problem", "answer"),
        (
            {"prompt": [], "reward_model": {"ground_truth": "a"}},
            "prompt",
            "reward_model.ground_truth",
        ),
        ({"instruction": "q", "output": "a"}, "instruction", "output"),
        ({"text": "q"}, "text", ""),
    ],
)
def test_columns_are_guessed_by_the_names_that_datasets_use(row, prompt, answer):
    found = choose_columns([row], "", "")
    assert (found.prompt, found.answer) == (prompt, answer)


def test_a_missing_column_is_refused_with_the_existing_ones(tmp_path):
    path = write(tmp_path / "p.csv")
    assert (
        "task.prompt_column = 'nope': there is no such column. Columns: question, answer."
        in refusal(path, prompt_column="nope")
    )
    assert "task.answer_column = 'nope'" in refusal(path, answer_column="nope")
    assert "Name one of: a, b" in refusal(write(tmp_path / "q.csv", [{"a": "1", "b": "2"}]))


def test_chat_messages_become_history_last_user_turn_and_answer():
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
        ]
    }
    found = read(row)
    assert (found.text, found.answer) == ("2+2?", "4")
    assert [m["role"] for m in found.before] == ["system", "user", "assistant"]
    shared = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
    assert (read(shared).before, read(shared).text, read(shared).answer) == ((), "2+2?", "4")


def test_a_template_fills_columns_once_and_runs_nothing():
    row = {"question": "q {topic}", "topic": "{prompt} maths", "n": 5.0}
    assert (
        fill_template("[{topic}] {prompt} ({n}) {unknown} {n.__class__} {0}", row["question"], row)
        == "[{prompt} maths] q {topic} (5) {unknown} {n.__class__} {0}"
    )


def test_a_template_without_the_prompt_is_refused(tmp_path):
    assert "does not contain {prompt}" in refusal(write(tmp_path / "p.csv"), template="Say hello")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3*4=<<3*4=12>>12 eggs.\n#### 1,234", "1,234"),
        (r"so $x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed 5$.", "5"),
        (r"\boxed{never closed", r"\boxed{never closed"),
        ("42", "42"),
        (r"\fbox{\text{a}}", r"\text{a}"),
    ],
)
def test_the_final_answer_of_gsm8k_and_math_solutions_is_recognised(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>x</think><answer>5</answer>", "5"),
        (r"thus \boxed{5}", "5"),
        ("so\n#### 5", "5"),
        (r"\boxed{4} <answer>5</answer>", "5"),
        ("it is 5", None),
        ("", None),
    ],
)
def test_a_completion_answers_in_any_of_the_usual_ways(completion, answer):
    assert given_answer(completion) == answer


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        ("1,234", "1234", True),
        ("$5.00", "5", True),
        ("−3", "-3", True),
        ("50%", "0.5", True),
        (r"50\%", "0.5", True),
        ("3/4", ".75", True),
        ("1e-4", "0.0001", True),
        ("-0", "0", True),
        ("Paris.", " paris", True),
        ("12,34", "1234", False),
        ("1/0", "1/0", True),
        ("1/0", "2", False),
        ("", "5", False),
        ("5 apples", "5", False),
        ("5", "6", False),
        ("1e999", "1e998", False),
        ("0.333", "1/3", False),
        ("9" * 5000, "9" * 4999, False),
    ],
)
def test_answers_are_the_same_as_numbers_or_as_text(given, right, same):
    assert same_answer(given, right) is same


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=200)
def test_no_two_texts_make_the_comparison_raise(a, b):
    assert same_answer(a, a) or not a.strip()
    assert same_answer(a, b) is same_answer(b, a)
    assert grade_answer(a, Prompt("p", "q", b, "file")) in (0.0, 1.0)
    last_boxed("\\boxed{" * 3 + a)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.csv", b"\xff\xfe\x00question", "not UTF-8"),
        ("p.csv", b"PK\x03\x04....", "zip archive"),
        ("p.csv", b"\x1f\x8b\x08....", "gzip archive"),
        ("p.csv", b"question,answer\na,b,c\n", "line 2 has 3 cells, the first line 2"),
        ("p.csv", b"question,question\n1,2\n", "share a name"),
        ("p.csv", b'question,answer\n"a' + b"b" * 1_100_000, "1,000,000"),
        ("p.csv", b"q" * 1_100_000, "more than 1,000,000 characters"),
        ("p.csv", ",".join(f"c{i}" for i in range(1001)).encode() + b"\n", "1,001 columns"),
        ("p.csv", b"", "no row"),
        ("p.csv", b"question,answer\n", "no row"),
        ("p.jsonl", b'{"question": 1}\n{oops', "line 2 is not JSON"),
        ("p.jsonl", b"[1, 2]", "one JSON list"),
        ("p.jsonl", b"3", "not a JSON object"),
        ("p.jsonl", b'{"question": ' + b"[" * 50 + b"]" * 50 + b"}", "nested deeper"),
        ("p.jsonl", b"[" * 200_000, "JSON list"),
        ("p.jsonl", b'{"a":' * 100_000, "not JSON"),
        ("p.parquet", b"PAR1" + b"\0" * 100, "not a readable Parquet"),
        ("p.parquet", b"no", "not a readable Parquet"),
        ("p.exe", b"MZ", "'.exe' are not read"),
    ],
)
def test_a_file_without_prompts_is_refused_with_a_reason_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize(
    "path",
    [
        "nowhere.csv",
        "/no/such.jsonl",
        "..",
        "a/../b",
        "\0",
        "x" * 900,
        "no-slash",
        "http://example.com/x.csv",
    ],
)
def test_a_name_that_is_neither_a_file_nor_a_dataset_is_refused(path):
    with pytest.raises(InvalidConfig, match=r"task\.path"):
        load_task(TaskConfig(name="file", path=path))


def test_a_dataset_that_cannot_be_reached_is_refused_on_one_line():
    with pytest.raises(
        InvalidConfig,
        match=r"task\.path = 'nobody/nothing': the dataset cannot be read from the Hub",
    ) as caught:
        load_task(TaskConfig(path="nobody/nothing"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_parquet_bomb_is_refused_before_it_unpacks(tmp_path):
    # 500 MB of one letter are some kilobytes on disk.
    pq.write_table(
        pa.table({"question": ["a" * 2_000_000] * 256}),
        tmp_path / "p.parquet",
        compression="zstd",
        row_group_size=256,
    )
    assert (tmp_path / "p.parquet").stat().st_size < 1_000_000
    assert "256 rows take" in refusal(tmp_path / "p.parquet")


# ---- size ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_hundred_thousand_rows_take_less_memory_than_their_file(tmp_path):
    # In another process, because peak memory never falls. The file has 60 MB, index and batches a
    # few MB, so the limit is half the file.
    path = tmp_path / "big.jsonl"
    with path.open("w") as out:
        for i in range(200_000):
            out.write(json.dumps({"question": f"{i}: " + "word " * 50, "answer": str(i)}) + "\n")
    code = (
        "import sys, resource, numpy, pyarrow\nfrom grpo_core.tasks import *\n"
        "from grpo_core.config import TaskConfig\nimport grpo_core.tasks.table\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\nt = load_task(TaskConfig(path=sys.argv[1]))\n"
        "[train_prompts(t, 0, s, 64) for s in range(50)]\n"
        "print(peak() - before, len(t.table.train) + len(t.table.heldout))"
    )
    grown, rows = map(
        int,
        subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        ).stdout.split(),
    )
    assert rows == 200_000
    assert grown * 1024 < path.stat().st_size / 2


# ---- too long for the model ----------------------------------------------------------------------


def test_prompts_beyond_the_context_are_counted_and_refused_or_dropped(tmp_path, tiny_model):
    import torch

    from grpo_core.config import ModelConfig
    from grpo_core.models import load_policy
    from grpo_core.models.context_fit import fit_to_context

    policy = load_policy(
        ModelConfig(name=str(tiny_model)), 0, torch.device("cpu")
    )  # a context of 128
    # One token a character here: 100 fits beside 16 new tokens and 112 just does, 113 does not.
    rows = [{"question": chr(97 + i % 26) * (20 + i), "answer": "1"} for i in range(60)] + [
        {"question": "x" * n, "answer": "1"} for n in (112, 113, 400)
    ]
    lengths = [len(policy.encode(Prompt("", r["question"], "", ""), "")) for r in rows]
    too_long = sum(n > 128 - 16 for n in lengths)
    assert 0 < too_long < 10
    path = write(tmp_path / "p.csv", rows)

    def config(choice: str) -> RunConfig:
        return parse(
            nest({"task.path": str(path), "task.too_long": choice, "train.max_new_tokens": 16})
        )

    with pytest.raises(
        InvalidConfig,
        match=rf"task\.too_long = 'refuse': {too_long} of 63 prompts leave no room for 16",
    ):
        fit_to_context(load_task(config("refuse").task), policy, config("refuse"))
    kept = fit_to_context(load_task(config("drop").task), policy, config("drop")).table
    assert len(kept.train) + len(kept.heldout) == 63 - too_long
    texts = [kept.prompt(row).text for row in np.concatenate([kept.train, kept.heldout])]
    assert max(len(policy.encode(Prompt("", t, "", ""), "")) for t in texts) <= 112


def test_the_preview_shows_prompts_as_the_model_reads_them(tmp_path, tiny_model):
    from grpo_core.preflight.service import PreflightService

    config = parse(
        nest(
            {
                "task.path": str(write(tmp_path / "p.csv")),
                "model.name": str(tiny_model),
                "task.template": "Q: {prompt}",
                "task.system": "Sums.",
            }
        )
    )
    found = PreflightService().preview(config, 3)
    assert [p.heldout for p in found.prompts] == [False] * 3 + [True]
    assert all(
        p.text.startswith("Sums.\n\nQ: What is ") and p.num_tokens > 10 for p in found.prompts
    )
    assert found.counts["rows"] == 60
    assert found.counts["prompt_column"] == "question"
    assert found.counts["too_long"] == 0
