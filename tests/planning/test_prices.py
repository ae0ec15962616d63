"""The table of prices: how a GPU is found in it, how a user's own is laid over it, and what is wrong where."""

import pytest

from slime_ray.errors import InputError
from slime_ray.planning.prices import load_prices, peak_flops


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100pcie"),
        ("h100", "h100"),
        ("H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100sxm480gb"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a10080gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        # Not an L4 with a 0.
        ("NVIDIA L40", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_gpu_is_found_by_what_its_driver_calls_it(name, found):
    gpu = load_prices().find(name)
    assert (gpu and gpu.name) == found


def test_the_peak_is_that_of_the_dtype():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("NVIDIA L40", "bfloat16") is None
    assert peak_flops(None, "bfloat16") is None


def test_own_prices_are_laid_over_those_that_ship(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "date: 2027-01-01\n"
        "gpus:\n"
        "  H100: {usd_per_hour: 1.9}\n"
        "  My GPU: {fp32_tflops: 10, memory_gib: 8, tb_per_s: 0.5, usd_per_hour: 0}\n"
    )
    prices = load_prices(own)
    assert prices.date == "2027-01-01"
    h100 = prices.get("h100", option="--gpu")
    assert (h100.usd_per_hour, h100.memory_gib, prices.place) == (1.9, 79.0, str(own))
    mine = prices.get("my-gpu", option="--gpu")
    assert (mine.bf16_tflops, mine.usd_per_hour) == (None, 0.0)
    assert prices.get("h200", option="--gpu") == load_prices().get("h200", option="--gpu")


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("date: 2027-01-01\n", None, "gpus is missing"),
        ("gpus: []\n", 1, "gpus is [], and a mapping of keys to values is expected"),
        ("gpus:\n  h100: {usd_per_hour: 1}\ncurrency: EUR\n", 3, "currency: unknown key. Allowed: date, gpus"),
        ("gpus:\n  h100: 3\n", 2, "gpus.h100 is 3, and a mapping of keys to values is expected"),
        ("gpus:\n  h100:\n    usd_an_hour: 3\n", 3, "h100: usd_an_hour: unknown key. Did you mean 'usd_per_hour'?"),
        ("gpus:\n  h100:\n    memory_gib: 79\n    usd_per_hour: three\n", 4, "usd_per_hour is 'three'"),
        ("gpus:\n  h100: {usd_per_hour: -1}\n", 2, "usd_per_hour is -1: input should be greater than or equal to 0"),
        ("gpus:\n  h100: {memory_gib: 0}\n", 2, "memory_gib is 0: input should be greater than 0"),
        ("gpus:\n  h100: {bf16_tflops: true}\n", 2, "bf16_tflops is True"),
        ("gpus:\n  new: {usd_per_hour: 1, memory_gib: 8}\n", 2, "new: fp32_tflops is missing. Add it"),
        ("gpus:\n  '!': {usd_per_hour: 1}\n", 2, "gpus.! is '!'. Use letters, digits"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(tmp_path, text, line, complaint):
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(InputError) as error:
        load_prices(own)
    assert str(error.value).startswith(f"{own}:{line}: " if line else f"{own}: ")
    assert complaint in str(error.value)


def test_a_gpu_that_is_not_in_the_table_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r"--gpu h10: .*has no such GPU. Did you mean 'h100'\?.*--prices"):
        load_prices().get("h10", option="--gpu")
