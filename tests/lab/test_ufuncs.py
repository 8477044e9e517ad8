"""vectorize and guvectorize for CUDA, reduce, libdevice, half and complex numbers, and what compiling settles."""

import ctypes
import math
from fractions import Fraction

import numpy as np
import pytest
from numba import guvectorize, vectorize
from support.simulated import simulator

cuda = pytest.importorskip("numba.cuda")
F32 = np.float32


@pytest.fixture
def traced():
    """All launches of a test, which must be without fault."""
    with simulator.trace() as report:
        yield report
    assert report.clean, str(report)


# -- functions of elements -------------------------------------------------------------------------------


def test_vectorize(traced):
    """Types are chosen among those given; scalars, broadcasting, `out`, device arrays and `reduce` work."""

    @vectorize(["float32(float32, float32)", "float64(float64, float64)"], target="cuda")
    def hypotenuse(a, b):
        return math.sqrt(a * a + b * b)

    x, y = np.arange(6, dtype=F32), np.full(6, 3, F32)
    result = hypotenuse(x, y)
    assert result.dtype == F32
    np.testing.assert_allclose(result, np.hypot(x, y), rtol=1e-6)
    np.testing.assert_allclose(
        hypotenuse(np.ones((3, 4)), np.arange(4.0)[None]), np.hypot(np.ones((3, 4)), np.arange(4.0))
    )
    np.testing.assert_allclose(hypotenuse(x, F32(4)), np.hypot(x, F32(4)), rtol=1e-6)
    out = cuda.device_array_like(x)
    hypotenuse(cuda.to_device(x), cuda.to_device(y), out=out)
    np.testing.assert_allclose(out.copy_to_host(), np.hypot(x, y), rtol=1e-6)
    np.testing.assert_allclose(hypotenuse.reduce(x), math.sqrt((x * x).sum()), rtol=1e-5)
    with pytest.raises(TypeError, match="No matching version"):
        hypotenuse(x, y.astype(np.int16))


def test_guvectorize(traced):
    """A thread a matrix; an argument without loop dimensions; scalars."""

    @guvectorize(["void(float32[:,:], float32[:,:], float32[:,:])"], "(m,n),(n,p)->(m,p)", target="cuda")
    def product(a, b, c):
        for i in range(c.shape[0]):
            for j in range(c.shape[1]):
                total = F32(0)
                for k in range(a.shape[1]):
                    total += a[i, k] * b[k, j]
                c[i, j] = total

    @guvectorize(["void(float32, float32[:], float32[:])"], "(),(t)->(t)", target="cuda")
    def scaled(a, x, out):
        for i in range(out.shape[0]):
            out[i] = a * x[i]

    a, b = np.random.default_rng(0).random((2, 5, 3, 3)).astype(F32)
    np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-5)
    np.testing.assert_array_equal(scaled(F32(2), a[0]), 2 * a[0])


def test_a_fault_in_a_ufunc():
    """It is named like one of a kernel."""

    @guvectorize(["void(float32[:], float32[:])"], "(n)->(n)", target="cuda")
    def shifted(x, out):
        for i in range(out.shape[0]):
            out[i] = x[i + 1]

    with simulator.trace() as report:
        shifted(np.ones((2, 4), F32))
    (fault,) = report.faults
    assert fault.kind == "out-of-bounds read"
    assert "test_ufuncs.py" in fault.sites[0]


def test_reduce(traced):
    """Numba's own kernels run: barriers, warps, several blocks."""
    largest, total = cuda.reduce(lambda a, b: max(a, b)), cuda.reduce(lambda a, b: a + b)
    x = np.random.default_rng(0).integers(0, 100, 1000)
    assert (total(x), total(x, init=5), total(x, size=10)) == (x.sum(), x.sum() + 5, x[:10].sum())
    assert largest(x.astype(float), init=-1.0) == x.max()
    result = cuda.device_array(1, x.dtype)
    total(cuda.to_device(x), res=result)
    assert result.copy_to_host()[0] == x.sum()


# -- libdevice -------------------------------------------------------------------------------------------


def test_every_function_of_libdevice():
    """Each can be called, and has the types that libdevice's documentation gives it."""
    from numba.cuda import libdevice, libdevicefuncs

    for name, (kind, arguments) in libdevicefuncs.functions.items():
        signature = libdevicefuncs.create_signature(kind, arguments)
        result = getattr(libdevice, name[5:])(*[0.7 if "float" in str(each) else 3 for each in signature.args])
        parts = result if isinstance(result, tuple) else (result,)
        wanted = getattr(signature.return_type, "types", [signature.return_type])
        assert [type(part).__name__.lower() for part in parts] == [str(each) for each in wanted], name


