"""The loss and its gradient do not depend on how an update is cut: into micro-batches, over ranks, or both."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from slime_ray.data.packing import row_length

from . import rank_worker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LAUNCH = """
import os
import runpy
import signal
import sys

# What takes long is imported once; the ranks are forks of this process.
import slime_ray.training.worker

ranks, script = int(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
started = set()
for rank in range(ranks):
    child = os.fork()
    if not child:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    started.add(child)
while started:
    child, status = os.wait()
    started.remove(child)
    if status:
        # The others would wait for it.
        for other in started:
            os.kill(other, signal.SIGKILL)
        sys.exit(f"a rank ended with {os.waitstatus_to_exitcode(status)}")
"""


def on_ranks(ranks: int, script: object, *arguments: object) -> None:
    """Run a script in so many gloo processes."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(ranks), str(script), *map(str, arguments)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        errors = launcher.communicate(timeout=240)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    assert launcher.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """One rank, one micro-batch an update."""
    return rank_worker.run(10_000, tmp_path_factory.mktemp("alone"))


def agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=f"{name} differs")


@pytest.mark.parametrize("row_tokens", [70, 35, 1])
def test_accumulation_changes_neither_loss_nor_gradient(alone, row_tokens, tmp_path):
    agree(rank_worker.run(row_tokens, tmp_path), alone)


@pytest.mark.parametrize(("ranks", "how"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_neither_ranks_nor_sharding_change_loss_or_gradient(alone, ranks, how, tmp_path):
    on_ranks(ranks, rank_worker.__file__, tmp_path, how)
    for found in torch.load(tmp_path / "found.pt", weights_only=True).values():
        agree(found, {name: alone[name] for name in found})


def test_every_pair_is_seen_once(alone):
    assert alone["slime seen"].tolist() == [19, sum(map(row_length, rank_worker.draw_pairs(19)))]
