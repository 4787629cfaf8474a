"""Targets, seeded data and hypothesis profiles shared by the tests.

A test that takes the ``target`` fixture runs once per target, with one body for all. The targets
are the CPU, and CUDA when a device or the simulator (NUMBA_ENABLE_CUDASIM=1) is there; ``--target``
asks for them by name, and a target asked for that cannot start fails the run.
"""

import contextlib
import importlib.util
import os

# read when numba starts: lets one machine compare several thread counts, however few cores it has
os.environ.setdefault("NUMBA_NUM_THREADS", "4")

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from numpy.testing import assert_allclose

from .guarded import guarded

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF_ULP = {np.dtype(np.float16): 2.0**-11, BFLOAT16: 2.0**-8}
SIMULATOR = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
COMPILED = bool(os.environ.get("NUMBA_ROIALIGN_COMPILED"))  # see `compiled`


class Target:
    """Where arrays live and how exact results are there."""

    def tolerance(self, features, rois, scale):
        """Largest error allowed where the exact result is 0; see ``assert_matches`` for the rest.

        The sums are worth a few units of the type computed in. Where positions are rounded to that
        type too, they are off by a few units of the largest coordinate, and a position moves the
        result by at most the largest step between neighbouring pixels, on each of the two axes.
        """
        values = np.abs(np.asarray(features, np.float64))
        largest = values.max(initial=0, where=np.isfinite(values))
        unit = 2.0**-52 if features.dtype == np.float64 else 2.0**-23
        coordinates = np.abs(np.asarray(rois, np.float64)[:, 1:])
        coordinate = coordinates.max(initial=0, where=np.isfinite(coordinates)) * scale + 1
        position_error = 8 * unit * coordinate if self.rounds_positions else 0
        return 16 * unit * largest + 2 * position_error * 2 * largest

    def assert_matches(self, result, expected, features, rois, scale=1.0):
        """Compare a result with the float64 reference; storage in half types costs half an ulp."""
        result = self.numpy(result)
        assert result.shape == expected.shape
        assert result.dtype.newbyteorder("=") == features.dtype.newbyteorder("=")
        relative = HALF_ULP.get(features.dtype, 0)
        absolute = self.tolerance(features, rois, scale) + (2.0**-25 if relative else 0)
        assert_allclose(result.astype(np.float64), expected, rtol=relative, atol=absolute)


class Cpu(Target):
    name = "cpu"
    small = False
    rounds_positions = False

    def memories(self, fill):
        """Return contexts of memory: a byte stands in new memory, or another; see `guarded`."""
        return [
            guarded(0x00, at_end=True),
            guarded(fill, at_end=False),
            guarded(fill, threaded=True),
        ]

    def array(self, values):
        return np.asarray(values)

    def numpy(self, result):
        assert type(result) is np.ndarray
        return result

    def permute(self, values, axes):
        return values.transpose(axes)


