"""Other people's Python: what it may do, what stops it, and that the next step goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grpo_core.child_process import Child
from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import StudioError
from grpo_core.rubric import CHECKS, Notes, build_rubric
from grpo_core.rubric.sandbox.plugins import PluginParams, _scorer, load_plugins
from grpo_core.time_limit import time_limit
from grpo_core.types import Completion, Prompt

COMPLETIONS = [Completion(text, "stop", 3) for text in ("<answer>5</answer>", "six")]
PROMPTS = [
    Prompt("p", "2+3?", "5", "file", {"columns": {"level": 3}}),
    Prompt("q", "3+3?", "6", "file", {"columns": {"level": 4}}),
]
GOOD = (
    "def right(completions, prompts, answer, level, **columns):\n"
    "    'Right?'\n"
    "    return [float(a in c) * l for c, a, l in zip(completions, answer, level)]\n"
)
HOSTILE = {
    "loops for ever": "while True: pass",
    "allocates 10 GB": "x = bytearray(10 << 30); x[::4096] = b'1' * len(x[::4096])",
    "opens a socket": "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
    "opens a unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "reads the environment": "import os; leaked = os.environ['GRPO_CANARY']",
    "reads its parent's environment": (
        "import os; leaked = open(f'/proc/{os.getppid()}/environ').read()"
    ),
    "reads a file of the machine": "open('/etc/passwd').read()",
    "reads a home": "import os; os.listdir('/root'); os.listdir('/home')",
    "forks": "import os; os.fork()",
    "starts a program": "import subprocess; subprocess.run(['true'], check=True)",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "writes a file": "open('/tmp/grpo-was-here', 'w').write('x')",
    "deletes a file": "import os; os.unlink(__FILE__)",
    "makes a folder": "import os; os.mkdir('/tmp/grpo-was-here')",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "lifts its limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)); "
        "open('/tmp/grpo-was-here', 'w').write('x')"
    ),
    "writes through ctypes": (
        "import ctypes; l = ctypes.CDLL(None); assert l.creat(b'/tmp/grpo-was-here', 0o644) >= 0"
    ),
    "exits": "import os; os._exit(0)",
    "raises SystemExit": "raise SystemExit",
    "recurses in C": "import ctypes; ctypes.string_at(0)",
    "returns strings": "return ['a', 'b']",
    "returns NaN": "return [float('nan'), float('inf')]",
    "returns too few": "return [1.0]",
    "returns no list": "return 3",
    "returns a huge list": "return ['x' * 100] * 1_000_000",
}


def plugin(tmp_path: Path, body: str) -> dict:
    file = tmp_path / "mine.py"
    file.write_text(body)
    return load_plugins([str(file)])


def run(check, **params):
    notes = Notes()
    return check.scores(COMPLETIONS, PROMPTS, check.params.model_validate(params), notes), notes


def test_a_function_with_trls_signature_scores_and_gets_the_files_columns(tmp_path):
    check = plugin(tmp_path, GOOD)["mine.right"]
    assert run(check) == ([3.0, 0.0], Notes())
    assert "mine.py" in check.help


def test_trls_own_reward_function_works_as_a_plug_in(tmp_path):
    check = plugin(
        tmp_path,
        "import re\n\n"
        "PATTERN = r'^<think>(?!.*<think>)(.*?)</think>.*$'\n\n"
        "def think(completions, **kwargs):\n"
        "    matches = [re.match(PATTERN, c[0]['content'], re.DOTALL) for c in completions]\n"
        "    return [1.0 if match else 0.0 for match in matches]\n",
    )["mine.think"]
    notes = Notes()
    texts = [Completion("<think>a</think>b", "stop", 3), Completion("a", "stop", 1)]
    assert check.scores(texts, PROMPTS, check.params(messages=True), notes) == [1.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_python_is_stopped_with_a_message_and_training_continues(
    tmp_path, what, monkeypatch
):
    monkeypatch.setenv("GRPO_CANARY", "secret-canary")
    Path("/tmp/grpo-was-here").unlink(missing_ok=True)
    body = HOSTILE[what].replace("__FILE__", repr(str(tmp_path / "mine.py")))
    check = plugin(
        tmp_path,
        "leaked = ''\n\ndef bad(completions, prompts, **columns):\n    global leaked\n"
        + textwrap.indent(body, "    ")
        + "\n    return [1.0, 1.0]\n\n"
        + GOOD,
    )
    started = time.monotonic()
    found, notes = run(check["mine.bad"], seconds=0.5)
    assert time.monotonic() - started < 60
    assert found == [None, None]
    assert notes
    assert all("canary" not in note for note in notes)
    assert not Path("/tmp/grpo-was-here").exists()
    assert (tmp_path / "mine.py").exists()
    assert run(check["mine.right"])[0] == [3.0, 0.0]


@pytest.mark.slow
def test_printing_a_gigabyte_goes_nowhere(tmp_path):
    check = plugin(
        tmp_path,
        "def loud(completions, **_):\n"
        "    for _ in range(1000): print('x' * 1_000_000)\n"
        "    return [1.0, 1.0]\n",
    )["mine.loud"]
    assert run(check, seconds=10) == ([1.0, 1.0], Notes())


@pytest.mark.slow
def test_hostile_code_at_the_top_of_the_file_is_locked_up_too(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_core.rubric.sandbox.plugins.START_SECONDS", 1.0)
    for body, says in (
        ("while True: pass", "took too long"),
        ("open('/tmp/grpo-was-here', 'w')", "PermissionError"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "no public function"),
    ):
        (tmp_path / "mine.py").write_text(body)
        with pytest.raises(StudioError, match=says):
            load_plugins([str(tmp_path / "mine.py")])
    with pytest.raises(StudioError, match="not a Python file"):
        load_plugins([str(tmp_path / "nowhere.py")])


SNIPPETS = {
    "while True: pass": "too long",
    "return [0] * 10**10": "MemoryError",
    "return 'a' * 10**12": "MemoryError",
    "return 9**9**9**9": "MemoryError",
    "return open('/etc/passwd').read()": "denied",
    "import os; return os.environ['HOME']": "not supported",
    "import socket": "No module",
    "import subprocess": "No module",
    "return ().__class__.__base__.__subclasses__()": "no attribute",
    "return __import__('os').system('id')": "NameError",
    "return 'x'": "not a finite number",
    "return float('nan')": "not a finite number",
    "return 10**400": "not a finite number",
    "return score(a, b, c, d)": "Recursion",
    "import time; time.sleep(99)": "too long",
    "x =": "Expected",
    "return [][1]": "IndexError",
    "print('x' * 10**9)": "MemoryError",
    "for i in range(10**9): print('x' * 1000)": "MemoryError",
}


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS)
def test_a_hostile_snippet_of_the_page_is_stopped_with_a_message(code):
    check, notes = CHECKS["python"], Notes()
    body = f"def score(a, b, c, d):\n    {code}\n"
    started = time.monotonic()
    assert check.scores(COMPLETIONS, PROMPTS, check.params(code=body, seconds=0.3), notes) == [
        None,
        None,
    ]
    assert time.monotonic() - started < 30
    assert SNIPPETS[code] in str(notes), notes
    assert check.scores(COMPLETIONS, PROMPTS, check.params(), Notes()) == [1.0, 0.0]


MANY_VALUES = {
    "doublings": "x = [0]\n    for _ in range(40): x = [x, x]\n    return x",
    "a list in itself": "x = []\n    x.append(x)\n    return x",
    "a deep list": "x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "thirty million letters": "return 'a' * 30_000_000",
    "an int of 30 million digits": "return 1 << 100_000_000",
    "a text of an object": "return A()\nclass A:\n    def __repr__(self): return 'x' * 10_000_000",
    "an error of ten million lines": "return {}['a\\n' * 10_000_000]",
    "keys that collide": "return {(2**61 - 1) * i: 0 for i in range(20_000)}",
}
REPLACED = "def _number(value): return value\n"


@pytest.mark.slow
@pytest.mark.parametrize("replaced", ["", REPLACED], ids=["as it is", "replaced"])
@pytest.mark.parametrize("what", MANY_VALUES)
def test_a_value_that_is_no_number_costs_the_server_nothing(what, replaced):
    check, notes = CHECKS["python"], Notes()
    code = f"{replaced}def score(a, b, c, d):\n    {MANY_VALUES[what]}\n"
    started, used = time.monotonic(), time.process_time()
    with time_limit(3.0):
        found = check.scores(COMPLETIONS, PROMPTS, check.params(code=code), notes)
    assert found == [None, None]
    assert notes.total() == 2
    assert all(len(reason) < 300 for reason in notes)
    assert time.monotonic() - started < 30
    assert time.process_time() - used < 1  # of this process: nothing is converted here
    assert check.scores(COMPLETIONS, PROMPTS, check.params(), Notes()) == [1.0, 0.0]


class Code(str):
    """Source text of a value that has no literal."""

    __repr__ = str.__str__


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**15, 10**15 + 1, 10**309, -(2**63)]),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(
        ["...", "{1: 2}", "score", "range(3)", "b''", "int", "print", "2**100_000"]
    ).map(Code),
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=8
)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_every_value_of_a_snippet_is_a_score_or_null_with_a_reason(value):
    check, notes = CHECKS["python"], Notes()
    code = (
        f"def score(a, b, c, d):\n    inf = float('inf'); nan = -(inf - inf)\n    return {value!r}"
    )
    started = time.monotonic()
    found = check.scores(COMPLETIONS, PROMPTS, check.params(code=code, seconds=0.5), notes)
    is_number = isinstance(value, bool | int | float) and abs(value) <= 1e15
    assert found == [float(value) if is_number else None] * 2
    assert notes.total() == (0 if is_number or value is None else 2)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_all_criteria_of_a_request_share_its_time():
    endless = {"code": "def score(a, b, c, d):\n    while True: pass", "seconds": 10}
    names = [f"c{i}" for i in range(32)]
    criteria = tuple(Criterion(name=n, check="python", weight=1, params=endless) for n in names)
    started = time.monotonic()
    with time_limit(1.0):
        scored = build_rubric(RubricConfig(criteria=criteria)).score_all(COMPLETIONS, PROMPTS)
    assert time.monotonic() - started < 30
    assert scored.rewards == [None, None]
    assert all(notes.total() == 2 for notes in scored.notes.values())
    assert scored.notes["c31"] == {"the time of this request was used up": 2}


@pytest.mark.slow
def test_a_visitors_snippet_does_not_wait_for_another_visitors():
    check, endless = CHECKS["python"], "def score(a, b, c, d):\n    while True: pass"

    def other_visitor():
        with time_limit(4.0):
            params = check.params(code=endless, seconds=10)
            check.scores(COMPLETIONS, PROMPTS, params, Notes())

    check.scores(COMPLETIONS, PROMPTS, check.params(), Notes())  # starts the run's helper
    thread, notes = threading.Thread(target=other_visitor), Notes()
    thread.start()
    time.sleep(0.3)
    with time_limit(5.0):
        assert check.scores(COMPLETIONS, PROMPTS, check.params(), notes) == [1.0, 0.0]
    assert thread.is_alive(), "the other visitor's snippet goes on"
    assert not notes
    assert check.scores(COMPLETIONS, PROMPTS, check.params(), Notes()) == [1.0, 0.0]  # a run's
    thread.join()


@pytest.mark.slow
def test_an_endless_snippet_costs_a_step_at_most_four_limits():
    check, notes, started = CHECKS["python"], Notes(), time.monotonic()
    found = check.scores(
        COMPLETIONS * 20,
        PROMPTS * 20,
        check.params(code="def score(a, b, c, d):\n    while True: pass\n", seconds=0.2),
        notes,
    )
    assert found == [None] * 40
    assert notes == {"the snippet took too long": 4, "not tried after 4 that took too long": 36}
    assert time.monotonic() - started < 5  # 40 of 0.2 s would be eight


def test_the_jail_holds_a_process_that_is_root_or_not():
    code = (
        "import sys\n"
        "from grpo_core.rubric.sandbox.jail import lock_up\n"
        "lock_up(['/usr', sys.prefix, sys.base_prefix], 1 << 30)\n"
        "open('/etc/hostname')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.getcwd()},
    )
    assert "PermissionError" in done.stderr


# ---- what a plug-in may be, and what it cannot do to others --------------------------------------

REASONS = {
    "return [1 / 0, 1.0]": "bad: line 2: ZeroDivisionError: division by zero",
    "return [int(c) for c in completions]": "bad: line 2: ValueError: invalid literal for int()",
    "return None": "bad: it returned NoneType, not a list with one score a completion",
    "return {0: 1.0, 1: 1.0}": "bad: it returned dict",
    "return {1.0, 0.0}": "bad: it returned set",
    "return '10'": "bad: it returned str",
    "return 3": "bad: TypeError: 'int' object is not iterable",
    "return [1.0] * 3": "bad returned 3 scores for 2 completions",
    "return [[1.0, 2.0], 'x\\ny']": "bad returned [1.0, 2.0], which is not a finite number",
    "return [1e308 * 10, 10**400]": "bad returned inf, which is not a finite number",
    "return [10**5000] * 2": "bad returned a value of type int, which is not a finite number",
    "return [1e16, 1e16]": "a score of 1e+16 is beyond 1e+15",
    "return [trainer_state.epoch] * 2": "trainer_state.epoch is not known here; known: nothing",
    "return [len(completion_ids[0])] * 2": "bad: line 2: TypeError: 'NoneType'",
    "return helper(completions)": "line 2: NameError",
    "import helpers": "No module named 'helpers'. A plug-in is one file",
    "from . import helpers": "A plug-in is one file",
    "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})()": "bad: line 2: E",
    "raise KeyboardInterrupt": "bad: line 2: KeyboardInterrupt",
    "open('words.csv')": "'words.csv'. A plug-in cannot write files",
    "open(__file__[:-7] + 'helpers.py')": "A plug-in cannot write files, use the network",
    "import os; os.fork()": "Operation not permitted. A plug-in cannot write files",
    "raise ValueError('a\\ud800b \\x1b[2J \\0')": "bad: line 2: ValueError: a b [2J",
}


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """One function for each body of REASONS, each of two lines."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "helpers.py").write_text("def f(): pass\n")
    head = "def bad{}(completions, completion_ids, trainer_state):\n    {}\n"
    return plugin(folder, "".join(head.format(i, body) for i, body in enumerate(REASONS)))


