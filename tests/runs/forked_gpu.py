"""A stand-in for `spaces.GPU`: runs a generator function as spaces 0.51.3 (zero/wrappers.py) does.

The task runs in a thread of a forked daemon process, which is killed when the lease is over.
Arguments and results are pickled.
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
            requests, results = FORK.SimpleQueue(), FORK.SimpleQueue()
            process = FORK.Process(target=_work, args=(task, requests, results), daemon=True)
            process.start()
            requests.put(arguments)
            threading.Thread(target=_sentinel, args=(process, results), daemon=True).start()
            lease = threading.Timer(duration, process.kill)
            lease.daemon = True
            lease.start()
            try:
                while (one := results.get()) is not None:
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


def _sentinel(process, results):
    process.join()
    results.put(None)


def _work(task, requests, results):
    # PR_SET_PDEATHSIG: a failing test leaves no process behind
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def iterate():
        try:
            for value in task(*requests.get()):
                results.put(("value", value))
            results.put(("end", None))
        except Exception as error:
            results.put(("error", type(error).__name__))

    worker = threading.Thread(target=iterate)
    worker.start()
    worker.join()
