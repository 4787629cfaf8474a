"""The rig's end of a worker: it starts one, asks, and keeps it suspended between questions.

Thread pools spin after a call (onnxruntime, OpenMP), which slows whoever comes next. A suspended
process cannot: so only the worker whose turn it is runs at all.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .worker import one_line

ROOT = Path(__file__).resolve().parent.parent
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


class Failed(Exception):
    """A worker could not do what it was asked."""


def environment(threads):
    """Return an environment in which every thread pool has this size when it starts."""
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))


class Remote:
    """A worker process; `started` is what it told of itself."""

    def __init__(self, spec, threads, log, extra_environment=None):
        self.log = log  # what the library prints
        start = {"adapter": spec.adapter, "threads": threads, "options": spec.options}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [spec.python, "-m", "bench.worker", json.dumps(start)],
                cwd=ROOT,
                env=environment(threads) | spec.environment | (extra_environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.started = self.reply()
        except Failed:
            self.close()
            raise

    def ask(self, do, **arguments):
        self.signal("SIGCONT")
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(self.epitaph()) from None
        return self.reply()

    def reply(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.epitaph())
        self.signal("SIGSTOP")
        reply = json.loads(line)
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply

    def epitaph(self):
        last = self.log.read_text(errors="replace").strip().split("\n")[-1]
        return one_line(f"its process ended with code {self.process.wait()}: {last}")

    @property
    def alive(self):
        return self.process.poll() is None

    def signal(self, name):
        if self.alive and sys.platform != "win32":
            self.process.send_signal(getattr(signal, name))

    def close(self):
        self.signal("SIGCONT")
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
