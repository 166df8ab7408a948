"""The jail of a plug-in file: what the kernel refuses, and what honest code still can do."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.rubric.sandbox.syscalls import (
    ALLOW,
    ALLOWED,
    CLONE3,
    ENOSYS,
    EPERM,
    KILL,
    MACHINES,
    program,
)

ROOT = Path(__file__).parents[2]
COLUMN = MACHINES[platform.machine()][0]
NUMBERS = {row[COLUMN]: name for name, row in ALLOWED.items() if row[COLUMN] is not None}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # aarch64 uses the common numbers
}
LOCK_UP = """
import ctypes, json, os, sys
from grpo_core.rubric.sandbox import jail
from grpo_core.rubric.sandbox.locked_file import LIBRARIES
file, folder = sys.argv[1], os.path.dirname(sys.argv[1])
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
{before}
jail.lock_up([*LIBRARIES, sys.prefix, sys.base_prefix, folder], 4 << 30)
"""
WITHOUT_LANDLOCK = "jail._landlock = lambda *_: None"


def jailed(code: str, file: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a process that has locked itself up and may read the file's folder."""
    return subprocess.run(
        [sys.executable, "-c", LOCK_UP.format(before=before) + code, str(file)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        timeout=60,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "users.txt"
    file.write_text("of the user")
    os.utime(file, (1_000_000, 1_000_000))
    return file


# ---- the table and the filter --------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[machine].read_text()
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    if machine == "aarch64":  # names that the header chooses by word size
        numbers |= {"newfstatat": numbers["fstatat"]}
    column = MACHINES[machine][0]
    for name, row in ALLOWED.items():
        expected = int(numbers[name]) if name in numbers else None
        assert row[column] == expected, name


def decide(lines, number, arguments=(), architecture=None, machine="x86_64") -> int:
    """What a filter returns for a call: the instructions of classic BPF that it uses."""
    architecture = MACHINES[machine][1] if architecture is None else architecture
    words = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = lines[at]
        if code == 0x20:
            value, step = words[operand // 4], 0
        elif code == 0x06:
            return operand
        else:
            holds = {
                0x15: value == operand,
                0x35: value >= operand,
                0x45: bool(value & operand),
            }[code]
            step = if_true if holds else if_false
        at += 1 + step


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_allows_its_table_and_refuses_all_else(machine):
    column = MACHINES[machine][0]
    lines = program(machine, 77)
    calls = {name: row[column] for name, row in ALLOWED.items() if row[column] is not None}
    for number in set(range(600)) - {*calls.values(), CLONE3}:
        assert decide(lines, number, machine=machine) == EPERM, number
    assert decide(lines, CLONE3, machine=machine) == ENOSYS
    assert decide(lines, 0x40000001, machine=machine) == KILL
    assert decide(lines, 0, architecture=0x40000003, machine=machine) == KILL  # 32-bit x86
    assert {(code, value) for code, *_, value in lines if code == 0x06} == {
        (0x06, value) for value in (ALLOW, KILL, EPERM, ENOSYS)
    }
    by_argument = {row[0] for row in ARGUMENTS}
    for name in calls.keys() - by_argument:
        assert decide(lines, calls[name], [2**64 - 1] * 6, machine=machine) == ALLOW, name


THREAD, VM, NEW_USER = 0x10000, 0x3D0F00, 0x10000000
ARGUMENTS = [
    ("clone", (VM,), ALLOW),
    ("clone", (VM & ~THREAD,), EPERM),
    ("clone", (17,), EPERM),  # fork
    ("clone", (VM | NEW_USER,), EPERM),
    ("clone", (VM | 0x4000000,), EPERM),  # a new host name
    ("kill", (77, 9), ALLOW),
    ("kill", (78, 9), EPERM),
    ("kill", (0, 9), EPERM),
    ("kill", (2**64 - 1, 9), EPERM),
    ("tgkill", (77, 78, 6), ALLOW),
    ("tgkill", (78, 78, 6), EPERM),
    ("prlimit64", (0, 7, 0, 1), ALLOW),
    ("prlimit64", (0, 7, 1, 0), EPERM),
    ("prlimit64", (0, 7, 1 << 32, 0), EPERM),
    ("prlimit64", (1, 7, 0, 1), EPERM),
    ("fcntl", (0, 3), ALLOW),
    ("fcntl", (0, 8, 1), EPERM),  # F_SETOWN
    ("fcntl", (0, 15, 1), EPERM),  # F_SETOWN_EX
    ("fcntl", (0, 6), EPERM),  # F_SETLK
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0, 0x5412), EPERM),  # TIOCSTI types into the terminal
    ("ioctl", (0, 1 << 32 | 0x5412), EPERM),
    ("madvise", (1 << 40, 4096, 4), ALLOW),  # MADV_DONTNEED
    ("madvise", (1 << 40, 4096, 100), EPERM),  # MADV_HWPOISON
    ("prctl", (15,), ALLOW),
    ("prctl", (4, 1), EPERM),  # PR_SET_DUMPABLE
    ("prctl", (22, 2), EPERM),  # PR_SET_SECCOMP
    ("openat", (0, 0, 0o2000000), ALLOW),  # O_CLOEXEC
    ("openat", (0, 0, 0o1000), EPERM),  # to read, and emptied
    ("openat", (0, 0, 0o100), EPERM),
    ("openat", (0, 0, 0o20200000), EPERM),  # O_TMPFILE
    ("openat", (0, 0, 0o1001), ALLOW),  # to write: Landlock allows it for /dev/null alone
    ("openat", (0, 0, 0o2), ALLOW),  # to read and write
    ("openat", (0, 0, 0o1002), ALLOW),
    ("openat", (0, 0, 0o3), EPERM),  # neither, so that Landlock would ask for no right
    ("openat", (0, 0, 0o1003), EPERM),
    ("open", (0, 0o3), EPERM),
    ("open", (0, 0o1000), EPERM),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), ARGUMENTS)
