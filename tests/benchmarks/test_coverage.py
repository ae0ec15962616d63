"""95 % intervals cover what is true; the short form of `slime-ray bench statistics`."""

import argparse
import json
import math

import numpy as np
import pytest
from slime_ray.benchmarks import coverage
from slime_ray.benchmarks.command import add_bench_parser
from slime_ray.benchmarks.simulated import Paired, Trained, Verdicts

from slime_ray.errors import InputError, RunError

EVALUATIONS, RESAMPLES = 400, 1000


def cases():
    every = (
        coverage.verdict_cases(64, 1, resamples=RESAMPLES)[:2] + coverage.verdict_cases(100, 3, resamples=RESAMPLES)[:2]
    )
    every.append(coverage.length_case(100, resamples=RESAMPLES))
    for seeds, spread in ((1, 0.0), (3, 0.3), (5, 0.15), (6, 0.4)):
        every += coverage.paired_cases(100, seeds, spread, resamples=RESAMPLES)[:1]
    every.append(coverage.stability_case("drifted", Trained(128, 128, 30, spikes=0.0), resamples=RESAMPLES))
    return every


def tolerance(share: float, evaluations: int = EVALUATIONS) -> float:
    """Three standard deviations of a share of so many evaluations that is truly `share`."""
    return 3 * math.sqrt(share * (1 - share) / evaluations)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.name}, {case.size}")
def test_intervals_cover_the_truth_as_often_as_they_say(case):
    low, high = coverage.PROMISED
    evaluations = EVALUATIONS // 2 if case.name.startswith("S,") else EVALUATIONS
    found = coverage.measure(case, evaluations=evaluations)
    assert low - tolerance(low, evaluations) <= found.covered <= high + tolerance(high, evaluations)


@pytest.mark.parametrize("seeds", [1, 3])
def test_resampling_single_votes_gives_intervals_that_are_too_narrow(seeds):
    honest, _, naive = (
        coverage.measure(case, evaluations=EVALUATIONS)
        for case in coverage.verdict_cases(64, seeds, resamples=RESAMPLES)
    )
    assert naive.width < 0.85 * honest.width
    assert naive.covered < 0.93 - tolerance(0.93)


def test_the_truths_are_what_many_prompts_come_to():
    rng = np.random.default_rng(0)
    world = Verdicts(400_000, 1)
    votes = world.draw(rng)
    assert np.nanmean(votes.outcomes) == pytest.approx(world.win_rate, abs=0.003)
    won = (votes.weights * np.nan_to_num(votes.points)).sum() / votes.weights.sum()
    assert won == pytest.approx(world.arena_hard, abs=0.003)
    paired = Paired(400_000, 2, 0.3)
    shifts = np.array([[0.5, 0.1], [-0.2, 0.3]])
    better, other = paired.draw(rng, shifts)
    assert np.nanmean(better - other) == pytest.approx(paired.of_checkpoints(shifts), abs=0.003)
    # Nine nodes against many seeds.
    drawn = Paired(1, 4000, 0.3)
    assert drawn.of_checkpoints(drawn.shifts(rng)) == pytest.approx(drawn.of_method(), abs=0.005)


def bench(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_bench_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["bench", "statistics", *arguments])
    options.command(options)


def test_the_command_prints_the_table_and_fails_where_a_promise_is_not_kept(tmp_path, capsys, monkeypatch):
    few = coverage.verdict_cases(64, 1, resamples=40)
    monkeypatch.setattr(coverage, "all_cases", lambda resamples: few)
    monkeypatch.setattr(coverage, "PROMISED", (0.5, 1.0))
    out = tmp_path / "out.json"
    bench("--evaluations", "20", "--resamples", "40", "--rounds", "1", "--json", str(out))
    printed = capsys.readouterr().out
    assert "single votes (not used)" in printed
    assert "pass" in printed
    assert "together" in printed
    found = json.loads(out.read_text())
    assert [at["evaluations"] for at in found["coverages"]] == [20, 20, 20]
    monkeypatch.setattr(coverage, "PROMISED", (0.0, 0.1))
    with pytest.raises(RunError, match=r"Not within 0% to 10%: win rate \(64 prompts"):
        bench("--evaluations", "20", "--resamples", "40", "--rounds", "1")


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="--resamples 3: must be at least 40"):
        bench("--resamples", "3")
