"""How fast this machine copies memory: ``python -m bench.bandwidth THREADS`` prints GB/s.

Numba copies an array far larger than the caches on as many threads as the implementations have.
A copy counts twice: bytes read and bytes written. With ``--target cuda`` it is a copy from one
array to another on the device.
"""

import argparse
from time import perf_counter

import numba
import numpy as np

from . import cuda_arrays


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
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.target == "cuda":
        print(cuda_arrays.copy_rate())
    else:
        print(copy_rate(arguments.threads))
