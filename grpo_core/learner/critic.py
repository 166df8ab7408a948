"""PPO's critic: how much reward is still to come, asked before every token. GRPO asks the siblings instead and needs none of this.

Shapes: B rows, T completion tokens. State t is the prompt and the completion up to token t, so a value is read where token t is
predicted. The reward arrives with the last completion token and ends the episode, cut completions included: the rubric has judged
the cut text, so nothing is still to come. The KL to the reference is a term of the loss, as everywhere here, and no part of the reward:
then V predicts what the cards show, and one kl_coef means the same with and without a critic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig
from grpo_core.learner.batch import Batch
from grpo_core.learner.logprobs import score_tokens
from grpo_core.types import TIE_TOLERANCE

EPS = 1e-4  # as for groups: keeps a batch finite in which nothing but rounding differs
# The head's learning rate over the policy's. It starts from nothing and must follow a policy that moves. Bundled model, 80 steps, one
# seed: at 10 and begun at 0 the critic explained none of the rewards and accuracy rose .335 -> .925; at 100 .945; begun at the mean too, .965.
HEAD_SPEED = 100.0

# ---- the estimator ------------------------------------------------------------------------------------------------------


def gae(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Was the reward after this token better than foreseen before it?

        A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} - V_t      GAE, arXiv:1506.02438 eq. 16; V after the last token is 0

    values, mask (B, T), the mask's tokens to the left; rewards (B,), nan = could not be scored. Returns (B, T); 0 where masked or unscored.
    """
    counts = mask & ~rewards.isnan()[:, None]
    beyond = values.new_zeros(len(values), 1)
    values = torch.where(counts, values, 0.0)
    ahead = torch.cat([values[:, 1:], beyond], 1)
    delta = torch.where(
        counts, torch.where(_is_last(mask), rewards[:, None], 0.0) + gamma * ahead - values, 0.0
    )
    advantages, running = torch.zeros_like(values), beyond.squeeze(1)
    for t in reversed(range(values.shape[1])):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """What came in the end, seen from token t of a completion of n tokens: γ^(n-1-t) · r. (B, T); nan where unscored."""
    left = mask.flip(1).cumsum(1).flip(1) - 1  # tokens after this one
    return rewards[:, None] * gamma ** left.clamp(min=0).to(rewards.dtype)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """To mean 0 and standard deviation 1 over the tokens of the mask, 0 elsewhere. Fewer than two tokens, or all equal: 0.

    A <- (A - mean) / (std + 1e-4)      sample std (ddof 1)
    """
    chosen = values[mask]
    if len(chosen) < 2:
        return torch.zeros_like(values)
    return torch.where(mask, (values - chosen.mean()) / (chosen.std() + EPS), 0.0)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """How wrong was the critic? Σ (V - R)²·m / N, N of the whole step whatever the policy's aggregation: a value's error has no length."""
    return torch.where(mask, (values - returns).square(), 0.0).sum() / max(num_tokens, 1)


def explained_variance(values: Tensor, outcomes: Tensor, mask: Tensor) -> float | None:
    """1 - Var(outcome - V) / Var(outcome) over the tokens of the mask; None where outcomes do not vary.

    Against what came in the end, not against the λ-return that the critic is trained on: that one is made of V and flatters it.
    """
    outcome, error = outcomes[mask].double(), (outcomes - values)[mask].double()
    if len(outcome) < 2 or float(outcome.max() - outcome.min()) <= TIE_TOLERANCE:
        return None
    return float(1 - error.var() / outcome.var())


def _is_last(mask: Tensor) -> Tensor:
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


# ---- the head -----------------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """A linear value head on the policy's last hidden state: V = w·h + b, at first the mean reward of the first step, everywhere.

    Begun at 0 instead, it would first learn from its own λ-returns that states near the end are worth more, and unlearn it for the
    rest of the run. The value loss reaches the policy's trunk too, as in PPO.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        output = model.get_output_embeddings()
        precision = torch.promote_types(
            output.weight.dtype, torch.float32
        )  # a value in bfloat16 has three digits
        self.weight = nn.Parameter(
            torch.zeros(output.weight.shape[1], dtype=precision, device=output.weight.device)
        )
        self.bias = nn.Parameter(torch.zeros((), dtype=precision, device=output.weight.device))
        self.register_buffer(
            "begun", torch.zeros((), dtype=torch.bool, device=output.weight.device)
        )  # in the checkpoint, with the weights

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) -> (…)"""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    def judge(
        self,
        model: nn.Module,
        parts: Iterable[Batch],
        batch: Batch,
        rewards: Tensor,
        algorithm: AlgorithmConfig,
        temperature: float,
    ) -> Judged:
        """Values of a step's rollouts before the policy moves, and what follows from them.

        rewards (B,), nan = could not be scored. parts: the batch in micro-batches.
        """
        mask, rewards = batch.completion_mask, rewards.to(self.weight)
        self._begin(rewards)
        values = torch.zeros(mask.shape, dtype=self.weight.dtype, device=mask.device)
        with torch.no_grad():
            for part in parts:
                found = self(score_tokens(model, part, temperature, states=True).states)
                values[part.rows, : found.shape[1]] = found
        return judge(values, rewards, mask, algorithm)

    @torch.no_grad()
    def _begin(self, rewards: Tensor) -> None:
        if not self.begun and not rewards.isnan().all():
            self.bias.fill_(rewards.nanmean())
            self.begun.fill_(True)


# ---- a step's rollouts in the critic's eyes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a critic makes of a step's rollouts. (B, T) over completion tokens, 0 outside of them and where unscored."""

    advantages: Tensor  # whitened over the batch
    returns: Tensor  # λ-returns A + V before whitening: what the values are drawn to
    values: Tensor
    scored: Tensor  # (B,) bool; the others have no part in anything
    row_advantages: (
        Tensor  # (B,) mean over a completion's tokens: the one figure that is recorded of a rollout
    )
    explained_variance: float | None


def judge(values: Tensor, rewards: Tensor, mask: Tensor, algorithm: AlgorithmConfig) -> Judged:
    """GAE, whitened over the completion tokens of all scored rollouts, siblings or not. Shapes as in `gae`."""
    scored = ~rewards.isnan()
    counts = mask & scored[:, None]
    raw = gae(values, rewards, mask, algorithm.gae_gamma, algorithm.gae_lambda)
    advantages = whiten(raw, counts)
    outcomes = reward_to_go(rewards, mask, algorithm.gae_gamma)
    return Judged(
        advantages,
        torch.where(counts, raw + values, 0.0),
        torch.where(counts, values, 0.0),
        scored,
        advantages.sum(1) / counts.sum(1).clamp(min=1),
        explained_variance(values, outcomes, counts),
    )
