"""``numba-roialign info``: what this machine and this installation offer."""

import importlib
import importlib.metadata
import os
import platform
import warnings

SIMD_FEATURES = (
    *("sse4.2", "avx", "avx2", "fma", "f16c"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16", "avx512fp16"),
    *("neon", "fullfp16", "bf16", "sve", "sve2"),
)
THREADING_LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "info",
        help="list versions, CPU, threads and CUDA device",
        description="List the versions, CPU, threads and CUDA device that numba-roialign sees.",
    )
    parser.set_defaults(command=run)


def run(arguments):
    listing = collect()
    width = max(map(len, listing)) + 1
    for key, value in listing.items():
        print(f"{key + ':':<{width}} {value}")


def collect():
    """Return the listing as a dictionary of strings; a part that fails names its reason."""
    from numba_roialign import __version__

    parts = {
        "numba-roialign": lambda: __version__,
        "Python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform,
        **{name: _version_getter(name) for name in ("numpy", "numba", "llvmlite", "numba-cuda")},
        "CPU": _cpu_name,
        "CPU features": _cpu_features,
        "cores": _cores,
        "Numba threads": _numba_threads,
        "threading layers": _threading_layers,
        "threading layer used": _threading_layer_used,
        "CUDA": _cuda,
    }
    return {key: _describe(part) for key, part in parts.items()}


def _describe(part):
    try:
        return part()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {_one_line(error)})"


def _one_line(text):
    return " ".join(str(text).split())


def _version_getter(name):
    return lambda: _version(name) or "not installed"


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name():
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name()


def _cpu_features():
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return " ".join(name for name in SIMD_FEATURES if features.get(name)) or "none listed"


def _cores():
    count = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return str(count) if usable == count else f"{count} ({usable} usable by this process)"


def _numba_threads():
    import numba

    return str(numba.config.NUMBA_NUM_THREADS)


def _threading_layers():
    available = [name for name, module in THREADING_LAYERS.items() if _layer_loads(module)]
    return " ".join(available) or "none"


def _layer_loads(module):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(f"numba.np.ufunc.{module}")
    except Exception:
        return False
    return True


def _threading_layer_used():
    import numba
    import numpy as np

    if numba.config.DISABLE_JIT:
        return "none (NUMBA_DISABLE_JIT is set)"

    @numba.njit(parallel=True)
    def count(values):
        for i in numba.prange(values.size):
            values[i] = i

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count(np.zeros(2))
    return numba.threading_layer()


def _cuda():
    if _version("numba-cuda") is None:
        return (
            "none: numba-cuda is not installed "
            '(pip install "numba-roialign[cuda12]" or "numba-roialign[cuda13]")'
        )
    from numba import cuda

    if cuda.config.ENABLE_CUDASIM:
        return "simulator (NUMBA_ENABLE_CUDASIM is set), no device"
    if not cuda.is_available():
        return f"none: {_one_line(cuda.cuda_error() or 'no usable device or toolkit')}"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    capability = ".".join(map(str, device.compute_capability))
    driver = ".".join(map(str, cuda.cudadrv.driver.driver.get_version()))
    return f"{name}, compute capability {capability}, driver for CUDA {driver}"
