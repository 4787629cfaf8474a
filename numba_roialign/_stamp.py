"""The stamp of compiled code that is kept on disk: all of the package's source."""

from __future__ import annotations

import functools
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
