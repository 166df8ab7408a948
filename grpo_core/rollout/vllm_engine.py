"""Completions from a vLLM server: it gets the weights before each step and is watched throughout.

Ids and log-probabilities are the server's: no text is tokenized again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from grpo_core.config import RunConfig
from grpo_core.config.server_urls import ROLLOUT_HOSTS, check_host
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.models import Policy
from grpo_core.models.chat_template import ids_of
from grpo_core.models.token_ids import num_embeddings
from grpo_core.rollout.sample import (
    Draws,
    SamplingHooks,
    SamplingParams,
    check_ids,
    random_numbers,
)
from grpo_core.rollout.vllm_client import Refused, ServerAway, first_done
from grpo_core.rollout.vllm_fingerprint import (
    TEXT,
    Fingerprint,
    distance,
    fingerprint_prompt,
    own_fingerprint,
    problem_of,
)
from grpo_core.rollout.vllm_server import Ask, Drawing, Drawn, NotVllm, Served, VllmServer, read
from grpo_core.rollout.vllm_weights import WeightFolders, check_folder
from grpo_core.types import Completion, Rollout

PATIENCE_SECONDS = 30.0  # a server that is away may be restarting
PAUSE_SECONDS = 0.5  # between two tries
TRIES = 3  # of the requests of a step with a server that fails them and then answers again
GOODBYE_SECONDS = 1.0  # for a server that does not answer while a run ends
SLOW_SECONDS = 60.0  # after which a person is told what a step waits for


@dataclass(frozen=True, slots=True)
class Watch:
    """How the engine reaches people.

    hold: wait until a person says how to go on; None: there is nobody, so what cannot go on fails.
    """

    check_interrupt: Callable[[], None]
    tell: Callable[[str], None]
    hold: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights that the server was given last; all workers share it."""

    folder: Path
    temperature: float  # of the run's completions


