"""The reference of an experiment's YAML and its JSON Schema, made from the models that read it.

The JSON Schema is for editors. It knows keys, kinds and bounds. What holds between keys, and what a preset already
gives, only `slime-ray check` knows.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from slime_ray.config.experiment_keys import ExperimentKeys
from slime_ray.config.points import EarlierRun
from slime_ray.config.settings import OBJECTIVE_SETTINGS, Settings
from slime_ray.config.space import Dimension
from slime_ray.errors import InputError, near
from slime_ray.objectives import OBJECTIVES

Schema = Mapping[str, Any]
FILE = "The file"
HEAD = """\
# Every key of the YAML

`slime-ray reference` prints this page from the schema that reads the file, `slime-ray reference training` a part of it.
Unknown keys are refused. `--set training.updates=50` changes any key. What is `null` by default may be null.
"""
NESTED: dict[str, tuple[str, type[BaseModel]]] = {
    "base": ("base", Settings),
    "search": ("search: {PATH: …}", Dimension),
    "start_from": ("start_from: [{run: …}]", EarlierRun),
}
"""Keys of the file whose values have a schema that its own does not name, with the title of their section."""
KINDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "array": "list",
    "object": "mapping",
}
SCALAR = {KINDS[kind] for kind in ("integer", "number", "boolean", "string")}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORD = re.compile(r"[\w-]+")
TAGS = ("name", "design")
"""Keys that say which of several models a mapping is."""
ID = "experiment.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
LINE = f"# yaml-language-server: $schema={ID}"
"""The first line of a file that has the schema beside it; editors with a YAML language server read it."""
EXTERNAL_OBJECTIVE = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "pattern": ":"}},
}
"""An objective of the user's, whose knobs are known only where it can be imported."""


def reference(part: str | None = None) -> str:
    """The page in Markdown, or only the sections whose title has a word `part`. Raises InputError where none has."""
    sections = dict(_sections())
    titles = {schema.get("$id", ""): title for title, schema in sections.items()}
    words = {word for title in sections for word in WORD.findall(title)}
    if part is not None and part not in words:
        raise InputError(f"{part}: there is no such part of the file{near(part, words)}.")
    part_titles = [title for title in sections if part is None or part in WORD.findall(title)]
    head = [HEAD] if part is None else []
    return "\n".join([*head, *(_section_text(title, sections[title], titles) for title in part_titles)])


def _sections() -> Iterator[tuple[str, Schema]]:
    """Titles and schemas of the file, then of every mapping below it, each once, where it first stands."""
    file: type[BaseModel] = ExperimentKeys
    models = [file, *(model for _, model in NESTED.values())]
    refs, document = models_json_schema([(model, "validation") for model in models])
    names = {model: _name(refs[(model, "validation")]) for model in models}
    schemas = {name: {**schema, "$id": name} for name, schema in document["$defs"].items()}
    # What the file has of its own comes before the keys of a search.
    top = schemas[names[file]]
    top["properties"] = dict(sorted(top["properties"].items(), key=lambda item: item[0] not in file.__annotations__))
    for name, objective in OBJECTIVES.items():
        _describe(schemas[OBJECTIVE_SETTINGS[name].__name__], objective)
    visited: set[str] = set()

    def walk(title: str, name: str) -> Iterator[tuple[str, Schema]]:
        if name in visited:
            return
        visited.add(name)
        yield title, schemas[name]
        for key, schema in schemas[name].get("properties", {}).items():
            path = key if title == FILE else f"{title}.{key}"
            if title == FILE and key in NESTED:
                below, model = NESTED[key]
                yield from walk(below, names[model])
            inner = list(_refs(schema))
            for ref in inner:
                yield from walk(path if len(inner) == 1 else f"{path}: {{{_tag(schemas[ref])}}}", ref)

    yield from walk(FILE, names[file])


def _describe(schema: dict[str, Any], objective: type) -> None:
    """An objective's schema comes from a dataclass, whose docstring has a paragraph `Args:`."""
    descriptions: dict[str, str] = {}
    for kind in reversed(objective.__mro__):
        for part in re.split(r"^Args.*:$", inspect.cleandoc(kind.__doc__ or ""), flags=re.MULTILINE)[1:]:
            fields = part.split("\n\n")[0]
            descriptions |= dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", fields, flags=re.MULTILINE))
    schema["description"] = inspect.cleandoc(objective.__doc__ or "").split("\n\nArgs")[0]
    for key, text in descriptions.items():
        schema["properties"][key] |= {"description": text}
    parent: Any = next((kind for kind in objective.__mro__[1:] if kind in OBJECTIVES.values()), None)
    if parent is not None:
        schema["description"] += f"\n\nIt has the keys of `{parent.name}`, too."
        for field in dataclasses.fields(parent):
            del schema["properties"][field.name]


