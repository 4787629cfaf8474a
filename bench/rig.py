"""The measuring itself: a worker per implementation, checked first, then timed in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from . import truth
from .operations import OPERATIONS
from .remote import ROOT, Failed, Remote, environment
from .workloads import FIRST_USE

WARM_BELOW = 0.1  # seconds; a longer call has no use for caches warmed by one before it
LARGEST_ROUND = 10_000  # calls
FIRST_USES = 3  # processes: one took 4.3 to 6.1 s where the median takes 5
MOST_REPEATS = 50  # whose results are compared


@dataclass(frozen=True)
class Effort:
    """How long to measure: a slow implementation takes fewer rounds, of one call each."""

    rounds: int = 9
    round_seconds: float = 0.1
    slow_seconds: float = 4.0  # all rounds of one implementation, beyond the fewest
    fewest_rounds: int = 3

    def calls(self, seconds):
        return max(1, min(LARGEST_ROUND, int(self.round_seconds / seconds)))

    def rounds_of(self, seconds):
        affordable = int(self.slow_seconds / max(seconds, self.round_seconds))
        return max(self.fewest_rounds, min(self.rounds, affordable))


def copy_rate(threads, target="cpu"):
    """Return the copy bandwidth in GB/s, from a process of its own like everything timed."""
    command = [sys.executable, "-m", "bench.bandwidth", str(threads), "--target", target]
    run = subprocess.run(
        command, cwd=ROOT, env=environment(threads), capture_output=True, text=True, check=True
    )
    return float(run.stdout)


class Rig:
    """The workers of a run, all with the same number of threads; a context manager.

    `implementations` tells of each how it started, or why it is missing.
    """

    def __init__(self, specs, threads, effort=None, first_use=True, operation="pool"):
        self.specs = {spec.name: spec for spec in specs}
        self.operation = operation
        self.threads, self.effort, self.first_use = threads, effort or Effort(), first_use
        self.implementations, self.remotes = {}, {}

    def __enter__(self):
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            stack.callback(lambda: [remote.close() for remote in self.remotes.values()])
            for spec in self.specs.values():
                self.implementations[spec.name] = {"kind": spec.kind} | self.start(spec)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def start(self, spec):
        """Start a worker and make its first call; with `first_use`, from an empty cache before."""
        about, cache = {}, {}
        try:
            if spec.compiles and self.first_use:
                about["compile_seconds"], cache = self.first_use_ever(spec)
            remote = self.remotes[spec.name] = self.remote(spec, cache)
            about |= remote.started
            about["first_seconds"] = self.first_call(remote)
        except Failed as failure:
            about["missing"] = str(failure)
            if spec.name in self.remotes:  # it started, but its first call failed
                self.remotes.pop(spec.name).close()
        return about

    def first_use_ever(self, spec):
        """Return the seconds of import and first call together with an empty cache, the median of
        some processes, and the environment that names the last one's cache."""
        seconds, cache = [], {}
        for n in range(FIRST_USES):
            cache = {"NUMBA_CACHE_DIR": str(self.folder / f"cache-{spec.name}-{n}")}
            with self.remote(spec, cache) as remote:
                seconds.append(remote.started["setup_seconds"] + self.first_call(remote))
        return statistics.median(seconds), cache

    def remote(self, spec, extra_environment=None):
        log = self.folder / f"{spec.name}.log"
        return Remote(spec, self.threads, log, extra_environment)

    def first_call(self, remote):
        """Return the seconds from arrays to the first result in a new process."""
        answer = remote.ask("prepare", **self.written(FIRST_USE.build(), [0], [0]))
        return answer["prepare_seconds"] + answer["first_seconds"]

    def written(self, problem, rows, channels):
        """Write the arrays where workers read them, and return a worker's arguments."""
        names = ("features", "rois", "result")
        paths = {name: str(self.folder / f"{name}.npy") for name in names}
        np.save(paths["features"], problem.features)
        np.save(paths["rois"], problem.rois)
        arguments = problem._asdict()
        del arguments["features"], arguments["rois"]
        return paths | {
            "operation": self.operation,
            "arguments": arguments,
            "rows": rows,
            "channels": channels,
        }

    def measure(self, workload):
        """Check every implementation on a workload and time those that are right."""
        operation, problem = OPERATIONS[self.operation], workload.build()
        rows, channels = operation.subset(problem)
        arguments = self.written(problem, rows, channels)
        expected = operation.truth(problem, rows, channels)
        shape = list(operation.shape(problem))
        allowed = {
            name: operation.allowed(expected, spec.rounding) for name, spec in self.specs.items()
        }
        results = {
            name: self.checked(name, arguments, expected, shape, allowed[name])
            for name in self.implementations
        }
        right = [name for name, result in results.items() if "error" in result]
        self.time_in_turn(right, results)
        for name in right:
            self.repeat(name, results[name], allowed[name])
        about = {
            "compulsory_bytes": operation.compulsory_bytes(problem),
            "checked_rows": len(rows),
        }
        return workload.describe() | about | {"results": results}

    def checked(self, name, arguments, expected, shape, allowed):
        """Prepare one implementation; return its error, or why it is not timed."""
        if name not in self.remotes:
            return {"skipped": "missing"}
        spec = self.specs[name]
        try:
            if not self.remotes[name].alive:  # an earlier workload ended it
                self.remotes.pop(name).close()
                self.remotes[name] = self.remote(spec)
            result = self.remotes[name].ask("prepare", **arguments)
        except Failed as failure:
            return {"skipped": str(failure)}
        if result.pop("shape") != shape:
            return {"skipped": "wrong: shape", "wrong": True}
        error = truth.largest_error(np.load(arguments["result"]), expected)
        if not error <= allowed:
            return {"skipped": f"wrong: error {error:.1e}", "wrong": True}
        return {"error": error, "seconds": [], **result}

    def time_in_turn(self, names, results):
        """Time rounds, each implementation once per round, starting with another each time."""
        for round_number in range(self.effort.rounds):
            first = round_number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                result = results[name]
                probe = result["probe_seconds"]
                if "skipped" in result or round_number >= self.effort.rounds_of(probe):
                    continue
                result["calls"] = self.effort.calls((result["seconds"] or [probe])[-1])
                try:
                    answer = self.remotes[name].ask(
                        "time", calls=result["calls"], warm=probe < WARM_BELOW
                    )
                except Failed as failure:
                    result["skipped"] = str(failure)
                    continue
                result["seconds"].append(answer["seconds"])
                if answer["call_seconds"] is not None:
                    result.setdefault("call_seconds", []).append(answer["call_seconds"])
                result["peak_bytes"] = answer["peak_bytes"]

    def repeat(self, name, result, allowed):
        """Call again, and refuse whoever does not give the same result again and again.

        A race between threads may spare the result that was checked. Only calls are repeated of
        which several take no longer than a round.
        """
        calls = min(MOST_REPEATS, self.effort.calls(result["probe_seconds"]))
        if "skipped" in result or calls == 1:
            return
        try:
            difference = self.remotes[name].ask("repeat", calls=calls)["difference"]
        except Failed as failure:
            result["skipped"] = str(failure)
            return
        if not difference <= allowed:
            del result["seconds"]
            result |= {"skipped": f"wrong: calls differ by {difference:.1e}", "wrong": True}
