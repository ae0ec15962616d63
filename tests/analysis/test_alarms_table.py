"""The table of alarms, on trials made by hand."""

from pathlib import Path

import pandas as pd
from slime_ray.analysis.trial_tables import alarms

from slime_ray.runs.results import Run


def run(*trials):
    columns = ("label", "phase", "status", "stability", "alarm")
    return Run(
        Path("watched"),
        pd.DataFrame(trials, columns=columns),
        pd.DataFrame(),
        pd.DataFrame(),
        pd.DataFrame(),
        {"name": "watched"},
    )


def test_detections_and_false_alarms_are_counted_by_how_runs_ended():
    table = alarms(
        run(
            ("good", "arm", "completed", 0.4, None),
            ("good", "arm", "completed", 0.5, "length shift, answers 4.00 times as long at step 9"),
            ("bad", "arm", "completed", 0.01, "unlearning, chosen drift -0.31 nat/token at step 120"),
            ("bad", "arm", "stopped", 0.02, "broken outputs, 5 of 5 answers (3 no_stop, 2 format) at step 30"),
            ("bad", "arm", "diverged", 0.0, None),
            ("search-0001", "search", "completed", 0.3, None),
            ("search-0002", "search", "failed", 0.0, None),
        )
    )
    assert table.frame["label"].tolist() == ["good", "bad", "search"]
    assert table.frame["alarms"].tolist() == [1, 2, 0]
    assert table.columns[3].cells == ("9", "30–120", "–")
    assert table.columns[5].cells == ("length shift 1", "unlearning 1, broken outputs 1", "–")
    assert "Of 3 runs that ended with S below 0.05, 2 had raised an alarm; of 3 others, 1." in table.notes[0]


def test_a_run_without_alarms_has_no_table():
    assert alarms(run(("good", "arm", "completed", 0.4, None))).frame.empty
