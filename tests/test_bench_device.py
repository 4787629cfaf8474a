"""What is measured on a device, in the simulator; and the one command of a device run."""

import os
import sys
from importlib.util import find_spec
from time import perf_counter

import numpy as np
import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

from bench import __main__ as program
from bench import cuda_arrays, cuda_implementations, device, machine, report, rig
from bench.cuda_implementations import OnDevice, OursOnDevice, Rotation
from bench.device import Step, attempt
from bench.implementations import Spec, Unsupported
from bench.workloads import Workload

from .conftest import COMPILED, cuda_problem

pytestmark = pytest.mark.only("cpu")

TINY = Workload("tiny", (1, 2, 5, 6), 4, ((2, 4, 20),), 2)
HASTY = rig.Effort(rounds=2, round_seconds=0.001, slow_seconds=0.01, fewest_rounds=2)
SIMULATED = {"NUMBA_ENABLE_CUDASIM": "1"}


class Simulated(OursOnDevice):
    """Ours in the simulator, which runs a Python thread for each of the device's."""

    def __init__(self, threads, **options):
        from numba_roialign._cuda import average, gradient, launches

        launches.THREADS_PER_BLOCK = average.THREADS = average.WIDE_THREADS = 8
        gradient.TILE_HEIGHT, gradient.TILE_WIDTH = 2, 4
        gradient.THREADS, gradient.BLOCKS, gradient.LISTERS = 4, 1, 2
        cuda_implementations.CALLS_PER_GRAPH = cuda_implementations.MOST_COPIES = 2
        super().__init__(threads, there="numba", **options)
        self.there.elapsed = self.elapsed  # the simulator's events tell no time

    @staticmethod
    def elapsed(function, times):
        start = perf_counter()
        for _ in range(times):
            function()
        return perf_counter() - start


class Misplaced(Simulated):
    def prepare(self, problem):
        return super().prepare(problem._replace(aligned=not problem.aligned))


def simulated(name, kind, adapter, **options):
    adapter = f"{__name__}:{adapter}"
    return Spec(name, kind, adapter, options, environment=SIMULATED, rounding=2e-3)


SPECS = [
    simulated("numba_roialign", "ours", "Simulated"),
    simulated("numba_roialign-kept", "variant", "Simulated", workspace=True),
    simulated("numba_roialign-nhwc", "variant", "Simulated", layout="NHWC"),
    simulated("numba_roialign-float16", "variant", "Simulated", dtype="float16"),
    simulated("misplaced", "peer", "Misplaced"),
]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
@pytest.mark.parametrize("operation", ["pool", "backward"])
def test_ours_is_checked_and_timed_in_the_simulator(operation, monkeypatch):
    monkeypatch.setattr(rig, "FIRST_USE", TINY)
    with rig.Rig(SPECS, 1, HASTY, first_use=False, operation=operation) as workers:
        results = workers.measure(TINY)["results"]
        told = workers.implementations
    for name in [spec.name for spec in SPECS if spec.kind != "peer"]:
        assert "error" in results[name], (results[name], told[name])
        assert len(results[name]["seconds"]) == len(results[name]["call_seconds"]) == 2
        assert "numba-cuda" in told[name]["versions"]
    if operation == "pool":
        assert results["misplaced"]["wrong"]


def test_libraries_that_are_missing_are_named():
    specs = [spec for spec in cuda_implementations.SPECS if spec.kind in ("baseline", "peer")]
    with rig.Rig(specs, 1, HASTY, first_use=False) as workers:
        for name, about in workers.implementations.items():
            if "missing" not in about:
                pytest.skip(f"{name} is here")
            assert about["missing"]


class Counter:
    """A library that counts instead of launching, a millisecond for each call."""

    versions = {}  # noqa: RUF012

    def array(self, values):
        return np.array(values)

    def synchronize(self):
        pass

    def captured(self, calls):
        return lambda: [call() for call in calls]

    def elapsed(self, function, times):
        before = len(self.calls)
        for _ in range(times):
            function()
        return (len(self.calls) - before) * 1e-3


class Counted(OnDevice):
    def __init__(self):
        self.there = Counter()
        self.there.calls = self.calls = []


def test_seconds_are_those_of_a_call_and_inputs_take_turns():
    counted = Counted()
    call = counted.rotation(
        [np.zeros(15_000_000, np.float32)],
        (5_000_000,),
        lambda x: lambda: counted.calls.append(id(x)),
    )
    assert isinstance(call, Rotation)
    assert len(call.calls) == 4  # 80 MB each with its result, 256 MB together at least
    assert counted.seconds(call, 10) == pytest.approx(1e-3)
    last = counted.calls[-8:]
    assert len(set(last)) == 4
    assert last[:4] == last[4:]
    assert counted.call_seconds(call, 3) >= 0


def test_the_baseline_has_no_gradient():
    with pytest.raises(Unsupported):
        cuda_implementations.RawKernel.prepare_backward(None, None)


