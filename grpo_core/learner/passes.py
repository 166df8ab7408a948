"""One pass over a batch: for each micro-batch the forward passes, the loss and its backward; what was seen is summed up for the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig
from grpo_core.learner.aggregation import LossNormalizer, entropy_threshold
from grpo_core.learner.batch import Batch
from grpo_core.learner.critic import Critic, value_loss
from grpo_core.learner.kl import KL_ESTIMATORS, NEEDS_DISTRIBUTIONS, Divergence
from grpo_core.learner.logprobs import Scored, score_tokens
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.objectives import clip_range
from grpo_core.learner.tokens import TokenLog
from grpo_core.models.lora import AdapterOff

CheckInterrupt = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Of one pass over a batch, or averaged over its passes; means are over completion tokens unless they say otherwise."""

    loss: float
    policy_loss: float
    kl_loss: float
    entropy_loss: float
    value_loss: float | None  # None: no critic
    kl: float | None  # None: not looked at in this pass
    entropy: float | None
    entropy_coef: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    off_policy_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass(Means):
    """One forward and backward over the whole batch."""

    high_entropy: float


@dataclass(frozen=True)
class Passes:
    """What all passes of a run share: the models and how they are compared."""

    model: nn.Module
    reference: nn.Module | None
    critic: Critic | None
    algorithm: AlgorithmConfig
    temperature: float
    recompute: bool = False  # layers keep only their inputs for the gradient

    def score(self, model: nn.Module, part: Batch, **options: bool) -> Scored:
        if isinstance(model, AdapterOff):
            with model.off() as base:
                return self.score(base, part, **options)
        return score_tokens(
            model,
            part,
            self.temperature,
            distribution=self.reference is not None
            and self.algorithm.kl_estimator in NEEDS_DISTRIBUTIONS,
            **options,
        )

    def backward(
        self,
        parts: Sequence[Batch],
        advantages: Tensor,
        update: int,
        coef: Coefficients,
        size: LossNormalizer,
        watch_kl: bool,
        log: TokenLog,
        check_interrupt: CheckInterrupt,
    ) -> Pass:
        """Leave the gradient of the whole step in the parameters, and what was seen in `log`.

        advantages: of all rows of the step, (B,), or a critic's advantages and returns, (B, T, 2). update: how many went before on this batch.
        """
        device = next(self.model.parameters()).device
        sums, ratio_max = (
            torch.zeros(14, dtype=torch.float64, device=device),
            torch.zeros((), device=device),
        )
        for part in parts:
            check_interrupt()
            loss, numbers, largest = self._loss(
                part, advantages[part.rows], update, coef, size, watch_kl, log
            )
            loss.backward()
            sums += numbers
            ratio_max = torch.maximum(ratio_max, largest)
        (
            total,
            policy,
            kl_loss,
            entropy_loss,
            value,
            high,
            kl,
            kl_tokens,
            entropy,
            ratio,
            low,
            up,
            dropped,
            tokens,
        ) = sums.tolist()
        if not parts:  # every group tied: a gradient of zero, and not none, so that the optimiser's momentum goes on as it would
            for p in self.model.parameters():
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        n = max(tokens, 1)
        return Pass(
            loss=total,
            policy_loss=policy,
            kl_loss=kl_loss,
            entropy_loss=entropy_loss,
            value_loss=None if self.critic is None else value,
            kl=kl / kl_tokens if kl_tokens else None,
            entropy=entropy / n if tokens else None,
            high_entropy=high,
            entropy_coef=coef.entropy,
            ratio_mean=ratio / n if tokens else 1.0,
            ratio_max=float(ratio_max) if tokens else 1.0,
            clip_low_frac=low / n,
            clip_high_frac=up / n,
            off_policy_frac=dropped / size.num_rows,
        )

    def _loss(
        self,
        part: Batch,
        advantages: Tensor,
        update: int,
        coef: Coefficients,
        size: LossNormalizer,
        watch_kl: bool,
        log: TokenLog,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A micro-batch's share of the loss, its sums for the record (float64) and its largest ratio."""
        a, exists = self.algorithm, part.completion_mask
        with_critic = self.critic is not None and advantages.dim() > 1
        ref = None
        if watch_kl:  # first, while the policy's activations do not stand beside it
            with torch.no_grad():
                ref = self.score(self.reference, part, entropy=False)
            log.note(log.ref, part, ref.logprobs)
        policy = self.score(
            self.model,
            part,
            entropy_gradient=coef.entropy > 0,
            states=with_critic,
            recompute=self.recompute,
            in_place=True,
        )
        value = torch.zeros((), device=part.device)
        if with_critic:
            advantages, returns = advantages[:, : exists.shape[1]].unbind(-1)  # (B, T) each
            value = value_loss(self.critic(policy.states), returns, part.loss_mask, size.num_tokens)
        else:
            advantages = advantages[:, None]
        old = (
            log.of(log.logprobs[0], part).to(policy.logprobs.dtype)
            if update
            else policy.logprobs.detach()
        )  # the first ratio is exactly 1
        log.note(log.logprobs[update], part, policy.logprobs)
        log.note(log.entropy[update], part, policy.entropy)
        x = Tokens(
            policy.logprobs,
            old,
            policy.entropy,
            exists,
            part.loss_mask,
            advantages,
            part.sampled,
            ref and ref.logprobs,
            policy.distribution,
            ref and ref.distribution,
        )
        loss = loss_of(x, a, coef, size)
        total = loss.total + a.value_coef * value

        ratio, (lowest, highest) = torch.where(exists, loss.ratio, 1.0), clip_range(a)
        kl, kl_tokens = (
            (torch.where(exists, loss.kl.detach(), 0.0).sum(), exists.sum())
            if loss.kl is not None
            else (ratio.new_zeros(()),) * 2
        )
        numbers = torch.stack(
            [
                total.detach(),
                loss.policy.detach(),
                loss.kl_loss.detach(),
                loss.entropy_loss.detach(),
                value.detach(),
                loss.high_entropy.detach(),
                kl,
                kl_tokens,
                torch.where(exists, policy.entropy.detach(), 0.0).sum(),
                torch.where(exists, ratio, 0.0).sum(),
                ((ratio < lowest) & (advantages < 0) & exists).sum(),
                ((ratio > highest) & (advantages > 0) & exists).sum(),
                loss.dropped,
                exists.sum(),
            ]
        )
        return total, numbers.double(), ratio.max()

    @torch.no_grad()
    def measure(
        self, parts: Iterable[Batch], log: TokenLog, check_interrupt: CheckInterrupt
    ) -> tuple[float, float]:
        """KL to the reference and entropy, of the policy before the first update. What `log` knows already is not computed again."""
        kl = entropy = tokens = 0.0
        for part in parts:
            check_interrupt()
            exists, ref = part.completion_mask, self.score(self.reference, part, entropy=False)
            known = Scored(log.of(log.logprobs[0], part), log.of(log.entropy[0], part))
            policy = (
                self.score(self.model, part)
                if ref.distribution is not None or known.logprobs[exists].isnan().any()
                else known
            )
            for values, found in (
                (log.ref, ref.logprobs),
                (log.logprobs[0], policy.logprobs),
                (log.entropy[0], policy.entropy),
            ):
                log.note(values, part, found)
            x = Divergence(
                torch.where(exists, ref.logprobs - policy.logprobs, 0.0),
                policy.distribution,
                ref.distribution,
            )
            kl += float(KL_ESTIMATORS[self.algorithm.kl_estimator](x)[exists].double().sum())
            entropy += float(policy.entropy[exists].double().sum())
            tokens += int(exists.sum())
        return kl / max(tokens, 1), entropy / max(tokens, 1)

    @torch.no_grad()
    def cut(
        self, parts: Sequence[Batch], size: LossNormalizer, check_interrupt: CheckInterrupt
    ) -> LossNormalizer:
        """`size` with the entropy below which tokens do not carry the policy term: of the whole step, so it takes a pass of its own."""
        if self.algorithm.entropy_quantile == 1:
            return size
        found = []
        for part in parts:
            check_interrupt()
            found.append(self.score(self.model, part).entropy[part.loss_mask])
        entropy = torch.cat(found)
        threshold = entropy_threshold(entropy, self.algorithm.entropy_quantile)
        return replace(
            size, entropy_threshold=threshold, num_carrying=int((entropy >= threshold).sum())
        )
