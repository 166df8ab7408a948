"""Our loss and gradient against TRL 1.16 itself, on random tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from grpo_core.config import AlgorithmConfig
from grpo_core.learner.aggregation import LossNormalizer, entropy_threshold
from grpo_core.learner.controls import CoefficientState
from grpo_core.learner.loss import Coefficients, Loss, Tokens, loss_of
from tests.parity import trl_loss

DRAWS = 50
LONGEST = 8  # max_new_tokens


@dataclass(frozen=True)
class Case:
    """The same algorithm in our words and in TRL's."""

    ours: dict[str, object]
    trl: dict[str, object]
    gmpo: bool = False


NO_KL = {"kl_coef": 0.0}
TOKENS, ROWS, FIXED = (
    {"aggregation": name} for name in ("token_mean", "sequence_mean", "constant")
)
CASES = {
    "grpo": Case(NO_KL | ROWS, {"loss_type": "grpo"}),
    "bnpo": Case(NO_KL | TOKENS, {"loss_type": "bnpo"}),
    "dapo": Case(
        NO_KL | TOKENS | {"clip_eps_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}
    ),
    "dr_grpo": Case(NO_KL | FIXED, {"loss_type": "dr_grpo"}),
    "gspo": Case(
        NO_KL | ROWS | {"ratio_level": "sequence", "clip_eps_low": 0.03, "clip_eps_high": 0.04},
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.03,
            "epsilon_high": 0.04,
        },
    ),
    "dapo at sequence level": Case(
        NO_KL | TOKENS | {"ratio_level": "sequence"},
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    ),
    "two-sided clip": Case(NO_KL | ROWS | {"clip_delta": 1.5}, {"loss_type": "grpo", "delta": 1.5}),
    "cispo": Case(
        NO_KL | TOKENS | {"objective": "cispo", "cispo_cap": 1.3},
        {"loss_type": "cispo", "epsilon_high": 1.3},
    ),
    "cispo at sequence level": Case(
        NO_KL | TOKENS | {"objective": "cispo", "ratio_level": "sequence"},
        {"loss_type": "cispo", "epsilon_high": 5.0, "importance_sampling_level": "sequence"},
    ),
    "sapo": Case(NO_KL | ROWS | {"objective": "sapo"}, {"loss_type": "sapo"}),
    "vespo": Case(NO_KL | TOKENS | {"objective": "vespo"}, {"loss_type": "vespo"}),
    "gmpo": Case(
        NO_KL | ROWS | {"objective": "gmpo"}, {"epsilon": 0.4, "epsilon_high": 0.4}, gmpo=True
    ),
    "gmpo, k3": Case(
        {"kl_coef": 0.04} | ROWS | {"objective": "gmpo"},
        {"epsilon": 0.4, "epsilon_high": 0.4, "beta": 0.04, "use_bias_correction_kl": False},
        gmpo=True,
    ),
    "gmpo, entropy quantile": Case(
        NO_KL | ROWS | {"objective": "gmpo", "entropy_quantile": 0.5},
        {"epsilon": 0.4, "epsilon_high": 0.4, "top_entropy_quantile": 0.5},
        gmpo=True,
    ),
    "k3": Case(
        {"kl_coef": 0.04} | ROWS,
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    ),
    "k3, ratio-corrected": Case(
        {"kl_coef": 0.04, "kl_ratio_corrected": True} | TOKENS,
        {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": True},
    ),
    "k3, ratio-corrected at sequence level": Case(
        {"kl_coef": 0.04, "kl_ratio_corrected": True, "ratio_level": "sequence"} | ROWS,
        {
            "loss_type": "grpo",
            "beta": 0.04,
            "use_bias_correction_kl": True,
            "importance_sampling_level": "sequence",
        },
    ),
    "off-policy drop": Case(
        NO_KL | ROWS | {"off_policy_threshold": 0.05},
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
    ),
    "entropy quantile": Case(
        NO_KL | ROWS | {"entropy_quantile": 0.5}, {"loss_type": "grpo", "top_entropy_quantile": 0.5}
    ),
    "entropy bonus": Case(
        NO_KL | ROWS | {"entropy_coef": 0.01}, {"loss_type": "grpo", "entropy_coef": 0.01}
    ),
    "entropy bonus over the high-entropy tokens, with k3": Case(
        {"kl_coef": 0.04, "entropy_coef": 0.01, "entropy_quantile": 0.3} | TOKENS,
        {
            "loss_type": "dapo",
            "beta": 0.04,
            "use_bias_correction_kl": False,
            "entropy_coef": 0.01,
            "top_entropy_quantile": 0.3,
        },
    ),
    "everything at once": Case(
        {
            "kl_coef": 0.1,
            "kl_ratio_corrected": True,
            "clip_delta": 2.0,
            "entropy_coef": 0.02,
            "entropy_quantile": 0.7,
            "off_policy_threshold": 0.1,
        }
        | FIXED,
        {
            "loss_type": "dr_grpo",
            "beta": 0.1,
            "use_bias_correction_kl": True,
            "delta": 2.0,
            "entropy_coef": 0.02,
            "top_entropy_quantile": 0.7,
            "off_policy_mask_threshold": 0.1,
        },
    ),
}


@dataclass(frozen=True)
class Draw:
    """Random rows of ragged length. new and entropy are leaves, to compare both gradients."""

    new: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    sampled: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


def draw(seed: int, dtype: torch.dtype, rows: int | None = None, empty_row: bool = False) -> Draw:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    num_rows = rows or int(torch.randint(1, 7, (), generator=g))
    width = int(torch.randint(1, LONGEST + 1, (), generator=g))
    lengths = torch.randint(1, width + 1, (num_rows, 1), generator=g)
    if empty_row:
        lengths[seed % num_rows] = 0
    old = -2 * torch.rand(num_rows, width, generator=g, dtype=torch.float64).to(dtype)
    new = old + 0.6 * normal(num_rows, width)
    # Entropies that float32 can hold: TRL rounds the quantile to it.
    return Draw(
        new.requires_grad_(),
        old,
        old + 0.2 * normal(num_rows, width),
        old + 0.1 * normal(num_rows, width),
        normal(num_rows, width).abs().float().to(dtype).requires_grad_(),
        torch.arange(width) < lengths,
        normal(num_rows),
    )


def ours(d: Draw, a: AlgorithmConfig) -> Loss:
    high = d.entropy.detach()[d.mask]
    threshold = (
        entropy_threshold(high, a.entropy_quantile) if a.entropy_quantile < 1 else -torch.inf
    )
    size = LossNormalizer(
        len(d.new), int(d.mask.sum()), LONGEST, threshold, int((high >= threshold).sum())
    )
    x = Tokens(
        d.new,
        d.old,
        d.entropy,
        d.mask,
        d.mask,
        d.advantages[:, None],
        d.sampled,
        d.ref if a.kl_coef else None,
    )
    return loss_of(x, a, Coefficients(a.kl_coef, a.entropy_coef), size)


def gradients(loss: torch.Tensor, d: Draw) -> torch.Tensor:
    found = torch.autograd.grad(loss, [d.new, d.entropy], allow_unused=True)
    return torch.cat(
        [torch.zeros_like(d.new).flatten() if g is None else g.flatten() for g in found]
    )


def assert_same(case: Case, d: Draw, tolerance: float, acts: torch.Tensor | None = None) -> None:
    """acts (B, T): which tokens the policy wrote, TRL's tool_mask. None: all."""
    a = AlgorithmConfig(**case.ours)
    exists = d.mask
    if acts is not None:
        d = replace(d, mask=exists & acts)
    mine = ours(d, a).total
    theirs = trl_loss.loss(
        trl_loss.trainer(LONGEST, **case.trl),
        d.new,
        d.old,
        d.entropy,
        exists,
        d.advantages,
        d.ref,
        d.sampled,
        case.gmpo,
        acts,
    )
    expected = float(theirs.detach())
    if case.gmpo:
        # TRL gives a row without tokens the ratio exp(0): a constant -A without gradient. Here
        # such a row has no loss.
        expected += float((d.advantages * (d.mask.sum(1) == 0)).sum()) / len(d.new)
        if a.entropy_quantile < 1:  # and the same for a row without tokens above the quantile
            carries = d.mask & (
                d.entropy >= entropy_threshold(d.entropy.detach()[d.mask], a.entropy_quantile)
            )
            expected += float((d.advantages * ((carries.sum(1) == 0) & d.mask.any(1))).sum()) / len(
                d.new
            )
    assert abs(float(mine.detach()) - expected) <= tolerance * max(abs(expected), 1e-2)
    g, h = gradients(mine, d), gradients(theirs, d)
    assert (g - h).norm() <= tolerance * h.norm().clamp(min=1e-3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-5), (torch.float32, 1e-4)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_equal_trl_over_fifty_draws(name, dtype, tolerance):
    for seed in range(DRAWS):
        assert_same(CASES[name], draw(seed, dtype), tolerance)


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_of_trajectories_equal_trl_with_tool_mask(name):
    for seed in range(DRAWS):
        d = draw(seed, torch.float64)
        assert_same(CASES[name], d, 1e-5, actions(seed, d))


def actions(seed: int, d: Draw) -> torch.Tensor:
    """Which tokens the policy wrote (B, T); a trajectory begins with one of them."""
    acts = torch.rand(d.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    acts[:, 0] = True
    return acts


@pytest.mark.parametrize("name", list(CASES))
def test_a_single_row_and_a_row_without_a_token_equal_trl(name):
    for seed in range(DRAWS):
        assert_same(CASES[name], draw(1000 + seed, torch.float64, rows=1), 1e-5)
        assert_same(CASES[name], draw(2000 + seed, torch.float64, rows=4, empty_row=True), 1e-5)


@pytest.mark.parametrize("name", list(CASES))
def test_advantages_of_zero_leave_no_policy_gradient(name):
    d = draw(7, torch.float64, rows=4)
    nothing = Draw(
        d.new, d.old, d.ref, d.sampled, d.entropy, d.mask, torch.zeros(4, dtype=torch.float64)
    )
    assert_same(CASES[name], nothing, 1e-5)
    policy = ours(nothing, AlgorithmConfig(**CASES[name].ours)).policy
    assert not gradients(policy, nothing).any()


@pytest.mark.parametrize("observes", [False, True], ids=["one turn", "turns"])
def test_luspo_equals_the_sequence_ratio_with_a_constant_divisor(observes):
    a = AlgorithmConfig(kl_coef=0.0, ratio_level="sequence", aggregation="constant")
    for seed in range(DRAWS):
        d = draw(seed, torch.float64)
        exists, acts = d.mask, None
        if observes:
            acts = actions(seed, d)
            d = replace(d, mask=exists & acts)
        theirs = trl_loss.loss(
            trl_loss.trainer(LONGEST, loss_type="luspo", importance_sampling_level="sequence"),
            d.new,
            d.old,
            d.entropy,
            exists,
            d.advantages,
            tool_mask=acts,
        )
        mine = ours(d, a).total * LONGEST
        assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
        g, h = gradients(mine, d), gradients(theirs, d)
        assert (g - h).norm() <= 1e-5 * h.norm().clamp(min=1e-3)


def test_the_table_of_values_that_trl_gave_is_ours_too():
    # Drawn in this order from seed 0, in float32; the values are TRL 1.16's.
    torch.manual_seed(0)
    old = -2 * torch.rand(4, 5)
    new = (old + 0.6 * torch.randn(4, 5)).requires_grad_()
    ref = old + 0.2 * torch.randn(4, 5)
    entropy = (2 * torch.rand(4, 5)).requires_grad_()
    d = Draw(
        new,
        old,
        ref,
        old,
        entropy,
        torch.arange(5) < torch.tensor([[5], [3], [2], [4]]),
        torch.tensor([1.2, -0.7, -0.9, 0.4]),
    )
    table = {
        "grpo": 0.202048,
        "bnpo": -0.101248,
        "dr_grpo": -0.044296,
        "sapo": 0.054371,
        "vespo": 0.067174,
        "k3": 0.207431,
        "two-sided clip": 0.173264,
        "entropy quantile": 0.010084,
        "entropy bonus": 0.194169,
    }
    for name, value in table.items():
        assert float(ours(d, AlgorithmConfig(**CASES[name].ours)).total.detach()) == pytest.approx(
            value, abs=2e-6
        ), name


def test_the_adaptive_entropy_bonus_moves_as_trls_does():
    a = AlgorithmConfig(
        kl_coef=0.0, entropy_coef=0.01, entropy_target=0.75, aggregation="sequence_mean"
    )
    coefficients = CoefficientState.start(a)
    t = trl_loss.trainer(
        LONGEST, loss_type="grpo", entropy_coef=0.01, use_adaptive_entropy=True, entropy_target=0.75
    )
    for seed in range(DRAWS):
        d = draw(seed, torch.float64)
        size = LossNormalizer(
            len(d.new), int(d.mask.sum()), LONGEST, num_carrying=int(d.mask.sum())
        )
        x = Tokens(d.new, d.old, d.entropy, d.mask, d.mask, d.advantages[:, None])
        mine = loss_of(x, a, Coefficients(0.0, coefficients.entropy_weight(a)), size)
        theirs = trl_loss.loss(t, d.new, d.old, d.entropy, d.mask, d.advantages)
        assert float(mine.total.detach()) == pytest.approx(float(theirs.detach()), rel=1e-9)
        coefficients = coefficients.after_update(float(mine.high_entropy.detach()), a)
        assert coefficients.entropy_coef == pytest.approx(t.entropy_coef, abs=1e-12)
