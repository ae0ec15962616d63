"""A disk that is full in the middle of a sweep: it ends in a sentence, and goes on once there is room."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import environment
from tests.processes import left_behind

from .conftest import LONG, SHORT, Sweep, same, until

pytestmark = [pytest.mark.ray, pytest.mark.faults]


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, as large as a run takes and a little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder):
        pytest.skip("this process may not mount a file system")
    yield folder
    # Ray's own processes may hold it for a moment.
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Callable[[], object]:
    """Take all that is free, and return what gives it back."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue
    return path.unlink


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (".stages/sft-*.lock", "The shared stages could not be made: "),
        (f"storage/trials/{LONG}/attempts.json", "No space left on device"),
    ],
    ids=["stages", "trials"],
)
def test_a_disk_that_fills_up_in_a_sweep_is_a_sentence(space, whole, disk, when, words):
    command = [
        sys.executable, "-m", "slime_ray", "sweep", str(space), "--storage", str(disk), "--name", "storage",
        "--set", "faults.storage_minutes=0.05",
    ]  # fmt: skip
    sweep = Sweep(disk / "storage", command, environment())
    resumed = None
    try:
        until(lambda: list(disk.glob(when)), 120, when)
        mend = fill(disk)
        said = sweep.end(120)
        assert sweep.process.returncode == 1, said
        assert words in said
        assert "--resume" in said
        assert "Traceback" not in said, said
        assert left_behind(sweep.process.pid) == []
        assert list((disk / ".stages").glob(".*")) == []
        mend()
        resumed = Sweep(sweep.run, [*command, "--resume"], environment())
        said = resumed.end()
        assert resumed.process.returncode == 0, said
        rows = resumed.rows()
        assert same(rows[SHORT], whole[SHORT])
        assert same(rows[LONG], whole[LONG])
    finally:
        sweep.kill()
        if resumed:
            resumed.kill()
