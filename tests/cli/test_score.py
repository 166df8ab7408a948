"""The command score: rows of a file in, one object a line out."""

from __future__ import annotations

import io
import json

import pytest

from grpo_core.cli import main
from grpo_core.rubric import CHECKS


def rows(path, *values):
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values), "utf-8")
    return str(path)


def criteria(*checks, **params):
    listed = [{"name": c, "check": c, "weight": 1, "params": params} for c in checks]
    return ["--set", f"rubric.criteria={json.dumps(listed)}"]


def scored(capsys, *arguments):
    code = main(["score", *arguments, "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_row_becomes_one_object_with_scores_reward_and_reasons(tmp_path, capsys):
    file = rows(
        tmp_path / "r.jsonl",
        {"prompt": "1/2+1/4?", "completion": "<answer>**3/4**</answer>", "answer": "0.75"},
        "",
        {"prompt": "?", "completion": "it is 4", "answer": "four"},
        {"prompt": "?", "completion": "it is 4"},
    )
    code, out = scored(capsys, file, "--set", "rubric.name=number")
    assert code == 0
    assert out == [
        {"scores": {"number": 1.0, "format": 1.0, "reasoning": 0.0}, "reward": 1.2, "why": {}},
        {
            "scores": {"number": None, "format": 0.0, "reasoning": 0.0},
            "reward": 0.0,
            "why": {"number": "numeric cannot read the right answer 'four'"},
        },
        {
            "scores": {"number": None, "format": 0.0, "reasoning": 0.0},
            "reward": 0.0,
            "why": {"number": "the row has no right answer"},
        },
    ]


def test_each_row_has_its_own_reason(tmp_path, capsys):
    file = rows(
        tmp_path / "r.jsonl",
        {"prompt": "?", "completion": r"\boxed{\foo}", "answer": "1"},
        {"prompt": "?", "completion": r"\boxed{1,\ldots}", "answer": "1"},
        {"prompt": "?", "completion": r"\boxed{1}", "answer": "1"},
    )
    _, out = scored(capsys, file, *criteria("math"))
    assert [row["scores"]["math"] for row in out] == [None, None, 1.0]
    assert [row["reward"] for row in out] == [None, None, 1.0]
    assert "\\foo" in out[0]["why"]["math"]
    assert "\\ldots" in out[1]["why"]["math"]


def test_chats_and_columns_reach_the_rubric(tmp_path, capsys):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2+3?"}]},
    ]
    file = rows(
        tmp_path / "r.jsonl",
        {"prompt": chat, "completion": [{"role": "assistant", "content": "#### 5"}], "answer": 5},
    )
    _, out = scored(capsys, file, *criteria("accuracy"))
    assert out[0]["scores"] == {"accuracy": 1.0}
    file = rows(
        tmp_path / "q.jsonl", {"question": "?", "completion": "#### 5", "solution": "#### 5"}
    )
    assert scored(capsys, file, *criteria("accuracy"))[1][0]["scores"] == {"accuracy": 1.0}


def test_a_named_task_grades_by_its_own_rules(tmp_path, capsys):
    row = {"prompt": "Q: 9 from 1 2 7", "completion": "<answer>7+2*1</answer>", "answer": "1*7+2"}
    file = rows(tmp_path / "r.jsonl", row)
    assert scored(capsys, file, *criteria("accuracy"))[1][0]["scores"] == {"accuracy": 0.0}
    named = (*criteria("accuracy"), "--set", "task.name=countdown")
    assert scored(capsys, file, *named)[1][0]["scores"] == {"accuracy": 1.0}


@pytest.mark.slow
def test_tokens_are_counted_by_the_models_tokenizer(tmp_path, capsys):
    # The bundled tokenizer has a token a digit, and the end token counts: 4, of at most 3.
    file = rows(tmp_path / "r.jsonl", {"prompt": "?", "completion": "123", "answer": "123"})
    _, out = scored(capsys, file, *criteria("length", min_tokens=1, max_tokens=3))
    assert out[0]["scores"]["length"] == pytest.approx(2 - 4 / 3)


@pytest.mark.slow
def test_plugins_get_the_rows_columns(tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text("def by_level(completions, level, **columns):\n    return list(level)\n")
    file = rows(
        tmp_path / "r.jsonl",
        {"prompt": "?", "completion": "a", "level": 3},
        {"prompt": "?", "completion": "b", "level": 0.5},
        {"prompt": "?", "completion": "c"},
    )
    try:
        _, out = scored(capsys, file, "--rewards", str(plugin), *criteria("mine.by_level"))
    finally:
        CHECKS.pop("mine.by_level", None)
    assert [row["reward"] for row in out] == [3.0, 0.5, None]
    assert out[2]["why"] == {"mine.by_level": "the function gave no score"}


def test_standard_input_and_a_table_for_people(capsys, monkeypatch):
    line = json.dumps({"prompt": "?", "completion": "<answer>B\x1b[31m</answer>", "answer": "c"})
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    assert main(["score", "-", "--set", "rubric.name=multiple choice"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        "line",
        "reward",
        "choice",
        "format",
        "reasoning",
        "completion",
    ]
    assert "1 rows, mean reward 0.2, 0 without a reward" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"prompt": "a", "completion": "b"}', "", "{"], "line 3 is not JSON"),
        (['{"prompt": "a", "completion": "b"}', "[1]"], "line 2 is not a JSON object"),
        (['{"prompt": "a"}'], "line 1: there is no 'completion'"),
        (['{"prompt": "a", "completion": null}'], "line 1: there is no 'completion'"),
        (['{"prompt": "a", "completion": 5}'], "line 1: 'completion' is neither text nor chat"),
        (['{"prompt": "a", "completion": []}'], "line 1: 'completion' is neither text nor chat"),
        (
            ['{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}, '
             '{"role": "user", "content": "c"}]}'],
            "line 1: the chat in 'completion' does not end with an answer",
        ),
        (
            ['{"prompt": "a", "completion": "b"}', '{"prompt": " ", "completion": "b"}'],
            "line 2: the column 'prompt' is empty",
        ),
        (['{"completion": "b"}'], "task.prompt_column"),
        (['{"prompt": "a", "completion": "b", "completion": "c"}'], "occurs twice"),
        ([""], "has no rows"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_line_and_nothing_is_scored(tmp_path, capsys, lines, says):
    assert main(["score", rows(tmp_path / "r.jsonl", *lines), "--json"]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    [only] = printed.out.splitlines()
    assert says in json.loads(only)["error"][0]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff"}')
    for file, says in (
        ("none.jsonl", "No such file"),
        (".", "directory"),
        ("latin.jsonl", "UTF-8"),
    ):
        assert main(["score", str(tmp_path / file)]) == 2
        assert says in capsys.readouterr().err


def test_an_unknown_check_is_refused_before_any_row_is_read(tmp_path, capsys):
    assert main(["score", str(tmp_path / "none.jsonl"), *criteria("nope")]) == 2
    assert "there is no such check" in capsys.readouterr().err
