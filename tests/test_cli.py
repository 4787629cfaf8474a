import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numba_roialign
from numba_roialign.cli import _run, main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with features.npy (2, 3, 20, 24) and rois.npy (11, 5)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("features.npy", rng.standard_normal((2, 3, 20, 24), np.float32))
    corners = rng.uniform(0, 30, (11, 4)).astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    index = rng.integers(0, 2, (11, 1)).astype(np.float32)
    np.save("rois.npy", np.hstack([index, corners]))
    return tmp_path


def run(*options, output_size=("3", "4")):
    files = ("features.npy", "rois.npy", "output.npy")
    return main(["run", *files, "--output-size", *output_size, *options])


def expected(**options):
    features, rois = np.load("features.npy"), np.load("rois.npy")
    return numba_roialign.roi_align(features, rois, (3, 4), **options)


def set_rois(row, values):
    rois = np.load("rois.npy")
    rois[row] = values
    np.save("rois.npy", rois)


def assert_failed(status, capsys, *words):
    """Check for exit status 2, a one-line message with `words`, and no trace of the output."""
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert lines[-1].startswith("numba-roialign: error: ")
    assert not any(line.startswith("Traceback") for line in lines)
    for word in words:
        assert word in lines[-1]


def files_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("batching", [(), ("--batch", "4"), ("--batch-bytes", "300")])
def test_run_equals_roi_align(folder, capsys, batching):
    assert run("--spatial-scale", "0.5", "--sampling-ratio", "2", "--aligned", *batching) == 0
    pooled = np.load("output.npy")
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(
        pooled, expected(spatial_scale=0.5, sampling_ratio=2, aligned=True)
    )
    assert files_in(folder) == {"features.npy", "rois.npy", "output.npy"}
    printed = capsys.readouterr()
    assert "(11, 3, 3, 4)" in printed.out
    assert ("after the first batch of 4" in printed.out) == ("--batch" in batching)
    assert "11/11" in printed.err


def test_run_defaults_and_single_size(folder):
    assert run("--batch", "5", output_size=["3"]) == 0
    direct = numba_roialign.roi_align(np.load("features.npy"), np.load("rois.npy"), 3)
    np.testing.assert_array_equal(np.load("output.npy"), direct)


def test_batches_are_bounded_by_count_and_by_bytes(folder, monkeypatch):
    bytes_per_roi = 3 * 3 * 4 * 4
    assert batch_lengths(monkeypatch, "--batch", "4") == [4, 4, 3]
    assert batch_lengths(monkeypatch, "--batch-bytes", str(6 * bytes_per_roi + 1)) == [6, 5]
    assert batch_lengths(monkeypatch, "--batch-bytes", "1") == [1] * 11
    assert batch_lengths(monkeypatch) == [11]


def batch_lengths(monkeypatch, *options):
    lengths = []
    batches = _run._output_batches

    def recorded(*arguments):
        for start, out in batches(*arguments):
            lengths.append(len(out))
            yield start, out

    with monkeypatch.context() as patch:
        patch.setattr(_run, "_output_batches", recorded)
        assert run(*options) == 0
    return lengths


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("ratio", [None, 3])
def test_run_mindspore(folder, mode, ratio):
    sampling = [] if ratio is None else ["--sampling-ratio", str(ratio)]
    assert run("--mindspore", str(mode), "--spatial-scale", "0.5", "--batch", "4", *sampling) == 0
    op = numba_roialign.ROIAlign(3, 4, 0.5, sample_num=ratio or 2, roi_end_mode=mode)
    direct = op(np.load("features.npy"), np.load("rois.npy"))
    np.testing.assert_array_equal(np.load("output.npy"), direct)


