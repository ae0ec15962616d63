"""How much data there is, and what trials and stages compute with it, beside what is reckoned by hand."""

import pytest
from transformers import GPTNeoXConfig

from slime_ray.errors import InputError
from slime_ray.model.flops import Layout, Lengths, step_flops
from slime_ray.planning.material import DataAssumptions, DataPart, Material, PromptCounts, find_material, parse_lengths
from slime_ray.planning.work import Amounts

from .conftest import TINY

ARMS = "arms: {slime: {}}\n"


def amounts_of(experiment, material=None, *, workers=1):
    settings = experiment.settings
    found = material or find_material(settings, DataAssumptions())
    return Amounts(settings, found, workers=workers, gpu=False)


def test_embedded_data_is_counted_to_the_token(load):
    material = find_material(load(TINY + ARMS).settings, DataAssumptions())
    assert (material.sft.count, material.train.count, material.held_out.count) == (100, 40, 12)
    assert material.prompts["report"].count == material.prompts["report"].turns == 10
    assert 40 * material.train.tokens == pytest.approx(round(40 * material.train.tokens))
    assert material.train.tokens < material.train.longest < 2 * material.train.tokens
    assert "counted" in material.provenance
    assert material.seconds is not None


def test_data_that_is_not_here_is_planned_from_what_is_known_of_it(load):
    settings = load("name: x\npreset: gemma3-4b/paper\narms: {slime: {}}\n"
                    "goals: {preference_accuracy: maximize, stability: maximize}\n").settings  # fmt: skip
    material = find_material(settings, DataAssumptions())
    assert material.seconds is None
    # Of 61,135 pairs 1,000 are held out, and 34 % of the rest are for SFT.
    assert (material.held_out.count, material.sft.count, material.train.count) == (1000, 20446, 39689)
    assert material.train.tokens == 180 + 250 + 250
    assert material.sft.tokens == 180 + 250
    # There are prompts enough for 256 + 512.
    assert (material.prompts["selection"].count, material.prompts["report"].count) == (256, 512)
    material = find_material(settings, DataAssumptions(pairs=2001, lengths=(10.5, 20.25, 30.25)))
    assert (material.held_out.count, material.sft.count, material.train.count) == (1000, 340, 661)
    assert material.train.tokens == pytest.approx(61)
    assert "2,001 pairs as given" in material.provenance
    few = find_material(settings.model_copy(update={"data": settings.data.model_copy(update={"held_out_pairs": 96})}),
                           DataAssumptions(pairs=500))  # fmt: skip
    # 96 prompts for 256 + 512 that were asked for: a third of them for selection.
    assert (few.prompts["selection"].count, few.prompts["report"].count) == (32, 64)
    with pytest.raises(InputError, match="Of 1001 pairs 1000 are held out"):
        find_material(settings, DataAssumptions(pairs=1001))


def test_data_of_which_nothing_is_known_has_to_be_told_of(load):
    text = "name: x\npreset: qwen3-4b/paper\nbase: {data: {train: somebody/pairs}}\narms: {slime: {}}\n"
    goals = "goals: {preference_accuracy: maximize, stability: maximize}\n"
    settings = load(text + goals).settings
    with pytest.raises(InputError, match=r"somebody/pairs is not read for a plan, .*--lengths P,C,R"):
        find_material(settings, DataAssumptions(pairs=5000))
    with pytest.raises(InputError, match=r"--pairs N, or data.pairs"):
        find_material(settings, DataAssumptions(lengths=(100.0, 100.0, 100.0)))
    settings = load(text + goals, data__pairs=660).settings
    material = find_material(settings, DataAssumptions(lengths=(100.0, 100.0, 100.0)))
    # 34 % for SFT beside 66 % to train on.
    assert (material.sft.count, material.train.count) == (340, 660)


@pytest.mark.parametrize("text", ["180,250", "a,b,c", "0,1,1", "1,2,nan", "1,2,inf", ""])
def test_lengths_are_three_numbers(text):
    with pytest.raises(InputError, match="such as 180,250,250"):
        parse_lengths(text)
    assert parse_lengths("180, 250.5,1") == (180, 250.5, 1)


def test_the_longest_answer_of_a_batch():
    part = DataPart(1, 1, 1, 1)
    some = Material(part, part, part, {}, tuple(range(1, 101)), 1, "")
    # The largest of 9 lies at 9/10 of all on average, of 1 at the middle.
    assert (some.longest(9), some.longest(1), some.longest(10**6)) == (91, 51, 100)


