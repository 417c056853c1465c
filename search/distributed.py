"""Several processes as one: rank and size, gradient sums, work shared out and gathered.

Started with ``torchrun``, every process runs the same program with the same seeds: batches are
cut into parts and candidates into shares, and each process takes its own. Nothing here needs a
second process: alone, a process is rank 0 of 1.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..ops.errors import BadRequest, HurricaneError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: from 0; rank 0 writes the files.
        size: number of processes.
        local_rank: rank on this host; picks the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces gradients by their sum over all processes; absent ones stay absent.

        Every process must hold gradients for the same parameters.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view(gradient.shape))

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all processes, in place where that is faster.

        On a CPU they are added in the order of the ranks: as one process adds its parts up.
        """
        if self.size == 1:
            return values
        with _connected():
            if values.is_cuda or self.size == 2:
                dist.all_reduce(values)
                return values
            found = [torch.empty_like(values) for _ in range(self.size)]
            dist.all_gather(found, values)
        total = found[0]
        for other in found[1:]:
            total += other
        return total

    def replica(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model such that running backward through it sums its gradients over all processes.

        Communication overlaps computing (DistributedDataParallel). For models all of whose
        parameters get a gradient in every step; those of a supernet do not (`sum_gradients`).

        Args:
            model: on its device, with the same weights in every process.
            device: that one.
        """
        if self.size == 1:
            return model
        with _connected(), warnings.catch_warnings():
            # The name that torch 2.13 wants is unknown to earlier ones.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            replica = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
            )
        replica.register_comm_hook(self, _sum_bucket)
        return replica

    def share_out(self, count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
        """Does `work` on this process's share of range(count); gives everybody's results."""
        if self.size == 1:
            return list(work(range(count)))
        first, end = (count * r // self.size for r in (self.rank, self.rank + 1))
        shares: list[list[T]] = [[] for _ in range(self.size)]
        own = list(work(range(first, end)))
        with _connected():
            dist.all_gather_object(shares, own)
        return [result for share in shares for result in share]

    def agree(self, value: object, what: str) -> None:
        """Raises HurricaneError unless all processes hold the same value."""
        values = self.share_out(self.size, lambda _: [value])
        if any(v != value for v in values):
            raise HurricaneError(
                f"the processes differ in {what}: {values}; "
                "keep the run's folder on storage that all of them share"
            )

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            with _connected():
                dist.barrier()


def _sum_bucket(world, bucket):  # torch takes no annotations that are text, as here they are
    """Sums a part of a replica's gradients: not their mean, as parts were weighted before.

    Args:
        world: these processes (World).
        bucket: gradients of one dtype (torch.distributed.GradBucket).

    Returns:
        A future of their sums.
    """
    values = bucket.buffer()
    if values.is_cuda:
        work = dist.all_reduce(values, async_op=True)
        assert work is not None  # as it is asynchronous
        return work.get_future().then(lambda done: done.value()[0])
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(world.sum(values))
    return done


def sums_gradients(model: nn.Module) -> bool:
    """Whether gradients of a model are summed by itself (`World.replica`)."""
    return isinstance(model, DistributedDataParallel)


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients of a replica pile up in their process and are not summed yet."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def _connected() -> Iterator[None]:
    """Tells in our words that another process has ended.

    Raises:
        HurricaneError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HurricaneError(
            f"another process of this run has ended or cannot be reached ({reason}); "
            "look for its own error above; the same command carries the run on"
        ) from error


def join_world() -> World:
    """The world that ``torchrun`` made, joined on first use; a world of one without it.

    Raises:
        BadRequest: the launcher's variables are set but no connection comes about.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        try:
            dist.init_process_group(_backend())
        except (RuntimeError, ValueError) as error:
            raise BadRequest(
                f"WORLD_SIZE is {size} but the processes cannot connect ({error}); "
                "start with torchrun, or unset WORLD_SIZE"
            ) from error
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def leave_world() -> None:
    """Ends the connection to the other processes, once they have no more to say."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend() -> str:
    """Gloo for what is in memory, values of Python and barriers included, NCCL for GPUs.

    Which one sums gradients is thus a matter of where they are, and not of what the host has.
    """
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def choose_device(wish: str = "auto", world: World | None = None) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a GPU becomes current.

    Raises:
        BadRequest: the device is not there.
    """
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadRequest(f"device {wish!r} is not available on this machine; use cpu or auto")
    if wish in ("auto", "cuda"):
        device = torch.device("cuda", world.local_rank if world else 0)
    else:
        try:
            device = torch.device(wish)
        except RuntimeError as error:
            raise BadRequest(
                f"device {wish!r} is unknown; use auto, cpu, cuda or cuda:N"
            ) from error
    torch.cuda.set_device(device)
    return device
