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

# Files with a lane of their own.
APART = ["--ignore", "tests/test_ptx.py", "--ignore", "tests/test_torch.py"]
LANES = {
    "cpu": ({}, ["--target", "cpu", *APART]),
    "simulator": (
        {"NUMBA_ENABLE_CUDASIM": "1"},
        ["--target", "cuda", *APART],
    ),
    "ptx": ({"NUMBA_ROIALIGN_REQUIRE_PTX": "1"}, ["tests/test_ptx.py"]),
    "torch": ({"NUMBA_ROIALIGN_REQUIRE_TORCH": "1"}, ["--target", "cpu", "tests/test_torch.py"]),
    "device": ({}, ["--target", "cuda", *APART]),
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
    optional = {"device": device_is_there, "torch": lambda: find_spec("torch") is not None}
    lanes = arguments.lanes or [lane for lane in LANES if optional.get(lane, lambda: True)()]
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
