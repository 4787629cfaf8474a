"""How both targets compile: garbage uncollected; and the stamp of code that is kept on disk."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
from pathlib import Path


@functools.cache
def package_stamp() -> str:
    """Return a digest of every source file of the package.

    Numba stamps a cached function with the file it stands in, but its code holds that of every
    function it calls.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def uncollected():
    """Pause Python's collector of garbage, which Numba's compiler makes little of.

    Looking for it among all that is made takes an eighth of a first call, 0.75 s of 6.2, and more
    in a process that holds more. Without, that call takes 58 MB more.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
