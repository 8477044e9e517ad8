"""The CUDA backend: CuPy arrays for storage, the kernels of ``gpuconv.kernels``, and CuPy's cuBLAS for products.

:meth:`CudaBackend.asarray` checks and converts all arrays: after it they are contiguous, and on one device. Kernels
compute in float32 and float64, those for tensor cores on half types, too. Work is queued on the caller's current CuPy
stream. ``gpuconv.tuning`` chooses the variant and tiling of a kernel.

With ``NUMBA_ENABLE_CUDASIM=1`` the kernels run in ``gpuconv.lab.simulator`` on NumPy arrays: slowly, but with every
access checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gpuconv import files, kernels, tuning
from gpuconv.arrays import adopted, on_device
from gpuconv.backends import capturing
from gpuconv.backends.base import Array, Backend, Candidate
from gpuconv.backends.cuda.branches import Access
from gpuconv.backends.cuda.known import Known
from gpuconv.backends.cuda.plan import Plan, flattened, is_array
from gpuconv.geometry import (
    BlockGeometry,
    BlockPairGeometry,
    ChainGeometry,
    Conv2dGeometry,
    ImageBatchGeometry,
    Pair,
    PartialSums,
    Pool2dGeometry,
    UpdateGeometry,
)
from gpuconv.lab import simulated_memory
from gpuconv.tuning import store

_INSTALL = "pip install 'gpuconv[cuda12]', or 'gpuconv[cuda13]' for a driver of CUDA 13"


#: What the kernels of losses are given, and leave where every label is a class.
_NONE_WRONG = np.iinfo(np.int32).max


def _simulating() -> bool:
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


#: Element types of arrays that operations take as they are.
_TAKEN = frozenset(np.dtype(name) for name in ("float32", "float64", "float16", "int64", "int32", "uint8", "bool"))

#: Number of plans to keep: without a limit, batches of many sizes would add up.
_MOST_PLANS = 4096

#: Errors of cuInit that tell what to do.
_DRIVER_ERRORS = {
    100: "the NVIDIA driver sees no GPU; is it hidden (CUDA_VISIBLE_DEVICES, a container started without GPUs)?",
    803: "the NVIDIA driver and its library libcuda.so.1 are of different versions: restart, or install it again",
}


@functools.cache
def _driver() -> tuple[int, int] | str:
    """Version of CUDA that the driver supports and number of devices, or why the driver cannot be used."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            break
    else:
        return "no NVIDIA driver was found (libcuda.so.1); install one, or use another backend"
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    if status := library.cuInit(0):
        other = f"the NVIDIA driver does not answer (cuInit: error {status}); is a GPU visible to this process?"
        return _DRIVER_ERRORS.get(status, other)
    if library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return _DRIVER_ERRORS[100]
    return version.value, count.value


def _compiler() -> tuple[int, int] | str:
    """Version of CUDA that numba-cuda compiles with, or why it cannot compile."""
    try:
        if not hasattr(importlib.import_module("numba.cuda.extending"), "register_jitable"):
            return (
                "numba.cuda is Numba's own, not numba-cuda's, which takes its place only where pip installed it into "
                f"the environment itself: {_INSTALL}"
            )
        importlib.import_module("numba.cuda.cudadrv.nvvm").NVVM()
        version: tuple[int, int] = importlib.import_module("numba.cuda.cudadrv.runtime").runtime.get_version()
    except Exception as error:  # each library has its own exception for not being found
        reason = str(error).partition("\n")[0]
        return _numpy_is_to_blame(error) or (
            f"numba-cuda finds no CUDA compiler ({reason}): {_INSTALL}, or let CUDA_HOME name a CUDA toolkit"
        )
    return _trial(version) or version


def _numpy_is_to_blame(error: BaseException | None) -> str | None:
    """One line, if NumPy is too new for numba-cuda and an error, or one of its causes, comes from that."""
    if tuple(map(int, np.__version__.split(".")[:2])) < (2, 5):
        return None
    while error is not None:
        if isinstance(error, (AttributeError, ImportError)) and re.search("numpy", str(error), re.IGNORECASE):
            return (
                f"numba-cuda {version_of('numba-cuda')} cannot compile with NumPy {np.__version__} "
                f"({str(error).partition(chr(10))[0]}): pip install 'numpy<2.5'"
            )
        error = error.__cause__ or error.__context__
    return None


@functools.cache
def _trial(cuda: tuple[int, int]) -> str | None:
    """Compile the smallest kernel: one line that says why it does not compile; None if it does.

    This takes half a second. Success is recorded beside the compiled kernels, with all versions that it depends on, for
    later processes. A failure is not recorded, because it may have been fixed by the next time.
    """
    try:
        versions = [f"{name} {version_of(name)}" for name in ("numba-cuda", "numba", "llvmlite")]
        others = f"numpy {np.__version__}", f"Python {sys.version}", f"CUDA {cuda}", f"driver {_driver()}"
        proof = json.dumps([*versions, *others]).encode()
        folder = importlib.import_module("gpuconv.kernels.compiled").folder()
        kept = folder / f"compiles-{hashlib.sha256(proof).hexdigest()[:16]}.json"
        with contextlib.suppress(OSError):
            if kept.read_bytes() == proof:
                return None
        numba = importlib.import_module("numba")
        # For compute capability 8.0, which every toolkit from 12 on compiles for, and without asking the device.
        numba.cuda.compile_ptx(_first_element_is_one, (numba.float32[::1],), cc=(8, 0))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return _numpy_is_to_blame(error) or f"numba-cuda cannot compile ({type(error).__name__}: {reason}): {_INSTALL}"
    with contextlib.suppress(OSError):  # then the next process tries again
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomically(kept, proof)
    return None


