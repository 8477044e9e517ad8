"""Functions in CUDA C++ or PTX that a simulated kernel calls: ``cuda.declare_device``, and what ``link=`` names.

NVRTC compiles C++ to PTX, which needs no GPU; the interpreter of PTX runs a function for the thread that calls it, on
the arrays that it is given. Barriers of the block and of the warp in it are those of the simulation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from gpuconv.lab import launching
from gpuconv.lab.cards import Chosen
from gpuconv.lab.integers import typed
from gpuconv.lab.launching import SimulationError
from gpuconv.lab.places import WARP, Array, Dim3
from gpuconv.lab.ptx.instructions import decode
from gpuconv.lab.ptx.launching import packed, parameters_of
from gpuconv.lab.ptx.machine import Loaded, Machine, Step, Variables
from gpuconv.lab.ptx.memory import Global, Piece
from gpuconv.lab.ptx.program import Instruction, Program
from gpuconv.lab.ptx.values import Lanes, PtxError
from gpuconv.lab.records import dtype_of
from gpuconv.lab.traced_arrays import ATOMIC, READ, WRITE, TracedArray, address_of, arrays_of, bounds_of

#: Instructions with which threads of a warp or of a block work together, other than barriers: first part of the opcode.
_TOGETHER = {
    *("bar", "barrier", "shfl", "vote", "match", "redux", "activemask", "elect", "mma", "wmma", "wgmma", "ldmatrix"),
    *("stmatrix", "movmatrix", "mbarrier"),
}
_KINDS = {"st": WRITE, "atom": ATOMIC, "red": ATOMIC}
#: A barrier of the whole block, in every spelling.
_BARRIER = re.compile(r"(bar|barrier)(\.cta)?\.sync(\.aligned)?")


class ForeignFunction:
    """What ``cuda.declare_device`` gives: a function of code that is not Python, which a kernel can call.

    Raises:
        TypeError: the signature has no type of the result.
        NotImplementedError: the convention is neither Numba's nor that of C.
    """

    def __init__(
        self, name: str, sig: Any, link: Any = None, use_cooperative: bool = False, abi: str = "numba"
    ) -> None:
        if abi not in ("numba", "c"):
            raise NotImplementedError(f"Unsupported ABI: {abi}")
        arguments, result = _module("core.sigutils").normalize_signature(sig)
        if result is None:
            raise TypeError("Return type must be provided for device declarations")
        self.name, self.abi = name, abi
        self.sig = _module("typing").signature(result, *arguments)
        self.link = () if link is None else tuple(link) if isinstance(link, (list, tuple, set)) else (link,)
        _let_arrays_be_pointers()

    def __call__(self, *arguments: Any) -> Any:
        """Call it, in a kernel, which finds it in the files of the declaration and of the kernel."""
        launch = launching.here()
        function = launch.foreign.get(self)
        if function is None:
            linked = _linked(_sources((*self.link, *launch.linked)), Chosen.card.compute_capability)
            function = launch.foreign[self] = linked.function(self)
        return function(arguments, sys._getframe(1))


def declared(function: Any) -> ForeignFunction:
    """The same function as ``numba.cuda`` declares it for a real GPU: it keeps its files where it compiles."""
    files: tuple[Any, ...] = ()
    abi = "numba"
    with contextlib.suppress(ImportError, AttributeError, KeyError, LookupError):  # another version: files of jit only
        context = importlib.import_module("numba.cuda.descriptor").cuda_target.target_context
        lowering = context._defns[function].versions[0][1]
        files = tuple(file for library in lowering.libs for file in library._linking_files)
        abi = "c" if type(lowering.__defaults__[0].call_conv).__name__ == "CUDACABICallConv" else "numba"
    return ForeignFunction(function.name, function.sig, files, abi=abi)


def _module(name: str) -> Any:
    """A module of numba-cuda's, or Numba's where its version is older than 0.21."""
    try:
        return importlib.import_module(f"numba.cuda.{name}")
    except ImportError:
        return importlib.import_module(f"numba.{name}")


def _let_arrays_be_pointers() -> None:
    """``ffi.from_buffer`` of an array, in a kernel: the array stands for the pointer."""
    with contextlib.suppress(ImportError):
        ffi: Any = importlib.import_module("cffi").FFI
        original = ffi.from_buffer
        if hasattr(original, "__wrapped__"):
            return

        @functools.wraps(original)
        def from_buffer(self: Any, *args: Any, **keywords: Any) -> Any:
            return args[-1] if launching.in_kernel() and args else original(self, *args, **keywords)

        ffi.from_buffer = from_buffer


# -- code --------------------------------------------------------------------------------------------------------------


def _sources(files: Sequence[Any]) -> tuple[tuple[str, str, str], ...]:
    """Of each file: its name, its kind (``cu`` or ``ptx``) and its text."""
    found = []
    for file in files:
        if isinstance(file, (str, Path)):
            name, kind, data = Path(file).name, Path(file).suffix[1:], Path(file).read_bytes()
        else:
            kind = {"CUSource": "cu", "PTXSource": "ptx"}.get(type(file).__name__, type(file).__name__)
            name, data = file.name, file.data
            data = data.getvalue() if hasattr(data, "getvalue") else data
        if kind not in ("cu", "ptx"):
            raise SimulationError(f"{name}: .{kind} is machine code, which does not run here: link the C++ or the PTX")
        found.append((name, kind, data if isinstance(data, str) else bytes(data).decode()))
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=64)
def _linked(sources: tuple[tuple[str, str, str], ...], cc: tuple[int, int]) -> _Linked:
    return _Linked([compiled(name, text, cc) if kind == "cu" else text for name, kind, text in sources])


def compiled(name: str, text: str, cc: tuple[int, int]) -> str:
    """C++ as PTX for a GPU, or for the nearest one that this NVRTC knows."""
    try:
        nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        known = nvrtc.nvrtcGetSupportedArchs()[1]
    except (ImportError, RuntimeError) as error:
        words = f"{name}: C++ is compiled by NVRTC, which is missing ({error}): pip install 'numba-cuda[cu13]'"
        raise SimulationError(words) from None
    wanted = 10 * cc[0] + cc[1]
    arch = max((one for one in known if one <= wanted), default=min(known))
    options = [f"--gpu-architecture=compute_{arch}", "--relocatable-device-code=true", "--generate-line-info"]
    options += [f"-I{folder}" for folder in _folders()]
    program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])[1]
    status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
    size, get = (
        (nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        if status
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    room = b" " * size(program)[1]
    get(program, room)
    made = room.rstrip(b"\0 \n").decode(errors="replace")
    nvrtc.nvrtcDestroyProgram(program)
    if status:
        raise SimulationError(f"{name} does not compile:\n{made}")
    return made


def _folders() -> list[str]:
    """Where headers are looked for."""
    found = []
    finder = importlib.import_module("cuda.pathfinder")
    for library in ("cudart", "cccl", "curand"):
        with contextlib.suppress(Exception):  # of several kinds: a header directory of one that is not installed
            where = finder.locate_nvidia_header_directory(library)
            found += [where.abs_path] if where is not None else []
    more = getattr(_module("core.config"), "CUDA_NVRTC_EXTRA_SEARCH_PATHS", "") or ""
    return [*dict.fromkeys(found), *filter(None, more.split(":"))]


class _Linked:
    """Linked code with its variables, which keep their values between launches."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._loaded: dict[str, tuple[Loaded, _Memory, Variables]] = {}

    def function(self, declared: ForeignFunction) -> Callable[[tuple[Any, ...], FrameType], Any]:
        """One of its functions, which takes arguments and the kernel's frame."""
        name = declared.name
        if name not in self._loaded:
            if not self._texts:
                raise SimulationError(f"{name}: no file is linked that could define it: declare_device(..., link=...)")
            try:
                program = Program.parse(self._texts, name)
            except PtxError as error:
                words = f'{name} is in no linked file: declare it extern "C", so that it keeps its name ({error})'
                raise SimulationError(words) from None
            memory, loaded = _Memory(), Loaded(program, _decode)
            self._loaded[name] = loaded, memory, Variables(program, memory, loaded.code)
        return functools.partial(_call, declared, *self._loaded[name])


