"""Processes with a GPU each, by NCCL through CuPy. **It has not been run on a GPU yet.**"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import backends
from gpuconv.parallel.world import World, WorldError

__all__ = ["NcclWorld"]


class NcclWorld(World):
    """The processes that torchrun started, one a GPU.

    Args:
        communicator: what ``cupyx.distributed.init_process_group`` returns.
        rank, size, local_rank, local_size: of this process.
    """

    def __init__(self, communicator: Any, xp: Any, rank: int, size: int, local_rank: int, local_size: int):
        self._communicator, self._xp = communicator, xp
        self._stream = xp.cuda.Stream(non_blocking=True)
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size

    @classmethod
    def from_environment(cls, size: int) -> NcclWorld:
        """Join the processes that torchrun's environment variables name.

        Raises:
            WorldError: there is no GPU for this process, and so no engine.
        """
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        why_not = backends.available().get("cuda")
        if why_not is None and not hasattr(backends.get("cuda").xp, "cuda"):
            why_not = "the simulator is none"
        if why_not is not None:
            raise WorldError(
                f"torchrun's variables (RANK={rank}, WORLD_SIZE={size}) ask for NCCL, which needs a GPU: {why_not}. "
                f"On CPUs, MPI connects the processes: pip install 'gpuconv[parallel]', then mpirun -n {size} ..."
            )
        import cupy
        from cupyx import distributed

        cupy.cuda.Device(local_rank).use()
        # Next to the port at which torchrun itself listens.
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", 29500)) + 1
        group = distributed.init_process_group(size, rank, backend="nccl", host=host, port=port)
        return cls(group, cupy, rank, size, local_rank, local_size)

    def start_sum(self, buffer: Any) -> Callable[[], None]:
        # On a stream of its own, beside which backward goes on; nothing on the host waits.
        on_device = self._xp.asarray(buffer)
        computing = self._xp.cuda.get_current_stream()
        self._stream.wait_event(computing.record())
        self._communicator.all_reduce(on_device, on_device, stream=self._stream)
        done = self._stream.record()

        def finish() -> None:
            self._xp.cuda.get_current_stream().wait_event(done)
            if on_device is not buffer:
                buffer[...] = self._xp.asnumpy(on_device)

        return finish

    def broadcast(self, array: Any) -> None:
        on_device = self._xp.ascontiguousarray(self._xp.asarray(array))
        self._communicator.broadcast(on_device, 0)
        if on_device is not array:
            array[...] = on_device if isinstance(array, self._xp.ndarray) else self._xp.asnumpy(on_device)

    def gathered(self, value: Any, *, patient: bool = False) -> list[Any]:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = data.size
        self.start_sum(sizes)()
        mine, everybody = self._xp.zeros(sizes.max(), np.uint8), self._xp.zeros((self.size, sizes.max()), np.uint8)
        mine[: data.size] = self._xp.asarray(data)
        self._communicator.all_gather(mine, everybody, mine.size)
        parts = self._xp.asnumpy(everybody)
        return [pickle.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def cores(self) -> int:
        return max(1, super().cores() // self.local_size)

    def abort(self, status: int) -> None:
        os._exit(status)  # torchrun ends the others
