"""vLLM on a node of the cluster, as the answer server that `evaluation.engine` asks.

Ray Serve's own builder (`ray.serve.llm`) loads adapters from cloud storage alone, and a trial's are files that all
machines see. So an actor holds vLLM's server as it is.
"""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.connection import connected


def vllm_command(checkpoint: Path, *, model: str, rank: int, adapters: int, port: int) -> list[str]:
    """Build the command that serves a checkpoint with so many adapters, at most of this rank."""
    return [
        *("vllm", "serve", str(checkpoint), "--served-model-name", model, "--port", str(port)),
        *("--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(adapters)),
        # A request says everything about its decoding itself.
        *("--generation-config", "vllm"),
    ]


class VllmServer:
    """Holds the process on its node; an actor's class."""

    def start(self, command: list[str]) -> str:
        """Start it and return the address of its node."""
        self.process = subprocess.Popen(command, env=os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})
        return str(ray.util.get_node_ip_address())

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait()


def serve_answers(checkpoint: Path, *, model: str, rank: int, adapters: int, port: int, gpus: int, say: Any) -> None:
    """Serve answers from a node until Ctrl-C.

    Raises InputError where vLLM or the checkpoint is missing, RunError where vLLM ends.
    """
    if find_spec("vllm") is None:
        raise InputError("serve-answers needs vLLM here and on the node that serves: pip install 'slime-ray[vllm]'.")
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} has no config.json. Give the SFT checkpoint that a run names when it waits.")
    command = vllm_command(checkpoint.absolute(), model=model, rank=rank, adapters=adapters, port=port)
    with connected():
        server: Any = ray.remote(VllmServer).options(num_gpus=gpus).remote()
        node = ray.get(server.start.remote(command))
        say(f"evaluation: {{engine: {{name: openai, model: {model}, base_url: 'http://{node}:{port}/v1'}}}}")
        exit_code = ray.get(server.wait.remote())
    raise RunError(f"vLLM ended with exit code {exit_code}. Its output above says why.")
