"""A meter for code that runs on tensors without data: its kernels, bytes, FLOPs, and the memory of its new tensors.

Shapes and dtypes are those of a real run and nothing is computed, so a training step of a model of any size is counted
on any machine. Both modes are documented by torch; their modules have no other names.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
NO_KERNEL = frozenset(
    {
        aten.detach, aten.alias, aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided,
        aten.new_empty_strided, aten.lift_fresh, aten._unsafe_view, aten._local_scalar_dense,
        torch.ops.prim.device,
    }
)  # fmt: skip
"""Operations that touch no element. Views are told by torch."""
WRITTEN_ONLY = frozenset({aten.zero_, aten.fill_})
READ_AS_WRITTEN = frozenset({aten.embedding, aten.index_select, aten.gather, aten.index})
"""Operations that read as much of a table as they write."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class OperationTotals:
    """Operations of one kind. bytes: read and written; an expanded dimension counts once."""

    kernels: int = 0
    bytes: int = 0
    flops: int = 0


@functools.cache
def _formulas() -> dict[Any, Callable[..., int]]:
    """Return torch's formulas of FLOPs by operation, with that of adding in place."""
    # Here, since it imports Triton, which every command would wait for, and whose exit some versions fill stderr with.
    from torch.utils.flop_counter import flop_registry

    # Attention is counted by a formula of ours. Kernels of others add theirs when they are imported, and torch 2.15 has
    # those of CPUs.
    products = {
        operation: count
        for operation, count in flop_registry.items()
        if str(operation).startswith("aten.") and "attention" not in str(operation)
    }
    return products | {aten.addmm_: products[aten.addmm]}


class Meter(TorchDispatchMode):
    """Count what runs inside it.

    products, other_kernels: operations with FLOPs, and all other kernels. live, peak: bytes of tensors made inside, now
    and at most. What depends on data is taken for the most that it can be. record: receives each kernel's name, bytes
    and FLOPs while it is on the stack.
    """

    def __init__(self, record: Callable[[str, int, int], None] = lambda name, size, flops: None) -> None:
        super().__init__()
        self.products, self.other_kernels = OperationTotals(), OperationTotals()
        self._record = record
        self._formulas = _formulas()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._suspended = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        if self._suspended:
            return func(*args, **kwargs)
        if func is aten.nonzero.default:
            out = args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        else:
            out = func(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _tensors(out)
        input_storages = {id(tensor.untyped_storage()) for tensor in read}
        for tensor in written:
            self._track(tensor.untyped_storage(), input_storages)
        operation = func.overloadpacket
        if not func.is_view and operation not in NO_KERNEL:
            formula = self._formulas.get(operation)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            self._count(operation.__name__, _traffic(operation, func, args, read, written), flops)
        return out

    def _count(self, name: str, size: int, flops: int = 0) -> None:
        kind = self.products if flops else self.other_kernels
        kind.kernels += 1
        kind.bytes += size
        kind.flops += flops
        self._record(name, size, flops)

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function as one kernel forward and one backward, which saves no more than its inputs in between."""

        def run(*inputs: Any, **options: Any) -> Any:
            return _Kernel.apply(self, function.__name__, functools.partial(function, **options), *inputs)

        return run

    def uncounted(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Run a function whose operations do not count."""
        self._suspended = True
        try:
            return function(*inputs)
        finally:
            self._suspended = False

    def kernel(self, name: str, function: Callable[..., Any], *inputs: Any, saved_tensors: Sequence[Any] = ()) -> Any:
        """Run a function as one kernel from its inputs and the tensors saved for it to its outputs."""
        out = self.uncounted(function, *inputs)
        outputs, input_storages = _tensors(out), {id(tensor.untyped_storage()) for tensor in _tensors(inputs)}
        for tensor in outputs:
            self._track(tensor.untyped_storage(), input_storages)
        self._count(name, sum(map(_accessed_bytes, [*_tensors(inputs), *saved_tensors, *outputs])))
        return out

    def _track(self, storage: Any, input_storages: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._sizes or key in input_storages:
            return
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _Kernel(torch.autograd.Function):
    """A function as one kernel forward, and one backward that computes again what it needs of its inputs."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
        out = meter.kernel(name, function, *inputs)
        saved_storages = meter.uncounted(_saved_storages, function, inputs) if any(ctx.needs_input_grad) else ()
        ctx.meter, ctx.kernel, ctx.function = meter, name, function
        # What is not needed is made anew, with its shape.
        ctx.shapes = [(x.shape, x.dtype) if torch.is_tensor(x) else x for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if torch.is_tensor(x) and id(x.untyped_storage()) in saved_storages))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        def compute_gradients(*output_gradients: torch.Tensor) -> list[torch.Tensor]:
            leaves = [torch.empty(x[0], dtype=x[1]) if isinstance(x, tuple) else x for x in ctx.shapes]
            gradient_leaves = [
                x.requires_grad_() for x, needed in zip(leaves, ctx.needs_input_grad[3:], strict=True) if needed
            ]
            with torch.enable_grad():
                out = ctx.function(*leaves)
            return list(torch.autograd.grad(_tensors(out), gradient_leaves, output_gradients))

        results = iter(ctx.meter.kernel(ctx.kernel, compute_gradients, *gradients, saved_tensors=ctx.saved_tensors))
        return None, None, None, *(next(results) if needed else None for needed in ctx.needs_input_grad[3:])


def _saved_storages(function: Callable[..., Any], inputs: Sequence[Any]) -> set[int]:
    """Find the storages of the inputs that a backward pass needs.

    Where it asks for what is made of inputs with gradients it is all of them. Others, such as angles, are there anyway.
    """
    storages = {id(tensor.untyped_storage()) for tensor in _tensors(inputs)}
    needed = {id(tensor.untyped_storage()) for tensor in _tensors(inputs) if not tensor.requires_grad}
    leaves = [x.detach().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in inputs]

    def keep(tensor: torch.Tensor) -> None:
        key = id(tensor.untyped_storage())
        needed.update({key} if key in storages else storages if tensor.requires_grad else ())

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*leaves)
    return needed


def _tensors(values: Any) -> list[torch.Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(values) if torch.is_tensor(leaf)}.values())


def _traffic(operation: Any, func: Any, args: Any, read: list[torch.Tensor], written: list[torch.Tensor]) -> int:
    """Count the bytes that one operation reads and writes."""
    if operation is aten.copy_:
        return _accessed_bytes(args[0]) + _accessed_bytes(args[1])
    outputs = sum(map(_accessed_bytes, written))
    if operation in READ_AS_WRITTEN:
        return 2 * outputs
    if operation in WRITTEN_ONLY:
        return outputs
    # What is changed in place is an input as well as the output.
    return sum(map(_accessed_bytes, read)) + outputs


def _accessed_bytes(tensor: torch.Tensor) -> int:
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


@contextmanager
def without_data() -> Iterator[None]:
    """Make tensors within this context that have a shape and a dtype and no data, on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def strip(module: Module) -> Module:
    """Replace a module's weights, which may be on the meta device, by ones of the CPU without data, in place.

    Called inside `without_data`.
    """
    replaced: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, old in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(old) not in replaced:
                new = torch.empty(old.shape, dtype=old.dtype)
                # `old` is kept so that no other tensor gets its id.
                replaced[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(part, name, replaced[id(old)])
    return module
