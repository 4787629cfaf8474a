"""The benchmark program: its rig refuses wrong results, and its tables follow from its JSON."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

from bench import __main__ as program
from bench import figures, plain_numpy, report, rig, truth
from bench.implementations import SPECS, Implementation, Ours, PlainNumpy, Spec, Unsupported
from bench.operations import OPERATIONS
from bench.workloads import WORKLOADS, Sweep, Workload, sweeps

from . import reference

pytestmark = [
    pytest.mark.only("cpu"),  # the program times the CPU; the simulator has no say in it
    pytest.mark.xdist_group("bench"),  # one process measures, for all tests
]

TINY = Workload("tiny", (2, 3, 9, 11), 4, ((5, 4, 30),), 3)
ADAPTIVE = Workload("adaptive", (1, 40, 30, 20), 2, ((6, 2, 60),), 2, 0, aligned=False)
HASTY = rig.Effort(rounds=3, round_seconds=0.001, slow_seconds=0.01, fewest_rounds=2)
MARKED = "before\n<!-- bench:start -->\nold\n<!-- bench:end -->\nafter\n"


class Wrong(PlainNumpy):
    """Misplaces every sample by half a pixel."""

    def prepare(self, problem):
        return super().prepare(problem._replace(aligned=not problem.aligned))


class Dying(PlainNumpy):
    """Ends its process on adaptive workloads."""

    def prepare(self, problem):
        if problem.sampling == 0:
            raise SystemExit(3)
        return super().prepare(problem)


class Choosy(PlainNumpy):
    def prepare(self, problem):
        if problem.sampling == 0:
            raise Unsupported("has no adaptive sampling")
        return super().prepare(problem)


class Unsteady(PlainNumpy):
    """Has its last box wrong in one call of five, as where threads race."""

    def prepare(self, problem):
        call, made = super().prepare(problem), 0

        def sometimes_wrong():
            nonlocal made
            made += 1
            result = call()
            result[-1] += made % 5 == 0
            return result

        return sometimes_wrong


class WrongGradient(Ours):
    """Misplaces every sample by half a pixel, and only in the gradient."""

    def prepare_backward(self, problem):
        return super().prepare_backward(problem._replace(aligned=not problem.aligned))


class Absent(Implementation):
    def __init__(self, threads):
        import no_such_library  # noqa: F401


def local(name, kind="peer"):
    return Spec(name.lower(), kind, f"{__name__}:{name}")


def named(*names):
    return [spec for spec in SPECS if spec.name in names]


def measured(specs, operation):
    """Return a whole run in small."""
    with rig.Rig(specs, 1, HASTY, first_use=False, operation=operation) as workers:
        workloads = {w.name: workers.measure(w) for w in (TINY, ADAPTIVE)}
        machine = {"cpu": "a CPU", "cores": 2, "system": "a system", "python": "3"}
        return {
            "name": "test",
            "operation": operation,
            "threads": 1,
            "machine": machine | {"date": "today", "revision": None},
            "copy_rate": 10.0,
            "implementations": workers.implementations,
            "workloads": workloads,
        }


@pytest.fixture(scope="module")
def run():
    """Pooling by us, NumPy, and adapters that fail in every way."""
    failing = map(local, ("Wrong", "Dying", "Choosy", "Absent"))
    return measured([*named("numba_roialign", "numpy"), *failing], "pool")


@pytest.fixture(scope="module")
def backward_run():
    """The gradient by us and our variants, by one that is wrong and by one that has none."""
    ours = [spec for spec in SPECS if spec.kind in ("ours", "variant")]
    return measured([*ours, *named("numpy"), local("WrongGradient")], "backward")


def test_our_results_are_checked_and_timed(run):
    for workload in run["workloads"].values():
        result = workload["results"]["numba_roialign"]
        assert result["error"] < 1e-5
        assert len(result["seconds"]) == 3
        assert all(seconds > 0 for seconds in result["seconds"])


def test_a_wrong_implementation_is_refused(run):
    for workload in run["workloads"].values():
        result = workload["results"]["wrong"]
        assert result["wrong"]
        assert "seconds" not in result


def test_an_implementation_that_is_wrong_now_and_then_is_refused():
    effort = rig.Effort(rounds=2, round_seconds=0.2, fewest_rounds=2)
    with rig.Rig([local("Unsteady"), *named("numpy")], 1, effort, first_use=False) as workers:
        results = workers.measure(TINY)["results"]
    assert results["numpy"]["seconds"]
    assert results["unsteady"]["wrong"]
    assert results["unsteady"]["skipped"] == "wrong: calls differ by 1.0e+00"
    assert "seconds" not in results["unsteady"]


def test_a_process_that_ends_is_reported_and_harms_no_other_workload():
    with rig.Rig([local("Dying")], 1, HASTY, first_use=False) as workers:
        results = [workers.measure(w)["results"]["dying"] for w in (TINY, ADAPTIVE, TINY)]
    assert "code 3" in results[1]["skipped"]
    assert results[0]["seconds"]
    assert results[2]["seconds"]


def test_what_is_unsupported_or_missing_is_named(run):
    skipped = run["workloads"]["adaptive"]["results"]["choosy"]["skipped"]
    assert skipped == "has no adaptive sampling"
    assert "no_such_library" in run["implementations"]["absent"]["missing"]
    text = report.full(run)
    assert "absent (ModuleNotFoundError" in text
    assert "choosy: has no adaptive sampling (`adaptive`)" in text
    assert "**wrong**" not in text  # never right, so it has no column
    assert "- wrong: wrong: error" in text


@pytest.mark.parametrize("workload", [TINY, ADAPTIVE], ids=lambda workload: workload.name)
def test_plain_numpy_pools_as_the_reference(workload):
    problem = workload.build()
    size = (problem.bins, problem.bins)
    expected = reference.roi_align(*problem[:2], size, *problem[3:])
    np.testing.assert_allclose(plain_numpy.roi_align(problem), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workload", [TINY, ADAPTIVE], ids=lambda workload: workload.name)
def test_the_truth_of_the_gradient_is_the_reference(workload):
    problem = workload.build()
    images, channels = truth.gradient_subset(problem)
    assert images == list(range(workload.shape[0]))
    expected = reference.pool_boxes_backward(
        problem.gradient(),
        problem.rois,
        problem.features.shape,
        problem.scale,
        problem.sampling,
        reference.ALIGNED if problem.aligned else reference.LEGACY,
    )
    result = truth.gradient_truth(problem, images, channels)
    np.testing.assert_allclose(result, expected[:, channels], rtol=0, atol=1e-12)


def test_our_gradients_are_checked_and_timed(backward_run):
    for workload in backward_run["workloads"].values():
        for name, about in backward_run["implementations"].items():
            if about["kind"] in ("ours", "variant"):
                result = workload["results"][name]
                assert result["error"] < (1e-2 if name.endswith("float16") else 1e-5)
                assert len(result["seconds"]) == 3


def test_a_wrong_gradient_is_refused_and_none_is_named(backward_run):
    for workload in backward_run["workloads"].values():
        assert workload["results"]["wronggradient"]["wrong"]
    assert backward_run["implementations"]["numpy"]["missing"] == "it has no gradient"


def test_the_gradient_is_the_same_every_time():
    problem = TINY.build()
    assert problem.gradient().shape == problem.pooled_shape == (5, 3, 3, 3)
    assert problem.gradient().dtype == np.float32
    np.testing.assert_array_equal(problem.gradient(), TINY.build().gradient())


def test_zeros_are_no_gradient_and_a_narrow_dtype_may_err_by_its_rounding():
    backward = OPERATIONS["backward"]
    assert backward.allowed(np.array([-1e-3, 0]), 0.0) == pytest.approx(1e-5)
    assert backward.allowed(np.array([-20.0, 0]), 0.0) == pytest.approx(1e-2)
    assert backward.allowed(np.array([-20.0, 0]), 2e-3) == pytest.approx(5e-2)


def test_the_gradient_is_read_once_and_the_map_written_once():
    assert plain_numpy.gradient_bytes(TINY.build()) == (5 * 3 * 3 * 3 + 2 * 3 * 9 * 11) * 4


def test_compulsory_bytes_counts_pixels_once():
    problem = Workload("one", (1, 2, 8, 8), 1, ((1, 3, 3),), 1, 1).build()
    rois = np.array([[0, 2, 2, 4, 4], [0, 2, 2, 4, 4]], np.float32)
    # each samples at (2.5, 2.5): 4 pixels, shared, and one output each, on 2 channels
    assert plain_numpy.compulsory_bytes(problem._replace(rois=rois)) == (4 + 2) * 2 * 4


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_boxes_are_the_same_every_time_and_inside(workload):
    small = Workload(**{**vars(workload), "shape": (1, 1, *workload.shape[2:])})
    problem = small.build()
    np.testing.assert_array_equal(problem.rois, small.build().rois)
    _, x1, y1, x2, y2 = problem.rois.T
    height, width = (n * workload.stride for n in workload.shape[2:])
    assert len(problem.rois) == workload.count
    assert (x1 >= 0).all() and (y1 >= 0).all()
    assert (x2 <= width + 1e-3).all() and (y2 <= height + 1e-3).all()
    assert (x1 < x2).all() and (y1 < y2).all()


def test_the_check_covers_small_workloads_whole_and_large_ones_in_part():
    assert truth.subset(TINY.build()) == (list(range(5)), list(range(3)))
    problem = Workload("large", (1, 40, 400, 400), 1, ((900, 8, 390),), 7, 0).build()
    rows, channels = truth.subset(problem)
    assert 0 < len(rows) < 900
    assert int(truth.sample_counts(problem).argmax()) in rows
    assert len(channels) == len(set(channels)) == truth.LARGEST_CHANNELS
    assert {0, 39} <= set(channels)


def test_missing_numbers_are_an_infinite_error():
    assert truth.largest_error(np.array([np.nan]), np.zeros(1)) == np.inf
    assert truth.largest_error(np.zeros(2), np.zeros(1)) == np.inf


def invented(**medians):
    """Return a run of two workloads with these medians for us and two peers, in seconds."""
    kinds = {"numba_roialign": "ours", "numpy": "baseline", "a": "peer", "b": "peer"}
    names = ("first", "second")
    return {
        "implementations": {name: {"kind": kind} for name, kind in kinds.items()},
        "workloads": {
            workload: {
                "compulsory_bytes": 2e9,
                "results": {
                    name: {"seconds": [9.0, seconds[n], 0.0]} for name, seconds in medians.items()
                },
            }
            for n, workload in enumerate(names)
        },
    }


def test_ratios_are_to_the_fastest_peer_and_losses_show():
    run = invented(numba_roialign=[1, 4], numpy=[0.1, 0.1], a=[8, 3], b=[9, 2])
    assert figures.ratios(run) == {"first": 8, "second": 0.5}
    assert figures.mean_ratio(run) == pytest.approx(2)
    assert figures.rate(run["workloads"]["first"], "numba_roialign") == 2
    assert "**0.500x**" in report.times(figures.ratios(run)["second"])
    assert "losses 1" in report.summary(run)


def test_the_report_says_what_was_timed(backward_run, tmp_path):
    old = invented(numba_roialign=[1, 4], a=[8, 3])
    assert report.summary(old).startswith("Pooling, against")  # a file without the key
    assert report.summary(old | {"operation": "backward"}).startswith("Gradient of features, ag")
    report.write(backward_run, tmp_path / "test.json")
    title, *_ = (tmp_path / "test.md").read_text().split("\n")
    assert title == "# Benchmark: test, gradient of features"


def test_without_a_peer_there_is_no_ratio():
    run = invented(numba_roialign=[1, 4])
    assert figures.ratios(run) == {}
    assert figures.mean_ratio(run) is None
    assert report.summary(run) == "No peer was timed.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.5, "1.50"), (99.96, "100"), (123.4, "123"), (0, "0"), (None, "-")],
)
def test_numbers_keep_three_digits(value, text):
    assert report.number(value) == text


def test_slow_calls_take_fewer_rounds_and_fast_ones_more_calls():
    effort = rig.Effort(rounds=9, round_seconds=0.1, slow_seconds=4, fewest_rounds=3)
    assert (effort.calls(0.01), effort.rounds_of(0.01)) == (10, 9)
    assert (effort.calls(1e-9), effort.calls(5)) == (rig.LARGEST_ROUND, 1)
    assert (effort.rounds_of(1), effort.rounds_of(100)) == (4, 3)


def test_the_report_follows_from_the_json_alone(run, tmp_path, monkeypatch, capsys):
    sweep = {"axis": "boxes", "values": [1, 8], "points": list(run["workloads"].values())}
    path = tmp_path / "results" / "test.json"
    path.parent.mkdir()
    path.write_text(json.dumps(run | {"sweeps": {"rois": sweep}}))
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    program.main(["report", str(path), "--readme", str(readme)])
    assert "geometric mean" in capsys.readouterr().out
    for suffix in (".png", "-sweeps.png"):
        assert (path.parent / f"test{suffix}").stat().st_size > 1000
    tables = (path.parent / "test.md").read_text()
    assert "Sweep: rois" in tables and "Largest error" in tables
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:start -->\n")
    assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "old" not in text
    assert "](results/test.png)" in text
    program.main(["report", str(path), "--readme", str(readme)])
    assert readme.read_text() == text


def test_a_readme_without_markers_is_refused():
    with pytest.raises(SystemExit, match="bench:start"):
        report.replace_block("no place for it", "bench", "table")


def test_a_gradient_has_a_place_of_its_own_in_the_readme():
    marked = MARKED + MARKED.replace("bench:", "bench-backward:")
    changed = report.replace_block(marked, report.MARKERS["cpu", "backward"], "table")
    assert changed.startswith(MARKED)
    assert "<!-- bench-backward:start -->\n\ntable\n<!-- bench-backward:end -->" in changed


def test_no_path_of_the_machine_is_in_the_json(run):
    text = json.dumps(run)
    assert str(Path.home()) not in text
    assert str(Path(__file__).parent) not in text
    assert "site-packages" not in text


def test_sweeps_change_one_number_and_include_the_thread_count():
    axes = {
        "rois": lambda workload: sum(count for count, *_ in workload.boxes),
        "channels": lambda workload: workload.shape[1],
        "sampling": lambda workload: workload.sampling,
        "output": lambda workload: workload.bins,
    }
    *along, threads = sweeps(threads=6)
    assert [sweep.name for sweep in along] == list(axes)
    for sweep in along:
        for name, number in axes.items():
            found = [number(workload) for workload in sweep.workloads]
            assert found == sweep.values if name == sweep.name else len(set(found)) == 1
    assert threads.threads == threads.values == [1, 2, 4, 6]
    assert len(set(threads.workloads)) == 1


def test_sweeps_are_measured_at_each_thread_count(monkeypatch):
    sweep = Sweep("threads", "threads", [1, 2], [TINY, TINY], [1, 2])
    monkeypatch.setattr(program, "sweeps", lambda *_: [sweep])
    run = {"implementations": {"numpy": {}, "paddle": {"missing": "as an example"}}}
    _, arguments = program.parse(["--rounds", "2"])
    program.measure_sweeps(run, named("numpy", "paddle"), arguments, lambda: None)
    points = run["sweeps"]["threads"]["points"]
    assert [len(point["results"]["numpy"]["seconds"]) for point in points] == [2, 2]


def test_sweeps_are_measured_of_the_gradient(monkeypatch):
    sweep = Sweep("rois", "boxes", [5], [TINY])
    monkeypatch.setattr(program, "sweeps", lambda *_: [sweep])
    run = {"implementations": {"numba_roialign": {}}}
    _, arguments = program.parse(["--backward", "--rounds", "2", "--threads", "1"])
    assert arguments.operation == "backward"
    program.measure_sweeps(run, named("numba_roialign"), arguments, lambda: None)
    (point,) = run["sweeps"]["rois"]["points"]
    assert point["compulsory_bytes"] == plain_numpy.gradient_bytes(TINY.build())
    assert len(point["results"]["numba_roialign"]["seconds"]) == 2


def test_workloads_are_chosen_by_pattern(capsys):
    program.main(["--list"])
    assert capsys.readouterr().out.split() == [workload.name for workload in WORKLOADS]
    _, arguments = program.parse(["--only", "crop_*", "small_8x64"])
    names = [workload.name for workload in program.chosen_workloads(arguments, pytest.fail)]
    assert len(names) == 5


def test_a_peer_may_have_an_interpreter_of_its_own():
    chosen = program.chosen_specs(["mindspore"], ["mindspore=some/python"], pytest.fail)
    assert [spec.name for spec in chosen] == ["numba_roialign", "mindspore"]
    assert chosen[1].python == "some/python"
    with pytest.raises(pytest.fail.Exception, match="mindspor"):
        program.chosen_specs(None, ["mindspor=x"], pytest.fail)


def test_a_run_stops_where_the_package_is_not(monkeypatch):
    missing = {"numba_roialign": {"missing": "no metadata"}}
    rig_of_none = contextlib.nullcontext(SimpleNamespace(implementations=missing))
    monkeypatch.setattr(program, "Rig", lambda *_, **__: rig_of_none)
    _, arguments = program.parse(["run", "--quick"])
    specs = program.chosen_specs(None, [], pytest.fail)
    with pytest.raises(SystemExit, match="numba_roialign itself does not run here: no metadata"):
        program.measure_workloads({}, specs, program.WORKLOADS[:1], arguments, lambda: None)
