"""`slime-ray export --push-to-hub` against a server that speaks the Hub's calls."""

import pytest
from huggingface_hub import ModelCard, constants

from slime_ray import cli
from slime_ray.config.experiment import arm_trials
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs.store import RunStore
from slime_ray.training.outcome import say_nothing
from slime_ray.training.worker import run_trial

from .hub_server import TOKEN, serving_hub
from .test_export import MODELS, save_model

TEXT = """\
name: given
preset: arithmetic
base:
  data: {sft_examples: 64, pairs: 16, held_out_pairs: 4}
  model: {source: SOURCE, lora: {rank: 2, targets: [q_proj]}}
  sft: null
  training: {updates: 1, pairs_per_update: 16, evaluations: 1}
  evaluation: {prompts: 2, selection_prompts: 2, kl_prompts: 2, decoding: {max_new_tokens: 4}}
arms: {slime: {}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("pushed")
    model = save_model(root / "mine", **MODELS["llama"])
    (root / "given.yaml").write_text(TEXT.replace("SOURCE", str(model)))
    trial = arm_trials(load_experiment(root / "given.yaml"))[0]
    run_trial(trial, run=root / "runs" / "first", storage=RunStore(root / "runs"), report=say_nothing)
    return root / "runs" / "first"


@pytest.fixture
def export(run, tmp_path, monkeypatch, capsys):
    """Exports in this process, which is told another Hub and token; gives the exit code and what was said of it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))

    def do(*arguments, endpoint="http://127.0.0.1:9", token=TOKEN, name="lab/model", offline=False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", token)
        command = ["export", str(run), "arm-slime-s0", "--to", str(tmp_path / "out"), "--push-to-hub", name]
        code = cli.main([*command, *arguments])
        said = capsys.readouterr()
        assert TOKEN not in said.err + said.out
        return code, said.err.splitlines()

    return do


def test_what_was_exported_is_on_the_hub_byte_by_byte(export, tmp_path):
    with serving_hub() as hub:
        assert export("--merge", "--private", endpoint=hub.url) == (0, [])
    assert (hub.made["organization"], hub.made["name"], hub.made["visibility"]) == ("lab", "model", "private")
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: hub.files[name] for name in local} == local
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(local)
    card = ModelCard(local["README.md"].decode()).text
    assert "# lab/model" in card
    (tmp_path / "again.yaml").write_text(card.partition("```yaml\n")[2].partition("```")[0])
    assert load_experiment(tmp_path / "again.yaml").settings.objective.name == "slime"
    assert not any(TOKEN.encode() in content for content in local.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token": ""}, "there is no token. Set HF_TOKEN, or log in with `hf auth login`."),
        ({"token": "hf_wrong"}, "the Hub does not take the token"),
        ({"name": "stranger/model"}, "the token is of me, who may write to me, lab and not to stranger."),
        ({"name": "model"}, "a repository is called ORG/NAME."),
        ({"offline": True}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(export, tmp_path, given, said):
    with serving_hub() as hub:
        code, [line] = export("--merge", endpoint=hub.url, **given)
    assert code == 2, line
    assert said in line
    assert not (tmp_path / "out").exists()
    assert {method for method, _ in hub.requests} <= {"GET"}


def test_an_adapter_on_a_folder_of_this_machine_is_not_pushed(export):
    code, [line] = export()
    assert code == 2
    assert "is a folder of this machine, which nobody else has. Give --merge." in line


def test_without_a_hub_it_is_a_sentence(export):
    code, [line] = export("--merge")
    assert code == 2
    assert "--push-to-hub lab/model: the Hub" in line


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/api/repos/create", 403, "You don't have the rights to create a model under lab"),
        ("/preupload/", 403, "Forbidden: pass `create_pr=1`"),
        ("/info/lfs", 413, "Too large"),
        ("/commit/", 500, "Internal error"),
    ],
)
def test_a_hub_that_fails_half_way_leaves_the_folder_whole(export, tmp_path, part, status, said):
    with serving_hub({part: (status, said)}) as hub:
        code, [line] = export("--merge", endpoint=hub.url)
    assert code == 1, line
    assert said in line
    assert f"`hf upload lab/model {tmp_path / 'out'}` pushes it" in line
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not hub.files