def test_run_other_conventions_modes_and_layouts(folder):
    options = {"convention": "openvino_half_pixel", "mode": "max", "layout": "NHWC"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert run("--batch", "4", *words) == 0
    np.testing.assert_array_equal(np.load("output.npy"), expected(**options))


def test_run_bfloat16(folder):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    features = np.load("features.npy").astype(ml_dtypes.bfloat16)
    np.save("features.npy", features.view("V2"))
    assert run("--bfloat16", "--batch", "4") == 0
    direct = numba_roialign.roi_align(features, np.load("rois.npy"), (3, 4))
    pooled = np.load("output.npy").view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(pooled.astype(np.float32), direct.astype(np.float32))


def test_run_without_rois(folder):
    np.save("rois.npy", np.zeros((0, 5), np.float32))
    assert run() == 0
    pooled = np.load("output.npy")
    assert pooled.shape == (0, 3, 3, 4)
    assert pooled.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([0, 1, np.nan, 3, 4], "not finite"),
        ([2, 1, 2, 3, 4], "image"),
        ([-1, 1, 2, 3, 4], "image"),
        ([0, 0, 0, 3e38, 4], "too large"),
    ],
)
@pytest.mark.parametrize("convention", [(), ("--mindspore", "1")])
def test_run_names_the_bad_row_of_the_file(folder, capsys, values, problem, convention):
    set_rois(7, values)
    options = ("--sampling-ratio", "0", "--batch", "2", *convention)
    assert_failed(run(*options), capsys, "rois row 7 ", problem)
    assert files_in(folder) == {"features.npy", "rois.npy"}


def test_run_names_the_row_that_only_mindspore_refuses(folder, capsys):
    set_rois(8, [1.25, 1, 2, 3, 4])
    assert run("--batch", "3") == 0
    (folder / "output.npy").unlink()
    capsys.readouterr()
    assert_failed(run("--batch", "3", "--mindspore", "0"), capsys, "rois row 8 ", "image")
    assert files_in(folder) == {"features.npy", "rois.npy"}


def test_run_refuses_a_scale(folder, capsys):
    assert_failed(run("--spatial-scale", "0"), capsys, "spatial_scale")
    assert_failed(run("--spatial-scale", "0", "--mindspore", "1"), capsys, "spatial_scale")


@pytest.mark.parametrize("name", ["features.npy", "rois.npy"])
def test_run_missing_file(folder, capsys, name):
    (folder / name).unlink()
    assert_failed(run(), capsys, f"{name}: No such file")
    assert "output.npy" not in files_in(folder)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("features.npy", np.zeros((3, 20, 24), np.float32)),
        ("features.npy", np.zeros((2, 3, 20, 24), "V2")),
        ("features.npy", np.zeros((2, 3, 20, 24), ">f4" if sys.byteorder == "little" else "<f4")),
        ("features", np.zeros((2, 3, 20, 24), np.int32)),
        ("rois.npy", np.zeros((11, 4), np.float32)),
        ("rois.npy", np.full((11, 5), "a")),
    ],
)
def test_run_wrong_array(folder, capsys, name, array):
    np.save(f"{name.removesuffix('.npy')}.npy", array)
    assert_failed(run(), capsys, name)
    assert "output.npy" not in files_in(folder)


def test_run_not_an_npy_file(folder, capsys):
    (folder / "features.npy").write_bytes(b"not an array" * 20)
    assert_failed(run(), capsys, "features.npy")


def test_run_truncated_file(folder, capsys):
    whole = (folder / "features.npy").read_bytes()
    (folder / "features.npy").write_bytes(whole[:-100])
    assert_failed(run(), capsys, "features.npy")


def test_run_keeps_its_inputs(folder, capsys):
    before = (folder / "rois.npy").read_bytes()
    arguments = ["run", "features.npy", "rois.npy", "rois.npy", "--output-size", "3"]
    assert_failed(main(arguments), capsys, "rois.npy")
    assert (folder / "rois.npy").read_bytes() == before


def test_run_missing_output_folder(folder, capsys):
    arguments = ["run", "features.npy", "rois.npy", "no/output.npy", "--output-size", "3"]
    assert_failed(main(arguments), capsys, "no")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_run_replaces_regular_files_only(folder, capsys):
    os.mkfifo("output.npy")
    assert_failed(run(), capsys, "output.npy", "regular file")
    assert Path("output.npy").is_fifo()


def test_run_writes_through_a_link(folder):
    np.save("target.npy", np.arange(3))
    Path("output.npy").symlink_to("target.npy")
    assert run() == 0
    assert Path("output.npy").is_symlink()
    np.testing.assert_array_equal(np.load("target.npy"), expected())


