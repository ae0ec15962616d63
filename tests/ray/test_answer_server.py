"""The server of answers on a cluster: how it is started, and what is said where it cannot be."""

from itertools import pairwise
from pathlib import Path

from slime_ray.cli import main
from slime_ray.on_ray import answer_server
from slime_ray.on_ray.answer_server import vllm_command


def test_without_vllm_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answer_server, "find_spec", lambda name: None)
    assert main(["serve-answers", str(tmp_path)]) == 2
    assert "pip install 'slime-ray[vllm]'" in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answer_server, "find_spec", lambda name: object())
    assert main(["serve-answers", str(tmp_path)]) == 2
    assert f"{tmp_path} has no config.json" in capsys.readouterr().err


def test_vllm_is_told_what_the_trials_need():
    command = vllm_command(Path("/c"), model="sft", rank=32, adapters=2, port=8000)
    assert command[:3] == ["vllm", "serve", "/c"]
    options = dict(pairwise(command))
    assert [options[name] for name in ("--max-lora-rank", "--max-loras", "--served-model-name")] == ["32", "2", "sft"]
    assert "--enable-lora" in command
