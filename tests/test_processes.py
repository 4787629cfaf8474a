"""Calls from many threads and from other processes, under each of Numba's threading layers.

Each case is a script in a process of its own: what it guards against ends the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.only("cpu")

PRELUDE = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numba, numpy as np
from numba_roialign import _cpu_call, roi_align
_cpu_call.SERIAL_WORK = _cpu_call.SERIAL_BINS = 0  # every call asks for threads

rng = np.random.default_rng(0)
FEATURES = rng.standard_normal((1, 32, 40, 40)).astype(np.float32)
CORNERS = rng.uniform(0, 20, (40, 2))
ROIS = np.column_stack([np.zeros(40), CORNERS, CORNERS + 15])

def pooled(_=None):
    return roi_align(FEATURES, ROIS, 7)

def right(results):
    assert all(np.array_equal(result, expected) for result in results)
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
    "a fork server": """
with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
    right(pool.map(pooled, range(8)))
""",
}


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_right_results_and_no_abort(tmp_path, case, layer):
    body = "expected = pooled()\n" + CASES[case] + f"assert numba.threading_layer() == {layer!r}\n"
    script = tmp_path / "script.py"
    main = "".join(f"    {line}\n" for line in body.splitlines())
    script.write_text(f"{PRELUDE}\nif __name__ == '__main__':\n{main}    print('done')\n")
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
