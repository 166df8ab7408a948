"""Games of TextArena: one with the real package, and the messages without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_core.config import TaskConfig
from grpo_core.environments import games
from grpo_core.environments.environment import FILE_HELPER
from grpo_core.environments.instances import Call, Instances
from grpo_core.environments.registry import check_environment, find_environment
from grpo_core.environments.trajectories import World, started
from grpo_core.errors import InvalidConfig
from grpo_core.tasks import heldout_prompts, load_task, train_prompts

GAME = "textarena:GuessTheNumber-v0"


def refused(name: str) -> str:
    with pytest.raises(InvalidConfig) as error:
        check_environment(name)
    return str(error.value)


@pytest.fixture
def guessing():
    pytest.importorskip("textarena", reason="TextArena is optional: pip install TextArena")
    instances = Instances(find_environment(GAME), 20, lambda: None)
    yield instances
    instances.close()


def test_a_game_is_played_move_by_move_to_its_own_reward(guessing):
    begun = guessing.start([{}] * 3, [1, 1, 2])
    assert not any(a.error for a in begun)
    assert "between 1 and 20" in begun[0].value
    # Halving the range finds the number in five moves. Siblings have the same seed and number.
    low, high, moves, said = 1, 20, [], ""
    while "Congratulations" not in said:
        move = (low + high) // 2
        [answer] = guessing.call([Call(0, "play", {"move": str(move)}, 0)])
        said = answer.value
        low, high = (move + 1, high) if "higher" in said else (low, move - 1)
        moves.append(move)
    assert len(moves) <= 5
    again = [Call(1, "play", {"move": f"[{moves[-1]}]"}, 0), Call(0, "play", {"move": "1"}, 0)]
    right, late = guessing.call(again)
    assert "Congratulations" in right.value
    assert late.error.endswith("the game is over")
    assert [a.value for a in guessing.rewards(3)] == [1.0, 1.0, 0.0]


def test_its_tool_is_described_as_it_is_written_out(guessing):
    from grpo_core.child_process import module_child

    path = str(Path(games.__file__).with_name("textarena_game.py"))
    child = module_child(FILE_HELPER, path, "20", "describe", "textarena")
    found = child.request({"do": "describe", "arguments": ["tools"], "seconds": 20}, 20)
    child.close()
    assert found["value"]["Game"]["tools"] == [*guessing.environment.tools]


def test_a_missing_package_is_one_line_with_its_pip_command(monkeypatch):
    monkeypatch.setattr(games, "find_spec", lambda name: None)
    assert refused(GAME) == (
        "task.environment = 'textarena:GuessTheNumber-v0': the package TextArena is not installed. "
        'Install it: pip install "TextArena>=0.7.4,<0.8".'
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("textarena:Chess-v0", "TextArena has no such game for one player. Known: 2048-v0"),
        ("textarena:TwentyQuestions-v0", "another model plays it too"),
        ("textarena:../x", "TextArena has no such game"),
    ],
)
def test_a_game_that_cannot_be_played_alone_is_refused(name, reason):
    assert reason in refused(name)


def test_episodes_are_other_starts_and_siblings_start_alike(guessing):
    task = load_task(TaskConfig(name="episodes", environment=GAME))
    prompts = train_prompts(task, 0, 1, 3)
    world = World(None, guessing, 2)  # pyright: ignore[reportArgumentType]
    begun = started(world, prompts, 2, [p.id for p in prompts])
    assert all("Guess The Number" in p.text and p.text.startswith("Episode ") for p in begun)
    moves = [Call(i, "play", {"move": str(n)}, 0) for i in range(6) for n in (5, 9, 13, 17)]
    said = [a.value for a in guessing.call(moves)]
    games = [said[4 * i : 4 * i + 4] for i in range(6)]
    assert all(games[2 * p] == games[2 * p + 1] for p in range(3))
    assert len({tuple(g) for g in games}) > 1
    assert not {p.id for p in heldout_prompts(task, 50)} & {p.id for p in prompts}
