"""The JSON Schema of an experiment's file, for editors: made from the models that read it.

It knows keys, kinds and bounds. What holds between keys, and what a preset already gives, only `slime-ray check` knows.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from slime_ray.config.experiment_keys import ExperimentKeys
from slime_ray.config.settings import Settings
from slime_ray.config.space import Dimension

ID = "experiment.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
LINE = f"# yaml-language-server: $schema={ID}"
"""The first line of a file that has the schema beside it; editors with a YAML language server read it."""
OUTSIDE = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": ":"}}}
"""An objective of the user's, whose knobs are known only where it can be imported."""


def experiment_schema() -> dict[str, Any]:
    """The schema of a whole file.

    Returns:
        A JSON Schema of draft 2020-12, as plain values.
    """
    models: list[type[BaseModel]] = [ExperimentKeys, Settings, Dimension]
    refs, whole = models_json_schema([(model, "validation") for model in models])
    file, settings, dimension = (refs[(model, "validation")] for model in models)
    definitions: dict[str, Any] = {name: _partial(schema) for name, schema in whole["$defs"].items()}
    objective = definitions[_name(settings)]["properties"]["objective"]
    objective["anyOf"].append(OUTSIDE)
    top = definitions.pop(_name(file))
    properties = top["properties"]
    properties["base"] |= settings
    properties["search"]["additionalProperties"] = {"anyOf": [dimension, {"type": "array", "items": dimension}]}
    return {"$schema": DIALECT, "$id": ID, **top, "title": "An experiment of slime_ray", "$defs": definitions}


def _partial(schema: Any) -> Any:
    """The schema of a mapping that lies over another: nothing is required, and no name has to tell it apart."""
    if isinstance(schema, list):
        return [_partial(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("required", "discriminator", "title")}
    if "properties" in kept:
        # A key may be called as a word of the schema is.
        kept["properties"] = {key: _partial(inner) for key, inner in kept["properties"].items()}
    rest = {key: value if key in ("properties", "default") else _partial(value) for key, value in kept.items()}
    if "oneOf" in rest:
        rest["anyOf"] = rest.pop("oneOf")
    return rest


def _name(ref: dict[str, str]) -> str:
    return ref["$ref"].rpartition("/")[2]