class VllmEngine:
    """The sampler of a run whose completions a vLLM server writes.

    Raises InvalidConfig for an address that may not be asked, and StudioError if the server is not
    there or serves something else.
    """

    def __init__(self, config: RunConfig, policy: Policy, watch: Watch) -> None:
        self._rollout, self._model = config.rollout, config.model
        self._policy, self._watch = policy, watch
        url = self._rollout.url
        try:
            check_host(url, ROLLOUT_HOSTS)
        except ValueError as error:
            hint = "Name another, or set rollout.engine to own."
            problem = FieldProblem("rollout.url", url, str(error), hint)
            raise InvalidConfig([problem]) from None
        check_folder(self._rollout.shared_folder)
        self._folders = WeightFolders(self._rollout.shared_folder)
        self._server = VllmServer(url)
        self._loaded: Loaded | None = None
        self._before: Fingerprint | None = None  # of the learner's weights at the load before
        self._now: Fingerprint | None = None
        self._noise: float | None = None  # of the first load
        self.is_stale = True  # the learner's weights have changed since they were loaded
        try:
            self.served = self._connect()
        except (ServerAway, Refused, NotVllm) as error:
            self.close()
            raise StudioError(self._said(error)) from None

    def close(self) -> None:
        """Let the server forget the adapter, and remove the weights."""
        until = time.monotonic() + GOODBYE_SECONDS

        def check() -> None:
            if time.monotonic() > until:
                raise ServerAway("does not answer")

        if self._loaded is not None and self._model.lora_rank:
            with contextlib.suppress(Exception):
                self._server.unload_adapter(self._loaded.folder.name, check)
        with contextlib.suppress(Exception):
            self._server.client.close()
        self._folders.close()

    # ---- weights -------------------------------------------------------------------------------

    def load(self, temperature: float) -> Loaded:
        """Give the server the present weights, and check that it computes with them.

        temperature: of the run's completions. Returns what `use` needs in other workers.
        """
        folder = self._folders.write(self._policy, self._model)
        old, self._loaded = self._loaded, Loaded(folder, temperature or 1.0)
        self._before = self._now if old is not None else None
        try:
            self._push(old)
        except (ServerAway, Refused, NotVllm) as error:
            if old is None:  # nothing is lost yet
                raise StudioError(self._said(error)) from None
            self._recover(error)
        return self._loaded

    def use(self, loaded: Loaded) -> None:
        """Sample from these weights, which the server has."""
        self._loaded, self.is_stale = loaded, False

    def _push(self, old: Loaded | None = None) -> None:
        """Give the server the weights that were written last, and compare fingerprints."""
        loaded, check, policy = self._loaded, self._watch.check_interrupt, self._policy
        assert loaded is not None
        if self._model.lora_rank:
            name = old.folder.name if old is not None else None
            self._server.load_adapter(loaded.folder, name, self._model.lora_rank, check)
        else:
            self._server.reload_weights(loaded.folder, check)
        ids = fingerprint_prompt(policy)
        drawing = self._drawing(loaded.temperature)
        drawn, theirs = self._server.fingerprint(self._name, ids, drawing, check)
        self._now = own_fingerprint(policy, ids, drawn, loaded.temperature)
        if self._noise is None:
            self._noise = distance(theirs.prompt, self._now.prompt)
        if problem := problem_of(theirs, self._now, self._before, self._noise):
            raise NotVllm(f"(model {self.served.name}, from {self.served.root}) {problem}")

    def _connect(self) -> Served:
        """What the server serves. Raises NotVllm for another tokenizer."""
        check = self._watch.check_interrupt
        served = self._server.served(check)
        theirs = self._server.tokenized(served.name, TEXT, check)
        if theirs is not None and theirs != list(ids_of(self._policy.tokenizer, TEXT)):
            raise NotVllm(
                f"serves {served.root}, whose tokenizer is not that of {self._model.name}. "
                "Serve the model that the run trains"
            )
        return served

    @property
    def _name(self) -> str:
        """Of the weights, in requests."""
        assert self._loaded is not None
        return self._loaded.folder.name if self._model.lora_rank else self.served.name

    def _drawing(self, temperature: float, stop: str = "") -> Drawing:
        policy = self._policy
        return Drawing(temperature, sorted(policy.end_ids), num_embeddings(policy.model), stop)

    # ---- completions ---------------------------------------------------------------------------

    def sample_groups(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        draws: Draws,
        hooks: SamplingHooks,
    ) -> list[Rollout]:
        """As rollout.sample_groups; `draws` decide the seeds that the server is given."""
        seeds = random_numbers(len(prompts), replace(params, max_new_tokens=1), draws)
        return self.turns(policy, prompts, params, seeds, hooks).first()

    def turns(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        uniforms: Tensor,
        hooks: SamplingHooks,
    ) -> VllmTurns:
        """In place of a TurnSampler."""
        check_ids(policy, prompts)
        return VllmTurns(self, prompts, params, uniforms, hooks)

    def complete(
        self, asks: Sequence[Ask], params: SamplingParams, hooks: SamplingHooks
    ) -> list[Rollout]:
        """The completions of all asks, in order. Waits for a server that is away."""
        self._check_context(asks)
        groups: dict[int, list[Rollout]] = {}
        failures = 0
        while len(groups) < len(asks):
            before = len(groups)
            try:
                self._ask_all(asks, params, hooks, groups)
            except (ServerAway, Refused, NotVllm) as error:
                failures = 1 if len(groups) > before else failures + 1
                # A server that has been restarted knows no adapter.
                if isinstance(error, NotVllm) or (
                    isinstance(error, Refused) and error.status not in (404, 500)
                ):
                    failures = TRIES
                if self._recover(error, failures):
                    failures = 0
        return [rollout for i in range(len(asks)) for rollout in groups[i]]

    def _ask_all(
        self,
        asks: Sequence[Ask],
        params: SamplingParams,
        hooks: SamplingHooks,
        groups: dict[int, list[Rollout]],
    ) -> None:
        """Send the asks that are not answered yet; add each answer to `groups` as it comes.

        Raises what a request failed with, once all have ended.
        """
        drawing = self._drawing(params.temperature, params.stop)
        send = partial(self._server.ask, self._name)
        seconds = self._rollout.server_seconds
        waiting = {send(ask, drawing, seconds): i for i, ask in enumerate(asks) if i not in groups}
        told, started = False, time.monotonic()

        def look() -> None:
            nonlocal told
            hooks.check_interrupt()
            if not told and time.monotonic() - started > SLOW_SECONDS:
                told = True
                self._watch.tell(
                    f"The vLLM server has answered {len(groups):,} of {len(asks):,} prompts in "
                    f"{SLOW_SECONDS:g} s. The step waits for the others."
                )

        failure: Exception | None = None
        while waiting:
            for request in first_done(set(waiting), look):
                i = waiting.pop(request)
                try:
                    drawn = read(request.result(), asks[i], drawing.num_ids)
                except (ServerAway, Refused, NotVllm) as error:
                    failure = error  # the others may still be answered
                    continue
                groups[i] = [self._rollout_of(asks[i], d, params) for d in drawn]
                if hooks.on_group_done is not None:
                    hooks.on_group_done(i, groups[i])
        if failure is not None:
            raise failure

    def _rollout_of(self, ask: Ask, drawn: Drawn, params: SamplingParams) -> Rollout:
        policy, ids = self._policy, drawn.ids
        text = policy.opening(ask.ids) + policy.decode(ids)
        return Rollout(
            Completion(text, "stop" if drawn.has_ended else "length", len(ids)),
            prompt_ids=ask.ids,
            completion_ids=ids,
            sampling_logprobs=drawn.logprobs if params.keep_logprobs else None,
        )

    def _check_context(self, asks: Sequence[Ask]) -> None:
        longest = max(len(ask.ids) + ask.limit for ask in asks)
        if self.served.context is not None and longest > self.served.context:
            raise StudioError(
                f"rollout.url = {self._rollout.url!r}: the server takes {self.served.context:,} "
                f"tokens, but a prompt and train.max_new_tokens need {longest:,}. Start it with "
                f"--max-model-len {longest}, or lower train.max_new_tokens."
            )

    # ---- a server that fails -------------------------------------------------------------------

    def _said(self, error: Exception) -> str:
        """What is told of an error, with the address."""
        url = self._rollout.url
        if isinstance(error, Refused):
            return f"The vLLM server at {url} refused a request: {error}."
        wait = ""
        if isinstance(error, ServerAway):
            wait = " Start it, correct rollout.url, or raise rollout.server_seconds if it is slow."
        return f"The vLLM server at {url} {error}.{wait}"

    def _recover(self, error: Exception, failures: int = 1) -> bool:
        """Return once the server answers and has the weights. True: a person was asked.

        failures: in a row; at TRIES a person is asked although the server may answer.
        """
        watch, asked = self._watch, False
        watch.tell(f"{self._said(error)} The step waits for it.")
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            if failures >= TRIES or time.monotonic() > until:
                self._ask_person(error)
                asked, failures, until = True, 0, time.monotonic() + PATIENCE_SECONDS
            watch.check_interrupt()
            try:
                self.served = self._connect()
                self._push()
            except (ServerAway, Refused) as again:
                error = again
            except NotVllm as again:  # waiting changes nothing
                error, failures = again, TRIES
            else:
                watch.tell("The vLLM server answers, and has the weights again.")
                return asked
            time.sleep(PAUSE_SECONDS)

    def _ask_person(self, error: Exception) -> None:
        said = self._said(error)
        if self._watch.hold is None:
            raise StudioError(said)
        self._watch.hold(f"{said} Then press Resume: the step goes on where it was. Or Stop.")


