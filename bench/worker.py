"""The process that runs one implementation: ``python -m bench.worker SPEC``, started by the rig.

Requests and replies are lines of JSON on standard input and output; arrays are .npy files. The
process ends when its input does. It needs NumPy and the library it times, nothing else.
"""

import gc
import json
import os
import re
import sys
from time import perf_counter

import numpy as np

from . import memory
from .implementations import Unsupported, load
from .workloads import Problem

MOST_REPEATED_BYTES = 1 << 28  # of results that are compared with the first


class Server:
    """One implementation and the workload it is prepared for."""

    def __init__(self, adapter, threads, options):
        self.call = None
        start = perf_counter()
        self.implementation = load(adapter, threads, options)
        self.started = {
            "setup_seconds": perf_counter() - start,
            "versions": self.implementation.versions(),
        }

    def prepare(self, operation, features, rois, arguments, rows, channels, result):
        """Load a workload, call once, and save the part of the result that will be checked."""
        prepare = {
            "pool": self.implementation.prepare,
            "backward": self.implementation.prepare_backward,
        }[operation]
        self.call = None
        gc.collect()
        problem = Problem(np.load(features), np.load(rois), **arguments)
        start = perf_counter()
        self.call = prepare(problem)
        prepared = perf_counter() - start
        before = memory.reset_peak()
        start = perf_counter()
        returned = self.call()
        first = perf_counter() - start
        returned = self.implementation.array(returned)
        np.save(result, returned[rows][:, channels])
        shape = list(returned.shape)
        del returned
        probe = self.implementation.seconds(self.call, 1)
        if probe < 0.01:  # the second call is often slower than the rest
            probe = self.implementation.seconds(self.call, 5)
        return {
            "prepare_seconds": prepared,
            "first_seconds": first,
            "probe_seconds": probe,
            "before_bytes": before,
            "shape": shape,
        }

    def time(self, calls, warm):
        """Time a round of calls; a warm round starts after one call that brings the caches back."""
        if warm:
            self.call()
        gc.disable()
        seconds = self.implementation.seconds(self.call, calls)
        gc.enable()
        return {
            "seconds": seconds,
            "call_seconds": self.implementation.call_seconds(self.call, calls),
            "peak_bytes": memory.peak(),
        }

    def repeat(self, calls):
        """Return the largest difference of the whole results of some calls from the first."""
        first, largest = np.array(self.implementation.array(self.call())), 0.0
        for _ in range(min(calls - 1, max(1, MOST_REPEATED_BYTES // first.nbytes))):
            again = self.implementation.array(self.call())
            if not np.array_equal(again, first):
                largest = max(largest, float(np.abs(again - first).max()))
        return {"difference": largest}


def without_folders(text):
    """Return a text with the folders of this machine left out of its paths."""
    return re.sub(r"(\w:)?[/\\](?:[^\s/\\]+[/\\])+", "", text)


def one_line(text):
    """Return the first line of a message, the folders of this machine left out."""
    return without_folders(text.strip().split("\n")[0])[:160]


def reason_of(error):
    if isinstance(error, Unsupported):
        return str(error)
    return one_line(f"{type(error).__name__}: {error}")


def main():
    # libraries print: what they say goes to standard error, and the replies to where it went
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def attempt(action, arguments):
        try:
            reply = action(**arguments)
        except Exception as error:
            reply = {"failed": reason_of(error)}
        print(json.dumps(reply), file=replies)
        return reply

    server = None

    def start(**spec):
        nonlocal server
        server = Server(**spec)
        return server.started

    if "failed" in attempt(start, json.loads(sys.argv[1])):
        return
    for line in sys.stdin:
        request = json.loads(line)
        attempt(getattr(server, request.pop("do")), request)


if __name__ == "__main__":
    main()
