"""Locks up the current process for good, before it runs a plug-in file.

It protects the machine from the file: no writing, no network, no other processes, and reading only
of named folders. Landlock limits files, TCP and signals; a seccomp filter limits sockets, new
processes, programs and debugging. Neither needs privileges, and neither can be undone. Linux 5.13
or newer.
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
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (to map a library), read a file, list a folder
_WRITE = 1 << 1 | 1 << 14  # write to a file, truncate it
# The numbers of the refused system calls: name -> (x86_64, aarch64); None: no such call there.
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
# Column of the table above, audit architecture, number of the call clone.
_MACHINES = {
    "x86_64": (0, 0xC000003E, 56),
    "aarch64": (1, 0xC00000B7, 220),
}


class NoJail(Exception):
    """This system cannot lock up a process, so the plug-in file must not run."""


def lock_up(readable: Sequence[str], memory: int) -> None:
    """From now on this process cannot write, use the network or start processes.

    It can read only below `readable` and use at most `memory` bytes. Raises NoJail.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for resource_id, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(resource_id, (limit, limit))
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
    """A filter in classic BPF.

    Calls of another architecture kill the process; calls of the table fail with EPERM; clone can
    only start threads.
    """
    if platform.machine() not in _MACHINES:
        raise NoJail(f"plug-in files cannot be locked up on {platform.machine()} processors")
    column, architecture, clone = _MACHINES[platform.machine()]
    allow = _return(0x7FFF0000)
    refuse = _return(0x00050000 | _EPERM)
    kill = _return(0x80000000)
    program = [
        _load(4),  # the architecture
        _if_equal(architecture, 1, 0),
        kill,
        _load(0),  # the number of the call
        (0x35, 0, 1, 0x40000000),  # jge: numbers of the x32 architecture
        kill,
        # clone3 seems to be missing, so that libc uses clone, whose flags a filter can read.
        _if_equal(435, 0, 1),
        _return(0x00050000 | _ENOSYS),
        _if_equal(clone, 0, 3),
        _load(16),  # the flags of clone
        (0x45, 1, 0, _CLONE_THREAD),  # jset
        refuse,
        _load(0),
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += [_if_equal(number, 0, 1), refuse]
    program.append(allow)
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    if libc.prctl(22, 2, filter_, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise NoJail("seccomp is refused here")


# One instruction each: (code, jump if true, jump if false, value).


def _load(offset: int) -> tuple[int, int, int, int]:
    return 0x20, 0, 0, offset


def _if_equal(value: int, true: int, false: int) -> tuple[int, int, int, int]:
    return 0x15, true, false, value


def _return(value: int) -> tuple[int, int, int, int]:
    return 0x06, 0, 0, value
