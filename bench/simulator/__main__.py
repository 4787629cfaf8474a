"""Times of workloads on a simulated H200: ``python -m bench.simulator WORKLOAD[:NHWC] ...``.

Prints for each launch, and for all of a call, the time, which part of it instructions were issued
in and memory instructions were worked on, and the sectors read from L2; at last the largest
difference from the CPU's result. With ``--code`` also the machine code, and of each instruction how
often warps issued it, in which cycle in the mean, its share of memory instructions' time, and of
the time that warps waited.
"""

from __future__ import annotations

import argparse

import numpy as np

from numba_roialign import roi_align
from numba_roialign.conventions import TORCHVISION, TORCHVISION_ALIGNED

from ..workloads import WORKLOADS
from .launches import record, run
from .machine import shares
from .state import CYCLES, ISSUED_AT, ISSUES, L2_SECTORS, PASSES, WAITED, Device

GIGAHERTZ = 1.76
LINE = "{:24} {:>16} {:>5} {:>7.1f} us  issue {:4.2f}  LSU {:4.2f}  L2 sectors {:>9}"


def print_code(outcome):
    """Print what of a launch's time each of its instructions has."""
    total = np.maximum(outcome.spent.sum(0), 1)
    for text, spent in zip(outcome.texts, outcome.spent, strict=True):
        if spent[ISSUES]:
            passes, waited = spent[PASSES] / total[PASSES], spent[WAITED] / total[WAITED]
            cycle = spent[ISSUED_AT] // spent[ISSUES]
            print(f"{spent[ISSUES]:>10} {cycle:>7} {passes:7.2%} {waited:7.2%}  {text}")


def simulate_workload(name, layout, with_code=False):
    """Simulate a workload, print what it takes, and return the largest error."""
    problem = {workload.name: workload for workload in WORKLOADS}[name].build()
    convention = TORCHVISION_ALIGNED if problem.aligned else TORCHVISION
    order = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)
    features = np.ascontiguousarray(problem.features.transpose(order))
    options = problem.bins, problem.scale, problem.sampling
    call = record(features, problem.rois, *options, convention, layout)
    cycles, sectors = 0, 0
    for launch in call.launches:
        outcome = run(launch, call.memory)
        counts = outcome.counts
        cycles, sectors = cycles + int(counts[CYCLES]), sectors + int(counts[L2_SECTORS])
        grid, threads = "x".join(map(str, launch.blocks)), int(np.prod(launch.threads))
        microseconds = counts[CYCLES] / GIGAHERTZ / 1e3
        used = shares(counts, Device())
        print(LINE.format(launch.name, grid, threads, microseconds, *used, counts[L2_SECTORS]))
        if with_code:
            print_code(outcome)
    expected = roi_align(problem.features, problem.rois, *options, problem.aligned)
    error = np.abs(call.pooled - expected.transpose(order)).max()
    microseconds = cycles / GIGAHERTZ / 1e3
    print(f"{name} {layout}: {microseconds:.1f} us, {cycles} cycles, error {error:.2g}", flush=True)
    return error


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD[:NHWC]")
    parser.add_argument("--code", action="store_true", help="print what each instruction took")
    asked = parser.parse_args(argv)
    for argument in asked.workloads:
        name, _, layout = argument.partition(":")
        simulate_workload(name, layout or "NCHW", asked.code)


if __name__ == "__main__":
    main()
