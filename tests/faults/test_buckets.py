"""A run whose storage is no folder: whatever happens to the machines, the store has what it takes to go on."""

import shutil
import signal
import sys
import time

import pytest

from tests.end_to_end.conftest import environment
from tests.processes import left_behind

from .conftest import LONG, SHORT, Sweep, same, until

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_in_a_store_goes_on_on_another_machine(space, whole, table, tmp_path, workers):
    """`file://` is read and written as object stores are; the first machine's disk is lost with it."""

    def start(machine: str, *arguments: str) -> Sweep:
        command = [
            sys.executable, "-m", "slime_ray", "sweep", str(space), "--name", "far",
            "--storage", f"file://{tmp_path}/bucket", "--set", f"resources.workers={workers}", *arguments,
        ]  # fmt: skip
        scratch = {"SLIME_RAY_SCRATCH": str(tmp_path / machine)}
        return Sweep(tmp_path / "bucket" / "far", command, environment() | scratch)

    sweep = start("first")
    resumed = None
    try:
        sweep.until_checkpoint()
        until(lambda: list((sweep.run / "trials" / LONG / "resume").glob("step-*/state.json")), 60, "the checkpoint")
        kept = until(lambda: sweep.rows().get(SHORT), 60, "the short trial")
        sweep.process.send_signal(signal.SIGKILL)
        sweep.process.wait(timeout=20)
        assert left_behind(sweep.process.pid) == []
        shutil.rmtree(tmp_path / "first")
        struck = time.time()
        resumed = start("second", "--resume")
        text = resumed.end()
        assert resumed.process.returncode == 0, text
        assert resumed.endings() == ["interrupted", "finished"]
        rows = resumed.rows()
        assert rows[SHORT] == kept
        if workers == 1:
            assert same(rows[LONG], whole[LONG])
        assert rows[LONG]["status"] == "completed"
        assert [path for path in (resumed.run / "trials" / LONG / "resume").rglob("*") if path.is_file()] == []
        assert (resumed.run / "trials" / LONG / "checkpoint" / "config.json").is_file()
        assert (resumed.run / "report" / "report.html").is_file()
        assert left_behind(resumed.process.pid) == []
        made = resumed.attempts()
        table(
            f"A machine lost with its disk, storage in a store, {workers} worker{'s' * (workers > 1)}, then --resume",
            lost=0, seconds=made[-1].started - struck, again=made[0].lost_seconds,
        )  # fmt: skip
    finally:
        sweep.kill()
        if resumed:
            resumed.kill()
