"""Tables in Markdown from the JSON of a run, and their place in a README."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from . import figures, plots

# Where a README shows a run of each operation and target: between NAME:start and NAME:end.
MARKERS = {
    ("cpu", "pool"): "bench",
    ("cpu", "backward"): "bench-backward",
    ("cuda", "pool"): "bench-cuda",
    ("cuda", "backward"): "bench-cuda-backward",
}


def table(header, rows):
    """Return a table: its first column to the left, the others to the right."""
    rule = [":---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows]) + "\n"


def number(value, digits=3):
    """Return a number to some significant digits, without an exponent; a dash for None."""
    if value is None:
        return "-"
    if value <= 0:
        return "0"
    value = float(f"{value:.{digits}g}")  # first, for rounding may add a digit: 99.96
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"


def milliseconds(workload, name):
    """Return the median, or why there is none."""
    seconds = figures.seconds_of(workload, name)
    if seconds is not None:
        return number(seconds * 1e3)
    return "**wrong**" if workload["results"].get(name, {}).get("wrong") else "-"


def with_spread(workload, name):
    """Return the median with the fastest and the slowest round."""
    if figures.seconds_of(workload, name) is None:
        return milliseconds(workload, name)
    low, high = (number(f(workload["results"][name]["seconds"]) * 1e3) for f in (min, max))
    return f"{milliseconds(workload, name)} ({low} to {high})"


def times(value):
    """Return a ratio; a loss stands out."""
    if value is None:
        return "-"
    return f"{number(value)}x" if value >= 1 else f"**{number(value)}x**"


def percent(part, whole):
    return f"{100 * part / whole:.0f} %" if part and whole else "-"


def present(run):
    """Return the implementations that were timed on some workload."""
    return [
        name
        for name in run["implementations"]
        if any(figures.seconds_of(workload, name) for workload in run["workloads"].values())
    ]


def circumstances(run):
    machine = run["machine"]
    versions = {}
    for about in run["implementations"].values():
        versions |= about.get("versions", {})
    text = [
        f"{machine['cpu']}, {machine['cores']} cores, {run['threads']} threads each; "
        f"{machine['system']}, Python {machine['python']}; {machine['date']}",
        f"on {machine['device']}; times are the device's" if machine.get("device") else None,
        f"revision {machine['revision']}" if machine["revision"] else None,
        f"copy bandwidth {number(run['copy_rate'])} GB/s" if run["copy_rate"] else None,
        f"other processes used {number(run['bystanders'], 2)} cores"
        if run.get("bystanders")
        else None,
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    ]
    return "; ".join(part for part in text if part) + ".\n"


def missing(run):
    """Return what was not timed at all, each with its reason."""
    return [
        f"{name} ({about['missing']})"
        for name, about in run["implementations"].items()
        if "missing" in about
    ]


def summary(run):
    """Return the outcome in a few sentences, losses counted."""
    ratios = figures.ratios(run)
    if not ratios:
        text = "No peer was timed."
    else:
        worst = min(ratios, key=ratios.get)
        losses = sum(value < 1 for value in ratios.values())
        text = (
            f"{figures.operation(run).capitalize()}, against the fastest peer of each of "
            f"{len(ratios)} workloads: geometric mean {times(figures.mean_ratio(run))}, "
            f"least {times(ratios[worst])} (`{worst}`), losses {losses}."
        )
    absent = missing(run)
    return text + (f" Not timed: {'; '.join(absent)}.\n" if absent else "\n")


def main_table(run):
    ours = figures.our_name(run)
    rows = []
    for key, workload in run["workloads"].items():
        peer = figures.fastest_peer(run, workload)
        rate = figures.rate(workload, ours)
        rows.append(
            [
                f"`{key}`",
                with_spread(workload, ours),
                f"{peer} {with_spread(workload, peer)}" if peer else "-",
                times(figures.ratio(run, workload)),
                number(rate),
                percent(rate, run["copy_rate"]),
            ]
        )
    header = ["workload", f"{ours}, ms", "fastest peer, ms", "ratio", "GB/s", "of copy"]
    return table(header, rows)


def workload_table(run):
    rows = []
    for key, workload in run["workloads"].items():
        boxes = ", ".join(
            f"{count} of {low:g} to {high:g}" for count, low, high in workload["boxes"]
        )
        rows.append(
            [
                f"`{key}`",
                " x ".join(map(str, workload["shape"])),
                str(workload["stride"]),
                boxes,
                f"{workload['bins']} x {workload['bins']}",
                str(workload["sampling"] or "adaptive"),
                str(workload["aligned"]),
            ]
        )
    header = ["workload", "map", "stride", "boxes, pixels", "bins", "samples", "aligned"]
    return table(header, rows)


def per_implementation(run, names, cell):
    """Return a table of workloads and implementations."""
    rows = [
        [f"`{key}`", *(cell(workload, name) for name in names)]
        for key, workload in run["workloads"].items()
    ]
    return table(["workload", *names], rows)


def time_table(run):
    return per_implementation(run, present(run), milliseconds)


def error_cell(workload, name):
    error = workload["results"].get(name, {}).get("error")
    return f"{error:.1e}" if error is not None else "-"


def memory_cell(workload, name):
    extra = figures.extra_bytes(workload, name)
    return number(extra / 1e6) if extra is not None else "-"


def seconds(value):
    return "-" if value is None else f"{value:.2f}"


def implementation_table(run):
    """Return a table of implementations: how fast they are, and how soon they begin."""
    rows = []
    for name, about in run["implementations"].items():
        if "missing" in about:
            continue
        mean = figures.mean_ratio(run, name) if name in present(run) else None
        rows.append(
            [
                name,
                "-" if mean is None else f"{number(mean)}x",
                seconds(about["setup_seconds"]),
                seconds(about["first_seconds"]),
                seconds(about.get("compile_seconds")),
            ]
        )
    header = [
        "implementation",
        "fastest peer's time over its own, geometric mean",
        "import, s",
        "first call, s",
        "both, with an empty cache, s",
    ]
    return table(header, rows)


def skipped(run):
    """Return why single workloads were left out, a line per reason."""
    reasons = {}
    for key, workload in run["workloads"].items():
        for name, result in workload["results"].items():
            if result.get("skipped", "missing") != "missing":
                reasons.setdefault((name, result["skipped"]), []).append(f"`{key}`")
    return "".join(
        f"- {name}: {reason} ({', '.join(keys)})\n" for (name, reason), keys in reasons.items()
    )


def call_cell(workload, name):
    seconds = figures.call_seconds_of(workload, name)
    return number(seconds * 1e3) if seconds is not None else "-"


def call_table(run, names):
    """Return a table of calls from end to end, where they were timed apart; else nothing."""
    workloads = run["workloads"].values()
    if any(figures.call_seconds_of(workload, name) for workload in workloads for name in names):
        title = "Medians from a call to its result, the host's work and the wait included, ms"
        yield title, per_implementation(run, names, call_cell)


def sweep_tables(run):
    for name, sweep in run.get("sweeps", {}).items():
        names = [key for key in run["implementations"] if key in plots.swept(sweep)]
        rows = [
            [str(value), *(milliseconds(point, key) for key in names)]
            for value, point in zip(sweep["values"], sweep["points"], strict=True)
        ]
        yield f"Sweep: {name}, ms", table([sweep["axis"], *names], rows)


def full(run, pictures=()):
    """Return the whole report."""
    names = present(run)
    sections = [
        ("Against the fastest peer", main_table(run)),
        ("Medians of all, ms", time_table(run)),
        *call_table(run, names),
        ("Largest error against float64", per_implementation(run, names, error_cell)),
        (
            "Peak memory of a call beyond its inputs, MB",
            per_implementation(run, names, memory_cell),
        ),
        ("Implementations", implementation_table(run)),
        ("Workloads", workload_table(run)),
        *sweep_tables(run),
    ]
    if left_out := skipped(run):
        sections.append(("Left out", left_out))
    title = f"# Benchmark: {run['name']}, {figures.operation(run)}\n"
    text = [title, summary(run), circumstances(run)]
    text += [f"![{picture.stem}]({picture.name})\n" for picture in pictures]
    text += [f"## {title}\n\n{body}" for title, body in sections]
    return "\n".join(text)


def excerpt(run, picture, folder="."):
    """Return what a README shows; of a gradient, no table."""
    text = [summary(run)]
    if run.get("operation", "pool") == "pool":
        text += [main_table(run), implementation_table(run)]
    path = Path(os.path.relpath(picture, folder)).as_posix()
    return "\n".join([*text, circumstances(run), f"![{picture.stem}]({path})\n"])


def replace_block(text, name, block):
    """Return a text with what is between the two marker comments of a name replaced."""
    marked = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"no <!-- {name}:start --> and <!-- {name}:end --> in the README")
    return marked.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", text, count=1)


def write(run, path, readme=None):
    """Write tables and plots beside the JSON file `path`, and the excerpt into a README."""
    pictures = plots.draw(run, path)
    path.with_suffix(".md").write_text(full(run, pictures), encoding="utf-8")
    if readme is not None:
        block = excerpt(run, pictures[0], readme.resolve().parent)
        old = readme.read_text(encoding="utf-8")
        name = MARKERS[run.get("target", "cpu"), run.get("operation", "pool")]
        readme.write_text(replace_block(old, name, block), encoding="utf-8")