@pytest.mark.parametrize("body", REASONS)
def test_a_plug_in_that_fails_says_why_and_on_which_line(failing, body):
    i = list(REASONS).index(body)
    found, notes = run(failing[f"mine.bad{i}"])
    assert found == [None, None]
    says = REASONS[body].replace("bad", f"bad{i}").replace("line 2", f"line {2 * i + 2}")
    assert says in " / ".join(notes), notes
    assert all(note.isprintable() for note in notes)
    assert notes.total() == 2


def test_two_files_of_one_name_and_odd_paths_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("def f(completions): return [1.0]\n")
    with pytest.raises(StudioError, match="same name"):
        load_plugins([str(tmp_path / "a/mine.py"), str(tmp_path / "b/mine.py")])
    for path in ("~nobody-of-this-name/x.py", "x\0.py", "x" * 5000 + ".py", str(tmp_path), ""):
        with pytest.raises(StudioError, match="not a Python file"):
            load_plugins([path])


def test_a_function_with_a_name_that_is_no_name_is_refused(tmp_path):
    body = "def f(completions): return [1.0]\nglobals()['<b>\\x1b[2J'] = f\n"
    with pytest.raises(StudioError, match="not an answer"):
        plugin(tmp_path, body)


def test_a_file_with_a_byte_order_mark_and_few_parameters_works(tmp_path):
    body = "def f(completions):\n    return [len(c) for c in completions]\n"
    (tmp_path / "mine.py").write_bytes(b"\xef\xbb\xbf" + body.encode())
    check = load_plugins([str(tmp_path / "mine.py")])["mine.f"]
    assert run(check) == ([18.0, 3.0], Notes())


