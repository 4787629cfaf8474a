"""How the CPU divides a batch of RoIs into tasks."""

from itertools import pairwise

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import _cpu, roi_align, roi_align_backward
from numba_roialign._cpu import found as at
from numba_roialign._cpu.job import POSITIONS

from .conftest import random_features, random_rois

pytestmark = pytest.mark.only("cpu")
SHAPE = (4, 16, 60, 50)
SHAPES = [SHAPE, (1, 16, 9000, 3), (2100, 16, 5, 4)]  # sorted by more than a digit: rows, images


@pytest.fixture
def divisions(monkeypatch):
    """Return what was found in each batch, how it is cut, and its order, chunks, images and first
    rows."""
    seen = []

    run = _cpu.target.run

    def noting(plan, features, rois, *arguments):
        result = run(plan, features, rois, *arguments)
        memory, rows = _cpu.call.CallMemory.spare[-1], plan.table_rows(len(rois))
        sizes = {
            "order": rows,
            "chunks": max(rows, plan.sampling.images) + 1,
            "table_images": rows,
        }
        tables = {name: memory.table(name, size).copy() for name, size in sizes.items()}
        names = "blocks", "chunk_count", "parts"
        cut = {name: int(memory.job[POSITIONS[name]]) for name in names}
        first_rows = memory.table("spans", 4 * rows)[::4].copy()
        seen.append((memory.found.tolist(), cut, tables, first_rows))
        return result

    monkeypatch.setattr(_cpu.target, "run", noting)
    return seen


def boxes(rng, count, largest, shape=SHAPE):
    """Return boxes up to a size, sorted by nothing, some of which cannot be pooled."""
    rois = random_rois(rng, count, shape)
    rois[:, 3:] = rois[:, 1:3] + rng.uniform(1, largest, (count, 2))
    rois[rng.integers(0, count, count // 10), 1] = np.nan
    return rois


@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("count", [1, 7, 200])
@pytest.mark.parametrize("largest", [5, 60])  # of the larger ones some are sparse
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_roi_is_in_one_chunk_of_its_image(
    rng, planned_with, divisions, shape, count, largest, serial
):
    features = random_features(rng, shape, np.float32)
    with planned_with(_cpu.plan, SERIAL_WORK=1 << 60 if serial else 0):
        roi_align(features, boxes(rng, count, largest, shape), (5, 3), 1.0, 1, validate=False)
    [(found, cut, tables, first_rows)] = divisions
    images = tables["table_images"]
    pooled = np.flatnonzero(images >= 0)
    assert found[at.INVALID] == count - len(pooled)
    order, chunks = tables["order"][: len(pooled)], tables["chunks"]
    assert_array_equal(np.sort(order), pooled)
    ends = chunks[: cut["chunk_count"] + 1].tolist()
    assert ends[0] == 0 and ends[-1] == len(pooled)
    for first, last in pairwise(ends):
        assert first < last
        assert len(set(images[order[first:last]])) == 1
    keys = list(zip(images[order], first_rows[order], order, strict=True))
    assert keys == sorted(keys)
    assert found[at.DENSE] == len(pooled) - found[at.SPLIT] * found[at.SPARSE]
    if serial:
        assert (found[at.THREADS], cut["parts"]) == (1, 1)
        assert cut["chunk_count"] == len(set(images[order]))
    else:
        assert found[at.THREADS] == numba.get_num_threads()
        assert 1 <= cut["parts"] <= 5


def test_some_rois_are_sparse(rng, divisions):
    """So that the test above does see them."""
    features = random_features(rng, SHAPE, np.float32)
    roi_align(features, boxes(rng, 200, 60), (5, 3), 1.0, 1, validate=False)
    found = divisions[0][0]
    assert found[at.SPLIT] and found[at.SPARSE] > 0 and found[at.DENSE] > 0


def test_few_rois_are_divided_for_all_threads(rng, planned_with, divisions):
    if numba.get_num_threads() == 1:
        pytest.skip("one thread has nothing to divide for")
    features = random_features(rng, SHAPE, np.float32)
    with planned_with(_cpu.plan, SERIAL_WORK=0):
        roi_align(features, np.array([[0, 1, 2, 20, 30]]), (8, 3), 1.0, 2)
    found, cut = divisions[0][:2]
    assert found[at.THREADS] > 1 and cut["chunk_count"] == 1 and cut["parts"] > 1


@pytest.mark.parametrize("count", [2, 60])
def test_few_rois_of_many_channels_come_in_halves(rng, planned_with, divisions, count):
    if numba.get_num_threads() == 1:
        pytest.skip("one thread has nothing to divide for")
    features = random_features(rng, (1, 9, 11, 2048), np.float32)
    rois = np.tile(np.float32([0, 1.5, 1, 9, 8]), (count, 1))
    with planned_with(_cpu.plan, SERIAL_WORK=0), planned_with(_cpu.schedules, PIXELS_READS=1000):
        last = roi_align(features, rois, 3, layout="NHWC")
    assert divisions[0][1]["blocks"] == (2 if count == 2 else 1)
    first = roi_align(np.ascontiguousarray(features.transpose(0, 3, 1, 2)), rois, 3)
    assert_array_equal(last.transpose(0, 3, 1, 2), first)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gradient_has_a_chunk_for_each_image(rng, divisions, shape):
    rois = boxes(rng, 50, 30, shape)
    rois = rois[rois[:, 0] != 2]  # an image without RoIs
    grad = random_features(rng, (len(rois), 16, 3, 3), np.float32)
    roi_align_backward(grad, rois, shape, 1.0, 1, validate=False)
    [(found, _, tables, first_rows)] = divisions
    images, chunks = tables["table_images"], tables["chunks"]
    for image in range(shape[0]):
        rows = tables["order"][chunks[image] : chunks[image + 1]]
        assert_array_equal(np.sort(rows), np.flatnonzero(images == image))
        assert (np.diff(first_rows[rows]) >= 0).all()
    assert chunks[shape[0]] == len(rois) - found[at.INVALID]
