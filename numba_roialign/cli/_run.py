"""``numba-roialign run``: pool the RoIs of one .npy file from the features of another."""

import argparse
import errno
import functools
import math
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from numba_roialign import CONVENTIONS
from numba_roialign._arguments import MODES
from numba_roialign._flat import LAYOUTS
from numba_roialign.cli._errors import CommandError, check_output_path, import_extra

DEFAULT_BATCH_BYTES = 64 * 2**20
DEFAULT_BATCH = 65536
RAW_BFLOAT16 = np.dtype("V2")


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "run",
        help="pool RoIs between .npy files of any size",
        description="Pool every RoI of ROIS.npy from FEATURES.npy into OUTPUT.npy. The files are "
        "memory-mapped and the RoIs go through in batches, so they may be larger than memory. "
        "OUTPUT.npy appears only once it is complete.",
    )
    parser.add_argument(
        "features", metavar="FEATURES.npy", type=Path, help="feature maps of shape (N, C, H, W)"
    )
    parser.add_argument(
        "rois",
        metavar="ROIS.npy",
        type=Path,
        help="boxes of shape (K, 5): image index, x1, y1, x2, y2 in image pixels",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT.npy",
        type=Path,
        help="written with shape (K, C, PH, PW) and the features' dtype",
    )
    parser.add_argument(
        "--output-size",
        metavar=("H", "W"),
        nargs="+",
        type=_bins,
        action=_OutputSize,
        required=True,
        help="height and width of each pooled map, or one number for both",
    )
    parser.add_argument(
        "--spatial-scale",
        metavar="SCALE",
        type=float,
        default=1.0,
        help="feature pixels per image pixel, such as 0.0625 (default: 1.0)",
    )
    parser.add_argument(
        "--sampling-ratio",
        metavar="S",
        type=int,
        help="samples per bin along each axis; -1 adapts them to the box "
        "(default: -1, with --mindspore the operator's own 2)",
    )
    convention = parser.add_mutually_exclusive_group()
    convention.add_argument(
        "--aligned",
        action="store_true",
        help="shift the boxes by half a feature pixel, pixel centres being at .5",
    )
    convention.add_argument(
        "--convention",
        metavar="NAME",
        choices=CONVENTIONS,
        help="pool as another system does: " + ", ".join(CONVENTIONS),
    )
    convention.add_argument(
        "--mindspore",
        metavar="MODE",
        type=int,
        choices=(0, 1),
        help="pool as MindSpore's ROIAlign with roi_end_mode MODE (0 or 1)",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="avg",
        help="what a bin takes of its samples: the average (default), the largest, or the largest "
        "weighted corner as ONNX defines it",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="NCHW",
        help="the order of both files' axes: channels first (default) or last",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="read features stored as two raw bytes (V2) as bfloat16; OUTPUT.npy is stored alike",
    )
    parser.add_argument(
        "--batch",
        metavar="ROIS",
        type=_positive_int,
        default=DEFAULT_BATCH,
        help=f"RoIs in one batch at most (default: {DEFAULT_BATCH})",
    )
    parser.add_argument(
        "--batch-bytes",
        metavar="BYTES",
        type=_positive_int,
        default=DEFAULT_BATCH_BYTES,
        help="bytes of output in one batch at most, though never less than one RoI "
        f"(default: {DEFAULT_BATCH_BYTES})",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bar")
    parser.set_defaults(command=run)


class _OutputSize(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2:
            parser.error(f"{option_string} takes one or two numbers; put it after the file names")
        setattr(namespace, self.dest, (values[0], values[-1]))


def _positive_int(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text}")
    return int(text)


def _bins(text):
    if not text.isdecimal():  # a file's name, where the option comes before
        raise argparse.ArgumentTypeError(f"no number: {text}; put it after the file names")
    return _positive_int(text)


def run(arguments):
    _check_paths(arguments)
    # Each batch maps its part of the files anew: pages of earlier batches then leave the process,
    # whose memory stays that of one batch.
    open_features = functools.partial(_open_features, arguments.features, arguments.bfloat16)
    pool = _pooling(arguments)
    features = open_features()
    num_rois = _check_rois(arguments.rois, len(features))
    # No RoIs at all: checks the other arguments, and tells the shape and dtype of the output.
    with _user_errors(TypeError, ValueError):
        empty = pool(features, np.zeros((0, 5), np.float32))
    del features
    roi_shape, dtype = empty.shape[1:], empty.dtype

    clock = [(0, time.perf_counter())]
    with _progress(num_rois, arguments.quiet) as done, _written_whole(arguments.output) as path:
        for start, out in _output_batches(path, (num_rois, *roi_shape), dtype, arguments):
            stop = start + len(out)
            with _user_errors(ValueError, first_row=start):
                pool(open_features(), _read_rois(arguments.rois, start, stop), out=out)
            done(len(out))
            # The start, the end of the first batch, which compiles, and the end of the last.
            clock[2:] = []
            clock.append((stop, time.perf_counter()))
    print(f"output: {arguments.output}")
    print(f"shape:  {(num_rois, *roi_shape)}")
    print(f"dtype:  {dtype}")
    _print_speed(clock)


@contextmanager
def _progress(num_rois, quiet):
    """Give a function that is told how many RoIs more are done, and shows it."""
    if quiet:
        yield lambda count: None
    else:
        with import_extra("tqdm").tqdm(total=num_rois, unit="RoI", file=sys.stderr) as bar:
            yield bar.update


def _print_speed(clock):
    (_, started), (done, ended) = clock[0], clock[-1]
    print(f"time:   {ended - started:.2f} s, compilation included")
    if len(clock) > 2:
        first, started = clock[1]
        rate = (done - first) / (ended - started)
        print(f"rate:   {rate:,.0f} RoIs/s after the first batch of {first}")
    elif done:
        print(f"rate:   {done / (ended - started):,.0f} RoIs/s, compilation included")


def _check_paths(arguments):
    check_output_path(arguments.output)
    if arguments.output.exists():
        for path in (arguments.features, arguments.rois):
            if path.exists() and arguments.output.samefile(path):
                raise CommandError(f"{arguments.output}: is an input as well as the output")


def _pooling(arguments):
    """Return ``pool(features, rois, out=None)`` in the convention that `arguments` name."""
    from numba_roialign import ROIAlign, roi_align

    ratio = arguments.sampling_ratio
    if arguments.mindspore is None:
        return functools.partial(
            roi_align,
            output_size=arguments.output_size,
            spatial_scale=arguments.spatial_scale,
            sampling_ratio=-1 if ratio is None else ratio,
            aligned=arguments.aligned,
            convention=arguments.convention,
            mode=arguments.mode,
            layout=arguments.layout,
        )
    if (arguments.mode, arguments.layout) != ("avg", "NCHW"):
        raise CommandError("--mode and --layout go with --convention, not --mindspore")
    with _user_errors(TypeError, ValueError):
        return ROIAlign(
            *arguments.output_size,
            arguments.spatial_scale,
            sample_num=2 if ratio is None else ratio,
            roi_end_mode=arguments.mindspore,
        )


@contextmanager
def _user_errors(*kinds, first_row=0):
    """Report errors of these kinds without a traceback, and with the row of the file."""
    from numba_roialign import InvalidRoIError

    try:
        yield
    except InvalidRoIError as error:
        raise CommandError(f"rois row {first_row + error.row} {error.problem}") from error
    except kinds as error:
        raise CommandError(str(error)) from error


def _open_npy(path):
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise CommandError(f"{path}: cannot be mapped as a .npy file ({error})") from error


def _open_features(path, bfloat16):
    features = _open_npy(path)
    if features.ndim != 4:
        raise CommandError(f"{path}: features must have four axes, not shape {features.shape}")
    if not features.dtype.isnative:
        # The package would copy such a map whole, and so for every batch.
        raise CommandError(f"{path}: features are byte-swapped ({features.dtype.str})")
    if bfloat16:
        if features.dtype != RAW_BFLOAT16:
            raise CommandError(f"{path}: --bfloat16 reads raw V2 values, not {features.dtype}")
        return features.view(_bfloat16())
    if features.dtype == RAW_BFLOAT16:
        raise CommandError(f"{path}: holds raw V2 values; if they are bfloat16, add --bfloat16")
    return features


def _bfloat16():
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        raise CommandError("--bfloat16 needs ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(bfloat16)


def _read_rois(path, start, stop):
    return np.array(_open_npy(path)[start:stop])


def _check_rois(path, num_images):
    """Return how many rows there are; a bad one is found here, not after hours of pooling."""
    rois = _open_npy(path)
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise CommandError(f"{path}: rois must have shape (K, 5), not {rois.shape}")
    if rois.dtype.kind not in "fiu":
        raise CommandError(f"{path}: rois must be numbers, not {rois.dtype}")
    num_rois = len(rois)
    for start in range(0, num_rois, DEFAULT_BATCH):
        rows = _read_rois(path, start, start + DEFAULT_BATCH)
        index = rows[:, 0]
        finite = np.isfinite(rows).all(axis=1)
        good = finite & (index >= 0) & (index < num_images)
        if not good.all():
            bad = int(np.argmin(good))
            reason = (
                f"names an image outside 0..{num_images - 1}" if finite[bad] else "is not finite"
            )
            raise CommandError(f"rois row {start + bad} {reason}: {rows[bad].tolist()}")
    return num_rois


@contextmanager
def _written_whole(path):
    """Give a temporary name beside `path`; it becomes `path` at the end, or goes on any error.

    A link stays, and what it points to is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _output_batches(path, shape, dtype, arguments):
    """Create a .npy file and yield the writable batches of its rows as ``(start, rows)``."""
    stored = RAW_BFLOAT16 if dtype.kind == "V" else dtype
    bytes_per_roi = stored.itemsize * math.prod(shape[1:])
    try:
        offset = np.lib.format.open_memmap(path, mode="w+", dtype=stored, shape=shape).offset
    except OSError as error:
        size = shape[0] * bytes_per_roi
        raise CommandError(f"{arguments.output}: {error.strerror}, for {size} bytes") from error
    if bytes_per_roi == 0:
        return
    _reserve(path, arguments.output)
    batch = max(1, min(arguments.batch, arguments.batch_bytes // bytes_per_roi))
    for start in range(0, shape[0], batch):
        rows = (min(batch, shape[0] - start), *shape[1:])
        position = offset + start * bytes_per_roi
        out = np.memmap(path, stored, mode="r+", offset=position, shape=rows)
        yield start, out.view(dtype)


def _reserve(path, output):
    """Take the file's disk space now: a disk that fills up under a mapping kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise CommandError(f"{output}: {error.strerror}") from error
