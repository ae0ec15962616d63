"""Lower the fused functions to kernels of an H100 on a machine without one: `python -m tests.model.sm90`.

A CPU build of torch is made to believe in the GPU, as far as inductor looks, and triton compiles what inductor writes.
Prints JSON: by function and pass, each kernel's shared memory in bytes, registers and bytes of stack a thread.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=85 * 10**9,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
)


class _Driver:
    """What triton asks of a GPU's driver when it compiles."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_current_device(self) -> int:
        return 0


def believe_in_an_h100() -> None:
    """Change torch in this process, for good."""
    import torch._dynamo.device_interface as interfaces
    import torch._inductor.runtime.triton_helpers as helpers
    import torch.utils._triton as torch_triton

    triton.runtime.driver.set_active(_Driver())
    torch.version.cuda = "13.0"
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_properties": PROPERTIES,
        "get_device_name": PROPERTIES.name,
        "is_bf16_supported": True,
        "is_initialized": True,
        "get_arch_list": ["sm_90"],
        "_lazy_init": None,
        "_get_device_properties": PROPERTIES,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "synchronize": None,
        "set_device": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice", "_cuda_maybeExchangeDevice", "_cuda_exchangeDevice"):
        setattr(torch._C, name, lambda *_: 0)
    interface: Any = interfaces.CudaInterface
    for name, answer in {
        "is_available": True,
        "get_compute_capability": 90,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "device_count": 1,
        "current_device": 0,
    }.items():
        setattr(interface, name, staticmethod(lambda *_, _answer=answer, **__: _answer))
    interface.Worker.get_device_properties = staticmethod(lambda device=None: PROPERTIES)
    interface.Worker.current_device = staticmethod(lambda: 0)
    original = torch_triton.has_triton
    for module in list(sys.modules.values()):
        if getattr(module, "has_triton", None) is original:
            module.has_triton = lambda *_: True  # type: ignore[attr-defined]
    helpers.set_driver_to_gpu = lambda: None


def cases() -> dict[str, tuple[Any, Any]]:
    """Each function with what makes its inputs for a number of tokens, at the sizes of Gemma 3 4B."""
    from slime_ray.model import fused_ops

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True)

    def weight(size: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(size, dtype=torch.bfloat16), requires_grad=False)

    heads = nn.Module()
    heads.head_dim = 256  # type: ignore[assignment]

    def wide(*shape: int) -> torch.Tensor:
        return torch.randn(*shape)

    def norm(size: int, *, around_one: bool) -> tuple[Any, Any]:
        parameter = weight(size)
        return (
            lambda x: fused_ops.rms_norm(x, parameter, 1e-6, around_one=around_one),
            lambda tokens: (random(tokens, size),),
        )

    return {
        "rms_norm, Gemma": norm(2560, around_one=True),
        "rms_norm, Llama": norm(3072, around_one=False),
        "rms_norm of queries": norm(256, around_one=True),
        **{
            f"gated, {activation}": (
                lambda gate, up, activation=activation: fused_ops.gated(gate, up, activation=activation),
                lambda tokens: (random(tokens, 10240), random(tokens, 10240)),
            )
            for activation in ("gelu_pytorch_tanh", "silu")
        },
        "rotary": (
            lambda *inputs: fused_ops.rotary(heads, *inputs),
            lambda tokens: (
                random(1, tokens, 8, 256),
                random(1, tokens, 4, 256),
                random(1, tokens, 256).detach(),
                random(1, tokens, 256).detach(),
            ),
        ),
        "softmax_tile": (
            lambda logits, top: fused_ops.softmax_tile(logits, top, None, torch.bfloat16),
            lambda tokens: (wide(tokens, 4096), wide(tokens, 1)),
        ),
        "head_gradient": (
            partial(fused_ops.head_gradient, cap=None, dtype=torch.bfloat16),
            lambda tokens: (
                wide(tokens, 4096),
                wide(tokens, 1),
                wide(tokens, 1),
                wide(tokens, 1),
                torch.zeros(tokens, 1, dtype=torch.long),
            ),
        ),
    }


