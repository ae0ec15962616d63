"""Tokenizers and chat templates of every shape that is told apart, made without a download.

The templates in tests/data/templates have the shape of the families' own, text parts only: llama3, qwen3 and gemma3
are those the presets use, inst is Llama 2 and Mistral, zephyr is Zephyr and TinyLlama, r1 is a distilled DeepSeek-R1.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slime_ray.data.template_text import resolve_chat_template

TEMPLATES = Path(__file__).parent / "templates"

CORPUS = [
    "The quick brown fox jumps over the lazy dog, user and assistant alike.",
    "What is 2 + 2? It is 4.\n\nThank you! system model think Today Date",
]


def byte_level(template, special, *, eos, bos=None):
    """A byte-level BPE tokenizer (GPT-2, Llama 3, Qwen), trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template and (TEMPLATES / f"{template}.jinja").read_text()
    return fast


def sentencepiece_like(template, prefix):
    """A tokenizer of characters that shows spaces as a mark and puts one in front of every text it is given.

    `prefix` is a prepend scheme, or "normalizer": in front of every piece between special tokens, as older
    conversions of Llama 2 do.
    """
    known = sorted(set("".join(CORPUS)) - {" ", "\n"} | set("AaBbQq12.xy?<|>[]/"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *known]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return fast


# As pretrained checkpoints have it: their own end-of-sequence token is not the one that closes a turn.
SPECIAL = {
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>", "<|end_of_text|>",
    ),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>"),
    "gemma3": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>"),
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>"),
}  # fmt: skip
END = {"llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>", "chatml": "<|im_end|>"}
FAMILIES = tuple(SPECIAL)


def make(family):
    special, bos, eos = SPECIAL[family]
    tokenizer = byte_level(None if family == "chatml" else family, special, bos=bos, eos=eos)
    tokenizer.chat_template = resolve_chat_template(tokenizer, "chatml" if family == "chatml" else None)
    return tokenizer


def simple(template, **kwargs):
    special = ["<s>", "<eos>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|end|>"]
    return byte_level(template, special, bos="<s>", eos="<eos>", **kwargs)


def letter_by_letter():
    """One token for each letter: P and Q for a prompt, its special token <a> before an answer, <eos> after it."""
    vocabulary = {token: index for index, token in enumerate(["<a>", "<eos>", "<unk>", *"abcdefghpq"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", additional_special_tokens=["<a>"]
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else '<a>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    return fast


def say(role, content):
    return {"role": role, "content": content}


def pair(prompt="Hi", chosen="good", rejected="bad"):
    prompt = [say("user", prompt)] if isinstance(prompt, str) else prompt
    return {
        "prompt": prompt,
        "chosen": [say("assistant", chosen)],
        "rejected": [say("assistant", rejected)],
    }


SHORT = [say("user", "Hi")]
TALK = [say("system", "Be kind."), say("user", "Hi"), say("assistant", "Yes? "), say("user", " 2 + 2?")]
