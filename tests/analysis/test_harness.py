"""Samples of lm-evaluation-harness: two models compared document by document, against sums by hand and scipy's."""

import json
import re

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel
from slime_ray.analysis.harness import are_samples, compare_samples

from slime_ray.cli import main
from slime_ray.errors import InputError


def sample(doc_id, value, **changes):
    """A row as `lm_eval --log_samples` writes it, but for the texts."""
    row = {"doc_id": doc_id, "doc": {}, "target": "x", "arguments": {}, "resps": [], "filtered_resps": []}
    hashes = {"doc_hash": f"d{doc_id}", "prompt_hash": f"p{doc_id}", "target_hash": f"t{doc_id}"}
    return row | hashes | {"filter": "none", "metrics": ["acc"], "acc": value} | changes


@pytest.fixture
def write(tmp_path):
    def write(model, **tasks):
        for task, rows in tasks.items():
            path = tmp_path / model / "org__name" / f"samples_{task}_2025-01-31T10-11-12.345678.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / model

    return write


def values(*numbers):
    return [sample(place, number) for place, number in enumerate(numbers)]


def row(table, task, metric="acc"):
    frame = table.frame.set_index(["task", "metric"])
    return frame.loc[(task, metric)]


def test_a_task_has_the_mean_paired_change_with_an_interval_over_documents(write):
    rng = np.random.default_rng(0)
    before, after = rng.random(200), rng.random(200)
    table = compare_samples([write("sft", arc_easy=values(*before)), write("slime", arc_easy=values(*after)[::-1])])
    found = row(table, "arc_easy")
    assert (found["first"], found["second"]) == pytest.approx((before.mean(), after.mean()))
    assert found["change"] == pytest.approx((after - before).mean())
    # Of shares, one more document that is won and one that is lost.
    wider = np.sqrt(1 + 1 / 200**2 / ((after - before).var(ddof=1) / 200))
    low, high = ttest_rel(after, before).confidence_interval(0.95)
    assert (found["change_high"] - found["change_low"]) / (high - low) == pytest.approx(wider)


def test_models_that_agree_on_all_documents_have_an_interval_or_are_said_to_have_none(write):
    right = [float(place % 3 > 0) for place in range(50)]
    table = compare_samples([write("sft", a=values(*right)), write("slime", a=values(*right))])
    found = row(table, "a")
    # Student's t of 49 degrees, times sqrt(2 * 0.5) / 50.
    assert (found["change_low"], found["change_high"]) == pytest.approx((-2.0096 / 50, 2.0096 / 50), rel=1e-4)
    # A perplexity, or points of a hundred, have no bounds that are known.
    points = [10.0 * number for number in right]
    table = compare_samples([write("sft", a=values(*points)), write("slime", a=values(*points))])
    assert np.isnan(row(table, "a")["change_low"])
    assert table.notes[-1].startswith("Without ends")


def test_the_change_of_a_share_ends_at_one(write):
    found = row(compare_samples([write("sft", a=values(0.0, 0.0, 1.0)), write("slime", a=values(1.0, 1.0, 0.0))]), "a")
    assert (found["change_low"], found["change_high"]) == (-1.0, 1.0)


def test_every_task_counts_the_same_in_the_mean_of_tasks(write):
    # Changes: 1 of 2 documents, and 0 of 8: the mean of tasks is 1/4, that of documents would be 1/10.
    first = write("sft", a=values(0.0, 0.0), b=values(*[1.0] * 8))
    table = compare_samples([first, write("slime", a=values(1.0, 0.0), b=values(*[1.0] * 8))])
    assert row(table, "mean of tasks")["change"] == pytest.approx(0.25)
    assert row(table, "mean of tasks")["documents"] == 10


def test_the_interval_of_the_mean_of_tasks_is_welchs_of_two(write):
    # The mean of a and b is half of a minus -b, whose interval scipy has by Welch and Satterthwaite.
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.2, 1, 30), rng.normal(-0.1, 3, 12)
    table = compare_samples(
        [write("sft", a=values(*[0.0] * 30), b=values(*[0.0] * 12)), write("slime", a=values(*a), b=values(*b))]
    )
    expected = ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    found = row(table, "mean of tasks")
    assert (2 * found["change_low"], 2 * found["change_high"]) == pytest.approx(tuple(expected))


def test_documents_of_one_model_alone_are_left_out_and_counted(write):
    table = compare_samples([write("sft", a=values(0.0, 1.0, 1.0)), write("slime", a=values(1.0, 1.0))])
    assert (row(table, "a")["documents"], row(table, "a")["left_out"]) == (2, 1)
    assert row(table, "a")["change"] == pytest.approx(0.5)


def test_filters_are_metrics_of_their_own(write):
    rows = [sample(0, 0.0, filter="strict"), sample(1, 0.0, filter="strict")]
    rows += [one | {"filter": "flexible"} for one in rows]
    better = [one | {"acc": float(one["filter"] == "flexible")} for one in rows]
    table = compare_samples([write("sft", gsm8k=rows), write("slime", gsm8k=better)])
    assert dict(zip(table.frame["filter"], table.frame["change"], strict=True)) == {"flexible": 1.0, "strict": 0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_hash": "other"}, "a: 1 of 2 documents have another document in "),
        ({"prompt_hash": "other"}, "a: 1 of 2 documents have another prompt in .*chat template"),
        ({"target_hash": "other"}, "a: 1 of 2 documents have another target in "),
        ({"metrics": ["acc", "acc_norm"], "acc_norm": 1.0}, r"a: only one of .* has acc_norm \(none\)"),
        ({"metrics": ["f1"]}, r":2: KeyError: 'f1'.*0\.4\.5 or later"),
        ({"doc_id": 0}, ":2: document 0 is there twice with the filter none"),
    ],
)
def test_other_prompts_other_metrics_and_broken_rows_are_refused(write, changes, message):
    first, rows = write("sft", a=values(0.0, 1.0)), values(0.0, 1.0)
    rows[1] |= changes
    with pytest.raises(InputError, match=message):
        compare_samples([first, write("slime", a=rows)])


def test_other_tasks_and_several_files_of_a_task_are_refused(write, tmp_path):
    first = write("sft", a=values(0.0))
    with pytest.raises(InputError, match=r"samples of a, and .* of b"):
        compare_samples([first, write("other", b=values(0.0))])
    (first / "org__name" / "samples_a_2025-02-01T10-11-12.345678.jsonl").write_text(json.dumps(sample(0, 1.0)) + "\n")
    with pytest.raises(InputError, match="several files of samples of a"):
        compare_samples([first, first])
    with pytest.raises(InputError, match="3 paths"):
        compare_samples([first] * 3)
    assert not are_samples(tmp_path / "absent")


def test_compare_takes_two_folders_of_samples_and_writes_the_numbers(write, tmp_path, capsys):
    first, second = write("sft", a=values(0.0, 0.0, 1.0, 1.0)), write("slime", a=values(1.0, 0.0, 1.0, 1.0))
    assert main(["compare", str(first), str(second), "--csv", str(tmp_path / "both.csv")]) == 0
    assert re.search(r"a +acc +none +4 +0 +0\.5000 +0\.7500 +\+0\.2500 \[", capsys.readouterr().out)
    assert "change_low" in (tmp_path / "both.csv").read_text()