def test_objects_that_can_be_called_are_checks_too(tmp_path):
    checks = plugin(
        tmp_path,
        "from functools import partial\n"
        "from os.path import join\n\n"
        "def add(completions, more, **_):\n    return [len(c) + more for c in completions]\n\n"
        "class Times:\n"
        "    def __init__(self, by): self.by = by\n"
        "    async def __call__(self, completions, **_):\n"
        "        return [len(c) * self.by for c in completions]\n\n"
        "ten_more, twice, limit = partial(add, more=10), Times(2), 3\n",
    )
    assert set(checks) == {"mine.add", "mine.ten_more", "mine.twice"}
    assert run(checks["mine.ten_more"])[0] == [28.0, 13.0]
    assert run(checks["mine.twice"])[0] == [36.0, 6.0]


def test_annotations_in_a_file_are_values_and_not_texts(tmp_path):
    body = (
        "def f(completions: list, w: int = 2): return [w * (f.__annotations__['w'] is int)] * 2\n"
    )
    assert run(plugin(tmp_path, body)["mine.f"])[0] == [2.0, 2.0]


def test_a_function_cannot_change_the_time_limit_of_the_next(tmp_path):
    checks = plugin(
        tmp_path,
        "import signal\n"
        "def first(completions):\n"
        "    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)\n"
        "    return [1.0, 1.0]\n\n"
        "def endless(completions):\n"
        "    try:\n"
        "        while True: len(completions)\n"
        "    except Exception: return [1.0, 1.0]\n",
    )
    assert run(checks["mine.first"])[0] == [1.0, 1.0]
    expected = {"endless: it took longer than 0.2 s": 2}
    assert run(checks["mine.endless"], seconds=0.2) == ([None, None], expected)


