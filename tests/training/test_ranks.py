"""The loss and its gradient do not depend on how an update is cut: into micro-batches, over ranks, or both."""

import pytest
import torch

from slime_ray.data.packing import row_length

from . import rank_worker


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


@pytest.mark.parametrize(
    ("ranks", "how", "sizes"), [(2, "ddp", (10_000, 1)), (4, "ddp", (70,)), (2, "fsdp2", (10_000, 1))]
)
def test_neither_ranks_nor_sharding_change_loss_or_gradient(alone, on_ranks, ranks, how, sizes, tmp_path):
    on_ranks(ranks, rank_worker.__file__, tmp_path, how, *sizes)
    for found in torch.load(tmp_path / "found.pt", weights_only=True).values():
        agree(found, {name: alone[name] for name in found})


def test_every_pair_is_seen_once(alone):
    assert alone["slime seen"].tolist() == [19, sum(map(row_length, rank_worker.draw_pairs(19)))]
