"""The tiny model of an embedded task: a Llama of about 0.11 M parameters and a tokenizer of the task's own words."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slime_ray.data.tasks import PIECE, Task

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, USER, ASSISTANT, END)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('only user and assistant turns are known, not ' + message['role']) }}"
    "{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Every turn is opened by its role and closed by `<|end|>`, which is also the end-of-sequence token."""
CONTEXT = 256
"""Positions the model knows, several times what its own task needs."""


def tiny_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with a chat template, for one task's texts.

    A token is a word, digit or mark together with the space before it, so decoding is joining and gives the task's
    texts back to the character. What the task never says becomes `<|unk|>`.
    """
    tokens = [*SPECIAL_TOKENS, *task.vocabulary()]
    tokenizer = Tokenizer(
        models.WordLevel(vocab={token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    task: Task, *, seed: int, hidden_size: int = 64, layers: int = 2, heads: int = 4, intermediate_size: int = 176
) -> LlamaForCausalLM:
    """Build a Llama with random float32 weights that follow from `seed`; the global random state stays.

    With the default sizes it has about 0.11 M parameters. It is the pretrained model that the SFT stage starts from.
    """
    tokenizer = tiny_tokenizer(task)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    # Only the CPU's generator is used, so no GPU's has to be kept; torch.manual_seed would seed those too.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)
