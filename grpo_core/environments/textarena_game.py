"""A single-player game of TextArena as an environment; it runs in a locked process."""

import random

import textarena  # pyright: ignore[reportMissingImports]

ACTION = textarena.ObservationType.PLAYER_ACTION


class Game:
    """One game. Its rules and start are what reset returns; its outcome is the reward."""

    def __init__(self, name):
        self._name = name
        self._is_over = False

    def reset(self, **row) -> str:
        """Begin a game: the same one for the completions of a prompt."""
        self._game = textarena.make(f"{self._name}-raw")  # without a wrapper that repeats history
        self._game.reset(num_players=1, seed=random.getrandbits(31))
        return self._news()

    def play(self, move: str) -> str:
        """
        Play a move of the game.

        Args:
            move: The move, as the rules of the game ask for it.

        Returns:
            What happens.
        """
        if self._is_over:
            raise ValueError("the game is over")
        self._is_over, _ = self._game.step(move if "[" in move else f"[{move}]")
        return self._news()

    def get_reward(self) -> float:
        """The game's own reward; 0 for a game that is not over."""
        rewards, _ = self._game.close()
        return float((rewards or {}).get(0, 0.0))

    def _news(self) -> str:
        """What the game has said since the last move."""
        _, said = self._game.get_observation()
        lines = [message.strip() for _, message, kind in said if kind is not ACTION]
        if self._is_over:
            _, info = self._game.close()
            lines.append(str(info[0].get("reason") or "The game is over."))
        return "\n".join(lines)