def test_calls_that_could_reach_others_are_limited_by_argument(name, arguments, expected, machine):
    number = ALLOWED[name][MACHINES[machine][0]]
    if number is not None:
        assert decide(program(machine, 77), number, arguments, machine=machine) == expected


# ---- in a locked process -------------------------------------------------------------------------


def test_every_other_system_call_of_this_kernel_is_refused(file):
    # uretprobe and uprobe: the kernel's own, which no filter sees. They kill any other caller.
    skipped = [*NUMBERS, CLONE3, *([335, 336] if platform.machine() == "x86_64" else [])]
    code = f"""
refused, others = 0, {{}}
for number in range(512):
    if number not in {sorted(skipped)}:
        ctypes.set_errno(0)
        result = libc.syscall(number, *[ctypes.c_long(-1)] * 6), ctypes.get_errno()
        if result == (-1, 1):
            refused += 1
        else:
            others[number] = result
print(json.dumps([refused, others]))
"""
    done = jailed(code, file)
    assert json.loads(done.stdout) == [512 - len(skipped), {}], done.stderr


BY_THE_FILTER = """
os.chmod(file, 0o777)
os.chmod(file, 0o777, dir_fd=os.open(folder, os.O_RDONLY))
libc_call(452, -100, file.encode(), 0o777, 0)  # fchmodat2
os.chown(file, 1, 1)
os.lchown(file, 1, 1)
os.utime(file, (1, 1))
os.utime(file, (1, 1), follow_symlinks=False)
libc_call({utimes}, file.encode(), None)
os.setxattr(file, "user.x", b"1")
os.removexattr(file, "user.x")
os.truncate(file, 0)
os.open(file, os.O_RDONLY | os.O_TRUNC)
os.open(file, 3 | os.O_TRUNC)
os.open("/etc/hostname", 3)
os.open(file + "2", os.O_RDONLY | os.O_CREAT)
os.rename(file, file + "2")
os.link(file, file + "2")
os.symlink(file, file + "2")
os.unlink(file)
os.mkdir(file + "2")
os.rmdir(folder)
os.mkfifo(file + "2")
os.mknod(file + "2")
os.chroot(folder)
os.setpriority(os.PRIO_PROCESS, parent, 1)
os.setpriority(os.PRIO_PROCESS, 0, 1)
os.nice(1)
os.sched_setaffinity(parent, {0})
os.sched_setaffinity(0, {0})
os.sched_setscheduler(parent, os.SCHED_BATCH, os.sched_param(0))
libc_call({ioprio_set}, 1, parent, 3 << 13)
resource.prlimit(parent, resource.RLIMIT_NOFILE)
resource.prlimit(parent, resource.RLIMIT_NOFILE, (9, 9))
resource.prlimit(0, resource.RLIMIT_NOFILE, (9, 9))
os.kill(parent, 0)
os.kill(parent, 18)
os.kill(-1, 0)
os.killpg(0, 0)
os.pidfd_open(parent)
fcntl.fcntl(0, fcntl.F_SETOWN, parent)
fcntl.ioctl(0, termios.TIOCSTI, b"x")
fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_EX)
fcntl.lockf(os.open(file, os.O_RDONLY), fcntl.LOCK_SH)
libc_call({kcmp}, parent, parent, 0, 0, 0)
libc_call({syslog}, 3, None, 0)
os.fork()
os.posix_spawn("/bin/true", ["true"], {})
os.execv("/bin/true", ["true"])
os.setsid()
os.setpgid(0, 0)
os.setuid(1)
os.setgid(1)
os.setgroups([])
socket.socket()
socket.socket(socket.AF_UNIX)
socket.socketpair()
socket.sethostname("x")
time.clock_settime(time.CLOCK_REALTIME, 1e9)
os.memfd_create("x")
os.sendfile(1, os.open(file, os.O_RDONLY), 0, 1)
os.copy_file_range(os.open(file, os.O_RDONLY), 1, 1)
libc_call({prctl}, 4, 1, 0, 0, 0)  # dumpable
libc_call({prctl}, 1, 9, 0, 0, 0)  # a signal when the parent dies
"""
BY_LANDLOCK = """
open(file, "w")
open(file, "a")
open(file, "r+")
open(file + "2", "x")
open("/dev/zero", "w")
open("/etc/hostname")
open(f"/proc/{parent}/environ")
os.listdir("/root")
os.open(folder, os.O_TMPFILE | os.O_RDWR)
"""
EXTRA = {
    "x86_64": {"utimes": 235, "ioprio_set": 251, "kcmp": 312, "syslog": 103, "prctl": 157},
    "aarch64": {"utimes": 88, "ioprio_set": 30, "kcmp": 272, "syslog": 116, "prctl": 167},
}
TRY_ALL = """
import fcntl, resource, socket, termios, time
def libc_call(number, *arguments):
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
passed = []
for line in attacks.strip().splitlines():
    try:
        exec(line)
        passed.append(line)
    except PermissionError:
        pass
    except BaseException as error:
        passed.append(f"{line}: {error!r}")
print(json.dumps(passed))
"""