class VllmTurns:
    """What a TurnSampler does, by a server: the turns of P·G texts. It reads each text anew.

    uniforms (P, G, T): a request's seed is made of the random number of its first token.
    """

    def __init__(
        self,
        engine: VllmEngine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        uniforms: Tensor,
        hooks: SamplingHooks,
    ) -> None:
        self._engine, self._prompts, self._params = engine, prompts, params
        self._uniforms, self._hooks = uniforms, hooks

    def first(self) -> list[Rollout]:
        """The first turn of every row; the rows of a prompt are one request."""
        params = self._params
        asks = [
            Ask(ids, params.group_size, params.max_new_tokens, self._seed(p * params.group_size, 0))
            for p, ids in enumerate(self._prompts)
        ]
        return self._engine.complete(asks, params, self._hooks)

    def next(
        self, rows: Sequence[int], texts: Sequence[Sequence[int]], limits: Sequence[int]
    ) -> list[Rollout]:
        """The next turn of these rows, each of `limits` tokens at most."""
        length = self._uniforms.shape[-1]
        asks = [
            Ask(text, 1, limit, self._seed(i, length - limit))
            for i, text, limit in zip(rows, texts, limits, strict=True)
        ]
        return self._engine.complete(asks, self._params, self._hooks)

    def _seed(self, row: int, place: int) -> int:
        size = self._params.group_size
        return int(self._uniforms[row // size, row % size, place].item() * 2**53)
