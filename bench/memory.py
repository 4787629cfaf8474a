"""Memory of this process, in bytes. The peak can be reset on Linux; elsewhere it only grows."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path


def status(key):
    """Return a line of Linux's /proc/self/status, or None where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


def reset_peak():
    """Give freed memory back, let the peak start anew, and return what is in use (or None)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else a call reuses what earlier workloads left
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS:")
    return None


def peak():
    """Return the largest resident size, or None on systems that do not tell."""
    largest = status("VmHWM:")
    if largest is None:
        with suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return largest
