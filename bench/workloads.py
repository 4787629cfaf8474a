"""What is timed: the named workloads and the sweeps, the same on every target, seeds fixed."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """The arguments of one call, under the convention of torchvision."""

    features: np.ndarray  # (N, C, H, W) float32
    rois: np.ndarray  # (K, 5) float32: image, x1, y1, x2, y2 in image pixels, sorted by image
    bins: int
    scale: float
    sampling: int  # samples per bin and axis; 0 is adaptive
    aligned: bool

    @property
    def pooled_shape(self):
        return len(self.rois), self.features.shape[1], self.bins, self.bins

    def gradient(self):
        """Return a gradient of the pooled features; the same whenever and wherever it is called."""
        return np.random.default_rng(0).standard_normal(self.pooled_shape, dtype=np.float32)


@dataclass(frozen=True)
class Workload:
    name: str
    shape: tuple[int, int, int, int]
    stride: int  # image pixels per feature-map pixel
    boxes: tuple[tuple[int, float, float], ...]  # groups: count, smallest and largest side
    bins: int
    sampling: int = 2
    aligned: bool = True
    photograph: bool = False
    quick: bool = False

    def build(self) -> Problem:
        """Return the arrays; the same ones whenever and wherever it is called."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        rois = random_boxes(rng, self)
        if self.photograph:
            features = photographs(self.shape)
        else:
            features = rng.standard_normal(self.shape, dtype=np.float32)
        return Problem(features, rois, self.bins, 1 / self.stride, self.sampling, self.aligned)

    def describe(self) -> dict:
        return asdict(self) | {"count": self.count}

    @property
    def count(self) -> int:
        return sum(count for count, _, _ in self.boxes)


def random_boxes(rng, workload):
    """Return boxes inside the image: sides log-uniform, aspect ratios from 1:2 to 2:1."""
    images, _, height, width = workload.shape
    extent = np.array([width, height]) * workload.stride
    sides = [rng.uniform(np.log(low), np.log(high), n) for n, low, high in workload.boxes]
    side = rng.permutation(np.exp(np.concatenate(sides)))
    aspect = np.exp(rng.uniform(-np.log(2) / 2, np.log(2) / 2, len(side)))
    sizes = np.minimum(np.column_stack([side * aspect, side / aspect]), extent)
    corners = rng.uniform(0, 1, sizes.shape) * (extent - sizes)
    image = np.sort(rng.integers(0, images, len(side)))
    return np.column_stack([image, corners, corners + sizes]).astype(np.float32)


def photographs(shape):
    """Return Matplotlib's photograph, 0 to 1, mirrored to the size and shifted for each image."""
    import matplotlib.cbook
    import matplotlib.image

    images, channels, height, width = shape
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = matplotlib.image.imread(file, format="jpg").transpose(2, 0, 1)[:channels]
    grow = [(0, max(0, n - m)) for n, m in zip(shape[1:], photograph.shape, strict=True)]
    photograph = np.pad(photograph, grow, mode="symmetric")[:, :height, :width]
    shifted = [np.roll(photograph, 40 * image, axis=(1, 2)) for image in range(images)]
    return np.ascontiguousarray(shifted, np.float32) / 255


P2, P3, P4, P5 = (1, 256, 200, 304), (1, 256, 100, 152), (1, 256, 50, 76), (1, 256, 25, 38)
C4 = (1, 1024, 50, 76)
RGB, HD = (4, 3, 600, 512), (1, 3, 1080, 1920)

