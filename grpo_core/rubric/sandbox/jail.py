"""Locks up the current process for good, before it runs a plug-in file.

It protects the machine from the file: no writing, no network, no other processes, and reading only
of named folders. Landlock decides which files can be opened; a seccomp filter refuses all system
calls but those that a computation needs (syscalls.py). Neither needs privileges, and neither can be
undone. Linux 5.13 or newer.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence

from grpo_core.child_process import NoValue, limit
from grpo_core.rubric.sandbox.syscalls import MACHINES, program

_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (to map a library), read a file, list a folder
_WRITE = 1 << 1 | 1 << 14  # write to a file, truncate it


class NoJail(NoValue):
    """This system cannot lock up a process, so somebody's code must not run in it."""


def lock_up(readable: Sequence[str], memory: int) -> None:
    """From now on this process cannot write, use the network or start processes.

    It can read only below `readable` and use at most `memory` bytes. Raises NoJail.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise NoJail("another thread of the process would stay outside")
    libc = ctypes.CDLL(None, use_errno=True)
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 256)
    # PR_SET_NO_NEW_PRIVS; Landlock and seccomp both require it.
    if libc.prctl(38, 1, 0, 0, 0):
        raise NoJail("no_new_privs is refused here")
    _landlock(libc, readable)
    _seccomp(libc)


def _landlock(libc: ctypes.CDLL, readable: Sequence[str]) -> None:
    """Allow reading below `readable` and refuse everything else that this kernel can refuse."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        raise NoJail("plug-in files need Linux 5.13 or newer with Landlock")
    files = (
        (1 << 13) - 1
        | (1 << 13 if version >= 2 else 0)
        | (1 << 14 if version >= 3 else 0)
        | (1 << 15 if version >= 5 else 0)
    )
    network = 3 if version >= 4 else 0
    scope = 3 if version >= 6 else 0
    size = 8 if version < 4 else 16 if version < 6 else 24  # older kernels refuse longer structs
    attributes = struct.pack("QQQ", files, network, scope)[:size]
    rules = libc.syscall(444, attributes, len(attributes), 0)
    if rules < 0:
        raise NoJail("Landlock is refused here")
    for path in readable:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ if os.path.isdir(path) else _READ & ~(1 << 3)
        if path == os.devnull:  # torch and others open it for writing; nothing is kept
            allowed |= _WRITE & files
        libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, handle), 0)
        os.close(handle)
    if libc.syscall(446, rules, 0):
        raise NoJail("Landlock is refused here")
    os.close(rules)


def _seccomp(libc: ctypes.CDLL) -> None:
    """Refuse every system call that syscalls.py does not allow."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise NoJail(f"plug-in files cannot be locked up on {machine} processors")
    lines = program(machine, os.getpid())
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(buffer))
    if libc.prctl(22, 2, filter_, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise NoJail("seccomp is refused here")
