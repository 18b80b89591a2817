"""A process that qpipe watches: what ends it, and how it says why."""

import os
import resource
import signal
import sys

LONGEST_MESSAGE = 2000


def fail(status, message):
    print(" ".join(str(message).split())[:LONGEST_MESSAGE], file=sys.stderr)
    sys.exit(status)


def fail_without(package, error):
    fail(69, f"the Python package {package} cannot be used ({error}); run scripts/install-dependencies, or set QPIPE_PYTHON to the Python of an "
             f"environment that has it: python3 -m venv ENV && ENV/bin/python -m pip install {package}")


def end_with_parent():
    try:
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass  # a Python without it: qpipe ends this process itself unless it is killed


def limit_memory():
    """A tokenizer can make terabytes of a text; half of the machine is left to the others."""
    half = os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (half if most == resource.RLIM_INFINITY else min(half, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow(seconds):
    """Processor time of all threads from now on; SIGPROF's default action ends the process, also inside of a library."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
