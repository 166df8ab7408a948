"""What a vLLM server is asked: what it serves, to take weights, completions with their tokens.

Written for vLLM 0.10.2 and later: https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_core.rollout.vllm_client import LOAD_SECONDS, Client, Refused, ServerAway, result
from grpo_core.rollout.vllm_fingerprint import NUM_DRAWN, Fingerprint

CheckInterrupt = Callable[[], None]
# Options without which a server would draw from another distribution: it takes what is absent here
# from the model's generation_config.json.
WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,  # it ends with our end tokens alone
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "logprobs": 0,  # of the token drawn, without others
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve … --enable-lora --max-lora-rank {rank}"
WHOLE = "VLLM_SERVER_DEV_MODE=1 vllm serve …"


class NotVllm(Exception):
    """A reply that no vLLM gives, or a server that cannot do what a run needs; and the way out."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself."""

    name: str  # of its model, in requests
    root: str  # where it has the model from
    context: int | None
    version: str


@dataclass(frozen=True, slots=True)
class Ask:
    """`count` completions of one text, of `limit` tokens at most each."""

    ids: Sequence[int]
    count: int
    limit: int
    seed: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn. stop: see SamplingParams."""

    temperature: float
    end_ids: Sequence[int]
    num_ids: int  # a token's id is below it
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion: its ids, their log-probabilities, and whether it ended by itself."""

    ids: list[int]
    logprobs: list[float]
    has_ended: bool


class VllmServer:
    """One server, over HTTP. All methods raise ServerAway, Refused and NotVllm."""

    def __init__(self, url: str) -> None:
        self.client = Client(url)

    def served(self, check: CheckInterrupt) -> Served:
        """Its model; adapters are listed too, with a parent."""
        data = result(self.client.get("/v1/models"), check)
        version = self._version(check)
        try:
            models = [m for m in data["data"] if not m.get("parent")]
            name, root = models[0]["id"], models[0].get("root")
            if not isinstance(name, str):
                raise TypeError
        except (LookupError, TypeError, AttributeError):
            raise NotVllm("lists no model at /v1/models; it is not a vLLM server") from None
        context = models[0].get("max_model_len")
        return Served(
            name[:200],
            root[:200] if isinstance(root, str) else name[:200],
            context if isinstance(context, int) else None,
            version,
        )

    def _version(self, check: CheckInterrupt) -> str:
        try:
            data = result(self.client.get("/version"), check)
        except Refused:
            return "unknown"
        version = data.get("version") if isinstance(data, dict) else None
        return version[:40] if isinstance(version, str) else "unknown"

    def tokenized(self, name: str, text: str, check: CheckInterrupt) -> list[int] | None:
        """The ids that its tokenizer makes of a text; None: it has none."""
        body = {"model": name, "prompt": text, "add_special_tokens": False}
        try:
            data = result(self.client.post("/tokenize", body), check)
        except Refused:
            return None
        ids = data.get("tokens") if isinstance(data, dict) else None
        return ids if isinstance(ids, list) else None

    def load_adapter(self, folder: Path, old: str | None, rank: int, check: CheckInterrupt) -> None:
        """Load the adapter in a folder under the folder's name, and forget the old one.

        The name is new each time: what the server has cached of prompts belongs to a name.
        """
        body = {"lora_name": folder.name, "lora_path": str(folder)}
        try:
            result(self.client.post("/v1/load_lora_adapter", body, LOAD_SECONDS), check)
        except Refused as error:
            if "already been loaded" not in str(error):
                raise _cannot(error, "load adapters", LORA.format(rank=rank), folder) from None
        if old is not None:
            self.unload_adapter(old, check)

    def unload_adapter(self, name: str, check: CheckInterrupt) -> None:
        """Forget an adapter; one that the server does not have is no error."""
        with contextlib.suppress(Refused):
            result(self.client.post("/v1/unload_lora_adapter", {"lora_name": name}), check)

    def reload_weights(self, folder: Path, check: CheckInterrupt) -> None:
        """Read all weights from a folder in place of its own, and forget cached prompts."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            result(self.client.post("/collective_rpc", body, LOAD_SECONDS), check)
            result(self.client.post("/reset_prefix_cache", {}), check)
        except Refused as error:
            raise _cannot(error, "reload weights", WHOLE, folder) from None

    def ask(self, model: str, ask: Ask, drawing: Drawing, seconds: float) -> Future[Any]:
        """Start a request for completions; `read` understands its reply."""
        body = {
            **WHOLE_DISTRIBUTION,
            "model": model,
            "prompt": list(ask.ids),
            "n": ask.count,
            "max_tokens": ask.limit,
            "temperature": drawing.temperature,
            "seed": ask.seed,
            "stop_token_ids": list(drawing.end_ids),
        }
        if drawing.stop:
            body |= {"stop": [drawing.stop], "include_stop_str_in_output": True}
        num_tokens = ask.count * ask.limit + len(ask.ids)
        return self.client.post("/v1/completions", body, seconds, num_tokens)

    def fingerprint(
        self, model: str, ids: Sequence[int], drawing: Drawing, check: CheckInterrupt
    ) -> tuple[list[int], Fingerprint]:
        """Tokens that it draws after a prompt, and its log-probabilities of both."""
        body = {
            **WHOLE_DISTRIBUTION,
            "model": model,
            "prompt": list(ids),
            "max_tokens": NUM_DRAWN,
            "temperature": drawing.temperature,
            "seed": 0,
            "prompt_logprobs": 0,
        }
        data = result(self.client.post("/v1/completions", body, num_tokens=len(ids) + 64), check)
        [drawn] = read(data, Ask(ids, 1, NUM_DRAWN, 0), drawing.num_ids)
        try:
            given = data["choices"][0]["prompt_logprobs"]
            prompt = [
                float(scores[str(token)]["logprob"])
                for token, scores in zip(ids[1:], given[1:], strict=True)
            ]
        except (LookupError, TypeError, ValueError):
            raise NotVllm("gives no log-probabilities of prompts") from None
        return drawn.ids, Fingerprint(torch.tensor(prompt), torch.tensor(drawn.logprobs))


def read(data: Any, ask: Ask, num_ids: int) -> list[Drawn]:
    """The completions in a reply. Raises NotVllm for anything that is not one."""
    try:
        choices = sorted(data["choices"], key=lambda choice: choice["index"])
        found = [_drawn(choice, ask.limit, num_ids) for choice in choices]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NotVllm(
            "answers without token ids and their log-probabilities. vLLM 0.10.2 or later is needed"
        ) from None
    if len(found) != ask.count:
        raise NotVllm(f"gave {len(found)} completions instead of {ask.count}")
    return found


def _drawn(choice: Any, limit: int, num_ids: int) -> Drawn:
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise ServerAway("gave a request up")
    whole = all(type(i) is int and 0 <= i < num_ids for i in ids)
    if not whole or not 0 < len(ids) <= limit or len(logprobs) != len(ids):
        raise ValueError
    if not all(math.isfinite(p) and p <= 1e-3 for p in logprobs):
        raise ValueError
    return Drawn(ids, [float(p) for p in logprobs], reason == "stop")


def _cannot(error: Refused, what: str, start: str, folder: Path) -> NotVllm:
    """Why a server took no weights."""
    if error.is_unknown:
        return NotVllm(f"may not {what}. Start it with {start}")
    return NotVllm(
        f"could not {what} from {str(folder.parent)!r}: {error}. It was started with {start}? It "
        "must see that folder by this path: name one that it sees in rollout.shared_folder"
    )
