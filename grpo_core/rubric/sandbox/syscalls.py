"""The system calls that a plug-in file may make, as a filter for the kernel.

All others fail with EPERM, also those of newer kernels. The filter is classic BPF: a list of
instructions (code, jump if true, jump if false, value) over the number of the call, the
architecture and the arguments; see seccomp(2) and the kernel's seccomp_filter.rst.
"""

from __future__ import annotations

from collections.abc import Sequence

Instruction = tuple[int, int, int, int]

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | 1, 0x00050000 | 38
# Name -> numbers on x86_64 and on aarch64, from linux/unistd.h; None: no such call there.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files that are open or are opened
    "read": (0, 63),
    "pread64": (17, 67),
    "readv": (19, 65),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "close_range": (436, 436),
    "lseek": (8, 62),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "open": (2, None),
    "openat": (257, 56),
    "getdents": (78, None),
    "getdents64": (217, 61),
    # names of files
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    # pipes and waiting
    "pipe": (22, None),
    "pipe2": (293, 59),
    "eventfd": (284, None),
    "eventfd2": (290, 19),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "get_mempolicy": (239, 236),
    # time
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    # this process and machine
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getcpu": (309, 168),
    "getrlimit": (97, 163),
    "prlimit64": (302, 261),
    "getrandom": (318, 278),
    "prctl": (157, 167),
    "arch_prctl": (158, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # threads
    "clone": (56, 220),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    # signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "pause": (34, None),
    "restart_syscall": (219, 128),
    "kill": (62, 129),
    "tgkill": (234, 131),
}
# Machine -> column of the table above, and the number of its architecture in linux/audit.h.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE3 = 435  # everywhere
FIRST_X32 = 0x40000000  # from here on, calls of the x32 architecture

# Calls that are allowed only if an argument has one of these values: name -> (argument, values).
# The kernel reads 32 bits of these arguments.
VALUES: dict[str, tuple[int, tuple[int, ...]]] = {
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. F_SETOWN would
    # send signals to other processes.
    "fcntl": (1, (0, 1, 2, 3, 4, 1030, 1032)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # The usual advice. MADV_HWPOISON would take memory from the machine if the user is root.
    "madvise": (2, (0, 1, 2, 3, 4, 8, 14, 15, 16, 17)),
    "prctl": (0, (15, 16, 0x53564D41)),  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
}
FLAGS_OF_OPEN = {"open": 1, "openat": 2}
# Opening to write is left to Landlock. Both bits together open a device or empty a file without
# reading or writing, which Landlock does not see.
WRITE_ONLY, READ_WRITE = 0o1, 0o2
# O_CREAT, O_TRUNC, O_TMPFILE. Opening to read with O_TRUNC would empty a file, and Landlock of
# Linux before 6.2 does not know truncation.
CHANGES_FILE = 0o100 | 0o1000 | 0o20000000
CLONE_THREAD = 0x10000
# CLONE_PTRACE, CLONE_VFORK and the flags that make namespaces
CLONE_REFUSED = 0x2000 | 0x4000 | 0x20000 | 0x2000000 | 0x7C000000


def program(machine: str, pid: int) -> list[Instruction]:
    """The filter for a process with this number. machine: a key of MACHINES.

    Calls of another architecture kill the process. clone3 seems to be missing, so that libc uses
    clone, whose flags a filter can read.
    """
    column, architecture = MACHINES[machine]
    lines = [
        _load(4),  # the architecture
        _if_equal(architecture, 1, 0),
        _return(KILL),
        _load(0),  # the number of the call
        (0x35, 0, 1, FIRST_X32),  # jge
        _return(KILL),
        _if_equal(CLONE3, 0, 1),
        _return(ENOSYS),
    ]
    conditions = _conditions(pid)
    for name, numbers in ALLOWED.items():
        number = numbers[column]
        if number is not None:
            condition = conditions.get(name, [_return(ALLOW)])
            lines += [_if_equal(number, 0, len(condition)), *condition]
    return [*lines, _return(EPERM)]


def _conditions(pid: int) -> dict[str, list[Instruction]]:
    """Name of a call -> instructions that end in a decision by its arguments."""
    only = {name: _one_of(*condition) for name, condition in VALUES.items()}
    only |= {name: _one_of(0, (pid,)) for name in ("kill", "tgkill")}  # signals to itself
    only |= {name: _open(argument) for name, argument in FLAGS_OF_OPEN.items()}
    only["clone"] = [
        _load(_low(0)),
        _if_any(CLONE_REFUSED, 2, 0),
        _if_any(CLONE_THREAD, 0, 1),
        _return(ALLOW),
        _return(EPERM),
    ]
    only["prlimit64"] = [  # of this process (0), and without new limits
        _load(_low(0)),
        _if_equal(0, 0, 5),
        _load(_low(2)),
        _if_equal(0, 0, 3),
        _load(_low(2) + 4),
        _if_equal(0, 0, 1),
        _return(ALLOW),
        _return(EPERM),
    ]
    return only


def _open(argument: int) -> list[Instruction]:
    return [
        _load(_low(argument)),
        _if_any(WRITE_ONLY, 0, 1),
        _if_any(READ_WRITE, 3, 2),
        _if_any(READ_WRITE, 1, 0),
        _if_any(CHANGES_FILE, 1, 0),
        _return(ALLOW),
        _return(EPERM),
    ]


def _one_of(argument: int, values: Sequence[int]) -> list[Instruction]:
    """Allow the call if the argument has one of the values."""
    tests = [_if_equal(value, len(values) - i, 0) for i, value in enumerate(values)]
    return [_load(_low(argument)), *tests, _return(EPERM), _return(ALLOW)]


def _low(argument: int) -> int:
    """Where the filter finds the low 32 bits of an argument; both machines are little-endian."""
    return 16 + 8 * argument


def _load(offset: int) -> Instruction:
    return 0x20, 0, 0, offset


def _if_equal(value: int, true: int, false: int) -> Instruction:
    return 0x15, true, false, value


def _if_any(bits: int, true: int, false: int) -> Instruction:
    return 0x45, true, false, bits


def _return(value: int) -> Instruction:
    return 0x06, 0, 0, value
