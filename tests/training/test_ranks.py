"""The loss and its gradient do not depend on how an update is cut: into micro-batches, over ranks, or both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slime_ray.data.packing import row_length

from . import rank_worker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(ranks: int, folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """What rank 0 of so many gloo processes saw, by row_tokens."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "ACCELERATE_USE_CPU": "true",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, rank_worker.__file__, str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * ranks, errors[0][-3000:]
    found: dict[int, dict[str, torch.Tensor]] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """One rank, one micro-batch an update."""
    return rank_worker.run(10_000, tmp_path_factory.mktemp("alone"))


def agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12, msg=f"{name} differs")


@pytest.mark.parametrize("row_tokens", [70, 35, 1])
def test_accumulation_changes_neither_loss_nor_gradient(alone, row_tokens, tmp_path):
    agree(rank_worker.run(row_tokens, tmp_path), alone)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_number_of_ranks_changes_neither_loss_nor_gradient(alone, ranks, tmp_path):
    for found in on_ranks(ranks, tmp_path).values():
        agree(found, alone)


def test_every_pair_is_seen_once(alone):
    assert alone["slime seen"].tolist() == [19, sum(map(row_length, rank_worker.draw_pairs(19)))]