@pytest.mark.parametrize("kind", [F32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("operation", ["add", "mul", "div", "fma"])
def test_ways_to_round(kind, operation):
    """Down, up, to zero, to nearest: the exact result lies between neighbours, and each picks the right one."""
    from numba.cuda import libdevice

    double = kind is np.float64
    name = {"fma": "fma" if double else "fmaf"}.get(operation, ("d" if double else "f") + operation)
    generator = np.random.default_rng(1)
    for _ in range(50):
        values = [kind(each) for each in generator.normal(0, 1, 3 if operation == "fma" else 2)]
        x, y, *z = (Fraction(float(each)) for each in values)
        wanted = {"add": x + y, "mul": x * y, "div": x / y, "fma": x * y + sum(z)}[operation]
        down, up, zero, near = (getattr(libdevice, f"{name}_{way}")(*values) for way in ("rd", "ru", "rz", "rn"))
        assert Fraction(float(down)) <= wanted <= Fraction(float(up))
        assert up in (down, np.nextafter(down, kind(np.inf)))
        assert zero == (down if wanted > 0 else up)
        assert near in (down, up)
        assert abs(Fraction(float(near)) - wanted) <= (Fraction(float(up)) - Fraction(float(down))) / 2


def test_values_of_libdevice(traced):
    """In a kernel, with several results; values from tables (Abramowitz and Stegun), and edges of conversions."""
    from numba.cuda import libdevice

    @cuda.jit
    def kernel(x, sines, cosines, roots):
        i = cuda.grid(1)
        sines[i], cosines[i] = libdevice.sincosf(x[i])
        roots[i] = libdevice.rsqrtf(x[i])

    x = np.linspace(0.5, 4, 8, dtype=F32)
    results = np.zeros((3, 8), F32)
    kernel[1, 8](x, *results)
    np.testing.assert_allclose(results, [np.sin(x), np.cos(x), 1 / np.sqrt(x)], rtol=1e-6)
    for got, wanted in [
        (libdevice.j0(1.5), 0.511827671735918),
        (libdevice.y1(2.0), -0.107032431540938),
        (libdevice.erfinv(0.5), 0.476936276204470),
        (libdevice.erfcinv(1.5), -0.476936276204470),
        (libdevice.normcdf(1.0), 0.841344746068543),
        (libdevice.erfcx(30.0), 0.018795888861416751),
        (libdevice.lgamma(0.5), 0.572364942924700),
        (libdevice.sinpi(1.25), -math.sqrt(0.5)),
    ]:
        assert got == pytest.approx(wanted, rel=1e-12)
    assert (libdevice.round(2.5), libdevice.rint(2.5), libdevice.round(-0.5)) == (3, 2, -1)
    assert (libdevice.double2int_rz(-1e300), libdevice.double2int_rd(math.nan)) == (-(2**31), 0)
    assert libdevice.byte_perm(0x33221100, 0x77665544, 0x7410) == 0x77441100
    assert (libdevice.umulhi(-1, -1), libdevice.mulhi(-1, -1)) == (-2, 0)


# -- types -----------------------------------------------------------------------------------------------


def test_half_and_complex_numbers(traced):
    """In local, shared and global memory, with their arithmetic."""

    @cuda.jit
    def kernel(h, z, out):
        i = cuda.threadIdx.x
        own = cuda.local.array(1, np.float16)
        both = cuda.shared.array(8, np.complex64)
        own[0] = cuda.fp16.hmul(h[i], h[i])
        both[i] = z[i].conjugate() * 1j
        cuda.syncthreads()
        out[i] = both[7 - i].real + both[7 - i].imag + cuda.fp16.hadd(own[0], h[i])

    h = np.arange(8).astype(np.float16)
    z = (np.arange(8) + 1j * np.arange(8)[::-1]).astype(np.complex64)
    out = np.zeros(8, F32)
    kernel[1, 8](h, z, out)
    turned = (z.conj() * 1j)[::-1]
    np.testing.assert_array_equal(out, turned.real + turned.imag + (h * h + h))


SCALE, TABLE = 2.0, np.array([1.0, 2.0])


def test_values_of_the_module_are_kept(monkeypatch):
    """As compiled code does: those of the first launch, for each combination of types; in closures, too."""
    shift = 1.0

    @cuda.jit
    def kernel(x):
        x[0] = SCALE * TABLE[1] + shift

    x, y = np.zeros(1), np.zeros(1, F32)
    kernel[1, 1](x)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    TABLE[1] = 5.0
    shift = 10.0
    try:
        kernel[1, 1](x)
        kernel[1, 1](y)
    finally:
        TABLE[1] = 2.0
    assert (x[0], y[0]) == (5.0, 25.0)


def test_pointers():
    """An argument that the signature calls a pointer is an address."""
    from numba import types

    @cuda.jit(types.void(types.CPointer(types.int16), types.uint32))
    def double(x, n):
        i = cuda.grid(1)
        if i < n:
            x[i] *= 2

    x = cuda.to_device(np.arange(10, dtype=np.int16))
    double[1, 32](x.__cuda_array_interface__["data"][0], 10)
    np.testing.assert_array_equal(x.copy_to_host(), 2 * np.arange(10))
    with simulator.trace() as report:
        double[1, 32](x.__cuda_array_interface__["data"][0] + 4, 9)
    assert [fault.kind for fault in report.faults] == ["out-of-bounds read", "out-of-bounds write"]
    np.testing.assert_array_equal(x.copy_to_host(), [0, 2, *(4 * np.arange(2, 10))])
    with pytest.raises(ValueError, match="the address 0x10 is of no device array"):
        double[1, 32](16, 1)


def test_arrays_of_other_libraries():
    """What has the interface of device arrays becomes one, over the same memory."""

    class Theirs:
        memory = np.arange(6.0)
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (3,), "strides": (16,), "typestr": "<f8", "version": 3,
            "data": (ctypes.addressof(ctypes.c_char.from_buffer(memory)), False),
        }  # fmt: skip

    assert cuda.is_cuda_array(Theirs())
    assert not cuda.is_cuda_array(np.zeros(1))
    array = cuda.as_cuda_array(Theirs())
    np.testing.assert_array_equal(array.copy_to_host(), [0, 2, 4])
    assert cuda.as_cuda_array(array) is array


def test_a_linked_file_that_is_missing():
    """Its name is said, and which thread called it."""
    square = cuda.declare_device("square", "float32(float32)", link="square.cu")

    @cuda.jit(link=["square.cu"])
    def kernel(x):
        x[0] = square(x[0])

    with pytest.raises(FileNotFoundError, match=r"kernel: tid=\[0, 0, 0\].* 'square.cu'"):
        kernel[1, 1](np.zeros(1, F32))
