"""How constants of the average's kernels on a GPU change its times: ``python -m bench.constants``.

    python -m bench.constants THREADS=128,256
    python -m bench.constants MOST_RESULTS=262144,0 SECOND=1,1.8 --only "few_*" "small_*" "many_*"
    python -m bench.constants BINS_OF_PIXEL=0.25,1e9  # bands of the map in shared memory, or none
    python -m bench.constants MOST_BOXES=8,0 --only "few_*"  # a few boxes by whole maps, or not

All is timed in one process, in turn, without checks and without peers: half a minute for a constant
and all workloads, where time on a device is short. What it says is for choosing; what is published
comes from ``python -m bench``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from fnmatch import fnmatch

from .cuda_implementations import OursOnDevice
from .workloads import WORKLOADS

ROUNDS, CALLS = 5, 20


def assignment(text):
    """Return the name of a constant and the values to try."""
    name, _, values = text.partition("=")
    return name, [json.loads(value) for value in values.split(",")]


def parse(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.constants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("constants", nargs="+", type=assignment, metavar="NAME=VALUE,...")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="workloads")
    parser.add_argument("--layout", choices=["NCHW", "NHWC"], default="NCHW")
    return parser.parse_args(argv)


def use(name, value):
    """Set a constant, and forget what was planned with another."""
    from numba_roialign import _repeats
    from numba_roialign._cuda import average, banded, plans, small, whole

    owners = [module for module in (average, banded, small, whole) if hasattr(module, name)]
    if len(owners) != 1:
        raise SystemExit(f"there is no constant named {name}, or there are two")
    setattr(owners[0], name, value)
    plans.plan_of.cache_clear()
    _repeats.repeats_of.cache_clear()


def times(implementation, workload, name, values):
    """Return the median seconds of a workload with each value, timed in turn."""
    call, seconds = implementation.prepare(workload.build()), [[] for _ in values]
    for _ in range(ROUNDS):
        for value, taken in zip(values, seconds, strict=True):
            use(name, value)
            implementation.replay = None  # a graph is of the kernels that it was captured with
            taken.append(implementation.seconds(call, CALLS))
    return [statistics.median(taken) for taken in seconds]


def main(argv=None, implementation=None):
    arguments = parse(argv)
    implementation = implementation or OursOnDevice(1, layout=arguments.layout, workspace=True)
    chosen = [w for w in WORKLOADS if any(fnmatch(w.name, p) for p in arguments.only)]
    for name, values in arguments.constants:
        print(f"\n| {name}, us | {' | '.join(map(str, values))} |")
        print("| :--- |" + " ---: |" * len(values))
        for workload in chosen:
            taken = times(implementation, workload, name, values)
            cells = " | ".join(f"{1e6 * seconds:.1f}" for seconds in taken)
            print(f"| `{workload.name}` | {cells} |", flush=True)
        use(name, values[0])


if __name__ == "__main__":
    main()
