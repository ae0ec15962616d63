"""Prediction-powered win rates: against the authors' own package, by simulation, and on files."""

import json

import numpy as np
import pytest
from slime_ray.analysis import adjusted, tables
from slime_ray.analysis.report import write_report

from slime_ray import cli
from slime_ray.errors import InputError
from slime_ray.runs import results

from .conftest import add_trial, finish


def draw(rng, n, others, *, bias, chances):
    """Labels, and a judge that gives a win whatever the answer is, in a share of cases."""
    labels = rng.choice([0.0, 0.5, 1.0], n + others, p=chances)
    judged = np.where(rng.random(n + others) < 1 - bias, labels, 1.0)
    return labels[:n], judged[:n], judged[n:]


def test_rate_and_weight_are_those_of_the_authors_package():
    labels, judged, others = draw(np.random.default_rng(5), 40, 260, bias=0.2, chances=[0.4, 0.1, 0.5])
    rate, weight = adjusted.corrected_rate(labels, judged, others)
    # ppi_py 0.2.3: ppi_mean_ci(labels, judged, others, alpha=0.05); its covariance is divided by n, not by n - 1.
    assert weight * 39 / 40 == pytest.approx(0.7548464132474317)
    assert rate.value == pytest.approx(0.53516139, abs=1e-3)
    # Wider than the normal interval, for 40 labels are few.
    assert 1 < (rate.high - rate.low) / (0.62609304 - 0.44422975) < 1.12


@pytest.mark.parametrize(
    ("n", "others", "bias", "chances", "least", "most"),
    [
        (20, 80, 0.2, [0.4, 0.1, 0.5], 0.93, 0.98),
        (30, 220, 0.5, [0.4, 0.1, 0.5], 0.93, 0.98),
        (50, 450, 0.05, [0.4, 0.1, 0.5], 0.93, 0.985),
        (40, 200, 0.1, [0.9, 0.0, 0.1], 0.93, 0.98),
        (100, 400, 0.1, [0.02, 0.0, 0.98], 0.93, 1.0),
    ],
)
def test_the_interval_covers_the_truth_whatever_the_judge_gives_too_much(n, others, bias, chances, least, most):
    rng, truth, tries = np.random.default_rng(1), chances[1] / 2 + chances[2], 1500
    rates = [adjusted.corrected_rate(*draw(rng, n, others, bias=bias, chances=chances))[0] for _ in range(tries)]
    assert least <= np.mean([rate.covers(truth) for rate in rates]) <= most
    # The judge alone is off by its bias.
    assert abs(np.mean([rate.value for rate in rates]) - truth) < 0.01