def test_run_names_the_output_that_cannot_be_created(folder, monkeypatch, capsys):
    def refused(*_, mode, **__):
        if mode == "w+":
            raise OSError(28, "No space left on device")
        return open_memmap(*_, mode=mode, **__)

    open_memmap = np.lib.format.open_memmap
    monkeypatch.setattr(np.lib.format, "open_memmap", refused)
    assert_failed(run(), capsys, "output.npy: No space", f"{11 * 3 * 12 * 4} bytes")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_run_interrupted_leaves_the_old_output(folder, monkeypatch, interruption):
    np.save("output.npy", np.arange(3))
    roi_align = numba_roialign.roi_align
    calls = []

    def interrupted(features, rois, *arguments, **options):
        calls.append(len(rois))
        if len(calls) == 4:
            raise interruption
        return roi_align(features, rois, *arguments, **options)

    monkeypatch.setattr(numba_roialign, "roi_align", interrupted)
    if interruption is KeyboardInterrupt:
        assert run("--batch", "2") == 130
    else:
        with pytest.raises(interruption):
            run("--batch", "2")
    assert len(calls) == 4
    assert files_in(folder) == {"features.npy", "rois.npy", "output.npy"}
    np.testing.assert_array_equal(np.load("output.npy"), np.arange(3))


def test_run_without_tqdm(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert_failed(run(), capsys, 'pip install "numba-roialign[demo]"')


@pytest.mark.parametrize(
    "options",
    [
        ["--output-size", "0"],
        ["--output-size", "3", "features.npy"],
        ["--output-size", "3", "--aligned", "--convention", "mindspore_1"],
        ["--output-size", "3", "--convention", "nobody"],
        ["--output-size", "3", "--layout", "CHW"],
        ["--output-size", "3", "4", "5"],
        ["--output-size", "3", "--aligned", "--mindspore", "1"],
        ["--output-size", "3", "--mindspore", "2"],
        ["--output-size", "3", "--batch", "0"],
    ],
)
def test_run_refuses_options(folder, options):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "features.npy", "rois.npy", "output.npy", *options])
    assert exit_.value.code == 2


def read_png(path):
    image = pytest.importorskip("matplotlib.image")
    return image.imread(path)


def test_demo_draws_the_default_photograph(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    pixels = read_png("roialign_demo.png")
    assert 600 < pixels.shape[0] < 3000
    assert 800 < pixels.shape[1] < 3000
    assert pixels[..., :3].std() > 0.1
    assert "(5, 3, 96, 96)" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16"])
def test_demo_reads_any_picture(tmp_path, mode):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    from numba_roialign.cli._demo import load_features

    grey = np.linspace(0, 255, 60 * 40).reshape(60, 40).astype(np.uint8)
    if mode == "I;16":
        image.fromarray(grey * np.uint16(257)).save(tmp_path / "picture.png")
    else:
        image.fromarray(grey).convert(mode).save(tmp_path / "picture.png")
    features = load_features(tmp_path / "picture.png")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.broadcast_to(grey / 255, (1, 3, 60, 40)), atol=1e-6)


def test_demo_on_a_small_transparent_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    rgba = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    image.fromarray(rgba).save(tmp_path / "small.png")
    output = tmp_path / "drawn.png"
    assert main(["demo", str(tmp_path / "small.png"), "-o", str(output)]) == 0
    assert read_png(output)[..., :3].std() > 0.05


def test_demo_missing_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "drawn.png"
    status = main(["demo", str(tmp_path / "none.png"), "-o", str(output)])
    assert_failed(status, capsys, "none.png: No such file")
    assert not output.exists()


def test_demo_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_failed(main(["demo"]), capsys, 'pip install "numba-roialign[demo]"')


def test_info_prints_versions(capsys):
    import numba

    assert main(["info"]) == 0
    listing = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    values = {key: value.strip() for key, value in listing.items()}
    assert values["numba-roialign"] == numba_roialign.__version__
    assert values["numpy"] == np.__version__
    assert values["numba"] == numba.__version__
    assert values["Numba threads"] == str(numba.config.NUMBA_NUM_THREADS)
    assert values["threading layer used"] in {"tbb", "omp", "workqueue"}
    assert values["CUDA"]


def test_info_names_the_extras_without_numba_cuda(monkeypatch):
    from numba_roialign.cli import _info

    monkeypatch.setattr(_info, "_version", lambda name: None)
    listing = _info.collect()
    assert listing["numba-cuda"] == "not installed"
    assert "[cuda12]" in listing["CUDA"]
    assert "[cuda13]" in listing["CUDA"]


def test_info_survives_a_part_that_fails(monkeypatch):
    from numba_roialign.cli import _info

    def broken():
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(_info, "_cuda", broken)
    assert _info.collect()["CUDA"] == "unknown (RuntimeError: no luck)"


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "numba_roialign"]
    done = subprocess.run([*command, "info"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert numba_roialign.__version__ in done.stdout
    assert "Traceback" not in done.stderr
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 2
