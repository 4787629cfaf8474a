"""How fast this machine copies memory: ``python -m bench.bandwidth THREADS`` prints GB/s.

Numba copies an array far larger than the caches on as many threads as the implementations have.
A copy counts twice: bytes read and bytes written.
"""

import argparse
from time import perf_counter

import numba
import numpy as np


@numba.njit(parallel=True)
def copy(source, target):
    for i in numba.prange(source.size):
        target[i] = source[i]


def copy_rate(threads, megabytes=512, repeats=9):
    """Return the median rate in GB/s."""
    numba.set_num_threads(threads)
    source = np.ones(megabytes * 1_000_000 // 8)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(repeats + 1):
        start = perf_counter()
        copy(source, target)
        seconds.append(perf_counter() - start)
    return 2 * source.nbytes / float(np.median(seconds[1:])) / 1e9  # the first call compiles


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.bandwidth", description=__doc__)
    parser.add_argument("threads", type=int)
    print(copy_rate(parser.parse_args().threads))
