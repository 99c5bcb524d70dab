"""Child processes to kill, forked after the imports so that hundreds are cheap."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

import torch


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child process and return its pid; it exits 0, or 1 after an exception."""
    with warnings.catch_warnings():
        # Python 3.12 warns about threads: these are the BLAS's, idle, and hold none of our locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # a fork has no OpenMP threads: waiting for them would hang
        work()
        code = 0
    except BaseException:  # a child must never go on as a second pytest
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    """Kill a process with SIGKILL and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
