"""One optimiser step: objective and KL over micro-batches, one backward each, clip, step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner.batch import Batch
from grpo_core.learner.critic import HEAD_SPEED, Critic, Judged, value_loss
from grpo_core.learner.logprobs import packing_is_exact, token_logprobs
from grpo_core.learner.objectives import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES, StepSize

log = logging.getLogger("grpo_studio")

MAX_LOGITS = 2**28  # logits held at once, 1 GiB in float32: a vocabulary of 150,000 would need 10 GB for 16,384 tokens
MEASURED_SHARE = 8  # with kl_coef 0 the KL is measured on an eighth of the groups only: the curve is always drawn, but cheap


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf; the weights were left as they are."""


@dataclass(frozen=True, slots=True)
class Update:
    """What the updates of one step measured; means are over completion tokens, and over the updates, unless they say otherwise."""

    loss: float
    policy_loss: float
    value_loss: float | None  # None: no critic
    explained_variance: float | None
    kl: float
    entropy: float
    ratio_mean: float
    ratio_max: float
    clip_low_frac: float
    clip_high_frac: float
    grad_norm: float
    learning_rate: float


class Learner:
    """Holds the policy's optimiser, and the frozen reference that the KL term looks at."""

    def __init__(self, model: nn.Module, reference: nn.Module, algorithm: AlgorithmConfig, train: TrainConfig, learning_rate: float):
        self.model, self.reference = model, reference
        self.algorithm, self.train = algorithm, train
        self.learning_rate = learning_rate
        self.critic = Critic(model) if algorithm.advantage == "value" else None
        parameters = [{"params": list(model.parameters()), "speed": 1.0}]
        if self.critic is not None:
            parameters.append({"params": list(self.critic.parameters()), "speed": HEAD_SPEED})
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.num_steps = 0
        self._packs: bool | None = None  # known after the first batch

    def judge(self, batch: Batch, rewards: Tensor, breathe: Callable[[], None] = lambda: None) -> Judged | None:
        """Token advantages of a batch sampled from the present policy, if there is a critic to ask. rewards (B,), nan = unscored."""
        if self.critic is None:
            return None
        batch = self._arranged(batch)

        def parts() -> Iterator[tuple[Batch, Tensor]]:
            for part in self._micro_batches(batch):
                breathe()
                yield part

        return self.critic.judge(self.model, parts(), batch, rewards, self.algorithm, self.train.temperature)

    def update(self, batch: Batch, advantages: Tensor | Judged, breathe: Callable[[], None] = lambda: None) -> Update:
        """Take the optimiser steps on a batch sampled from the present policy.

        advantages (B,), or the critic's. `breathe` is called before each micro-batch and may raise to abandon the step; the weights are
        then as the last update left them. Raises NonFinite, and leaves the weights alone, when the loss or the gradient is not finite.
        """
        judged = advantages if isinstance(advantages, Judged) else None
        if judged is not None:
            batch = replace(batch, trains=[t and s for t, s in zip(batch.trains, judged.scored.tolist(), strict=True)])
        weights = advantages[:, None] if judged is None else judged.advantages  # (B, 1) or (B, T)
        batch = self._arranged(batch)
        size = StepSize(len(batch), int(batch.loss_mask.sum()), self.train.max_new_tokens)
        old = torch.zeros(batch.completion_ids.shape, device=batch.device)  # (B, T)
        sums = torch.zeros(10, dtype=torch.float64, device=batch.device)
        ratio_max = torch.zeros((), device=batch.device)
        norms = []
        for turn in range(self.algorithm.updates_per_batch):
            self.optimizer.zero_grad(set_to_none=True)
            before = float(sums[0])
            for part, rows in self._micro_batches(batch):
                breathe()
                width = part.completion_ids.shape[1]
                loss, numbers, largest, new = self._loss(
                    part, weights[rows, :width], None if judged is None else judged.returns[rows, :width], old[rows, :width] if turn else None, size)
                loss.backward()
                sums += numbers
                ratio_max = torch.maximum(ratio_max, largest)
                if not turn:
                    old[rows, :width] = new
            norms.append(self._step(float(sums[0]) - before))
        loss, policy_loss, value, kl, kl_tokens, entropy, ratio, low, high, tokens = sums.tolist()
        turns = len(norms)
        return Update(
            loss=loss / turns, policy_loss=policy_loss / turns, value_loss=None if judged is None else value / turns,
            explained_variance=None if judged is None else judged.explained_variance, kl=kl / max(kl_tokens, 1), entropy=entropy / tokens,
            ratio_mean=ratio / tokens, ratio_max=float(ratio_max), clip_low_frac=low / tokens, clip_high_frac=high / tokens,
            grad_norm=sum(norms) / turns, learning_rate=self.optimizer.param_groups[0]["lr"],
        )

    def _loss(self, batch: Batch, weight: Tensor, returns: Tensor | None, old: Tensor | None, size: StepSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A micro-batch's share of the loss, its sums for the record (float64, 10 numbers), its largest ratio and its log-probabilities.

        weight (B, 1) or (B, T); returns (B, T) with a critic; old (B, T) from the second update on.
        """
        algorithm, mask, loss_mask, temperature = self.algorithm, batch.completion_mask, batch.loss_mask, self.train.temperature
        score = partial(token_logprobs, self.model, batch, temperature, entropy_gradient=algorithm.entropy_coef > 0)
        if self.critic is None or returns is None:
            new, entropy = score()  # (B, T) each
        else:
            (new, entropy), values = self.critic.beside(self.model, batch, score)
        # In the first update the sampling policy is the present one, so the ratio is 1 and only its gradient counts.
        ratio = torch.where(mask, new - (new.detach() if old is None else old), 0.0).exp()
        policy = OBJECTIVES[algorithm.objective](new, ratio, weight, algorithm.clip_eps_low, algorithm.clip_eps_high)
        aggregate = AGGREGATIONS[algorithm.aggregation]
        loss = policy_loss = aggregate(policy, loss_mask, size)
        value = torch.zeros_like(loss)
        if returns is not None:
            value = value_loss(values, returns, loss_mask, size.num_tokens)
            loss = loss + algorithm.value_coef * value
        if algorithm.entropy_coef > 0:
            loss = loss - algorithm.entropy_coef * aggregate(entropy, loss_mask, size)

        measured = batch if algorithm.kl_coef > 0 else batch.groups(0, -(-len(batch.prompts) // MEASURED_SHARE))
        with torch.no_grad():
            ref, _ = token_logprobs(self.reference, measured, temperature)
        d = ref - new[: ref.shape[0], : ref.shape[1]]
        kl = KL_ESTIMATORS[algorithm.kl_estimator](d)
        if algorithm.kl_coef > 0:
            loss = loss + algorithm.kl_coef * aggregate(kl, loss_mask, size)

        ratio = ratio.detach()
        numbers = torch.stack([x.detach().double() for x in (
            loss, policy_loss, value, torch.where(measured.completion_mask, kl, 0.0).sum(), measured.completion_mask.sum(),
            torch.where(mask, entropy, 0.0).sum(), torch.where(mask, ratio, 0.0).sum(),
            ((ratio < 1 - algorithm.clip_eps_low) & (weight < 0) & mask).sum(),
            ((ratio > 1 + algorithm.clip_eps_high) & (weight > 0) & mask).sum(), mask.sum())])
        return loss, numbers, ratio.max(), new.detach()

    def _step(self, loss: float) -> float:
        """Clip the gradient and move the weights; returns the norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        if self.critic is not None:  # apart, so that its first large errors do not shrink the policy's step
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.train.max_grad_norm)
        if not (torch.tensor([loss, norm]).isfinite().all()):
            culprit = next((n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), "the loss")
            raise NonFinite(f"loss {loss}, gradient norm {norm}: first not finite in {culprit}")
        self.num_steps += 1
        warm = min(1.0, self.num_steps / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * group["speed"]
        self.optimizer.step()
        return norm

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

    def _arranged(self, batch: Batch) -> Batch:
        return batch if self._can_pack(batch) else batch.ungrouped()

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """Groups of similar length together, so that little is padding, as many as fit the token budget; at least one.

        Each comes with the places of its rows in the batch.
        """
        lengths = [batch.packed_tokens(p) for p in range(len(batch.prompts))]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        budget = min(self.train.micro_batch_tokens, MAX_LOGITS // vocabulary)
        batch, lengths = batch.ordered(order), [lengths[p] for p in order]
        rows = torch.arange(len(batch), device=batch.device).view(len(order), -1)[order]  # (P, G)
        start = 0
        for stop in range(1, len(order) + 1):
            # Sorted, so the next group is the longest, and all would be padded to it.
            if stop == len(order) or (stop + 1 - start) * lengths[stop] > budget:
                yield batch.groups(start, stop), rows[start:stop].flatten()
                start = stop
