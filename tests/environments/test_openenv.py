"""Servers of OpenEnv: the real package on a port of this machine, and a server that misbehaves.

Skipped where the optional packages are not installed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from locked_server import free_port

from grpo_core.environments import openenv, registry
from grpo_core.environments.instances import Call, Instances
from grpo_core.environments.registry import add_environments, check_environment, find_environment
from grpo_core.environments.trajectories import World, started
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.types import Prompt
from tests.processes import until

SERVER = Path(__file__).with_name("openenv_server.py")


def takes_connections(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server takes connections."""
    assert process.poll() is None, "the server did not start"
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of the real package with two environments."""
    pytest.importorskip("openenv", reason="OpenEnv is optional: pip install openenv")
    port = free_port()
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)])
    try:
        until(lambda: takes_connections(port, process), 60)
        yield f"openenv:http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def live(request, server) -> Iterator[Instances]:
    """Instances of the environment that the test names."""
    name = f"{server}/{request.param}"
    add_environments([name])
    instances = Instances(find_environment(name), 10, lambda: None)
    yield instances
    instances.close()
    registry._named.pop(name)


@pytest.mark.parametrize("live", ["guess"], indirect=True)
def test_steps_of_a_server_are_calls_and_their_rewards_add_up(live):
    [step] = live.environment.tools
    assert step["function"]["parameters"] == {
        "type": "object",
        "properties": {"number": {"title": "Number", "type": "integer"}},
        "required": ["number"],
    }
    begun = live.start([{"limit": 3, "answer": "2"}] * 2, [5, 5])  # 5 mod 3 is the secret, 2
    assert [a.value for a in begun] == ["Guess a number below 3."] * 2
    guesses = [(0, 0), (0, 2), (0, 1), (1, 99)]
    answers = live.call([Call(i, "step", {"number": n}, 0) for i, n in guesses])
    assert [a.value for a in answers] == ["wrong", "right\nThe episode is over.", None, None]
    assert [a.error for a in answers[2:]] == ["the episode is over", "the server: 99 is no number"]
    assert [a.value for a in live.rewards(2)] == [pytest.approx(0.9), 0.0]


@pytest.mark.parametrize("live", ["add"], indirect=True)
def test_the_tools_that_a_server_lists_are_its_tools(live):
    assert [t["function"]["name"] for t in live.environment.tools] == ["add"]
    assert [a.value for a in live.start([{}] * 2, [0, 0])] == [None, None]
    calls = [Call(0, "add", {"number": 2}, 0), Call(0, "add", {"number": 3}, 0)]
    answers = live.call([*calls, Call(1, "add", {"number": "x"}, 0)])
    assert [a.value for a in answers] == ["The total is 2.", "The total is 5.", None]
    assert "valid integer" in answers[2].error


@pytest.mark.parametrize("live", ["guess"], indirect=True)
def test_too_few_sessions_stop_the_run_with_the_reason(live):
    prompts = [Prompt(str(i), "Guess.", "", "file", {}) for i in range(5)]
    world = World(None, live, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(StudioError, match="no room for so many sessions at once: it takes 16"):
        started(world, prompts, 4, [p.id for p in prompts])


# ---- only the operator's address -----------------------------------------------------------------


def test_a_server_that_the_operator_did_not_name_is_refused():
    with pytest.raises(InvalidConfig) as error:
        check_environment("openenv:http://169.254.169.254/latest")
    assert "the operator did not name this server" in str(error.value)
    assert "--environments openenv:URL" in str(error.value)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "http://", "http://a b", "http://a:99999", "ftp://a", "a"]
)
def test_what_is_no_address_is_refused_in_one_line(url):
    with pytest.raises(StudioError, match="is no address of a server"):
        add_environments([f"openenv:{url}"])


def test_a_missing_package_is_one_line_with_its_pip_command(monkeypatch):
    monkeypatch.setattr(openenv, "find_spec", lambda name: None)
    with pytest.raises(StudioError, match=r"websockets is not installed\. Install it: pip install"):
        add_environments(["openenv:http://127.0.0.1:1"])


def test_a_server_that_is_not_there_is_one_line():
    pytest.importorskip("websockets", reason="websockets is optional")
    with pytest.raises(StudioError, match=r"does not answer \(.*refused.*\)\. Start the server"):
        add_environments([f"openenv:http://127.0.0.1:{free_port()}"])


# ---- a hostile server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile() -> Iterator[tuple[str, list[str]]]:
    """A server that answers each step wrongly, and the requests that a second server got."""
    server = pytest.importorskip("websockets.asyncio.server", reason="websockets is optional")
    port, other, visited = free_port(), free_port(), []
    loop, end, up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def answer(connection) -> None:
        async for text in connection:
            message = json.loads(text)
            if message["type"] == "mcp":
                tools = [{"name": n, "description": n, "input_schema": {}} for n in BAD]
                await connection.send(
                    json.dumps({"type": "mcp", "data": {"result": {"tools": tools}}})
                )
            elif message["type"] == "reset":
                await connection.send(observation("Begin."))
            else:
                reply = BAD[message["data"]["tool_name"]]
                if reply is not None:
                    await connection.send(reply)

    async def elsewhere(connection, request):
        visited.append(request.path)
        return None

    async def redirect(connection, request):
        if request.path.startswith("/moved"):
            response = connection.respond(302, "")
            response.headers["Location"] = f"ws://127.0.0.1:{other}/stolen"
            return response
        if request.path.startswith("/locked"):
            is_known = request.headers.get("Authorization") == f"Bearer {SECRET}"
            return None if is_known else connection.respond(401, "")
        return None

    async def main() -> None:
        async with (
            server.serve(answer, "127.0.0.1", port, process_request=redirect, max_size=None),
            server.serve(answer, "127.0.0.1", other, process_request=elsewhere),
        ):
            up.set()
            await end.wait()

    def run() -> None:
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(20)
    yield f"openenv:ws://127.0.0.1:{port}", visited
    loop.call_soon_threadsafe(end.set)
    thread.join(10)


def observation(text: str, **more) -> str:
    return json.dumps({"type": "observation", "data": {"observation": {"text": text}, **more}})


SECRET = "open-sesame-1234"
BAD: dict[str, str | None] = {
    "echo": observation(f"You sent {SECRET}."),
    "silent": None,
    "huge": observation("x" * 2_000_000),
    "long": observation("x" * 30_000),
    "no_json": "{",
    "no_answer": "[]",
    "no_number": '{"type": "observation", "data": {"observation": {}, "reward": NaN}}',
    "deep": "[" * 100_000,
    "wrong": json.dumps({"type": "error", "data": {"message": "<b>\x1b[31m\nno"}}),
    "reward": observation("paid", reward=0.5),
}


def test_answers_of_a_hostile_server_are_errors_with_the_reason(hostile):
    name, _ = hostile
    add_environments([name])
    instances = Instances(find_environment(name), 0.5, lambda: None)
    try:
        tools = list(BAD)
        assert all(
            a.value == "Begin." for a in instances.start([{}] * len(tools), [0] * len(tools))
        )
        calls = [Call(i, tool, {}, 0) for i, tool in enumerate(tools)]
        found = dict(zip(tools, instances.call(calls), strict=True))
        assert found["silent"].error == "it took longer than 0.5 s"
        assert "the connection to the server broke" in found["huge"].error
        assert found["long"].error == "its observation has 30,000 characters; 20,000 are read"
        for tool in ("no_json", "no_answer", "no_number", "deep"):
            assert found[tool].error == "the server wrote something that is not an answer"
        assert found["wrong"].error == "the server: <b> [31m no"
        assert found["reward"].value == "paid"
        rewards = dict(zip(tools, instances.rewards(len(tools)), strict=True))
        assert rewards["reward"].value == 0.5
    finally:
        instances.close()
        registry._named.pop(name)


def test_a_redirect_to_another_machine_is_not_followed(hostile):
    name, visited = hostile
    with pytest.raises(StudioError, match="does not answer"):
        add_environments([f"{name}/moved"])
    assert visited == []


# ---- a server that asks for a token --------------------------------------------------------------


def test_a_server_that_asks_for_a_token_gets_it_and_no_record_does(hostile, monkeypatch):
    name = f"{hostile[0]}/locked"
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with pytest.raises(StudioError, match=r"HTTP 401.*openenv:URL,VARIABLE"):
        add_environments([name])
    add_environments([f"{name},MY_TOKEN"])
    environment = find_environment(name)  # the configuration does not name the variable
    assert SECRET not in repr(environment)
    with Instances(environment, 10, lambda: None) as instances:
        assert instances.start([{}], [0])[0].value == "Begin."
        assert instances.call([Call(0, "echo", {}, 0)])[0].value == "You sent (token)."
    registry._named.pop(name)


@pytest.mark.parametrize(
    ("asked", "token", "said"),
    [
        ("ws://127.0.0.1:1,", SECRET, "is no name of an environment variable"),
        ("ws://127.0.0.1:1,a b", SECRET, "is no name of an environment variable"),
        ("ws://127.0.0.1:1,MY_TOKEN", "", "MY_TOKEN is not set"),
        ("ws://127.0.0.1:1,MY_TOKEN", "a\nb", "characters that cannot be sent"),
        ("http://10.0.0.1,MY_TOKEN", SECRET, "over https only"),
    ],
)
def test_a_token_that_cannot_be_sent_is_refused_before(asked, token, said, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", token)
    with pytest.raises(StudioError, match=said) as refusal:
        add_environments([f"openenv:{asked}"])
    assert SECRET not in str(refusal.value)
