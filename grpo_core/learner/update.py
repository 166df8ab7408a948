"""The optimiser steps on one batch: for each, one pass over its micro-batches, clip, step; and what moves from step to step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner.aggregation import LossNormalizer
from grpo_core.learner.batch import Batch, packed
from grpo_core.learner.controls import KL_CONTROLS, Steering
from grpo_core.learner.critic import HEAD_SPEED, Critic, Judged
from grpo_core.learner.logprobs import packing_is_exact
from grpo_core.learner.loss import Coefficients, Tokens, loss_of
from grpo_core.learner.memory import MicroBatcher
from grpo_core.learner.objectives import CONSTRAINED
from grpo_core.learner.passes import CheckInterrupt, Means, Pass, Passes
from grpo_core.learner.tokens import TokenLog
from grpo_core.learner.trust_region import TrustRegionStep, trust_region_step

log = logging.getLogger("grpo_studio")

MEASURED_SHARE = 8  # where KL is not trained on it is measured on an eighth of the rows only: the curve is always drawn, but cheap
COEFS = ("kl_coef", "entropy_coef")  # set by a person, moved by a controller
STEP_BACK = 0.1  # share of the way to the reference: KL falls by about a fifth, several times what one update adds


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf; the weights were left as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Means):
    """What the updates on one batch measured."""

    explained_variance: float | None
    kl_coef: float
    num_updates: int
    grad_norm: float | None  # None: no update was made
    learning_rate: float | None  # None: the step's length was set by a trust region
    micro_batch_tokens: int  # the most that a forward pass may hold
    trust_kl: float | None = None  # the trust region's readings, see TrustRegionStep
    trust_delta: float | None = None
    trust_step_frac: float | None = None
    trust_residual: float | None = None
    trust_gain: float | None = None


class Learner:
    """Holds the policy's optimiser, the reference that the KL term looks at (None: KL is never measured), and the coefficients that move."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        algorithm: AlgorithmConfig,
        train: TrainConfig,
        learning_rate: float,
        recompute: bool = False,
    ):
        self.model, self.reference = model, reference
        self.algorithm, self.train = algorithm, train
        self.learning_rate = learning_rate
        self.critic = Critic(model) if algorithm.advantage == "value" else None
        self.passes = Passes(model, reference, self.critic, algorithm, train.temperature, recompute)
        self.fitting = MicroBatcher(model, train.micro_batch_tokens)
        parameters = [{"params": list(model.parameters()), "speed": 1.0}]
        if self.critic is not None:
            parameters.append({"params": list(self.critic.parameters()), "speed": HEAD_SPEED})
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.steering = Steering.start(algorithm)
        self.num_steps = 0  # batches
        self.midway = (
            False  # some but not all updates of a batch are done: the weights belong to no step
        )
        self.log: TokenLog | None = None  # of the last batch
        self._packs: bool | None = None  # known after the first batch

    def judge(
        self,
        batch: Batch,
        rewards: Tensor,
        check_interrupt: CheckInterrupt = lambda: None,
        again: bool = False,
    ) -> Judged | None:
        """Token advantages of a batch sampled from the present policy, if there is a critic to ask. rewards (B,), nan = unscored.

        again: the rewards of this batch have changed; a critic that began with them begins anew.
        """
        if self.critic is None:
            return None
        if again and self.num_steps == 0:
            self.critic.begun.fill_(False)
        return self.fitting.retry_on_oom(
            self._shared(batch),
            lambda parts: self.critic.judge(
                self.model,
                _each(parts, check_interrupt),
                batch,
                rewards,
                self.algorithm,
                self.train.temperature,
            ),
        )

    def update(
        self,
        batch: Batch,
        advantages: Tensor | Judged,
        check_interrupt: CheckInterrupt = lambda: None,
    ) -> Update:
        """Take `updates_per_batch` optimiser steps on a batch sampled from the present policy.

        advantages (B,), or the critic's. `check_interrupt` is called before each micro-batch and may raise to abandon the step; the weights
        are then as before it. Raises NonFinite, and leaves the weights alone, when the loss or the gradient is not finite.
        """
        a, control = self.algorithm, KL_CONTROLS[self.algorithm.kl_control]
        judged = advantages if isinstance(advantages, Judged) else None
        if judged is not None:
            batch = replace(
                batch,
                trains=[t and s for t, s in zip(batch.trains, judged.scored.tolist(), strict=True)],
            )
            advantages = torch.stack([judged.advantages, judged.returns], -1)
        num_tokens = int(batch.loss_mask.sum())
        size = LossNormalizer(
            len(batch), num_tokens, self.train.max_new_tokens, num_carrying=num_tokens
        )
        self.log = tokens = TokenLog(
            batch,
            a.updates_per_batch,
            torch.promote_types(self.model.get_output_embeddings().weight.dtype, torch.float32),
        )
        batch = self._shared(batch)
        teaching = self._teaching(batch, advantages)
        watches, measured = self._watches_kl, None
        self.num_steps += 1
        passes: list[Pass] = []
        norms: list[float] = []
        trust: TrustRegionStep | None = None

        def one_pass(parts: list[Batch]) -> tuple[Pass, LossNormalizer]:
            self.optimizer.zero_grad(set_to_none=True)
            cut = self.passes.cut(parts, size, check_interrupt)
            coef = Coefficients(self.steering.kl_coef, self.steering.entropy_weight(a))
            return self.passes.backward(
                parts, advantages, len(passes), coef, cut, watches, tokens, check_interrupt
            ), cut

        for _ in range(a.updates_per_batch):
            done, cut = self.fitting.retry_on_oom(teaching, one_pass)
            if not passes and not watches and self.reference is not None:
                share = batch.first(
                    max(2, -(-len(batch) // MEASURED_SHARE))
                )  # two: computed as siblings are, as the policy's own were
                measured = self.fitting.retry_on_oom(
                    share, lambda parts: self.passes.measure(parts, tokens, check_interrupt)
                )
            passes.append(done)
            if done.kl is not None and done.kl > control.limit(a):
                self._step_back()
                break
            norms.append(self._grad_norm(done.loss))
            trust = (
                self._constrained_step(teaching, advantages, cut, check_interrupt)
                if a.objective in CONSTRAINED
                else self._step()
            )
            self.midway = True
            self.steering = self.steering.after_update(done.high_entropy, a)
        kl_coef, (sampled_kl, sampled_entropy) = self.steering.kl_coef, measured or (None, None)
        if self.reference is not None:
            self.steering = self.steering.after_batch(
                _last([sampled_kl, *(p.kl for p in passes)]), len(batch), a
            )
        if a.ref_every and self.num_steps % a.ref_every == 0:
            self._move_reference()
        self.midway = False
        means = {f.name: _mean([getattr(p, f.name) for p in passes]) for f in fields(Means)}
        return Update(
            **means
            | {
                "kl": _first(means["kl"], sampled_kl),
                "entropy": _first(means["entropy"], sampled_entropy),
                "ratio_max": max(p.ratio_max for p in passes),
            },
            kl_coef=kl_coef,
            num_updates=len(norms),
            grad_norm=_mean(norms),
            micro_batch_tokens=self.fitting.max_tokens,
            learning_rate=None
            if a.objective in CONSTRAINED
            else self.optimizer.param_groups[0]["lr"],
            explained_variance=judged and judged.explained_variance,
            **(asdict(trust) if trust else {}),
        )

    # ---- one step ------------------------------------------------------------------------------------------------------

    def _grad_norm(self, loss: float) -> float:
        """Clip the gradient; returns the norm before clipping. Raises NonFinite."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in parameters])
        norm = float(total)
        if not (
            torch.tensor([loss, norm]).isfinite().all()
        ):  # before clipping, which would spread a nan over every gradient
            culprit = next(
                (
                    n
                    for n, p in self.model.named_parameters()
                    if p.grad is not None and not p.grad.isfinite().all()
                ),
                "the loss",
            )
            raise NonFinite(f"loss {loss}, gradient norm {norm}: first not finite in {culprit}")
        nn.utils.clip_grads_with_norm_(parameters, self.train.max_grad_norm, total)
        if (
            self.critic is not None
        ):  # apart, so that its first large errors do not shrink the policy's step
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.train.max_grad_norm)
        return norm

    def _step(self) -> None:
        """Move the weights by the optimiser."""
        warm = (
            min(1.0, self.num_steps / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * group["speed"]
        self.optimizer.step()

    def _constrained_step(
        self,
        teaching: Batch,
        advantages: Tensor,
        size: LossNormalizer,
        check_interrupt: CheckInterrupt,
    ) -> TrustRegionStep:
        """Move the weights within the trust region; no learning rate, no warm-up, no optimiser state."""
        a = self.algorithm

        def loss(batch: Batch, advantages: Tensor, new: Tensor, old: Tensor) -> Tensor:
            ref = (
                self.passes.score(self.reference, batch).logprobs if self.steering.kl_coef else None
            )
            x = Tokens(
                new,
                old,
                torch.zeros_like(new),
                batch.completion_mask,
                batch.loss_mask,
                advantages[:, None],
                ref=ref,
            )
            return loss_of(x, a, Coefficients(self.steering.kl_coef, entropy=0.0), size).total

        with_theirs = [
            (part, advantages[part.rows]) for part in self.fitting.parts(teaching, end_to_end=False)
        ]
        return trust_region_step(
            self.model,
            with_theirs,
            loss,
            a.trust_region_delta,
            self.train.temperature,
            check_interrupt,
            a.trust_region_damping,
        )

    @property
    def _watches_kl(self) -> bool:
        """Whether KL is needed on every rollout: because it is trained on, or because something steers by it."""
        return self.steering.kl_coef > 0 or KL_CONTROLS[self.algorithm.kl_control].watches

    @torch.no_grad()
    def _step_back(self) -> None:
        """π ← (1 - β)·π + β·π_ref, weight by weight: KL is above its hard limit, and falls by about (1 - β)².

        Without it a frozen reference makes the limit a wall: no update, so no lower KL, so no update for the rest of the run. By weights and not
        by the KL's gradient, because that would have to work against the optimiser's momentum, and be an update above the limit.
        """
        for p, ref in zip(self.model.parameters(), self.reference.parameters(), strict=True):
            p.lerp_(ref, STEP_BACK)

    @torch.no_grad()
    def _move_reference(self) -> None:
        """π_ref ← α·π + (1 - α)·π_ref      TR-DPO, arXiv:2404.09656"""
        for ref, p in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            ref.lerp_(p.detach(), self.algorithm.ref_alpha)

    def turn(self, algorithm: AlgorithmConfig, train: TrainConfig, learning_rate: float) -> None:
        """Settings that a person changed between two steps; a coefficient that moves by itself goes on from its new value.

        Sampling comes next: the last update's gradient, as large as the model, makes room for it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for name in COEFS:
            if getattr(algorithm, name) != getattr(self.algorithm, name):
                self.steering = replace(self.steering, **{name: getattr(algorithm, name)})
        self.algorithm, self.train, self.learning_rate = algorithm, train, learning_rate
        self.passes = replace(self.passes, algorithm=algorithm, temperature=train.temperature)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep beside the policy's weights. Its tensors are the living ones: good until the next update."""
        moved = self.reference.state_dict() if self.algorithm.ref_every else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "steering": asdict(self.steering),
            "num_steps": self.num_steps,
            "reference": moved,
            "critic": self.critic and self.critic.state_dict(),
            "packs": self._packs,
            "max_tokens": self.fitting.max_tokens,
            "set": {name: getattr(self.algorithm, name) for name in COEFS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """What state() gave. A coefficient that is set otherwise now than it was then is noticed by the next turn()."""
        self.algorithm = self.algorithm.model_copy(update=state["set"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steering, self.num_steps, self._packs = (
            Steering(**state["steering"]),
            state["num_steps"],
            state["packs"],
        )
        self.fitting.max_tokens = min(self.train.micro_batch_tokens, state["max_tokens"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        if state["reference"] is not None and self.reference is not None:  # a branch may do without
            self.reference.load_state_dict(state["reference"])

    # ---- what is computed together ---------------------------------------------------------------------------------------

    def _teaching(self, batch: Batch, advantages: Tensor) -> Batch:
        """What of it has a gradient: with neither KL, entropy nor values in the loss, a group whose advantages are all 0 has none."""
        a = self.algorithm
        if (
            self.critic is not None
            or self._watches_kl
            or a.entropy_coef
            or a.entropy_target is not None
            or a.entropy_quantile < 1
        ):
            return batch
        moves = (
            (advantages != 0) & torch.tensor(batch.trains, device=advantages.device)
        ).tolist()  # nan != 0: it must be seen, and refused
        return batch.select(
            [(p, rows) for p, rows in enumerate(batch.siblings) if any(moves[i] for i in rows)]
        )

    def _shared(self, batch: Batch) -> Batch:
        """The batch as this model can compute it."""
        return batch if self._can_pack(batch) else batch.ungrouped()

    def _can_pack(self, batch: Batch) -> bool:
        """Found out once, on the longest group of the first batch that can show it."""
        if self._packs is None:
            # Later siblings of one token are predicted by the prompt alone, and would look right whatever the mask does.
            telling = [
                (p, rows)
                for p, rows in enumerate(batch.siblings)
                if any(len(batch.completions[i]) > 1 for i in rows[1:])
            ]
            if not telling:
                return False
            longest, _ = max(telling, key=batch.segment_tokens)
            # A trust region differentiates twice, and does so through the model's own code.
            layout = packed if self.algorithm.objective in CONSTRAINED else None
            self._packs = packing_is_exact(self.model, batch.groups(longest, longest + 1), layout)
            if not self._packs:
                log.warning(
                    "This architecture cannot share a prompt between completions in one row; each is computed in its own row."
                )
        return self._packs


def _each(parts: Iterable[Batch], check_interrupt: CheckInterrupt) -> Iterator[Batch]:
    for part in parts:
        check_interrupt()
        yield part


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that were measured."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def _last(values: Sequence[float | None]) -> float:
    return [v for v in values if v is not None][-1]