def test_a_run_of_a_device_says_so_and_has_places_of_its_own():
    workload = {"compulsory_bytes": 8, "results": {"numba_roialign": {"seconds": [1e-3]}}}
    workload["results"]["numba_roialign"]["call_seconds"] = [2.5e-3]
    run = {
        "name": "x",
        "target": "cuda",
        "threads": 2,
        "machine": machine.facts() | {"device": "NVIDIA Z1, driver 1.2"},
        "copy_rate": 4000.0,
        "implementations": {"numba_roialign": {"kind": "ours"}},
        "workloads": {"tiny": TINY.describe() | workload},
    }
    assert "NVIDIA Z1, driver 1.2" in report.circumstances(run)
    ((_, table),) = report.call_table(run, ["numba_roialign"])
    assert "2.50" in table
    assert len(set(report.MARKERS.values())) == 4
    _, arguments = program.parse(["--target", "cuda"])
    specs = program.chosen_specs(None, [], pytest.fail, arguments.target)
    assert [spec.kind for spec in specs].count("ours") == 1
    assert {"torchvision", "cupy-rawkernel"} <= {spec.name for spec in specs}


def python(code):
    return [sys.executable, "-c", code]


def test_a_step_that_fails_or_takes_too_long_takes_nothing_from_the_next():
    slow = "import subprocess, sys; print('begun', flush=True); "
    slow += "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    steps = [
        Step("failing", python("print('why'); raise SystemExit(3)"), 60),
        Step("slow", python(slow), 3),
        Step("absent", ["no-such-program"], 5),
        Step("left out", python("print(1)"), 5, "it is not installed"),
        Step("last", python("import os; print(os.environ['WORD'])"), 60, environment={"WORD": "w"}),
    ]
    outcomes = [attempt(step) for step in steps]
    assert [outcome.result for outcome in outcomes] == [
        "failed (code 3)",
        "out of time (3 s)",
        "failed (FileNotFoundError)",
        "skipped (it is not installed)",
        "ok",
    ]
    assert [outcome.is_good for outcome in outcomes] == [False, False, False, True, True]
    assert outcomes[0].output == "why\n"
    assert outcomes[1].output == "begun\n"
    assert outcomes[1].seconds < 60
    text = device.report("x", outcomes)
    assert "| slow | out of time (3 s) |" in text
    assert "why" in text


def test_a_run_fits_eight_minutes_and_its_commands_parse():
    steps = device.steps("x")
    groups = list(device.groups(steps))
    assert sum(max(step.limit for step in group) for group in groups) < 480
    assert all(len(group) == 1 or not any(step.measures for step in group) for group in groups)
    assert [step for group in groups for step in group] == steps
    for step in steps:
        if step.command[1:3] == ["-m", "bench"]:
            program.parse(step.command[3:])
    (tests,) = [step for step in steps if step.name == "tests"]
    from tests.__main__ import LANES

    assert tests.command[3] in LANES


def test_a_dry_run_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(device, "attempt", pytest.fail)
    assert device.main(["--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(device.steps("x"))


def test_results_are_written_after_each_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device, "RESULTS", tmp_path)
    steps = [Step("one", python("print('/home/somebody/x.py')"), 60), Step("two", ["no-such"], 5)]
    monkeypatch.setattr(device, "steps", lambda name: steps)
    monkeypatch.setattr(sys, "argv", ["device"])
    assert device.main(["--name", "z"]) == 1
    text = (tmp_path / "z-device.md").read_text()
    assert "| one | ok |" in text and "failed (FileNotFoundError)" in text
    assert "somebody" not in text


def test_the_environment_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(device, "PACKAGES", ("numpy", "no-such-package"))
    found, missing = device.packages()
    assert found["numpy"] == np.__version__
    assert "no-such-package" in missing
    if cuda_problem() and not os.environ.get("NUMBA_ENABLE_CUDASIM"):
        assert device.check_environment() == 1
        assert "no-such-package" in capsys.readouterr().out


def test_the_first_library_that_sees_a_device_is_taken(monkeypatch):
    def blind():
        raise RuntimeError("sees no device")

    monkeypatch.setattr(cuda_arrays, "LIBRARIES", {"torch": blind, "numba": Counter})
    assert type(cuda_arrays.library()) is Counter
    with pytest.raises(RuntimeError, match="sees no device"):
        cuda_arrays.library("torch")
    monkeypatch.setattr(cuda_arrays, "LIBRARIES", {"torch": blind, "cupy": blind})
    with pytest.raises(RuntimeError, match="sees no device; sees no device"):
        cuda_arrays.library()


@pytest.mark.only("cuda")
@pytest.mark.skipif(COMPILED, reason="needs a driver or the simulator")
def test_a_copy_is_timed_with_numba_alone(monkeypatch):
    monkeypatch.setattr(cuda_arrays, "LIBRARIES", {"numba": cuda_arrays.Numba})
    assert cuda_arrays.copy_rate(megabytes=1, repeats=2) != 0  # the simulator counts backwards


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_constants_are_timed_in_turn(capsys, monkeypatch):
    from bench import constants
    from numba_roialign._cuda import average

    monkeypatch.setattr(average, "THREADS", 128)  # so that it comes back
    used = []

    class Fake:
        replay = None

        def prepare(self, problem):
            return len(problem.rois)

        def seconds(self, call, calls):
            assert (call, self.replay) == (8, None)
            used.append(average.THREADS)
            return average.THREADS * 1e-6

    constants.main(["THREADS=64,32", "--only", "small_*"], Fake())
    assert used == [64, 32] * constants.ROUNDS
    assert average.THREADS == 64, "the first is used for the next constant"
    assert "| `small_8x64` | 64.0 | 32.0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="NO_SUCH"):
        constants.main(["NO_SUCH=1", "--only", "small_*"], Fake())
