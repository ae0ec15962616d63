"""A file for `ray up`, checked offline: by the schema that Ray ships, and beyond it."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import InputError, near

from .checks import ClusterChecks, NodeType, describe

SCHEMA = "ray/autoscaler/ray-schema.json"
MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
WRITTEN_TOKEN = re.compile(r"\bRAY_AUTH_TOKEN\b[\"']?\s*[=:]\s*[\"']?[^\s\"'$]")


class LauncherFile(ClusterChecks):
    """A file for `ray up`."""

    def lines(self) -> Iterator[str]:
        """Check the file; yield what it says, in lines for a person."""
        self._schema()
        # The machines of a local provider are listed in the file, and neither come nor go.
        if self.data["provider"]["type"] != "local":
            yield from self._node_types()
        yield from self._images()
        yield self._token()

    def _schema(self) -> None:
        """Check the JSON schema that Ray ships, and two names that it does not compare."""
        schema = json.loads(Path(str(distribution("ray").locate_file(SCHEMA))).read_text(encoding="utf-8"))
        complaints = list(Draft7Validator(schema).iter_errors(self.data))
        # A misspelt key is what most often makes the other complaints.
        for complaint in sorted(complaints, key=lambda item: item.validator != "additionalProperties"):
            raise self._complaint(complaint)
        # Ray ignores a key of the provider that it does not know, be it a misspelt zone.
        for key in self.data["provider"].keys() - (properties := schema["properties"]["provider"]["properties"]).keys():
            if difflib.get_close_matches(str(key), properties, cutoff=0.8):
                raise self.error(("provider", key), f": unknown key{near(str(key), properties)}")
        if self.data["provider"]["type"] == "local":
            return
        types = self.value("available_node_types", of=dict, description="the types of nodes, with the limits of each")
        head = self.value("head_node_type", of=str, description="the name of the head's type of node")
        if head not in types:
            raise self.error(("head_node_type",), f" is {head!r}, which is none of the types: {', '.join(types)}")

    def _complaint(self, error: Any) -> InputError:
        at: KeyPath = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            properties = error.schema.get("properties", {})
            key = next(key for key in error.instance if key not in properties)
            return self.error((*at, key), f": unknown key{near(str(key), properties)}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return self.error((*at, missing), " is missing. Add it")
        if error.validator == "type":
            kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            return self.error(at, f" is {describe(error.instance)} and has to be of type {' or '.join(kinds)}")
        return self.error(at, f": {error.message}")

    def _node_types(self) -> Iterator[str]:
        head, *workers = sorted(
            (self._node_type(name) for name in self.data["available_node_types"]),
            key=lambda node: node.name != self.data["head_node_type"],
        )
        total = self.value("max_workers", of=int, description="how many worker nodes there are at most, of all types")
        idle = self.value(
            "idle_timeout_minutes", of=(int, float), description="after how many idle minutes a worker leaves"
        )
        yield from self.nodes(head, workers)
        yield f"at most {total} worker nodes, and one that is idle for {idle:g} minutes leaves"

    def _node_type(self, name: str) -> NodeType:
        at: KeyPath = ("available_node_types", name)
        node_type = self.data["available_node_types"][name]
        if name == self.data["head_node_type"]:
            least, most = node_type.get("min_workers"), node_type.get("max_workers")
        else:
            least, most = self.limits(at, "min_workers", "max_workers")
        spot = _on_spot(node_type["node_config"])
        resources = self.value(*at, "resources", of=dict, description="what a node offers, such as {CPU: 8, GPU: 1}")
        return NodeType(name, at, spot, resources, least, most, node_type.get("priority", 0))

    def _images(self) -> Iterator[str]:
        docker = self.value("docker", of=dict, default={})
        keys = ("image", "head_image", "worker_image")
        images: dict[KeyPath, str] = {("docker", key): docker[key] for key in keys if docker.get(key)}
        for name, node in self.value("available_node_types", of=dict, default={}).items():
            if image := _map(node.get("docker")).get("worker_image"):
                images["available_node_types", name, "docker", "worker_image"] = image
        if not images:
            raise self.error(
                ("docker", "image"), " is missing, so nodes would run whatever they find. Name a pinned image"
            )
        yield from dict.fromkeys(self.image(at, image) for at, image in images.items())

    def _token(self) -> str:
        """Check that every node asks for the token; else whoever reaches the ports of `ray start` may run code."""
        for number, line in enumerate(self.source.path.read_text(encoding="utf-8").splitlines(), 1):
            if WRITTEN_TOKEN.search(line):
                raise InputError(
                    f"{self.source.path}:{number}: a token is written into the file. Remove RAY_AUTH_TOKEN, and send "
                    "the token's file: file_mounts: {/home/ray/.ray/auth_token: ~/.ray/auth_token}."
                )
        docker = self.value("docker", of=dict, default={})
        text = {key: " ".join(map(str, value)) for key, value in docker.items() if key.endswith("run_options")}
        text |= {key: " ".join(value) for key, value in self.data.items() if key.endswith("_commands")}

        def requires_token(side: str) -> bool:
            keys = (f"{side}run_options", f"{side}setup_commands", f"{side}start_ray_commands")
            return any(MODE.search(text.get(key, "")) for key in keys)

        if not requires_token("") and not (requires_token("head_") and requires_token("worker_")):
            raise self.error(
                ("docker", "run_options"),
                ": nobody is asked for a token, so whoever reaches the cluster may run code on it. "
                "Add `--env RAY_AUTH_MODE=token`, and the token's file to file_mounts",
            )
        mounts: Iterable[str] = self.value("file_mounts", of=dict, default={})
        sent = any(str(remote).rstrip("/").endswith((".ray/auth_token", ".ray")) for remote in mounts)
        if not sent and not any("RAY_AUTH_TOKEN_PATH=" in value for value in text.values()):
            raise self.error(
                ("file_mounts",),
                ": the nodes ask for a token and get none. Add /home/ray/.ray/auth_token: ~/.ray/auth_token",
            )
        return "every node asks for the token, and gets it with file_mounts"


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _on_spot(config: Mapping[str, Any]) -> bool:
    """Tell whether a node_config of AWS, Google Cloud or Azure asks for spot or preemptible nodes."""
    scheduling = config.get("scheduling")
    # Older Ray samples for Google Cloud write a list.
    parts = [_map(part) for part in (scheduling if isinstance(scheduling, list) else [scheduling])]
    models = [_map(config.get("InstanceMarketOptions")).get("MarketType")]
    models += [_map(config.get("azure_arm_parameters")).get("priority")]
    models += [part.get("provisioningModel") for part in parts]
    return any(str(model).lower() == "spot" for model in models) or any(part.get("preemptible") for part in parts)