def test_answers_of_which_the_mean_is_known_are_about_log_normal(load):
    settings = load("name: x\npreset: gemma3-4b/paper\narms: {slime: {}}\ngoals: {stability: maximize}\n").settings
    about = find_material(settings, DataAssumptions(lengths=(1.0, 150.0, 250.0)))
    # exp(-0.7^2 / 2): a log-normal's median below its mean; of 99 the largest lies 2.33 widths above the median.
    assert about.answer == pytest.approx(200, rel=0.01)
    assert about.longest(1) == pytest.approx(200 * 0.7827, rel=0.01)
    assert about.longest(99) == pytest.approx(200 * 0.7827 * 5.097, rel=0.02)


MEAN = Material(
    sft=DataPart(100, 10, 20, 0, 30),
    train=DataPart(40, 10, 20, 30, 60),
    held_out=DataPart(200, 10, 20, 30, 60),
    prompts={"selection": PromptCounts(6, 6, 10.0), "report": PromptCounts(10, 14, 10.0)},
    answers=(5, 6, 7),
    longest_prompt=10,
    provenance="",
)


def test_a_trial_by_hand(load):
    """7 updates of 16 of 40 pairs: 16, 16 and 8, again and again; so 2 epochs of 40 and 16 of the third."""
    amounts = amounts_of(load(TINY + ARMS), MEAN)
    work = amounts.trial("report")
    assert (work.updates["update"], work.updates["token"]) == (7, 96 * 60)
    flops = step_flops(amounts.model.sizes, Layout.of_packed([Lengths(10, 20, 30)]), head_trained=True)
    assert work.updates["flop"] == 96 * flops
    assert (work.course["update"], work.course["token"]) == (7, 96 * 60)
    # At updates 2, 5 and 7 (7/3 and 14/3 rounded) 128 of the 200 held-out pairs are read and all 6 selection prompts,
    # fewer than the sentinel's 32, answered in batches of 4: one whole, one of 2. The longest
    # answer has 7 tokens, and its stop token makes 8, which is the limit.
    assert work.course["read_token"] == 3 * (128 * 60 + 6 * 10)
    assert work.course["decode_step"][1] == 3 * (8 + 8)
    assert work.course["decode_row"][1] == 3 * (4 * 8 + 2 * 8)
    # 10 first turns and 4 second ones, whose prompts hold the first and its answer: 2 * 10 + 6.
    assert work.end["decode_row"][1] == 14 * 8
    assert work.end["decode_step"] == pytest.approx([4 * 0.8 * 8, 4 * 8, 4 * 8])
    # Four answers are read by the model and by its reference.
    assert work.end["read_token"] == 200 * 60 + 10 * 10 + 4 * (2 * 10 + 6) + 2 * 4 * (10 + 6)
    # 14 answers and 14 of the baseline's; and on the way those of the sentinel.
    assert (work.end["verdict"], work.judged) == (28, (3 * 6, 14))


def test_a_trial_without_updates_answers_and_is_judged(load):
    work = amounts_of(load(TINY + ARMS, training__updates=0), MEAN).trial("selection")
    assert set(work.course.values()) == {0}
    assert work.end["decode_row"][1] == 6 * 8


def test_workers_share_the_batches_of_answers(load):
    text = TINY.replace("batch: 4", "batch: 1") + ARMS
    alone, of_three = (amounts_of(load(text), MEAN, workers=workers).trial("report") for workers in (1, 3))
    steps = alone.end["decode_step"][1] / 14
    # 10 and 4 batches among 3: four rounds, and two.
    assert of_three.end["decode_step"][1] == (4 + 2) * steps


def test_models_that_share_no_prompts_read_them_twice(load, tmp_path):
    config = GPTNeoXConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config.save_pretrained(tmp_path)
    work = amounts_of(load(TINY + ARMS, model__source=str(tmp_path)), MEAN).trial("report")
    assert work.updates["token"] == 96 * (60 + 10)


def test_stages_by_hand(load):
    amounts = amounts_of(load(TINY + ARMS), MEAN)
    made = amounts.stages()
    assert (made["sft"]["update"], made["sft"]["token"]) == (4, 4 * 8 * 30)
    assert made["step0"]["read_token"] == 200 * 60
    assert made["baseline"]["decode_row"][1] == (6 + 14) * 8
    assert made["reference"]["read_token"] == 40 * 60


def test_what_is_saved_by_hand(load):
    text = "name: x\npreset: gemma3-4b/paper\narms: {slime: {}}\n"
    goals = "goals: {preference_accuracy: maximize, stability: maximize}\n"
    model = amounts_of(load(text + goals), MEAN).model
    # What is trained is held and saved in float32; the checkpoint's head is no longer that of the embeddings.
    head = 262208 * 2560
    assert model.saved == 4 * (119_209_984 + head)
    assert model.merged == pytest.approx(4 * (3_208_642_560 + 2 * head), rel=1e-3)
    whole = amounts_of(load(text + goals, model__lora=None), MEAN).model
    assert whole.saved == whole.merged == pytest.approx(4 * (3_208_642_560 + head), rel=1e-3)
