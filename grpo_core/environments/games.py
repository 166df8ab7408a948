"""Single-player games of TextArena, an optional package: textarena:Sudoku-v0."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from grpo_core.environments.environment import Environment
from grpo_core.errors import FieldProblem, InvalidConfig

PREFIX = "textarena:"
INSTALL = 'Install it: pip install "TextArena>=0.7.4,<0.8".'
# Those that need no network, no other model and no word list.
GAMES = (
    "2048-v0-ultra-easy", "2048-v0-mega-easy", "2048-v0-super-easy", "2048-v0-very-easy",
    "2048-v0-easy", "2048-v0", "2048-v0-3x3", "Bandit-v0", "Bandit-v0-hard", "Blackjack-v0",
    "Blackjack-v0-long", "Countdown-v0", "Crosswords-v0", "Crosswords-v0-hardcore",
    "Cryptarithm-v0", "FifteenPuzzle-v0", "FrozenLake-v0", "FrozenLake-v0-random",
    "FrozenLake-v0-hardcore", "GuessTheNumber-v0", "GuessTheNumber-v0-hardcore", "LightsOut-v0",
    "LogicPuzzle-v0", "LogicPuzzle-v0-hard", "Mastermind-v0", "Mastermind-v0-hard",
    "Mastermind-v0-extreme", "Minesweeper-v0", "Minesweeper-v0-small", "Minesweeper-v0-medium",
    "Minesweeper-v0-hard", "PegJump-v0", "RushHour-v0", "Secretary-v0", "Secretary-v0-long",
    "Set-v0", "Slitherlink-v0", "Sokoban-v0", "Sudoku-v0-very-easy", "Sudoku-v0-easy",
    "Sudoku-v0", "Sudoku-v0-medium", "Sudoku-v0-hard", "ThreeCardMonte-v0", "TowerOfHanoi-v0",
    "TowerOfHanoi-v0-medium", "TowerOfHanoi-v0-hard", "TowerOfHanoi-v0-hardcore",
    "TowerOfHanoi-v0-extreme",
)  # fmt: skip
# Those that need NLTK's word list in the environment's own folder nltk_data.
WORD_GAMES = (
    "Hangman-v0", "Hangman-v0-hardcore", "WordLadder-v0", "WordLadder-v0-medium",
    "WordLadder-v0-hard", "Wordle-v0", "Wordle-v0-hardcore", "Wordle-v0-long",
    "Wordle-v0-long-hardcore", "WordSearch-v0", "WordSearch-v0-hardcore",
)  # fmt: skip
LEFT_OUT = {
    "GuessWho": "another model plays it too",
    "TwentyQuestions": "another model plays it too",
    "Klondike": "its file has an error in TextArena 0.7.4",
    "UltimateTexasHoldem": "its file has an error in TextArena 0.7.4",
    "Sokoban-v0-medium": "it takes a minute to start",
}
# What describing textarena_game.py gives; written out, so that it needs no package.
_PLAY = {
    "name": "play",
    "description": "Play a move of the game.",
    "parameters": {
        "type": "object",
        "properties": {
            "move": {
                "type": "string",
                "description": "The move, as the rules of the game ask for it.",
            }
        },
        "required": ["move"],
    },
    "return": {"type": "string", "description": "What happens."},
}


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return find_spec("textarena") is not None


def game(name: str) -> Environment:
    """The environment of a name such as textarena:Sudoku-v0. Raises InvalidConfig."""
    inner = name.removeprefix(PREFIX)
    if inner not in (*GAMES, *WORD_GAMES):
        reason = next((why for start, why in LEFT_OUT.items() if inner.startswith(start)), "")
        problem = reason or "TextArena has no such game for one player"
        raise _invalid(name, problem, f"Known: {', '.join(GAMES)}.")
    if not is_installed():
        raise _invalid(name, "the package TextArena is not installed", INSTALL)
    return Environment(
        name,
        str(Path(__file__).with_name("textarena_game.py")),
        ({"type": "function", "function": _PLAY},),
        has_reward=True,
        makes=f"Game:{inner}",
        imports=("textarena",),
    )


def _invalid(name: str, problem: str, hint: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem("task.environment", name, problem, hint)])
