"""Compare the package with its peers on random cases: ``python -m bench.agreement``.

For each peer that is installed (torchvision, MindSpore) every case is pooled by the package and by
the peer, and both are held against the float64 reference of the tests. The table shows the largest
difference to the peer and the largest error of each.
"""

import argparse
import importlib.util
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from numba_roialign import ROIAlign, roi_align
from tests import reference

SIZES = [(1, 1, 5, 7), (2, 3, 20, 31), (1, 17, 50, 76), (3, 4, 64, 48)]


def random_case(rng):
    """Return features and boxes inside, outside, tiny, huge and with swapped corners."""
    images, channels, height, width = SIZES[rng.integers(len(SIZES))]
    scale = float(rng.choice([1.0, 0.5, 0.25, 0.0625, 0.3]))
    features = rng.standard_normal((images, channels, height, width)).astype(np.float32)
    count = int(rng.integers(1, 9))
    reach = np.array([width, height]) / scale
    corners = rng.uniform(-0.2, 1.1, (count, 2)) * reach
    sizes = np.exp(rng.uniform(np.log(0.01), np.log(1.5), (count, 2))) * reach
    sizes *= rng.choice([1, 1, 1, 1, -0.1], (count, 2))
    image = rng.integers(0, images, count)
    rois = np.column_stack([image, corners, corners + sizes]).astype(np.float32)
    output_size = tuple(int(bins) for bins in rng.integers(1, 9, 2))
    return features, rois, output_size, scale


def torchvision_cases(rng):
    import torch
    from torchvision.ops import roi_align as peer

    features, rois, size, scale = random_case(rng)
    samples, aligned = int(rng.choice([-1, 1, 2, 3])), bool(rng.integers(2))
    if samples < 0:  # it raises RuntimeError where one side of a box is negative
        rois[:, 3:] = np.maximum(rois[:, 3:], rois[:, 1:3])
    arguments = (size, scale, samples, aligned)
    return (
        f"aligned={aligned}, {'adaptive' if samples < 0 else 'fixed'}",
        roi_align(features, rois, *arguments),
        peer(torch.from_numpy(features), torch.from_numpy(rois), *arguments).numpy(),
        reference.roi_align(features, rois, *arguments),
    )


def mindspore_cases(rng):
    import mindspore

    features, rois, size, scale = random_case(rng)
    samples, mode = int(rng.choice([0, 1, 2, 3])), int(rng.integers(2))
    arguments = (*size, scale, samples, mode)
    pooled = ROIAlign(*arguments)(features, rois)
    peer = mindspore.ops.ROIAlign(*arguments)
    theirs = peer(mindspore.Tensor(features), mindspore.Tensor(rois)).asnumpy()
    truth = reference.mindspore_roi_align(features, rois, size, scale, samples, mode)
    # Its result is undefined for an empty adaptive grid: NaN, or 0 where the box is negative.
    extent = (rois[:, [4, 3]] + mode - rois[:, [2, 1]]) * np.float32(scale)
    extent = np.maximum(extent, 1) if mode == 0 else extent
    defined = (samples > 0) | (extent >= np.array(size) * 1.001).all(axis=1)
    name = f"roi_end_mode={mode}, {'adaptive' if samples < 1 else 'fixed'}"
    return name, pooled[defined], theirs[defined], truth[defined]


PEERS = {"torchvision": torchvision_cases, "mindspore": mindspore_cases}


def compare(cases, count, seed):
    """Return, for each kind of case, how many rows, the difference and the two errors."""
    rng = np.random.default_rng(seed)
    figures = defaultdict(lambda: np.zeros(4))
    for _ in tqdm(range(count), leave=False):
        kind, ours, theirs, truth = cases(rng)
        if ours.size:
            differences = [
                np.abs(a - b).max() for a, b in [(ours, theirs), (ours, truth), (theirs, truth)]
            ]
            row = figures[kind]
            row[0] += len(ours)
            row[1:] = np.maximum(row[1:], differences)
    return figures


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| peer | case | boxes | difference | our error | peer's error |")
    print("|---|---|---:|---:|---:|---:|")
    for peer, cases in PEERS.items():
        if importlib.util.find_spec(peer) is None:
            print(f"| {peer} | not installed | | | | |")
            continue
        for kind, row in sorted(compare(cases, arguments.cases, arguments.seed).items()):
            boxes, *differences = row
            print(f"| {peer} | {kind} | {boxes:.0f} |", *(f"{d:.1e} |" for d in differences))


if __name__ == "__main__":
    main()
