"""One of several data sets that a run is trained on, as an entry of `data.train`."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from slime_ray.config.strict import EMBEDDED, Located, Strict


class DataSource(Strict):
    """One of several data sets."""

    source: Located
    """A file, a folder or a Hub id."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Relative probability that the next pair is its; null takes all pairs. Give all data sets one, or none."""
    split: str | None = None
    """Split of a Hub data set; null is `data.split`."""
    subset: str | None = None
    """Configuration of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the main branch."""


def _refuse_names(value: Any) -> Any:
    """Raise ValueError for a list of names, which could have no weights."""
    if name := next((entry for entry in value if isinstance(entry, str)), None):
        raise ValueError(f"{name} is no entry of a list of data sets. Write {{source: {name}}}")
    return value


def _check_mixture(sources: list[DataSource]) -> list[DataSource]:
    """Raise ValueError for data sets that cannot be mixed."""
    if not sources:
        raise ValueError("an empty list. Name one data set or more")
    if any(entry.source.startswith(EMBEDDED) for entry in sources):
        raise ValueError("an embedded task is no part of a mixture. Give it alone, as text")
    has_weight = [entry.weight is not None for entry in sources]
    if any(has_weight) and not all(has_weight):
        raise ValueError(f"{sources[has_weight.index(False)].source} has no weight. Give every data set one, or none")
    places = [(entry.source, entry.split, entry.subset, entry.revision) for entry in sources]
    if duplicates := [place[0] for place in places if places.count(place) > 1]:
        raise ValueError(f"{duplicates[0]} is there twice. Remove one, and give the other more weight")
    return sources


Sources = Annotated[list[DataSource], BeforeValidator(_refuse_names), AfterValidator(_check_mixture)]
Train = Annotated[
    Annotated[Located, Tag("str")] | Annotated[Sources, Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "str"),
]
"""One data set by its name, or a list of several."""
