"""A process gives up what it does not need, for good: writing, the network, other processes, most of the file system. Linux 5.13 and newer.

Landlock (files, TCP, signals) and a seccomp filter (sockets, new processes, programs, debugging); neither needs privileges or can be undone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence

_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (map a library), read a file, list a folder
# name -> (x86_64, aarch64); None: the architecture has no such call
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "prlimit64": (302, 261),
    "setrlimit": (160, 164),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "msgget": (68, 186),
    "shmget": (29, 194),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
_MACHINES = {
    "x86_64": (0, 0xC000003E, 56),
    "aarch64": (1, 0xC00000B7, 220),
}  # column above, audit architecture, number of clone


class NoJail(Exception):
    """This system cannot hold a process as promised, so nothing is run in it."""


def lock_up(readable: Sequence[str], memory: int) -> None:
    """From now on: no writes, no network, no child processes; reading only below `readable`; at most so many bytes of memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(what, (limit, limit))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS, which both of the following ask for
        raise NoJail("no_new_privs is refused here")
    _landlock(libc, readable)
    _seccomp(libc)


def _landlock(libc: ctypes.CDLL, readable: Sequence[str]) -> None:
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        raise NoJail("plug-in files need Linux 5.13 or newer with Landlock")
    files = (
        (1 << 13) - 1
        | (1 << 13 if version >= 2 else 0)
        | (1 << 14 if version >= 3 else 0)
        | (1 << 15 if version >= 5 else 0)
    )
    attributes = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    rules = libc.syscall(444, attributes, len(attributes), 0)
    if rules < 0:
        raise NoJail("Landlock is refused here")
    for path in readable:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ if os.path.isdir(path) else _READ & ~(1 << 3)
        libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, handle), 0)
        os.close(handle)
    if libc.syscall(446, rules, 0):
        raise NoJail("Landlock is refused here")
    os.close(rules)


def _seccomp(libc: ctypes.CDLL) -> None:
    """A filter in classic BPF: another architecture is killed, calls of the table get EPERM, clone only makes threads."""
    if platform.machine() not in _MACHINES:
        raise NoJail(f"plug-in files are not held on {platform.machine()} processors")
    column, architecture, clone = _MACHINES[platform.machine()]
    load = lambda offset: (0x20, 0, 0, offset)  # noqa: E731  one instruction each: ld, jeq, jset, jge, ret
    equal = lambda value, yes, no: (0x15, yes, no, value)  # noqa: E731
    answer = lambda value: (0x06, 0, 0, value)  # noqa: E731
    allow, refuse, kill = answer(0x7FFF0000), answer(0x00050000 | _EPERM), answer(0x80000000)
    program = [
        load(4),
        equal(architecture, 1, 0),
        kill,
        load(0),
        (0x35, 0, 1, 0x40000000),
        kill,
        equal(435, 0, 1),
        answer(0x00050000 | _ENOSYS),
        equal(clone, 0, 3),
        load(16),
        (0x45, 1, 0, _CLONE_THREAD),
        refuse,
        load(0),
    ]  # clone3 looks absent, so that libc uses clone, whose flags can be read
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            program += [equal(numbers[column], 0, 1), refuse]
    program.append(allow)
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    if libc.prctl(
        22, 2, struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer)), 0, 0
    ):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise NoJail("seccomp is refused here")
