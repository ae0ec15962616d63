"""The made-up run of the benchmark of reports is one that can be reported."""

from slime_ray.analysis.report import write_report

from benchmarks.report import make_run


def test_the_made_up_run_has_a_report_with_all_that_a_search_has(tmp_path, sketched):
    make_run(tmp_path / "run", trials=24, answer=40)
    tables = write_report(tmp_path / "run").tables
    assert {"win_rate_stability", "search_trials", "search_winners", "search_budget"} <= set(tables)
    assert len(tables["search_trials"].frame) == 4
