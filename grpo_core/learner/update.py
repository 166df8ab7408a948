"""One optimiser step: objective and KL over micro-batches, one backward each, clip, step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner.batch import Batch
from grpo_core.learner.logprobs import packing_is_exact, token_logprobs
from grpo_core.learner.objectives import AGGREGATIONS, CONSTRAINED, KL_ESTIMATORS, OBJECTIVES, StepSize
from grpo_core.learner.trust_region import Part, TrustRegionStep, trust_region_step

log = logging.getLogger("grpo_studio")

MAX_LOGITS = 2**28  # logits held at once, 1 GiB in float32: a vocabulary of 150,000 would need 10 GB for 16,384 tokens
MEASURED_SHARE = 8  # with kl_coef 0 the KL is measured on an eighth of the groups only: the curve is always drawn, but cheap


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf; the weights were left as they are."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step measured; means are over completion tokens unless they say otherwise."""

    loss: float
    policy_loss: float
    kl: float
    entropy: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    grad_norm: float
    learning_rate: float | None  # None: the step's length was set by a trust region
    trust_kl: float | None = None  # the trust region's readings, see TrustRegionStep
    trust_delta: float | None = None
    trust_step_frac: float | None = None
    trust_residual: float | None = None
    trust_gain: float | None = None


class Learner:
    """Holds the policy's optimiser, and the frozen reference that the KL term looks at."""

    def __init__(self, model: nn.Module, reference: nn.Module, algorithm: AlgorithmConfig, train: TrainConfig, learning_rate: float):
        self.model, self.reference = model, reference
        self.algorithm, self.train = algorithm, train
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.num_steps = 0
        self._packs: bool | None = None  # known after the first batch

    def update(self, batch: Batch, advantages: Tensor, breathe: Callable[[], None] = lambda: None) -> Update:
        """Take one optimiser step on a batch sampled from the present policy.

        advantages (B,). `breathe` is called before each micro-batch and may raise to abandon the step; the weights are then as before.
        Raises NonFinite, and leaves the weights alone, when the loss or the gradient is not finite.
        """
        if not self._can_pack(batch):
            batch = batch.ungrouped()
        size = StepSize(len(batch), int(batch.loss_mask.sum()), self.train.max_new_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(9, dtype=torch.float64, device=advantages.device)
        ratio_max = torch.zeros((), device=advantages.device)
        parts = list(self._micro_batches(batch, advantages))
        for part, weights in parts:
            breathe()
            loss, numbers, largest = self._loss(part, weights, size)
            loss.backward()
            sums += numbers
            ratio_max = torch.maximum(ratio_max, largest)
        loss, policy_loss, kl, kl_tokens, entropy, ratio, low, high, tokens = sums.tolist()
        norm = self._grad_norm(loss)
        trust = self._constrained_step(parts, size, breathe) if self.algorithm.objective in CONSTRAINED else None
        learning_rate = self._step() if trust is None else None
        return Update(
            loss=loss, policy_loss=policy_loss, kl=kl / max(kl_tokens, 1), entropy=entropy / tokens,
            ratio_mean=ratio / tokens, ratio_max=float(ratio_max), clip_low_frac=low / tokens, clip_high_frac=high / tokens,
            grad_norm=norm, learning_rate=learning_rate, **(asdict(trust) if trust else {}),
        )

    def _loss(self, batch: Batch, advantages: Tensor, size: StepSize) -> tuple[Tensor, Tensor, Tensor]:
        """A micro-batch's share of the loss, its sums for the record (float64, 9 numbers) and its largest ratio."""
        algorithm, mask, loss_mask, temperature = self.algorithm, batch.completion_mask, batch.loss_mask, self.train.temperature
        new, entropy = token_logprobs(self.model, batch, temperature)  # (B, T) each
        # One update a batch: the sampling policy is the present one, so the ratio is 1 and only its gradient counts.
        ratio = (new - new.detach()).exp()
        weight = advantages[:, None]
        policy = OBJECTIVES[algorithm.objective](new, ratio, weight, algorithm.clip_eps_low, algorithm.clip_eps_high)
        aggregate = AGGREGATIONS[algorithm.aggregation]
        loss = policy_loss = aggregate(policy, loss_mask, size)

        measured = batch if algorithm.kl_coef > 0 else batch.groups(0, -(-len(batch.prompts) // MEASURED_SHARE))
        with torch.no_grad():
            ref, _ = token_logprobs(self.reference, measured, temperature)
        d = ref - new[: ref.shape[0], : ref.shape[1]]
        kl = KL_ESTIMATORS[algorithm.kl_estimator](d)
        if algorithm.kl_coef > 0:
            loss = policy_loss + algorithm.kl_coef * aggregate(kl, loss_mask, size)

        ratio = torch.where(mask, ratio.detach(), 1.0)
        numbers = torch.stack([
            loss.detach(), policy_loss.detach(), torch.where(measured.completion_mask, kl.detach(), 0.0).sum(), measured.completion_mask.sum(),
            torch.where(mask, entropy, 0.0).sum(), torch.where(mask, ratio, 0.0).sum(),
            ((ratio < 1 - algorithm.clip_eps_low) & (weight < 0) & mask).sum(),
            ((ratio > 1 + algorithm.clip_eps_high) & (weight > 0) & mask).sum(), mask.sum(),
        ])
        return loss, numbers.double(), ratio.max()

    def _grad_norm(self, loss: float) -> float:
        """Clip the gradient; returns the norm before clipping. Raises NonFinite."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        if not (torch.tensor([loss, norm]).isfinite().all()):
            culprit = next((n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), "the loss")
            raise NonFinite(f"loss {loss}, gradient norm {norm}: first not finite in {culprit}")
        return norm

    def _step(self) -> float:
        """Move the weights by the optimiser; returns the learning rate."""
        self.num_steps += 1
        warm = min(1.0, self.num_steps / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm
        self.optimizer.step()
        return self.learning_rate * warm

    def _constrained_step(self, parts: list[Part], size: StepSize, breathe: Callable[[], None]) -> TrustRegionStep:
        """Move the weights within the trust region; no learning rate, no warm-up, no optimiser state."""
        algorithm = self.algorithm

        def loss(batch: Batch, advantages: Tensor, new: Tensor, old: Tensor) -> Tensor:
            aggregate = AGGREGATIONS[algorithm.aggregation]
            policy = OBJECTIVES[algorithm.objective](new, (new - old).exp(), advantages[:, None], algorithm.clip_eps_low, algorithm.clip_eps_high)
            total = aggregate(policy, batch.loss_mask, size)
            if algorithm.kl_coef > 0:
                ref, _ = token_logprobs(self.reference, batch, self.train.temperature)
                total = total + algorithm.kl_coef * aggregate(KL_ESTIMATORS[algorithm.kl_estimator](ref - new), batch.loss_mask, size)
            return total

        self.num_steps += 1
        return trust_region_step(self.model, parts, loss, algorithm.trust_region_delta, self.train.temperature, breathe)

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

    def _micro_batches(self, batch: Batch, advantages: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Groups of similar length together, so that little is padding, as many as fit the token budget; at least one."""
        lengths = [batch.packed_tokens(p) for p in range(len(batch.prompts))]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        budget = min(self.train.micro_batch_tokens, MAX_LOGITS // vocabulary)
        batch, lengths = batch.ordered(order), [lengths[p] for p in order]
        advantages = advantages.view(len(order), -1)[order]  # (P, G)
        start = 0
        for stop in range(1, len(order) + 1):
            # Sorted, so the next group is the longest, and all would be padded to it.
            if stop == len(order) or (stop + 1 - start) * lengths[stop] > budget:
                yield batch.groups(start, stop), advantages[start:stop].flatten()
                start = stop
