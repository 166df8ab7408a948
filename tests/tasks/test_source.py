"""Sources of prompts: headers, names that mean no file, and files that are no regular ones."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from grpo_core.config import TaskConfig
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import load_task
from grpo_core.tasks.source import read_rows
from grpo_core.tasks.table import keep_upload


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))


def refusal(path: object, **more: object) -> str:
    """The one problem of a source; it comes at once."""
    begun = time.monotonic()
    with pytest.raises(InvalidConfig) as caught:
        load_task(TaskConfig.model_validate({"path": str(path), **more}))
    assert time.monotonic() - begun < 30
    [problem] = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


# ---- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "question, answer\n1+1?, 2\n"),
        ("p.csv", " question ,answer \n1+1?,2\n"),
        ("p.csv", '"question", "answer"\n"1+1?", "2"\n'),
        ("p.csv", "question,answer,\n1+1?,2,\n"),
        ("p.csv", "question,answer,,\n1+1?,2\n"),
        ("p.csv", "sep=;\nquestion;answer\n1+1?;2\n"),
        ("p.csv", '"sep=;"\r\nquestion;answer\r\n1+1?;2\r\n'),
        ("p.csv", "\ufeffSEP=,\nquestion,answer\n1+1?,2\n"),
        ("p.csv", "sep=|\nquestion|answer\n1+1?|2\n"),
        ("p.csv", "\ufeff question;answer\n1+1?;2\n"),
        ("p.csv", "question\tanswer\n1+1?\t2\n"),
        ("p.tsv", "question \t answer\n1+1?\t2\n"),
        ("p.tab", "sep=\t\nquestion\tanswer\n1+1?\t2\n"),
        ("p.csv", '"question";answer;"a, b, c, d"\n1+1?;2;x\n'),
        ("p.csv", "\r\n".join(["Question,ANSWER", "1+1?,2", ""])),
    ],
)
def test_headers_as_spreadsheets_write_them_are_read(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    table = load_task(TaskConfig(path=str(tmp_path / name), heldout_size=0)).table
    prompt = table.prompt(0)
    assert (prompt.text, prompt.answer) == ("1+1?", "2")
    assert (table.columns.prompt.lower(), table.columns.answer.lower()) == ("question", "answer")


def test_cells_keep_their_commas_and_lines_beside_spaced_headers(tmp_path):
    (tmp_path / "p.csv").write_text('question, answer, note\n"a, b", "1\n2", c\n')
    [row] = read_rows(str(tmp_path / "p.csv"))
    assert row == {"question": "a, b", "answer": "1\n2", "note": "c"}


def test_a_column_can_be_named_as_an_old_file_spelled_it(tmp_path):
    (tmp_path / "p.csv").write_text("q, a\n1+1?, 2\n")
    config = TaskConfig(path=str(tmp_path / "p.csv"), prompt_column="q", answer_column=" a")
    assert load_task(config).table.prompt(0).answer == "2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question, question\n1,2\n", "two columns share a name: 'question'"),
        ("question,answer,\n1,2,3,4\n", "line 2 has 4 cells, the first line 3"),
        ("sep=;\nquestion;answer\n1;2;3\n", "line 3 has 3 cells, the first line 2"),
        ("question,answer\n" + '"' + ("a" * 99_999 + "\n") * 11 + '",1\n', "more than 1,000,000"),
    ],
)
def test_a_table_that_is_not_clear_is_refused_with_its_line(tmp_path, text, says):
    (tmp_path / "p.csv").write_text(text)
    assert says in refusal(tmp_path / "p.csv")


def test_a_json_name_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "a"}\n{"question": "b", "question": "c"}\n')
    assert "line 2 is not JSON: the name 'question' occurs twice" in refusal(tmp_path / "p.jsonl")


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "./docs",
        "docs/.",
        "owner/data",
        "~/x",
        "~nobody/x",
        "C:\\x",
        "C:/x",
        ".hidden/x",
        "a/..",
        "a..b/c",
        "-/-",
        "a/b/c",
        "a/b@main",
        "é/x",
        "hf://datasets/a",
        "hf://datasets/../data",
        "hf://datasets/./data",
        "hf://datasets/a/b/c.csv",
        "hf://a/b",
        "hf://buckets/a/b",
        "https://huggingface.co/datasets/a/b",
        "file:///etc/x",
    ],
)
def test_only_a_datasets_own_name_goes_to_the_hub(tmp_path, monkeypatch, name):
    for folder in ("docs", "owner/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.jsonl").write_text('{"question": "local", "answer": "1"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("grpo_core.tasks.source.hub_rows", lambda *_: pytest.fail("read"))
    for field in ("path", "second"):
        settings = {"path": name} if field == "path" else {"second": name, "name": "sums"}
        with pytest.raises(InvalidConfig, match=rf"task\.{field} = "):
            load_task(TaskConfig(**{"name": "file", **settings}))


def test_a_dataset_is_never_taken_from_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "owner/data").mkdir(parents=True)
    (tmp_path / "owner/data/train.jsonl").write_text('{"question": "local", "answer": "1"}\n')
    monkeypatch.chdir(tmp_path)
    assert "hf://datasets/owner/name" in refusal("owner/data")
    assert "cannot be read from the Hub" in refusal("hf://datasets/owner/data")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subset", "../x"),
        ("subset", ".."),
        ("subset", "a/b"),
        ("subset", "*"),
        ("subset", "C:\\x"),
        ("split", "../x"),
        ("split", "/etc/passwd"),
        ("split", "..."),
        ("split", "tr*in"),
        ("heldout_source", "../test"),
        ("heldout_source", "test.csv"),
        ("heldout_source", "./"),
    ],
)
def test_parts_of_a_dataset_are_names_and_no_paths(monkeypatch, field, value):
    monkeypatch.setattr("grpo_core.tasks.source.hub_rows", lambda *_: pytest.fail("read"))
    assert refusal("owner/data", **{field: value}).startswith(f"task.{field} = ")


# ---- files that are none -------------------------------------------------------------------------


def make(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "/dev/zero", "/dev/stdin"])
def test_only_a_regular_file_is_opened(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(kind, Path("p" + suffix))
    assert "it is " in refusal("p" + suffix)
    (tmp_path / "good.csv").write_text("question,answer\n1,2\n")
    assert "task.heldout_source" in refusal("good.csv", heldout_source="p" + suffix)


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "p.jsonl")
    monkeypatch.setattr("grpo_core.tasks.source.is_file", lambda path: True)
    assert "cannot be read" in refusal(tmp_path / "p.jsonl")


def test_what_lies_outside_of_the_allowed_folders_is_not_described(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_ROOTS", str(tmp_path / "allowed"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "p.csv").write_text("question,answer\n1,2\n")
    for name in ("folder", "p.csv", "nothing.csv"):
        assert "there is no such file" in refusal(tmp_path / name)


def test_an_upload_is_kept_on_a_server_that_reads_no_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_ROOTS", str(tmp_path / "cache/grpo-studio/uploads"))
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}))
    kept = keep_upload(tmp_path / "mine.jsonl")
    assert load_task(TaskConfig(path=str(kept))).table.prompt(0).text == "1+1?"
