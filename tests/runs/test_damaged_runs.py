"""A run of which a file was cut off, emptied, garbled or lost: the same numbers, or a sentence that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from slime_ray.analysis.comparing import differences
from slime_ray.analysis.judging import _took
from slime_ray.analysis.methods import facts, plan_facts
from slime_ray.analysis.report import write_report

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.runs import files, results
from slime_ray.runs.status import describe, read_status, write_status
from tests.analysis.conftest import add_trial, finish

TRIALS = ("arm-a-s0", "search-0001", "search-0002", "confirm-search-0001-s0")
FILES = [
    "manifest.json", "trials.parquet", "answers.parquet", "curves.parquet", "pairs.parquet", "status.json",
    "study.journal", "log.txt", "experiment.yaml", "instructions/search-0001-clone-1.json",
    *(f"trials/{TRIALS[1]}/{name}" for name in (
        "trial.json", "answers.parquet", "curves.parquet", "pairs.parquet", "judging.json", "attempts.json"
    )),
]  # fmt: skip


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "garbled": lambda file: file.write_bytes(b"\x00\xff" + file.read_bytes()[::-1]),
    "lost": lambda file: file.unlink(),
    "a folder": _as_folder,
}
Frames = dict[str, pd.DataFrame]


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A small finished run with all kinds of files."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    for place, name in enumerate(TRIALS):
        phase = name.partition("-")[0]
        label = "search-0001" if phase == "confirm" else name
        add_trial(run, name, phase=phase, label=label, won=[1.0, 0.5, place / 4], pairs=3, alarm="U at step 5")
        said = {
            "missing": {"late": 1},
            "invalid": 1,
            "requests": 9,
            "input_tokens": 5,
            "output_tokens": 5,
            "cost": None,
        }
        files.write(run / "trials" / name / "judging.json", json.dumps(said))
        files.write(run / "trials" / name / "attempts.json", "[]")
    finish(run)
    write_status(run, finished=4, total=4, trials={}, ended=True)
    (run / "instructions").mkdir()
    for name in ("study.journal", "log.txt", "experiment.yaml", "instructions/search-0001-clone-1.json"):
        (run / name).write_text('{"of": "search-0001", "values": {}}\n')
    return run


def frames(run: Path) -> Frames:
    loaded = results.load(run)
    tables = {name: getattr(loaded, name) for name in ("trials", "answers", "curves", "pairs")}
    return {
        name: frame.sort_values(list(frame)[:8], ignore_index=True, key=lambda column: column.astype(str))
        for name, frame in tables.items()
    }


def same(one: Frames, other: Frames) -> bool:
    return all(one[name].equals(other[name]) for name in one)


@pytest.fixture(scope="session")
def expected(whole) -> tuple[Frames, Frames]:
    """The tables of the whole run, and of one that never had the trial whose files are damaged."""
    without = whole.parent / "without"
    shutil.copytree(whole, without)
    shutil.rmtree(without / "trials" / TRIALS[1])
    results.consolidate(without)
    return frames(whole), frames(without)


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_tables_are_right_or_the_damaged_file_is_named(run, expected, file, damage, consolidated):
    if not consolidated:
        for name in ("trials", "answers", "curves", "pairs"):
            (run / f"{name}.parquet").unlink()
        if not (run / file).exists():
            return
    DAMAGES[damage](run / file)
    try:
        assert describe(run)["done"] in (3, 4)
        found = frames(run)
    except InputError as refused:
        said = str(refused)
        assert Path(file).name in said, said
        assert "\n" not in said
    else:
        unfinished = file.endswith("trial.json") and not consolidated
        assert same(found, expected[1] if unfinished else expected[0])


@pytest.mark.parametrize("file", ["manifest.json", "answers.parquet", "trials/search-0001/trial.json"])
def test_a_command_on_a_damaged_run_is_done_or_says_why(run, whole, tmp_path, file, capsys, sketched):
    DAMAGES["cut off"](run / file)
    for command in (
        ["status", str(run)],
        ["compare", str(whole), str(run)],
        ["report", str(run)],
        ["export", str(run), "--to", str(tmp_path / "out")],
    ):
        code = cli.main(command)
        said = capsys.readouterr().err
        assert code == 0 or (code == 2 and Path(file).name in said), (command, code, said)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_the_judge_is_named_and_a_lost_one_is_counted(run, damage):
    DAMAGES[damage](run / "trials" / TRIALS[1] / "judging.json")
    if damage == "lost":
        assert _took(results.load(run))[0].startswith(
            "Missing verdicts of 3 of 4 trials, whose judging.json is there: 3"
        )
        return
    with pytest.raises(InputError, match=r"search-0001/judging\.json cannot be read"):
        _took(results.load(run))


def test_a_run_that_was_cut_off_between_its_tables_is_read_from_its_trials(run, monkeypatch):
    add_trial(run, "arm-b-s0", won=[0.0, 0.0], pairs=2)
    write, written = results._replace_table, []

    def cut_off(path: Path, table: object) -> None:
        if path.name == "trials.parquet":
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, table)

    with monkeypatch.context() as patched:
        patched.setattr(results, "_replace_table", cut_off)
        with pytest.raises(KeyboardInterrupt):
            results.consolidate(run)
    assert sorted(written) == ["answers.parquet", "curves.parquet", "pairs.parquet"]
    found = frames(run)
    results.consolidate(run)
    assert same(found, frames(run))
    assert set(found["answers"]["trial_id"]) == {*TRIALS, "arm-b-s0"}


def test_a_table_of_another_trial_is_named(run):
    shutil.copyfile(run / "trials" / TRIALS[0] / "answers.parquet", run / "trials" / TRIALS[1] / "answers.parquet")
    with pytest.raises(InputError, match=r"search-0001/answers\.parquet is another trial's"):
        results.consolidate(run)


@pytest.mark.parametrize(
    "row",
    [
        {}, [], None, {"trial_id": "arm-c-s0"}, {"trial_id": "arm-c-s0", "overrides": "["},
        {"trial_id": "arm-c-s0", "overrides": "[]", "phase": "arm", "label": "c", "status": "completed"},
        {"trial_id": "arm-c-s0", "overrides": "{}", "phase": 5, "label": "c", "status": "completed"},
    ],
)  # fmt: skip
def test_a_mark_that_lacks_what_a_row_has_is_a_trial_that_was_interrupted(run, row):
    (run / "trials" / "arm-c-s0").mkdir()
    (run / "trials" / "arm-c-s0" / "trial.json").write_text(json.dumps(row))
    assert set(results.finished_trials(run)) == set(TRIALS)
    assert describe(run)["done"] == 4


@pytest.mark.parametrize("said", [{"written": "x"}, {"trials": []}, {"trials": {"a": 5}}, {"pid": None}, [], 5])
def test_a_foreign_status_says_nothing(run, said):
    (run / "status.json").write_text(json.dumps(said))
    assert not read_status(run).at_work
    assert describe(run)["state"] == "finished"


def test_an_alarm_of_another_form_has_no_step(run, sketched):
    for seed, alarm in enumerate(["U", "", "U at step x", "at step 99999999999999999999"]):
        add_trial(run, f"arm-b-s{seed}", label="b", seed=seed, won=[0.0], alarm=alarm)
    results.consolidate(run)
    assert write_report(run).html.is_file()


@pytest.mark.parametrize("entry", ["experiment", "experiment.search", "data", "data.truncated", "goals", "seeds"])
@pytest.mark.parametrize("value", [5, "text", [1], {"a": 1}, [[]], {"a": None}])
def test_a_manifest_of_another_form_is_reported_or_named(run, whole, entry, value):
    manifest = json.loads((run / "manifest.json").read_text())
    *above, last = entry.split(".")
    inner = manifest
    for key in above:
        inner = inner.setdefault(key, {})
    inner[last] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    try:
        loaded = results.load(run)
        describe(run)
        plan_facts(loaded), facts(loaded)
        differences(loaded.manifest, results.read_manifest(whole))
    except InputError as refused:
        assert "manifest.json" in str(refused)  # noqa: PT017  Either is right.