def test_a_judge_that_is_right_counts_and_one_that_guesses_does_not():
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0], 2000)
    right, weight = adjusted.corrected_rate(labels[:100], labels[:100], labels[100:])
    guessed, little = adjusted.corrected_rate(labels[:100], rng.choice([0.0, 1.0], 100), rng.choice([0.0, 1.0], 1900))
    assert weight == pytest.approx(1 / (1 + 100 / 1900), rel=0.02)
    assert little < 0.2
    assert right.high - right.low < (guessed.high - guessed.low) / 3
    # Without other prompts the labels stand alone, and too few are nothing.
    alone, none = adjusted.corrected_rate(labels[:100], labels[:100], np.array([]))
    assert (none, alone.value) == (0.0, labels[:100].mean())
    assert adjusted.corrected_rate(labels[:19], labels[:19], labels) is None


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The judge gives every second loss to the policy, of two seeds."""
    tmp_path = tmp_path_factory.mktemp("judged")
    truth = [float(index % 3 == 0) for index in range(60)]
    judged = [1.0 if index % 2 else outcome for index, outcome in enumerate(truth)]
    for seed in range(2):
        add_trial(tmp_path, f"arm-a-s{seed}", label="a", seed=seed, won=judged, judge="llm:m")
    return finish(tmp_path, {"judge": "llm:m"})


@pytest.fixture
def run(judged, tmp_path):
    """With a file of labels on 40 of its 60 prompts, of one seed."""
    truth = [float(index % 3 == 0) for index in range(40)]
    rows = [{"trial_id": "arm-a-s0", "prompt_id": f"p{index:02}", "outcome": one} for index, one in enumerate(truth)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return judged, tmp_path / "labels.jsonl"


@pytest.mark.usefixtures("sketched")
def test_a_report_with_labels_has_the_corrected_rate(run, capsys):
    path, labels = run
    loaded = results.load(path)
    table = adjusted.corrected(loaded, tables.win_rate_stability(loaded), adjusted.read_labels(labels))
    (row,) = table.frame.to_dict("records")
    judged = np.array([1.0 if index % 2 else float(index % 3 == 0) for index in range(60)])
    truth = np.array([float(index % 3 == 0) for index in range(40)])
    expected, _ = adjusted.corrected_rate(truth, judged[:40], judged[40:])
    assert row["corrected"] == pytest.approx(expected.value)
    assert row["bias"] == pytest.approx((judged[:40] - truth).mean())
    assert (row["labelled"], row["prompts"], row["win_rate"]) == (40, 60, pytest.approx(judged.mean()))
    # The same as CSV.
    adjusted.read_labels(labels).to_csv(labels.with_suffix(".csv"), index=False)
    files = write_report(path, labels=labels.with_suffix(".csv"))
    assert files.tables_by_name["corrected"].frame.equals(table.frame)
    assert cli.main(["report", str(path), "--labels", str(labels)]) == 0
    assert "corrected by labels" in capsys.readouterr().out
    assert "corrected" not in write_report(path).tables_by_name


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"trial_id": "arm-a-s0", "prompt_id": "p99", "outcome": 1}'], "1 of 1 labels are of no answer"),
        (['{"trial_id": "arm-a-s9", "prompt_id": "p01", "outcome": 1}'], "trial arm-a-s9, prompt p01"),
        (['{"trial_id": "arm-a-s0", "prompt_id": "p01", "outcome": "won"}'], "label 1 has the outcome 'won'"),
        (['{"trial_id": "arm-a-s0", "prompt_id": "p01"}'], "lacks outcome"),
        (
            ["nonsense"],
            "cannot be read: Expecting value: line 1 column 1 (char 0). Give a CSV or JSONL file with trial_id",
        ),
        (['{"trial_id": "arm-a-s0"}', "5"], "cannot be read: line 2 holds no object. Give a CSV"),
        (['{"trial_id": "arm-a-s0", "prompt_id": "p01", "outcome": [1]}'], "label 1 has the outcome None"),
    ],
)
@pytest.mark.usefixtures("sketched")
def test_labels_of_something_else_are_refused(run, capsys, lines, sentence):
    path, labels = run
    labels.write_text("\n".join(lines))
    assert cli.main(["report", str(path), "--labels", str(labels)]) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory\. Give a CSV"):
        adjusted.read_labels(path / "nowhere.csv")


def test_too_few_labels_are_said(run):
    path, labels = run
    loaded = results.load(path)
    few = adjusted.read_labels(labels).head(7)
    table = adjusted.corrected(loaded, tables.win_rate_stability(loaded), few)
    assert table.frame.empty
    assert table.notes[-1] == "Fewer than 20 labelled prompts: a (7)."


def test_labels_of_answers_without_a_verdict_are_counted(tmp_path):
    outcomes = [float(index % 2) for index in range(60)]
    add_trial(tmp_path, "a", label="a", won=[float("nan")] * 3 + outcomes[3:], judge="llm:m", win_rate=0.5)
    loaded = results.load(finish(tmp_path, {"judge": "llm:m"}))
    labels = [{"trial_id": "a", "prompt_id": f"p{index:02}", "outcome": outcomes[index]} for index in range(30)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    read = adjusted.read_labels(tmp_path / "labels.jsonl")
    table = adjusted.corrected(loaded, tables.win_rate_stability(loaded), read)
    assert table.frame.loc[0, ["labelled", "prompts"]].tolist() == [27, 57]
    assert table.notes[-1].startswith("3 labels count for nothing")
