"""The wheel holds the tree, and what is installed from it works outside of the checkout."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

import slime_ray

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "slime_ray": "slime_ray",
    "analysis": "slime_ray/analysis",
    "search_spaces": "slime_ray/search_spaces",
}


@dataclass(frozen=True)
class Built:
    """The two distributions: the wheel is built from the sdist, as for a release."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installed:
    """A fresh environment that holds the wheel and borrows this one's dependencies, but not its slime_ray."""

    folder: Path
    outside: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One of the environment's programs, in a folder outside of the checkout."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        program = self.folder / "bin" / command[0]
        return subprocess.run(
            [program, *command[1:]],
            cwd=self.outside,
            env={**environment, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def output(self, *command: str) -> str:
        """The standard output of a command that must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def must(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once for the whole run, be it spread over several xdist workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Built:
    def make(folder: Path) -> None:
        must(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)

    folder = once(tmp_path_factory, worker_id, "dist", make)
    return Built(next(folder.glob("*.tar.gz")), next(folder.glob("*.whl")))


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Installed:
    def make(folder: Path) -> None:
        must(sys.executable, "-m", "venv", folder / "env")
        python = folder / "env" / "bin" / "python"
        must(python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", built.wheel)
        # Packages found through a .pth file come last, and the .pth files beside them, that of an editable
        # slime_ray among them, are not read.
        site = Path(must(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(here)))
        (folder / "outside").mkdir()

    folder = once(tmp_path_factory, worker_id, "installed", make)
    return Installed(folder / "env", folder / "outside")


def tree() -> dict[str, bytes]:
    """What the wheel should hold, by the name there: all files of the package that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    listed = must(*command).split("\0")
    found = {}
    for name in filter(None, listed):
        folder, _, rest = name.partition("/")
        # A file that is deleted but not yet committed still is listed.
        if (ROOT / name).is_file():
            found[f"{FOLDERS[folder]}/{rest}"] = (ROOT / name).read_bytes()
    return found


def test_the_wheel_is_the_tree(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    expected = tree()
    assert sorted(held) == sorted(expected)
    assert [name for name in held if held[name] != expected[name]] == []


def test_the_wheel_holds_code_presets_spaces_and_templates(built: Built) -> None:
    """Guards the test above against a tree that is read wrongly: what must be there whatever git says."""
    names = set(zipfile.ZipFile(built.wheel).namelist())
    assert {
        "slime_ray/cli/__init__.py",
        "slime_ray/analysis/__init__.py",
        "slime_ray/search_spaces/demo.yaml",
    } <= names
    assert {"slime_ray/presets/paper.yaml", "slime_ray/presets/templates/chatml.jinja"} <= names


def test_the_wheel_has_the_licence_of_every_part_and_its_types(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0 AND BSD-3-Clause" in metadata
    assert {name.partition("licenses/")[2] for name in names if "licenses/" in name} == {
        "LICENSE",
        "analysis/web/vega.LICENSE",
    }
    assert "slime_ray/py.typed" in names


def test_no_generic_name_lands_in_a_users_environment(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"slime_ray"}


def test_the_sdist_holds_the_package_its_license_and_no_scratch_files(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "analysis/__init__.py"} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops <= {*FOLDERS, "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_command_works_outside_of_the_checkout(installed: Installed) -> None:
    said = installed.output("slime-ray", "--help")
    assert "usage: slime-ray" in said
    assert "report" in said


def test_code_presets_and_spaces_come_from_the_installed_copy(installed: Installed) -> None:
    code = (
        "import slime_ray, slime_ray.analysis, slime_ray.search_spaces, slime_ray.presets as presets\n"
        "from importlib import resources\n"
        "for module in (slime_ray, slime_ray.analysis, slime_ray.search_spaces, presets):\n"
        "    print(module.__file__)\n"
        "for folder in ('search_spaces', 'presets'):\n"
        "    files = resources.files('slime_ray.' + folder).iterdir()\n"
        "    print(*sorted(file.name for file in files if file.name.endswith('.yaml')))\n"
    )
    *files, spaces, presets = installed.output("python", "-c", code).split("\n")
    assert all(Path(file).is_relative_to(installed.folder) for file in files), files
    assert spaces.split() == sorted(path.name for path in (ROOT / "search_spaces").glob("*.yaml"))
    assert presets.split() == sorted(path.name for path in (ROOT / "slime_ray" / "presets").glob("*.yaml"))
    assert spaces
    assert presets


def test_the_installed_copy_leaves_no_top_level_folder(installed: Installed) -> None:
    code = "from importlib.metadata import files; print(*sorted({file.parts[0] for file in files('slime-ray')}))"
    folders = [name for name in installed.output("python", "-c", code).split() if name != ".."]
    assert [name.partition("-")[0] for name in folders] == ["slime_ray", "slime_ray"]


def test_a_checkout_on_the_path_goes_before_the_installed_copy(installed: Installed) -> None:
    """As Ray's `working_dir` puts it there; `analysis` then stands beside the package, at the top level."""
    code = "import slime_ray.analysis as a, slime_ray.search_spaces as s; print(a.__file__, s.__file__)"
    files = installed.output("python", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}").split()
    assert files == [str(ROOT / folder / "__init__.py") for folder in ("analysis", "search_spaces")]


@pytest.mark.parametrize(("old", "new"), slime_ray._MOVED.items())
def test_a_module_is_imported_by_its_name_of_version_0_1_0_with_a_warning(old: str, new: str) -> None:
    sys.modules.pop(f"slime_ray.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"slime_ray\.{old} is slime_ray\.{new} since"):
        module = importlib.import_module(f"slime_ray.{old}")
    assert module is importlib.import_module(f"slime_ray.{new}")