def _section_text(title: str, schema: Schema, titles: Mapping[str, str]) -> str:
    lines = [f"## {title if title == FILE else f'`{title}`'}", "", *_paragraphs(schema.get("description", "")), ""]
    # The title says which of several models it is.
    keys = {
        key: inner for key, inner in schema.get("properties", {}).items() if key not in TAGS or "const" not in inner
    }
    if keys:
        lines += ["| key | value | default | |", "|---|---|---|---|"]
    for key, inner in keys.items():
        default = "required" if key in schema.get("required", ()) else _default(inner)
        text = " ".join(inner.get("description", "").split())
        words = _words(inner, titles).removesuffix(" or `null`") if default == "`null`" else _words(inner, titles)
        cells = (f"`{key}`", words, default, text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(text: str) -> list[str]:
    """Formulas that a docstring sets off by their indent stay as they are."""
    return (
        text.split("\n") if re.search(r"^\s+\S", text, re.MULTILINE) is None else ["```text", *text.split("\n"), "```"]
    )


def _default(schema: Schema) -> str:
    value = schema.get("default")
    if isinstance(value, dict) and len(list(_refs(schema))) == 1:
        return "as below"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _words(schema: Schema, titles: Mapping[str, str]) -> str:
    """What a value may be: its kind and bounds, the words it may be one of, or a link to the mapping that it is."""
    if "$ref" in schema:
        title = titles[_name(schema)]
        return f"[{WORD.findall(title)[-1]}](#{_anchor(title)})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            words = dict.fromkeys(_words(option, titles) for option in schema[union])
            if words.keys() >= SCALAR:
                words = dict.fromkeys([*(word for word in words if word not in SCALAR), "number, flag or word"])
            return (" or " if len(words) < 4 else ", ").join(words)
    kind = KINDS.get(schema.get("type", ""), "any value")
    if kind == "list" and "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} {_words(schema['prefixItems'][0], titles)}s"
    if kind == "list":
        return f"list of {_words(schema['items'], titles)}"
    if kind == "mapping":
        inner = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
        inner_words = _words(inner[0], titles) if isinstance(inner[0], dict) and inner[0] else ""
        return f"mapping to {inner_words}" if inner_words else kind
    bounds = ", ".join(
        f"{sign} {schema[bound] if isinstance(schema[bound], int) else format(schema[bound], 'g')}"
        for bound, sign in BOUNDS.items()
        if bound in schema
    )
    return f"{kind} {bounds}".rstrip()


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield _name(schema)
        for key, inner in schema.items():
            if key not in ("discriminator", "default"):
                yield from _refs(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _refs(inner)


def _name(ref: Schema) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _tag(schema: Schema) -> str:
    return next(f"{tag}: {schema['properties'][tag]['const']}" for tag in TAGS if tag in schema["properties"])


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# ---------------------------------------------------------------------------------------------------------------------
# The JSON Schema


def experiment_schema() -> dict[str, Any]:
    """The schema of a whole file.

    Returns:
        A JSON Schema of draft 2020-12, as plain values.
    """
    models: list[type[BaseModel]] = [ExperimentKeys, Settings, Dimension]
    refs, document = models_json_schema([(model, "validation") for model in models])
    file, settings, dimension = (refs[(model, "validation")] for model in models)
    definitions: dict[str, Any] = {name: _partial(schema) for name, schema in document["$defs"].items()}
    objective = definitions[_name(settings)]["properties"]["objective"]
    objective["anyOf"].append(EXTERNAL_OBJECTIVE)
    top = definitions.pop(_name(file))
    properties = top["properties"]
    properties["base"] |= settings
    properties["search"]["additionalProperties"] = {"anyOf": [dimension, {"type": "array", "items": dimension}]}
    return {"$schema": DIALECT, "$id": ID, **top, "title": "An experiment of slime_ray", "$defs": definitions}


def _partial(schema: Any) -> Any:
    """The schema of a mapping that lies over another: nothing is required, and no name has to tell it apart."""
    if isinstance(schema, list):
        return [_partial(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {key: value for key, value in schema.items() if key not in ("required", "discriminator", "title")}
    if "properties" in fields:
        # A key may be called as a word of the schema is.
        fields["properties"] = {key: _partial(inner) for key, inner in fields["properties"].items()}
    rest = {key: value if key in ("properties", "default") else _partial(value) for key, value in fields.items()}
    if "oneOf" in rest:
        rest["anyOf"] = rest.pop("oneOf")
    return rest
