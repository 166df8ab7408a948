"""Log-probabilities of models whose layers see a part of the text, at every length."""

from __future__ import annotations

import pytest
import torch
from tiny_shapes import UNUSUAL, IdsAsText, make_model, with_adapters

from grpo_core.config import AlgorithmConfig, TrainConfig
from grpo_core.learner import Batch, Learner, LearnerSettings
from grpo_core.learner.packing import GroupSize, packing_is_exact
from grpo_core.models import Policy
from grpo_core.models.lora import AdapterOff, adapter_layers
from grpo_core.rollout import SamplingParams, sample_groups

# Their layers see a part of the text, but their prompts are shared all the same.
WINDOWED = {"Mistral, sliding", "Gemma 2", "Gemma 3", "gpt-oss", "Cohere 2", "Mixtral"}


def a_batch(prompt_tokens: int, seed: int) -> Batch:
    """Two groups of three; the completions have 2 to 9 tokens."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, 40, (n,), generator=g).tolist()  # noqa: E731
    prompts = [draw(prompt_tokens), draw(prompt_tokens + 2)]
    completions = [draw(n) for n in (2, 9, 4, 5, 3, 8)]
    return Batch(prompts, completions, [True] * 6, 0, torch.device("cpu"))


def own_logprobs(model, prompt, completion) -> torch.Tensor:
    """What transformers computes for this text alone, read once by a model just made."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def make(shape: str, adapters: bool):
    model = make_model(shape, unusual=True)
    return with_adapters(model) if adapters else model


def a_learner(model) -> Learner:
    layers = adapter_layers(model)
    reference = AdapterOff(model, layers) if layers else None
    learner = Learner(
        model, reference, LearnerSettings(AlgorithmConfig(kl_coef=0.0), TrainConfig(), 1e-3)
    )
    learner.optimizer.step = lambda: None
    return learner


def largest_error(learner: Learner, batch: Batch, shape: str, adapters: bool) -> float:
    """The trainer's log-probabilities of the batch, compared with transformers' own."""
    learner.update(batch, torch.tensor([1.0, -1.0, 0.5, -0.5, 1.0, -1.0]))
    errors, model = [], make(shape, adapters)
    for p, rows in enumerate(batch.siblings):
        for i in rows:
            if shape == "Dynamic NTK":  # it remembers the longest text
                model = make(shape, adapters)
            expected = own_logprobs(model, batch.prompts[p], batch.completions[i])
            used = learner.log.logprobs[0, i, : len(expected)]
            errors.append((used - expected).abs().max().item())
    return max(errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lengths", [(3, 28, 44, 20), (44, 28, 3, 20)], ids=["short first", "long first"]
)
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("shape", sorted(UNUSUAL.keys() - {"Mamba"}))  # peft has none for it
def test_logprobs_are_transformers_own_at_every_length(shape, lengths, adapters):
    learner = a_learner(make(shape, adapters))
    for seed, length in enumerate(lengths):
        assert largest_error(learner, a_batch(length, seed), shape, adapters) <= 1e-4, length


@pytest.mark.parametrize("shape", sorted(WINDOWED))
def test_prompts_longer_than_a_window_are_still_shared(shape):
    learner = a_learner(make_model(shape, unusual=True))
    assert learner.packing.allows(a_batch(3, 0))
    assert learner.packing.allows(a_batch(44, 1))


# While a text grows past their first length, what was drawn before had other angles.
@pytest.mark.parametrize("shape", sorted(UNUSUAL.keys() - {"Phi-3, LongRoPE", "Dynamic NTK"}))
def test_sampled_logprobs_are_transformers_own(shape):
    policy = Policy(make_model(shape, unusual=True), IdsAsText(), frozenset(), 0, 128)
    prompts = a_batch(20, 2).prompts
    params = SamplingParams(2, 14, 1.0, keep_logprobs=True)
    model = make_model(shape, unusual=True)
    for rollout in sample_groups(policy, prompts, params, torch.Generator().manual_seed(0)):
        expected = own_logprobs(model, rollout.prompt_ids, rollout.completion_ids)
        sampled = torch.tensor(rollout.sampling_logprobs)
        torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)


def test_a_text_that_grows_past_longropes_first_length_is_generates():
    # 32 tokens; keys of before and after would otherwise be turned by different angles.
    model, prompt = make_model("Phi-3, LongRoPE", unusual=True), list(range(5, 25))
    policy = Policy(model, IdsAsText(), frozenset(), 0, 128)
    [ours, _] = sample_groups(policy, [prompt], SamplingParams(2, 24, 0.0), torch.Generator())
    whole = model.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    assert ours.completion_ids == whole[0, 20:].tolist()


def test_a_group_longer_than_any_tested_is_tested_again():
    # GPT-Neo's own window of 16 counts places in the row: 3 + 2 + 9 + 4 = 18 tokens with one short
    # group are inexact, 3 + 2 + 2 = 7 are not.
    learner = a_learner(make_model("GPT-Neo", unusual=True))
    short = Batch([[5, 6, 7]], [[8, 9], [10, 11]], [True] * 2, 0, torch.device("cpu"))
    assert learner.packing.allows(short)
    assert not learner.packing.allows(a_batch(44, 0))
    assert learner.packing.allows(short), "the short answer still holds"


