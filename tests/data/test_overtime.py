"""Work that does not end is ended, and a chat template that loops for ever ends in a sentence."""

import threading

import pytest

from slime_ray.data import chat_template
from slime_ray.data.chat_template import ChatRenderer
from slime_ray.data.overtime import Overtime, within
from slime_ray.errors import InputError

from .chat import pair, simple

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MACRO = "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(90) }}"
TURNS = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def endless():
    while True:
        pass


def stubborn():
    for _ in range(2):
        try:
            endless()
        except Overtime:
            continue
    raise AssertionError("it should have been ended before")


def test_work_that_ends_gives_its_value_and_its_errors():
    assert within(60, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)


def test_endless_work_is_ended_in_any_thread():
    with pytest.raises(Overtime):
        within(0.01, endless)
    ended = []

    def work():
        try:
            within(0.01, endless)
        except Overtime:
            ended.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert ended == [True]
    assert within(60, lambda: 5) == 5


def test_work_that_catches_everything_is_ended_again():
    with pytest.raises(AssertionError):
        within(0.01, stubborn)


@pytest.mark.parametrize("template", [LOOPS + TURNS, MACRO + TURNS], ids=["loops", "macro"])
def test_an_endless_template_ends_in_a_sentence(monkeypatch, template):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    tokenizer = simple("unasked")
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="does not render a question and an answer: it had not ended"):
        ChatRenderer(tokenizer)


def test_a_template_that_loops_for_one_row_names_it(monkeypatch):
    tokenizer = simple("unasked")
    tokenizer.chat_template = "{% if messages[0].content == 'Loop!' %}" + LOOPS + "{% endif %}" + TURNS
    renderer = ChatRenderer(tokenizer)
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    with pytest.raises(InputError, match="rendering the conversation that ends with 'Loop!', it had not ended"):
        renderer.prompt_texts([pair("Hi")["prompt"], pair("Loop!")["prompt"]])
