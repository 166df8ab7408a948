"""Memory: micro-batches that fit, and logits in chunks. None of it changes a number."""

from __future__ import annotations

import weakref
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny_lm import A, TinyLM, make_batch, make_learner
from tiny_shapes import make_model, ragged

from grpo_core.config import AlgorithmConfig, TrainConfig, parse
from grpo_core.errors import OutOfMemory
from grpo_core.learner import Batch, Learner, LearnerSettings, logprobs, token_logprobs
from grpo_core.learner import batch as batches
from grpo_core.learner.batch import micro_batches, separate
from grpo_core.learner.logprobs import ScoreOptions, score_tokens
from grpo_core.learner.packing import ANY_SIZE
from grpo_core.models import Policy
from grpo_core.models import lm_head as head
from grpo_core.training import memory_estimate


class SmallMachine(TinyLM):
    """Runs out of memory above `room` tokens, in the forward pass, as torch does."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.refused = room, 0

    def forward(self, input_ids, attention_mask):
        if input_ids.numel() > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(input_ids, attention_mask)


def gradient(learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.model.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl_coef": 0.1, "updates_per_batch": 2},
        {"entropy_quantile": 0.5},
        {"advantage": "value"},
        {"objective": "trust_region"},
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(options):
    options = {"kl_coef": 0.0} | options
    small, large = (
        make_learner(model, train={"micro_batch_tokens": 64}, **options)
        for model in (SmallMachine(9), TinyLM())
    )
    for learner in (small, large):
        learner.packing.exact_to = ANY_SIZE
        rewards = torch.tensor([1.0, 0.0, 0.5, 0.25])
        update = learner.update(
            make_batch(), learner.estimate_values(make_batch(), rewards) if learner.critic else A
        )
    assert small.model.refused
    assert small.micro_batcher.max_tokens <= 9 < large.micro_batcher.max_tokens == 64
    torch.testing.assert_close(gradient(small), gradient(large), atol=1e-6, rtol=0)
    assert update.micro_batch_tokens == 64
    refused = small.model.refused
    small.update(make_batch(), small.estimate_values(make_batch(), rewards) if small.critic else A)
    assert small.model.refused == refused  # the smaller size is kept


def test_a_completion_too_long_for_memory_names_its_length_and_a_remedy():
    learner = make_learner(SmallMachine(3), kl_coef=0.0)
    learner.packing.exact_to = ANY_SIZE
    # (1, 2) + (4, 5, 6), and (3,) + four 4s
    with pytest.raises(OutOfMemory, match=r"max_new_tokens.*one completion of 5 tokens"):
        learner.update(make_batch(), A)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Broken(TinyLM):
        def forward(self, input_ids, attention_mask):
            raise RuntimeError("expected scalar type Float but found Half")

    learner = make_learner(Broken(), kl_coef=0.0)
    learner.packing.exact_to = ANY_SIZE
    with pytest.raises(RuntimeError, match="scalar type"):
        learner.update(make_batch(), A)


@pytest.mark.parametrize("budget", [1, 5, 12, 40, 1000])
@pytest.mark.parametrize("hidden_size", [1, 64])
def test_micro_batches_hold_every_row_once_within_the_token_limit(budget, hidden_size):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (24,), generator=generator).tolist()
    prompts = [tuple(range(1, 2 + p)) for p in (3, 9, 1)]
    batch = Batch(prompts, [(5,) * n for n in lengths], [True] * 24, 0, torch.device("cpu"))
    parts = micro_batches(batch, budget, hidden_size)
    assert sorted(i for part in parts for i in part.step_rows) == list(range(24))
    for part in parts:
        widths = [part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings)]
        assert len(part) == 1 or len(widths) * max(widths) <= budget
        for prompt, rows in zip(part.prompts, part.siblings, strict=True):
            for i in rows:
                assert prompt == prompts[part.step_rows[i] // 8]
                assert len(part.completions[i]) == lengths[part.step_rows[i]]


def test_wide_groups_become_rows_when_repeating_the_prompt_is_cheaper():
    # √(4·(4 + 6·16)) = 20 completion tokens a row: eight completions of ten tokens make four
    # rows of two.
    batch = Batch([(1, 2, 3, 4)], [(5,) * 10] * 8, [True] * 8, 0, torch.device("cpu"))
    assert [len(s) for _, s in batches._segments(batch, 10_000, hidden_size=16)] == [2, 2, 2, 2]
    assert [len(s) for _, s in batches._segments(batch, 10_000, hidden_size=4096)] == [8]
    assert [len(s) for _, s in batches._segments(batch, 14, hidden_size=4096)] == [1] * 8


def test_a_long_prompt_is_computed_once_for_its_whole_group():
    learner = Learner(
        make_model("Qwen3"),
        make_model("Qwen3"),
        LearnerSettings(AlgorithmConfig(), TrainConfig(), 1e-3),
    )
    # 2,000 tokens of prompt and 16 x 64 of completions are more than MAX_CPU_TOKENS, but every
    # further part would compute the prompt again.
    batch = Batch([(1,) * 2000], [(5,) * 64] * 16, [True] * 16, 0, torch.device("cpu"))
    assert [len(part) for part in learner.micro_batcher.parts(batch)] == [16]
    # 20 + 3 x 500 = 1,520 of at most 1,536
    short = Batch([(1,) * 20], [(5,) * 500] * 8, [True] * 8, 0, torch.device("cpu"))
    assert [len(part) for part in learner.micro_batcher.parts(short)] == [3, 3, 2]


def test_a_long_prompt_pads_only_its_own_group():
    learner = Learner(
        make_model("Qwen3"),
        make_model("Qwen3"),
        LearnerSettings(AlgorithmConfig(), TrainConfig(), 1e-3),
    )
    batch = Batch(
        [(1,) * 2000] + [(1,) * 20] * 7, [(5,) * 48] * 64, [True] * 64, 0, torch.device("cpu")
    )
    assert (
        max(
            sum(part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings))
            for part in learner.micro_batcher.parts(batch)
        )
        == 2000 + 8 * 48
    )


@pytest.mark.slow
def test_every_retry_after_a_lack_of_memory_is_made_with_smaller_parts():
    learner = Learner(
        make_model("Qwen3"),
        make_model("Qwen3"),
        LearnerSettings(AlgorithmConfig(), TrainConfig(), 1e-3),
    )
    batch, tried = ragged(8), []

    def work(parts):
        tried.append(
            max(
                sum(part.segment_tokens((p, rows)) for p, rows in enumerate(part.siblings))
                for part in parts
            )
        )
        if len(tried) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return True

    assert learner.micro_batcher.retry_on_oom(batch, work)
    assert all(later < earlier for earlier, later in pairwise(tried)), tried


@pytest.mark.parametrize(
    "options", [{"kl_coef": 0.1}, {"entropy_quantile": 0.5}, {"advantage": "value"}, {}]
)
def test_only_one_micro_batch_has_its_masks_at_a_time(options, monkeypatch):
    """GPU review, batch.py:213: the masks of all parts together would fill the memory."""
    model, alive, most = make_model("Gemma"), weakref.WeakSet(), []
    settings = AlgorithmConfig(**{"kl_coef": 0.0, **options})
    learner = Learner(
        model, make_model("Gemma"), LearnerSettings(settings, TrainConfig(micro_batch_tokens=60), 0)
    )
    make = batches._packed

    def counted(batch, dtype):
        layout = make(batch, dtype)
        alive.add(layout.attention_mask)
        most.append(len(alive))
        return layout

    batch = ragged(8)
    learner.packing.exact_to = ANY_SIZE
    monkeypatch.setattr(batches, "_packed", counted)
    advantages = torch.tensor([1.0, -1.0] * (len(batch) // 2))
    learner.update(batch, learner.estimate_values(batch, advantages) or advantages)
    assert len(most) > 3
    # The next part's mask is made while the last one's is still a local of the pass.
    assert max(most) <= 2


# ---- logits in chunks ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"entropy_gradient": True}, {"states": True}])
def test_logits_made_in_chunks_give_the_same_numbers_and_the_same_gradient(options, monkeypatch):
    def found():
        model = TinyLM()
        scored = logprobs.score_tokens(model, make_batch(), 0.7, ScoreOptions(**options))
        (
            scored.logprobs.sum()
            + (0.3 * scored.entropy.sum() if "entropy_gradient" in options else 0)
        ).backward()
        return scored, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, expected = found()
    monkeypatch.setattr(head, "MAX_LOGITS", 8 * 11)  # two tokens at a time
    seen, fill = [], head._fill
    monkeypatch.setattr(
        head,
        "_fill",
        lambda results, logits, *rest: (seen.append(len(logits)), fill(results, logits, *rest)),
    )
    chunked, gradient = found()
    assert max(seen) == 2
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, atol=1e-9, rtol=0)
    torch.testing.assert_close(chunked.entropy, whole.entropy, atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_vocabulary_gets_the_same_gradient_in_place_per_micro_batch(tied, monkeypatch):
    # Padding id 3 is in the input, and its row gets no gradient from that
    model = make_model("Qwen3", torch.float64, tie_word_embeddings=tied, pad_token_id=3)
    batch, weight = ragged(6), model.get_output_embeddings().weight
    assert any(3 in ids for ids in (*batch.prompts, *batch.completions)), (
        "the case must have the padding token among its own"
    )

    def found(in_place):
        model.zero_grad()
        for _ in range(2):  # micro-batches
            score_tokens(
                model, batch, 0.7, ScoreOptions(in_place=in_place)
            ).logprobs.sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    monkeypatch.setattr(head, "MAX_LOGITS", 8 * 40)  # two tokens at a time
    torch.testing.assert_close(found(True), found(False), atol=1e-12, rtol=1e-12)
    by_autograd = torch.autograd.grad(
        score_tokens(model, batch, 0.7, ScoreOptions(in_place=True)).logprobs.sum(),
        [weight],
        allow_unused=True,
    )
    assert by_autograd == (None,), "the gradient was made beside .grad"


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_embedding_gets_the_same_gradient_in_place(tied, monkeypatch):
    model = make_model("Qwen3", torch.float64, tie_word_embeddings=tied)
    batch, table = ragged(6), model.get_input_embeddings().weight

    def loss():
        return score_tokens(model, batch, 0.7, ScoreOptions(in_place=True)).logprobs.sum()

    loss().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(logprobs, "LARGE_TABLE", table.numel())
    for _ in range(2):  # micro-batches
        loss().backward()
    found = {name: p.grad / 2 for name, p in model.named_parameters()}
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    if not tied:
        by_autograd = torch.autograd.grad(loss(), [table], allow_unused=True)
        assert by_autograd == (None,), "the gradient was made beside .grad"


def test_a_model_that_caps_its_logits_is_never_computed_in_chunks(monkeypatch):
    class Capped(TinyLM):
        def forward(self, input_ids, attention_mask):
            out = super().forward(input_ids, attention_mask)
            out.logits = 3 * torch.tanh(out.logits / 3)
            return out

    expected, _ = token_logprobs(Capped(), make_batch(), 1.0)
    monkeypatch.setattr(head, "MAX_LOGITS", 8 * 11)
    torch.testing.assert_close(
        token_logprobs(Capped(), make_batch(), 1.0)[0], expected, atol=0, rtol=0
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropy_and_their_gradient_equal_log_softmax(temperature, monkeypatch):
    monkeypatch.setattr(head, "MAX_LOGITS", 8 * 13)
    monkeypatch.setattr(head, "BLOCK", 2 * 13)
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(*s, dtype=torch.float64, generator=generator).requires_grad_()
        for s in ((7, 5), (13, 5), (13,))
    )
    chosen = torch.randint(0, 13, (7,), generator=generator)
    assert torch.autograd.gradcheck(
        lambda x: head.LogprobsFromLogits.apply(x @ weight.detach().T, chosen, temperature, True),
        states,
    )
    assert torch.autograd.gradcheck(
        lambda *x: head.LogprobsFromStates.apply(*x, chosen, temperature, True),
        (states, weight, bias),
    )
    plain = ((states @ weight.T + bias) / temperature).log_softmax(-1)
    for picked, entropy in (
        head.LogprobsFromLogits.apply(states @ weight.T + bias, chosen, temperature, True),
        head.LogprobsFromStates.apply(states, weight, bias, chosen, temperature, True),
    ):
        torch.testing.assert_close(picked, plain.gather(-1, chosen[:, None])[:, 0])
        torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_gradient_in_place_of_the_logits_is_the_same(temperature, dtype, monkeypatch):
    monkeypatch.setattr(head, "BLOCK", 2 * 13)
    generator = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in ((7, 5), (13, 5))
    )
    chosen = torch.randint(0, 13, (7,), generator=generator)
    gradients = []
    for in_place in (False, True):
        logits = states @ weight.T
        at = []
        logits.register_hook(lambda gradient, at=at: at.append(gradient.data_ptr()))
        picked, entropy = head.LogprobsFromLogits.apply(logits, chosen, temperature, True, in_place)
        gradients.append(torch.autograd.grad((picked + 0.3 * entropy).sum(), (states, weight)))
        assert (at == [logits.data_ptr()]) == in_place
    assert all(map(torch.equal, *gradients))


def test_logits_that_a_models_own_code_needs_are_not_overwritten():
    class Capped(TinyLM):
        def forward(self, input_ids, attention_mask):
            out = super().forward(input_ids, attention_mask)
            out.logits = torch.tanh(out.logits)  # its gradient, 1 - tanh², is made from its result
            return out

    model, batch = Capped(), make_batch()
    logprobs, _ = token_logprobs(model, batch, 1.0)
    found = torch.autograd.grad(logprobs.sum(), [*model.parameters()])
    one_by_one = token_logprobs(model, batch, 1.0, separate)[0]
    expected = torch.autograd.grad(one_by_one.sum(), [*model.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", ["whole", "in chunks"])
def test_half_precision_logits_get_a_gradient_in_half_precision(function, monkeypatch):
    monkeypatch.setattr(head, "MAX_LOGITS", 8 * 40)  # two tokens at a time
    g = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(*s, generator=g).bfloat16().requires_grad_() for s in ((6, 8), (40, 8))
    )
    chosen = torch.randint(0, 40, (6,), generator=g)
    picked, entropy = (
        head.LogprobsFromLogits.apply(states @ weight.T, chosen, 1.0, True)
        if function == "whole"
        else head.LogprobsFromStates.apply(states, weight, None, chosen, 1.0, True)
    )
    assert picked.dtype == entropy.dtype == torch.float32
    found = torch.autograd.grad(picked.sum(), (states, weight))
    exact = [t.detach().double().requires_grad_() for t in (states, weight)]
    logprobs = (exact[0] @ exact[1].T).log_softmax(-1)
    expected = torch.autograd.grad(logprobs.gather(-1, chosen[:, None]).sum(), exact)
    for gradient, right in zip(found, expected, strict=True):  # bfloat16 keeps 8 bits
        assert (gradient.double() - right).norm() < 0.02 * right.norm()


def test_a_gpu_computes_chunks_of_a_share_of_its_memory(monkeypatch):
    # 80 GB / 8 / 10 bytes = 1e9 logits; a quarter of them is 1,644 rows of 152,000.
    properties = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert head.max_logits(torch.device("cuda")) == 1_000_000_000
    assert head.max_logits(torch.device("cpu")) == head.MAX_LOGITS


# ---- layers computed twice -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["Qwen3", "GPT-2", "Gemma 2"])
def test_gradient_checkpointing_keeps_the_gradient_and_the_model(
    shape,
):
    model, batch = make_model(shape), ragged(4)
    computed: list[int] = []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    linear = next(m for m in first.modules() if type(m).__name__ in ("Linear", "Conv1D"))
    linear.register_forward_hook(lambda *_: computed.append(1))

    def found(recompute: bool):
        kept = 0

        def count(t):
            nonlocal kept
            kept += t.numel() * (not isinstance(t, torch.nn.Parameter))
            return t

        computed.clear()
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            logprobs = score_tokens(model, batch, 1.0, ScoreOptions(recompute=recompute)).logprobs
            logprobs.sum().backward()
        return (
            logprobs.detach(),
            torch.cat([p.grad.flatten() for p in model.parameters()]),
            kept,
            len(computed),
        )

    (logprobs, gradient, kept, times), (again, gradient_again, kept_less, times_again) = (
        found(False),
        found(True),
    )
    assert torch.equal(again, logprobs)
    assert torch.equal(gradient_again, gradient)
    assert (times, times_again) == (1, 2)
    assert kept_less < kept / 2
    assert "forward" not in vars(first)


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [("on", 2**60, True), ("off", 0, False), ("auto", 2**60, False), ("auto", 2**20, True)],
)
def test_gradient_checkpointing_is_used_on_request_or_when_memory_is_short(
    wanted, free, expected, monkeypatch
):
    config = parse({"train": {"gradient_checkpointing": wanted}})
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: free)
    assert (
        memory_estimate.recomputes_layers(
            config, Policy(make_model("Qwen3"), None, frozenset(), 0, 128)
        )
        == expected
    )
