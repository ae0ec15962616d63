"""What a user gets wrong, from outside: exit code 2, one sentence, no traceback, nothing left behind."""

import json
import os
from pathlib import Path

import pytest

from slime_ray.cli import main
from tests.model.tiny_files import change_weights, cut, without

REAL = """\
name: real
base:
  model: {source: SOURCE}
  data: {train: DATA, held_out_pairs: 4, max_tokens: 64}
  objective: {name: slime}
  training: {learning_rate: 1e-4, updates: 1, pairs_per_update: 2}
  evaluation: {judge: none, prompts: 2, selection_prompts: 2}
arms: {full: {}}
goals: {preference_accuracy: maximize, stability: maximize}
"""


def pair(n: int, chosen: str = "good answer") -> str:
    messages = {"prompt": f"question {n}", "chosen": f"{chosen} {n}", "rejected": f"bad answer {n}"}
    return json.dumps(
        {key: [{"role": "user" if key == "prompt" else "assistant", "content": text}] for key, text in messages.items()}
    )


def write(folder: Path, *, source: str = "embedded/arithmetic", data: str = "", text: str = REAL) -> Path:
    path = folder / "real.yaml"
    path.write_text(text.replace("SOURCE", source).replace("DATA", data or str(folder / "pairs.jsonl")))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard error of a command that must end with exit code 2 and one sentence."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert "Traceback" not in captured.err
    assert captured.err.startswith("slime-ray: ")
    assert len(captured.err.strip().splitlines()) <= 3
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "absent.yaml"], "there is no such file"),
        (["sweep", "demoo"], "Did you mean 'demo'"),
        (["sweep", "demo", "--set", "trials"], "write it as key=value"),
        (["sweep", "demo", "--set", "training.updatess=3"], "Did you mean 'updates'"),
        (["sweep", "demo", "--set", "budget.trials=many"], "budget.trials is 'many'"),
        (["sweep", "demo", "--trials", "-1"], "budget.trials is -1"),
        (["sweep", "demo", "--name", "a/b"], "Use letters"),
        (["sweep", "demo", "--seeds", "many"], "give how many, such as 8, or a list"),
        (["ablate", "factorial", "--set", "ablate.design=factoriel"], "Did you mean 'factorial'"),
        (["check", "demo", "--set", "objective.hard_margin=-1"], "hard_margin is -1"),
        (["check", "demo", "--set", "model.chunk_logits=0"], "model.chunk_logits is 0"),
        (["check", "demo", "--set", "data.row_tokens=0"], "data.row_tokens is 0"),
        (["check", "demo", "--set", "model.attention=fast"], "model.attention is 'fast'"),
        (["check", "demo", "--set", "evaluation.judge={name: exact, scorer: 'no:f'}"], "'no:f' cannot be imported"),
        (["report", "absent"], "absent"),
    ],
)
def test_a_wrong_argument_is_a_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "setting", ["evaluation.judge={name: exact, scorer: 'unfinished:score'}", "objective={name: 'unfinished:Mine'}"]
)
def test_a_file_of_ones_own_that_is_no_python_is_a_sentence(capsys, tmp_path, monkeypatch, setting):
    (tmp_path / "unfinished.py").write_text("def score(:", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be imported: invalid syntax" in refused(capsys, "check", "demo", "--set", setting)


def test_data_that_is_not_here_is_named_with_the_file_beside_it_that_may_be_meant(capsys, tmp_path):
    (tmp_path / "hours.jsonl").write_text("\n".join(map(pair, range(20))), encoding="utf-8")
    assert main(["check", str(write(tmp_path, source="some/model", data=str(tmp_path / "houers.jsonl")))]) == 0
    said = capsys.readouterr().out
    assert f"warning: {tmp_path}/houers.jsonl is not on this machine; {tmp_path}/hours.jsonl is." in said
    assert main(["check", str(write(tmp_path, source="some/model", data=str(tmp_path / "hours.jsonl")))]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_tiny_model_that_does_not_know_the_datas_words_is_refused(capsys, tmp_path):
    message = refused(capsys, "sweep", write(tmp_path), "--storage", tmp_path / "runs")
    assert "knows only its own task's words" in message
    message = refused(capsys, "sweep", "demo", "--set", "model.source=embedded/arithmetik", "--storage", tmp_path)
    assert "Give both the same embedded task" in message
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_run_is_refused_by_report(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(capsys, "report", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_a_store_does_not_have_is_refused_by_report_which_writes_nothing_there(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    assert "first" in refused(capsys, "report", f"file://{tmp_path}/bucket/first")
    assert not (tmp_path / "bucket").exists()
    assert "give a run's address" in refused(capsys, "report", "s3://bucket")


def test_resuming_what_was_never_started_is_refused(capsys, tmp_path):
    message = refused(capsys, "sweep", "demo", "--storage", tmp_path, "--resume")
    assert "there is no such run to resume" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_storage_without_permission_is_refused(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refused(capsys, "sweep", "demo", "--storage", tmp_path / "runs")


def test_a_storage_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in refused(capsys, "sweep", "demo", "--storage", tmp_path / "file" / "runs")


def test_a_cluster_that_does_not_answer_leaves_the_name_free(capsys, tmp_path, monkeypatch):
    import ray

    def silent(*args: object, **options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", silent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6")
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_STRICT_METRIC_CHECKING", "RAY_AIR_NEW_OUTPUT"):
        monkeypatch.setenv(name, "")
    assert "No Ray cluster answers at 127.0.0.1:6" in refused(capsys, "sweep", "demo", "--storage", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
class TestWhatOnlyTheClusterSees:
    """Models and data are opened where the trials run, so these start Ray; it is started once for all of them."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def instance(cls):
        import ray

        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()

    @pytest.mark.parametrize(
        ("source", "content", "message"),
        [
            (
                "no/such-model",
                pair(0),
                "model.source no/such-model: there is no such path",
            ),
            ("/nowhere/model.gguf", pair(0), "does not have /nowhere/model.gguf"),
            ("templated", None, "pairs.jsonl"),
            ("bare", pair(0), "chat template"),
            ("headless", "\n".join(pair(n, "7") for n in range(24)), "its files lack 1 weight (model.norm.weight)"),
            ("cut", pair(0), "model.safetensors is cut short"),
            ("templated", "", "pairs.jsonl"),
            ("templated", "not json\n{\n", "pairs.jsonl"),
            ("templated", json.dumps({"question": "x", "answer": "y"}), "question"),
            ("templated", "\n".join([pair(0), pair(1)]), "pairs"),
        ],
    )
    def test_a_model_or_data_set_that_cannot_be_used_is_a_sentence(self, capsys, tmp_path, source, content, message):
        if source in ("bare", "templated", "headless", "cut"):
            self.save_model(tmp_path / source, template=source != "bare")
            if source == "headless":
                change_weights(tmp_path / source / "model.safetensors", without("model.norm"))
            elif source == "cut":
                cut(tmp_path / source / "model.safetensors")
            capsys.readouterr()
            source = str(tmp_path / source)
        if content is not None:
            (tmp_path / "pairs.jsonl").write_text(content)
        space = write(tmp_path, source=source)
        assert message in refused(capsys, "sweep", space, "--storage", tmp_path / "runs")
        assert [path.name for path in (tmp_path / "runs").glob("[!.]*")] == []

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("data.row_tokens=12", "data.row_tokens is 12, but a prompt has"),
            ("model.attention=varlen", "model.attention is varlen, which needs a GPU"),
        ],
    )
    def test_an_engine_setting_that_cannot_serve_is_a_sentence(self, capsys, tmp_path, setting, message):
        options = ["--set", "sft.updates=1", "--set", setting]
        assert message in refused(capsys, "sweep", "demo", "--storage", tmp_path / "runs", *options)
        assert [path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == []

    @staticmethod
    def save_model(folder: Path, *, template: bool) -> None:
        from slime_ray.data.tasks import load_task
        from slime_ray.model.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer(load_task("arithmetic"))
        if not template:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        tiny_model(load_task("arithmetic"), seed=0).save_pretrained(folder)

    def test_a_trial_that_no_node_could_hold_is_refused_with_the_arithmetic(self, capsys, tmp_path):
        message = refused(capsys, "sweep", "demo", "--storage", tmp_path, "--set", "resources.cpu_per_worker=64")
        assert "A trial asks for 64 CPU" in message
        assert "the largest node has 1 CPU" in message
