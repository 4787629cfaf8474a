"""Run every lane of tests that this machine can run: ``python -m tests``.

Each lane of tests is a pytest process of its own, since the CUDA simulator is chosen when Numba is
imported. Name lanes to run only those, and pass pytest's own options after ``--``:
``python -m tests cpu -- -x``. The lanes ``checked``, which compiles everything once more, and
``sdist`` and ``oldest``, which install packages, run only where they are named.
"""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec

from . import supply

# Files with a lane of their own.
APART = [
    option
    for name in ("ptx", "simulator", "torch")
    for option in ("--ignore", f"tests/test_{name}.py")
]
# Most of the time goes into compiling, on one core; through the on-disk cache two processes share
# what they compile.
TWO = ["--numprocesses", "2", "--dist", "loadgroup"]
LANES = {
    "cpu": ({}, ["--target", "cpu", *APART, *TWO]),
    "simulator": (
        {"NUMBA_ENABLE_CUDASIM": "1"},
        ["--target", "cuda", *APART, *TWO],
    ),
    "compiled": (
        {"NUMBA_ROIALIGN_COMPILED": "1", "LLVMLITE_ENABLE_IR_LAYER_TYPED_POINTERS": "0"},
        ["--target", "cuda", *APART, *TWO],
    ),
    "checked": ({"NUMBA_BOUNDSCHECK": "1"}, ["--target", "cpu", "tests/test_hostile.py", *TWO]),
    "ptx": (
        {"NUMBA_ROIALIGN_REQUIRE_PTX": "1"},
        ["tests/test_ptx.py", "tests/test_simulator.py", *TWO],
    ),
    "torch": ({"NUMBA_ROIALIGN_REQUIRE_TORCH": "1"}, ["--target", "cpu", "tests/test_torch.py"]),
    "device": ({}, ["--target", "cuda", *APART]),
}
# Lanes that are more than pytest in this environment: functions of pytest's options.
SUPPLY = {"types": supply.types, "sdist": supply.sdist, "oldest": supply.oldest}


def device_is_there() -> bool:
    probe = "import sys; from numba import cuda; sys.exit(not cuda.is_available())"
    return (
        find_spec("numba_cuda") is not None
        and not subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode
    )


def passes(lane, options) -> bool:
    """Run a lane and say whether it passed."""
    if lane in SUPPLY:
        return SUPPLY[lane](options)
    environment, selection = LANES[lane]
    command = [sys.executable, "-m", "pytest", *selection, *options]
    return not subprocess.run(command, env={**os.environ, **environment}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__.split("\n\n")[0])
    known = [*LANES, *SUPPLY]
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"of {', '.join(known)}")
    own, _, options = " ".join(sys.argv[1:]).partition("--")
    arguments = parser.parse_args(own.split())
    if unknown := set(arguments.lanes) - set(known):
        parser.error(f"no lane named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    optional = {"device": device_is_there, "torch": lambda: find_spec("torch") is not None}
    able = [lane for lane in LANES if optional.get(lane, lambda: True)()]
    lanes = arguments.lanes or ["types", *(lane for lane in able if lane != "checked")]
    failed = []
    for lane in lanes:
        print(f"\n=== lane {lane} ===", flush=True)
        if not passes(lane, options.split()):
            failed.append(lane)
    print(f"\nlanes run: {', '.join(lanes)}; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
