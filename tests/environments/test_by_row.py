"""A column `environment` of a prompt file chooses what the policy acts in, row by row."""

from __future__ import annotations

import json

import pytest

from grpo_core.config import nest, parse, with_changes
from grpo_core.environments.registry import add_environments
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import InvalidConfig
from grpo_core.models import Reader
from grpo_core.models.context_fit import fit_to_context, too_long_rows
from grpo_core.preflight import service
from grpo_core.preflight.service import PreflightService
from grpo_core.rollout import SamplingHooks, SamplingParams
from grpo_core.rubric import build_rubric
from grpo_core.runs.manager import prepare
from grpo_core.tasks import environment_of, load_task, train_prompts
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import Session, ask, sample
from tests.environments.conftest import ASKED
from tests.environments.test_tool_chat import chat_policy

DOUBLER = '''
class Doubler:
    """Its one tool says twelve, whatever it is asked."""

    def reset(self, **row):
        self.name = row["environment"]

    def twelve(self, of: str) -> str:
        """
        Say twelve.

        Args:
            of: Anything.
        """
        return "12"

    def get_reward(self) -> float:
        return 0.25
'''
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS = ("Calculator", "Doubler", "none", "", None)


@pytest.fixture(scope="module", autouse=True)
def doubler(tmp_path_factory):
    file = tmp_path_factory.mktemp("environments") / "doubler.py"
    file.write_text(DOUBLER)
    add_environments([str(file)])


def config_of(tmp_path, rows, **more):
    """A run over a file with these values in its column `environment`."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"{ASKED}{LETTERS[i]}", "answer": "12", "environment": name}
        for i, name in enumerate(rows)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return parse(nest({"task.path": str(path), "task.heldout_size": 0, **more}))


def session_of(config, policy) -> Session:
    control = RunControl()
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    worlds = Worlds(policy, lambda: None)
    return Session(config, policy, task, rubric, control.points, worlds)


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("", {"a": "Calculator", "b": "Doubler", "c": "", "d": "", "e": ""}),
        ("Doubler", {"a": "Calculator", "b": "Doubler", "c": "", "d": "Doubler", "e": "Doubler"}),
        ("none", dict.fromkeys("abcde", "")),
    ],
)
def test_a_row_s_column_comes_before_the_task_s_environment(default, expected, tmp_path):
    task = load_task(config_of(tmp_path, ROWS, **{"task.environment": default}).task)
    prompts = train_prompts(task, 0, 1, 8)
    found = {p.text[-1]: environment_of(task, p) for p in prompts}
    assert found == {n: name for n, name in expected.items() if n in found}
    assert len(found) >= 3


def test_rows_of_several_environments_are_answered_in_one_batch(policy, tmp_path):
    names = ["Calculator", "Doubler", "none", "Calculator", "Doubler", ""] * 3
    config = config_of(tmp_path, names, **{"train.seed": 3})
    session = session_of(config, policy)
    try:
        prompts = train_prompts(session.task, 3, 1, 12)
        asked = ask(session, prompts, 4, 1)
        assert [p.text for p in asked.prompts] == [p.text for p in prompts]
        done: dict[int, list] = {}
        params = SamplingParams(4, 40, 1.0, True)
        hooks = SamplingHooks(on_group_done=done.__setitem__)
        rollouts = sample(session, asked, params, hooks)
    finally:
        session.close()
    assert len(rollouts) == 48
    tools = {}
    for p, prompt in enumerate(prompts):
        siblings = rollouts[4 * p : 4 * p + 4]
        assert done.get(p, siblings) == siblings or environment_of(session.task, prompt)
        assert all(list(r.prompt_ids) == asked.prompt_ids[p] for r in siblings)
        name = environment_of(session.task, prompt)
        called = {t.tool for r in siblings for t in r.completion.turns if t.tool}
        tools.setdefault(name, set()).update(called)
        rewards = {r.completion.environment_reward for r in siblings}
        assert rewards == ({0.25} if name == "Doubler" else {None})
    assert tools[""] == set()
    assert tools["Calculator"] <= {"calculate"}
    assert tools["Doubler"] <= {"twelve"}
    assert tools["Calculator"] | tools["Doubler"] == {"calculate", "twelve"}


def test_check_model_leaves_room_for_the_calls_of_a_row(calling_model, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "SAMPLE_TOKENS", 1)
    acting, plain = (
        PreflightService().check_model(
            config_of(tmp_path, [name] * 2, **{"model.name": str(calling_model)})
        )[1]
        for name in ("Calculator", "none")
    )
    assert acting.startswith(plain)
    assert len(acting) > len(plain) > 0


def test_prompts_are_measured_with_the_tools_of_their_own_row(policy, tmp_path):
    """A chat with tools is longer: what does not fit is known before the run, row by row."""
    chatty = chat_policy(policy, "qwen3", "<|im_end|>")
    names = ["", "Calculator", "none", "Doubler"]  # the first row has no tools
    config = config_of(tmp_path, names, **{"train.max_new_tokens": 10})
    task = load_task(config.task)
    assert task.table.train[0] == 0
    plain = len(chatty.encode(task.table.prompt(0), task.instruction))
    reader = Reader(chatty.tokenizer, plain + 10, chatty.end_ids)
    worlds = Worlds(reader, lambda: None)
    encoder = worlds.encoder(task, config.rollout)
    assert sorted(too_long_rows(task, encoder, config)) == [1, 3]
    assert len(too_long_rows(task, reader, config)) == 0
    kept = fit_to_context(task, encoder, with_changes(config, {"task.too_long": "drop"}))
    assert sorted([*kept.table.train, *kept.table.heldout]) == [0, 2]


def test_an_unknown_name_is_refused_with_its_row(tmp_path):
    with pytest.raises(InvalidConfig) as error:
        prepare(config_of(tmp_path, ["Calculator", "", "Calculater"]))
    assert str(error.value) == (
        "task.path = 'Calculater': row 3, column 'environment' names 'Calculater': there is no "
        "such environment. Known: Calculator, Doubler, and textarena:GAME. Name a file with "
        "--environments. Or set task.environment to none, and no row has one."
    ).replace("Calculator, Doubler", known())
    prepare(config_of(tmp_path, ["Calculater"], **{"task.environment": "none"}))


def known() -> str:
    from grpo_core.environments.registry import BUILT_IN, _named

    return ", ".join([*BUILT_IN, *_named])


def test_a_file_without_the_column_is_read_as_before(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("prompt,answer\n1+1,2\n2+2,4\n")
    config = parse(nest({"task.path": str(path), "task.heldout_size": 0}))
    assert not load_task(config.task).by_row
