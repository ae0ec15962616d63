"""`bench gpu`: rows whatever happens, and figures that are right where somebody else can say so."""

import json
from dataclasses import replace

import pytest
import torch

from slime_ray.bench import gpu, gpu_parts
from slime_ray.bench.gpu import CUT, measure_gpu
from slime_ray.bench.machine import ProcessResult
from slime_ray.errors import InputError

from .test_command import bench

TINY = replace(CUT, row=1400, prompt=3, answer=2)


def quiet(line: str) -> None:
    return None


def test_every_part_is_a_row_in_one_table_and_one_file(capsys, monkeypatch):
    def ran(work, part, case, sizes, *, seconds, environment):
        assert work is gpu_parts.rows_of
        assert sizes == CUT
        row = {"case": case, "figures": {"pairs/s": 4.0 if case == "packed" else 2.0}}
        return ProcessResult([row], log="Recompiling function f\nRecompiling function g\n")

    monkeypatch.setattr(gpu, "in_a_process", ran)
    bench("gpu", "--device", "cpu", "--json")
    printed = capsys.readouterr()
    assert "NOT MEASURED ON A GPU" in printed.err
    found = json.loads(printed.out)
    assert (found["benchmark"], found["about"]["device"]) == ("gpu", "cpu")
    assert {row["part"] for row in found["rows"]} == set(gpu_parts.PARTS)
    (packed,) = [row for row in found["rows"] if row["case"] == "packed"]
    assert packed["figures"]["x authors"] == 2
    assert packed["figures"]["recompilations"] == 2


def test_a_part_that_ends_badly_is_a_row_with_its_reason(monkeypatch):
    reasons = iter(["failed with exit code 3: boom", "not done after 120 s", "killed, out of memory"] * 9)
    monkeypatch.setattr(gpu, "in_a_process", lambda *_, **__: ProcessResult(None, next(reasons)))
    report = measure_gpu(minutes=9, device="cpu", say=quiet)
    assert len(report.rows) == 11
    assert "failed with exit code 3: boom" in report.text()
    assert all(row["failure"] and "figures" not in row for row in report.rows)


def test_no_part_is_begun_without_time(monkeypatch):
    monkeypatch.setattr(gpu, "in_a_process", lambda *_, **__: pytest.fail("it was"))
    report = measure_gpu(minutes=0.1, device="cpu", say=quiet)
    assert {row["failure"] for row in report.rows} == {"no time left"}


def test_what_cannot_be_had_is_refused():
    with pytest.raises(InputError, match="--minutes 0"):
        bench("gpu", "--minutes", "0")


def test_attention_is_off_by_bfloat16s_rounding_and_a_kernel_that_is_not_here_says_so():
    rows = {row["case"]: row for row in gpu_parts.attention("kernels", TINY)}
    segments = rows["segments, full"]["figures"]
    # Eight bits of a number, and sums of many.
    assert 1e-3 < segments["output off by"] < 1e-2
    assert segments["gradients off by"] < 2e-2
    if not torch.cuda.is_available():
        assert rows["varlen, full"]["failure"]


def test_memory_is_weighed_and_planned():
    frozen, trained = (row["figures"] for row in gpu_parts.memory("", TINY))
    assert 0.5 < frozen["planned/measured"] < 2
    assert trained["planned GiB"] > frozen["planned GiB"]


@pytest.mark.slow
def test_answers_and_a_trial_run_here():
    (row,) = gpu_parts.answers("batch 2", TINY)
    assert row["figures"]["tokens/s"] == pytest.approx(2 * 1e3 / row["figures"]["ms a token"])
    (row,) = gpu_parts.trial("end to end", TINY)
    assert row["figures"]["s"] > 0
