"""Three steps of a real chat model, whole and with LoRA. Set GRPO_REAL_MODEL to its folder.

For example SmolLM2-135M-Instruct in float32; without the variable these tests are skipped.
"""

from __future__ import annotations

import json
import os

import pytest
import torch

from grpo_core.config import nest, parse
from grpo_core.learner import Batch
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.models import load_policy
from grpo_core.preflight.model_report import report
from grpo_core.rollout import SamplingParams, sample_groups
from grpo_core.tasks import load_task, train_prompts
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import StepCompleted

FOLDER = os.environ.get("GRPO_REAL_MODEL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="GRPO_REAL_MODEL names no model folder"),
]
QUESTIONS = [
    {"prompt": f"A box holds {n} pens. How many pens do {m} boxes hold?", "answer": str(n * m)}
    for n, m in ((3, 4), (12, 5), (7, 8), (20, 6), (9, 9), (11, 3), (15, 2), (6, 13))
]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def make(rank: int):
        settings = {
            "model.name": FOLDER,
            "model.lora_rank": rank,
            "task.path": str(file),
            "task.heldout_size": 0,
            "train.steps": 3,
            "train.prompts_per_step": 2,
            "train.group_size": 4,
            "train.max_new_tokens": 24,
            "train.warmup_steps": 0,
            "train.checkpoint_every": 0,
            "train.eval_every": 0,
        }
        return parse(nest(settings))

    return make


@pytest.mark.parametrize("rank", [0, 16])
def test_three_steps_start_from_a_kl_of_zero(config, rank):
    steps = []
    train(
        config(rank),
        lambda event: steps.append(event.metrics) if isinstance(event, StepCompleted) else None,
        RunControl(),
    )
    assert abs(steps[0].kl) < 1e-6
    assert steps[0].ratio_mean == pytest.approx(1.0, abs=1e-4)
    assert all(s.grad_norm > 0 for s in steps if s.tied_group_frac < 1)


def test_logprobs_through_the_chat_template_are_transformers_own(config):
    settings = config(0)
    policy, task = load_policy(settings.model, 0), load_task(settings.task)
    prompts = [policy.encode(p, task.instruction) for p in train_prompts(task, 0, 1, 2)]
    rollouts = sample_groups(
        policy, prompts, SamplingParams(4, 24, 1.0, keep_logprobs=True), torch.Generator()
    )
    completions = [r.completion_ids for r in rollouts]
    batch = Batch(prompts, completions, [True] * 8, policy.pad_id, policy.device)
    with torch.no_grad():
        learner = token_logprobs(policy.model, batch, 1.0)[0]
        for i, rollout in enumerate(rollouts):
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
            logits = policy.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
            chosen = torch.tensor(rollout.completion_ids)[:, None]
            own = logits.log_softmax(-1).gather(-1, chosen)[:, 0]
            torch.testing.assert_close(learner[i, : len(own)], own, atol=1e-4, rtol=0)
            sampled = torch.tensor(rollout.sampling_logprobs)
            torch.testing.assert_close(sampled, own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [0, 16])
def test_check_model_names_its_end_and_finds_no_problem(config, rank):
    found = report(config(rank))
    assert found.problems == ()
    assert found.ends_agree
    assert found.chat_template