def state(file: Path) -> list:
    """What the attacks would change."""
    parent = os.getpid()
    return [
        sorted(os.listdir(file.parent)),
        file.read_text(),
        *[getattr(file.stat(), f"st_{name}") for name in ("mode", "uid", "mtime_ns", "nlink")],
        os.listxattr(file),
        os.getpriority(os.PRIO_PROCESS, parent),
        os.sched_getaffinity(parent),
        os.sched_getscheduler(parent),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    ]


@pytest.mark.parametrize("before", ["", WITHOUT_LANDLOCK], ids=["jail", "filter alone"])
def test_a_locked_process_changes_no_file_and_no_other_process(file, before):
    found = state(file)
    attacks = BY_THE_FILTER + ("" if before else BY_LANDLOCK.lstrip())
    for name, number in EXTRA[platform.machine()].items():
        attacks = attacks.replace("{" + name + "}", str(number))
    done = jailed(f"attacks = {attacks!r}\n{TRY_ALL}", file, before)
    assert json.loads(done.stdout) == [], done.stderr
    assert state(file) == found


def test_calls_of_another_architecture_end_the_process(file):
    x32 = "libc.syscall(0x40000027)"  # getpid
    assert jailed(x32, file).returncode == -signal.SIGSYS
    if platform.machine() == "x86_64":
        code = r"""
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid by int 0x80
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
        done = jailed(code, file)
        assert done.returncode in (-signal.SIGSYS, -signal.SIGSEGV)
        assert done.stdout == ""


def test_a_process_with_another_thread_is_not_locked_up(file):
    thread = (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    done = jailed("", file, before=thread)
    assert "NoJail: another thread" in done.stderr


HONEST = {
    "the standard library": (
        "import asyncio, csv, datetime, decimal, difflib, fractions, hashlib, json, logging, lzma, "
        "random, re, statistics, tempfile, unicodedata, uuid, zlib, zoneinfo\n"
        "assert hashlib.sha256(b'').hexdigest()[:4] == 'e3b0'\n"
        "assert unicodedata.name('a') == 'LATIN SMALL LETTER A'\n"
        "uuid.uuid4(); random.SystemRandom().random(); datetime.datetime.now()"
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "assert list(ThreadPoolExecutor(8).map(abs, range(-99, 0))) == list(range(99, 0, -1))"
    ),
    "a database in memory": (
        "import sqlite3; c = sqlite3.connect(':memory:'); c.execute('create table t (a)')\n"
        "c.execute('insert into t values (7)')\n"
        "assert c.execute('select a from t').fetchall() == [(7,)]"
    ),
    "time and signals": (
        "import signal, time; time.sleep(.001); hits = []\n"
        "signal.signal(signal.SIGALRM, lambda *_: hits.append(1))\n"
        "signal.setitimer(signal.ITIMER_REAL, .01); time.sleep(.05); assert hits == [1]\n"
        "signal.signal(signal.SIGUSR1, lambda *_: hits.append(2))\n"
        "signal.raise_signal(signal.SIGUSR1); assert hits == [1, 2]"
    ),
    "pipes and selectors": (
        "import select; p = select.epoll(); r, w = os.pipe(); p.register(r); os.write(w, b'1')\n"
        "assert p.poll(1) == [(r, 1)] and os.read(r, 1) == b'1'"
    ),
    "what the machine has": "assert os.cpu_count() and os.sched_getaffinity(0) and os.uname()",
    "reading": "assert open(file).read() == 'of the user' and os.listdir(folder)",
    "nowhere": "assert open(os.devnull, 'w').write('x') == 1",
}


def test_honest_code_works_in_the_jail(file):
    code = f"""
failed = {{}}
for what, code in {HONEST!r}.items():
    try:
        exec(code)
    except BaseException as error:
        failed[what] = repr(error)
print(json.dumps(failed))
"""
    done = jailed(code, file)
    assert json.loads(done.stdout) == {}, done.stderr


@pytest.mark.slow
def test_large_libraries_work_in_the_jail(file):
    code = """
import tempfile; tempfile.tempdir = "/tmp"  # as locked_file.py does
import numpy, pandas, sympy
assert numpy.linalg.inv(numpy.eye(200) * 2).sum() == 100
assert pandas.DataFrame({"a": [1, 3]}).a.mean() == 2
assert str(sympy.simplify("x + x")) == "2*x"
"""
    done = jailed(code, file)
    assert done.returncode == 0, done.stderr
