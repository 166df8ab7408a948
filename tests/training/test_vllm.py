"""Runs whose completions a vLLM server writes: weights, faults, and what is measured.

The server is a stand-in that speaks vLLM's HTTP over a model of our own.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from starlette.responses import JSONResponse
from vllm_stand_in import StandIn

from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig, StopRequested, StudioError
from grpo_core.rollout import vllm_engine
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import (
    Evaluated,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Paused,
    StepCompleted,
)

LORA = {"model.lora_rank": 4, "train.learning_rate": 0.02, "train.warmup_steps": 0}
# A random model writes some of these characters, so that rewards differ and the weights move.
LETTERS = [{"name": c, "check": "regex", "weight": 1, "params": {"pattern": c}} for c in "aeist123"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(vllm_engine, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(vllm_engine, "PAUSE_SECONDS", 0.05)


@pytest.fixture
def server(tiny_model):
    server = StandIn(str(tiny_model), rank=4)
    yield server
    server.kill()


class Run:
    """A run in a thread, with its events."""

    def __init__(self, settings, url, **more) -> None:
        flat = {
            **settings, **LORA, "rubric.criteria": LETTERS, "rollout.engine": "vllm",
            "rollout.url": url, "train.token_records": 0, "train.checkpoint_every": 0,
            "task.heldout_size": 2, **more,
        }  # fmt: skip
        self.config, self.control, self.events = parse(nest(flat)), RunControl(), []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def _train(self) -> None:
        try:
            train(self.config, self.events.append, self.control)
        except Exception as error:
            self.error = error

    def start(self) -> Run:
        self._thread.start()
        return self

    def end(self) -> Run:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self

    def of(self, kind):
        return [e for e in self.events if isinstance(e, kind)]

    def wait_for(self, kind):
        until = time.monotonic() + 120
        while not self.of(kind) and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.01)
        return self.of(kind)[0]

    @property
    def metrics(self):
        return [e.metrics for e in self.of(StepCompleted)]


def run(settings, url, **more) -> Run:
    result = Run(settings, url, **more).start().end()
    if result.error:
        raise result.error
    return result


def test_each_step_samples_from_the_adapters_of_that_step(tiny_settings, server):
    done = run(tiny_settings, server.url)
    assert len(done.metrics) == 3
    for m in done.metrics:
        assert 0 <= m.sampler_kl < 1e-9  # the same weights in float32
        assert 1 <= m.sampler_ratio_max < 1.0001
        assert m.grad_norm > 0
    loads = [b for path, b in server.requests if path == "/v1/load_lora_adapter"]
    assert (
        len({b["lora_name"] for b in loads}) == len(loads) == 4
    )  # before steps 1 to 3, at the end
    asked = [b for p, b in server.requests if p == "/v1/completions" and "prompt_logprobs" not in b]
    assert {b["model"] for b in asked} == {b["lora_name"] for b in loads}
    assert not server.adapters, "all adapters are unloaded"
    assert not any(Path(b["lora_path"]).exists() for b in loads)
    assert done.of(ModelLoaded)[0].env["sampler"] == "vLLM 0.32.0"


def test_ids_and_log_probabilities_are_those_of_the_server(tiny_settings, server):
    answers = []
    work = server.v1_completions

    def noted(body):
        answer = work(body)
        if "prompt_logprobs" not in body:
            answers.append((body, json.loads(answer.body)["choices"]))
        return answer

    server.v1_completions = noted
    done = run(tiny_settings, server.url, **{"train.steps": 1, "task.heldout_size": 0})
    found = [r for g in done.of(GroupsScored)[0].groups for r in g.rollouts]
    drawn = [(b["prompt"], c) for b, choices in answers for c in choices]
    expected = sorted((p, c["token_ids"], c["logprobs"]["token_logprobs"]) for p, c in drawn)
    assert (
        sorted(
            (list(r.prompt_ids), list(r.completion_ids), list(r.sampling_logprobs)) for r in found
        )
        == expected
    )
    ends = {0: "stop"}
    for r in found:
        last = r.completion_ids[-1] in server.policy.end_ids
        assert r.completion.finish_reason == (ends[0] if last else "length")


def test_the_same_seed_asks_for_the_same_completions(tiny_settings, server):
    def texts(**more):
        done = run(tiny_settings, server.url, **{"train.steps": 1, "task.heldout_size": 0, **more})
        return [r.completion.text for g in done.of(GroupsScored)[0].groups for r in g.rollouts]

    first = texts()
    assert first == texts()
    assert first != texts(**{"train.seed": 1})
    assert len(set(first)) > 2


def test_all_weights_are_reloaded_from_the_shared_folder(tiny_settings, tiny_model, tmp_path):
    server = StandIn(str(tiny_model))
    shared = {"rollout.shared_folder": str(tmp_path), "model.lora_rank": 0}
    done = run(tiny_settings, server.url, **shared)
    server.kill()
    assert [m.sampler_kl < 1e-9 for m in done.metrics] == [True] * 3
    paths = [b["kwargs"]["weights_path"] for p, b in server.requests if p == "/collective_rpc"]
    assert len(set(paths)) == 4
    assert all(p.startswith(str(tmp_path)) for p in paths)
    asked = [p for p, _ in server.requests]
    assert asked.count("/reset_prefix_cache") == 4
    assert [*tmp_path.iterdir()] == []


def test_a_server_killed_in_mid_step_gets_the_adapter_again(tiny_settings, server):
    server.delay = 0.2
    run_ = Run(tiny_settings, server.url, **{"task.heldout_size": 0}).start()
    while not any(
        p == "/v1/completions" and "prompt_logprobs" not in b for p, b in server.requests
    ):
        time.sleep(0.01)
    server.kill()
    run_.wait_for(Paused)
    assert "The step waits for it" in run_.of(Noticed)[0].message
    assert "cannot be reached" in run_.of(Paused)[0].reason
    assert server.url in run_.of(Paused)[0].reason
    assert "Resume" in run_.of(Paused)[0].reason
    server.restart()
    run_.control.resume()
    run_.end()
    assert run_.error is None
    assert [m.sampler_kl < 1e-9 for m in run_.metrics] == [True] * 3
    assert any("has the weights again" in n.message for n in run_.of(Noticed))


def test_a_server_that_restarts_by_itself_needs_no_person(tiny_settings, server):
    lost = []

    def forget(path, body):
        if path == "/v1/completions" and "prompt_logprobs" not in body and not lost:
            lost.append(body)
            server.adapters.clear()

    server.hook = forget
    done = run(tiny_settings, server.url, **{"task.heldout_size": 0})
    assert len(lost) == 1
    assert not done.of(Paused)
    assert len(done.metrics) == 3


def test_answers_that_came_before_a_fault_are_kept(tiny_settings, server):
    failed = []

    def fails_once(path, body):
        if path == "/v1/completions" and "prompt_logprobs" not in body:
            failed.append(body)
            if len(failed) == 2:
                return JSONResponse({"error": {"message": "no"}}, 503)
        return None

    server.hook = fails_once
    run(tiny_settings, server.url, **{"task.heldout_size": 0, "train.steps": 1})
    assert len(failed) == 3
    assert failed[1] == failed[2]  # the same seed too


def test_stop_ends_a_run_that_waits_for_a_slow_server(tiny_settings, server):
    server.delay = 30
    run_ = Run(tiny_settings, server.url).start()
    while not any(
        p == "/v1/completions" and "prompt_logprobs" not in b for p, b in server.requests
    ):
        time.sleep(0.01)
    pressed = time.monotonic()
    run_.control.stop()
    run_.end()
    assert isinstance(run_.error, StopRequested)
    assert time.monotonic() - pressed < 20  # and not the 30 s of the server


def test_a_slow_server_is_named_and_then_a_person_decides(tiny_settings, server, monkeypatch):
    monkeypatch.setattr(vllm_engine, "SLOW_SECONDS", 0.1)
    server.delay = 30
    more = {"rollout.server_seconds": 2.0, "task.heldout_size": 0, "train.steps": 1}
    run_ = Run(tiny_settings, server.url, **more).start()
    reason = run_.wait_for(Paused).reason
    assert "did not answer within 2 s" in reason
    assert "rollout.server_seconds" in reason
    assert any("has answered 0 of 2 prompts" in n.message for n in run_.of(Noticed))
    server.delay = 0
    run_.control.resume()
    assert run_.end().error is None


def test_stale_weights_stop_the_step(tiny_settings, server):
    old = []

    def stale(path, body):
        if path == "/v1/load_lora_adapter":
            old.append(body["lora_path"])
            kept = server.adapters.get(Path(old[0]).name)
            if kept is not None:
                server.adapters[body["lora_name"]] = kept
                return JSONResponse("Success")
        return JSONResponse("kept") if path == "/v1/unload_lora_adapter" else None

    server.hook = stale
    run_ = Run(tiny_settings, server.url, **{"task.heldout_size": 0}).start()
    assert "weights of the step before" in run_.wait_for(Paused).reason
    run_.control.stop()
    run_.end()
    assert len(run_.metrics) == 1


def test_weights_of_which_a_part_stays_behind_are_noticed():
    from grpo_core.rollout.vllm_fingerprint import Fingerprint, problem_of

    g = torch.Generator().manual_seed(0)
    own = -torch.rand(63, generator=g)
    parts = [0.01 * torch.randn(63, generator=g) for _ in range(8)]
    rounding = 1e-6 * torch.randn(63, generator=g)
    before = own + torch.stack(parts).sum(0)

    def said(prompt):
        at = Fingerprint(own, own[:16], own[:16])
        return problem_of(
            Fingerprint(prompt, own[:16]), at, Fingerprint(before, own[:16], own[:16]), 1e-6
        )

    assert said(own + rounding) == ""
    assert said(own + 3 * rounding) == ""
    assert "all or some" in said(own + parts[0] + parts[1] + rounding)
    assert "all or some" in said(before)


@pytest.fixture(scope="module")
def other_model(tiny_model, tmp_path_factory):
    """The same shapes and tokenizer, other weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("other")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig.from_pretrained(tiny_model)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_another_model_is_refused_before_the_first_step(tiny_settings, other_model):
    server = StandIn(str(other_model), rank=4)
    # A random model gives all tokens about the same probability; a trained one does not.
    with torch.no_grad():
        server.policy.model.lm_head.weight.mul_(20)
    run_ = Run(tiny_settings, server.url).start().end()
    server.kill()
    assert isinstance(run_.error, StudioError)
    assert "nats a token on the fingerprint prompt; 0.1 is allowed" in str(run_.error)
    assert not run_.metrics


