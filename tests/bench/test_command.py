"""The commands, run small, and what they refuse."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

from slime_ray import cli
from slime_ray.bench import memory, step
from slime_ray.bench.machine import ProcessResult, in_a_process
from slime_ray.bench.options import RECIPES, Options
from slime_ray.errors import InputError

TRANSFORMERS = tuple(map(int, version("transformers").split(".")[:2]))
ROOT = Path(__file__).resolve().parents[2]
TINY = ["--shrink", "40", "--pairs", "2", "--rounds", "2", "--device", "cpu"]


def bench(*arguments: str) -> None:
    options = cli.make_parser().parse_args(["bench", *arguments])
    options.command(options)


def test_step_prints_a_table_and_every_timing(capsys):
    bench("step", *TINY, "--vocab", "64,128", "--steps", "2", "--json")
    out, printed = capsys.readouterr()
    found = json.loads(out)
    assert found["benchmark"] == "training step"
    assert found["about"]["pairs"] == 2
    assert set(found) == {"schema", "benchmark", "about", "rows", "notes"}
    assert [(row["vocabulary"], row["recipe"]) for row in found["rows"]] == [(v, r) for v in (64, 128) for r in RECIPES]
    for row in found["rows"]:
        assert [len(taken) for taken in row["seconds"]] == [2, 2]
        assert row["% of peak"] == "not measured"
        assert row["failure"] is None
        totals = [sum(taken) for taken in row["seconds"]]
        assert row["s a step"] == pytest.approx(sum(totals) / 4)
        assert row["pairs/s"] == pytest.approx(4 / (sum(totals) / 2))
    by_name = {row["recipe"]: row for row in found["rows"][len(RECIPES) :]}
    assert by_name["authors"]["authors' / this"] == [1, 1, 1]
    assert by_name["packed-frozen-head"]["padded's / this, same head"][0] > 0
    assert by_name["packed"]["% padding"] == 0 < by_name["padded"]["% padding"]
    assert by_name["packed"]["GFLOP a step"] < by_name["padded"]["GFLOP a step"] < by_name["authors"]["GFLOP a step"]
    assert by_name["packed"]["authors' FLOPs / these"] > 1
    assert "not measured" in printed
    for recipe in RECIPES:
        assert f" {recipe} " in printed


def test_the_best_batch_is_searched_and_running_out_of_memory_is_said(capsys, monkeypatch):
    real = step.Stepper.run

    def run(self, tensors):
        if self.name == "authors" or (self.name == "padded" and len(tensors.micros) == 1):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, tensors)

    monkeypatch.setattr(step.Stepper, "run", run)
    options = ["--vocab", "64", "--steps", "1", "--recipes", "authors,padded,packed", "--best-batch"]
    bench("step", *TINY, *options, "--json")
    out, printed = capsys.readouterr()
    authors, padded, packed = json.loads(out)["rows"]
    assert authors["failure"] == "out of memory"
    assert authors["tokens/s"] is None
    assert padded["pairs a pass"] == 1
    assert packed["authors' / this"] is None
    assert packed["padded's / this, same head"] is not None
    assert "out of memory" in printed


def test_memory_weighs_a_recipe_in_a_process_of_its_own(capsys):
    bench("memory", *TINY, "--vocab", "512", "--recipes", "packed", "--json")
    out, printed = capsys.readouterr()
    (row,) = json.loads(out)["rows"]
    assert row["failure"] is None
    assert len(row["bytes of each step"]) == 2
    assert row["MiB"] == sum(row["bytes of each step"]) / 2 / 2**20 > 0
    assert "MiB" in printed


def test_memory_is_compared_step_by_step(monkeypatch):
    weighed = {"authors": (800, 900), "padded": (400, 300), "packed": (100, 100), "packed-frozen-head": (50, 60)}
    monkeypatch.setattr(memory, "in_a_process", lambda work, name, *_, **__: ProcessResult(weighed[name]))
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=2, device="cpu", recipes=tuple(weighed))
    by_name = {row["recipe"]: row for row in memory.measure_memory(options, print).rows}
    assert by_name["packed"]["authors' / this"] == (8.5, 8, 9)
    assert by_name["packed"]["padded's / this, same head"] == (3.5, 3, 4)
    assert by_name["packed-frozen-head"]["authors' / this"] == (15.5, 15, 16)
    # There is no padded recipe with a frozen head to compare with.
    assert by_name["packed-frozen-head"]["padded's / this, same head"] is None


def die_by(signal: int) -> None:
    print("boom", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal) if signal else os._exit(3)


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise RuntimeError("no such kernel\nand more")


@pytest.mark.parametrize(
    ("work", "failure"),
    [
        (partial(die_by, 9), "killed, out of memory"),
        (partial(die_by, 0), "failed with exit code 3: boom"),
        (fail, "no such kernel"),
        (hang, "not done after 20 s"),
    ],
)
def test_the_end_of_a_part_does_not_end_the_benchmark(work, failure):
    seconds = 20.0 if work is hang else None
    assert in_a_process(work, seconds=seconds).failure == failure


def variable(name: str) -> str | None:
    print("said", file=sys.stderr)
    return os.environ.get(name)


def test_a_part_starts_with_its_variables_and_its_log_comes_back(monkeypatch):
    monkeypatch.delenv("BENCHED", raising=False)
    result = in_a_process(variable, "BENCHED", environment={"BENCHED": "yes"})
    assert (result.values, result.failure, result.log.strip()) == ("yes", None, "said")
    assert "BENCHED" not in os.environ


def test_step_memory_grows_with_the_step():
    def weigh(shrink: int) -> int:
        options = Options(shrink=shrink, pairs=2, rounds=1, device="cpu")
        return memory.weigh_steps("padded", options, 2048, "cpu")[0]

    assert weigh(4) > 2 * weigh(40)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["step", "--vocab", "7"], "--vocab 7: must be at least 8"),
        (["step", "--vocab", "4096,x"], "--vocab 4096,x: must be whole numbers"),
        (["step", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["step", "--recipes", "ours"], "--recipes ours: must be among authors"),
        (["step", "--lengths", "nowhere"], "--lengths nowhere: neither a file nor one of"),
        (["step", "--shrink", "2048"], "--shrink 2048: leaves no room for a prompt and a completion"),
        (["memory", "--rounds", "-1"], "--rounds -1: must be at least 1"),
    ],
)
def test_what_was_given_wrong_is_said(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        bench(*arguments)


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="older transformers imports rich and pandas itself")
def test_a_benchmark_needs_torch_transformers_and_peft_and_no_more():
    absent = ["ray", "pydantic", "datasets", "pandas", "rich", "optuna", "accelerate.state"]
    script = f"""import sys, slime_ray.cli.bench
assert not set(["torch", "transformers", "peft", "numpy"]) & set(sys.modules)
import slime_ray.bench.step, slime_ray.bench.memory
print(' '.join(set({absent!r}) & set(sys.modules)))"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # accelerate comes with peft.
    assert set(run.stdout.split()) <= {"accelerate.state"}
