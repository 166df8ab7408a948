"""A tiny model that calls a calculator: sometimes once, sometimes twice, sometimes not at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from grpo_core.config import ModelConfig
from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import add_environments, find_environment
from grpo_core.models import Policy, load_policy

ASKED = "Q: 3*4=?"
CALL, RESULT, ANSWER = "<tool>3*4</tool>", "<result>12</result>", "<answer>12</answer>"
# What the model learns to write; only what is not a result is learned.
TEXTS = (
    (CALL, RESULT, ANSWER),
    (CALL, RESULT, CALL, RESULT, ANSWER),
    ("<tool>3*</tool>", "<result>error</result>", ANSWER),
    (ANSWER,),
)
STEPS = 120


def teach(policy: Policy, texts, steps: int) -> None:
    """Teach the policy texts of parts: (ids, whether it learns to write them)."""
    model = policy.model
    rows = [[i for ids, _ in parts for i in ids] for parts in texts]
    learned = [[learns for ids, learns in parts for _ in ids] for parts in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([r + [policy.pad_id] * (width - len(r)) for r in rows])
    mask = torch.tensor([m + [False] * (width - len(m)) for m in learned])[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        logits = model(tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[mask], tokens[:, 1:][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def calling_model(tiny_model, tmp_path_factory):
    """The folder of the model."""
    policy = load_policy(ModelConfig(name=str(tiny_model)), seed=0, device=torch.device("cpu"))
    tokenizer, model = policy.tokenizer, policy.model
    [end] = policy.end_ids

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = []
    for texts in TEXTS:
        learned = [t not in (RESULT, "<result>error</result>") for t in texts]
        parts = [(ids(t), learns) for t, learns in zip(texts, learned, strict=True)]
        rows.append([(ids(ASKED), False), *parts, ([end], True)])
    teach(policy, rows, STEPS)
    folder = tmp_path_factory.mktemp("models") / "calling"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policy(calling_model) -> Policy:
    return load_policy(ModelConfig(name=str(calling_model)), seed=0, device=torch.device("cpu"))


ENVIRONMENT_FILE = '''
import os, random, signal, socket

class Bad:
    """Every tool does something that it must not."""

    def reset(self, start=0, **row):
        self.total = start
        return f" Begin with {random.randint(0, 99)}."

    def add(self, number: int) -> int:
        """
        Add to the total.

        Args:
            number: What is added.
        """
        self.total += number
        return self.total

    def loop(self) -> str:
        """Never end."""
        while True:
            pass

    def ignore_the_limit(self) -> str:
        """Never end, and ignore the alarm."""
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass

    def fail(self) -> str:
        """Raise."""
        raise KeyError("no such key")

    def write_much(self) -> str:
        """Return 10 MB."""
        return "x" * 10_000_000

    def fork(self) -> str:
        """Start a process."""
        os.fork()
        return "forked"

    def connect(self) -> str:
        """Open a socket."""
        socket.socket()
        return "connected"

    def draw(self) -> int:
        """Draw a random number."""
        return random.randint(0, 10**6)

    async def later(self) -> str:
        """Answer asynchronously."""
        return "later"

    def get_reward(self) -> float:
        return float(self.total)
'''


@pytest.fixture(scope="session")
def bad_environment(tmp_path_factory):
    """The name of an environment from a file."""
    file = tmp_path_factory.mktemp("environments") / "bad.py"
    file.write_text(ENVIRONMENT_FILE)
    add_environments([str(file)])
    return "Bad"


@pytest.fixture
def bad(bad_environment) -> Iterator[Instances]:
    """Instances of it, half a second for each call."""
    instances = Instances(find_environment(bad_environment), 0.5, lambda: None)
    yield instances
    instances.close()
