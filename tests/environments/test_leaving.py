"""What leaves with a run in an environment: TRL's script, an exported model, the command line."""

from __future__ import annotations

import json
import runpy

import pytest
import torch

from grpo_core.cli import main
from grpo_core.config import ModelConfig, nest, parse
from grpo_core.environments.registry import add_environments
from grpo_core.exporting.play_request import PlayRequest, State
from grpo_core.exporting.recipes import as_trl_script
from grpo_core.models import load_policy
from grpo_core.preflight.service import PreflightService
from grpo_core.store import Store
from grpo_core.types import RunStatus, TurnRole
from tests.environments.conftest import ASKED
from tests.environments.test_environment_runs import GAME
from tests.environments.test_play_turns import completions, config, timeless
from tests.environments.test_tool_chat import TEMPLATES

FUNCTIONS = '''
def double(number: int) -> int:
    """
    Double a number.

    Args:
        number: What is doubled.
    """
    return 2 * number
'''


@pytest.fixture(scope="module")
def chat_model(tiny_model, tmp_path_factory):
    """A tiny model with Qwen 3's template, which TRL knows to call tools."""
    policy = load_policy(ModelConfig(name=str(tiny_model)), seed=0, device=torch.device("cpu"))
    tokenizer, model = policy.tokenizer, policy.model
    names = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    model.resize_token_embeddings(len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.max_position_embeddings = 4096
    folder = tmp_path_factory.mktemp("models") / "chats"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def script_of(model, tmp_path, **more) -> str:
    small = {
        "train.steps": 1,
        "train.prompts_per_step": 1,
        "train.group_size": 2,
        "train.max_new_tokens": 4,
        "task.heldout_size": 0,
    }
    script = as_trl_script(config(model, **small, **more))
    (tmp_path / "run.py").write_text(script)
    return script


def done(environment=None, *messages) -> dict:
    """What TRL hands to a reward function, for one completion."""
    more = {"completions": [list(messages)]}
    return more | ({"environments": [environment]} if environment else {})


def test_the_trl_script_trains_in_the_environment(chat_model, tmp_path, monkeypatch):
    script = script_of(chat_model, tmp_path)
    assert "#   rollout.tool_seconds = 5.0" in script
    assert "task.environment" not in script.partition("import json")[0]
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    trainer = ran["trainer"]
    assert [t.__name__ for t in trainer.tools] == ["calculate"]
    assert trainer.max_tool_calling_iterations == 7
    assert [e for e in trainer.state.log_history if "tools/call_frequency" in e]
    # The rubric reads what the policy said, not the tool's answer.
    said = [
        {"role": "assistant", "content": "wait ", "tool_calls": [{}]},
        {"role": "tool", "name": "calculate", "content": "<answer>9</answer>"},
        {"role": "assistant", "content": "<answer>8</answer>"},
    ]
    [completion] = ran["completed"]([[1, 2]], [0], done(ran["Environment"](), *said))
    assert completion.text.endswith("wait <answer>8</answer>")


def test_the_trl_script_uses_a_class_of_a_file(chat_model, tmp_path, monkeypatch):
    (tmp_path / "guessing.py").write_text(GAME)
    add_environments([str(tmp_path / "guessing.py")])
    criteria = json.dumps([{"name": "environment", "check": "environment", "weight": 0.5}])
    more = {"task.environment": "GuessGame", "rubric.criteria": json.loads(criteria)}
    script = script_of(chat_model, tmp_path, **more)
    assert "runpy.run_path('guessing.py')" in script
    assert str(tmp_path) not in script.partition("CONFIG = ")[0]
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    trainer = ran["trainer"]
    assert [t.__name__ for t in trainer.tools] == ["guess"]
    # get_reward counts once, by the rubric's own weight.
    assert trainer.reward_func_names == ["environment"]
    assert trainer.reward_weights.tolist() == [0.5]
    environment = ran["Environment"]()
    environment.reset(prompt="Q")
    environment.guess("3*4")
    [completion] = ran["completed"]([[1]], [0], done(environment))
    assert completion.environment_reward == 1.0


def test_the_trl_script_gives_plain_functions_as_tools(chat_model, tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text(FUNCTIONS)
    add_environments([str(tmp_path / "doubling.py")])
    script_of(chat_model, tmp_path, **{"task.environment": "doubling"})
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path(str(tmp_path / "run.py"))
    assert [t.__name__ for t in ran["TOOLS"]] == ["double"]
    assert ran["Base"] is object


def test_the_trl_script_says_where_trl_cannot(calling_model, tmp_path, monkeypatch):
    script_of(calling_model, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="this model has none"):
        runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    served = script_of(calling_model, tmp_path, **{"task.environment": "served:somewhere"})
    assert "#   task.environment = 'served:somewhere'" in served
    assert "environment_factory" not in served


@pytest.fixture(scope="module")
def trained(calling_model, tmp_path_factory):
    """A run of one step in the environment, with a saved state."""
    path = tmp_path_factory.mktemp("trained") / "runs.sqlite"
    settings = {
        "model.name": calling_model,
        "task.name": "products",
        "task.heldout_size": 4,
        "train.steps": 1,
        "train.prompts_per_step": 2,
        "train.group_size": 4,
        "train.max_new_tokens": 80,
    }
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    assert main(["train", "--db", str(path), *sets]) == 0
    store = Store(path)
    return store, store.runs()[0].id


def test_an_exported_model_acts_as_the_run_did(trained, tmp_path):
    store, run_id = trained
    service = PreflightService(store)
    folder = service.export_model(run_id, tmp_path / "model")
    again = store.create_run(config(folder), "again", status=RunStatus.FINISHED)

    def answers(run_id, step):
        return completions(
            service.play(run_id, PlayRequest(ASKED, "12", [State(run_id, step)], 7, 1.0))
        )

    before, after = answers(run_id, 1), answers(again, 0)
    assert any(t.role is TurnRole.OBSERVATION for c in before for t in c.turns)
    assert [timeless(c) for c in after] == [timeless(c) for c in before]


def test_play_prints_each_turn(trained, capsys):
    store, run_id = trained
    ask = ["play", run_id, "--db", str(store.path), "--text", ASKED, "--answer", "12"]
    assert main([*ask, "--answers", "7", "--step", "0"]) == 0
    printed = capsys.readouterr().out
    assert 'observation: calculate({"expression": "3*4"}) → 12' in printed
    assert "action: <tool>3*4</tool>" in printed
    assert "before training" in printed
    assert main([*ask, "--answers", "7", "--turns", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [side["step"] for side in said["sides"]] == [0, 1]
    done = [a["completion"] for side in said["sides"] for a in side["answers"]]
    assert any(c["finish_reason"] == "" for c in done)
    assert main([*ask, "--temperature", "11"]) == 2
    assert "--temperature = 11.0" in capsys.readouterr().err


def test_messages_leave_by_the_command_line(trained, capsys):
    store, run_id = trained
    assert main(["export", run_id, "--db", str(store.path), "--format", "messages"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    roles = {m["role"] for row in rows for m in row["messages"]}
    assert roles == {"user", "assistant", "tool"}


def test_each_command_that_reads_settings_takes_environments(tmp_path, capsys):
    file = tmp_path / "other_game.py"
    file.write_text(GAME.replace("GuessGame", "OtherGame"))
    named = ["--environments", str(file), "--set", "task.environment=OtherGame"]
    prompts = ["prompts", "--set", "task.name=products", "--count", "1", "--json"]
    assert main([*prompts, *named]) == 0
    assert len(json.loads(capsys.readouterr().out)["prompts"]) == 2
    commands = ("train", "resume", "compare", "prompts", "model", "preflight", "score", "play")
    for command in (*commands, "export"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--environments FILE.py" in capsys.readouterr().out
    assert main(["prompts", "--environments", str(tmp_path / "none.py")]) == 2
    assert "is not a Python file" in capsys.readouterr().err


def test_a_comparison_names_the_environments_for_each_run(monkeypatch):
    from grpo_core.runs import compare

    commands = []

    class Process:
        returncode = 0

        def __init__(self, command, **_):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def communicate(self):
            return (json.dumps({"run_id": "r"}), "")

    monkeypatch.setattr(compare.subprocess, "Popen", Process)
    configs = {"GRPO": parse(nest({}))}
    compare.Comparison("db", configs, [], ["game.py"]).run([0], lambda line: None)
    [command] = commands
    assert command[-2:] == ["--environments", "game.py"]
