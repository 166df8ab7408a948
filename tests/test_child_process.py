"""Helper processes: whatever one writes, an answer is the honest one or there is none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_core.child_process import Child, ChildFailed, free_one, module_child
from grpo_core.time_limit import time_limit

# Writes what the question asks for; {number} stands for the number of the question.
SCRIPT = """
import json, os, sys, time
def write(data):
    while data: data = data[os.write(1, data):]
write(b'{}\\n')
for line in sys.stdin:
    question = json.loads(line)
    number, ask = question['number'], question['ask']
    if ask == 'honest': write(json.dumps({'number': number, 'answer': .5}).encode() + b'\\n')
    elif ask == 'hang': time.sleep(60)
    elif ask == 'die': os._exit(1)
    elif ask == 'drip':
        while True: write(b' '); time.sleep(.01)
    elif ask == 'late':
        write(json.dumps({'number': number, 'answer': .5}).encode() + b'\\n')
        time.sleep(.05); write(json.dumps({'number': number, 'answer': 0}).encode() + b'\\n')
    else: write(ask.encode('latin-1').replace(b'{number}', number.encode()))
"""


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    script = tmp_path_factory.mktemp("helper") / "helper.py"
    script.write_text(SCRIPT)
    child = Child(["-I", "-S", str(script)])
    yield child
    child.close()


def half(answer):
    """Accepts numbers only, as every reader of scores does."""
    if not isinstance(answer, float):
        raise ValueError
    return answer


def honest(helper):
    return helper.request("honest", 5, half)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ("hang", "longer than 0.3 s"),
        ("drip", "longer than 0.3 s"),
        ("die", "died"),
        ("x" * 9_000_000, "more than"),
        ("not json\n", "not an answer"),
        ("{}\n", "not an answer"),
        ("[]\n", "not an answer"),
        ("0.0\n", "not an answer"),
        ('{"answer": 0.0}\n', "not an answer"),
        ('{"number": 1, "answer": 0.0}\n', "not an answer"),
        ('{"number": "{number}"}\n', "not an answer"),
        ('{"number": "{number}", "answer": 0.0, "more": 1}\n', "not an answer"),
        ('{"number": "{number}", "answer": NaN}\n', "not an answer"),
        ('{"number": "{number}", "answer": -Infinity}\n', "not an answer"),
        ('{"number": "{number}", "answer": 1e400}\n', "not an answer"),
        ('{"number": "{number}", "answer": "0.0"}\n', "not an answer"),
        ('{"number": "{number}", "answer": ' + "9" * 5000 + "}\n", "not an answer"),
        ('{"number": "{number}", "answer": ' + "[" * 100_000 + "\n", "not an answer"),
        ('{"number": "{number}", "answer": 0.5}\n{"number": "{number}", "answer": 0.0}\n', "no"),
        ("\xff\xfe\n", "not an answer"),
        ("\n", "not an answer"),
    ],
)
def test_anything_but_one_answer_ends_the_helper(helper, ask, says):
    with pytest.raises(ChildFailed, match=says):
        helper.request(ask, 0.3 if ask in ("hang", "drip") else 5, half)
    assert honest(helper) == 0.5


def test_the_helper_lives_on_after_an_honest_answer(helper):
    honest(helper)
    first = helper._process.pid
    assert honest(helper) == 0.5
    assert helper._process.pid == first


def test_a_second_answer_is_not_taken_for_the_next(helper):
    with contextlib.suppress(ChildFailed):  # where both arrive together
        assert helper.request("late", 5, half) == 0.5
    time.sleep(0.2)
    assert honest(helper) == 0.5


def test_only_a_number_that_is_not_free_again_is_killed(helper, monkeypatch):
    honest(helper)
    ended = helper._process.pid
    os.kill(ended, signal.SIGKILL)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    killed, kill = [], os.killpg

    def killpg(pid, signal):
        killed.append(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_pid)  # still ours
        kill(pid, signal)

    monkeypatch.setattr(os, "killpg", killpg)
    assert honest(helper) == 0.5
    assert killed == [ended]


def test_an_interrupted_request_leaves_no_answer_behind(helper):
    def interrupted(answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        helper.request("honest", 5, interrupted)
    assert helper._process is None


def test_a_message_that_is_no_json_is_refused(helper):
    honest(helper)
    with pytest.raises(ChildFailed, match="not JSON"):
        helper.request(object(), 5)
    assert honest(helper) == 0.5


def test_helpers_work_with_many_open_files_and_fail_in_one_line_without_any(tmp_path):
    code = (
        "import os, resource\n"
        "from grpo_core.child_process import Child, ChildFailed\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))\n"
        "held = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]\n"
        f"child = Child(['-I', '-S', {str(tmp_path / 'helper.py')!r}])\n"
        "print(child.request('honest', 5))\n"
        "child.close()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1100, 1200))\n"
        "try: child.request('honest', 5)\n"
        "except ChildFailed as error: print(error)\n"
    )
    (tmp_path / "helper.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0.5\nit did not start: Too many open files\n", done.stderr


numbers = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5))
objects = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["number", "answer", "value", "null"]), inner, max_size=3),
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=60).map(lambda data: data.decode("latin-1")),
        objects.map(json.dumps),
        st.tuples(objects, st.sampled_from(["", "\n", "{", "\n{}\n"])).map(
            lambda made: json.dumps({"number": "another", "answer": made[0]}) + made[1]
        ),
    )
)
def test_no_garbage_ever_becomes_an_answer(helper, garbage):
    with pytest.raises(ChildFailed):
        helper.request(garbage + "\n", 5, half)
    assert honest(helper) == 0.5


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("print('null')", "did not start"),
        ("print('[]')", "did not start"),
        ("print('{\"error\": 3}')", "did not start"),
        ('print(\'{"error": "no jail"}\')', "no jail"),
        ("print('garbage')", "did not start"),
        ("print('[' * 100000)", "did not start"),
        ("", "did not start"),
    ],
)
def test_a_helper_that_does_not_start_says_so(tmp_path, start, says):
    (tmp_path / "helper.py").write_text(start)
    child = Child(["-I", "-S", str(tmp_path / "helper.py")])
    with pytest.raises(ChildFailed, match=says):
        child.request("honest", 5)


FUNCTIONS = """
import os, sys
from grpo_core.child_process import NoValue, serve