class Cuda(Target):
    name = "cuda"
    rounds_positions = True
    small = SIMULATOR  # the simulator runs one Python thread per CUDA thread

    def __init__(self):
        if SIMULATOR or COMPILED:
            from numba_roialign._cuda import (
                average,
                banded,
                bands,
                box_tables,
                gradient,
                homes,
                large,
                launches,
                small,
                whole,
            )

            # So that small arrays take several blocks, parts, rounds and tiles, and every kernel.
            launches.THREADS_PER_BLOCK = 16
            average.THREADS, average.WIDE_THREADS, average.GROUPS_LAST = 8, 16, 2
            average.RESIDENT = 200
            average.WARPS = dict.fromkeys(average.WARPS, 4)
            small.LANES, small.MOST_ROWS, small.MOST_RESULTS = 14, 2, 200
            box_tables.NARROW_TAPS = 2
            box_tables.HALF_WARP = homes.HALF_WARP = large.HALF_WARP = 4
            large.THREADS, large.PITCH, large.SUMS = 8, 10, 40
            average.WIDE_TAPS, average.SHORT_ROW = 5, 4
            bands.WARP, bands.CHUNK, banded.CHUNK = 4, np.uint32(16), 16
            bands.LISTED = banded.LISTED = 5
            bands.WIDE_HELD = 4  # taps, fewer than `MOST_TAPS`
            banded.BAND_THREADS, banded.WIDE_THREADS, banded.FILLERS = 12, 12, 3
            banded.MOST_PARTS, banded.MOST_COLOURS = 2, 1
            banded.LEAST_ROWS = banded.BEYOND = 1
            banded.MOST_TAPS, banded.LEAST_OUTPUTS, banded.BINS_OF_PIXEL = 6, 20, 1 / 2
            banded.RESERVED_BYTES = (24 << 10) - 1000  # a band has 62 pixels of four channels
            whole.WARP, whole.CHUNK, whole.FILLERS = 4, 16, 3
            whole.WIDE_THREADS, whole.MOST_BOXES = 12, 3
            gradient.TILE_HEIGHT, gradient.TILE_WIDTH = 2, 4
            gradient.THREADS, gradient.BLOCKS = 4, 1
            gradient.SUM_NUMBERS, gradient.LISTERS = 8, 2

    def memories(self, fill):
        return [contextlib.nullcontext()]

    def array(self, values):
        from numba import cuda

        values = np.ascontiguousarray(values).reshape(np.shape(values))
        if SIMULATOR or values.dtype != BFLOAT16:
            return cuda.to_device(values)
        return cuda.to_device(values.view(np.int16)).view(BFLOAT16)  # no buffer has this type

    def numpy(self, result):
        assert type(result) is type(self.array(np.zeros(1, np.float32)))
        if SIMULATOR or result.dtype != BFLOAT16:
            return result.copy_to_host()
        return result.view(np.int16).copy_to_host().view(BFLOAT16)

    def launch(self, kernel, blocks, threads, *arguments):
        """Launch a kernel of the test's own."""
        kernel[blocks, threads](*arguments)

    def permute(self, values, axes):
        if SIMULATOR:
            return values.transpose(axes)
        from numba import cuda

        # device arrays transpose two axes only
        return cuda.as_cuda_array(Permuted(values, axes))


class Compiled(Cuda):
    """The CUDA target, with compiled kernels on this machine's processor."""

    def __init__(self):
        super().__init__()
        from . import compiled

        compiled.install()
        self.compiled = compiled

    def memories(self, fill):
        return [
            self.compiled.guarded(fill),
            self.compiled.guarded(0x00, at_once=True),
            self.compiled.guarded(fill, at_end=False, at_once=True),
        ]

    def array(self, values):
        return self.compiled.Array.of(values)

    def launch(self, kernel, blocks, threads, *arguments):
        self.compiled.launch(kernel, blocks, threads, *arguments)

    def numpy(self, result):
        assert type(result) is type(self.array(np.zeros(1)))
        return result.copy_to_host()

    def permute(self, values, axes):
        return values.transpose(axes)


class Permuted:
    def __init__(self, base, axes):
        self.base = base  # keeps the memory alive
        self.__cuda_array_interface__ = {
            **base.__cuda_array_interface__,
            "shape": tuple(base.shape[axis] for axis in axes),
            "strides": tuple(base.strides[axis] for axis in axes),
        }


TARGETS = {"cpu": Cpu, "cuda": Compiled if COMPILED else Cuda}
CHOSEN = pytest.StashKey()


