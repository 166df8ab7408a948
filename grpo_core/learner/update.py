"""The optimiser steps on one batch, and the state that continues from batch to batch.

One update is a pass over the batch's micro-batches, gradient clipping and a step of the optimiser.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.config.sections import RolloutConfig
from grpo_core.learner.adam import allocate_averages, take_step
from grpo_core.learner.aggregation import LossNormalizer, entropy_threshold
from grpo_core.learner.batch import Batch, packed
from grpo_core.learner.clipping import clip_gradient
from grpo_core.learner.controls import KL_CONTROLS, CoefficientState
from grpo_core.learner.critic import (
    HEAD_LEARNING_RATE_FACTOR,
    Critic,
    ValueEstimates,
    value_estimates,
)
from grpo_core.learner.logprobs import output_layer
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.master_weights import MasterWeights, sum_gradients
from grpo_core.learner.memory import MicroBatcher
from grpo_core.learner.objectives import CONSTRAINED
from grpo_core.learner.packing import Packing
from grpo_core.learner.passes import (
    CheckInterrupt,
    Passes,
    PassInputs,
    PassResult,
    PassSums,
    in_turn,
)
from grpo_core.learner.tokens import TokenLog
from grpo_core.learner.trust_region import Surrogate, TrustRegionStep, trust_region_step
from grpo_core.learner.update_result import Update, mean_of_known, pass_means
from grpo_core.learner.workers import ALONE, Workers
from grpo_core.models.lora import adapter_layers, scale_adapters
from grpo_core.types import TokenRecord

# A KL that is not trained on is measured on one row in this many, so that its curve costs little.
ROWS_PER_MEASURED = 8
COEFS = ("kl_coef", "entropy_coef")  # set by a person, moved by a controller
# Fraction of the way to the reference above a hard KL limit. KL falls by about a fifth, several
# times what one update adds.
STEP_BACK = 0.1
# Up to so many trained parameters, every worker keeps all that is learned: 4 GiB, with gradients.
WHOLE_PARAMETERS = 2**28


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """The learner's part of a run's configuration."""

    algorithm: AlgorithmConfig
    train: TrainConfig
    learning_rate: float
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


@dataclass(frozen=True, slots=True)
class _BatchInputs:
    """What all updates on one batch share."""

    batch: Batch  # grouped if this model computes groups exactly
    gradient_rows: Batch  # those of its rows that have a gradient
    advantages: Tensor  # (B,), or a critic's advantages and returns, (B, T, 2)
    size: LossNormalizer
    needs_kl: bool
    check_interrupt: CheckInterrupt


class Learner:
    """The policy's optimiser, its reference and critic, and the coefficients that move.

    reference None: the KL is never measured. workers: each has a learner of the same weights and
    gives its batch, the groups that are its share of the step; all then take the same update.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        settings: LearnerSettings,
        recompute: bool = False,
        workers: Workers = ALONE,
    ):
        self.workers = workers
        self.model, self.reference = model, reference
        self.algorithm, self.train = settings.algorithm, settings.train
        self.learning_rate = settings.learning_rate
        self.critic = Critic(model) if self.algorithm.advantage == "value" else None
        self.weights = weights_of(model, workers)
        self.passes = Passes(
            model,
            self.weights,
            reference,
            self.critic,
            self.algorithm,
            self.train.temperature,
            recompute,
            settings.rollout,
        )
        self.micro_batcher = MicroBatcher(model, self.train.micro_batch_tokens)
        parameters: list[dict[str, Any]] = [{"params": self.weights.parameters(), "speed": 1.0}]
        if self.critic is not None:
            head = list(self.critic.parameters())
            parameters.append({"params": head, "speed": HEAD_LEARNING_RATE_FACTOR})
        betas = self.train.adam_beta1, self.train.adam_beta2
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=betas, weight_decay=0.0, fused=True
        )
        self.coefficients = CoefficientState.start(self.algorithm)
        self.num_steps = 0  # batches
        # Some but not all updates of a batch are done: the weights belong to no step.
        self.midway = False
        self.log: TokenLog | None = None  # of the last batch
        # A trust region differentiates twice, which only the model's own code can do.
        constrained = self.algorithm.objective in CONSTRAINED
        parts = partial(self.micro_batcher.parts, allow_flat=not constrained)
        self.packing = Packing(model, parts, packed if constrained else None)

    def estimate_values(
        self,
        batch: Batch,
        rewards: Tensor,
        check_interrupt: CheckInterrupt = lambda: None,
        restart: bool = False,
    ) -> ValueEstimates | None:
        """A critic's advantages of all B rows of a step; None without a critic.

        batch: this worker's share, sampled from the present policy. rewards (B,) of the step, nan =
        could not be scored. restart: the first step's rewards have changed, so the critic is
        initialised with them again.
        """
        critic = self.critic
        if critic is None:
            return None
        if restart and self.num_steps == 0:
            critic.begun.fill_(False)
        rewards = rewards.to(critic.weight)
        critic.initialise(rewards)

        def values(parts: list[Batch]) -> Tensor:
            return critic.values(
                self.model, in_turn(parts, check_interrupt), batch, self.train.temperature
            )

        def found() -> tuple[Tensor, Tensor]:
            grouped = self.packing.grouped_if_exact(batch)
            return self.micro_batcher.retry_on_oom(grouped, values), batch.completion_mask

        size = len(batch) // len(batch.prompts)
        shares = zip(*self.workers.gather(found), strict=True)
        step_values, mask = (joined(tensors, size) for tensors in shares)
        return value_estimates(step_values.to(rewards), rewards, mask, self.algorithm)

    def update(
        self,
        batch: Batch,
        advantages: Tensor | ValueEstimates,
        check_interrupt: CheckInterrupt = lambda: None,
    ) -> Update:
        """Take `updates_per_batch` optimiser steps on a batch sampled from the present policy.

        batch: this worker's share of a step of B rows. advantages (B,) of the whole step, or a
        critic's estimates. `check_interrupt` is called before each micro-batch and may raise;
        before the first step the weights are then unchanged. Raises NonFinite, with the weights
        unchanged, if the loss or the gradient is not finite.
        """
        a = self.algorithm
        estimates = advantages if isinstance(advantages, ValueEstimates) else None
        if a.objective not in CONSTRAINED:
            self.workers.together(partial(allocate_averages, self.optimizer))
        inputs = self._batch_inputs(batch, advantages, check_interrupt)
        self.num_steps += 1
        measured: tuple[float | None, float | None] = (None, None)
        passes: list[PassResult] = []
        norms: list[float] = []
        trust: TrustRegionStep | None = None
        for index in range(a.updates_per_batch):
            result, size = self._pass(index, inputs)
            if index == 0 and not inputs.needs_kl and self.reference is not None:
                measured = self._measure(inputs)
            passes.append(result)
            if result.kl is not None and result.kl > KL_CONTROLS[a.kl_control].limit(a):
                self._step_back()
                break
            norms.append(
                clip_gradient(self.weights, self.critic, result.loss, self.train.max_grad_norm)
            )
            if a.objective in CONSTRAINED:
                trust = self._trust_region_step(inputs, size)
                self.midway = True
            else:
                self.midway = True  # already while the weights move
                self._optimizer_step()
            self.coefficients = self.coefficients.after_update(result.high_entropy, a)
        kl_coef = self.coefficients.kl_coef
        measured_kl, measured_entropy = measured
        if self.reference is not None:
            kl = _last([measured_kl, *(p.kl for p in passes)])
            self.coefficients = self.coefficients.after_batch(kl, inputs.size.num_rows, a)
        if a.ref_every and self.num_steps % a.ref_every == 0:
            self._move_reference()
        self.midway = False
        learning_rate = self.optimizer.param_groups[0]["lr"]
        return Update(
            **pass_means(passes, measured_kl, measured_entropy),
            **(asdict(trust) if trust else {}),
            kl_coef=kl_coef,
            num_updates=len(norms),
            grad_norm=mean_of_known(norms),
            micro_batch_tokens=self.micro_batcher.max_tokens,
            learning_rate=None if a.objective in CONSTRAINED else learning_rate,
            explained_variance=estimates.explained_variance if estimates else None,
        )

    def measure_after(
        self, groups: Collection[int], check_interrupt: CheckInterrupt = lambda: None
    ) -> None:
        """Log what the updated policy says of the last batch's tokens: one forward pass.

        groups: positions in the step; of these only rows whose log-probabilities the update
        computed. Changes neither weights nor the state of the optimiser, and draws no random
        number.
        """
        token_log, workers = self.log, self.workers
        assert token_log is not None
        own = {p // workers.world for p in groups if p % workers.world == workers.rank}
        computed, siblings = token_log.computed.tolist(), token_log.batch.siblings
        measured = {i for p in own for i in siblings[p] if computed[i]}

        def measure() -> None:
            batch = self.packing.grouped_if_exact(token_log.batch)
            segments = [
                (p, [i for i in rows if i in measured]) for p, rows in enumerate(batch.siblings)
            ]
            self.micro_batcher.retry_on_oom(
                batch.select([(p, rows) for p, rows in segments if rows]),
                lambda parts: self.passes.log_after(parts, token_log, check_interrupt),
            )

        workers.together(measure)

    def token_records(self) -> list[TokenRecord]:
        """What was computed of each token of the last step, one record a row."""
        token_log = self.log
        assert token_log is not None
        size = len(token_log.batch) // len(token_log.batch.prompts)
        return self.workers.in_order(self.workers.gather(token_log.records), size)

    # ---- one update ----------------------------------------------------------------------------

    def _batch_inputs(
        self, batch: Batch, advantages: Tensor | ValueEstimates, check_interrupt: CheckInterrupt
    ) -> _BatchInputs:
        """What the updates on this batch share; starts the batch's token log."""
        if isinstance(advantages, ValueEstimates):
            scored = self._own(advantages.scored, batch).tolist()
            trains = [t and s for t, s in zip(batch.trains, scored, strict=True)]
            batch = replace(batch, trains=trains)
            advantages = torch.stack([advantages.advantages, advantages.returns], -1)
        advantages = self._own(advantages, batch)
        dtype = torch.promote_types(output_layer(self.model).weight.dtype, torch.float32)
        self.log = TokenLog(batch, self.algorithm.updates_per_batch, dtype)
        share = self.workers.gather(lambda: (len(batch), int(batch.loss_mask.sum())))
        num_rows, num_tokens = map(sum, zip(*share, strict=True))
        size = LossNormalizer(
            num_rows, num_tokens, self.train.max_new_tokens, num_carrying=num_tokens
        )
        batch = self.workers.together(lambda: self.packing.grouped_if_exact(batch))
        return _BatchInputs(
            batch=batch,
            gradient_rows=self._rows_with_gradient(batch, advantages),
            advantages=advantages,
            size=size,
            needs_kl=self._needs_kl,
            check_interrupt=check_interrupt,
        )

    def _own(self, values: Tensor, batch: Batch) -> Tensor:
        """This worker's of the step's rows (B, …); their tokens are cut to its batch's length."""
        workers, size = self.workers, len(batch) // len(batch.prompts)
        own = values.unflatten(0, (-1, size))[workers.rank :: workers.world].flatten(0, 1)
        return own if own.dim() == 1 else own[:, : batch.completion_ids.shape[1]]

    def _pass(self, update: int, inputs: _BatchInputs) -> tuple[PassResult, LossNormalizer]:
        """One pass, whose gradient stays in `.grad`; and the normaliser with its threshold."""
        size = self._with_entropy_threshold(inputs)
        pass_inputs = self._pass_inputs(update, inputs, size)

        def backward(parts: list[Batch]) -> PassSums:
            self._clear_gradients()
            return self.passes.backward(parts, pass_inputs)

        found = self.workers.gather(
            lambda: self.micro_batcher.retry_on_oom(inputs.gradient_rows, backward)
        )
        self._sum_gradients()
        return self.passes.result(found, pass_inputs), size

    def _clear_gradients(self) -> None:
        self.weights.clear_gradients()
        if self.critic is not None:
            self.critic.zero_grad(set_to_none=True)

    def _sum_gradients(self) -> None:
        """The gradient of the whole step, for the weights that this worker's optimiser moves."""
        self.weights.reduce_gradients(self.workers)
        if self.critic is not None:
            sum_gradients(self.critic.parameters(), self.workers)

    def _with_entropy_threshold(self, inputs: _BatchInputs) -> LossNormalizer:
        """The normaliser with the entropy below which tokens have no policy term.

        The threshold is that of the whole step, so it takes a forward pass of its own.
        """
        share = self.algorithm.entropy_quantile
        if share == 1:
            return inputs.size
        found = self.workers.gather(
            lambda: self.micro_batcher.retry_on_oom(
                inputs.gradient_rows,
                lambda parts: self.passes.entropies(parts, inputs.check_interrupt),
            )
        )
        entropy = torch.cat([e.to(found[0].device) for e in found])
        threshold = entropy_threshold(entropy, share)
        num_carrying = int((entropy >= threshold).sum())
        return replace(inputs.size, entropy_threshold=threshold, num_carrying=num_carrying)

    def _pass_inputs(self, update: int, inputs: _BatchInputs, size: LossNormalizer) -> PassInputs:
        assert self.log is not None
        coefficients = self.coefficients
        return PassInputs(
            advantages=inputs.advantages,
            update=update,
            coef=Coefficients(coefficients.kl_coef, coefficients.entropy_weight(self.algorithm)),
            size=size,
            needs_kl=inputs.needs_kl,
            log=self.log,
            check_interrupt=inputs.check_interrupt,
        )

    def _measure(self, inputs: _BatchInputs) -> tuple[float, float]:
        """KL and entropy of the step's first rows, for a run that does not train on the KL."""
        token_log, workers = self.log, self.workers
        assert token_log is not None
        # At least two rows: siblings are then computed together, as the policy's own were.
        num_rows = max(2, -(-inputs.size.num_rows // ROWS_PER_MEASURED))
        size = len(token_log.batch) // len(token_log.batch.prompts)
        whole, rest = divmod(num_rows, size)  # groups of the step, and rows of the next one
        own = len(workers.mine(whole)) * size + rest * (whole % workers.world == workers.rank)
        found = workers.gather(
            lambda: self.micro_batcher.retry_on_oom(
                inputs.batch.first(own),
                lambda parts: self.passes.measure(parts, token_log, inputs.check_interrupt),
            )
        )
        kl, entropy, num_tokens = map(sum, zip(*found, strict=True))
        return kl / max(num_tokens, 1), entropy / max(num_tokens, 1)

    def _optimizer_step(self) -> None:
        """Move the weights by AdamW, at the learning rate of this step."""
        steps = self.train.warmup_steps
        warmup = min(1.0, self.num_steps / steps) if steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warmup * group["speed"]
        self.workers.together(partial(take_step, self.optimizer))
        self.weights.publish()

    def _trust_region_step(self, inputs: _BatchInputs, size: LossNormalizer) -> TrustRegionStep:
        """Move the weights within the trust region, without learning rate or optimiser state."""
        a = self.algorithm
        kl_coef = self.coefficients.kl_coef

        def loss(
            batch: Batch, advantages: Tensor, logprobs: Tensor, old_logprobs: Tensor
        ) -> Tensor:
            x = Tokens(
                logprobs=logprobs,
                old_logprobs=old_logprobs,
                entropy=torch.zeros_like(logprobs),
                completion_mask=batch.completion_mask,
                loss_mask=batch.loss_mask,
                advantages=advantages[:, None],
                ref_logprobs=self.passes.score_reference(batch).logprobs if kl_coef else None,
            )
            return loss_of(x, a, Coefficients(kl_coef, entropy=0.0), size).total

        parts = self.micro_batcher.parts(inputs.gradient_rows, allow_flat=False)
        surrogate = Surrogate(
            model=self.model,
            weights=self.weights,
            parts=[(part, inputs.advantages[part.rows]) for part in parts],
            loss=loss,
            temperature=self.train.temperature,
            check_interrupt=inputs.check_interrupt,
        )
        return trust_region_step(surrogate, a.trust_region_delta, a.trust_region_damping)

    @torch.no_grad()
    def _step_back(self) -> None:
        """π ← (1 - β)·π + β·π_ref for each weight: KL falls by about (1 - β)².

        Used where KL is above its hard limit. Without it, a frozen reference means no update, so no
        lower KL, for the rest of the run. A step along the KL's gradient would be an update above
        the limit, and would work against the optimiser's momentum. Adapters are B·A above weights
        that are the reference's own, so the same step makes B smaller.
        """
        assert self.reference is not None
        if layers := adapter_layers(self.model):
            scale_adapters(layers, 1 - STEP_BACK)
            return
        self.weights.move_towards(self.reference.parameters(), STEP_BACK)

    @torch.no_grad()
    def _move_reference(self) -> None:
        """π_ref ← α·π + (1 - α)·π_ref      TR-DPO, arXiv:2404.09656"""
        assert self.reference is not None
        for ref, p in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            ref.lerp_(p.detach(), self.algorithm.ref_alpha)

    # ---- settings and state --------------------------------------------------------------------

    def apply_settings(self, settings: LearnerSettings) -> None:
        """Use these settings from now on; called between two steps.

        A coefficient that a person has changed continues from its new value. Also frees the last
        update's gradient, as large as the model, because sampling comes next.
        """
        self._clear_gradients()
        for name in COEFS:
            value = getattr(settings.algorithm, name)
            if value != getattr(self.algorithm, name):
                self.coefficients = replace(self.coefficients, **{name: value})
        self.algorithm, self.train = settings.algorithm, settings.train
        self.learning_rate = settings.learning_rate
        self.passes = replace(
            self.passes,
            algorithm=self.algorithm,
            temperature=self.train.temperature,
            rollout=settings.rollout,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the policy's weights.

        The tensors are not copied: they are valid until the next update.
        """
        reference = None
        if self.algorithm.ref_every:
            assert self.reference is not None
            reference = self.reference.state_dict()
        return {
            "optimizer": self.optimizer.state_dict(),
            "master_weights": self.weights.state(),
            "steering": asdict(self.coefficients),
            "num_steps": self.num_steps,
            "reference": reference,
            "critic": self.critic.state_dict() if self.critic is not None else None,
            "packs": self.packing.state(),
            "max_tokens": self.micro_batcher.max_tokens,
            "set": {name: getattr(self.algorithm, name) for name in COEFS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. apply_settings() then applies coefficients changed meanwhile."""
        self.algorithm = self.algorithm.model_copy(update=state["set"])
        self.optimizer.load_state_dict(dict(self.weights.own_averages(state["optimizer"])))
        self.weights.load_state(state.get("master_weights"))
        for group in self.optimizer.param_groups:  # a branch may have other betas
            group["betas"] = self.train.adam_beta1, self.train.adam_beta2
        self.coefficients = CoefficientState(**state["steering"])
        self.num_steps = state["num_steps"]
        self.packing.load_state(state["packs"])
        self.micro_batcher.max_tokens = min(self.train.micro_batch_tokens, state["max_tokens"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        if state["reference"] is not None and self.reference is not None:
            self.reference.load_state_dict(state["reference"])  # a branch may have none

    # ---- which rows are computed, and how ------------------------------------------------------

    @property
    def _needs_kl(self) -> bool:
        """Whether the KL of every rollout is needed, for the loss or for the KL control."""
        return self.coefficients.kl_coef > 0 or KL_CONTROLS[self.algorithm.kl_control].needs_kl

    def _rows_with_gradient(self, batch: Batch, advantages: Tensor) -> Batch:
        """The batch without groups whose gradient is 0.

        If KL, entropy and values are not in the loss, those are groups whose advantages are all 0.
        """
        a = self.algorithm
        uses_entropy = a.entropy_coef or a.entropy_target is not None or a.entropy_quantile < 1
        if self.critic is not None or self._needs_kl or uses_entropy:
            return batch
        trains = torch.tensor(batch.trains, device=advantages.device)
        # nan != 0: such a row stays, so that the update refuses its loss.
        has_gradient = ((advantages != 0) & trains).tolist()
        return batch.select(
            [
                (p, rows)
                for p, rows in enumerate(batch.siblings)
                if any(has_gradient[i] for i in rows)
            ]
        )


def weights_of(model: nn.Module, workers: Workers) -> MasterWeights:
    """What the optimiser moves. In shards if several workers fine-tune a large model fully.

    Adapters, and up to WHOLE_PARAMETERS trained parameters, are whole on every worker: their
    gradients are summed, and all take the same step.
    """
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if workers.world == 1 or adapter_layers(model) or num_trained <= WHOLE_PARAMETERS:
        return MasterWeights(model)
    from grpo_core.learner.sharded_weights import ShardedWeights

    return ShardedWeights(model, workers)


def joined(shares: Sequence[Tensor], size: int) -> Tensor:
    """Rows that groups of `size` were dealt with, (b, t) each worker, in their order: (B, T)."""
    longest, world = max(share.shape[1] for share in shares), len(shares)
    num_groups = sum(len(share) // size for share in shares)
    result = shares[0].new_zeros(num_groups, size, longest)
    for rank, share in enumerate(shares):
        result[rank::world, :, : share.shape[1]] = share.unflatten(0, (-1, size)).to(result.device)
    return result.flatten(0, 1)


def _last(values: Sequence[float | None]) -> float:
    return [v for v in values if v is not None][-1]
