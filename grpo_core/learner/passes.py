"""One pass over a batch: forward, loss and backward of each micro-batch, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig
from grpo_core.config.sections import RolloutConfig
from grpo_core.learner.aggregation import LossNormalizer
from grpo_core.learner.batch import Batch
from grpo_core.learner.critic import Critic, value_loss
from grpo_core.learner.kl import KL_ESTIMATORS, NEEDS_DISTRIBUTIONS, Divergence
from grpo_core.learner.logprobs import ScoreOptions, TokenOutputs, score_tokens
from grpo_core.learner.loss import Coefficients, Loss, Tokens, loss_of
from grpo_core.learner.master_weights import MasterWeights
from grpo_core.learner.objectives import clip_range
from grpo_core.learner.sampler_gap import correction, gap
from grpo_core.learner.tokens import TokenLog
from grpo_core.models.lora import AdapterOff

CheckInterrupt = Callable[[], None]


def in_turn(parts: Iterable[Batch], check_interrupt: CheckInterrupt) -> Iterator[Batch]:
    """Each micro-batch, after a call of `check_interrupt`. Its layouts are freed after its turn."""
    for part in parts:
        check_interrupt()
        yield part
        part.forget_layouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMeans:
    """Of one pass over a batch, or the mean over its passes. Means are over completion tokens."""

    loss: float
    policy_loss: float
    kl_loss: float
    entropy_loss: float
    value_loss: float | None  # None: no critic
    kl: float | None  # nats; None: not measured in this pass
    entropy: float | None  # nats
    entropy_coef: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    off_policy_frac: float  # of rows
    sampler_kl: float | None  # nats; None: the sampler's log-probabilities were not kept
    sampler_ratio_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult(PassMeans):
    """One forward and backward over the whole batch."""

    high_entropy: float  # mean entropy of the tokens at or above the entropy threshold


@dataclass(frozen=True, slots=True)
class PassInputs:
    """What the micro-batches of one pass share. B rows of the step, T completion tokens."""

    advantages: Tensor  # (B,), or a critic's advantages and returns, (B, T, 2)
    update: int  # 0 for the batch's first update
    coef: Coefficients
    size: LossNormalizer
    needs_kl: bool  # whether the reference scores every row
    log: TokenLog
    check_interrupt: CheckInterrupt


# Sums over a pass's tokens or micro-batches, in float64.
_SUMS = (
    "loss",
    "policy_loss",
    "kl_loss",
    "entropy_loss",
    "value_loss",
    "high_entropy",
    "kl",
    "kl_tokens",
    "entropy",
    "ratio",
    "clip_low",
    "clip_high",
    "dropped",
    "tokens",
    "sampler_kl",
    "sampler_tokens",
)


@dataclass(frozen=True, slots=True)
class PassSums:
    """A worker's share of a pass: its _SUMS, and its largest ratios."""

    sums: list[float]
    ratio_max: float
    sampler_ratio_max: float


@dataclass(frozen=True, slots=True)
class _PartResult:
    """A micro-batch's share of the loss, its _SUMS (float64) and its largest ratios."""

    loss: Tensor
    sums: Tensor
    ratio_max: Tensor
    sampler_ratio_max: Tensor


