"""All that a CUDA device is needed for, in one command and within eight minutes.

    python -m bench.device                 check, test, sanitize, measure; into bench/results
    python -m bench.device --name h200     name the result files
    python -m bench.device --only tests    some of the steps
    python -m bench.device --dry-run       say what would run, and for how long at most

Each step is a process with a time limit of its own, so that a slow or a failing one takes nothing
from the next. What came of each, and the end of what it printed, is in NAME-device.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from time import perf_counter

from . import machine
from .remote import ROOT
from .worker import without_folders

RESULTS = ROOT / "bench" / "results"
PACKAGES = ("numba_roialign", "numba", "numba-cuda", "numpy", "torch", "torchvision", "pytest")
# Tests of every kernel, but few: under the sanitizer a launch takes many times as long.
SANITIZED = "average or gradient or maximum or boxes or kernel or bands or small"
SHARING = (
    # of those, the kernels whose threads share memory
    "average or gradient or channels or kernel or bands or few or small"
)
SHOWN_LINES = 32


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it may take; or why it is left out.

    Those that measure nothing run together with their neighbours of that kind.
    """

    name: str
    command: list[str]
    limit: int
    skipped: str = ""
    measures: bool = True
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    step: Step
    result: str  # ok, failed (...), out of time, skipped (...)
    seconds: float = 0.0
    output: str = ""

    @property
    def is_good(self):
        return self.result == "ok" or self.result.startswith("skipped")


def steps(name):
    """Return the steps of a run, which take less than eight minutes."""
    python = sys.executable
    bench = [python, "-m", "bench", "--target", "cuda", "--rounds", "5", "--name"]
    sanitizer = shutil.which("compute-sanitizer")
    checked = [sanitizer or "compute-sanitizer", "--error-exitcode", "9", "--tool"]
    unchecked = "" if sanitizer else "compute-sanitizer is not installed"
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--target", "cuda"]
    tests += ["tests/test_workspace.py", "tests/test_walks.py"]
    together = {"measures": False}
    backward = f"{name}-backward"
    # A kernel compiles for each combination of types, some seconds each.
    parallel = ["--", "-n", "8"] if find_spec("xdist") else []
    return [
        Step("environment", [python, "-m", "bench.device", "--environment"], 20),
        Step("tests", [python, "-m", "tests", "device", *parallel], 150, **together),
        Step(
            "sanitizer: memory",
            [*checked, "memcheck", *tests, "-k", SANITIZED],
            120,
            unchecked,
            **together,
        ),
        Step(
            "sanitizer: races",
            [*checked, "racecheck", *tests, "-k", SHARING],
            120,
            unchecked,
            **together,
        ),
        Step("benchmark", [*bench, name], 155),
        Step("tables", [python, "-m", "bench", "report", str(RESULTS / f"{name}.json")], 15),
        # Which of two schedules many boxes should have: a device has timed but one of them.
        Step("bands or none", [python, "-m", "bench.constants", "BINS_OF_PIXEL=0.17,1e9"], 60),
        Step("benchmark of the gradient", [*bench, backward, "--backward", "--quick"], 50),
        Step(
            "tables of the gradient",
            [python, "-m", "bench", "report", str(RESULTS / f"{backward}.json")],
            15,
        ),
    ]


def groups(chosen):
    """Return the steps in groups that run at once: those that measure, each alone."""
    for measures, steps in itertools.groupby(chosen, key=lambda step: step.measures):
        group = list(steps)
        yield from ([step] for step in group) if measures else [group]


def packages():
    """Return what is installed of what the steps can use, and the names of the rest."""
    found, missing = {}, []
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    try:
        import cupy

        found["cupy"] = cupy.__version__
    except Exception as error:
        missing.append(f"cupy ({type(error).__name__})")
    if shutil.which("compute-sanitizer") is None:
        missing.append("compute-sanitizer")
    return found, missing


def check_environment():
    """Print what is here and what is missing; return 1 where nothing can run on a device."""
    found, missing = packages()
    print("device:", machine.device() or "nvidia-smi finds none")
    print("installed:", ", ".join(f"{name} {number}" for name, number in found.items()))
    print("missing:", ", ".join(missing) or "nothing")
    try:
        from numba import cuda

        there = cuda.is_available()
        print("numba-cuda:", cuda.get_current_device().compute_capability if there else "no device")
    except Exception as error:
        print(f"numba-cuda does not start: {type(error).__name__}: {error}")
        return 1
    return 0 if there else 1


def attempt(step):
    """Run a step and return what came of it; its processes end with its time."""
    if step.skipped:
        return Outcome(step, f"skipped ({step.skipped})")
    start = perf_counter()
    try:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=os.environ | step.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(step, f"failed ({type(error).__name__})")
    try:
        output, _ = process.communicate(timeout=step.limit)
        result = "ok" if process.returncode == 0 else f"failed (code {process.returncode})"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too; the group is its own
        output, _ = process.communicate()
        result = f"out of time ({step.limit} s)"
    return Outcome(step, result, perf_counter() - start, output)


def report(name, outcomes):
    """Return what came of each step, and the end of what it printed."""
    facts = machine.facts()
    about = f"{machine.device() or 'no device'}; {facts['system']}, Python {facts['python']}; "
    text = [f"# Device run: {name}\n", f"{about}{facts['date']}; revision {facts['revision']}.\n"]
    text += ["| step | result | seconds |", "| :--- | :--- | ---: |"]
    text += [f"| {o.step.name} | {o.result} | {o.seconds:.0f} |" for o in outcomes]
    for outcome in outcomes:
        lines = without_folders(outcome.output).rstrip().split("\n")[-SHOWN_LINES:]
        text.append(f"\n## {outcome.step.name}\n\n```\n" + "\n".join(lines) + "\n```")
    return "\n".join(text) + "\n"


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m bench.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in steps("name")]
    parser.add_argument("--name", default="cuda", help="of the files in bench/results (cuda)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--environment", action="store_true", help="only say what is here")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    if arguments.environment:
        return check_environment()
    chosen = [s for s in steps(arguments.name) if not arguments.only or s.name in arguments.only]
    if arguments.dry_run:
        for step in chosen:
            print(f"{step.name} ({step.limit} s): {step.skipped or ' '.join(step.command)}")
        return 0
    outcomes = []
    for group in groups(chosen):
        for step in group:
            print(f"=== {step.name}, at most {step.limit} s", flush=True)
        with ThreadPoolExecutor(len(group)) as pool:
            for outcome in pool.map(attempt, group):
                outcomes.append(outcome)
                print(f"{outcome.step.name}: {outcome.result}, {outcome.seconds:.0f} s", flush=True)
        path = RESULTS / f"{arguments.name}-device.md"
        path.write_text(report(arguments.name, outcomes), encoding="utf-8")
    print(report(arguments.name, outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
