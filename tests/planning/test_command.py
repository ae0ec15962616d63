"""The command: what it prints and writes, what it refuses, and a probe that is real."""

import json
import os
from collections.abc import Iterator

import pytest
import ray

from slime_ray.cli import main

from .conftest import TINY
from .test_plan import PAPER

ARMS = "arms: {slime: {}}\n"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(PAPER)
    return str(path)


def test_a_plan_is_printed_as_text_or_as_json(space, tmp_path, capsys):
    command = ["plan", space, "--gpus", "8", "--gpu", "h100", "--storage", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "paper: nothing was started." in printed
    assert "one trial at a time" in printed
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cluster"]["trials"] == 1
    assert plan["gpu"]["name"] == "h100"
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_sixteen_gpus_run_two_trials_of_eight(space, capsys):
    # Batches of 64: all eight workers have answers to draw.
    more = ["--set", "seeds=[0, 1, 2]", "--set", "evaluation.decoding.batch=64"]
    assert main(["plan", space, "--gpus", "20", "--gpu", "H100", "--json", *more]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cluster"]["trials"] == 2
    assert plan["time"]["expected"] < plan["trial_seconds"]["expected"]
    # Twenty GPUs are paid for, sixteen of them are held at most.
    assert plan["cluster_cost"]["expected"] > plan["cost"]["expected"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpus", "8"], "--gpus N and --gpu NAME go together"),
        (["--gpus", "8", "--gpu", "h1000"], "has no such GPU. Did you mean 'h100'?"),
        (["--gpus", "0", "--gpu", "h100"], "--gpus 0: must be at least 1"),
        (["--gpus", "4", "--gpu", "h100"], "A trial asks for 8 workers of 8 CPU and 1 GPU"),
        (
            ["--gpus", "8", "--gpu", "h100", "--set", "resources.gpu_per_worker=0"],
            "--gpus: the experiment's trials use",
        ),
        (["--pairs", "0"], "--pairs 0: must be at least 1"),
        (["--lengths", "1,2"], "--lengths 1,2: give three numbers"),
        (["--lengths", "1e300,1,1"], "--lengths 1e300,1,1: give three numbers of tokens, 1 to 10,000,000 each"),
        (["--set", "data.sft_fraction=0.0"], "data.sft_fraction is 0, which leaves no pair for sft"),
        (["--set", "data.sft_fraction=1.0"], "data.sft_fraction is 1, which leaves no pair for training"),
        (
            ["--pairs", "1002", "--set", "data.held_out_pairs=1000", "--set", "data.sft_fraction=0.9"],
            "Of 1002 pairs 1000 are held out (data.held_out_pairs), and of the others 90% are for SFT",
        ),
        (["--prices", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["--set", "model.source=somebody/something"], "its shape is not known here"),
        (["--set", "data.train=somebody/something"], "since it is not on this machine. Say how much it is with"),
        (["--set", "data.train=pears.jsonl"], "since it is not on this machine. Correct it, or say how much"),
    ],
)
def test_what_is_wrong_or_does_not_fit_is_refused(space, capsys, arguments, complaint):
    assert main(["plan", space, *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_data_that_is_not_here_may_be_a_file_of_nearly_that_name(space, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    assert main(["plan", space, "--set", "data.train=pears.jsonl"]) == 2
    assert "since it is not on this machine; pairs.jsonl is. Correct it" in capsys.readouterr().err


def test_this_machine_has_no_gpu_for_it(space, capsys):
    """Where it is said what trials ask for, and that another cluster can be planned for."""
    if os.path.exists("/proc/driver/nvidia/gpus"):
        pytest.skip("this machine has GPUs")
    assert main(["plan", space]) == 2
    said = capsys.readouterr()
    assert "--gpus N --gpu NAME" in said.err
    # The plan is printed all the same.
    assert "26,988,520" in said.out


@pytest.mark.parametrize("space", ["demo", "all_knobs"])
def test_spaces_that_ship_can_be_planned(space, capsys, tmp_path):
    assert main(["plan", space, "--storage", str(tmp_path)]) == 0
    assert "all trials" in capsys.readouterr().out


@pytest.fixture(scope="module")
def instance() -> Iterator[None]:
    """One Ray instance for both probes, with what one of their own would have."""
    ray.init("local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_probe_measures_a_trial_where_trials_run(instance, tmp_path, capsys, workers):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + ARMS + f"resources: {{workers: {workers}}}\n")
    storage = tmp_path / "runs"
    assert main(["plan", str(path), "--probe", "--json", "--storage", str(storage)]) == 0
    printed = capsys.readouterr()
    plan = json.loads(printed.out)
    rates = plan["measured"]["rates"]
    assert all(rates[name] > 0 for name in ("read_token", "load", "save", "process"))
    # Lines through two measurements each: of the one or the other number nothing may be left on a busy machine.
    lines = [("update", "token"), ("decode_step", "decode_row")]
    assert all(rates[beside] + rates[each] > 0 for beside, each in lines)
    assert all(value >= 0 for value in rates.values())
    assert plan["measured"]["side_by_side"] == max(1, len(os.sched_getaffinity(0)) // workers)
    assert plan["measured"]["peak_bytes"] > 2**27
    assert plan["time"]["expected"] > plan["trial_seconds"]["expected"] > 0
    assert "Probe: " in printed.err
    # Nothing is left of it.
    assert [path for path in storage.rglob("*") if path.is_file()] == []


@pytest.mark.ray
def test_a_probe_of_a_model_that_is_not_here_says_so(instance, space, capsys, tmp_path):
    change = [
        "--set",
        "resources={workers: 1, gpu_per_worker: 0, cpu_per_worker: 1}",
        "--set",
        "model.dtype=float32",
        "--storage",
        str(tmp_path),
    ]
    assert main(["plan", space, "--probe", *change]) == 2
    assert "model.source google/gemma-3-4b-pt: the model cannot be loaded" in capsys.readouterr().err
