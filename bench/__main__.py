"""Time the package against its peers on this machine, from a checkout: ``python -m bench``.

It times the pooling or, with --backward, the gradient of the features.

Every implementation is first checked against a float64 reference, then timed in a process of its
own, in turn with the others and with as many threads. Results go to bench/results: raw samples as
JSON, tables as Markdown, plots as PNG.

    python -m bench --quick                     a few workloads, few rounds
    python -m bench --sweeps                    also how cost grows
    python -m bench --backward --name backward  the gradient, beside the results of the pooling
    python -m bench --python mindspore=PYTHON   run a peer by the interpreter that has it
    python -m bench report bench/results/NAME.json --readme README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from . import cuda_implementations, implementations, machine, report
from .remote import ROOT
from .rig import Effort, Rig, copy_rate
from .workloads import WORKLOADS, sweeps

SPECS = {"cpu": implementations.SPECS, "cuda": cuda_implementations.SPECS}
ALL_SPECS = [*SPECS["cpu"], *SPECS["cuda"]]

QUICK = Effort(rounds=5, round_seconds=0.05, slow_seconds=1.0, fewest_rounds=2)
DEVICE = Effort(round_seconds=0.02, slow_seconds=1.0)  # by its own clock, which needs less
SWEEPS = replace(Effort(), rounds=5, slow_seconds=1.0, fewest_rounds=2)


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure (the default command)")
    run.add_argument("--quick", action="store_true", help="a few workloads, few rounds")
    run.add_argument(
        "--backward",
        dest="operation",
        action="store_const",
        const="backward",
        default="pool",
        help="time the gradient of the features instead of the pooling",
    )
    run.add_argument("--target", choices=list(SPECS), default="cpu", help="what is timed (cpu)")
    run.add_argument("--sweeps", action="store_true", help="also time how cost grows")
    run.add_argument("--threads", type=int, default=machine.usable_cores(), metavar="N")
    run.add_argument("--rounds", type=int, metavar="N")
    run.add_argument("--only", nargs="+", metavar="PATTERN", help="workloads, by name or pattern")
    run.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        choices=sorted({spec.name for spec in ALL_SPECS}),
        help="; ".join(
            f"on the target {target}: {', '.join(spec.name for spec in specs)}"
            for target, specs in SPECS.items()
        )
        + "; the first is always timed",
    )
    run.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="run an implementation by another interpreter (repeatable)",
    )
    run.add_argument("--name", help="of the files in bench/results (that of the target)")
    run.add_argument("--list", action="store_true", help="list the workloads and stop")
    again = commands.add_parser("report", help="make tables and plots again from a JSON file")
    again.add_argument("json", type=Path)
    for command in (run, again):
        command.add_argument("--readme", type=Path, help="replace the table in this file")
    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        argv = ["run", *argv]
    return parser, parser.parse_args(argv)


def chosen_specs(names, pythons, error, target="cpu"):
    """Return the specs by name, ours always first, with their interpreters."""
    own = SPECS[target]
    specs = [spec for spec in own if not names or spec.kind == "ours" or spec.name in names]
    interpreters = dict(pair.partition("=")[::2] for pair in pythons)
    if unknown := set(interpreters) - {spec.name for spec in own}:
        error(f"--python: no implementation named {', '.join(sorted(unknown))}")
    return [replace(spec, python=interpreters.get(spec.name, spec.python)) for spec in specs]


def chosen_workloads(arguments, error):
    patterns = arguments.only
    if not patterns:
        return [w for w in WORKLOADS if w.quick or not arguments.quick]
    found = [w for w in WORKLOADS if any(fnmatch(w.name, pattern) for pattern in patterns)]
    if not found:
        error(f"--only: no workload matches {' '.join(patterns)}")
    return found


def effort(arguments, standard):
    """Return the effort for the workloads or for the sweeps, as the options ask."""
    chosen = QUICK if arguments.quick else standard
    return replace(chosen, rounds=arguments.rounds) if arguments.rounds else chosen


def measure_workloads(run, specs, workloads, arguments, save):
    standard = DEVICE if arguments.target == "cuda" else Effort()
    about = {"effort": effort(arguments, standard), "operation": arguments.operation}
    with Rig(specs, arguments.threads, **about) as rig:
        run["implementations"] = rig.implementations
        if problem := rig.implementations[specs[0].name].get("missing"):
            raise SystemExit(f"{specs[0].name} itself does not run here: {problem}")
        for workload in (progress := tqdm(workloads, unit="workload")):
            progress.set_description(workload.name)
            run["workloads"][workload.name] = rig.measure(workload)
            save()


def measure_sweeps(run, specs, arguments, save):
    present = [s for s in specs if "missing" not in run["implementations"][s.name]]
    about = {"effort": effort(arguments, SWEEPS), "operation": arguments.operation}
    for sweep in sweeps(arguments.threads, arguments.quick):
        counts = sweep.threads or [arguments.threads] * len(sweep.values)
        points = []
        for count in sorted(set(counts)):
            with Rig(present, count, first_use=False, **about) as rig:
                group = [w for w, n in zip(sweep.workloads, counts, strict=True) if n == count]
                points += [rig.measure(w) for w in tqdm(group, desc=f"{sweep.name}, {count}")]
        swept = {"axis": sweep.axis, "values": sweep.values, "points": points}
        run.setdefault("sweeps", {})[sweep.name] = swept
        save()


def measure(arguments, error):
    """Run everything that was asked for; the JSON is complete after each workload."""
    target = arguments.target
    specs = chosen_specs(arguments.implementations, arguments.python, error, target)
    workloads = chosen_workloads(arguments, error)
    path = ROOT / "bench" / "results" / f"{arguments.name or target}.json"
    path.parent.mkdir(exist_ok=True)
    run = {
        "name": arguments.name or target,
        "target": target,
        "operation": arguments.operation,
        "threads": arguments.threads,
        "quick": arguments.quick,
        "machine": machine.facts() | ({"device": machine.device()} if target == "cuda" else {}),
        "copy_rate": copy_rate(arguments.threads, target),
        "workloads": {},
    }

    def save():
        path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")

    bystanders = machine.Bystanders()
    measure_workloads(run, specs, workloads, arguments, save)
    run["bystanders"] = bystanders.cores()
    if arguments.sweeps:
        measure_sweeps(run, specs, arguments, save)
    save()
    return path, run


def main(argv=None):
    parser, arguments = parse(sys.argv[1:] if argv is None else argv)
    if arguments.command == "report":
        path, run = arguments.json, json.loads(arguments.json.read_text(encoding="utf-8"))
    elif arguments.list:
        print("\n".join(workload.name for workload in WORKLOADS))
        return
    else:
        path, run = measure(arguments, parser.error)
    report.write(run, path, arguments.readme)
    print(f"\n{report.summary(run)}\n{report.time_table(run)}")


if __name__ == "__main__":
    main()