def _decode(program: Program, one: Instruction) -> Step:
    """What an instruction does, run for one thread of a block that the simulation runs."""
    name, callee = one.parts[0], next((part for part in one.operands if isinstance(part, str)), "")
    if _BARRIER.fullmatch(one.opcode) and one.operands == ("0",):
        return _barrier
    if name == "bar" and one.parts[1:3] == ["warp", "sync"]:
        return lambda machine, lanes: _syncwarp(machine, int(machine.column(callee, np.dtype("u4"), lanes)[0]))
    if name in _TOGETHER or (name == "call" and callee.startswith("cudaCG")):
        one.fails("threads work together in it, which linked code does not do in the simulator; lab.interpret does")
    return decode(program, one)


def _barrier(machine: Any, lanes: Lanes) -> None:
    machine.tell()
    launching.names["syncthreads"]()


def _syncwarp(machine: Any, mask: int) -> None:
    machine.tell()
    launching.names["syncwarp"](mask)


# -- calls -------------------------------------------------------------------------------------------------------------


class _Memory(Global):
    """Variables of the code, and arrays while calls that were given them are under way: of several threads, perhaps,
    if the function has a barrier."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: Counter[int] = Counter()

    def hold(self, array: Array) -> int:
        """Let the code access an array until :meth:`release`, which takes what this gives."""
        start = self.add(array)
        self._holders[start] += 1
        return start

    def release(self, start: int) -> None:
        """Forget an array that no call has any more."""
        self._holders[start] -= 1
        if not self._holders[start]:
            del self._holders[start]
            self.remove(start)


class _Thread(Machine):
    """One thread of a block, whose accesses to watched arrays are told to the trace.

    Args:
        code: loaded, parameters, memory and variables, as a machine takes them.
        watched: arrays of the kernel, as it sees them, and their bounds.
        frame: of the kernel, at the line that calls.
    """

    def __init__(
        self,
        code: tuple[Loaded, dict[str, Array], Global, Variables],
        watched: list[tuple[int, int, Any]],
        frame: FrameType,
    ) -> None:
        launch, names = launching.here(), launching.names
        assert launch.block_now is not None
        super().__init__(*code, launch.grid, Dim3(1, 1, 1), range(1), 0)
        if self.shared_bytes:
            shared = launch.block_now.shared
            if self.loaded not in shared.linked:
                shared.linked[self.loaded] = self.shared
                shared.memories.append(self.shared)
            self.shared = shared.linked[self.loaded]
        thread = names["threadIdx"]
        places = {"tid": thread, "ntid": launch.block, "ctaid": names["blockIdx"], "nctaid": launch.grid}
        numbers = {f"%{kind}.{axis}": getattr(size, axis) for kind, size in places.items() for axis in "xyz"}
        warp, lane = divmod(thread.number(launch.block), WARP)
        self.lane = np.array([lane])
        numbers.update({"%laneid": lane, "%warpid": warp, "%nwarpid": -(-launch.threads // WARP)})
        self._special = {name: np.array([number], np.uint32) for name, number in numbers.items()}
        self._watched, self._place = watched, (frame.f_code, frame.f_lasti)
        #: What was accessed and is not told yet: kind, address, bytes.
        self._accesses: list[tuple[int, int, int]] = []

    def pieces(self, one: Instruction, space: str, address: Array, lanes: Lanes, size: int) -> list[Piece]:
        """Where an access goes, which is noted."""
        found = super().pieces(one, space, address, lanes, size)
        if self._watched and found[0].space == "global":
            self._accesses.append((_KINDS.get(one.parts[0], READ), int(address[0]), size))
        return found

    def tell(self) -> None:
        """Log what was accessed, as done by the line of the kernel that calls."""
        for kind, address, size in self._accesses:
            for low, high, array in self._watched:
                if low <= address < high:
                    array.told(kind, range(address - low, address - low + size, array.itemsize), self._place)
                    break
        self._accesses.clear()


def _call(
    declared: ForeignFunction,
    loaded: Loaded,
    memory: _Memory,
    variables: Variables,
    arguments: tuple[Any, ...],
    frame: FrameType,
) -> Any:
    """Run a function for the thread under way."""
    program, kinds = loaded.program, declared.sig.args
    if len(arguments) != len(kinds):
        raise TypeError(f"{declared.name} takes {len(kinds)} arguments, {len(arguments)} are given")
    arrays: list[Any] = []
    given = [_as_passed(declared, *pair, arrays) for pair in zip(arguments, kinds, strict=True)]
    values, _ = parameters_of(given, kinds)
    result = _result(declared)
    if declared.abi == "numba":
        values.insert(0, 0 if result is None else address_of(result))
    if len(values) != len(program.parameters):
        raise SimulationError(
            f"{declared.name}: its signature makes {len(values)} parameters, the code has {len(program.parameters)}; "
            "in Numba's convention the first is a pointer to the result"
        )
    parameters = {name: held[None].copy() for name, held in packed(program, values).items()}
    roots = [_root(array) for array in arrays]
    watched = [(*bounds_of(_plain(array)), array) for array in roots if hasattr(array, "told")]
    whole = [*map(_plain, roots), *([] if result is None else [result])]
    held = [memory.hold(array) for array in whole if array.nbytes]
    try:
        thread = _Thread((loaded, parameters, memory, variables), watched, frame)
        try:
            thread.run()
        except PtxError as error:
            raise SimulationError(f"{declared.name}: {error}") from None
        finally:
            thread.tell()
    finally:
        for start in held:
            memory.release(start)
    name = next(iter(program.entry.results), "")
    returned = thread.parameters[name][0] if name in thread.parameters else np.zeros(0, np.uint8)
    if declared.abi == "c":
        return None if result is None else typed(returned[: result.itemsize].view(result.dtype)[0])
    if not returned.size or returned[:4].any():
        raise SimulationError(f"{declared.name} has to return 0: this is how Numba learns that it did not fail")
    return None if result is None else typed(result[0])


def _plain(array: Any) -> Array:
    values: Array = array.values if isinstance(array, TracedArray) else np.asarray(array)
    return values


def _root(array: Any) -> Any:
    """The array of the kernel that a pointer leads into: what lies around a slice can be reached, too."""
    if isinstance(array, TracedArray):
        return array.root
    low, high = bounds_of(array)
    around = ((*bounds_of(given), given) for given in arrays_of(launching.here().args))
    return next((given for begin, end, given in around if begin <= low and high <= end), array)


def _as_passed(declared: ForeignFunction, value: Any, kind: Any, arrays: list[Any]) -> Any:
    """An argument as the signature wants it; arrays that it leads to are added to a list."""
    name = type(kind).__name__
    pointer = name in ("CPointer", "RawPointer")
    if pointer or name == "Array":
        if not isinstance(value, (TracedArray, np.ndarray)):
            wanted = "a pointer, which ffi.from_buffer(array) gives" if pointer else "an array"
            raise TypeError(f"{declared.name}: {kind} is {wanted}; {type(value).__name__} is given")
        if name != "RawPointer" and value.dtype != dtype_of(kind.dtype):
            raise TypeError(f"{declared.name}: {kind} is declared, and an array of {value.dtype} is given")
        arrays.append(value)
        return address_of(_plain(value)) if pointer else _plain(value)
    if name not in ("Integer", "Float", "Boolean", "Complex"):
        raise TypeError(f"{declared.name}: the simulator cannot pass {kind} to linked code")
    dtype = dtype_of(kind)
    if dtype.kind in "iu":  # wider ones are cut off, as compiled code does
        return np.array(int(value) % 256**dtype.itemsize, f"u{dtype.itemsize}").view(dtype)[()]
    return dtype.type(value)


def _result(declared: ForeignFunction) -> Array | None:
    """Room for the result; None if there is none."""
    kind = declared.sig.return_type
    if type(kind).__name__ == "NoneType":
        return None
    if type(kind).__name__ not in ("Integer", "Float", "Boolean", "Complex"):
        raise TypeError(f"{declared.name}: the simulator cannot take {kind} from linked code")
    return np.full(16, 0xFF, np.uint8)[: dtype_of(kind).itemsize].view(dtype_of(kind))