def cuda_problem():
    """Why the CUDA target cannot start, or an empty string."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed (extras cuda12, cuda13)"
    if COMPILED:
        return ""
    try:
        from numba import cuda

        started = cuda.is_available()
    except Exception as error:
        return f"numba.cuda does not start: {error}"
    return "" if started else "numba-cuda sees no device and NUMBA_ENABLE_CUDASIM is not set"


def pytest_addoption(parser):
    parser.addoption(
        "--target",
        action="append",
        choices=sorted(TARGETS),
        help="run the tests on this target (repeatable); fail if it cannot start",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "huge: arrays of 2**31 elements, deselected by default; `python -m pytest -m huge -s`",
    )
    config.addinivalue_line(
        "markers", "only(name): the fact holds for one target; not run when others are asked for"
    )
    chosen = config.getoption("--target")
    if chosen is None:
        chosen = ["cpu"] if cuda_problem() else ["cpu", "cuda"]
    elif "cuda" in chosen and (problem := cuda_problem()):
        raise pytest.UsageError(f"--target cuda: {problem}")
    config.stash[CHOSEN] = list(dict.fromkeys(chosen))


def pytest_report_header(config):
    note = " (simulator)" if SIMULATOR else ""
    return f"targets: {', '.join(config.stash[CHOSEN])}{note}"


def pytest_generate_tests(metafunc):
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", list(TARGETS), indirect=True, scope="session")


def pytest_collection_modifyitems(config, items):
    def is_wanted(item):
        if item.get_closest_marker("huge") and "huge" not in config.option.markexpr:
            return False
        only = item.get_closest_marker("only")
        name = item.callspec.params.get("target") if hasattr(item, "callspec") else None
        if only is not None:
            wanted = name in (None, only.args[0]) and only.args[0] in config.stash[CHOSEN]
            return wanted
        return name is None or name in config.stash[CHOSEN]

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


@pytest.fixture(scope="session")
def target(request):
    return TARGETS[request.param]()


@pytest.fixture
def planned_with(monkeypatch):
    """Return a context in which CPU calls are planned with other constants of a module."""
    from numba_roialign import _cpu, _operator

    def forget():
        for kept in (_cpu.plan.pooling_plan, _cpu.plan.gradient_plan, _operator.alike):
            kept.cache_clear()

    @contextlib.contextmanager
    def context(module, **constants):
        try:
            with monkeypatch.context() as patch:
                for name, value in constants.items():
                    patch.setattr(module, name, value)
                forget()
                yield
        finally:
            forget()

    return context


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=3 if SIMULATOR else 50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fuzz",
    parent=settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=30 if SIMULATOR else 3000,
    # Shrinking what takes seconds to compile would take hours.
    phases=[Phase.explicit, Phase.generate],
    print_blob=True,
)
settings.load_profile("repeatable")


def random_features(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def random_rois(rng, count, features_shape, scale=1.0, *, is_sorted=False):
    """Boxes inside, across and beyond the border, corners in any order, as float32 rows."""
    images, _, height, width = features_shape
    y = rng.uniform(-0.6 * height - 1, 1.6 * height + 1, (2, count)) / scale
    x = rng.uniform(-0.6 * width - 1, 1.6 * width + 1, (2, count)) / scale
    if is_sorted:
        y, x = np.sort(y, axis=0), np.sort(x, axis=0)
    index = rng.integers(0, images, count)
    return np.stack([index, x[0], y[0], x[1], y[1]], axis=1).astype(np.float32)


def random_case(rng, target, dtype=np.float32, scale=1.0):
    """Return a map and RoIs on it: few of both where `target` is slow."""
    shape = (2, 2, 4, 5) if target.small else (2, 5, 9, 12)
    features = random_features(rng, shape, dtype)
    return features, random_rois(rng, 3 if target.small else 20, shape, scale)


def edge_of_grids(rng, target, pool, *arguments):
    """Return a map, boxes and what `pool` gives for them, whose grids each rounding decides.

    Whole numbers times a scale like 0.3 fall on or beside whole bins, and the rounding of each step
    in the type computed in says which: one fused or widened step is another number of samples.
    """
    features = random_features(rng, (1, 1, 1, 100))
    first, length = rng.integers(0, 30, 400), rng.integers(10, 100, 400)
    zeros = np.zeros(400)
    rois = np.stack([zeros, first + 1, zeros, first + length, zeros + 1], axis=1).astype(np.float32)
    expected = pool(features, rois, *arguments)
    wide = pool(features, rois, *arguments, grid_dtype=np.float64)
    close = np.flatnonzero(np.abs(expected - wide).max(axis=(1, 2, 3)) > 1e-3)
    assert close.size >= 3
    chosen = close[:3] if target.small else np.arange(400)
    return features, rois[chosen], expected[chosen]


def misaligned(values):
    """Return a copy that starts on an odd byte."""
    memory = np.empty(values.nbytes + 1, np.uint8)[1:]
    view = memory.view(values.dtype).reshape(values.shape)
    view[...] = values
    assert not view.flags.aligned
    return view
