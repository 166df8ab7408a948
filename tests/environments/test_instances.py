"""Instances in worker processes: the contract, limits, and what a hanging tool costs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from grpo_core.environments import instances as module
from grpo_core.environments import registry
from grpo_core.environments.instances import WORKERS, Call, Instances
from grpo_core.environments.registry import add_environments, describe, find_environment
from grpo_core.errors import InvalidConfig, StopRequested, StudioError
from tests.processes import another_process, until


def children() -> set[str]:
    """The processes that this one has started and that are not gone."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set((task / "children").read_text().split())
    return found


def start(instances: Instances, count: int, seed: int = 0):
    return instances.start([{"start": 0, "answer": "1"}] * count, [seed] * count)


def one(instances: Instances, tool: str, instance: int = 0, **arguments):
    [answer] = instances.call([Call(instance, tool, arguments, 0)])
    return answer


def test_the_public_methods_of_a_class_are_its_tools(bad_environment):
    environment = find_environment(bad_environment)
    assert "add" in environment.schemas
    assert {"reset", "get_reward"}.isdisjoint(environment.schemas)
    assert environment.schemas["add"]["parameters"]["properties"]["number"] == {
        "type": "integer",
        "description": "What is added.",
    }
    assert environment.has_reward


def test_the_built_in_calculator_is_described_as_it_is_written_out():
    calculator = registry.BUILT_IN["Calculator"]
    [found] = describe(Path(calculator.path))
    assert found == calculator


def test_plain_functions_are_the_tools_of_one_environment(tmp_path):
    file = tmp_path / "tools.py"
    file.write_text(
        "def double(x: int) -> int:\n"
        '    """\n    Double a number.\n\n    Args:\n        x: The number.\n    """\n'
        "    return 2 * x\n"
    )
    add_environments([str(file)])
    instances = Instances(find_environment("tools"), 5, lambda: None)
    try:
        start(instances, 2)
        assert one(instances, "double", x=4).value == "8"
    finally:
        instances.close()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "defines no class with a method reset and no function"),
        ("import requests_of_nobody", "requests_of_nobody"),
        ("import refused", "An environment is one file: copy what it needs into it"),
        ("def f(x): return x", "cannot be described"),
        ("open('/etc/passwd').read()", "cannot write files, use the network"),
        ("class Calculator:\n    def reset(self): ...", "there is another environment"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(tmp_path, source, said):
    file = tmp_path / "refused.py"
    file.write_text(source)
    with pytest.raises(StudioError, match=said) as refusal:
        add_environments([str(file)])
    assert "refused.py" in str(refusal.value)


def test_an_unknown_environment_is_refused_with_those_that_exist():
    with pytest.raises(InvalidConfig, match=r"task\.environment = 'Sudoku'.*Calculator"):
        find_environment("Sudoku")


def test_each_rollout_has_an_instance_of_its_own(bad):
    start(bad, 9)
    for k in (1, 2):
        answers = bad.call([Call(i, "add", {"number": i}, 0) for i in range(9)])
        assert [a.value for a in answers] == [str(k * i) for i in range(9)]
    assert [a.value for a in bad.rewards(9)] == [float(2 * i) for i in range(9)]
    assert start(bad, 9)[0].error == ""
    assert [a.value for a in bad.rewards(9)] == [0.0] * 9


def test_siblings_start_alike_and_random_tools_repeat(bad):
    texts = [a.value for a in start(bad, 5, seed=3)]
    assert len(set(texts)) == 1
    assert texts == [a.value for a in start(bad, 5, seed=3)]
    assert texts[0] != start(bad, 1, seed=5)[0].value
    start(bad, 3)
    draws = [bad.call([Call(i, "draw", {}, seed)])[0].value for i in range(3) for seed in (1, 2)]
    assert draws == draws[:2] * 3
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("loop", "it took longer than 0.5 s"),
        ("ignore_the_limit", "it took longer than"),
        ("fail", "KeyError: 'no such key'"),
        ("write_much", "its result has 10,000,000 characters"),
        ("fork", "An environment cannot write files, use the network or start processes"),
        ("connect", "An environment cannot write files, use the network or start processes"),
    ],
)
def test_a_tool_that_does_harm_is_answered_with_the_reason(bad, tool, said):
    start(bad, 2)
    answer = one(bad, tool)
    assert answer.value is None
    assert said in answer.error
    assert answer.seconds < 3
    assert one(bad, "add", number=2).value == "2", "its instance goes on"
    assert one(bad, "add", instance=1, number=3).value == "3", "so do the others"


def test_an_asynchronous_tool_is_awaited(bad):
    start(bad, 1)
    assert one(bad, "later").value == "later"


def test_the_other_instances_of_a_killed_process_go_on_where_they_were(bad):
    count = 2 * WORKERS  # each process has two
    start(bad, count)
    bad.call([Call(i, "add", {"number": 10 + i}, 0) for i in range(count)])
    assert one(bad, "ignore_the_limit").error
    answers = bad.call([Call(i, "add", {"number": 1}, 0) for i in range(count)])
    assert [a.value for a in answers] == [str(11 + i) for i in range(count)]