def _first_element_is_one(x: Any) -> None:
    x[0] = 1


def _arrays() -> int | str:
    """Version of CUDA that CuPy was built for, as the driver counts, or why it cannot be used."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {_INSTALL}"
    try:
        version: int = importlib.import_module("cupy").cuda.runtime.runtimeGetVersion()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return f"CuPy cannot be used ({type(error).__name__}: {reason}): {_INSTALL}"
    return version


class _SimulatedArrays:
    """NumPy, except that new arrays come from memory that is reused as a device's is."""

    empty = staticmethod(simulated_memory.empty)

    def full(self, shape: Any, value: Any, dtype: Any) -> np.ndarray:
        """As NumPy's."""
        array = self.empty(shape, dtype)
        array[...] = value
        return array

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _MemoryErrors:
    """Context of each forward and backward on a GPU: turns out-of-memory errors into gpuconv's own message.

    It has no state and is shared by all operations, each of which enters it several times.
    """

    def __init__(self, cupy: Any):
        self._cupy = cupy

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None or not isinstance(error, self._cupy.cuda.memory.OutOfMemoryError):
            return
        self._cupy.get_default_memory_pool().free_all_blocks()
        free, total = self._cupy.cuda.runtime.memGetInfo()
        raise MemoryError(  # the error says how much was requested
            f"the GPU is out of memory: {error} {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free; "
            "smaller batches need less"
        ) from None


class _Loss(NamedTuple):
    """The mean cross-entropy of a chain's results.

    Attributes:
        logits: their address.
        biases: of the chain's layers.
        labels: contiguous, int64.
        ignore_index: the label that does not count.
    """

    logits: int
    biases: tuple[Array | None, ...]
    labels: Array
    ignore_index: int