def boom(): raise ZeroDivisionError("by zero")
def refuse(): raise NoValue("line 3: no")
def leave(): sys.exit(3)
def spin():
    while True: pass
def nothing(): print("noise"); return input()

serve({"nan": lambda: float("nan"), "one": lambda: 1, "object": object, "boom": boom,
       "refuse": refuse, "leave": leave, "spin": spin, "print": nothing}, 4 << 30)
"""


def test_functions_of_a_helper_give_a_value_or_a_reason(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    child = Child([str(tmp_path / "functions.py")], {"PYTHONPATH": os.getcwd()})
    found = {
        do: child.request({"do": do, "arguments": [], "seconds": 0.2}, 5)
        for do in ("one", "nan", "object", "boom", "refuse", "leave", "spin", "print", "gone")
    }
    assert found == {
        "one": {"value": 1},
        "nan": {"null": "its value is not JSON"},
        "object": {"null": "its value is not JSON"},
        "boom": {"null": "ZeroDivisionError: by zero"},
        "refuse": {"null": "line 3: no"},
        "leave": {"null": "SystemExit: 3"},
        "spin": {"null": "it took longer than 0.2 s"},
        "print": {"null": "EOFError: EOF when reading a line"},
        "gone": {"null": "KeyError: 'gone'"},
    }
    child.close()


def test_a_helper_of_this_package_has_no_secrets(monkeypatch):
    monkeypatch.setenv("GRPO_CANARY", "secret")
    assert "GRPO_CANARY" not in module_child("json.tool")._environment


@pytest.mark.slow
def test_a_visitor_does_not_wait_for_the_helper_of_another(tmp_path):
    script = tmp_path / "helper.py"
    script.write_text(SCRIPT)
    helpers = [Child(["-I", "-S", str(script)]) for _ in range(3)]

    def hang():
        with time_limit(50), contextlib.suppress(ChildFailed):
            free_one(helpers).request("hang", 50)

    assert free_one(helpers) is helpers[0]  # a run, which has no time limit
    hanging = threading.Thread(target=hang)
    hanging.start()
    while not helpers[1].is_busy:
        time.sleep(0.01)
    started = time.monotonic()
    with time_limit(50):
        assert free_one(helpers) is helpers[2]
        assert honest(free_one(helpers)) == 0.5
        assert honest(free_one(helpers)) == 0.5
    assert time.monotonic() - started < 30
    helpers[1]._process.kill()
    hanging.join()
    for helper in helpers:
        helper.close()
