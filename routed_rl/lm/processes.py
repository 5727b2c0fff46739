"""One process or many: how a model is distributed over processes, and how its weights are gathered again.

Under ``torchrun``, every process runs this::

    with process_group("cpu") as device:
        model = distribute(build_model("tiny", tokenizer, seed=0).to(device), shard=True)
        train(model, batches, Training(), run=run if rank() == 0 else None)
        state = gathered_state(model)
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, spawn
from torch.nn.parallel import DistributedDataParallel

from routed_rl.lm.structure import blocks

T = TypeVar("T")


@contextmanager
def process_group(kind: Literal["cpu", "cuda"]) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, within the block, and give the device of this process.

    A process that was started alone stays alone.
    """
    place = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", place) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # All processes are on this machine. Its own name may lead to an address that does not answer.
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=device if kind == "cuda" else None)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def launch(function: Callable[[], None], count: int) -> None:
    """Call a function in this many new processes on this machine, which :func:`process_group` joins, and wait for them.

    It is ``torchrun`` for one function. If one process fails, the others are ended, and SystemExit has its status.

    Args:
        function: can be pickled.
        count: of processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        spawn(_start, (function, count, port), count)
    except ProcessExitedException as error:
        raise SystemExit(error.exit_code) from None


def _start(place: int, function: Callable[[], None], count: int, port: int) -> None:
    counts = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "RANK": place, "LOCAL_RANK": place}
    os.environ.update({name: str(number) for name, number in counts.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function()


def rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agreed(value: T) -> T:
    """Return the first process's value on all processes. All processes must call it, with a value that can be pickled.

    A decision must be the same everywhere: a process that stopped alone would leave the others waiting.
    """
    values = [value]
    if processes() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def distribute(model: nn.Module, shard: bool = False) -> nn.Module:
    """Return a model ready for training on all processes: the model itself on one process, else replicated or sharded.

    Replicas are a new module around the model. Sharding changes the model itself: each process then has a part
    of every parameter. Before the call, the model must be on its device, be the same on all processes, and have its new
    units and adapters. A router may be attached before or after.

    Args:
        shard: whether to shard the model rather than replicate it.
    """
    if processes() == 1:
        return model
    if not shard:
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh  # these import much
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (processes(),))
    for part in [*map(model.get_submodule, blocks(model)), model]:
        fully_shard(part, mesh=mesh)
        # gloo cannot average.
        part.set_force_sum_reduction_for_comms(device == "cpu")  # type: ignore[operator]
    return model


def make_ready(model: nn.Module) -> None:
    """Make sure that an optimizer of the model's parameters trains one model on all processes.

    A forward pass without gradients leaves parts of a sharded model whole. An optimizer that is made then would change
    these copies, not the model. So they are divided again.

    Raises:
        ValueError: for a model that each process would train for itself, on its own rows.
    """
    if processes() > 1 and not (isinstance(model, DistributedDataParallel) or _is_sharded(model)):
        raise ValueError(f"{processes()} processes train together: pass the model that distribute(model) returns")
    for module in model.modules():
        if _is_sharded(module):
            module.reshard()  # type: ignore[operator]


def exchanging(model: nn.Module, last: bool) -> Any:
    """Return a context in which processes exchange gradients only if this is the last part of a batch."""
    if _is_sharded(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def undistributed(model: nn.Module) -> nn.Module:
    """Return the model inside a replica, else the model itself. Its parameters may be sharded."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_divided(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over the processes."""
    return _is(tensor, "torch.distributed.tensor", "DTensor")


def undivided(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that is spread over the processes. All processes must call it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[no-any-return,operator]


def divided_as(whole: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor spread over the processes as another one is. All processes must call it."""
    if not is_divided(other):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, other.device_mesh, other.placements)


def _is_sharded(module: nn.Module) -> bool:
    return _is(module, "torch.distributed.fsdp", "FSDPModule")


def _is(value: object, module: str, name: str) -> bool:
    """Return whether a value is of a class whose module takes long to import. Before that, nothing is of it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the CPU of the first process, and none on the others. All processes must call it."""
    gathered = {}
    for name, tensor in tensors.items():
        # One at a time, because a whole large model may not fit on the device.
        whole = undivided(tensor)
        if rank() == 0:
            gathered[name] = whole.detach().cpu()
    return gathered


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict()`` of the model as it was before :func:`distribute`, as ``gather`` does."""
    return gather(undistributed(model).state_dict())


def spread(whole: Tensor | None, into: Tensor) -> None:
    """Copy the first process's tensor into one that every process has, whole or in part. All processes must call it."""
    received = torch.empty(into.shape, dtype=into.dtype, device=into.device)
    if whole is not None:
        received.copy_(whole)
    if is_divided(into):
        received = divided_as(received, into)
    elif processes() > 1:
        dist.broadcast(received, 0)
    into.copy_(received)
