"""Whether a server computes with the weights that it was given: the same tokens, scored by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.models import Policy
from grpo_core.types import Prompt

# Mean |difference| of the log-probabilities, in nats a token. Rounding in bfloat16 gives a few
# hundredths, another model of the same vocabulary gives 1 and more.
MOST = 0.1
# A server whose numbers are so many times nearer to those of temperature 1 leaves it out.
NEARER = 2.0
SURE = 1e-5  # below this root mean square, float32's own rounding
# A server has old weights, or some, where its numbers are off by so many times what rounding
# made at the first load, and in their direction: 63 random differences have a cosine of ± 0.13.
NOISE = 4.0
TOWARDS = 0.3
NUM_DRAWN = 16
TEXT = (
    "The lighthouse keeper wrote 17 letters, sealed 3 of them with red wax, and asked: how many "
    "are still open? Count slowly (the tide is at 06:42)."
)


def fingerprint_prompt(policy: Policy) -> list[int]:
    """The ids of a fixed text, 64 at most."""
    return policy.encode(Prompt("", TEXT, "", ""), "")[-64:]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Log-probabilities of a prompt's ids but the first, and of what was drawn after it."""

    prompt: Tensor  # (L - 1,), at temperature 1: servers know no other for prompts
    drawn: Tensor  # (n,), at the run's temperature
    drawn_plain: Tensor | None = None  # (n,), at temperature 1; None: a server gives one of them


@torch.no_grad()
def own_fingerprint(
    policy: Policy, prompt: Sequence[int], drawn: Sequence[int], temperature: float
) -> Fingerprint:
    """What the policy's model, as it is now, says of these tokens."""
    ids = torch.tensor([[*prompt, *drawn]], device=policy.device)
    logits = policy.model(ids).logits[0, :-1].float().cpu()  # (L + n - 1, V)
    following = ids[0, 1:, None].cpu()

    def scored(values: Tensor) -> Tensor:
        return values.log_softmax(-1).gather(1, following).squeeze(1)

    plain, start = scored(logits), len(prompt) - 1
    return Fingerprint(plain[:start], scored(logits / temperature)[start:], plain[start:])


def problem_of(
    server: Fingerprint, own: Fingerprint, before: Fingerprint | None, noise: float
) -> str:
    """What is wrong with a server's numbers, as the end of a sentence about it; "" if nothing.

    own: the learner's; before: those of the learner's weights at the load before. noise: how far
    server and learner are apart by rounding alone, see `distance`.
    """
    assert own.drawn_plain is not None
    if _is_nearer(server.drawn, own.drawn_plain, own.drawn):
        return (
            "gives log-probabilities without the temperature. "
            "Start it with --logprobs-mode processed_logprobs"
        )
    if before is not None and _is_behind(server.prompt, before.prompt, own.prompt, noise):
        return (
            "still computes with weights of the step before, all or some, although it was given "
            "new ones. Restart it; if it happens again, another version of vLLM"
        )
    apart = float((server.drawn - own.drawn).abs().mean())
    if not apart <= MOST:  # nan included
        return (
            f"computes with other weights: its log-probabilities differ from the learner's by "
            f"{apart:.3g} nats a token on the fingerprint prompt; {MOST:g} is allowed. Serve the "
            "model that the run trains, in its precision"
        )
    return ""


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the differences, nats."""
    return float((a - b).square().mean().sqrt())


def _is_nearer(server: Tensor, other: Tensor, right: Tensor) -> bool:
    """Whether the server's numbers are clearly those of the other and not the right ones."""
    return distance(server, right) > max(SURE, NEARER * distance(server, other))


def _is_behind(server: Tensor, before: Tensor, own: Tensor, noise: float) -> bool:
    """Whether the server is apart by more than rounding, and in the direction of old weights."""
    towards = torch.nn.functional.cosine_similarity(server - own, before - own, dim=0)
    return distance(server, own) > max(SURE, NOISE * noise) and float(towards) > TOWARDS