def test_plug_ins_load_where_the_machine_allows_less_than_the_jail(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    code = (
        "import resource\n"
        "from grpo_core.rubric.sandbox.plugins import load_plugins\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        f"print(*load_plugins([{str(tmp_path / 'mine.py')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "mine.right\n", done.stderr


def test_columns_have_their_names_and_chats_are_messages(tmp_path):
    check = plugin(
        tmp_path,
        "def f(prompts, completions, question, solution, answer, **columns):\n"
        "    assert question == prompts, question\n"
        "    assert solution == answer == ['5', '6']\n"
        "    assert columns['odd name'] == [None, 4]\n"
        "    assert prompts[1] == [{'role': 'system', 'content': 'Be brief.'},\n"
        "                          {'role': 'user', 'content': '3+3?'}]\n"
        "    return [completions[0] == 'five', completions[1][0]['content'] == 'six']\n",
    )["mine.f"]
    names = {"prompt_column": "question", "answer_column": "solution"}
    before = [{"role": "system", "content": "Be brief."}]
    prompts = [
        Prompt("p", "2+3?", "5", "file", names),
        Prompt(
            "q",
            "3+3?",
            "6",
            "file",
            {**names, "chat": True, "before": before, "columns": {"odd name": 4, "prompts": "no"}},
        ),
    ]
    notes = Notes()
    texts = [Completion("five", "stop", 1), Completion("six", "stop", 1)]
    assert check.scores(texts, prompts, check.params(), notes) == [1.0, 1.0], notes


@pytest.mark.slow
def test_a_plug_in_can_use_torch(tmp_path):
    check = plugin(
        tmp_path,
        "import torch\n\n"
        "def f(completions, **_):\n"
        "    lengths = torch.tensor([float(len(c)) for c in completions])\n"
        "    open('/dev/null', 'w').write('x')\n"
        "    return torch.nn.functional.softmax(lengths @ torch.eye(2), 0)\n",
    )["mine.f"]
    found, notes = run(check, seconds=60)
    assert found == [pytest.approx(1.0, abs=1e-6), pytest.approx(3.06e-7, rel=0.01)], notes


LIAR = """
import json, os, sys, threading, time

def to_every_descriptor(data):
    for number in range(3, 40):
        try: os.write(number, data)
        except OSError: pass

def bad(completions, level, **_):
    data = bytes(level[0])
    to_every_descriptor(data)
    threading.Timer(.02, to_every_descriptor, [data]).start()
    return [.25, .25]

def honest(completions, **_):
    return [.5, .5]
"""


@pytest.fixture(scope="module")
def liar(tmp_path_factory):
    return plugin(tmp_path_factory.mktemp("liar"), LIAR)


def scores_with(check, data):
    prompts = [Prompt("p", "?", "5", "file", {"columns": {"level": list(data)}})] * 2
    return check.scores(COMPLETIONS, prompts, check.params(seconds=5), Notes())


replies = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda value, end: json.dumps({"number": "1", "answer": {"value": value}}).encode() + end,
        st.one_of(st.none(), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.text()),
        st.sampled_from([b"", b"\n", b"\n\n", b"\n{"]),
    ),
)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(replies)
@example(b'{"scores": [0.0, 0.0]}\n')
@example(b'{"value": [0.0, 0.0]}\n')
def test_what_a_plug_in_writes_to_its_descriptors_is_never_a_score(liar, data):
    assert scores_with(liar["mine.bad"], data) in ([0.25, 0.25], [None, None])
    assert scores_with(liar["mine.honest"], data) in ([0.5, 0.5], [None, None])
    time.sleep(0.03)
    assert scores_with(liar["mine.honest"], data) in ([0.5, 0.5], [None, None])
    assert scores_with(liar["mine.honest"], data) == [0.5, 0.5]


ECHO = """
import json, sys
print('{}', flush=True)
for line in sys.stdin:
    question = json.loads(line)
    answer = question['ask']['arguments'][1]['level'][0]
    print(json.dumps({'number': question['number'], 'answer': answer}), flush=True)
"""
odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
odd_answers = st.recursive(
    odd,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["value", "null", "more"]), inner, max_size=2),
        st.builds(lambda values: {"value": values}, st.lists(inner, max_size=3)),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    script = tmp_path_factory.mktemp("echo") / "echo.py"
    script.write_text(ECHO)
    child = Child(["-I", "-S", str(script)])
    yield _scorer(child, "f")
    child.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_answers)
def test_an_answer_of_any_shape_gives_its_own_numbers_or_null(echo, answer):
    notes = Notes()
    prompts = [Prompt("p", "?", "5", "file", {"columns": {"level": answer}})] * 2
    found = echo(COMPLETIONS, prompts, PluginParams(), notes)
    values = answer.get("value") if isinstance(answer, dict) and len(answer) == 1 else None
    if not isinstance(values, list) or len(values) != 2:
        values = [None, None]
    for score, value in zip(found, values, strict=True):
        assert score is None or score == value
    assert found == [None, None] or all(
        isinstance(v, bool | int | float | str | None) for v in values
    )


def test_the_line_of_a_snippet_that_failed_is_in_the_reason():
    code = "def score(completion, prompt, answer, tokens):\n    x = 0\n    return 1 / x\n"
    check, notes = CHECKS["python"], Notes()
    assert check.scores(COMPLETIONS, PROMPTS, check.params(code=code), notes) == [None, None]
    assert notes == {"the snippet failed: line 3: ZeroDivisionError: division by zero": 2}
