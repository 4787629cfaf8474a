"""Lanes of what users get: its types, its distributions, and the oldest versions they may have.

Each is a function of pytest's options, and says whether its lane passed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = "numba_roialign"
# What git keeps and an sdist does not.
UNPACKED = (".ci/", ".gitignore")
# Every test is imported; these are run, which read files beside their own and compile little.
SDIST_TESTS = ["tests/test_docs.py", "tests/test_cli.py"]
# Every public function, the lanes of every dtype, the cache across processes, and threads: a third
# of what the whole suite compiles, which passed when these versions were chosen.
OLDEST_TESTS = [
    "tests/test_docs.py",
    "tests/test_lanes.py::test_lanes_of_every_dtype",
    "tests/test_lanes.py::test_the_cache_is_used_and_never_stale",
    "tests/test_processes.py::test_an_interrupted_process_goes_on",
]
PYTEST = ["-m", "pytest", "--target", "cpu", "--numprocesses", "2"]


def succeeds(*command, **options) -> bool:
    return not subprocess.run(list(map(str, command)), **options).returncode


def printed(*command, **options) -> str:
    """Return what a command prints."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    return done.stdout.strip()


def types(options) -> bool:
    """Check the annotations of the package, and those of a user's calls."""
    return succeeds(sys.executable, "-m", "mypy", cwd=ROOT)


def make_environment(folder, python=sys.executable):
    """Make a virtual environment and return its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def sdist(options) -> bool:
    """Build both distributions, and run tests of the source on the installed wheel."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        shutil.unpack_archive(archive, folder)
        tree = folder / archive.name.removesuffix(".tar.gz")
        if not holds_what_git_has(wheel, tree):
            return False
        shutil.rmtree(tree / PACKAGE)  # tests would import it in place of the wheel's
        python = make_environment(folder / "venv")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
        lend_packages(python)
        return succeeds(python, *PYTEST, "--collect-only", "-qq", cwd=tree) and succeeds(
            python, *PYTEST, *SDIST_TESTS, *options, cwd=tree
        )


def holds_what_git_has(wheel, tree) -> bool:
    """Say whether a wheel is the package that git has, and an unpacked sdist the whole."""
    tracked = printed("git", "ls-files", cwd=ROOT).splitlines()
    sources = {path for path in tracked if not path.startswith(UNPACKED)}
    packed = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    made = {path for path in packed if ".egg-info/" in path} | {"PKG-INFO", "setup.cfg"}
    with zipfile.ZipFile(wheel) as archive:
        installed = {path for path in archive.namelist() if ".dist-info/" not in path}
    package = {path for path in sources if path.startswith(f"{PACKAGE}/")}
    differences = [
        *(f"sdist lacks {path}" for path in sources - packed),
        *(f"sdist has {path}, which git has not" for path in packed - made - sources),
        *(f"wheel lacks {path}" for path in package - installed),
        *(f"wheel has {path}, which is not of the package" for path in installed - package),
    ]
    print(*sorted(differences), sep="\n", flush=True)
    return not differences


def lend_packages(python):
    """Let an environment import this one's packages, after its own."""
    own = printed(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    (Path(own) / "lent.pth").write_text(sysconfig.get_path("purelib"))


def oldest(options) -> bool:
    """Run tests with the oldest dependencies that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cuda = project["optional-dependencies"]["cuda13"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        pins = folder / "oldest.txt"
        pins.write_text("\n".join(map(oldest_version, [*project["dependencies"], *cuda])))
        python = make_environment(folder / "venv", oldest_python(project["requires-python"]))
        print(printed(python, "-V"), *pins.read_text().splitlines(), sep="\n", flush=True)
        install = [python, "-m", "pip", "install", "-q", "-c", pins, f"{ROOT}[test]"]
        subprocess.run(install, check=True)
        # Numba keeps what it compiled beside the source for one of its versions at a time.
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
        return succeeds(python, *PYTEST, *OLDEST_TESTS, *options, cwd=ROOT, env=environment)


def oldest_version(requirement) -> str:
    """Return ``name[extra]>=version`` as a constraint to that version."""
    parsed = Requirement(requirement)
    (floor,) = parsed.specifier
    if floor.operator != ">=":
        raise ValueError(f"{requirement} names no oldest version")
    return f"{parsed.name}=={floor.version}"


def oldest_python(requires) -> str:
    """Return the oldest Python supported where it is installed, or this one."""
    name = f"python{requires.removeprefix('>=')}"
    if shutil.which(name) and succeeds(name, "-V", capture_output=True):
        return name
    return sys.executable