WORKLOADS = [
    # levels of a feature pyramid, boxes as a detector assigns them
    Workload("fpn_p2_s2", P2, 4, ((1000, 8, 112),), 7, quick=True),
    Workload("fpn_p2_adaptive", P2, 4, ((1000, 8, 112),), 7, 0, aligned=False),
    Workload("fpn_p3_s2", P3, 8, ((500, 112, 224),), 7, aligned=False),
    Workload("fpn_p3_adaptive", P3, 8, ((500, 112, 224),), 7, 0),
    Workload("fpn_p4_s2", P4, 16, ((1000, 224, 448),), 7),
    Workload("fpn_p4_adaptive", P4, 16, ((500, 224, 448),), 7, 0, aligned=False),
    Workload("fpn_p5_s2", P5, 32, ((300, 448, 1100),), 7, aligned=False),
    Workload("fpn_p5_adaptive", P5, 32, ((300, 448, 1100),), 7, 0),
    Workload("mask_14_s2", P3, 8, ((100, 32, 400),), 14, quick=True),
    Workload("mask_14_adaptive", P3, 8, ((100, 32, 400),), 14, 0, aligned=False),
    Workload("c4_14_s2", C4, 16, ((128, 32, 600),), 14),
    Workload("c4_14_adaptive", C4, 16, ((300, 32, 600),), 14, 0, aligned=False),
    # crops of photographs
    Workload("crop_96_s1", RGB, 1, ((256, 40, 400),), 96, 1, photograph=True, quick=True),
    Workload("crop_96_s2", RGB, 1, ((256, 40, 400),), 96, 2, photograph=True),
    Workload("crop_112_s1", HD, 1, ((64, 32, 700),), 112, 1, photograph=True),
    Workload("crop_112_s2", HD, 1, ((64, 32, 700),), 112, 2, photograph=True),
    # few boxes, many channels, and the other way round
    Workload("small_8x64", (1, 64, 50, 76), 16, ((8, 64, 400),), 7, quick=True),
    Workload("few_4x2048", (1, 2048, 25, 38), 32, ((4, 200, 900),), 7, 0),
    Workload("many_1000x3", (1, 3, 800, 1216), 1, ((1000, 8, 400),), 7, photograph=True),
    # sizes that divide badly
    Workload("mixed_s2", P2, 4, ((500, 8, 1100),), 7),
    Workload("mixed_adaptive", P2, 4, ((500, 8, 1100),), 7, 0, quick=True),
    Workload("one_enormous", P2, 4, ((299, 8, 24), (1, 1000, 1000)), 7, 0),
    # maps beyond the caches
    Workload("one_box_huge_map", (1, 32, 1080, 1920), 1, ((1, 300, 300),), 7, 0),
    Workload("few_samples_huge_map", (1, 32, 1080, 1920), 1, ((20, 700, 1000),), 7),
    Workload("beyond_cache", (4, 256, 200, 304), 4, ((1000, 8, 400),), 7),
]

# the first call of a process: small, so that its time is that of starting up
FIRST_USE = Workload("first_use", (1, 64, 50, 76), 16, ((8, 64, 400),), 7, aligned=False)


class Sweep(NamedTuple):
    """Workloads that differ in one number; `threads` holds a count for each, or None."""

    name: str
    axis: str
    values: list[int]
    workloads: list[Workload]
    threads: list[int] | None = None


def doublings(last):
    """Return 1, 2, 4, ... and `last`."""
    return [*(1 << n for n in range((last - 1).bit_length())), last]


def sweeps(threads, quick=False) -> list[Sweep]:
    """Return how cost grows along each axis from one workload in the middle."""
    base = Workload("sweep", P3, 8, ((256, 32, 400),), 7)

    def along(name, axis, values, change):
        values = values[::2] if quick else values
        variants = [replace(base, name=f"{name}_{n}", **change(n)) for n in values]
        return Sweep(name, axis, values, variants)

    counts = doublings(threads)
    return [
        along("rois", "boxes", [1, 4, 16, 64, 256, 1024], lambda n: {"boxes": ((n, 32, 400),)}),
        along(
            "channels",
            "channels",
            [1, 3, 8, 16, 64, 256, 1024],
            lambda n: {"shape": (1, n, *P3[2:])},
        ),
        along("sampling", "samples per bin and axis", [1, 2, 4, 8], lambda n: {"sampling": n}),
        along(
            "output",
            "bins per axis",
            [1, 3, 7, 14, 28, 56],
            lambda n: {"bins": n, "boxes": ((64, 32, 400),)},
        ),
        Sweep("threads", "threads", counts, [base] * len(counts), counts),
    ]
