"""Arrays and streams of other GPU libraries, by DLPack, ``__cuda_array_interface__`` and ``__cuda_stream__``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.dtypes import kind_of

__all__ = ["StateArray", "Stream", "adopted", "as_torch", "device", "on_device", "stream_handle"]

#: DLPack's numbers for memory of a CUDA device, and for memory that the driver moves between device and host.
_DLPACK_CUDA = (2, 13)
#: Attribute with the handle of a stream, in libraries older than the protocol: CuPy up to 13, PyTorch.
_HANDLES = ("ptr", "cuda_stream")


class device(str):
    """Where arrays live, as text: 'cpu' or 'cuda'. It has PyTorch's name, and equals the text.

    Args:
        name: 'cpu' or 'cuda', or 'cuda:0': operations run on the device that CUDA has made current, which is that.
        index: 0, or None.

    Attributes:
        type: 'cpu' or 'cuda'.
        index: 0 if it was named, else None.

    Raises:
        ValueError: another one.
    """

    type: str
    index: int | None  # type: ignore[assignment]  # of str, a method

    def __new__(cls, name: str, index: int | None = None) -> device:
        """Check the name."""
        kind, colon, number = str(name).partition(":")
        if kind not in ("cpu", "cuda") or (colon and number != "0") or index not in (None, 0):
            raise ValueError(
                f"device: name must be 'cpu' or 'cuda', got {name!r}{'' if index is None else f', {index!r}'}; which "
                "GPU is used is set with CUDA_VISIBLE_DEVICES"
            )
        made = super().__new__(cls, kind)
        made.type, made.index = kind, 0 if colon or index == 0 else None
        return made

    def __repr__(self) -> str:
        return f"device(type={self.type!r}{'' if self.index is None else f', index={self.index}'})"


def on_device(data: Any) -> bool:
    """Whether ``array`` is an array on a GPU, of any library."""
    if hasattr(data, "__cuda_array_interface__"):
        return True
    where = getattr(data, "__dlpack_device__", None)
    return where is not None and int(where()[0]) in _DLPACK_CUDA


def adopted(data: Any, xp: Any) -> Any:
    """An array on a GPU as a CuPy array (``xp``) on the same memory.

    By DLPack where possible: its producer is told the current stream, and makes it wait for pending work.
    ``__cuda_array_interface__`` may leave out the stream, as PyTorch's does, and then nothing waits.

    Raises:
        BufferError: its library does not export it, or CuPy cannot import it (an unsupported dtype, for example).
        RuntimeError: the same, from libraries that raise that instead.
    """
    if isinstance(data, xp.ndarray):
        return data
    if hasattr(data, "__dlpack__") and hasattr(data, "__dlpack_device__"):
        try:
            return xp.from_dlpack(data)
        except (BufferError, RuntimeError):  # for example a read-only array, which CuPy cannot represent
            if not hasattr(data, "__cuda_array_interface__"):
                raise
    return xp.asarray(data)


def as_torch(array: Any) -> Any:
    """An array of NumPy or CuPy as a torch tensor on the same memory. ImportError: PyTorch is not installed."""
    import torch

    if kind_of(array.dtype) != array.dtype.kind:  # bfloat16, which DLPack does not hand over: by its bits
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


class StateArray(np.ndarray):
    """An array of a state dict: NumPy's, which torch's functions, ``load_state_dict`` among them, take for a tensor."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Call a function of torch with tensors in place of these arrays (torch's protocol for such types)."""

        def converted(value: Any) -> Any:
            if isinstance(value, cls):
                return as_torch(value.view(np.ndarray))
            return type(value)(map(converted, value)) if type(value) in (tuple, list) else value

        return function(*converted(tuple(arguments)), **{k: converted(v) for k, v in (options or {}).items()})


@dataclass(frozen=True)
class Stream:
    """A stream by its handle, for other libraries, such as ``cuda.core``'s ``device.create_stream(stream)``.

    Attributes:
        handle: address of the ``cudaStream_t``; 0 is the legacy default stream.
    """

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version 0 of the protocol, and the handle."""
        return 0, self.handle


def stream_handle(stream: Any) -> int:
    """The address of a stream's ``cudaStream_t``.

    Args:
        stream: an object with ``__cuda_stream__`` (``cuda.core``, PyTorch, CuPy from 14 on), an older CuPy or PyTorch
            stream, or the address itself.

    Raises:
        TypeError: none of these.
        ValueError: a version of the protocol other than 0, or an invalid address.
    """
    handle: Any = stream
    if hasattr(stream, "__cuda_stream__"):
        version, handle = stream.__cuda_stream__()
        if version != 0:
            raise ValueError(f"use_stream: version {version} of __cuda_stream__, where 0 is known")
    elif not isinstance(stream, int):
        found = [getattr(stream, name) for name in _HANDLES if isinstance(getattr(stream, name, None), int)]
        if not found:
            raise TypeError(
                f"use_stream: got {type(stream).__name__}, where a stream is needed: what has __cuda_stream__, a "
                "stream of CuPy or PyTorch, or the integer address of a cudaStream_t"
            )
        handle = found[0]
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"use_stream: the address of a stream is an integer, got {type(handle).__name__}")
    if not 0 <= handle < 2**64:
        raise ValueError(f"use_stream: {handle} is not the address of a stream")
    return handle
