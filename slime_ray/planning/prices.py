"""The table of GPUs: what each computes, holds and costs an hour. It ships with examples and is the user's to edit."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from slime_ray.config.yaml_source import YamlSource, load_yaml
from slime_ray.errors import InputError

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
        """FLOP/s in `bfloat16` or `float32`; None where it does not compute in that."""
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
        """The GPU that a driver, Ray or a person calls so: the entry with the longest name that is one or more of its
        words."""
        words = re.findall(r"[a-z0-9]+", name.lower())
        parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        return self.gpus[max(named, key=len)] if (named := parts & self.gpus.keys()) else None

    def get(self, name: str, *, option: str) -> Gpu:
        """The same. Raises InputError, which names the option, where there is none."""
        found = self.find(name)
        if found is None:
            near = difflib.get_close_matches(plain(name), self.gpus, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"{option} {name}: {self.place} has no such GPU.{hint} There are: {', '.join(self.gpus)}. Add it in a "
                "file of your own and give that with --prices."
            )
        return found


def plain(name: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def load_prices(path: Path | None = None) -> GpuPrices:
    """The shipped table, with the entries of `path` laid over it. Raises InputError with file and line."""
    shipped = load_yaml(SHIPPED)
    gpus = _read(shipped, {})
    if path is None:
        return GpuPrices(gpus, _date(shipped) or "", str(SHIPPED))
    own = load_yaml(path)
    return GpuPrices(_read(own, gpus), _date(own) or f"{_date(shipped)} where {path} says no other", str(path))


def _read(source: YamlSource, under: Mapping[str, Gpu]) -> dict[str, Gpu]:
    for key in source.data:
        if key not in ("date", "gpus"):
            raise InputError(f"{source.place((key,))}: unknown key {key!r}. A table of prices has `date` and `gpus`.")
    entries = source.data.get("gpus")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{source.place(('gpus',))}: `gpus` has to be a mapping of names to what each is and costs.")
    found = dict(under)
    for name, entry in entries.items():
        key = plain(str(name))
        if not key:
            raise InputError(f"{source.place(('gpus', name))}: a GPU's name needs letters or digits.")
        found[key] = _entry(source, str(name), entry, found.get(key))
    return found


def _entry(source: YamlSource, name: str, entry: Any, under: Gpu | None) -> Gpu:
    place = source.place(("gpus", name))
    if not isinstance(entry, dict):
        raise InputError(f"{place}: {name} has to be a mapping with {', '.join(NUMBERS)}.")
    for key, value in entry.items():
        at = source.place(("gpus", name, key))
        if key not in NUMBERS:
            near = difflib.get_close_matches(str(key), NUMBERS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Allowed: {', '.join(NUMBERS)}."
            raise InputError(f"{at}: {name}: unknown key {key!r}.{hint}")
        free = key == "usd_per_hour"
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (not value and not free):
            raise InputError(f"{at}: {name}: {key} is {value!r}. Give a number {'from' if free else 'above'} 0.")
    values = {number: getattr(under, number) for number in NUMBERS} if under else {}
    values |= {key: float(value) for key, value in entry.items()}
    lacking = [number for number in NUMBERS if number not in values and number != "bf16_tflops"]
    if lacking:
        raise InputError(f"{place}: {name} is no GPU of the shipped table, so it needs {', '.join(lacking)} as well.")
    return Gpu(name=plain(name), place=place, **values)


def _date(source: YamlSource) -> str | None:
    date = source.data.get("date")
    return None if date is None else str(date)


def peak_flops(gpu: str | None, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """Peak FLOP/s, by the shipped table, of a GPU by its driver's name; None for any other and for a CPU."""
    found = load_prices().find(gpu) if gpu else None
    return None if found is None else found.peak(dtype)
