"""Plots of a run, from its JSON alone."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from . import figures

COLOURS = {
    name: f"C{n}"
    for n, name in enumerate(
        ("numba_roialign", "torchvision", "onnxruntime", "openvino", "mindspore", "paddle")
    )
}
VARIANTS = {"-scalar": "lightskyblue", "-nhwc": "navy", "-float16": "slateblue"}


def style(run, name):
    """Return how an implementation is drawn, the same in every plot: ours bold, peers plain."""
    kind = run["implementations"][name]["kind"]
    variant = next((colour for end, colour in VARIANTS.items() if name.endswith(end)), "grey")
    return {
        "color": COLOURS.get(name, variant),
        "marker": {"ours": "o", "variant": "d", "baseline": "x"}.get(kind, "s"),
        "linewidth": 2.5 if kind == "ours" else 1,
        "zorder": 3 if kind == "ours" else 2,
        "label": name,
    }


def swept(sweep):
    """Return the implementations that were timed somewhere in a sweep."""
    return {
        name
        for point in sweep["points"]
        for name in point["results"]
        if figures.seconds_of(point, name)
    }


def plain_numbers(axis):
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_times(run):
    """Return milliseconds of each implementation per workload, and our ratio beside."""
    workloads = run["workloads"]
    height = 1.6 + 0.28 * len(workloads)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    for name in run["implementations"]:
        points = [
            (row, result["seconds"], figures.seconds_of(workload, name))
            for row, workload in enumerate(workloads.values())
            if (result := workload["results"].get(name, {})).get("seconds")
        ]
        if not points:
            continue
        rows, samples, medians = zip(*points, strict=True)
        spread = [
            [(middle - min(s)) * 1e3 for s, middle in zip(samples, medians, strict=True)],
            [(max(s) - middle) * 1e3 for s, middle in zip(samples, medians, strict=True)],
        ]
        look = style(run, name) | {"linestyle": "", "markersize": 5, "elinewidth": 1}
        left.errorbar([m * 1e3 for m in medians], rows, xerr=spread, **look)
    left.set_xlabel(f"{figures.operation(run)}, ms per call (median, fastest and slowest round)")
    left.set_xscale("log")
    left.set_yticks(range(len(workloads)), workloads)
    left.invert_yaxis()
    left.grid(alpha=0.3)
    ratios = figures.ratios(run)
    rows = [row for row, name in enumerate(workloads) if name in ratios]
    values = list(ratios.values())
    colours = ["C0" if value >= 1 else "C3" for value in values]
    right.barh(rows, [value - 1 for value in values], left=1, color=colours)
    right.axvline(1, color="black", linewidth=1)
    right.set(xscale="log", xlabel="times the fastest peer")
    right.grid(alpha=0.3, axis="x")
    plain_numbers(left.xaxis)
    plain_numbers(right.xaxis)
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_minor_locator(NullLocator())  # which would label a range below one decade
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def draw_sweeps(run):
    """Return how the time grows along each sweep, both axes logarithmic."""
    sweeps = run["sweeps"]
    columns = min(3, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure = Figure(figsize=(4 * columns, 0.6 + 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    handles = {}
    for panel, sweep in zip(panels, sweeps.values(), strict=False):
        names = swept(sweep)
        for name in run["implementations"]:
            if name not in names:
                continue
            medians = [figures.seconds_of(point, name) for point in sweep["points"]]
            points = [
                (value, seconds * 1e3)
                for value, seconds in zip(sweep["values"], medians, strict=True)
                if seconds
            ]
            (handles[name],) = panel.plot(*zip(*points, strict=True), **style(run, name))
        panel.set(xscale="log", yscale="log", xlabel=sweep["axis"])
        panel.set_ylabel(f"{figures.operation(run)}, ms per call")
        panel.set_xticks(sweep["values"], minor=False)
        panel.xaxis.set_minor_locator(NullLocator())
        plain_numbers(panel.xaxis)
        panel.grid(alpha=0.3)
    for panel in list(figure.axes)[len(sweeps) :]:
        panel.remove()
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=5)
    return figure


def draw(run, path):
    """Draw beside the JSON file `path`; return the paths of the pictures."""
    drawings = {path.with_suffix(".png"): draw_times(run)}
    if run.get("sweeps"):
        drawings[path.with_name(f"{path.stem}-sweeps.png")] = draw_sweeps(run)
    for picture, figure in drawings.items():
        figure.savefig(picture, dpi=110)
    return list(drawings)
