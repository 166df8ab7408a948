"""What moves the coefficients of KL and entropy during a run: a state, and pure functions from one state to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from grpo_core.config import AlgorithmConfig

# ---- KL controls: (coef, kl measured on a batch, rows of the batch) -> coef for the next ---------------------------------


def fixed(coef: float, kl: float, num_rows: int, a: AlgorithmConfig) -> float:
    """The coefficient stays."""
    return coef


def adaptive(coef: float, kl: float, num_rows: int, a: AlgorithmConfig) -> float:
    """A proportional controller: coef·(1 + clip(kl/target - 1, ±0.2)·n/horizon)      Ziegler 2019, arXiv:1909.08593 §2.2

    The clip also makes it robust: one batch in which a few tokens blow the estimate up moves it no further than any other.
    """
    return coef * (1 + max(-0.2, min(0.2, kl / a.kl_target - 1)) * num_rows / a.kl_horizon)


@dataclass(frozen=True, slots=True)
class Control:
    """How the next coefficient is found, and above which KL no update is made."""

    coef: Callable[[float, float, int, AlgorithmConfig], float]
    limit: Callable[[AlgorithmConfig], float] = lambda a: math.inf
    watches: bool = True  # reads the KL, so it must be measured on every rollout


KL_CONTROLS: dict[str, Control] = {
    "fixed": Control(fixed, watches=False),
    "adaptive": Control(adaptive),
    "hard": Control(fixed, limit=lambda a: a.kl_target),
}

WAIT = 5  # horizons: 40 steps of 64 completions at the default, about as long as a run's KL grows

# ---- the state -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steering:
    """The coefficients as they stand. All numbers, so a checkpoint saves it with `dataclasses.asdict`."""

    kl_coef: float
    entropy_coef: float
    last_entropy: float = math.inf  # of the update before, nats per carrying token
    kl_arrived: bool = False  # whether KL has ever been at its target
    num_rows: int = 0  # completions of all batches

    @classmethod
    def start(cls, a: AlgorithmConfig) -> Steering:
        return cls(a.kl_coef, a.entropy_coef)

    def entropy_weight(self, a: AlgorithmConfig) -> float:
        """The bonus of the next update: with a target it waits until entropy has fallen to it."""
        return (
            self.entropy_coef
            if a.entropy_target is None or self.last_entropy <= a.entropy_target
            else 0.0
        )

    def after_update(self, entropy: float, a: AlgorithmConfig) -> Steering:
        """coef ± delta, by whether entropy was at or below its target, within [0, max]      Skywork-OR1, arXiv:2505.22312; TRL's steps"""
        if a.entropy_target is None:
            return self
        step = a.entropy_coef_delta if entropy <= a.entropy_target else -a.entropy_coef_delta
        return replace(
            self,
            entropy_coef=min(max(self.entropy_coef + step, 0.0), a.entropy_coef_max),
            last_entropy=entropy,
        )

    def after_batch(self, kl: float, num_rows: int, a: AlgorithmConfig) -> Steering:
        """The coefficient for the next batch. At first it does not fall: not before KL came up to its target, for WAIT horizons at most.

        Every run starts from a KL of 0, which says nothing against its coefficient: lowered all the while, it would be far too small once
        there is a KL to hold, and take as long to come back. But if KL never comes up, the coefficient is what keeps it down.
        """
        arrived, num_rows = self.kl_arrived or kl >= a.kl_target, self.num_rows + num_rows
        coef = KL_CONTROLS[a.kl_control].coef(self.kl_coef, kl, num_rows - self.num_rows, a)
        if not arrived and num_rows <= WAIT * a.kl_horizon:
            coef = max(coef, self.kl_coef)
        return replace(self, kl_coef=coef, kl_arrived=arrived, num_rows=num_rows)
