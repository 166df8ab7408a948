"""The examples of docs/environments.md run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from grpo_core.cli import main
from grpo_core.config import nest, parse
from grpo_core.environments.instances import Call, Instances
from grpo_core.environments.registry import add_environments, find_environment
from grpo_core.rubric import build_rubric
from tests.environments.test_leaving import trained as trained  # a fixture

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


FILES = {
    code.partition("\n")[0].removeprefix("# "): code
    for code in blocks("python")
    if code.startswith("# ")
}
COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    for name, code in FILES.items():
        (folder / name).write_text(code)
    add_environments([str(folder / name) for name in FILES])
    return folder


def answers(name: str, *calls: tuple[str, dict]) -> tuple[list, float | None]:
    environment = find_environment(name)
    with Instances(environment, 5.0, lambda: None) as instances:
        instances.start([{"prompt": "Q"}], [0])
        said = [instances.call([Call(0, tool, given, 0)])[0] for tool, given in calls]
        reward = instances.rewards(1)[0].value if environment.has_reward else None
    return said, reward


def test_every_python_block_is_a_file_that_is_tested(folder):
    assert sorted(FILES) == ["guessing.py", "temperatures.py"]
    assert len(FILES) == len(blocks("python"))


def test_the_class_of_the_page_plays_its_game(folder):
    tried = [("guess", {"number": n}) for n in range(1, 101)]
    said, reward = answers("Guessing", *tried)
    right = [a.value for a in said].index("right")
    assert [a.value for a in said[:right]] == ["higher"] * right
    assert [a.value for a in said[right + 1 :]] == ["lower"] * (99 - right)
    assert reward == 0.0  # the last guess was wrong
    said, reward = answers("Guessing", *tried[: right + 1])
    assert reward == 1.0
    [outside], _ = answers("Guessing", ("guess", {"number": 0}))
    assert "the number is from 1 to 100" in outside.error


def test_the_functions_of_the_page_are_tools(folder):
    [answer], reward = answers("temperatures", ("to_fahrenheit", {"celsius": 100.0}))
    assert (answer.value, reward) == ("212", None)


def test_the_rubric_of_the_page_is_one():
    criteria, messages = map(json.loads, blocks("json"))
    config = parse(nest({"rubric.criteria": criteria}))
    assert list(build_rubric(config.rubric).weights) == ["won", "format"]
    assert [m["role"] for m in messages["messages"]] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("line", [c for c in COMMANDS if " train " in c])
def test_the_training_commands_of_the_page_run(line, folder, calling_model, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    small = {
        "model.name": calling_model,
        "task.heldout_size": 0,
        "train.steps": 1,
        "train.prompts_per_step": 1,
        "train.group_size": 2,
        "train.max_new_tokens": 40,
        "train.checkpoint_every": 0,
    }
    sets = [part for k, v in small.items() for part in ("--set", f"{k}={v}")]
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "grpo_core"]
    assert main([*words[3:], "--db", str(tmp_path / "runs.sqlite"), *sets]) == 0


def test_the_export_command_of_the_page_runs(trained, monkeypatch, tmp_path):
    [line] = [c for c in COMMANDS if " export " in c]
    monkeypatch.chdir(tmp_path)
    store, _ = trained
    assert main([*shlex.split(line)[3:], "--db", str(store.path)]) == 0
    rows = [json.loads(text) for text in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert all(set(m) == {"role", "content", "name"} for row in rows for m in row["messages"])


def test_every_command_of_the_page_is_tested():
    kinds = (" train ", " export ", "app.py --environments")
    assert all(any(kind in line for kind in kinds) for line in COMMANDS)