def test_another_tokenizer_is_refused(tiny_settings, server):
    server.tokenize = lambda body: JSONResponse({"tokens": [1, 2, 3]})
    with pytest.raises(StudioError, match="whose tokenizer is not that of"):
        run(tiny_settings, server.url)


def test_log_probabilities_without_temperature_are_named(tiny_settings, server):
    server.with_temperature = False
    with pytest.raises(StudioError, match="--logprobs-mode processed_logprobs"):
        run(tiny_settings, server.url, **{"train.temperature": 0.3})
    run(tiny_settings, server.url, **{"train.steps": 1})  # at 1 both are the same


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/load_lora_adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"),
        ("/v1/models", "refused a request"),
    ],
)
def test_a_server_that_lacks_an_address_says_how_to_start_it(tiny_settings, server, path, said):
    server.hook = lambda p, body: JSONResponse({"detail": "Not Found"}, 404) if p == path else None
    with pytest.raises(StudioError, match=said):
        run(tiny_settings, server.url)


HOSTILE = [
    {"choices": []},
    {"choices": [{"index": 0}]},
    {"choices": "x"},
    [],
    {"choices": [{"index": 0, "token_ids": [10**9], "finish_reason": "stop",
                  "logprobs": {"token_logprobs": [0.0]}}]},
    {"choices": [{"index": 0, "token_ids": [1], "finish_reason": "stop",
                  "logprobs": {"token_logprobs": ["<b>"]}}]},
    {"choices": [{"index": 0, "token_ids": [1, 2], "finish_reason": "stop",
                  "logprobs": {"token_logprobs": [-1.0]}}]},
]  # fmt: skip


