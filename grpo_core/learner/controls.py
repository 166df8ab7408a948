"""How the coefficients of KL and entropy move during a run: a state, and pure functions of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from grpo_core.config import AlgorithmConfig

# ---- KL controls: (coef, KL measured on a batch, rows of the batch) -> coef for the next batch --


def fixed(coef: float, kl: float, num_rows: int, a: AlgorithmConfig) -> float:
    """The coefficient never changes."""
    return coef


def adaptive(coef: float, kl: float, num_rows: int, a: AlgorithmConfig) -> float:
    """A proportional controller      Ziegler 2019, arXiv:1909.08593 §2.2

        coef · (1 + clip(kl/target - 1, ±0.2) · n/horizon)

    Through the clip, one batch with a few exploding estimates moves it no further than any other.
    """
    return coef * (1 + max(-0.2, min(0.2, kl / a.kl_target - 1)) * num_rows / a.kl_horizon)


@dataclass(frozen=True, slots=True)
class Control:
    """How the next coefficient is computed, and the KL above which no update is made."""

    coef: Callable[[float, float, int, AlgorithmConfig], float]
    limit: Callable[[AlgorithmConfig], float] = lambda a: math.inf
    needs_kl: bool = True  # the control reads the KL, so every rollout's KL is measured


KL_CONTROLS: dict[str, Control] = {
    "fixed": Control(fixed, needs_kl=False),
    "adaptive": Control(adaptive),
    "hard": Control(fixed, limit=lambda a: a.kl_target),
}

# Horizons during which the coefficient does not fall: 40 steps of 64 completions at the defaults,
# about as long as a run's KL grows.
WARMUP_HORIZONS = 5

# ---- the state ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CoefficientState:
    """The present coefficients and what moves them. Checkpoints save it with dataclasses.asdict."""

    kl_coef: float
    entropy_coef: float
    last_entropy: float = math.inf  # of the previous update, nats per token with a policy term
    kl_arrived: bool = False  # whether KL has ever reached its target
    num_rows: int = 0  # completions of all batches so far

    @classmethod
    def start(cls, a: AlgorithmConfig) -> CoefficientState:
        return cls(a.kl_coef, a.entropy_coef)

    def entropy_weight(self, a: AlgorithmConfig) -> float:
        """The entropy coefficient of the next update: 0 while entropy is above its target."""
        active = a.entropy_target is None or self.last_entropy <= a.entropy_target
        return self.entropy_coef if active else 0.0

    def after_update(self, entropy: float, a: AlgorithmConfig) -> CoefficientState:
        """Raise the coefficient by delta at or below the target, else lower it, within [0, max].

        Skywork-OR1, arXiv:2505.22312; the same steps as TRL's.
        """
        if a.entropy_target is None:
            return self
        step = a.entropy_coef_delta if entropy <= a.entropy_target else -a.entropy_coef_delta
        coef = min(max(self.entropy_coef + step, 0.0), a.entropy_coef_max)
        return replace(self, entropy_coef=coef, last_entropy=entropy)

    def after_batch(self, kl: float, num_rows: int, a: AlgorithmConfig) -> CoefficientState:
        """The KL coefficient for the next batch.

        It does not fall before KL has reached its target once, for at most WARMUP_HORIZONS. Every
        run starts at KL 0, and a coefficient lowered meanwhile would be far too small later. If KL
        never reaches the target, the coefficient itself keeps it down, and may then fall.
        """
        arrived = self.kl_arrived or kl >= a.kl_target
        total = self.num_rows + num_rows
        coef = KL_CONTROLS[a.kl_control].coef(self.kl_coef, kl, num_rows, a)
        if not arrived and total <= WARMUP_HORIZONS * a.kl_horizon:
            coef = max(coef, self.kl_coef)
        return replace(self, kl_coef=coef, kl_arrived=arrived, num_rows=total)
