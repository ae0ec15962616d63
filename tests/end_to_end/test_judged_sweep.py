"""A sweep whose judge is an endpoint: it ends when the judge does, and goes on when the judge is back."""

import pytest

from slime_ray.cli import main
from slime_ray.runs import results
from tests.evaluation.judges.judge_server import KEY, VARIABLE, Response, serving

pytestmark = pytest.mark.ray

SWEEP = """\
name: judged
preset: arithmetic
base:
  data: {{sft_examples: 100, pairs: 20, held_out_pairs: 8}}
  sft: {{updates: 4}}
  training: {{updates: 2, pairs_per_update: 8, evaluations: 1}}
  evaluation:
    prompts: 8
    selection_prompts: 4
    kl_prompts: 2
    decoding: {{max_new_tokens: 8}}
    judge: {{name: llm, model: rule, template: mt-bench-single, base_url: '{url}', api_key_env: {variable}, retries: 0}}
arms: {{slime: {{}}, dpo: {{objective: {{name: dpo}}}}}}
resources: {{concurrent_trials: 1}}
"""


@pytest.mark.faults
def test_a_sweep_whose_judge_stops_ends_with_the_reason_and_goes_on(slime_ray, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    space, run = tmp_path / "judged.yaml", tmp_path / "judged"
    with serving(lambda number, _: Response(503, {}) if number >= 3 else None) as server:
        space.write_text(SWEEP.format(url=server.url, variable=VARIABLE))
        ended = slime_ray("sweep", space, "--storage", tmp_path)
        assert ended.returncode == 1
        assert "0 of 2 trials done" in ended.stderr
        assert "error of the server (503)" in ended.stderr
        assert KEY not in ended.stdout + ended.stderr
        server.behave = lambda *_: None
        done = slime_ray("sweep", space, "--storage", tmp_path, "--resume")
        assert done.returncode == 0, done.stderr
    rows = results.finished_trials(run)
    assert {row["status"] for row in rows.values()} == {"completed"}
    assert {row["judge"] for row in rows.values()} == {results.read_manifest(run)["judge"]}
    assert all(row["win_rate"] is not None for row in rows.values())


def test_a_missing_key_ends_a_sweep_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(VARIABLE, raising=False)
    space = tmp_path / "judged.yaml"
    space.write_text(SWEEP.format(url="http://127.0.0.1:9/v1", variable=VARIABLE))
    assert main(["sweep", str(space), "--storage", str(tmp_path)]) == 2
    assert f"{VARIABLE} holds no key" in capsys.readouterr().err
    assert not (tmp_path / "judged").exists()