@pytest.mark.parametrize("reply", HOSTILE, ids=range(len(HOSTILE)))
def test_replies_that_no_vllm_gives_end_in_one_line(tiny_settings, server, reply):
    server.hook = lambda path, body: JSONResponse(reply) if path == "/v1/completions" else None
    with pytest.raises(StudioError) as error:
        run(tiny_settings, server.url)
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)


def test_a_server_that_is_not_there_is_said_before_training(tiny_settings, server):
    url = server.url
    server.kill()
    with pytest.raises(StudioError, match=r"cannot be reached \(ConnectError\)"):
        run(tiny_settings, url)
    server.restart()


def test_a_key_goes_to_the_server_and_nowhere_else(tiny_settings, server, monkeypatch):
    monkeypatch.setenv("GRPO_ROLLOUT_KEY", "sk-canary-7")
    done = run(tiny_settings, server.url, **{"train.steps": 1})
    assert set(server.keys) == {"Bearer sk-canary-7"}
    assert "sk-canary-7" not in repr(done.events)


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"rollout.url": ""}, "rollout.url", "no server is given"),
        ({"rollout.url": "file:///etc"}, "rollout.url", "http(s)://host"),
        ({"rollout.url": "http://me:pw@host"}, "rollout.url", "without a name or key"),
        (
            {"rollout.engine": "own", "rollout.correction": "mask"},
            "rollout.correction",
            "own engine",
        ),
        ({"rollout.correction_max": 0.5}, "rollout.correction_max", "at least 1"),
        (
            {"rollout.correction": "truncate", "algorithm.objective": "trust_region"},
            "rollout.correction",
            "line search",
        ),
        ({"rollout.engine": "sglang"}, "rollout.engine", "own"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_field_and_the_way_out(settings, field, said):
    flat = {"rollout.engine": "vllm", "rollout.url": "http://h:1/v1", **settings}
    with pytest.raises(InvalidConfig) as error:
        parse(nest(flat))
    assert field in {p.field for p in error.value.problems}
    assert said in str(error.value)


def test_only_hosts_that_the_operator_allows_are_asked(tiny_settings, server, monkeypatch):
    monkeypatch.setenv("GRPO_ROLLOUT_HOSTS", "gpu.example")
    with pytest.raises(InvalidConfig, match=r"rollout\.url.*GRPO_ROLLOUT_HOSTS"):
        run(tiny_settings, server.url)
    assert server.requests == []


def test_a_shared_folder_that_is_not_there_is_named(tiny_settings, server):
    with pytest.raises(InvalidConfig, match=r"rollout\.shared_folder.*no such folder"):
        run(tiny_settings, server.url, **{"rollout.shared_folder": "/nowhere/at/all"})


def test_a_correction_trains_on_what_the_server_drew(tiny_settings, server):
    losses = []
    for correction in ("none", "truncate"):
        more = {"rollout.correction": correction, "train.steps": 2}
        done = run(tiny_settings, server.url, **more)
        losses.append([m.policy_loss for m in done.metrics])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # equal weights: all ratios are 1


def test_held_out_prompts_are_answered_by_the_server(tiny_settings, server):
    done = run(tiny_settings, server.url, **{"train.steps": 1})
    assert len(done.of(Evaluated)) == 2
    counts = [b["n"] for p, b in server.requests if p == "/v1/completions" and "n" in b]
    assert counts.count(1) == 4  # two held-out prompts, before and after


def test_preflight_asks_the_server_and_ends_where_it_fails(tiny_settings, server, monkeypatch):
    from grpo_core.preflight.preflight import first_step

    config = Run(tiny_settings, server.url).config
    first = first_step(config)
    assert first.env["sampler"] == "vLLM 0.32.0"
    assert first.metrics.sampler_kl < 1e-9
    refused = JSONResponse({"error": {"message": "no room"}}, 400)
    server.hook = lambda path, body: (
        refused if path == "/v1/completions" and "prompt_logprobs" not in body else None
    )
    with pytest.raises(StudioError, match="no room"):
        first_step(config)


def test_the_own_engine_measures_its_sampler_where_it_keeps_logprobs(tiny_settings):
    found = {}
    for records in (0, 1):
        flat = {**tiny_settings, "train.steps": 1, "train.token_records": records}
        events = []
        train(parse(nest(flat)), events.append, RunControl())
        [step] = [e.metrics for e in events if isinstance(e, StepCompleted)]
        found[records] = step.sampler_kl, step.sampler_ratio_max
    assert found[0] == (None, None)
    assert 0 <= found[1][0] < 1e-9
    assert 1 <= found[1][1] < 1.001
