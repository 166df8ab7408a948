"""A stand-in for `spaces.GPU` on a machine without it: what spaces 0.51.3 (zero/wrappers.py) does to a generator function, without the GPU.

A forked daemon process, arguments and results through pickle, the task in a thread of it, killed when the lease is over.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import threading

FORK = multiprocessing.get_context("fork")


class AbortedGPU(Exception):
    """gradio.Error("GPU task aborted") of the real one."""


def GPU(duration):
    def decorate(task):
        def lend(*arguments):
            asked, said = FORK.SimpleQueue(), FORK.SimpleQueue()
            process = FORK.Process(target=_work, args=(task, asked, said), daemon=True)
            process.start()
            asked.put(arguments)
            threading.Thread(target=_sentinel, args=(process, said), daemon=True).start()
            lease = threading.Timer(duration, process.kill)
            lease.daemon = True
            lease.start()
            try:
                while (one := said.get()) is not None:
                    kind, value = one
                    if kind == "end":
                        return
                    if kind == "error":
                        raise AbortedGPU(value)
                    yield value
                raise AbortedGPU("GPU task aborted")
            finally:
                lease.cancel()
                process.kill()
                process.join()

        return lend

    return decorate


def _sentinel(process, said):
    process.join()
    said.put(None)


def _work(task, asked, said):
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: a test that fails leaves no process behind
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def iterate():
        try:
            for value in task(*asked.get()):
                said.put(("value", value))
            said.put(("end", None))
        except Exception as error:
            said.put(("error", type(error).__name__))

    worker = threading.Thread(target=iterate)
    worker.start()
    worker.join()
