"""The optimiser steps on one batch: for each, loss over micro-batches, one backward each, clip, step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner.aggregation import StepSize, entropy_threshold
from grpo_core.learner.batch import Batch, Layout, micro_batches
from grpo_core.learner.controls import KL_CONTROLS, Steering
from grpo_core.learner.critic import HEAD_SPEED, Critic, Judged, value_loss
from grpo_core.learner.kl import KL_ESTIMATORS, NEEDS_DISTRIBUTIONS, Divergence
from grpo_core.learner.logprobs import Scored, packing_is_exact, score_tokens
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.objectives import CONSTRAINED, clip_range
from grpo_core.learner.trust_region import TrustRegionStep, trust_region_step

log = logging.getLogger("grpo_studio")

MAX_LOGITS = 2**28  # logits held at once, 1 GiB in float32: a vocabulary of 150,000 would need 10 GB for 16,384 tokens
MEASURED_SHARE = 8  # where KL is not trained on it is measured on every eighth group only: the curve is always drawn, but cheap

Part = tuple[Batch, Tensor]  # a micro-batch and its advantages (B,), or a critic's advantages and returns (B, T, 2)
Breathe = Callable[[], None]


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf; the weights were left as they are."""


@dataclass(frozen=True, slots=True)
class Update:
    """What the updates on one batch measured, averaged over them; means are over completion tokens unless they say otherwise."""

    loss: float
    policy_loss: float
    kl_loss: float
    entropy_loss: float
    value_loss: float | None  # None: no critic
    explained_variance: float | None
    kl: float
    kl_coef: float
    entropy: float
    entropy_coef: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    off_policy_frac: float
    num_updates: int
    grad_norm: float | None  # None: no update was made
    learning_rate: float | None  # None: the step's length was set by a trust region
    trust_kl: float | None = None  # the trust region's readings, see TrustRegionStep
    trust_delta: float | None = None
    trust_step_frac: float | None = None
    trust_residual: float | None = None
    trust_gain: float | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward over the whole batch."""

    loss: float
    policy_loss: float
    kl_loss: float
    entropy_loss: float
    value_loss: float | None
    kl: float | None
    entropy: float | None
    high_entropy: float
    entropy_coef: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    off_policy_frac: float


class Learner:
    """Holds the policy's optimiser, the reference that the KL term looks at, and the coefficients that move."""

    def __init__(self, model: nn.Module, reference: nn.Module, algorithm: AlgorithmConfig, train: TrainConfig, learning_rate: float):
        self.model, self.reference = model, reference
        self.algorithm, self.train = algorithm, train
        self.learning_rate = learning_rate
        self.critic = Critic(model) if algorithm.advantage == "value" else None
        parameters = [{"params": list(model.parameters()), "speed": 1.0}]
        if self.critic is not None:
            parameters.append({"params": list(self.critic.parameters()), "speed": HEAD_SPEED})
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.steering = Steering.start(algorithm)
        self.num_steps = 0  # batches
        self._packs: bool | None = None  # known after the first batch

    def judge(self, batch: Batch, rewards: Tensor, breathe: Breathe = lambda: None) -> Judged | None:
        """Token advantages of a batch sampled from the present policy, if there is a critic to ask. rewards (B,), nan = unscored."""
        if self.critic is None:
            return None
        batch = batch if self._can_pack(batch) else batch.ungrouped()

        def parts() -> Iterator[Part]:
            for part in micro_batches(batch, torch.arange(len(batch), device=batch.device), self._max_tokens):
                breathe()
                yield part

        return self.critic.judge(self.model, parts(), batch, rewards, self.algorithm, self.train.temperature)

    def update(self, batch: Batch, advantages: Tensor | Judged, breathe: Breathe = lambda: None) -> Update:
        """Take `updates_per_batch` optimiser steps on a batch sampled from the present policy.

        advantages (B,), or the critic's. `breathe` is called before each micro-batch and may raise to abandon the step; the weights are then as before it.
        Raises NonFinite, and leaves the weights alone, when the loss or the gradient is not finite.
        """
        a, control = self.algorithm, KL_CONTROLS[self.algorithm.kl_control]
        judged = advantages if isinstance(advantages, Judged) else None
        if judged is not None:
            batch = replace(batch, trains=[t and s for t, s in zip(batch.trains, judged.scored.tolist(), strict=True)])
            advantages = torch.stack([judged.advantages, judged.returns], -1)
        if not self._can_pack(batch):
            batch = batch.ungrouped()
        num_tokens = int(batch.loss_mask.sum())
        size = StepSize(len(batch), num_tokens, self.train.max_new_tokens, num_carrying=num_tokens)
        parts = self._parts(batch, advantages)
        old: list[Tensor | None] = [None] * len(parts)  # filled by the first pass: then the ratio is 1 and only its gradient counts
        measured = None if self._watches_kl else self._measure(batch, breathe)
        self.num_steps += 1
        passes: list[Pass] = []
        norms: list[float] = []
        trust: TrustRegionStep | None = None
        for _ in range(a.updates_per_batch):
            cut = self._cut(parts, size, breathe)
            passes.append(done := self._backward(parts, old, cut, breathe))
            if done.kl is not None and done.kl > control.limit(a):
                break
            norms.append(self._grad_norm(done.loss))
            trust = self._constrained_step(parts, cut, breathe) if a.objective in CONSTRAINED else self._step()
            self.steering = self.steering.after_update(done.high_entropy, a)
        kl_coef, (sampled_kl, sampled_entropy) = self.steering.kl_coef, measured or (None, None)
        self.steering = self.steering.after_batch(_last([sampled_kl, *(p.kl for p in passes)]), len(batch), a)
        if a.ref_every and self.num_steps % a.ref_every == 0:
            self._move_reference()
        return Update(
            kl=_mean([p.kl for p in passes], sampled_kl), entropy=_mean([p.entropy for p in passes], sampled_entropy), kl_coef=kl_coef,
            ratio_max=max(p.ratio_max for p in passes), num_updates=len(norms), grad_norm=_mean(norms, None),
            learning_rate=None if a.objective in CONSTRAINED else self.optimizer.param_groups[0]["lr"], **(asdict(trust) if trust else {}),
            explained_variance=judged and judged.explained_variance,
            **{name: _mean([getattr(p, name) for p in passes], None) for name in (
                "loss", "policy_loss", "kl_loss", "entropy_loss", "value_loss", "entropy_coef", "ratio_mean", "clip_low_frac", "clip_high_frac", "off_policy_frac")})

    # ---- one pass ------------------------------------------------------------------------------------------------------

    def _backward(self, parts: Sequence[Part], old: list[Tensor | None], size: StepSize, breathe: Breathe) -> Pass:
        """Leave the gradient of the whole step in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        coef = Coefficients(self.steering.kl_coef, self.steering.entropy_weight(self.algorithm))
        device = next(self.model.parameters()).device
        sums, ratio_max = torch.zeros(14, dtype=torch.float64, device=device), torch.zeros((), device=device)
        for i, (part, advantages) in enumerate(parts):
            breathe()
            loss, numbers, largest, old[i] = self._loss(part, advantages, old[i], coef, size)
            loss.backward()
            sums += numbers
            ratio_max = torch.maximum(ratio_max, largest)
        total, policy, kl_loss, entropy_loss, value, high, kl, kl_tokens, entropy, ratio, low, up, dropped, tokens = sums.tolist()
        if not parts:  # every group tied: a gradient of zero, and not none, so that the optimiser's momentum goes on as it would
            for p in self.model.parameters():
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        n = max(tokens, 1)
        return Pass(total, policy, kl_loss, entropy_loss, None if self.critic is None else value, kl / kl_tokens if kl_tokens else None, entropy / n if tokens else None, high, coef.entropy,
                    ratio / n if tokens else 1.0, float(ratio_max) if tokens else 1.0, low / n, up / n, dropped / size.num_rows)

    def _loss(self, batch: Batch, advantages: Tensor, old: Tensor | None, coef: Coefficients, size: StepSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A micro-batch's share of the loss, its sums for the record (float64), its largest ratio and its old log-probabilities."""
        a, exists = self.algorithm, batch.completion_mask
        score = partial(self._score, self.model, batch, entropy_gradient=coef.entropy > 0)
        if self.critic is None or advantages.dim() == 1:
            policy, advantages, value = score(), advantages[:, None], torch.zeros((), device=batch.device)
        else:
            advantages, returns = advantages[:, : exists.shape[1]].unbind(-1)  # (B, T) each
            policy, values = self.critic.beside(self.model, batch, score)
            value = value_loss(values, returns, batch.loss_mask, size.num_tokens)
        old = policy.logprobs.detach() if old is None else old
        with torch.no_grad():
            ref = self._score(self.reference, batch) if self._watches_kl else None
        x = Tokens(policy.logprobs, old, policy.entropy, exists, batch.loss_mask, advantages, batch.sampled, ref and ref.logprobs,
                   policy.distribution, ref and ref.distribution)
        loss = loss_of(x, a, coef, size)
        total = loss.total + a.value_coef * value

        ratio, (lowest, highest) = torch.where(exists, loss.ratio, 1.0), clip_range(a)
        kl, kl_tokens = (torch.where(exists, loss.kl.detach(), 0.0).sum(), exists.sum()) if loss.kl is not None else (ratio.new_zeros(()),) * 2
        numbers = torch.stack([
            total.detach(), loss.policy.detach(), loss.kl_loss.detach(), loss.entropy_loss.detach(), value.detach(), loss.high_entropy.detach(), kl, kl_tokens,
            torch.where(exists, policy.entropy.detach(), 0.0).sum(), torch.where(exists, ratio, 0.0).sum(),
            ((ratio < lowest) & (advantages < 0) & exists).sum(), ((ratio > highest) & (advantages > 0) & exists).sum(), loss.dropped, exists.sum(),
        ])
        return total, numbers.double(), ratio.max(), old

    def _score(self, model: nn.Module, batch: Batch, layout: Callable[..., Layout] | None = None, entropy_gradient: bool = False) -> Scored:
        return score_tokens(model, batch, self.train.temperature, layout, entropy_gradient=entropy_gradient,
                            distribution=self.algorithm.kl_estimator in NEEDS_DISTRIBUTIONS)

    def _grad_norm(self, loss: float) -> float:
        """Clip the gradient; returns the norm before clipping. Raises NonFinite."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        if self.critic is not None:  # apart, so that its first large errors do not shrink the policy's step
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.train.max_grad_norm)
        if not (torch.tensor([loss, norm]).isfinite().all()):
            culprit = next((n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), "the loss")
            raise NonFinite(f"loss {loss}, gradient norm {norm}: first not finite in {culprit}")
        return norm

    def _step(self) -> None:
        """Move the weights by the optimiser."""
        warm = min(1.0, self.num_steps / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * group["speed"]
        self.optimizer.step()

    def _constrained_step(self, parts: Sequence[Part], size: StepSize, breathe: Breathe) -> TrustRegionStep:
        """Move the weights within the trust region; no learning rate, no warm-up, no optimiser state."""
        a = self.algorithm

        def loss(batch: Batch, advantages: Tensor, new: Tensor, old: Tensor) -> Tensor:
            ref = self._score(self.reference, batch).logprobs if self.steering.kl_coef else None
            x = Tokens(new, old, torch.zeros_like(new), batch.completion_mask, batch.loss_mask, advantages[:, None], ref=ref)
            return loss_of(x, a, Coefficients(self.steering.kl_coef, entropy=0.0), size).total

        return trust_region_step(self.model, parts, loss, a.trust_region_delta, self.train.temperature, breathe)

    @torch.no_grad()
    def _cut(self, parts: Sequence[Part], size: StepSize, breathe: Breathe) -> StepSize:
        """`size` with the entropy below which tokens do not carry the policy term: of the whole step, so it takes a pass of its own."""
        if self.algorithm.entropy_quantile == 1:
            return size
        found = []
        for part, _ in parts:
            breathe()
            found.append(self._score(self.model, part).entropy[part.loss_mask])
        entropy = torch.cat(found)
        threshold = entropy_threshold(entropy, self.algorithm.entropy_quantile)
        return replace(size, entropy_threshold=threshold, num_carrying=int((entropy >= threshold).sum()))

    # ---- KL and reference ----------------------------------------------------------------------------------------------

    @property
    def _watches_kl(self) -> bool:
        """Whether KL is needed on every rollout: because it is trained on, or because something steers by it."""
        return self.steering.kl_coef > 0 or KL_CONTROLS[self.algorithm.kl_control].watches

    @torch.no_grad()
    def _measure(self, batch: Batch, breathe: Breathe) -> tuple[float, float]:
        """KL and entropy on every eighth group, whatever it teaches."""
        share = batch.ordered(range(0, len(batch.prompts), MEASURED_SHARE))
        kl = entropy = tokens = 0.0
        for part, _ in micro_batches(share, torch.zeros(len(share)), self._max_tokens):
            breathe()
            policy, ref, exists = self._score(self.model, part), self._score(self.reference, part), part.completion_mask
            x = Divergence(torch.where(exists, ref.logprobs - policy.logprobs, 0.0), policy.distribution, ref.distribution)
            kl += float(KL_ESTIMATORS[self.algorithm.kl_estimator](x)[exists].double().sum())
            entropy += float(policy.entropy[exists].double().sum())
            tokens += int(exists.sum())
        return kl / max(tokens, 1), entropy / max(tokens, 1)

    @torch.no_grad()
    def _move_reference(self) -> None:
        """π_ref ← α·π + (1 - α)·π_ref      TR-DPO, arXiv:2404.09656"""
        for ref, p in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            ref.lerp_(p.detach(), self.algorithm.ref_alpha)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep beside the policy's weights."""
        moved = self.reference.state_dict() if self.algorithm.ref_every else None
        return {"optimizer": self.optimizer.state_dict(), "steering": asdict(self.steering), "num_steps": self.num_steps, "reference": moved,
                "critic": self.critic and self.critic.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steering, self.num_steps = Steering(**state["steering"]), state["num_steps"]
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        if state["reference"] is not None:
            self.reference.load_state_dict(state["reference"])

    # ---- micro-batches -------------------------------------------------------------------------------------------------

    def _parts(self, batch: Batch, advantages: Tensor) -> list[Part]:
        """Micro-batches of what has a gradient: with neither KL, entropy nor values in the loss, a group whose advantages are all 0 has none."""
        a = self.algorithm
        if not (self.critic is not None or self._watches_kl or a.entropy_coef or a.entropy_target is not None or a.entropy_quantile < 1):
            moves = (advantages != 0) & torch.tensor(batch.trains, device=advantages.device)  # nan != 0: it must be seen, and refused
            teaches = moves.unflatten(0, (-1, batch.group_size)).any(1).nonzero().flatten().tolist()
            rows = [p * batch.group_size + g for p in teaches for g in range(batch.group_size)]
            batch, advantages = batch.ordered(teaches), advantages[rows]
        return list(micro_batches(batch, advantages, self._max_tokens)) if len(batch) else []

    @property
    def _max_tokens(self) -> int:
        return min(self.train.micro_batch_tokens, MAX_LOGITS // self.model.get_output_embeddings().weight.shape[0])

    def _can_pack(self, batch: Batch) -> bool:
        """Found out once, on the longest group of the first batch that can show it."""
        if self._packs is None:
            # Later siblings of one token are predicted by the prompt alone, and would look right whatever the mask does.
            telling = [p for p in range(len(batch.prompts)) if any(len(c) > 1 for c in batch.groups(p, p + 1).completions[1:])]
            if not telling:
                return False
            longest = max(telling, key=batch.packed_tokens)
            self._packs = packing_is_exact(self.model, batch.groups(longest, longest + 1))
            if not self._packs:
                log.warning("This architecture cannot share a prompt between completions in one row; each is computed in its own row.")
        return self._packs


def _mean(values: Sequence[float | None], otherwise: float | None) -> float | None:
    """Mean of those that were measured."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else otherwise


def _last(values: Sequence[float | None]) -> float:
    return [v for v in values if v is not None][-1]
