"""One optimiser step: objective and KL over micro-batches, one backward each, clip, step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner.batch import Batch
from grpo_core.learner.objectives import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES, StepSize

MAX_LOGITS = 2**28  # logits held at once, 1 GiB in float32: a vocabulary of 150,000 would need 10 GB for 16,384 tokens
MEASURED_ROWS = 8  # with kl_coef 0 the KL is measured on every eighth row only: the curve is always drawn, but cheap


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
    learning_rate: float


class Learner:
    """Holds the policy's optimiser, and the frozen reference that the KL term looks at."""

    def __init__(self, model: nn.Module, reference: nn.Module, algorithm: AlgorithmConfig, train: TrainConfig, learning_rate: float):
        self.model, self.reference = model, reference
        self.algorithm, self.train = algorithm, train
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.num_steps = 0

    def update(self, batch: Batch, advantages: Tensor, breathe: Callable[[], None] = lambda: None) -> Update:
        """Take one optimiser step on a batch sampled from the present policy.

        advantages (B,). `breathe` is called before each micro-batch and may raise to abandon the step; the weights are then as before.
        Raises NonFinite, and leaves the weights alone, when the loss or the gradient is not finite.
        """
        size = StepSize(len(advantages), int(batch.loss_mask.sum()), self.train.max_new_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(9, dtype=torch.float64, device=advantages.device)
        ratio_max = torch.zeros((), device=advantages.device)
        for start, stop in self._micro_batches(batch):
            breathe()
            loss, part, largest = self._loss(batch.rows(start, stop), advantages[start:stop], start, size)
            loss.backward()
            sums += part
            ratio_max = torch.maximum(ratio_max, largest)
        loss, policy_loss, kl, kl_tokens, entropy, ratio, low, high, tokens = sums.tolist()
        return Update(
            loss=loss, policy_loss=policy_loss, kl=kl / max(kl_tokens, 1), entropy=entropy / tokens,
            ratio_mean=ratio / tokens, ratio_max=float(ratio_max), clip_low_frac=low / tokens, clip_high_frac=high / tokens,
            grad_norm=self._step(loss), learning_rate=self.optimizer.param_groups[0]["lr"],
        )

    def _loss(self, batch: Batch, advantages: Tensor, first_row: int, size: StepSize) -> tuple[Tensor, Tensor, Tensor]:
        """A micro-batch's share of the loss, its sums for the record (float64, 9 numbers) and its largest ratio."""
        algorithm, mask = self.algorithm, batch.completion_mask.bool()
        new, entropy = token_logprobs(self.model, batch, self.train.temperature)  # (B, T) each
        # One update a batch: the sampling policy is the present one, so the ratio is 1 and only its gradient counts.
        old = new.detach()
        ratio = (new - old).exp()
        weight = advantages[:, None]
        policy = OBJECTIVES[algorithm.objective](new, ratio, weight, algorithm.clip_eps_low, algorithm.clip_eps_high)
        aggregate = AGGREGATIONS[algorithm.aggregation]
        loss = policy_loss = aggregate(policy, batch.loss_mask, size)

        trained_on = algorithm.kl_coef > 0
        every = 1 if trained_on else MEASURED_ROWS
        measured = torch.arange(first_row, first_row + len(new)) % every == 0
        kl = kl_tokens = torch.zeros((), device=new.device)
        if measured.any():
            rows = batch if trained_on else Batch(*(t[measured] for t in (batch.input_ids, batch.attention_mask, batch.completion_mask, batch.loss_mask)))
            with torch.no_grad():
                ref, _ = token_logprobs(self.reference, rows, self.train.temperature)
            estimate = KL_ESTIMATORS[algorithm.kl_estimator](ref - (new if trained_on else new.detach()[measured]))
            if trained_on:
                loss = policy_loss + algorithm.kl_coef * aggregate(estimate, batch.loss_mask, size)
            kl, kl_tokens = (estimate.detach() * rows.completion_mask).sum(), rows.completion_mask.sum()

        ratio = torch.where(mask, ratio.detach(), 1.0)
        part = torch.stack([
            loss.detach(), policy_loss.detach(), kl, kl_tokens, torch.where(mask, entropy, 0.0).sum(), torch.where(mask, ratio, 0.0).sum(),
            ((ratio < 1 - algorithm.clip_eps_low) & (weight < 0) & mask).sum(),
            ((ratio > 1 + algorithm.clip_eps_high) & (weight > 0) & mask).sum(), mask.sum(),
        ])
        return loss, part.double(), ratio.max()

    def _step(self, loss: float) -> float:
        """Clip the gradient and move the weights; returns the norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.train.max_grad_norm))
        if not (torch.tensor([loss, norm]).isfinite().all()):
            culprit = next((n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), "the loss")
            raise NonFinite(f"loss {loss}, gradient norm {norm}: first not finite in {culprit}")
        self.num_steps += 1
        warm = min(1.0, self.num_steps / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm
        self.optimizer.step()
        return norm

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """Row ranges that fit the token budget, and the logits of which fit theirs; at least one row each."""
        num_rows, width = batch.input_ids.shape
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        rows = min(self.train.micro_batch_tokens // width, MAX_LOGITS // (batch.completion_mask.shape[1] * vocabulary))
        rows = max(1, rows)
        return ((start, min(start + rows, num_rows)) for start in range(0, num_rows, rows))


def token_logprobs(model: nn.Module, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token, and the entropy of the distribution it came from, in nats.

        log π_T(y_t | y_<t) with π_T = softmax(logits / temperature)

    Returns two (B, T) float32; entropy carries no gradient. Padding columns hold finite nonsense: mask them.
    """
    num_tokens = batch.completion_mask.shape[1]
    logits = forward(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
                     position_ids=positions(batch.attention_mask), logits_to_keep=num_tokens + 1).logits
    logits = logits[:, -num_tokens - 1 : -1].float() / temperature  # (B, T, V): the position before each completion token
    normaliser = logits.logsumexp(-1)  # (B, T)
    chosen = logits.gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    with torch.no_grad():
        entropy = normaliser - ((logits - normaliser[..., None]).exp() * logits).sum(-1)
    return chosen - normaliser, entropy


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token counted from its row's first real one; padding gets 0."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def forward(model: nn.Module, **arguments: object) -> object:
    """model(**arguments), less the arguments that this architecture does not know (e.g. position_ids for ALiBi models)."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return model(**arguments)
    return model(**{k: v for k, v in arguments.items() if k in parameters})