@dataclass(frozen=True)
class Passes:
    """What all passes of a run share: the models and the algorithm."""

    model: nn.Module
    weights: MasterWeights  # the model's, where the gradient is summed
    reference: nn.Module | None
    critic: Critic | None
    algorithm: AlgorithmConfig
    temperature: float
    recompute: bool = False  # layers keep only their inputs for the backward pass
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def score(
        self, model: nn.Module, part: Batch, options: ScoreOptions | None = None
    ) -> TokenOutputs:
        """`score_tokens`, with distributions where the KL estimator needs them."""
        if isinstance(model, AdapterOff):
            with model.off() as base:
                return self.score(base, part, options)
        distribution = (
            self.reference is not None and self.algorithm.kl_estimator in NEEDS_DISTRIBUTIONS
        )
        options = replace(options or ScoreOptions(), distribution=distribution)
        return score_tokens(model, part, self.temperature, options)

    def score_reference(self, part: Batch) -> TokenOutputs:
        assert self.reference is not None
        return self.score(self.reference, part, ScoreOptions(entropy=False))

    def backward(self, parts: Sequence[Batch], inputs: PassInputs) -> PassSums:
        """Leave the gradient of these parts in `weights`, and each token's numbers in the log."""
        device = next(self.model.parameters()).device
        total = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        ratio_max = sampler_ratio_max = torch.zeros((), device=device)
        for part in in_turn(parts, inputs.check_interrupt):
            result = self._part(part, inputs)
            result.loss.backward()
            self.weights.collect_gradients()
            total += result.sums
            ratio_max = torch.maximum(ratio_max, result.ratio_max)
            sampler_ratio_max = torch.maximum(sampler_ratio_max, result.sampler_ratio_max)
        return PassSums(total.tolist(), float(ratio_max), float(sampler_ratio_max))

    def result(self, found: Sequence[PassSums], inputs: PassInputs) -> PassResult:
        """What the shares of all workers come to."""
        totals = map(sum, zip(*(share.sums for share in found), strict=True))
        sums = dict(zip(_SUMS, totals, strict=True))
        has_tokens = sums["tokens"] > 0
        num_tokens = max(sums["tokens"], 1)
        compared = sums["sampler_tokens"]
        return PassResult(
            loss=sums["loss"],
            policy_loss=sums["policy_loss"],
            kl_loss=sums["kl_loss"],
            entropy_loss=sums["entropy_loss"],
            value_loss=None if self.critic is None else sums["value_loss"],
            kl=sums["kl"] / sums["kl_tokens"] if sums["kl_tokens"] else None,
            entropy=sums["entropy"] / num_tokens if has_tokens else None,
            high_entropy=sums["high_entropy"],
            entropy_coef=inputs.coef.entropy,
            ratio_mean=sums["ratio"] / num_tokens if has_tokens else 1.0,
            ratio_max=max(share.ratio_max for share in found) if has_tokens else 1.0,
            clip_low_frac=sums["clip_low"] / num_tokens,
            clip_high_frac=sums["clip_high"] / num_tokens,
            off_policy_frac=sums["dropped"] / inputs.size.num_rows,
            sampler_kl=sums["sampler_kl"] / compared if compared else None,
            sampler_ratio_max=max(s.sampler_ratio_max for s in found) if compared else None,
        )

    def _part(self, part: Batch, inputs: PassInputs) -> _PartResult:
        """Forward passes and loss of a micro-batch."""
        mask, token_log = part.completion_mask, inputs.log
        advantages = inputs.advantages[part.rows]
        reference = None
        if inputs.needs_kl:  # first, so that the policy's activations do not exist at the same time
            with torch.no_grad():
                reference = self.score_reference(part)
            token_log.write(token_log.ref_logprobs, part, reference.logprobs)
        with_critic = self.critic is not None and advantages.dim() > 1
        options = ScoreOptions(
            entropy_gradient=inputs.coef.entropy > 0,
            states=with_critic,
            recompute=self.recompute,
            in_place=True,
        )
        policy = self.score(self.model, part, options)
        assert policy.entropy is not None
        value = torch.zeros((), device=part.device)
        if with_critic:
            assert self.critic is not None
            advantages, returns = advantages[:, : mask.shape[1]].unbind(-1)  # (B, T) each
            values = self.critic(policy.states)
            value = value_loss(values, returns, part.loss_mask, inputs.size.num_tokens)
        else:
            advantages = advantages[:, None]
        if inputs.update:
            old_logprobs = token_log.read(token_log.logprobs[0], part).to(policy.logprobs.dtype)
        else:
            old_logprobs = policy.logprobs.detach()  # the first ratio is exactly 1
        token_log.write(token_log.logprobs[inputs.update], part, policy.logprobs)
        token_log.write(token_log.entropy[inputs.update], part, policy.entropy)
        sampled = part.padded_sampling_logprobs
        x = Tokens(
            logprobs=policy.logprobs,
            old_logprobs=old_logprobs,
            entropy=policy.entropy,
            completion_mask=mask,
            loss_mask=part.loss_mask,
            advantages=advantages,
            sampling_logprobs=sampled,
            correction=None
            if sampled is None
            else correction(old_logprobs, sampled, mask, self.rollout),
            ref_logprobs=reference.logprobs if reference else None,
            policy_distribution=policy.distribution,
            ref_distribution=reference.distribution if reference else None,
        )
        loss = loss_of(x, self.algorithm, inputs.coef, inputs.size)
        return self._part_result(x, loss, value, is_first=inputs.update == 0)

    def _part_result(self, x: Tokens, loss: Loss, value: Tensor, is_first: bool) -> _PartResult:
        mask = x.completion_mask
        total = loss.total + self.algorithm.value_coef * value
        ratio = torch.where(mask, loss.ratio, 1.0)
        lowest, highest = clip_range(self.algorithm)
        kl = kl_tokens = ratio.new_zeros(())
        if loss.kl is not None:
            kl = torch.where(mask, loss.kl.detach(), 0.0).sum()
            kl_tokens = mask.sum()
        sampler_kl = sampler_tokens = sampler_ratio_max = ratio.new_zeros(())
        if is_first and x.sampling_logprobs is not None:
            sampler_kl, sampler_ratio_max = gap(x.logprobs, x.sampling_logprobs, mask)
            sampler_tokens = mask.sum()
        sums = {
            "loss": total.detach(),
            "policy_loss": loss.policy.detach(),
            "kl_loss": loss.kl_loss.detach(),
            "entropy_loss": loss.entropy_loss.detach(),
            "value_loss": value.detach(),
            "high_entropy": loss.high_entropy.detach(),
            "kl": kl,
            "kl_tokens": kl_tokens,
            "entropy": torch.where(mask, x.entropy.detach(), 0.0).sum(),
            "ratio": torch.where(mask, ratio, 0.0).sum(),
            "clip_low": ((ratio < lowest) & (x.advantages < 0) & mask).sum(),
            "clip_high": ((ratio > highest) & (x.advantages > 0) & mask).sum(),
            "dropped": loss.num_dropped,
            "tokens": mask.sum(),
            "sampler_kl": sampler_kl,
            "sampler_tokens": sampler_tokens,
        }
        stacked = torch.stack([sums[name] for name in _SUMS])
        return _PartResult(total, stacked.double(), ratio.max(), sampler_ratio_max)

    @torch.no_grad()
    def measure(
        self, parts: Iterable[Batch], log: TokenLog, check_interrupt: CheckInterrupt
    ) -> tuple[float, float, int]:
        """KL to the reference and entropy before the first update: sums in nats; and the tokens.

        Numbers of the policy that the log already has are not computed again.
        """
        kl = entropy = 0.0
        num_tokens = 0
        for part in in_turn(parts, check_interrupt):
            mask = part.completion_mask
            reference = self.score_reference(part)
            policy = TokenOutputs(log.read(log.logprobs[0], part), log.read(log.entropy[0], part))
            if reference.distribution is not None or policy.logprobs[mask].isnan().any():
                policy = self.score(self.model, part)
            assert policy.entropy is not None
            log.write(log.ref_logprobs, part, reference.logprobs)
            log.write(log.logprobs[0], part, policy.logprobs)
            log.write(log.entropy[0], part, policy.entropy)
            log_ratio = torch.where(mask, reference.logprobs - policy.logprobs, 0.0)
            x = Divergence(log_ratio, policy.distribution, reference.distribution)
            kl += float(KL_ESTIMATORS[self.algorithm.kl_estimator](x)[mask].double().sum())
            entropy += float(policy.entropy[mask].double().sum())
            num_tokens += int(mask.sum())
        return kl, entropy, num_tokens

    @torch.no_grad()
    def log_after(
        self, parts: Iterable[Batch], log: TokenLog, check_interrupt: CheckInterrupt
    ) -> None:
        """Log each token's log-probability under the policy as it is now."""
        for part in in_turn(parts, check_interrupt):
            options = ScoreOptions(entropy=False)
            outputs = score_tokens(self.model, part, self.temperature, options)
            log.write(log.logprobs_after, part, outputs.logprobs)

    @torch.no_grad()
    def entropies(self, parts: Iterable[Batch], check_interrupt: CheckInterrupt) -> Tensor:
        """The entropy of every token that trains, (N,)."""
        entropies = [torch.zeros(0)]
        for part in in_turn(parts, check_interrupt):
            outputs = self.score(self.model, part)
            assert outputs.entropy is not None
            entropies.append(outputs.entropy[part.loss_mask])
        return torch.cat([e.to(entropies[-1]) for e in entropies])
