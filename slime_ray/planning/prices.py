"""The table of GPUs: what each computes, holds and costs an hour. It ships with examples and is the user's to edit."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from slime_ray.config.yaml_source import YamlSource, load_yaml
from slime_ray.errors import InputError, near

SHIPPED = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    fp32_tflops, bf16_tflops: peak, in 1e12 operations a second; None where it does not compute in bfloat16. memory_gib:
    what programs see. tb_per_s: bandwidth of its memory, in 1e12 bytes a second. place: where its price stands.
    """

    name: str
    fp32_tflops: float
    memory_gib: float
    tb_per_s: float
    usd_per_hour: float
    bf16_tflops: float | None = None
    place: str = ""

    def peak(self, dtype: str) -> float | None:
        """Return FLOP/s in `bfloat16` or `float32`; None where the GPU does not compute in that."""
        tflops = self.bf16_tflops if dtype == "bfloat16" else self.fp32_tflops
        return None if tflops is None else tflops * 1e12


NUMBERS = tuple(field.name for field in fields(Gpu) if field.name not in ("name", "place"))


@dataclass(frozen=True)
class GpuPrices:
    """The GPUs by name, and the date of the prices as the last file to name one says it."""

    gpus: Mapping[str, Gpu]
    date: str
    place: str

    def find(self, name: str) -> Gpu | None:
        """Find the entry with the longest name that is one or more words of this one; None where there is none."""
        words = re.findall(r"[a-z0-9]+", name.lower())
        parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        return self.gpus[max(matches, key=len)] if (matches := parts & self.gpus.keys()) else None

    def get(self, name: str, *, option: str) -> Gpu:
        """Find a GPU by its name. Raises InputError, which names the option, where there is none."""
        gpu = self.find(name)
        if gpu is None:
            like = difflib.get_close_matches(plain(name), self.gpus, n=1)
            hint = f" Did you mean {like[0]}?" if like else ""
            raise InputError(
                f"{option} {name}: {self.place} has no such GPU.{hint} There are: {', '.join(self.gpus)}. Add it in a "
                "file of your own and give that with --prices."
            )
        return gpu


def plain(name: str) -> str:
    """Reduce a name to its letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def load_prices(path: Path | None = None) -> GpuPrices:
    """Load the shipped table under the entries of `path`. Raises InputError with file and line."""
    gpus: dict[str, Gpu] = {}
    dates = []
    for source in (load_yaml(SHIPPED), *([load_yaml(path)] if path else [])):
        _add_gpus(source, gpus)
        dates.append(source.data.get("date"))
    date = str(dates[-1] or f"{dates[0]} where {path} says no other")
    return GpuPrices(gpus, date, str(path or SHIPPED))


def _add_gpus(source: YamlSource, gpus: dict[str, Gpu]) -> None:
    """Lay a file's entries over those that are there."""
    for key in source.data:
        if key not in ("date", "gpus"):
            raise source.error(((key,), f"unknown key {key!r}. A table of prices has `date` and `gpus`"))
    entries = source.data.get("gpus")
    if not isinstance(entries, dict) or not entries:
        raise source.error((("gpus",), "`gpus` has to be a mapping of names to what each is and costs"))
    for name, entry in entries.items():
        at, key = ("gpus", name), plain(str(name))
        if not key:
            raise source.error((at, "a GPU's name needs letters or digits"))
        if not isinstance(entry, dict):
            raise source.error((at, f"{name} has to be a mapping with {', '.join(NUMBERS)}"))
        for number, value in entry.items():
            if number not in NUMBERS:
                raise source.error(((*at, number), f"{name}: unknown key {number!r}{near(str(number), NUMBERS)}"))
            free = number == "usd_per_hour"
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (not value and not free):
                way_out = f"Give a number {'from' if free else 'above'} 0"
                raise source.error(((*at, number), f"{name}: {number} is {value!r}. {way_out}"))
        values = {number: getattr(gpus[key], number) for number in NUMBERS} if key in gpus else {}
        values |= {number: float(value) for number, value in entry.items()}
        lacking = [number for number in NUMBERS if number not in values and number != "bf16_tflops"]
        if lacking:
            raise source.error((at, f"{name} is no GPU of the shipped table, so it needs {', '.join(lacking)} as well"))
        gpus[key] = Gpu(name=key, place=source.place(at), **values)


def peak_flops(gpu: str | None, dtype: str) -> float | None:
    """Return a GPU's peak by its driver's name and the shipped table; None for a CPU or unknown GPU."""
    entry = load_prices().find(gpu) if gpu else None
    return None if entry is None else entry.peak(dtype)
