"""Calls from many threads and from other processes, under each of Numba's threading layers.

Each case is a script in a process of its own: what it guards against ends the process.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from numba_roialign import roi_align

pytestmark = pytest.mark.only("cpu")
layers = pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])

PRELUDE = """
import atexit, multiprocessing, os, signal, sys, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numba, numpy as np
from numba_roialign import _cpu, roi_align
_cpu.plan.SERIAL_WORK = _cpu.plan.SERIAL_BINS = 0  # every call asks for threads

rng = np.random.default_rng(0)
FEATURES = rng.standard_normal((1, 32, 40, 40)).astype(np.float32)
CORNERS = rng.uniform(0, 20, (40, 2))
ROIS = np.column_stack([np.zeros(40), CORNERS, CORNERS + 15])

def pooled(_=None):
    return roi_align(FEATURES, ROIS, 7)

def right(results):
    assert all(np.array_equal(result, expected) for result in results)
"""
# In a process of its own, for it takes 2 s to compile.
PARALLEL = """
@numba.njit(parallel=True)
def pooled_in_parallel(count):
    sums = np.zeros(count)
    for n in numba.prange(count):
        with numba.objmode(total="float64"):
            total = float(pooled().sum())
        sums[n] = total
    return sums
"""
CASES = {
    "threads": """
with ThreadPoolExecutor(8) as pool:
    right(pool.map(pooled, range(200)))
""",
    "a fork": """
child = os.fork()
if child == 0:
    right([pooled(), pooled()])
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
    "a fork while threads call": """
with ThreadPoolExecutor(4) as pool:
    running = [pool.submit(pooled) for _ in range(200)]
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            right([pooled()])
            os._exit(0)
    right(call.result() for call in running)
assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
""",
    "a pool of forks": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    right(pool.map(pooled, range(8)))
""",
    "a pool of spawned processes": """
with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
    right(pool.map(pooled, range(8)))
""",
    "a parallel function": PARALLEL
    + """
assert np.all(pooled_in_parallel(40) == float(expected.sum()))
""",
    "a parallel function in another thread": """
@numba.njit(parallel=True, nogil=True)
def busy(sums):
    for n in numba.prange(sums.size):
        for k in range(200):
            sums[n] += np.sqrt(n * k)

stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        busy(np.zeros(1000))

busy(np.zeros(1))
with ThreadPoolExecutor(1) as pool:
    running = pool.submit(keep_busy)
    right([pooled() for _ in range(300)])
    stop.set()
    running.result()
""",
    "the end of the interpreter": """
atexit.register(lambda: right([pooled()]))
""",
    "a fork server": """
with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
    right(pool.map(pooled, range(8)))
""",
}


def run_script(tmp_path, layer, body, definitions=""):
    """Run lines after the prelude in a process of its own, which must end well."""
    body = f"expected = pooled()\n{body}\nassert numba.threading_layer() == {layer!r}\n"
    main = "".join(f"    {line}\n" for line in body.splitlines())
    main = f"if __name__ == '__main__':\n{main}    print('done')\n"
    script = tmp_path / "script.py"
    script.write_text(f"{PRELUDE}\n{definitions}\n{main}")
    paths = str(Path(sys.prefix, "lib")), os.environ.get("LD_LIBRARY_PATH", "")
    environment = {
        **os.environ,
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": "4",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),  # where pip puts libtbb
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    if layer == "tbb" and "TBB is required" in done.stderr:
        pytest.skip("libtbb is not installed")
    # TBB says on stdout, where it can be the last word, that it could not join its threads.
    assert done.returncode == 0 and "done" in done.stdout.splitlines(), done.stderr
    assert done.stderr == ""


@layers
@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_right_results_and_no_abort(tmp_path, case, layer):
    run_script(tmp_path, layer, CASES[case])


@layers
def test_an_interrupted_process_goes_on(tmp_path, layer):
    body = """
signal.signal(signal.SIGALRM, signal.default_int_handler)
for delay in np.linspace(0.001, 0.03, 30):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        while True:
            pooled()
    except KeyboardInterrupt:
        right([pooled()])
"""
    run_script(tmp_path, layer, body)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_call_lets_go_of_the_interpreter_lock(threads):
    features, rois = np.ones((1, 256, 300, 300), np.float32), [(0.0, 0, 0, 290, 290)] * 16
    began, ended, turns = threading.Event(), threading.Event(), 0

    def call():
        numba.set_num_threads(threads)
        roi_align(features, np.array(rois[:1]), 7)  # compiled
        began.set()
        roi_align(features, np.array(rois), 7)
        ended.set()

    thread, interval = threading.Thread(target=call), sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds: a thread has the lock until it lets go by itself
    try:
        thread.start()
        began.wait()
        while not ended.is_set():
            time.sleep(1e-4)
            turns += 1
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert turns > 20  # of some 500; around the kernels a call lets go some 5 times
