"""Run every lane of tests that this machine can run: ``python -m tests``.

Each lane is a pytest process of its own, since the CUDA simulator is chosen when Numba is imported.
Name lanes to run only those, and pass pytest's own options after ``--``:
``python -m tests cpu -- -x``.
"""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec

LANES = {
    "cpu": ({}, ["--target", "cpu", "--ignore", "tests/test_ptx.py"]),
    "simulator": (
        {"NUMBA_ENABLE_CUDASIM": "1"},
        ["--target", "cuda", "--ignore", "tests/test_ptx.py"],
    ),
    "ptx": ({"NUMBA_ROIALIGN_REQUIRE_PTX": "1"}, ["tests/test_ptx.py"]),
    "device": ({}, ["--target", "cuda", "--ignore", "tests/test_ptx.py"]),
}


def device_is_there() -> bool:
    probe = "import sys; from numba import cuda; sys.exit(not cuda.is_available())"
    return (
        find_spec("numba_cuda") is not None
        and not subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__.split("\n\n")[0])
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"of {', '.join(LANES)}")
    own, _, options = " ".join(sys.argv[1:]).partition("--")
    arguments = parser.parse_args(own.split())
    if unknown := set(arguments.lanes) - set(LANES):
        parser.error(f"no lane named {', '.join(sorted(unknown))}; there are {', '.join(LANES)}")
    lanes = arguments.lanes or [lane for lane in LANES if lane != "device" or device_is_there()]
    failed = []
    for lane in lanes:
        environment, selection = LANES[lane]
        print(f"\n=== lane {lane} ===", flush=True)
        command = [sys.executable, "-m", "pytest", *selection, *options.split()]
        if subprocess.run(command, env={**os.environ, **environment}).returncode:
            failed.append(lane)
    print(f"\nlanes run: {', '.join(lanes)}; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