def trace(function: Any, make: Any) -> dict[str, tuple[Any, list[Any]]]:
    """The graphs of forward and backward passes for any number of tokens, with their inputs, all on the CPU."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    graphs: dict[str, tuple[Any, list[Any]]] = {}

    def keep(name: str) -> Any:
        def compiler(graph: Any, inputs: Any) -> Any:
            graphs[name] = (graph, list(inputs))
            return graph.forward

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        inference_compiler=keep("forward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch.compiler.reset()
    found = torch.compile(function, backend=backend, dynamic=True, fullgraph=True)(*make(515))
    outputs = [tensor for tensor in (found if isinstance(found, tuple) else (found,)) if tensor.requires_grad]
    if outputs:
        sum(tensor.float().sum() for tensor in outputs).backward()
    return graphs


def write_kernels(graph: Any, inputs: list[Any], *, backward: bool) -> str:
    """What inductor writes for the graph on the GPU."""
    import torch._inductor.codecache as cache
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses import FakeTensor
    from torch.utils._pytree import tree_leaves

    written: list[str] = []

    def stop(key: str, path: str, *_: Any, **__: Any) -> None:
        written.append(Path(path).read_text(encoding="utf-8"))
        raise InterruptedError("written; there is no GPU to load it")

    gpu = torch.device("cuda", 0)
    for node in graph.graph.nodes:
        node.kwargs = {name: gpu if isinstance(value, torch.device) else value for name, value in node.kwargs.items()}
        node.args = tuple(gpu if isinstance(value, torch.device) else value for value in node.args)
        for value in (*tree_leaves(node.meta.get("val")), *inputs):
            # A number that the host passes stays there.
            if isinstance(value, FakeTensor) and not (value.ndim == 0 and value.dtype == torch.float64):
                value.fake_device = gpu
    graph.recompile()
    mode = next(value.fake_mode for value in inputs if isinstance(value, FakeTensor))
    config.compile_threads, config.force_disable_caches = 1, True
    codes: Any = cache.PyCodeCache
    codes.load_by_key_path = staticmethod(stop)
    try:
        with tracing(TracingContext(mode)), mode:
            compile_fx_inner(graph, inputs, is_backward=backward)
    except RuntimeError:
        if not written:
            raise
    return written[-1]


def compile_kernels(source: str, folder: Path) -> list[dict[str, int]]:
    """The resources of each kernel in inductor's source, compiled by triton for the target, in its dearest variant."""
    import torch._inductor.async_compile as async_compile
    import torch._inductor.codecache as cache

    written: list[tuple[str, str]] = []

    def take(self: Any, name: str, code: str, device_str: str = "cuda", **_: Any) -> None:
        written.append((name, cache.write(code, "py")[1]))

    compiler: Any = async_compile.AsyncCompile
    compiler.triton = take
    compiler.wait = lambda self, scope: None
    exec(compile(source.split("class Runner")[0].split("def call(")[0], "kernels", "exec"), {})
    resources = []
    for name, path in written:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tuner = getattr(module, name)
        found = [usage(tuner, config, folder) for config in tuner.configs]
        resources.append({key: max(each[key] for each in found) for key in found[0]})
    return resources


def usage(tuner: Any, config: Any, folder: Path) -> dict[str, int]:
    """What ptxas says of one variant of a kernel."""
    constants = {**tuner.triton_meta.get("constants", {}), **config.kwargs}
    signature = dict(tuner.triton_meta["signature"]) | dict.fromkeys(constants, "constexpr")
    attributes = tuner.triton_meta["configs"][0] if tuner.triton_meta.get("configs") else None
    binary = triton.compile(
        ASTSource(tuner.fn, signature, constexprs=constants, attrs=attributes),
        target=TARGET,
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    (folder / "kernel.cubin").write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    registers, stack = (max(map(int, re.findall(rf"{name}:(\d+)", text))) for name in ("REG", "STACK"))
    return {"shared": binary.metadata.shared, "registers": registers, "stack": stack}


def main() -> None:
    traced = {name: trace(*case) for name, case in cases().items()}
    believe_in_an_h100()
    found: dict[str, list[dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graphs in traced.items():
            for phase, (graph, inputs) in graphs.items():
                source = write_kernels(graph, inputs, backward=phase == "backward")
                found[f"{name}, {phase}"] = compile_kernels(source, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