def test_a_checkpoint_carries_what_was_tested_and_no_bare_answer():
    learner, other = (
        a_learner(make_model("GPT-Neo", unusual=True)),
        a_learner(make_model("GPT-Neo", unusual=True)),
    )
    learner.packing.exact_to, learner.packing.inexact_from = GroupSize(5, 7), GroupSize(20, 40)
    other.load_state(learner.state())
    assert (other.packing.exact_to, other.packing.inexact_from) == ((5, 7), (20, 40))
    other = a_learner(make_model("GPT-Neo", unusual=True))
    other.load_state(learner.state() | {"packs": True})  # as checkpoints before had it
    assert not other.packing.allows(a_batch(44, 0))


@pytest.mark.parametrize(
    "flag", ["output_router_logits", "output_attentions", "output_hidden_states"]
)
def test_outputs_that_the_configuration_asks_for_break_nothing(flag):
    plain, asking = make_model("Mixtral", unusual=True), make_model("Mixtral", unusual=True)
    if flag == "output_attentions":
        asking.set_attn_implementation("eager")  # the only one that has them
    setattr(asking.config, flag, True)
    params = SamplingParams(2, 6, 0.0)
    ids = [
        [
            r.completion_ids
            for r in sample_groups(
                Policy(model, IdsAsText(), frozenset(), 0, 128),
                a_batch(5, 0).prompts,
                params,
                torch.Generator(),
            )
        ]
        for model in (plain, asking)
    ]
    assert ids[0] == ids[1]


def test_a_hard_kl_limit_shrinks_adapters_towards_the_reference():
    # Above the limit, π ← .9·π + .1·π_ref in weights: W + BA becomes W + .9·BA.
    model = make("Mixtral", adapters=True)
    algorithm = AlgorithmConfig(kl_coef=0.1, kl_control="hard", kl_target=1e-6)
    reference = AdapterOff(model, adapter_layers(model))
    learner = Learner(model, reference, LearnerSettings(algorithm, TrainConfig(), 1e-3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    update = learner.update(a_batch(5, 0), torch.tensor([1.0, -1.0, 0.5, -0.5, 1.0, -1.0]))
    assert update.num_updates == 0
    for name, p in model.named_parameters():
        expected = before[name] * (0.9 if "lora_B" in name else 1.0)
        torch.testing.assert_close(p.detach(), expected, atol=1e-7, rtol=0)


def test_a_group_that_does_not_fit_in_memory_is_computed_row_by_row(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("grpo_core.learner.packing.token_logprobs", out_of_memory)
    learner = a_learner(make_model("Cohere", unusual=True))
    assert len(learner.packing.grouped_if_exact(a_batch(9, 0)).prompts) == 6


@pytest.mark.parametrize(
    ("dtype", "tokens_off", "nats", "exact"),
    [
        ("float32", 1, 0.3, False),
        ("bfloat16", 400, 0.125, True),  # one step of logits from 16 to 32
        ("bfloat16", 1, 0.3, True),  # 1 of 400 tokens is within the last percent
        ("bfloat16", 40, 0.3, False),
        ("bfloat16", 4, 9.0, True),
        ("bfloat16", 5, 9.0, False),
    ],
)
def test_half_precision_may_round_single_tokens_further(
    monkeypatch, dtype, tokens_off, nats, exact
):
    """GPU review, logprobs.py:21: the 99th percentile of the tokens decides, not the largest."""
    batch = Batch([[5, 6]], [[7] * 200] * 2, [True] * 2, 0, torch.device("cpu"))
    off = torch.zeros(400)
    off[:tokens_off] = nats
    answers = iter([(off.view(2, 200), None), (torch.zeros(2, 200), None)])
    monkeypatch.setattr("grpo_core.learner.packing.token_logprobs", lambda *_: next(answers))
    model = make_model("Cohere", getattr(torch, dtype), unusual=True)
    assert packing_is_exact(model, batch) is exact


@pytest.mark.parametrize(("shape", "unusual"), [("Gemma", False), ("Cohere", True)])
def test_a_group_is_tested_as_far_as_it_shares_a_row(monkeypatch, shape, unusual):
    """GPU review, update.py:250: a mask is as large as the square of its row."""
    learner = a_learner(make_model(shape, unusual=unusual))
    tested = []

    def noted(_, batch, *__):
        tested.extend(map(batch.segment_tokens, enumerate(batch.siblings)))
        return True

    monkeypatch.setattr("grpo_core.learner.packing.packing_is_exact", noted)
    completions = [[5] * 30] * 64  # with their prompt 20 + 64·30 = 1,940 tokens
    batch = Batch([[6] * 20], completions, [True] * 64, 0, torch.device("cpu"))
    assert learner.packing.allows(batch)
    # √(20·(20 + 6·32)) = 65 completion tokens a row, so that no row has more than three texts.
    assert set(tested) <= {20 + 2 * 30, 20 + 3 * 30}
    assert learner.packing.exact_to == GroupSize(50, max(tested))