class CudaBackend(Backend):
    """Hand-written kernels on an NVIDIA GPU, or in the simulator."""

    name: ClassVar[str] = "cuda"

    def __init__(self) -> None:
        self.simulated = _simulating()
        if self.simulated:
            importlib.import_module("gpuconv.lab.simulator").activate()
        self.xp: Any = _SimulatedArrays() if self.simulated else importlib.import_module("cupy")
        #: Plans by operation, geometry, dtype, device, and what the user asked for.
        self._plans: dict[Any, Plan] = {}
        #: Of the results of a chain of layers its biases; of the gradient of a loss, what it is the loss of.
        self._chains, self._losses = Known(_address), Known(_address)
        self._memory_errors = _MemoryErrors(self.xp)
        store.when_changed(self._plans.clear)

    @classmethod
    def unavailable(cls) -> str | None:
        if importlib.util.find_spec("numba_cuda") is None:
            return f"numba-cuda is not installed: {_INSTALL}"
        if _simulating():
            if importlib.util.find_spec("greenlet") is None:
                return "the simulator (NUMBA_ENABLE_CUDASIM=1) needs greenlet: pip install 'gpuconv[lab]'"
            return None
        driver = _driver()
        if isinstance(driver, str):
            return driver
        arrays = _arrays()
        if isinstance(arrays, str):
            return arrays
        compiler = _compiler()
        if isinstance(compiler, str):
            return compiler
        supported = driver[0] // 1000
        for library, needed in (("CuPy was built for", arrays // 1000), ("numba-cuda compiles for", compiler[0])):
            if needed > supported:
                return (
                    f"the driver supports CUDA {supported}.{driver[0] % 1000 // 10}, but {library} CUDA {needed}: "
                    f"update the driver, or pip install 'gpuconv[cuda{supported}]' instead"
                )
        return None

    @classmethod
    def automatic(cls) -> bool:
        return not _simulating()

    def describe(self) -> str:
        numba_cuda = importlib.import_module("numba_cuda").__version__
        if self.simulated:
            return f"simulator, numba-cuda {numba_cuda}: no GPU is used"
        runtime = self.xp.cuda.runtime
        properties, driver = runtime.getDeviceProperties(runtime.getDevice()), runtime.driverGetVersion()
        return (
            f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, "
            f"compute capability {properties['major']}.{properties['minor']}, "
            f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}, CuPy {self.xp.__version__}, "
            f"numba-cuda {numba_cuda}"
        )

    def free_memory(self) -> int | None:
        return None if self.simulated else int(self.xp.cuda.runtime.memGetInfo()[0])

    # -- captured steps ----------------------------------------------------------------------------------------------

    def new_graph(self, *, side_by_side: bool = True) -> Any:
        cuda_graph = importlib.import_module("gpuconv.backends.cuda.graph")
        return cuda_graph.SimulatedGraph() if self.simulated else cuda_graph.CudaGraph(self.xp, side_by_side)

    def new_input(self, array: Array) -> Any:
        """The place from which a captured step reads an input like this one."""
        cuda_graph = importlib.import_module("gpuconv.backends.cuda.graph")
        return (cuda_graph.SimulatedInput if self.simulated else cuda_graph.CudaInput)(self.xp, array)

    def write(self, target: Array, values: np.ndarray) -> None:
        """Copy a host array to the beginning of a flat device array, in order on the current stream."""
        if self.simulated:
            target[: values.size] = values
        else:
            target[: values.size].set(values, stream=self.xp.cuda.get_current_stream())

    # -- storage -----------------------------------------------------------------------------------------------------

    def asarray(self, array: Any, name: str = "array") -> Array:
        """As in the base class. A host array is copied to the current device; one on another device is refused.

        A device array of another library is used without a copy, by DLPack or ``__cuda_array_interface__``.

        Raises:
            TypeError: the kernels cannot compute with this dtype.
            ValueError: the array is on another device than the current one.
            MemoryError: the device is full; the message says how much was requested and how much is free.
        """
        capture = capturing.current()
        if isinstance(array, self.xp.ndarray):
            if capture is not None:
                capture.touches(array)
            # Fast path: most arrays need no conversion.
            if not self.simulated and array.dtype in _TAKEN and array.flags.c_contiguous:
                if array.data.device_id != self._device():
                    self._check_device(name, array)
                return array
        if isinstance(array, np.ndarray):
            if not array.dtype.isnative:
                array = array.astype(array.dtype.newbyteorder("="))
        elif not self.simulated and on_device(array):
            array = adopted(array, self.xp)
        if array.dtype.kind == "f" and array.itemsize not in (2, 4, 8):
            raise TypeError(f"{name} has element type {array.dtype}; the cuda backend computes in float32 and float64")
        if self.simulated:
            return self._contiguous(np.asarray(array))
        with self.computing():
            if not isinstance(array, self.xp.ndarray):
                if capture is not None and not array.shape:
                    return self.constant(array)  # a number in the step's code, which does not change
                if capture is not None:
                    raise TypeError(
                        f"{name}, of shape {array.shape}, is on the host, and would be copied again by every launch"
                    )
                array = self.xp.asarray(array)
            self._check_device(name, array)
            return self._contiguous(array)

    def constant(self, values: Any, dtype: Any = None) -> Array:
        if (capture := capturing.current()) is None or isinstance(values, self.xp.ndarray):
            return super().constant(values, dtype)
        with capturing.outside():  # a graph would repeat the copy, from memory of the host that is used anew then
            array = super().constant(values, dtype)
        capture.keeps(array)
        return array

    def _check_device(self, name: str, array: Any) -> None:
        if not isinstance(array, self.xp.ndarray):
            raise TypeError(
                f"{name}: got an array on the host, where one on the GPU is needed; cupy.asarray(array) copies it, and "
                "model.to('cuda') the parameters of a model"
            )
        current = self.xp.cuda.runtime.getDevice()
        if array.data.device_id != current:
            raise ValueError(
                f"{name}: an array of shape {tuple(array.shape)} is on device {array.data.device_id}, but the current "
                f"device is {current}; copy it, or compute inside `with cupy.cuda.Device({array.data.device_id})`"
            )

    def to_numpy(self, array: Array) -> np.ndarray:
        return array if self.simulated else self.xp.asnumpy(array)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        return super().computing() if self.simulated else self._memory_errors

    def current_stream(self) -> int:
        """The handle of the caller's current stream; 0 is the default one."""
        return 0 if self.simulated else int(self.xp.cuda.get_current_stream().ptr)

    def plan(self, operation: str, geometry: Any, dtype: Any) -> Plan:
        """How an operation runs. The plan is cached, unless the user asks for something else or tunes.

        Raises:
            ValueError: no variant supports it, or not the one that was asked for.
        """
        key = operation, geometry, dtype, self._device(), tuning.wish(operation)
        plan = self._plans.get(key)
        if plan is None:
            platform = self.tuning_platform()
            name = tuning.computed_in(operation, geometry, np.dtype(dtype).name, platform=platform)
            choice = tuning.choose(operation, geometry, name, platform=platform)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(choice, geometry, name)
        return plan

    def takes_half(self, primitive: str, geometry: Any, dtype: Any) -> bool:
        return self.plan(primitive, geometry, dtype).dtype == dtype

    def _device(self) -> int:
        return 0 if self.simulated else int(self.xp.cuda.runtime.getDevice())

    def _run(self, operation: str, geometry: Any, *inputs: Any, **options: Any) -> Any:
        """Queue an operation by its plan; see :meth:`_queue`."""
        return self._queue(self.plan(operation, geometry, inputs[0].dtype), *inputs, **options)

    def _queue(self, plan: Plan, *inputs: Any, results: Sequence[Any] | None = None, **options: Any) -> Any:
        """Queue the launches of a plan, with a workspace if it needs one.

        Args:
            plan: the operation's.
            inputs: arrays that it reads, and those that it changes in place.
            results: arrays that it writes; None for new ones.
            options: numbers, and arrays that are passed by keyword.

        Returns:
            The result, or a tuple if there are several.
        """
        if results is None:
            empty = self.xp.empty
            results = plan.new_results(empty) if plan.single is None else (empty(*plan.single),)
        arrays = (*inputs, *results)
        if plan.workspace and "workspace" not in options:
            options["workspace"] = self.xp.empty((plan.workspace,), plan.workspace_type)
        if (capture := capturing.current()) is not None:
            for array in flattened((*arrays, *(value for value in options.values() if is_array(value))))[0]:
                capture.touches(array)
        if self.simulated:
            plan.run(arrays, options)
        else:
            plan.queue(arrays, options, self.current_stream(), self._device(), self._check_device)
        return results[0] if len(results) == 1 else tuple(results)

    def explain(self, primitive: str, geometry: Any, dtype: str) -> list[str]:
        platform = self.tuning_platform()
        if primitive in ("conv2d_relu_max_pool2d_grad", "linear_chain_grad"):
            parts = [(part, f"{primitive}_{part}") for part in ("input", "weight")]
            if primitive == "linear_chain_grad":
                parts.append(("input, of a loss", "linear_chain_loss_grad_input"))
            rows = ((part, row) for part, name in parts for row in tuning.candidates(name, geometry, dtype, platform))
            return [f"{part}, {variant}: {why}" for part, (variant, why) in rows]
        if geometry is None or primitive not in kernels.VARIANTS:
            return super().explain(primitive, geometry, dtype)
        return [f"{variant}: {why}" for variant, why in tuning.candidates(primitive, geometry, dtype, platform)]

    # -- tuning ------------------------------------------------------------------------------------------------------

    def tuning_platform(self) -> store.Platform | None:
        return None if self.simulated else _platform(self.xp.cuda.runtime.getDevice())

    def candidates(
        self, operation: str, geometry: Conv2dGeometry, dtype: str, window: Pair = (1, 1)
    ) -> list[Candidate]:
        what: Any = geometry
        if window != (1, 1):
            what = BlockGeometry(geometry, Pool2dGeometry.of(geometry.output_shape, window))
            operation = "conv2d_relu_max_pool2d"
        rule = tuning.choose(operation, what, dtype)
        if rule.variant == tuning.COMPOSED:
            raise ValueError(
                f"{operation}: its parts run one after the other; --geometry tunes the convolution by itself"
            )
        found = []
        platform = self.tuning_platform()
        capability = None if platform is None else platform.compute_capability
        for variant in kernels.VARIANTS[operation]:
            loaded = kernels.load(operation, variant)
            for tiling in loaded.tilings(what) if loaded.supports(what, dtype, capability) else ():
                run = functools.partial(self._candidate, operation, variant, tiling, what)
                found.append(Candidate(variant, tiling, run))
        return sorted(found, key=lambda one: (one.variant, one.tiling) != (rule.variant, rule.tiling))

    def _candidate(self, operation: str, variant: str, tiling: Any, geometry: Any, *arrays: Array) -> Array:
        """Run a variant; gives its first result."""
        dtype, key = arrays[0].dtype, (operation, variant, tiling, geometry, arrays[0].dtype, self._device())
        if key not in self._plans:
            choice = tuning.Choice(operation, variant, tiling, "argument", "a candidate")
            self._plans[key] = Plan(choice, geometry, dtype)
        result = self._queue(self._plans[key], *arrays)
        return result[0] if isinstance(result, tuple) else result

    # -- data --------------------------------------------------------------------------------------------------------

    def image_batch(
        self, table: Array, images: Array, labels: Array, index: Array, transforms: Array | None, size: Pair
    ) -> tuple[Array, Array]:
        return self._image_batch(table, images, labels, index, transforms, size, len(index))

    def next_image_batch(
        self,
        table: Array,
        images: Array,
        labels: Array,
        order: Array,
        transforms: Array | None,
        size: Pair,
        step: Array,
        batch: int,
    ) -> tuple[Array, Array]:
        return self._image_batch(table, images, labels, order, transforms, size, batch, step=step)

    def _image_batch(
        self,
        table: Array,
        images: Array,
        labels: Array,
        index: Array,
        transforms: Array | None,
        size: Pair,
        n: int,
        **step: Array,
    ) -> tuple[Array, Array]:
        (total, h, w), (p, q) = images.shape, size
        geometry = ImageBatchGeometry(n, total, h, w, p, q, warps=transforms is not None)
        found: tuple[Array, Array] = self._run(
            "image_batch", geometry, table, images, labels, index, transforms, **step
        )
        return found

    def count_correct(self, logits: Array, labels: Array) -> Array:
        return self._run("count_correct", logits.shape, self._contiguous(logits), self._contiguous(labels)).reshape(())

    def log_step(self, logits: Array, labels: Array, loss: Array, losses: Array, counts: Array, step: Array) -> None:
        log = {"loss": loss, "losses": losses, "step": step}
        logits, labels = self._contiguous(logits), self._contiguous(labels)
        self._run("count_correct", logits.shape, logits, labels, results=[counts], **log)

    # -- convolution -------------------------------------------------------------------------------------------------

    def conv2d(self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry) -> Array:
        return self._run("conv2d", geometry, x, weight, bias)

    def conv2d_grad_input(self, grad: Array, weight: Array, geometry: Conv2dGeometry) -> Array:
        return self._run("conv2d_grad_input", geometry, self._contiguous(grad), weight)

    def conv2d_grad_weight(self, grad: Array, x: Array, geometry: Conv2dGeometry) -> Array:
        return self._run("conv2d_grad_weight", geometry, self._contiguous(grad), x)

    def conv2d_grad_bias(self, grad: Array) -> Array:
        return self._run("conv2d_grad_bias", grad.shape, self._contiguous(grad))

    # -- activation and pooling --------------------------------------------------------------------------------------

    def relu(self, x: Array) -> Array:
        return self._run("relu", x.shape, x)

    def relu_grad(self, grad: Array, y: Array) -> Array:
        return self._run("relu_grad", y.shape, self._contiguous(grad), y)

    def max_pool2d(self, x: Array, geometry: Pool2dGeometry) -> tuple[Array, Array]:
        found: tuple[Array, Array] = self._run("max_pool2d", geometry, x)
        return found

    def max_pool2d_grad(self, grad: Array, winners: Array, geometry: Pool2dGeometry) -> Array:
        return self._run("max_pool2d_grad", geometry, self._contiguous(grad), winners)

    def avg_pool2d(
        self, x: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        return self._run("avg_pool2d", geometry, x, **options)

    def avg_pool2d_grad(
        self, grad: Array, geometry: Pool2dGeometry, *, count_include_pad: bool, divisor_override: int | None
    ) -> Array:
        options: dict[str, Any] = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        return self._run("avg_pool2d_grad", geometry, self._contiguous(grad), **options)

    # -- the fused block ---------------------------------------------------------------------------------------------

    def conv2d_relu_max_pool2d(
        self, x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry, pool: Pool2dGeometry
    ) -> tuple[Array, Array]:
        operation, block = "conv2d_relu_max_pool2d", BlockGeometry(geometry, pool)
        plan = self.plan(operation, block, x.dtype)
        if plan.variant is None:
            return super().conv2d_relu_max_pool2d(x, weight, bias, geometry, pool)
        found: tuple[Array, Array] = self._queue(plan, x, weight, bias)
        return found

    def conv2d_relu_max_pool2d_pair(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None], geometry: BlockPairGeometry
    ) -> tuple[list[Array], list[Array]]:
        plan = self.plan("conv2d_relu_max_pool2d_pair", geometry, x.dtype)
        if plan.variant is None:
            return super().conv2d_relu_max_pool2d_pair(x, weights, biases, geometry)
        found: tuple[list[Array], list[Array]] = self._queue(plan, x, weights, biases)
        return found

    def conv2d_relu_max_pool2d_grad(
        self,
        grad: Array,
        x: Array,
        weight: Array,
        y: Array,
        winners: Array,
        geometry: Conv2dGeometry,
        pool: Pool2dGeometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        operation, block = "conv2d_relu_max_pool2d_grad", BlockGeometry(geometry, pool)
        grad, (need_input, need_weight, need_bias) = self._contiguous(grad), needs
        dx = dw = db = None
        if need_input and (plan := self.plan(f"{operation}_input", block, grad.dtype)).variant is not None:
            dx = self._queue(plan, grad, weight, y, winners)
        if need_weight or need_bias:
            plan = self.plan(f"{operation}_weight", block, grad.dtype)
            if plan.variant is not None:
                queue = self._in_parts if plan.workspace and capturing.may_leave() else self._queue
                dw, db = queue(plan, grad, x, y, winners)
        # The composition goes through the gradient of the unpooled maps; once, if at all.
        rest = (need_input and dx is None, need_weight and dw is None, need_bias and db is None)
        if any(rest):
            composed = super().conv2d_relu_max_pool2d_grad(grad, x, weight, y, winners, geometry, pool, rest)
            dx, dw, db = (new if old is None else old for old, new in zip((dx, dw, db), composed, strict=True))
        return dx if need_input else None, dw if need_weight else None, db if need_bias else None

    def conv2d_relu_max_pool2d_pair_grad(
        self,
        grad: Array,
        x: Array,
        weights: Sequence[Array],
        ys: Sequence[Array],
        winners: Sequence[Array],
        geometry: BlockPairGeometry,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        operation, second = "conv2d_relu_max_pool2d_grad", geometry.second
        plans = (self.plan(f"{operation}_{part}", second, grad.dtype) for part in ("input", "weight"))
        if not any(needs[:3]) or any(plan.variant is None for plan in plans):
            return super().conv2d_relu_max_pool2d_pair_grad(grad, x, weights, ys, winners, geometry, needs)
        # In another order, for a captured step: the second block's weights wait last, and the first block's, on which
        # more depends, do not wait for memory that those have used.
        grad = self._contiguous(grad)
        *first, _, _ = super().conv2d_relu_max_pool2d_pair_grad(
            grad, x, weights, ys, winners, geometry, (*needs[:3], False, False)
        )
        _, *last = self.conv2d_relu_max_pool2d_grad(
            grad, ys[0], weights[1], ys[1], winners[1], *second, (False, needs[3], needs[4])
        )
        return *first, *last

    def _in_parts(self, plan: Plan, *inputs: Any) -> list[Any]:
        """Queue sums over parts of a batch, and leave it to those who read the results to add them up."""
        results = plan.new_results(self.xp.empty)
        rows = self.xp.empty((plan.workspace,), plan.workspace_type)
        self._queue(plan, *inputs, results=[None] * len(results), workspace=rows)
        parts = plan.workspace // sum([one.size for one in results])
        capturing.leave(capturing.LeftSum(results, rows, parts, functools.partial(self._add_up, results, rows, parts)))
        return results

    def _add_up(self, results: list[Any], rows: Any, parts: int) -> None:
        """Queue the kernel that adds up what :meth:`_in_parts` left."""
        sums = importlib.import_module("gpuconv.kernels.partial_sums")
        launch, arguments = sums.sum_parts_of_two(rows, *[one.reshape(-1) for one in results], parts)
        stream = None if self.simulated else self.current_stream()
        queue = functools.partial(launch, stream, *arguments)
        capture = capturing.current()
        if capture is None or capture.branches is None:
            queue()
            return
        accesses = [(rows, False), *((one, True) for one in results)]
        capture.branches.add(
            queue, [Access(_address(one), _address(one) + one.nbytes, writes) for one, writes in accesses]
        )

    # -- matrix products ---------------------------------------------------------------------------------------------

    # Those of cuBLAS, but in a step that is captured, where CuPy refuses to call it: there a product is a convolution
    # with filters of 1×1. The steps that warm up are computed alike, so that kernels are compiled before the capture.

    def matmul(self, a: Array, b: Array) -> Array:
        if not capturing.ahead() or np.result_type(a.dtype, b.dtype).kind != "f":
            return super().matmul(a, b)
        left, right = a if a.ndim > 1 else a[None, :], b if b.ndim > 1 else b[:, None]
        if right.ndim == 2:  # one product of all rows
            batch, left = left.shape[:-2], left.reshape(1, -1, left.shape[-1])
            rows = (*batch, a.shape[-2]) if a.ndim > 1 else ()
        else:
            batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
            left = self.xp.broadcast_to(left, (*batch, *left.shape[-2:])).reshape(-1, *left.shape[-2:])
            right = self.xp.broadcast_to(right, (*batch, *right.shape[-2:]))
            rows = (*batch, a.shape[-2]) if a.ndim > 1 else batch
        # A group of channels a matrix: filters (groups · m, k, 1, 1) on an image (1, groups · k, 1, n).
        (groups, m, k), n = left.shape, right.shape[-1]
        shape = (*rows, n) if b.ndim > 1 else rows
        if 0 in (groups, m, k, n):
            return self.xp.zeros(shape, left.dtype)
        image, filters = right.reshape(1, groups * k, 1, n), left.reshape(groups * m, k, 1, 1)
        geometry = Conv2dGeometry.of(image.shape, filters.shape, groups=groups)
        return self.conv2d(self._contiguous(image), self._contiguous(filters), None, geometry).reshape(shape)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        if not capturing.ahead() or 0 in x.shape or 0 in weight.shape:
            return super().linear(x, weight, bias)
        # Without the transposed copy of weight that a product would need.
        images, filters = x.reshape(-1, x.shape[-1], 1, 1), weight.reshape(*weight.shape, 1, 1)
        geometry = Conv2dGeometry.of(images.shape, filters.shape)
        y = self.conv2d(self._contiguous(images), self._contiguous(filters), bias, geometry)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    # -- fully connected layers --------------------------------------------------------------------------------------

    def linear_chain(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array | None], geometry: ChainGeometry
    ) -> list[Array]:
        plan = self.plan("linear_chain", geometry, x.dtype)
        if plan.variant is None:
            return super().linear_chain(x, weights, biases, geometry)
        ys: list[Array] = self._queue(plan, x, weights, biases)
        if len(ys) > 1 and not geometry.relu[-1]:
            self._chains.note(ys[-1], tuple(biases))
        return ys

    def linear_chain_grad(
        self,
        grad: Array,
        x: Array,
        weights: Sequence[Array],
        ys: Sequence[Array],
        geometry: ChainGeometry,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        first, second = (self.plan(f"linear_chain_grad_{part}", geometry, grad.dtype) for part in ("input", "weight"))
        if first.variant is None or second.variant is None:
            return super().linear_chain_grad(grad, x, weights, ys, geometry, needs)
        grad = self._contiguous(grad)
        grads, dx = first.new_results(self.xp.empty)
        loss = self._losses.of(grad) if needs[0] else None
        if (
            loss is not None
            and loss.logits == _address(ys[-1])
            and (whole := self.plan("linear_chain_loss_grad_input", geometry, grad.dtype)).variant is not None
        ):
            arrays = ys[0], loss.labels, weights, loss.biases
            self._queue(whole, *arrays, results=(grads, dx), ignore_index=loss.ignore_index)
        else:
            if not geometry.relu[-1]:
                grads[-1] = grad
            if not needs[0]:
                dx = None
            self._queue(first, grad, weights, ys, results=(grads, dx))
        dweights, dbiases = [None] * len(weights), [None] * len(weights)
        if any(needs[1:]):
            dweights, dbiases = self._queue(second, (x, *ys[:-1]), grads)
        parameters = (gradient for pair in zip(dweights, dbiases, strict=True) for gradient in pair)
        return dx, *(gradient if need else None for gradient, need in zip(parameters, needs[1:], strict=True))

    # -- batch normalisation -----------------------------------------------------------------------------------------

    def batch_norm(
        self,
        x: Array,
        mean: Array | None,
        var: Array | None,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None,
        *,
        eps: float,
        relu: bool,
    ) -> tuple[Array, Array, Array]:
        if not x.size:
            return super().batch_norm(x, mean, var, weight, bias, residual, eps=eps, relu=relu)
        x, residual = self._contiguous(x), None if residual is None else self._contiguous(residual)
        if mean is None or var is None:
            mean, var = self._run("batch_norm_stats", x.shape, x)
        y = self._run("batch_norm", x.shape, x, mean, var, weight, bias, residual, eps=eps, relu=relu)
        return y, mean, var

    def batch_norm_grad(
        self,
        grad: Array,
        x: Array,
        y: Array | None,
        mean: Array,
        var: Array,
        weight: Array | None,
        *,
        eps: float,
        own: bool,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None, Array | None]:
        if not x.size:
            return super().batch_norm_grad(grad, x, y, mean, var, weight, eps=eps, own=own, needs=needs)
        need_x, need_weight, need_bias, need_residual = needs
        grad, x = self._contiguous(grad), self._contiguous(x)
        dx = dw = db = None
        if own or need_weight or need_bias:
            dw, db = self._run("batch_norm_grad_stats", x.shape, grad, x, y, mean, var, eps=eps)
        dresidual = grad if need_residual else None
        if need_x or (need_residual and y is not None):
            plan = self.plan("batch_norm_grad_input", x.shape, grad.dtype)
            dx, dresidual = plan.new_results(self.xp.empty)
            sums = (dw, db) if own else (None, None)
            # Without a ReLU the gradient of what was added is the result's own.
            results = dx, dresidual if need_residual and y is not None else None
            self._queue(plan, grad, x, y, mean, var, weight, *sums, results=results, eps=eps)
            dresidual = grad if y is None else dresidual
        return (
            dx if need_x else None,
            dw if need_weight else None,
            db if need_bias else None,
            dresidual if need_residual else None,
        )

    # -- loss --------------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, weight: Array | None, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        labels = self._contiguous(labels.astype(np.int64, copy=False))
        first_wrong = self.xp.full(1, _NONE_WRONG, np.int32)
        arrays = (self._contiguous(logits), labels, weight, first_wrong)
        options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        losses, probabilities = self._run("softmax_cross_entropy", logits.shape, *arrays, **options)
        self._check_labels(first_wrong, labels, logits.shape[1], ignore_index)
        return losses, probabilities

    def softmax_cross_entropy_mean(
        self, logits: Array, labels: Array, *, weight: Array | None, **options: Any
    ) -> tuple[Array, Array] | None:
        plan = self.plan("softmax_cross_entropy_mean", logits.shape, logits.dtype)
        if plan.variant is None:
            return None
        labels = self._contiguous(labels.astype(np.int64, copy=False))
        loss, dlogits, first_wrong = self._queue(plan, self._contiguous(logits), labels, weight, **options)
        self._check_labels(first_wrong, labels, logits.shape[1], options["ignore_index"])
        if weight is None and not options["label_smoothing"]:
            biases = self._chains.of(logits)
            if biases is not None:
                fact = _Loss(_address(logits), biases, labels, options["ignore_index"])
                self._losses.note(dlogits, fact, [logits, labels, *(bias for bias in biases if bias is not None)])
        return loss.reshape(()), dlogits

    def _check_labels(self, first_wrong: Array, labels: Array, classes: int, ignore_index: int) -> None:
        if capturing.current() is not None:
            return
        # Reading it waits for the device, so that an error is raised where it was made and not some steps later.
        row = int(first_wrong[0])
        if row != _NONE_WRONG:
            raise ValueError(
                f"cross_entropy: target[{row}] is {int(labels[row])}, but input has {classes} classes "
                f"(0 to {classes - 1}) and ignore_index is {ignore_index}"
            )

    def softmax_cross_entropy_grad(
        self,
        grad: Array,
        probabilities: Array,
        labels: Array,
        *,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> Array:
        labels = self._contiguous(labels.astype(np.int64, copy=False))
        options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        arrays = (self._contiguous(grad), probabilities, labels, weight)
        return self._run("softmax_cross_entropy_grad", probabilities.shape, *arrays, **options)

    # -- optimizer updates -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _in_place(self, *arrays: Array | None) -> Iterator[list[Any]]:
        """The arrays as kernels can write them: host arrays and those with other strides are copied there and back."""
        used = [
            array
            if array is None or (isinstance(array, self.xp.ndarray) and array.flags.c_contiguous)
            else self.asarray(array)
            for array in arrays
        ]
        yield used
        for array, own in zip(arrays, used, strict=True):
            if array is not None and array is not own:
                array[...] = self.to_numpy(own) if isinstance(array, np.ndarray) else own

    def sgd_update_all(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array | None],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        terms = ("weight_decay", "nesterov")
        self._update_all("sgd_update_all", (params, grads, velocities), options, terms, together)

    def adam_update_all(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        means: Sequence[Array],
        squares: Sequence[Array],
        *,
        together: Any = None,
        **options: Any,
    ) -> None:
        terms = ("weight_decay", "decoupled")
        self._update_all("adam_update_all", (params, grads, means, squares), options, terms, together)

    def _update_all(
        self,
        operation: str,
        groups: tuple[Sequence[Any], ...],
        options: dict[str, Any],
        terms: tuple[str, ...],
        together: Any,
    ) -> None:
        """Update all parameters in one launch; one by one if their dtypes differ, or one is not as kernels need it."""
        params, grads, *states = groups
        # Arrays that are written in place must be on the device and contiguous.
        written = [array for group in (params, *states) for array in group if array is not None]
        whole = all([isinstance(array, self.xp.ndarray) and array.flags.c_contiguous for array in written])
        dtype = params[0].dtype
        if whole and all([array.dtype == dtype for array in (*written, *grads)]):
            self._update(operation, groups, options, terms, together)
            return
        if capturing.current() is not None:
            raise RuntimeError(
                f"{operation}: a captured step updates all parameters in one launch, which takes contiguous arrays "
                "of one element type"
            )
        for param, grad, *state in zip(*groups, strict=True):
            with self._in_place(param, *state) as (own, *own_state):
                self._update(operation, [[one] for one in (own, grad, *own_state)], options, terms, None)

    def _update(
        self,
        operation: str,
        groups: Sequence[Sequence[Any]],
        options: dict[str, Any],
        terms: tuple[str, ...],
        together: Any,
    ) -> None:
        params, grads, *states = groups
        dtype, geometry = params[0].dtype, tuple([param.size for param in params])
        plan, rows = None, []
        if capturing.active and (sums := capturing.take(list(grads))):
            whole = UpdateGeometry(geometry, _members(sums, grads))
            plan = self.plan(f"{operation}_of_parts", whole, dtype)
            if plan.variant is None:
                plan = None
                for one in sums:
                    one.add_up()
            else:
                geometry, rows = whole, [[one.rows for one in sums]]
        grads = [self._contiguous(grad) for grad in grads]
        plan = plan or self.plan(operation, geometry, dtype)
        written = [array for group in (params, *states) for array in group if array is not None]
        found = {name: options[name] for name in terms}
        numbers = self._numbers(plan, dtype, options, found, together, _narrow(written, grads))
        if (capture := capturing.current()) is not None:
            capture.updates[-1].launches.append((together, numbers))
        elif together is not None:
            numbers.prepare(together)
        array = numbers if together is None else numbers.array
        # Only the formula's terms: what varies from step to step is in the numbers.
        found["weight_decay"] = float(found["weight_decay"] != 0)
        self._queue(plan, params, grads, *rows, *states, array, **found)

    def _numbers(
        self,
        plan: Plan,
        dtype: Any,
        options: dict[str, Any],
        terms: dict[str, Any],
        together: Any,
        narrow: bool,
    ) -> Any:
        """The array of the formula's numbers: kept with the optimizer, or new for a single step."""
        variant, tiling, geometry = plan.variant, plan.choice.tiling, plan.geometry
        if together is None:
            if capturing.current() is not None:
                raise RuntimeError(f"{plan.choice.operation}: a captured step has to be an optimizer's")
            names = inspect.signature(variant.numbers_of).parameters
            row = variant.numbers_of(**{name: options[name] for name in names})
            return self.xp.asarray(variant.numbers_array([row], geometry, dtype))
        on = tuple([(name, bool(value)) for name, value in terms.items()])
        # Blocks count their steps. So launches with another number of blocks (for unaligned arrays) have a counter of
        # their own, and so do other parameters of the same sizes.
        key = plan.choice.operation, geometry, tiling, dtype, self._device(), on, narrow, together.members[0]
        if key not in together.prepared:
            numbers = importlib.import_module("gpuconv.backends.cuda.numbers")
            together.prepared[key] = numbers.UpdateNumbers(self, variant, geometry, dtype, on)
        return together.prepared[key]

    def _contiguous(self, array: Array) -> Array:
        # Gradients come from the graph and not through asarray: a permuted or broadcast one has other strides. NumPy
        # would add a dimension to an array that has none.
        if isinstance(array, self.xp.ndarray) and array.flags.c_contiguous:
            return array
        return self.xp.ascontiguousarray(array).reshape(array.shape)


@functools.cache
def _platform(device: int) -> store.Platform:
    """What a measurement on a device depends on."""
    from gpuconv.version import __version__

    runtime = importlib.import_module("cupy").cuda.runtime
    properties = runtime.getDeviceProperties(device)
    return store.Platform(
        backend="cuda",
        device=f"{properties['name'].decode()}, compute capability {properties['major']}.{properties['minor']}",
        driver=f"driver for CUDA {runtime.driverGetVersion()}, compiler of CUDA {_compiler()}, "
        f"numba-cuda {importlib.import_module('numba_cuda').__version__}",
        library=__version__,
        sources=store.digest(Path(kernels.__file__).parent.rglob("*.py")),
    )


def _members(sums: Sequence[capturing.LeftSum], grads: Sequence[Any]) -> tuple[PartialSums, ...]:
    """Which gradients each sum has, by their numbers."""
    numbers = {id(grad): number for number, grad in enumerate(grads)}
    return tuple([PartialSums(tuple([numbers[id(result)] for result in one.results]), one.parts) for one in sums])


def _narrow(*groups: Sequence[Any]) -> bool:
    """Whether an array does not start at a multiple of 16 bytes."""
    return any([_address(array) % 16 for group in groups for array in group])


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
