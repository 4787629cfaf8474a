"""``numba-roialign demo``: pool regions of a photograph and draw what comes out."""

import statistics
import time
from pathlib import Path

import numpy as np

from numba_roialign.cli._errors import CommandError, check_output_path, import_extra

DEFAULT_OUTPUT = "roialign_demo.png"
OUTPUT_SIZES = ((8, 8), (32, 32), (96, 96))
REPEATS = 5
# Inches in the figure: a cell of the grid, and the space above, around and left of the grid.
CELL, HEADER, SIDE, LABELS = 1.5, 0.45, 0.2, 1.15
COLOURS = ("#ffb000", "#00c2a8", "#ff5c8a", "#5aa9ff", "#b98cff")

# Boxes as fractions (x1, y1, x2, y2) of the picture's width and height.
HOPPER_REGIONS = {
    "face": (0.32, 0.22, 0.73, 0.56),
    "hat": (0.30, 0.02, 0.74, 0.24),
    "ribbons": (0.62, 0.77, 0.91, 0.92),
    "stars": (0.00, 0.06, 0.28, 0.36),
    "whole picture": (0.0, 0.0, 1.0, 1.0),
}
REGIONS = {
    "centre": (0.30, 0.30, 0.70, 0.70),
    "top left": (0.02, 0.02, 0.42, 0.42),
    "top right": (0.58, 0.02, 0.98, 0.42),
    "bottom": (0.20, 0.62, 0.80, 0.98),
    "whole picture": (0.0, 0.0, 1.0, 1.0),
}


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "demo",
        help="pool regions of a photograph and draw them",
        description="Pool several regions of a picture at several output sizes, draw them beside "
        "it, and time the calls.",
    )
    parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="?",
        type=Path,
        help="picture to pool from (default: a photograph that comes with matplotlib)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUTPUT.png",
        type=Path,
        default=Path(DEFAULT_OUTPUT),
        help=f"picture to write (default: {DEFAULT_OUTPUT})",
    )
    parser.set_defaults(command=run)


def run(arguments):
    import_extra("matplotlib")
    check_output_path(arguments.output)
    regions = HOPPER_REGIONS if arguments.image is None else REGIONS
    features = load_features(arguments.image or _sample_photograph())
    rois = region_rois(regions, *features.shape[2:])
    results = [_timed_pool(features, rois, size) for size in OUTPUT_SIZES]
    crops = [crop for crop, _, _ in results]
    draw(features, rois, list(regions), crops, arguments.output)
    _print_table(features, results)
    print(f"\nwrote {arguments.output}")


def _sample_photograph():
    cbook = import_extra("matplotlib.cbook")
    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def load_features(path):
    """Read a picture of any kind as features of shape (1, 3, H, W), float32 in [0, 1]."""
    image_module, image_ops = import_extra("PIL.Image"), import_extra("PIL.ImageOps")
    try:
        with image_module.open(path) as image:
            upright = image_ops.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = image_module.fromarray(_eight_bits(np.asarray(upright)))
            rgba = upright.convert("RGBA")
    except (ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise CommandError(f"{path}: cannot be read as a picture ({error})") from error
    page = image_module.new("RGBA", rgba.size, "white")
    rgb = np.asarray(image_module.alpha_composite(page, rgba).convert("RGB"))
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _eight_bits(grey):
    # Pillow clips greyscale pictures of 16 bits instead of scaling them.
    return (grey >> 8).clip(0, 255).astype(np.uint8)


def region_rois(regions, height, width):
    """Return the boxes of `regions` in pixels, as rois of shape (K, 5) for image 0."""
    boxes = np.array(list(regions.values()), np.float32) * (width, height, width, height)
    return np.insert(boxes, 0, 0, axis=1).astype(np.float32)


def _timed_pool(features, rois, output_size):
    """Return the pooled crops, the time of the first call and the median of later ones."""
    from numba_roialign import roi_align

    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        crops = roi_align(features, rois, output_size, aligned=True)
        seconds.append(time.perf_counter() - started)
    return crops, seconds[0], statistics.median(seconds[1:])


def _print_table(features, results):
    rows = [("size", "output shape", "first call", "later calls")]
    for crops, first, later in results:
        size = "{}x{}".format(*crops.shape[2:])
        rows.append((size, str(crops.shape), f"{first * 1e3:.2f} ms", f"{later * 1e3:.2f} ms"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"features {features.shape} {features.dtype}, aligned=True, sampling_ratio=-1\n")
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\nA first call may compile for seconds, once; later calls: median of {REPEATS}.")


def draw(features, rois, names, crops, path):
    """Write a PNG of the photograph with its boxes, and beside it the grid of pooled crops."""
    figure_module = import_extra("matplotlib.figure")
    agg = import_extra("matplotlib.backends.backend_agg")

    grid_height, grid_width = CELL * len(names), CELL * len(crops)
    height, width = features.shape[2:]
    photo_width = min(max(grid_height * width / height, 3.0), 1.6 * grid_height)
    size = (photo_width + grid_width + SIDE + LABELS + SIDE, HEADER + grid_height + SIDE)
    figure = figure_module.Figure(figsize=size)
    agg.FigureCanvasAgg(figure)

    bottom, top = SIDE / size[1], 1 - HEADER / size[1]
    photo_right = (SIDE + photo_width) / size[0]
    grid_left, grid_right = photo_right + LABELS / size[0], 1 - SIDE / size[0]
    photo_place = {"left": SIDE / size[0], "right": photo_right, "bottom": bottom, "top": top}
    grid_place = {"left": grid_left, "right": grid_right, "bottom": bottom, "top": top}
    _draw_photograph(figure.add_gridspec(1, 1, **photo_place), features, rois)
    _draw_grid(
        figure.add_gridspec(len(names), len(crops), hspace=0.06, wspace=0.06, **grid_place),
        names,
        crops,
    )
    figure.savefig(path, format="png", dpi=110)


def _draw_photograph(grid, features, rois):
    patches = import_extra("matplotlib.patches")
    axes = grid.figure.add_subplot(grid[0])
    axes.set_axis_off()
    axes.imshow(_as_picture(features[0]))
    axes.set_title(f"features {features.shape}, {len(rois)} rois", fontsize=11)
    for i, (_, x1, y1, x2, y2) in enumerate(rois.tolist()):
        colour = COLOURS[i % len(COLOURS)]
        # imshow puts the centre of the first pixel at 0, aligned boxes put it at 0.5.
        corner = (x1 - 0.5, y1 - 0.5)
        box = patches.Rectangle(corner, x2 - x1, y2 - y1, fill=False, clip_on=False)
        box.set(edgecolor=colour, linewidth=2.5)
        axes.add_patch(box)
        axes.annotate(
            str(i + 1),
            corner,
            xytext=(4, -4),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=10,
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "none"},
        )


def _draw_grid(grid, names, crops):
    for row, name in enumerate(names):
        colour = COLOURS[row % len(COLOURS)]
        for column, pooled in enumerate(crops):
            axes = grid.figure.add_subplot(grid[row, column])
            axes.imshow(_as_picture(pooled[row]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=colour, linewidth=2.5)
            if row == 0:
                axes.set_title("{} x {}".format(*pooled.shape[2:]), fontsize=11)
            if column == 0:
                label = f"{row + 1}  " + name.replace(" ", "\n")
                axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)


def _as_picture(channels):
    return channels.transpose(1, 2, 0).clip(0, 1)
