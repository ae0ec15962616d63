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


def on_ranks(ranks: int, script: object, *arguments: object) -> None:
    """Run a script in so many gloo processes."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=90)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * ranks, errors[0][-3000:]


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