@pytest.mark.parametrize("tool", ["loop", "ignore_the_limit"])
def test_calls_behind_a_hanging_one_go_to_other_processes(bad_environment, monkeypatch, tool):
    """One hangs, then four, then one: three rounds instead of six, and nobody is cut off."""
    monkeypatch.setattr(module, "WORKERS", 1)
    monkeypatch.setattr(module, "MOST_WORKERS", 4)
    before, num_rounds = children(), []

    class Counted(Instances):
        def _round(self, shares, do):
            num_rounds.append(len(shares))
            return super()._round(shares, do)

    with Counted(find_environment(bad_environment), 0.4, lambda: None) as instances:
        start(instances, 8)
        instances.call([Call(i, "add", {"number": 10 + i}, 0) for i in range(8)])
        assert len(children() - before) == 1
        num_rounds.clear()
        calls = [Call(i, tool, {}, 0) for i in range(6)]
        mixed = [*calls, Call(6, "add", {"number": 1}, 0), Call(7, "add", {"number": 1}, 0)]
        answers = instances.call(mixed)
        assert num_rounds == [1, 4, 3]  # in the last, two are answered at once
        assert all("took longer" in a.error for a in answers[:6])
        assert [a.value for a in answers[6:]] == ["17", "18"]
        totals = instances.rewards(8)
        assert [a.value for a in totals] == [*range(10, 16), 17, 18]
        start(instances, 8)  # nothing is left of the instances that moved
        assert [a.value for a in instances.rewards(8)] == [0] * 8


def test_a_stop_ends_all_calls_within_two_seconds(bad_environment):
    asked = threading.Event()

    def interrupt() -> None:
        if asked.is_set():
            raise StopRequested

    instances = Instances(find_environment(bad_environment), 60, interrupt)
    start(instances, 4)
    threading.Timer(0.3, asked.set).start()
    started = time.monotonic()
    with pytest.raises(StopRequested):
        instances.call([Call(i, "ignore_the_limit", {}, 0) for i in range(4)])
    instances.close()
    assert time.monotonic() - started < 30  # and not 60


def test_an_instance_made_again_repeats_the_calls_that_failed(tmp_path):
    """A tool may change its instance before it raises. What was cut off changes nothing."""
    file = tmp_path / "counting.py"
    file.write_text(
        "import random, signal\n"
        "RNG = random.Random(0)\n"
        "class Counting:\n"
        "    seen = []\n"
        "    def reset(self, **row): self.seen = []\n"
        "    def note(self, what: str) -> str:\n"
        '        """\n        Note.\n\n        Args:\n            what: Any.\n        """\n'
        "        self.seen.append(what)\n"
        "        if what == 'raise': raise ValueError(what)\n"
        "        if what == 'loop':\n"
        "            while True: pass\n"
        "        if what == 'hang':\n"
        "            signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "            while True: pass\n"
        "        return f'{self.seen} {RNG.random()}'\n"
        "    def get_reward(self): return random.random()\n"
    )
    add_environments([str(file)])
    found = []
    for hangs in (False, True):
        with Instances(find_environment("Counting"), 0.4, lambda: None) as instances:
            start(instances, 2 * WORKERS)
            one(instances, "note", what="raise")
            one(instances, "note", instance=WORKERS, what="b")  # in the same process
            if hangs:
                assert "took longer" in one(instances, "note", what="loop").error
                assert "took longer" in one(instances, "note", instance=WORKERS, what="hang").error
            answers = [one(instances, "note", instance=i, what="a").value for i in (0, WORKERS)]
            found.append((answers, [a.value for a in instances.rewards(2 * WORKERS)]))
    assert found[0] == found[1]
    assert found[0][0][0].startswith("['raise', 'a'] ")
    assert found[0][0][1].startswith("['b', 'a'] ")


def test_siblings_share_no_name_of_the_file_and_draw_alike(bad_environment, tmp_path):
    file = tmp_path / "shared.py"
    file.write_text(
        "import random\n"
        "RNG, COUNT = random.Random(0), 0\n"
        "def draw(x: str) -> str:\n"
        '    """\n    Draw.\n\n    Args:\n        x: Any.\n    """\n'
        "    global COUNT\n"
        "    COUNT += 1\n"
        "    return f'{COUNT} {RNG.random()} {set(map(str, range(9)))}'\n"
    )
    add_environments([str(file)])
    with Instances(find_environment("shared"), 5, lambda: None) as instances:
        start(instances, 2 * WORKERS)
        values = {one(instances, "draw", instance=i, x="").value for i in range(2 * WORKERS)}
    assert len(values) == 1
    assert values.pop().startswith("1 0.8444")


def test_a_hanging_tool_does_not_outlive_a_killed_run(tmp_path):
    file = tmp_path / "hangs.py"
    file.write_text(
        "import signal\n"
        "def hang(x: str) -> str:\n"
        '    """\n    Hang.\n\n    Args:\n        x: Any.\n    """\n'
        "    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "    while True: pass\n"
    )
    run = another_process(
        f"""
        from pathlib import Path
        from grpo_core.environments.instances import Call, Instances
        from grpo_core.environments.registry import add_environments, find_environment
        add_environments([{str(file)!r}])
        instances = Instances(find_environment("hangs"), 60, lambda: None)
        instances.start([{{}}], [0])
        tasks = Path("/proc/self/task").iterdir()
        print(*[n for t in tasks for n in (t / "children").read_text().split()], flush=True)
        instances.call([Call(0, "hang", {{"x": ""}}, 0)])
        """
    )
    workers = run.stdout.readline().split()
    assert workers
    run.kill()
    run.wait()
    until(lambda: not any(Path(f"/proc/{n}").exists() for n in workers))


def test_nothing_is_left_of_an_environment(bad_environment):
    before = children()
    instances = Instances(find_environment(bad_environment), 0.5, lambda: None)
    start(instances, 4)
    assert len(children()) > len(before)
    for tool in ("fork", "ignore_the_limit", "connect"):
        assert one(instances, tool).error
    instances.close()
    assert children() == before
