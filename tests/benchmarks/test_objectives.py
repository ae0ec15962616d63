"""The table of what losses cost of a step."""

import torch

from benchmarks.objectives import ObjectiveCost, ObjectivesReport, objectives_table
from slime_ray.bench.machine import describe_machine


def test_a_loss_above_two_percent_of_the_median_step_is_marked():
    report = ObjectivesReport(
        date="today", machine=describe_machine(torch.device("cpu")), pairs=16, tokens=1024, steps=[0.08, 0.1, 0.9],
        costs=[ObjectiveCost("fast", [0.0019, 0.0001, 0.5]), ObjectiveCost("slow", [0.0021, 0.0001, 0.5])],
    )  # fmt: skip
    slow, fast = objectives_table(report).splitlines()[-2:]
    assert slow.split()[:4] == ["slow", "2.10", "0.10-500.00", "2.10%"]
    assert slow.endswith("over the limit")
    assert fast.split() == ["fast", "1.90", "0.10-500.00", "1.90%"]
