"""What a result file says about where it was made."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic

from .remote import ROOT


def usable_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name():
    """Return the name of the CPU with its family and model: a virtual machine hides the first."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in lines)
    facts = {key.strip(): value.strip() for key, value in pairs}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model')})"
    if "flags" in facts:
        name += " with AVX-512" if "avx512f" in facts["flags"].split() else " without AVX-512"
    return name


def git(*arguments):
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def revision():
    """Return the commit that was run, and whether the files differed from it; None without git."""
    commit = git("rev-parse", "--short", "HEAD")
    changes = git("status", "--porcelain", "--", "numba_roialign", "bench/*.py")
    return f"{commit} with changes" if commit and changes else commit


def cpu_seconds():
    """Return the seconds that all cores were busy, stolen by the host included, and our share.

    Ours are this process and its ended children. None where the system does not tell.
    """
    try:
        line = Path("/proc/stat").read_text().split("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy, sum(os.times()[:4])


class Bystanders:
    """Measure how many cores others kept busy since it was made, once our children have ended."""

    def __init__(self):
        self.start, self.clock = cpu_seconds(), monotonic()

    def cores(self):
        if self.start is None:
            return None
        busy, own = (now - then for now, then in zip(cpu_seconds(), self.start, strict=True))
        return max(0.0, busy - own) / (monotonic() - self.clock)


def device():
    """Return the name of the CUDA device, its driver and its memory; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    name, driver, memory = (part.strip() for part in done.stdout.split("\n")[0].split(","))
    return f"{name}, {memory}, driver {driver}"


def facts():
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "revision": revision(),
    }
