"""PPO's critic: the reward still to come, estimated before every token. GRPO uses siblings instead.

Shapes: B rows, T completion tokens. State t is the prompt and the completion before token t, so a
value is read where token t is predicted. The reward arrives with the last completion token and
ends the episode, also for truncated completions, whose text the rubric has scored as it is. The KL
to the reference is a term of the loss and no part of the reward, so V predicts the reward that is
shown, and one kl_coef means the same with and without a critic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig
from grpo_core.learner.batch import Batch
from grpo_core.learner.logprobs import ScoreOptions, output_layer, score_tokens
from grpo_core.types import TIE_TOLERANCE

EPS = 1e-4  # as in advantages.py: bounds advantages that differ by rounding alone
# The head's learning rate relative to the policy's. The head must follow a moving policy. Bundled
# model, 80 steps, one seed: at 10 and initialised with 0, the critic explained none of the rewards
# and accuracy rose .335 -> .925; at 100, .945; at 100 and initialised with the mean reward, .965.
HEAD_LEARNING_RATE_FACTOR = 100.0

# ---- the estimator -----------------------------------------------------------------------------


def gae(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation      arXiv:1506.02438 eq. 16

        A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} - V_t,   V = 0 after the last token

    values, mask (B, T); rewards (B,), nan = could not be scored. Token t + 1 is the next one of the
    mask: an observation between two actions is no step. Returns (B, T); 0 where masked or unscored.
    """
    has_gaps = bool((mask[:, 1:] & ~mask[:, :-1]).any())
    if has_gaps:
        order = (~mask).long().sort(dim=1, stable=True).indices  # the mask's tokens to the left
        found = gae(values.gather(1, order), rewards, mask.gather(1, order), gamma, lam)
        return torch.zeros_like(found).scatter(1, order, found)
    counted = mask & ~rewards.isnan()[:, None]
    zero = values.new_zeros(len(values), 1)
    values = torch.where(counted, values, 0.0)
    next_values = torch.cat([values[:, 1:], zero], 1)
    step_rewards = torch.where(_is_last(mask), rewards[:, None], 0.0)
    delta = torch.where(counted, step_rewards + gamma * next_values - values, 0.0)
    advantages, running = torch.zeros_like(values), zero.squeeze(1)
    for t in reversed(range(values.shape[1])):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted reward from token t of n: γ^(n-1-t) · r, (B, T); nan where unscored."""
    left = mask.flip(1).cumsum(1).flip(1) - 1  # tokens after this one
    return rewards[:, None] * gamma ** left.clamp(min=0).to(rewards.dtype)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Scale to mean 0 and standard deviation 1 over the masked tokens; 0 elsewhere.

        A <- (A - mean) / (std + 1e-4)      sample std (ddof 1)

    0 everywhere if fewer than two tokens are masked, or all are equal.
    """
    chosen = values[mask]
    if len(chosen) < 2:
        return torch.zeros_like(values)
    return torch.where(mask, (values - chosen.mean()) / (chosen.std() + EPS), 0.0)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """Σ (V - R)²·m / N, with N tokens in the whole step, whatever the policy's aggregation is."""
    return torch.where(mask, (values - returns).square(), 0.0).sum() / max(num_tokens, 1)


def explained_variance(values: Tensor, outcomes: Tensor, mask: Tensor) -> float | None:
    """1 - Var(outcome - V) / Var(outcome) over the masked tokens; None if outcomes do not vary.

    outcomes (B, T) are the rewards to go. The λ-return that the critic is trained on contains V
    itself and would overstate the result.
    """
    outcome = outcomes[mask].double()
    error = (outcomes - values)[mask].double()
    if len(outcome) < 2 or float(outcome.max() - outcome.min()) <= TIE_TOLERANCE:
        return None
    return float(1 - error.var() / outcome.var())


def _is_last(mask: Tensor) -> Tensor:
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


# ---- the head ----------------------------------------------------------------------------------


class Critic(nn.Module):
    """A linear value head on the policy's last hidden state: V = w·h + b.

    It starts as w = 0 and b = the first step's mean reward. Started at 0, it would first learn from
    its own λ-returns that states near the end are worth more, and then have to unlearn that. The
    value loss also reaches the policy's weights, as in PPO.
    """

    begun: Tensor  # () bool: whether the bias has its starting value; saved with the weights

    def __init__(self, model: nn.Module):
        super().__init__()
        output: Tensor = output_layer(model).weight
        # At least float32: a value in bfloat16 has three digits.
        dtype = torch.promote_types(output.dtype, torch.float32)
        self.weight = nn.Parameter(torch.zeros(output.shape[1], dtype=dtype, device=output.device))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype, device=output.device))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool, device=output.device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…)"""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    @torch.no_grad()
    def values(
        self, model: nn.Module, parts: Iterable[Batch], batch: Batch, temperature: float
    ) -> Tensor:
        """V before every completion token, (B, T), 0 on padding. parts: the micro-batches."""
        mask, options = batch.completion_mask, ScoreOptions(entropy=False, states=True)
        values = torch.zeros(mask.shape, dtype=self.weight.dtype, device=mask.device)
        for part in parts:
            part_values = self(score_tokens(model, part, temperature, options).states)
            values[part.rows, : part_values.shape[1]] = part_values
        return values

    @torch.no_grad()
    def initialise(self, rewards: Tensor) -> None:
        """Set the bias to the mean of the first rewards (B,) that are not all nan."""
        if not self.begun and not rewards.isnan().all():
            self.bias.fill_(rewards.nanmean())
            self.begun.fill_(True)


# ---- values and advantages of a step -----------------------------------------------------------


@dataclass(frozen=True)
class ValueEstimates:
    """A critic's numbers for a step: (B, T), 0 outside completion tokens and where unscored."""

    advantages: Tensor  # whitened over the batch
    returns: Tensor  # λ-returns, A + V before whitening: the targets of the value loss
    values: Tensor
    scored: Tensor  # (B,) bool; unscored rows take part in nothing
    row_advantages: Tensor  # (B,) mean over a completion's tokens, recorded for the rollout
    explained_variance: float | None


def value_estimates(
    values: Tensor, rewards: Tensor, mask: Tensor, algorithm: AlgorithmConfig
) -> ValueEstimates:
    """GAE, whitened over the completion tokens of all scored rollouts. Shapes as in `gae`."""
    scored = ~rewards.isnan()
    counted = mask & scored[:, None]
    raw = gae(values, rewards, mask, algorithm.gae_gamma, algorithm.gae_lambda)
    advantages = whiten(raw, counted)
    outcomes = reward_to_go(rewards, mask, algorithm.gae_gamma)
    return ValueEstimates(
        advantages=advantages,
        returns=torch.where(counted, raw + values, 0.0),
        values=torch.where(counted, values, 0.0),
        scored=scored,
        row_advantages=advantages.sum(1) / counted.sum(1).clamp(min=1),
        explained_variance=explained_variance(values, outcomes, counted),
    )
