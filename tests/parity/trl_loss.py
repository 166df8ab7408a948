"""TRL's own loss and advantages on plain tensors: its methods, on a stand-in for the trainer."""

from __future__ import annotations

import inspect
import math
import textwrap
from types import SimpleNamespace

import torch
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.utils import nanstd

DEFAULTS = {f.name: f.default for f in GRPOConfig.__dataclass_fields__.values()}

_SOURCE = inspect.getsource(GRPOTrainer._generate_and_score_completions)
ADVANTAGE_LINES = compile(
    textwrap.dedent(
        _SOURCE[
            _SOURCE.index("        unscorable_mask = ") : _SOURCE.index(
                "        # Slice to keep only the local part of the data"
            )
        ]
    ),
    "trl",
    "exec",
)


CORRECTION_LINES = compile(
    textwrap.dedent(
        _SOURCE[
            _SOURCE.index("                mask = completion_mask if tool_mask is None else") :
            _SOURCE.index("            # Compute the per-token log probabilities for the reference")
        ]
    ),
    "trl",
    "exec",
)  # fmt: skip


def sampler_ratio(learner, sampled, mask, mode: str, most: float) -> torch.Tensor:
    """TRL's own lines from log-probabilities of learner and vLLM to the ratio, (B, T) each."""
    scope = {
        "torch": torch,
        "math": math,
        "completion_mask": mask.to(learner.dtype),
        "tool_mask": None,
        "old_per_token_logps": learner,
        "sampling_per_token_logps": sampled,
        "self": SimpleNamespace(
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=None,
            vllm_importance_sampling_clip_max=most,
        ),
    }
    exec(CORRECTION_LINES, scope)
    return scope["vllm_importance_sampling_ratio"]


class Metrics(dict):
    """TRL's `_metrics["train"]`: every name has a list."""

    def __missing__(self, name):
        self[name] = []
        return self[name]


def trainer(max_new_tokens: int, **options) -> SimpleNamespace:
    """What `_compute_loss` reads of a GRPOTrainer: `options`, and TRL's defaults otherwise."""
    o = {**DEFAULTS, "beta": 0.0, **options}
    accelerator = SimpleNamespace(
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
        gather_for_metrics=lambda x: x,
        num_processes=1,
        sync_gradients=True,
    )
    return SimpleNamespace(
        args=SimpleNamespace(**o | {"steps_per_generation": 1}),
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics={"train": Metrics()},
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        use_vllm=o["use_vllm"],
        vllm_importance_sampling_correction=o["vllm_importance_sampling_correction"],
        loss_type=o["loss_type"],
        beta=o["beta"],
        importance_sampling_level=o["importance_sampling_level"],
        epsilon_low=o["epsilon"],
        epsilon_high=o["epsilon_high"] if o["epsilon_high"] is not None else o["epsilon"],
        off_policy_mask_threshold=o["off_policy_mask_threshold"],
        top_entropy_quantile=o["top_entropy_quantile"],
        entropy_coef=o["entropy_coef"],
        use_adaptive_entropy=o["use_adaptive_entropy"],
        _entropy_bonus_enabled=o["entropy_coef"] != 0 or o["use_adaptive_entropy"],
        _last_world_entropy=float("inf"),
        _entropy_window_stats=None,
        max_completion_length=max_new_tokens,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
    )


def loss(
    t: SimpleNamespace,
    new,
    old,
    entropy,
    mask,
    advantages,
    ref=None,
    sampled=None,
    gmpo: bool = False,
    tool_mask=None,
    sampler_ratio=None,
) -> torch.Tensor:
    """TRL's loss on these (B, T) tensors. `t` keeps its metrics and its entropy coefficient."""
    t._get_per_token_logps_and_entropies = lambda *_, **__: (new, entropy, None)
    t.get_high_entropy_mask = lambda *x: GRPOTrainer.get_high_entropy_mask(t, *x)
    inputs = {
        "prompt_ids": mask[:, :1].long(),
        "prompt_mask": mask[:, :1].long(),
        "completion_ids": mask.long(),
        "completion_mask": mask.to(new.dtype),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": (mask if tool_mask is None else mask & tool_mask).sum(),
    }
    inputs |= {} if tool_mask is None else {"tool_mask": tool_mask.to(new.dtype)}
    inputs |= {} if ref is None else {"ref_per_token_logps": ref}
    inputs |= {} if sampled is None else {"sampling_per_token_logps": sampled}
    inputs |= {} if sampler_ratio is None else {"importance_sampling_ratio": sampler_ratio}
    return (GMPOTrainer if gmpo else GRPOTrainer)._compute_loss(t, None, inputs)


def advantages(
    scores: torch.Tensor,
    weights: torch.Tensor,
    group_size: int,
    scale_rewards: str,
    aggregation: str,
) -> torch.Tensor:
    """TRL's own lines from rewards_per_func (B, K) to advantages (B,).

    They are cut out of `_generate_and_score_completions` and run unchanged.
    """
    scope = {
        "torch": torch,
        "nanstd": nanstd,
        "rewards_per_func": scores,
        "num_generations": group_size,
        "device": scores.device,
        "self": SimpleNamespace(
            multi_objective_aggregation=aggregation,
            reward_weights=weights,
            scale_rewards=scale_rewards,
            reward_funcs=[None] * scores.shape[1],
        ),
    }
    exec(ADVANTAGE_LINES, scope)
    return scope["advantages"]
