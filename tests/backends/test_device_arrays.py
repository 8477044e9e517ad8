"""The CUDA backend as on a machine with a GPU, all but GPU and kernels: the gate, streams, memory, libraries, training.

`fake_cupy.py` takes CuPy's place, and the NumPy backend's primitives that of the kernels, behind the same `launch`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib.util
import signal
import sys
import types

import numpy as np
import pytest
from support import captured_steps, device_functions, fake_cupy, lenet_training, operation_cases
from support.operation_cases import FAMILIES

import gpuconv
from bench import compiling
from gpuconv import Tensor, backends, kernels, models, nn, optim, training, tuner, tuning
from gpuconv import functional as F
from gpuconv.backends.cuda import backend as cuda_backend
from gpuconv.backends.cuda import branches
from gpuconv.geometry import BlockGeometry, ChainGeometry, Conv2dGeometry, Pool2dGeometry
from gpuconv.tuning import store

pytest.importorskip("numba_cuda", reason="the variants are chosen among kernels for numba-cuda")
if backends.available()["cuda"] is not None or backends.get("cuda").automatic():
    pytest.skip(f"needs the simulator: {backends.available()['cuda']}", allow_module_level=True)
from gpuconv.kernels import device, driver
from gpuconv.kernels.operations import IN, IN_PLACE, OPERATIONS, OUT
from gpuconv.kernels.update import all_at_once

#: Streams that launches came in on, by operation.
launched: list[tuple[str, object]] = []


def inputs_of(operation, arrays, geometry):
    """A variant's arrays, in its order, as the primitive's arguments, and those that it writes."""
    by_role = {role: [] for role in (IN, IN_PLACE, OUT)}
    for described, array in zip(OPERATIONS[operation].positional, arrays, strict=True):
        by_role[described.role].append(array)
    shape_alone = type(geometry) is tuple
    return by_role[IN] if shape_alone else [*by_role[IN], geometry], by_role[OUT]


def block(numpy, x, w, b, y, winners, geometry):
    y[...], winners[...] = numpy.conv2d_relu_max_pool2d(x, w, b, *geometry)


def block_pair(numpy, x, weights, biases, outs, winners, geometry):
    found = numpy.conv2d_relu_max_pool2d_pair(x, weights, biases, geometry)
    for given, made in zip((outs, winners), found, strict=True):
        for one, other in zip(given, made, strict=True):
            one[...] = other


def block_grad_input(numpy, grad, w, y, winners, out, geometry):
    needs = (True, False, False)
    out[...] = numpy.conv2d_relu_max_pool2d_grad(grad, None, w, y, winners, *geometry, needs)[0]


def block_grad_weight(numpy, grad, x, y, winners, dw, db, geometry, workspace=None):
    needs = (False, True, True)
    found = numpy.conv2d_relu_max_pool2d_grad(grad, x, None, y, winners, *geometry, needs)[1:]
    if dw is not None:
        dw[...], db[...] = found
        return
    # Half of it in the first part and half in the last one: no sum is rounded.
    row = np.concatenate([one.reshape(-1) for one in found])
    rows = workspace.reshape(-1, row.size)
    rows[...] = 0
    rows[0] += row / 2
    rows[-1] += row / 2


def chain(numpy, x, weights, biases, outs, geometry):
    for out, y in zip(outs, numpy.linear_chain(x, weights, biases, geometry), strict=True):
        out[...] = y


def chain_grad_input(numpy, grad, weights, ys, grads, out, geometry):
    for weight, y, before, active in reversed(list(zip(weights, ys, grads, geometry.relu, strict=True))):
        before[...] = numpy.relu_grad(grad, y) if active else grad
        grad = numpy.linear_grad_input(before, weight)
    if out is not None:
        out[...] = grad


def chain_grad_weight(numpy, xs, grads, dweights, dbiases, geometry):
    for x, grad, dw, db in zip(xs, grads, dweights, dbiases, strict=True):
        dw[...], db[...] = numpy.linear_grad_weight(grad, x), numpy.linear_grad_bias(grad)


def mean_loss(numpy, logits, labels, weight, loss, dlogits, wrong, shape, **options):
    losses, probabilities = numpy.softmax_cross_entropy(logits, labels, weight=weight, **options)
    grad = np.full(len(losses), 1 / len(losses), losses.dtype)
    loss[0], wrong[0] = losses.mean(), np.iinfo(np.int32).max
    dlogits[...] = numpy.softmax_cross_entropy_grad(grad, probabilities, labels, weight=weight, **options)


def chain_loss_grad_input(numpy, y, labels, weights, biases, grads, out, geometry, ignore_index):
    rest = geometry._replace(sizes=geometry.sizes[1:], relu=geometry.relu[1:])
    ys = numpy.linear_chain(y, weights[1:], biases[1:], rest)
    grad = np.empty_like(ys[-1])
    options = {"ignore_index": ignore_index, "label_smoothing": 0.0}
    mean_loss(numpy, ys[-1], labels, None, np.empty(1), grad, np.empty(1, np.int32), ys[-1].shape, **options)
    chain_grad_input(numpy, grad, weights, [y, *ys], grads, out, geometry)


def image_batch(numpy, table, images, labels, index, transforms, x, found, geometry, step=None):
    if step is not None:
        index = index[step[0] * geometry.n :][: geometry.n]
    x[...], found[...] = numpy.image_batch(table, images, labels, index, transforms, (geometry.p, geometry.q))


def count_correct(numpy, logits, labels, out, shape, loss=None, losses=None, step=None):
    if step is None:
        out[0] = numpy.count_correct(logits, labels)
    else:
        numpy.log_step(logits, labels, loss, losses, out, step)


def row_of(numbers, sizes, width):
    """The numbers of this step, and on to those of the next."""
    rows_at = all_at_once.numbers_size(sizes, width, 0)
    row, last = int(numbers[1]), int(numbers[0])
    numbers[1:rows_at] = min(row + 1, last)
    return [float(number) for number in numbers[rows_at + row * width :][:width]]


def sgd_all(numpy, params, grads, velocities, numbers, sizes, *, weight_decay, nesterov):
    lr, momentum, share, decay = row_of(numbers, sizes, 4)
    options = {"dampening": 1 - share, "weight_decay": decay if weight_decay else 0.0, "nesterov": nesterov}
    numpy.sgd_update_all(params, grads, velocities, lr=lr, momentum=momentum, **options)


def of_parts(update):
    """An update that adds up gradients first."""

    def added(numpy, params, grads, rows, *states, **options):
        *states, numbers, geometry = states
        for one, values in zip(geometry.sums, rows, strict=True):
            values, place = values.reshape(one.parts, -1), 0
            for number in one.members:
                grad = grads[number]
                grad[...] = values[:, place : place + grad.size].sum(0).reshape(grad.shape)
                place += grad.size
        update(numpy, params, grads, *states, numbers, geometry, **options)

    return added


def adam_all(numpy, params, grads, means, squares, numbers, sizes, *, weight_decay, decoupled):
    rate, beta1, beta2, share1, share2, correction, eps, decay = row_of(numbers, sizes, 8)
    for param, grad, mean, square in zip(params, grads, means, squares, strict=True):
        if weight_decay:
            grad, param[...] = (grad, decay * param) if decoupled else (grad + decay * param, param)
        mean[...] = beta1 * mean + share1 * grad
        square[...] = beta2 * square + share2 * grad * grad
        param -= rate * (mean / (np.sqrt(square) / correction + eps))


def norm_stats(numpy, x, mean, var, shape):
    mean[...], var[...] = numpy.batch_norm(x, None, None, None, None, None, eps=1e-5, relu=False)[1:]


def norm(numpy, x, mean, var, weight, bias, residual, out, shape, **options):
    out[...] = numpy.batch_norm(x, mean, var, weight, bias, residual, **options)[0]


def norm_grad_stats(numpy, grad, x, y, mean, var, dweight, dbias, shape, eps):
    needs = (False, True, True, False)
    found = numpy.batch_norm_grad(grad, x, y, mean, var, None, eps=eps, own=False, needs=needs)
    dweight[...], dbias[...] = found[1:3]


def norm_grad_input(numpy, grad, x, y, mean, var, weight, dweight, dbias, out, other, shape, eps):
    needs, own = (True, False, False, True), dweight is not None
    found = numpy.batch_norm_grad(grad, x, y, mean, var, weight, eps=eps, own=own, needs=needs)
    out[...] = found[0]
    if other is not None:
        other[...] = found[3]


#: Operations that are no primitives, or take several arrays as one: the same on hosts.
FUSED = {
    "conv2d_relu_max_pool2d": block,
    "conv2d_relu_max_pool2d_pair": block_pair,
    "conv2d_relu_max_pool2d_grad_input": block_grad_input,
    "conv2d_relu_max_pool2d_grad_weight": block_grad_weight,
    "linear_chain": chain,
    "linear_chain_grad_input": chain_grad_input,
    "linear_chain_grad_weight": chain_grad_weight,
    "linear_chain_loss_grad_input": chain_loss_grad_input,
    "softmax_cross_entropy_mean": mean_loss,
    "batch_norm_stats": norm_stats,
    "batch_norm": norm,
    "batch_norm_grad_stats": norm_grad_stats,
    "batch_norm_grad_input": norm_grad_input,
    "sgd_update_all": sgd_all,
    "sgd_update_all_of_parts": of_parts(sgd_all),
    "adam_update_all": adam_all,
    "adam_update_all_of_parts": of_parts(adam_all),
    "image_batch": image_batch,
    "count_correct": count_correct,
}


class NumpyKernel:
    """What a variant of `computing` launches in place of a kernel."""

    def __init__(self, operation, shapes, geometry, options, named):
        self.operation, self.shapes, self.geometry = operation, shapes, geometry
        self.options, self.named = options, named

    def run(self, flat):
        flat = iter(flat)

        def shaped(shape):
            if isinstance(shape, list):
                return [shaped(one) for one in shape]
            return None if shape is None else next(flat).reshape(shape)

        arrays = [shaped(shape) for shape in self.shapes]
        options = {**self.options, **{name: shaped(shape) for name, shape in self.named.items()}}
        numpy, operation = backends.get("numpy"), self.operation
        if operation in FUSED:
            FUSED[operation](numpy, *arrays, self.geometry, **options)
            return
        given, results = inputs_of(operation, arrays, self.geometry)
        if operation.startswith("softmax"):
            *given, options["weight"] = given
        computed = getattr(numpy, operation)(*given, **options)
        for result, value in zip(results, computed if isinstance(computed, tuple) else (computed,), strict=False):
            result[...] = value


def computing(operation, real):
    """A variant whose kernel computes with NumPy."""

    def launch(*arguments, workspace=None, **options):
        *arrays, geometry, tiling, stream = arguments
        assert tiling in real.tilings(geometry)
        named = {name: value for name, value in options.items() if hasattr(value, "dtype")}
        if workspace is not None and arrays[-1] is None:  # it is the result
            named["workspace"] = workspace
        numbers = {name: value for name, value in options.items() if name not in named}
        flat = []

        def shape_of(array):
            if isinstance(array, (list, tuple)):
                return [shape_of(one) for one in array]
            if array is None:
                return None
            flat.append(array.reshape(-1))
            return array.shape

        shapes = [shape_of(array) for array in arrays]
        named = {name: shape_of(value) for name, value in named.items()}
        kernel = NumpyKernel(operation, shapes, geometry, numbers, named)
        signature = tuple(device.array_type(array.dtype.name) for array in flat)
        device.Launch(kernel, signature, (1, 1, 1), (1, 1, 1))(stream, *flat)

    names = ("WIDTH", "supports", "tilings", "workspace_size", "numbers_array", "numbers_of", "numbers_size")
    return types.SimpleNamespace(launch=launch, **{name: getattr(real, name) for name in names if hasattr(real, name)})


def run(launch, arguments, stream):
    """What the stand-in for the driver does with a launch."""
    if isinstance(launch.kernel, NumpyKernel):
        launched.append((launch.kernel.operation, stream))
        launch.kernel.run(arguments)
    else:
        device.launch._simulate(launch, arguments)


def forget():
    for function in (backends._load, backends._instance, backends._automatic, cuda_backend._driver):
        getattr(function, "cache_clear", lambda: None)()


@pytest.fixture
def real_kernels(monkeypatch):
    """A machine on which `auto` finds a GPU with two devices; kernels run in the simulator."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "cupy" or find_spec(name))
    monkeypatch.setattr(cuda_backend, "_simulating", lambda: False)
    monkeypatch.setattr(cuda_backend, "_driver", lambda: (13000, 2))
    monkeypatch.setattr(cuda_backend, "_compiler", lambda: (13, 0))
    monkeypatch.setattr(device.launch, "_on_host", None)  # launches go to the driver
    before = driver.use(fake_cupy.Driver(run))
    monkeypatch.delenv("GPUCONV_BACKEND", raising=False)
    launched.clear()
    fake_cupy.Stream.log.clear()
    fake_cupy.Graph.launches = 0
    forget()
    yield fake_cupy
    driver.use(before)
    fake_cupy.Memory.free = fake_cupy.Memory.total
    forget()


@pytest.fixture
def machine(real_kernels, monkeypatch):
    """The same machine; NumPy computes in place of the kernels, which takes a moment and not minutes."""
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda operation, variant: computing(operation, load(operation, variant)))
    # It takes numbers that are rounded already: its results would not be the NumPy backend's to the last bit.
    monkeypatch.setenv("GPUCONV_VARIANTS", "softmax_cross_entropy_mean=composed")
    return real_kernels


def random(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# -- the gate --------------------------------------------------------------------------------------------------------


def test_device_arrays_run_on_the_device_and_stay_there(machine):
    """CuPy in, CuPy out, the same memory; a host array in, a host array out, whatever the other operands are."""
    x, w = machine.asarray(random(2, 3, 5, 5)), machine.asarray(random(4, 3, 3, 3))
    with gpuconv.use_backend("numpy"):  # the arrays decide first
        y = F.conv2d(x, w)
    assert type(y) is machine.ndarray
    assert Tensor(x).data is x
    host = F.conv2d(x.get(), w)
    assert type(host) is np.ndarray
    np.testing.assert_array_equal(host, y.get())
    assert type(F.conv2d([[[[1.0]]]], np.ones((1, 1, 1, 1), np.float32))) is np.ndarray


def test_the_callers_stream_is_used(machine):
    """Each launch of forward, backward and update goes to the stream that is current then."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)).to("cuda")
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with machine.Stream(7):
        F.cross_entropy(model(random(2, 1, 6, 6)), np.array([0, 2])).backward()
        optimizer.step()
    expected = {"conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_grad_weight", "sgd_update_all"}
    assert expected <= {name for name, _ in launched}
    assert {stream for _, stream in launched} == {(0, 7)}


def test_strides_byte_order_and_write_protection(machine):
    """Transposed, stepped, broadcast, read-only and big-endian arrays give what a plain copy gives."""
    x, w = random(4, 2, 5, 6), np.ones((1, 2, 3, 3), np.float32)
    expected = F.conv2d(x, w)
    frozen = x.copy()
    frozen.flags.writeable = False
    stepped = machine.ndarray(np.repeat(x, 2, axis=3)[..., ::2])
    for same in (frozen, x.astype(">f4"), np.asfortranarray(x), stepped, machine.ndarray(np.asfortranarray(x))):
        result = F.conv2d(same, w)
        np.testing.assert_array_equal(result if isinstance(result, np.ndarray) else result.get(), expected)
    spread = np.broadcast_to(x[:1], x.shape)
    np.testing.assert_array_equal(F.conv2d(spread, w), F.conv2d(spread.copy(), w))


def test_a_parameter_with_other_strides_is_updated(machine):
    """A kernel needs contiguous memory; the update arrives in the user's array all the same."""
    param = Tensor(machine.ndarray(np.asfortranarray(np.ones((3, 4), np.float32))), requires_grad=True)
    array = param.data
    param.grad = Tensor(np.full((3, 4), 2, np.float32))
    optim.SGD([param], lr=0.25).step()
    assert param.data is array
    np.testing.assert_array_equal(array.get(), np.full((3, 4), 0.5, np.float32))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((1, 1, 3, 3), np.longdouble), f"must hold floats of 16, 32 or 64 bits, got {np.dtype(np.longdouble)}"),
        (np.ones((1, 1, 3, 3), np.int32), "input must hold floats of 16, 32 or 64 bits, got int32"),
        (np.ones((1, 1, 3, 3), complex), "elements must be numbers, got type complex128"),
    ],
)
def test_wrong_element_types_are_refused(machine, array, words):
    """One line, the same as for a host array, before anything is copied or launched."""
    for given in (array, machine.ndarray(array)):
        with pytest.raises(TypeError, match=words):
            F.conv2d(given, np.ones((1, 1, 2, 2), np.float32))
    assert not launched


def test_a_variant_that_looks_at_its_arrays(machine, monkeypatch):
    """Its `launch` asks for what a stand-in does not have: it is called each time, with the arrays themselves."""
    load, seen = kernels.load, []

    def looking(operation, variant):
        module = load(operation, variant)

        def launch(x, out, *rest):
            seen.append(x.device.id)
            module.launch(x, out, *rest)

        return types.SimpleNamespace(**{**vars(module), "launch": launch}) if operation == "relu" else module

    monkeypatch.setattr(kernels, "load", looking)
    for number in range(3):
        x = random(2, 3) + number
        np.testing.assert_array_equal(F.relu(machine.asarray(x)).get(), np.maximum(x, 0))
    assert seen == [0, 0, 0]


def test_two_devices_are_refused(machine):
    """An array on another device than the current one: which, where, and what to do; inside `with Device` it runs."""
    with machine.Device(1):
        x, w = machine.asarray(random(1, 1, 4, 4)), machine.asarray(random(1, 1, 2, 2))
        y = F.conv2d(Tensor(x, requires_grad=True), w)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 4, 4\) is on device 1, but the current device is 0; copy it"):
        F.conv2d(x, w.get())
    with pytest.raises(ValueError, match="on device 1"):
        y.sum().backward()
    assert {stream[0] for _, stream in launched} == {1}


def test_a_model_on_the_host_trains_all_the_same(machine):
    """The plain loop of the README, on a machine where `auto` is the GPU: arrays travel, and stay the user's."""
    param = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    array, optimizer = param.data, optim.SGD([param], 0.5, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (param * 2).sum().backward()
        optimizer.step()
    assert param.data is array
    np.testing.assert_array_equal(array, np.float32(1 - 0.5 * 2 - 0.5 * 3))
    assert {name for name, _ in launched} == {"sgd_update_all"}


def test_a_host_array_for_a_primitive_is_refused(machine):
    """Behind the gate arrays are on the device; who calls a primitive himself is told so in one line."""
    with pytest.raises(TypeError, match="relu: got an array on the host, where one on the GPU is needed"):
        backends.get("cuda").relu(np.ones(3, np.float32))


def test_nan_and_infinity_go_through(machine):
    """As on the CPU, and without a warning."""
    x = random(1, 1, 4, 4)
    x[0, 0, 1, 1], x[0, 0, 3, 3] = np.nan, np.inf
    with gpuconv.use_backend("numpy"):
        expected = F.softmax(F.max_pool2d(x, 2), -1)
    np.testing.assert_array_equal(F.softmax(F.max_pool2d(machine.asarray(x), 2), -1).get(), expected)


def test_out_of_memory_says_how_much_and_the_process_goes_on(machine):
    """In a copy to the device, a kernel's result, and what the array library computes; then a smaller one runs."""
    x, w = random(64, 1, 32, 32), random(8, 1, 3, 3)
    on_device = Tensor(machine.asarray(x), requires_grad=True)
    y = on_device * 2
    machine.Memory.free = 100_000
    for function in (
        lambda: F.conv2d(x, w),
        lambda: F.conv2d(on_device, w),
        lambda: on_device + 1,
        lambda: y.backward(np.ones(y.shape, np.float32)),
    ):
        with pytest.raises(
            MemoryError, match=r"GPU is out of memory: Out of memory allocating [\d,]+ bytes .* 0 of 1,024 MiB"
        ):
            function()
    assert machine.Memory.freed_blocks >= 4
    assert F.conv2d(x[:1], w).shape == (1, 8, 30, 30)


# -- other libraries -------------------------------------------------------------------------------------------------


class OnTheDevice:
    """An array of a library that is neither NumPy nor CuPy, on the device."""

    def __init__(self, host):
        self.host, self.dtype, self.shape = host, host.dtype, host.shape
        self.__cuda_array_interface__ = host.__array_interface__


def test_the_cuda_array_interface_is_taken_without_a_copy(machine):
    """What JAX, PyCUDA and Numba offer is read in place."""
    host = np.array([-1.0, 2.0], np.float32)
    tensor = Tensor(OnTheDevice(host))
    assert type(tensor.data) is machine.ndarray
    host[1] = 5
    np.testing.assert_array_equal(F.relu(tensor).numpy(), [0, 5])


def test_torch_goes_in_and_comes_out_by_dlpack(machine):
    """A torch tensor on the device: DLPack, which orders the streams of both libraries, in and out; no copy."""
    torch = pytest.importorskip("torch", reason="compares with torch")
    taken = []

    class Cuda:
        requires_grad, is_cuda, dtype, shape = False, True, "torch.float32", (2,)
        __cuda_array_interface__ = "names no stream"

        def __init__(self):
            self.tensor = torch.tensor([-1.0, 2.0])

        def __dlpack__(self, **options):
            taken.append("in")
            return self.tensor.__dlpack__()

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    Cuda.__module__ = "torch"
    given = Cuda()
    shared = Tensor(given)
    assert type(shared.data) is machine.ndarray
    given.tensor[0] = 3
    np.testing.assert_array_equal(shared.numpy(), [3, 2])
    assert taken == ["in"]


def test_tensors_are_taken_by_other_libraries(machine):
    """torch.from_dlpack, numpy.from_dlpack and cupy.asarray share a Tensor's memory, wherever that is."""
    torch = pytest.importorskip("torch", reason="torch takes a Tensor")
    on_device, on_host = Tensor(machine.asarray([1.0, 2.0], np.float32)), Tensor(np.array([1.0, 2.0], np.float32))
    for tensor, host in ((on_device, on_device.data.host), (on_host, on_host.data)):
        theirs = torch.from_dlpack(tensor)
        host[0] = 9
        assert theirs[0] == 9
    np.testing.assert_array_equal(np.from_dlpack(on_host), [9, 2])
    assert machine.asarray(on_device).host.ctypes.data == on_device.data.host.ctypes.data
    assert not hasattr(on_host, "__cuda_array_interface__")


# -- around the kernels ----------------------------------------------------------------------------------------------


def test_moving_a_model(machine):
    """`to` moves parameters and gradients there and back; an optimizer made before goes on with its state."""
    model = nn.Linear(3, 2)
    weight = model.weight
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for backend, kind in (
        ("cpu", np.ndarray),
        ("cuda", machine.ndarray),
        ("cpu", np.ndarray),
        ("cuda", machine.ndarray),
    ):
        assert model.to(backend) is model
        assert model.weight is weight
        assert type(weight.data) is kind
        assert weight.grad is None or type(weight.grad.data) is kind
        with gpuconv.use_backend("numpy" if backend == "cpu" else "cuda"):
            model(np.ones((1, 3), np.float32)).sum().backward()
            optimizer.step()
        # Left behind, it would be copied in every step.
        assert type(optimizer._arrays[0]["velocity"]) is kind
    assert type(model.to("cuda:0").weight.data) is machine.ndarray
    with pytest.raises(ValueError, match=r"'cuda:1'.*CUDA_VISIBLE_DEVICES"):
        model.to("cuda:1")


def test_moving_a_tensor(machine):
    """Its gradient comes back to where it was; what is assigned to it is brought where it is."""
    x = Tensor(np.arange(3, dtype=np.float32), requires_grad=True)
    there = (x * 2).to("cuda")
    assert there.device == "cuda"
    assert there.device.type == "cuda"
    assert (there.is_cuda, x.is_cuda) == (True, False)
    assert there.cuda() is there
    back = (there * there).cpu()
    assert type(back.data) is np.ndarray
    (back + 1).sum().backward()
    assert type(x.grad.data) is np.ndarray
    np.testing.assert_array_equal(x.grad.numpy(), 8 * np.arange(3))
    kept = there.detach().clone()
    kept[0] = Tensor(np.float32(5))
    kept[1:] = 7.0
    assert type(kept.data) is machine.ndarray
    np.testing.assert_array_equal(kept.numpy(), [5, 7, 7])


def test_gradients_are_where_their_leaves_are(machine):
    """A host leaf of a graph that ran on the device gets a host gradient; several backwards add up in either."""
    host, device = Tensor(np.ones((2, 3), np.float32), True), Tensor(machine.asarray(np.ones((2, 3), np.float32)), True)
    for _ in range(2):
        (host * device).backward(np.full((2, 3), 2, np.float32))
    assert type(host.grad.data) is np.ndarray
    assert type(device.grad.data) is machine.ndarray
    np.testing.assert_array_equal(host.grad.numpy(), 4)
    np.testing.assert_array_equal(device.grad.numpy(), 4)


def test_every_operation_works_on_device_arrays(machine):
    """Values and gradients equal the NumPy backend's; nothing on the way calls NumPy on a device array."""
    device_functions.compare(machine)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(machine, dtype):
    """A network in a half type, likewise."""
    device_functions.compare_half(machine, getattr(gpuconv, dtype))


@pytest.mark.parametrize("family", operation_cases.FAMILIES)
def test_every_call_on_device_arrays(machine, family):
    """Each call that PyTorch judges on the host, likewise."""
    device_functions.compare_family(machine, family)


def test_launches_are_noted_on_device_arrays(machine):
    """What `make gpu-report` compiles before it runs anything."""
    first, around = "conv2d_relu_max_pool2d", ["image_batch", "count_correct"]
    step = [first, "sgd_update_all_of_parts"]
    wanted = {"step": step, "float64": step, "decayed": step, "around": around, "moved": around}
    wanted["eager"] = [first, "sgd_update_all"]
    for kind, (first, last) in {**wanted, "inference": ("conv2d_relu_max_pool2d", "linear_chain")}.items():
        launches = compiling.recorded.__wrapped__(kind, 8)
        assert (launches[0].kernel.operation, launches[-1].kernel.operation) == (first, last), kind
    assert len(compiling.recorded.__wrapped__("network", "shufflenet_v2_x1_0", 2, 64)) > 100


@pytest.mark.slow
def test_half_types_by_prepared_launches(real_kernels):
    """Launches that are made for float16 find the arrays, and the workspace, that they were made for, each time."""
    geometry = Conv2dGeometry.of((1, 4, 6, 5), (6, 4, 3, 3), padding=1, stride=(1, 2))
    ours, theirs = backends.get("cuda"), backends.get("numpy")
    for operation in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        for _ in range(2):
            x, w, grad = (
                random(*shape).astype(np.float16)
                for shape in (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
            )
            given = {"conv2d": (x, w, None), "conv2d_grad_input": (grad, w), "conv2d_grad_weight": (grad, x)}[operation]
            tiling = kernels.load(operation, "tensor_core").tilings(geometry)[-1]
            if operation == "conv2d_grad_weight":
                tiling = dataclasses.replace(tiling, parts=2)
            with tuning.use_variant(operation, "tensor_core", tiling):
                arrays = [None if one is None else fake_cupy.asarray(one) for one in given]
                got = getattr(ours, operation)(*arrays, geometry).get()
            wide = [None if one is None else one.astype(np.float32) for one in given]
            assert got.dtype == np.float16
            np.testing.assert_allclose(got, getattr(theirs, operation)(*wide, geometry), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_every_operation_by_its_kernels(real_kernels):
    """The same, and each launch computes on the memory of the arrays that it was given, vectors and workspaces too."""
    device_functions.compare(real_kernels)
    judged = set()
    for geometry in (
        Conv2dGeometry.of((2, 3, 7, 6), (10, 3, 5, 5), padding=2),
        Conv2dGeometry.of((1, 4, 7, 7), (2, 4, 3, 3)),
        Conv2dGeometry.of((1, 4, 7, 7), (4, 1, 3, 3), groups=4),
    ):
        x, w = random(*geometry.input_shape), random(*geometry.weight_shape)
        grad = random(*geometry.output_shape)
        arrays = [fake_cupy.asarray(array) for array in (x, w, grad)]
        ours, theirs = backends.get("cuda"), backends.get("numpy")
        for variant in kernels.VARIANTS["conv2d_grad_weight"]:
            if not kernels.load("conv2d_grad_weight", variant).supports(geometry):
                continue
            judged.add(variant)
            with tuning.use_variant("conv2d_grad_weight", variant):
                got = ours.conv2d_grad_weight(arrays[2], arrays[0], geometry).get()
            wanted = theirs.conv2d_grad_weight(grad, x, geometry)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
        got = ours.conv2d_grad_input(arrays[2], arrays[1], geometry).get()
        np.testing.assert_allclose(got, theirs.conv2d_grad_input(grad, w, geometry), rtol=1e-4, atol=1e-4)
    assert judged == set(kernels.VARIANTS["conv2d_grad_weight"])


def test_initialisation_writes_into_device_arrays(machine):
    """The same numbers as on the host, from one generator."""
    for fill in (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.zeros_):
        both = [Tensor(np.ones((3, 4), np.float32)), Tensor(machine.asarray(np.ones((3, 4), np.float32)))]
        for tensor in both:
            gpuconv.manual_seed(3)
            fill(tensor)
        np.testing.assert_array_equal(both[0].numpy(), both[1].numpy())


def test_gradcheck_on_the_device(machine):
    """Finite differences move elements of device arrays."""
    x = Tensor(machine.asarray(random(2, 3, dtype=np.float64)), requires_grad=True)
    assert gpuconv.gradcheck(lambda x: F.tanh(x) * x, [x])


@pytest.fixture
def digits(monkeypatch):
    """The bundled digits, few of them."""
    data = gpuconv.data.load_dataset("mnist-sample")
    few = type(data)(
        "few",
        data.train_images[:90],
        data.train_labels[:90],
        data.test_images[:20],
        data.test_labels[:20],
        data.classes,
    )
    monkeypatch.setattr(training.fitting, "load_dataset", lambda *_, **__: few)
    return few


def stop_training(config, folder, where):
    """Train, and raise an exception at the first event that ``where`` is true of."""

    class Stop(Exception):
        pass

    def stop(event):
        if where(event):
            raise Stop

    with pytest.raises(Stop):
        training.fit(config, folder, on_event=stop)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"loss": "half_squared_error", "patience": 2}], ids=str)
def test_training_on_the_device(machine, digits, tmp_path, settings, monkeypatch, caplog):
    """fit, stop, resume, evaluate, save, load, predict: the losses are the NumPy backend's, and so is the model."""
    monkeypatch.setattr(training.run, "_READ_EVERY", 0)
    config = training.TrainConfig(epochs=2, batch_size=16, checkpoint_every=2, **settings)
    assert backends.current().name == "cuda"  # auto takes it
    stopped = tmp_path / "stopped"

    stop_training(
        config, stopped, lambda event: isinstance(event, training.BatchEnd) and (event.epoch, event.step) == (2, 4)
    )
    gc.collect()
    resumed = training.fit(config, stopped, resume=True)
    straight = training.fit(config, tmp_path / "straight")
    assert type(resumed.model.conv1.weight.data) is machine.ndarray
    assert not [record for record in caplog.records if record.name == "gpuconv.training"]
    with gpuconv.use_backend("numpy"):
        host = training.fit(training.TrainConfig(**{**vars(config), "backend": "numpy"}), tmp_path / "host")
    for other in (straight, host):
        assert [epoch.train_loss for epoch in resumed.history] == [epoch.train_loss for epoch in other.history]
        for ours, theirs in zip(resumed.model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    loaded = gpuconv.load(stopped).to("cuda")
    expected = host.model.predict(digits.test_images)
    np.testing.assert_allclose(loaded.predict(digits.test_images), expected, rtol=1e-6)
    on_device = machine.asarray(digits.test_images)
    np.testing.assert_allclose(loaded.predict(on_device), expected, rtol=1e-6)
    result = training.evaluate(loaded, on_device, machine.asarray(digits.test_labels))
    assert result.accuracy == host.test_accuracy
    loaded.set_weights(host.model.get_weights())
    assert type(loaded.conv1.weight.data) is machine.ndarray


def test_tuning_on_the_device(machine, monkeypatch, tmp_path):
    """Each variant and tiling is timed, on arrays of the device; the winner runs from then on, and explain says so."""
    times = {"direct": 1.0, "tiled": 2.0, "implicit_gemm": 3.0, "tensor_core": 4.0, "winograd": 5.0}

    class Clock:
        def __init__(self, xp):
            assert xp is machine

        def host_us(self, step):
            return 1.0

        def sample_us(self, step, host_us):
            assert host_us == 1.0
            operation, variant, tiling, geometry, *arrays = step.args
            assert all(type(array) is machine.ndarray for array in arrays)
            step()
            if operation == "conv2d_relu_max_pool2d":  # its last tiling is the fastest
                every = kernels.load(operation, variant).tilings(geometry)
                return len(every) - every.index(tiling)
            return times[variant]

    monkeypatch.setenv("GPUCONV_TUNING", str(tmp_path))
    monkeypatch.setattr(tuner, "_device_clock", Clock)
    store.forget()
    cuda_backend._platform.cache_clear()
    backend, model = backends.get("cuda"), nn.Conv2d(4, 16, 3).to("cuda")
    fused = list(tuner.tune(tuner.tasks_of("lenet5", 2, backend), backend))
    assert [outcome.task.window for outcome in fused] == [(2, 2), (2, 2)]
    for outcome in fused:
        block = BlockGeometry(outcome.task.geometry, Pool2dGeometry.of(outcome.task.geometry.output_shape, 2))
        every = kernels.load("conv2d_relu_max_pool2d", "fused").tilings(block)
        choice = tuning.choose("conv2d_relu_max_pool2d", block, platform=backend.tuning_platform())
        assert (choice.source, choice.tiling) == ("store", every[-1])
        assert not outcome.wrong
        overlapping = BlockGeometry(block.conv, Pool2dGeometry.of(block.conv.output_shape, 2, stride=1))
        assert tuning.choose("conv2d_relu_max_pool2d", overlapping, platform=backend.tuning_platform()).source == "rule"
    geometry = Conv2dGeometry.of((2, 4, 9, 9), (16, 4, 3, 3))
    assert "tiled: taken, by rule" in str(gpuconv.explain(model, (2, 4, 9, 9)))
    for outcome in tuner.tune([tuner.Task(name, geometry) for name in tuner.OPERATIONS], backend):
        assert outcome.winner.startswith("direct "), outcome
        assert not outcome.wrong
        modules = [kernels.load(outcome.task.operation, name) for name in kernels.VARIANTS[outcome.task.operation]]
        tilings = [tiling for module in modules if module.supports(geometry) for tiling in module.tilings(geometry)]
        assert len(outcome.microseconds) == len(tilings)
    choice = tuning.choose("conv2d", geometry, platform=backend.tuning_platform())
    assert (choice.source, choice.variant) == ("store", "direct")
    assert "direct: taken, by store" in str(gpuconv.explain(model, (2, 4, 9, 9)))
    queue, variants = cuda_backend.CudaBackend._queue, []

    def noting(self, plan, *arrays, **options):
        variants.append(plan.choice.variant)
        return queue(self, plan, *arrays, **options)

    monkeypatch.setattr(cuda_backend.CudaBackend, "_queue", noting)
    model(random(2, 4, 9, 9))
    assert variants == ["direct"]
    with machine.Device(1):
        assert backend.tuning_platform() == store.entries()[0][0].key.platform  # the same model of GPU
    store.forget()


@pytest.fixture
def capturing(machine, digits, monkeypatch):
    """The machine with all operations fused, so that a step can be captured."""
    monkeypatch.delenv("GPUCONV_VARIANTS")
    return machine


def plainly(monkeypatch):
    monkeypatch.setattr("gpuconv.training.run.capture", lambda step: None)


def same(one, other):
    assert [epoch.train_loss for epoch in one.history] == [epoch.train_loss for epoch in other.history]
    assert [epoch.train_accuracy for epoch in one.history] == [epoch.train_accuracy for epoch in other.history]
    for ours, theirs in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
def test_training_by_a_graph(capturing, tmp_path, monkeypatch, augment):
    """Full batches by a graph, the shorter last one by itself: as without a graph, bit for bit, also when resumed.

    The stopped run goes on in the middle of an epoch, with the order and the transforms of that epoch.
    """
    config = training.TrainConfig(epochs=3, batch_size=16, checkpoint_every=4, backend="cuda", augment=augment)
    events = []
    monkeypatch.setattr(training.run, "_READ_EVERY", 1e9)
    straight = training.fit(config, tmp_path / "straight", on_event=events.append)
    # 81 images are 5 full batches. Of the first epoch's two are the warm-up, the third is captured, and the fourth is
    # timed. Then four at once, or one by one to a checkpoint: after 4, 8, 12 and 16 steps, of which an epoch has 6.
    assert fake_cupy.Graph.launches == 3 + (2 + 3) + (1 + 1)

    def saved(event):
        return isinstance(event, training.CheckpointSaved) and (event.epochs_done, event.steps_done) == (1, 2)

    stop_training(config, tmp_path / "stopped", saved)
    resumed = training.fit(config, tmp_path / "stopped", resume=True)
    plainly(monkeypatch)
    every = []
    plain = training.fit(config, tmp_path / "plain", on_event=every.append)
    same(straight, plain)
    same(resumed, plain)
    # What is told of a step is right whenever it is told, and the last step of an epoch always is.
    shown, all_steps = (
        {(e.epoch, e.step): (e.loss, e.accuracy) for e in told if isinstance(e, training.BatchEnd)}
        for told in (events, every)
    )
    assert len(all_steps) == 18
    assert {(1, 6), (2, 6), (3, 6)} <= shown.keys()
    assert all(all_steps[step] == values for step, values in shown.items())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [32, *(pytest.param(n, marks=pytest.mark.thorough) for n in (64, 512))])
def test_captured_lenet_has_the_losses_of_the_host(capturing, batch):
    """100 steps in float64, the memory that a step frees being reused: losses as on the NumPy backend to 1e-10."""
    steps = 100
    ours, _, _, _ = lenet_training.trained("cuda", steps, "float64", batch)
    theirs, _, _, _ = lenet_training.trained("numpy", steps, "float64", batch)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert fake_cupy.Graph.launches == steps - 2


def test_what_the_host_does_in_a_captured_step(capturing, tmp_path, monkeypatch):
    """It launches the graph of many steps. At the beginning of an epoch: order, transforms, the number of the step.

    And the numbers of the updates to come, as the epoch's last batch was updated by another kernel.
    """
    monkeypatch.setattr(training.run, "_READ_EVERY", 1e9)
    before, shown = [], []

    def note(event):
        if isinstance(event, training.CheckpointSaved) and (event.epochs_done, event.steps_done) == (1, 0):
            fake_cupy.Stream.log.clear()
        elif isinstance(event, training.CheckpointSaved) and event.steps_done:
            before.append(list(fake_cupy.Stream.log))
        elif isinstance(event, training.BatchEnd) and event.epoch == 2:
            shown.append(event.step)

    # 81 images are 41 steps, the last one of one image; a checkpoint at step 39 of the second epoch.
    config = training.TrainConfig(epochs=2, batch_size=2, checkpoint_every=80, backend="cuda", augment=True)
    training.fit(config, tmp_path, on_event=note)
    *order, numbers = before[0][:4]
    assert order == [("upload", (81,)), ("upload", (81, 2, 3)), ("upload", (1,))]
    assert numbers[0] == "upload"
    # 32 steps, 4, and 3 single ones.
    assert before[0][4:] == 5 * [("graph", 0)]
    assert shown == [39, 41]


def test_an_epoch_of_mnist_is_a_dozen_launches(capturing, monkeypatch):
    """Of 60,000 images in batches of 64; a driver that takes no graph into another launches each step by itself."""
    step, _, _ = captured_steps.without_inputs("cuda")
    captured = gpuconv.capture(step)
    with gpuconv.use_backend("cuda"):
        captured.repeat(3)
        for refuses, launches in ((False, 3), (True, 41)):
            if refuses:
                monkeypatch.setattr(fake_cupy.Driver, "repeated", lambda self, graph, count: 1 / "too old")
                captured._graph._copy._executables.clear()
            before = fake_cupy.Graph.launches
            captured.repeat(32 + 2 * 4 + 1 if refuses else 32 + 4 + 1)
            assert fake_cupy.Graph.launches - before == launches
        launched = []
        monkeypatch.setattr(captured._graph, "launch", lambda times=1: launched.append(times))
        captured.repeat(60_000 // 64)
    assert sum(launched) == 937
    assert len(launched) == 11


def test_a_signal_is_answered_behind_the_steps_that_are_under_way(capturing, tmp_path, monkeypatch):
    """It comes during a launch: a checkpoint after no more steps than may be under way, from which the run goes on."""
    monkeypatch.setattr(training.run, "_READ_EVERY", 1e9)
    monkeypatch.setattr(training.run.Run, "_most_unread", 7)
    config = training.TrainConfig(epochs=2, batch_size=2, backend="cuda")
    straight = training.fit(config, tmp_path / "straight")
    launch, launched = fake_cupy.Graph.launch, []

    def interrupting(graph, stream=None):
        launch(graph, stream)
        launched.append(len(graph._noted))
        if len(launched) == 12:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(fake_cupy.Graph, "launch", interrupting)
        with pytest.raises(training.Interrupted, match=r"in epoch 1 .* after step 24 "):
            training.fit(config, tmp_path / "stopped")
    # Of three steps two are the warm-up. Then 7 at a time, as 4 and 3 single ones; the signal comes before the last.
    assert [count // launched[0] for count in launched] == [1, *[4, 1, 1, 1] * 3]
    same(training.fit(config, tmp_path / "stopped", resume=True), straight)


@pytest.mark.parametrize(("batch_size", "lr"), [(8, 1e4), (40, 1e30)])
def test_losses_are_read_back_when_they_are_shown(capturing, tmp_path, monkeypatch, batch_size, lr):
    """Between two checkpoints nothing waits for the device; the step that diverged is found all the same.

    Of batches of 40 it is the second one, before the shorter last one, which is no part of a graph.
    """
    monkeypatch.setattr(training.run, "_READ_EVERY", 1e9)
    config = training.TrainConfig(epochs=1, batch_size=batch_size, checkpoint_every=7, lr=lr, backend="cuda")
    shown = []

    def note(event):
        if isinstance(event, training.BatchEnd):
            shown.append(event.step)

    with pytest.raises(training.TrainingDiverged) as captured:
        training.fit(config, tmp_path / "captured", on_event=note)
    plainly(monkeypatch)
    with pytest.raises(training.TrainingDiverged) as plain:
        training.fit(config, tmp_path / "plain")
    # The step that is named is the same; the gradients are those of a later one.
    assert str(captured.value).partition(";")[0] == str(plain.value).partition(";")[0]
    assert shown == [1]


@pytest.mark.parametrize("augment", [False, True])
def test_images_that_do_not_fit_are_copied_batch_by_batch(capturing, tmp_path, monkeypatch, augment):
    """Half of the memory is left for training, to the byte; by a graph all the same, and the result is the same."""
    config = training.TrainConfig(epochs=2, batch_size=16, backend="cuda", augment=augment)
    runs, real = [], training.run.Run.train
    monkeypatch.setattr(training.run.Run, "train", lambda run: runs.append(run) or real(run))
    monkeypatch.setattr(training.network, "_check_memory", lambda *_: None)  # a step fits, whatever is free
    monkeypatch.setattr(training.run, "_READ_EVERY", 1e9)
    results = []
    # Pixels, a label, a place in the order, and a transform.
    needed = 2 * 81 * (28 * 28 + 8 + 8 + (24 if augment else 0))
    # The first two steps are the warm-up; of images on the device, the last five are launched four at once.
    for free, launches in ((needed, 3 + 2), (needed - 1, 8)):
        monkeypatch.setattr(cuda_backend.CudaBackend, "free_memory", lambda self, free=free: free)
        fake_cupy.Graph.launches = 0
        results.append(training.fit(config, tmp_path / str(free)))
        assert fake_cupy.Graph.launches == launches
    assert [run.feed.resident for run in runs] == [True, False]
    same(*results)


# -- captured steps, and what is done to them ------------------------------------------------------------------------


@pytest.mark.parametrize("family", operation_cases.FAMILIES)
def test_every_call_in_a_captured_step(capturing, family):
    """Values and gradients equal the NumPy backend's, of the values of a later call."""
    device_functions.compare_captured(capturing, operation_cases.FAMILIES[family])


@pytest.mark.parametrize("check", captured_steps.CHECKS, ids=lambda check: check.__name__)
def test_captured_steps(capturing, check):
    """See each check. The same run on a GPU."""
    check(capturing)


def test_the_current_stream_waits_for_the_last_launch_on_another(capturing):
    """And for nothing else."""
    first, second = capturing.Stream(non_blocking=True), capturing.Stream(non_blocking=True)
    captured_steps.on_several_streams(capturing, first, second)
    log = [entry for entry in capturing.Stream.log if entry[0] in ("wait", "graph")]
    a, b = first.ptr, second.ptr
    assert log == [
        *[("graph", a), ("wait", b, a), ("graph", b), ("graph", b), ("wait", a, b), ("graph", a), ("graph", a)]
    ]


def test_a_schedule_is_uploaded_for_many_steps_at_once(capturing):
    """Of 600 steps, two uploads of numbers."""
    captured_steps.schedule_of_many_steps(capturing)
    assert sum(entry[0] == "upload" for entry in capturing.Stream.log) == 2


def test_memory_runs_out_in_a_capture(capturing):
    """As for other errors: told, and the next call captures."""

    def run_out():
        capturing.Memory.free = 0
        capturing.empty(1)

    def have_again():
        capturing.Memory.free = capturing.Memory.total

    captured_steps.failed_capture(capturing, run_out, RuntimeError, "Out of memory", have_again)


def test_explain_and_summary_of_a_model_on_the_device(machine):
    """explain names the device and the kernels; summary counts."""
    model = models.LeNet5().to("cuda")
    text = str(gpuconv.explain(model, (1, 1, 32, 32), training=True))
    assert "stand-in, 1 GiB, compute capability 9.0, driver for CUDA 13.0" in text
    assert "weight, sparse: taken, by rule" in text
    assert "61,706" in str(model.summary((1, 32, 32)))


# -- what is missing -------------------------------------------------------------------------------------------------


class Driver:
    """libcuda, which answers what it is told to."""

    def __init__(self, version=13000, init=0, count=1):
        self.version, self.init, self.count = version, init, count

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.count
        return 0


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (no_library, r"no NVIDIA driver was found \(libcuda.so.1\); install one"),
        (lambda name: Driver(init=100), r"the NVIDIA driver sees no GPU.*CUDA_VISIBLE_DEVICES"),
        (lambda name: Driver(init=803), r"of different versions: restart"),
        (lambda name: Driver(init=999), r"does not answer \(cuInit: error 999\)"),
        (lambda name: Driver(count=0), r"the NVIDIA driver sees no GPU"),
        (lambda name: Driver(12080), r"supports CUDA 12.8, but CuPy was built for CUDA 13: .*gpuconv\[cuda12\]"),
    ],
)
def test_what_is_wrong_with_the_driver_is_said(machine, monkeypatch, library, words):
    """`available`, which `gpuconv info` prints, and the error for a backend asked for by name say the same."""
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "cupy" or find_spec(name))
    monkeypatch.setattr(cuda_backend, "_simulating", lambda: False)
    monkeypatch.setattr(cuda_backend, "_compiler", lambda: (13, 0))
    monkeypatch.setattr(ctypes, "CDLL", library)
    forget()
    assert_unavailable(words)


def assert_unavailable(words):
    with pytest.raises(backends.BackendUnavailable, match=words), gpuconv.use_backend("cuda"):
        pass
    reason = backends.available()["cuda"]
    assert reason is not None
    assert "\n" not in reason
    assert backends.current().name != "cuda"  # auto goes on without it


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("_arrays", lambda: 12090, None),
        ("_compiler", lambda: (14, 1), r"supports CUDA 13.0, but numba-cuda compiles for CUDA 14: .*gpuconv\[cuda13\]"),
        ("_compiler", lambda: "numba-cuda finds no CUDA compiler", "no CUDA compiler"),
    ],
)
def test_toolkits_that_do_not_fit_are_named(machine, monkeypatch, name, fault, words):
    """A toolkit newer than the driver is refused by name; an older one runs."""
    monkeypatch.setattr(cuda_backend, name, fault)
    forget()
    if words is None:
        assert backends.available()["cuda"] is None
    else:
        assert_unavailable(words)


def test_missing_or_broken_packages_are_named(machine, monkeypatch):
    """CuPy or numba-cuda not installed, CuPy that cannot load its libraries: which, and what installs it."""
    find_spec = importlib.util.find_spec
    broken = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=types.SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "cupy", broken)
    forget()
    assert_unavailable(r"CuPy cannot be used \(AttributeError: .*\): pip install 'gpuconv\[cuda12\]'")
    for package, words in (("cupy", "CuPy is not installed: pip"), ("numba_cuda", "numba-cuda is not installed: pip")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, p=package: None if name == p else find_spec(name))
        forget()
        assert_unavailable(words)


def test_without_a_compiler_the_reason_is_said():
    """Here numba.cuda is the simulator's, which has no compiler: the reason is a line that ends in what would help."""
    found = cuda_backend._compiler()
    assert isinstance(found, str)
    assert "pip install" in found


# -- DLPack and streams of any library -------------------------------------------------------------------------------


class Producer:
    """An array of a library that has DLPack and no more, on a device of one of DLPack's kinds."""

    def __init__(self, host, kind=2):
        self.host, self.kind = host, kind

    def __dlpack__(self, **options):
        return self.host.__dlpack__()

    def __dlpack_device__(self):
        return self.kind, 0


@pytest.mark.parametrize("kind", [2, 13], ids=["device", "managed"])
def test_dlpack_of_any_library_is_taken_without_a_copy(machine, kind):
    """What has neither ``__cuda_array_interface__`` nor dtype nor shape: in, computed there, and the result stays."""
    host = np.array([-1.0, 2.0], np.float32)
    given = Producer(host, kind)
    tensor = Tensor(given)
    assert type(tensor.data) is machine.ndarray
    taken = backends.get("cuda").asarray(given)
    assert type(taken) is machine.ndarray
    host[1] = 5
    np.testing.assert_array_equal(F.relu(tensor).numpy(), [0, 5])
    np.testing.assert_array_equal(taken.get(), [-1, 5])
    assert type(F.relu(given)) is machine.ndarray
    assert {name for name, _ in launched} == {"relu"}


def test_dlpack_on_the_host_is_taken_without_a_device():
    """It becomes a NumPy array, on the same memory."""
    host = np.array([-1.0, 2.0], np.float32)
    tensor = Tensor(Producer(host, 1))
    host[1] = 5
    assert type(tensor.data) is np.ndarray
    np.testing.assert_array_equal(tensor.data, [-1, 5])


def test_dlpack_is_asked_before_the_cuda_array_interface(machine):
    """It orders the streams of both libraries. Where it is refused, the other one does; where there is none, a line."""

    class Both(Producer):
        asked = 0

        def __dlpack__(self, **options):
            Both.asked += 1
            return super().__dlpack__()

    class Refusing(Producer):
        def __dlpack__(self, **options):
            raise BufferError("read-only")

    host = np.array([-1.0, 2.0], np.float32)
    for kind in (Both, Refusing):
        given = kind(host)
        given.__cuda_array_interface__ = host.__array_interface__
        tensor = Tensor(given)
        assert tensor.data.host.ctypes.data == host.ctypes.data
    assert Both.asked == 1
    with pytest.raises(TypeError, match=r"an array of test_device_arrays that DLPack does not hand over \(read-only\)"):
        Tensor(Refusing(host))


def test_without_a_gpu_an_array_on_one_says_why(monkeypatch):
    """The reason of the backend, whichever way the array is offered."""
    monkeypatch.setattr(cuda_backend, "_simulating", lambda: False)
    monkeypatch.setattr(cuda_backend, "_driver", lambda: "no NVIDIA driver was found")
    forget()
    host = np.ones(2, np.float32)
    for given in (Producer(host), OnTheDevice(host)):
        with pytest.raises(backends.BackendUnavailable, match="no NVIDIA driver was found"):
            Tensor(given)
    with pytest.raises(backends.BackendUnavailable, match="no NVIDIA driver was found"), gpuconv.use_stream(7):
        pass
    with pytest.raises(backends.BackendUnavailable, match="no NVIDIA driver was found"):
        gpuconv.current_stream()
    monkeypatch.undo()
    forget()


class HasStream:
    """A stream of a library with the protocol."""

    def __init__(self, handle, version=0):
        self.answer = version, handle

    def __cuda_stream__(self):
        return self.answer


@pytest.fixture
def streams(machine, monkeypatch):
    """The same machine, whose CuPy wraps streams of others."""
    wrapped = []

    def external(handle, device):
        wrapped.append((handle, device))
        return machine.Stream(handle)

    monkeypatch.setattr(machine.cuda, "ExternalStream", external, raising=False)
    return wrapped


@pytest.mark.parametrize(
    "stream",
    [HasStream(9), 9, types.SimpleNamespace(ptr=9), types.SimpleNamespace(cuda_stream=9)],
    ids=["protocol", "address", "older CuPy", "older torch"],
)
def test_work_is_queued_on_the_stream_that_is_given(machine, streams, stream):
    """Launches inside of the block go to it, on the current device; afterwards to the one before, also after errors."""
    x = machine.asarray(random(2, 3))
    with machine.Device(1):
        on_second = machine.asarray(random(2, 3))
        with gpuconv.use_stream(stream):
            F.relu(on_second)
    with machine.Stream(7):
        with gpuconv.use_stream(stream) as current:
            F.relu(x)
            assert current == gpuconv.current_stream()
            assert current.__cuda_stream__() == (0, 9)
        F.relu(x)
        with pytest.raises(KeyError), gpuconv.use_stream(current):
            raise KeyError
        assert gpuconv.current_stream().__cuda_stream__() == (0, 7)
    assert [stream for _, stream in launched] == [(1, 9), (0, 9), (0, 7)]
    assert streams == [(9, 1), (9, 0), (9, 0)]


@pytest.mark.parametrize(
    ("stream", "error", "words"),
    [
        (HasStream(9, version=1), ValueError, "version 1 of __cuda_stream__, where 0 is known"),
        (HasStream("9"), TypeError, "the address of a stream is an integer, got str"),
        (True, TypeError, "the address of a stream is an integer, got bool"),
        (-1, ValueError, "-1 is not the address of a stream"),
        (2**64, ValueError, "is not the address of a stream"),
        (None, TypeError, "got NoneType, where a stream is needed"),
        ("9", TypeError, "got str, where a stream is needed"),
    ],
)
def test_what_is_no_stream_is_refused(machine, streams, stream, error, words):
    """In one line, before anything is queued."""
    with pytest.raises(error, match=words), gpuconv.use_stream(stream):
        pass
    assert not streams


def test_streams_that_other_libraries_make_have_the_protocol():
    """The protocol as cuda.core and PyTorch implement it: a method, and an integer address beside the version."""
    core = pytest.importorskip("cuda.core", reason="a dependency of numba-cuda")
    for stream, address in ((core.LEGACY_DEFAULT_STREAM, 1), (core.PER_THREAD_DEFAULT_STREAM, 2)):
        with gpuconv.use_stream(stream) as taken:  # in the simulator, where nothing is queued
            assert taken.handle == address


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_operations_compute_on_the_device(machine, family, dtype):
    """Results and gradients lie on the device, with the values of the host; nothing makes a detour over it."""
    half = dtype != "float32"
    if half:
        pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16; pip install ml_dtypes")
    for case in FAMILIES[family]:
        arrays = case.draw(case.samples[0], np.float32)
        wanted = [one.grad and array.dtype.kind == "f" for one, array in zip(case.samples[0], arrays, strict=True)]
        arrays = [array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays]
        found = []
        for place in (np.asarray, machine.asarray):
            inputs = [Tensor(place(array), requires_grad=grad) for array, grad in zip(arrays, wanted, strict=True)]
            with backends.use_backend("numpy") if place is np.asarray else contextlib.nullcontext():
                results = case.call(gpuconv, *inputs)
                results = list(results) if isinstance(results, (tuple, list)) else [results]
                if results[0].requires_grad:
                    results[0].backward(place(np.ones(results[0].shape, results[0].dtype)))
            found.append([*results, *[x.grad for x in inputs if x.grad is not None]])
        for host, there in zip(*found, strict=True):
            assert isinstance(there.data, machine.ndarray), case
            assert there.dtype == host.dtype, case
            values = [x.numpy().astype(np.float32) if half else x.numpy() for x in (there, host)]
            np.testing.assert_allclose(*values, rtol=1.6e-2 if half else 1e-5, atol=1e-6, err_msg=str(case))


@pytest.mark.parametrize(("wanted", "possible"), [(True, True), (True, False), (False, True)])
def test_launches_that_need_nothing_of_each_other_run_side_by_side(capturing, monkeypatch, wanted, possible):
    """Of a captured step of LeNet: the gradients of weights are beside the chain of those of inputs."""
    assert branches.possible(driver.current(), fake_cupy)
    monkeypatch.setattr(branches, "possible", lambda *_: possible)
    with gpuconv.use_backend("cuda"):
        model = models.LeNet5().to("cuda")
        train = lenet_training.step_of(model, optim.SGD(model.parameters(), 0.1, momentum=0.9))
        step = gpuconv.capture(train, side_by_side=wanted)
        for _ in range(3):
            step(Tensor(random(4, 1, 32, 32)), np.arange(4))
    names, longest = [], []
    for call, before in step._graph._graph._noted:
        names.append(call.args[0].kernel.operation)
        longest.append(1 + max((longest[number] for number in before), default=0))
    assert len(names) == 10
    assert names[-1] == "sgd_update_all_of_parts"
    if not (wanted and possible):  # a chain
        assert longest == list(range(1, 11))
        return
    assert max(longest) == longest[-1] == 8, list(zip(names, longest, strict=True))
    beside = {name for name, length in zip(names, longest, strict=True) if longest.count(length) > 1}
    assert beside == {
        "conv2d_relu_max_pool2d_grad_input",
        "conv2d_relu_max_pool2d_grad_weight",
        "linear_chain_grad_weight",
    }


def test_a_launch_that_only_reads_a_result_lets_others_read_it(real_kernels):
    """Of a chain in two launches: the first writes its layer's results, the second one those of the others alone."""
    geometry = ChainGeometry(3, (8, 4, 2), (True, False))
    with gpuconv.use_backend("cuda"), tuning.use_variant("linear_chain", "split"):
        backend = backends.get("cuda")
        x, first, second = (real_kernels.asarray(random(*shape)) for shape in ((3, 8), (4, 8), (2, 4)))
        backend.linear_chain(x, [first, second], [None, None], geometry)
        (prepared,) = backend.plan("linear_chain", geometry, x.dtype)._prepared.values()
    # Of x, two weights, and two results.
    assert [[number for number, writes in one if writes] for one in prepared.touched] == [[3], [4]]
    assert (3, False) in prepared.touched[1]


class Bindings:
    """cuda.bindings.driver as a captured stream sees it: of CUDA 12, 13 with data for each edge, or too old."""

    CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)
    CUstreamUpdateCaptureDependencies_flags = types.SimpleNamespace(CU_STREAM_SET_CAPTURE_DEPENDENCIES=1)
    CUstream = CUgraphNode = int

    def __init__(self, version):
        self._data = () if version == 12 else (None,)
        self.old, self.log = version < 12, []

    def cuStreamGetCaptureInfo(self, stream):
        if self.old:
            raise RuntimeError('Function "cuStreamGetCaptureInfo" not found')
        nodes = list(fake_cupy.Stream.by_pointer[stream].waits_for)
        return 0, 1, 7, 8, nodes, *self._data, len(nodes)

    def cuGraphClone(self, graph):
        assert graph == 8
        return 0, "the step"

    def cuGraphCreate(self, flags):
        return 0, []

    def cuGraphAddChildGraphNode(self, whole, before, count, graph):
        assert count == len(before)
        whole.append((before, graph))
        return 0, len(whole)

    def cuGraphInstantiate(self, whole, flags):
        return 0, tuple(whole)

    def cuGraphLaunch(self, executable, stream):
        self.log.append(executable)
        return (0 if len(executable) < 5 else types.SimpleNamespace(name="CUDA_ERROR_OUT_OF_MEMORY"),)

    def cuGraphDestroy(self, graph):
        self.log.append(("destroyed", graph))

    cuGraphExecDestroy = cuGraphDestroy

    def cuStreamUpdateCaptureDependencies(self, stream, nodes, *rest):
        assert rest == (*self._data, len(nodes), 1)
        fake_cupy.Stream.by_pointer[stream].waits_for = tuple(nodes)
        return (0,)


@pytest.mark.parametrize("version", [11, 12, 13])
def test_what_a_captured_stream_waits_for_by_the_drivers_bindings(machine, monkeypatch, version):
    """A driver that cannot be told is found out before the first capture, whose launches then are a chain."""
    with monkeypatch.context() as patched:
        patched.setattr(driver.importlib, "import_module", lambda name: Bindings(version))
        real = driver.CudaDriver()
    assert branches.possible(real, fake_cupy) == (version > 11)
    stream = fake_cupy.Stream()
    stream.begin_capture()
    fake_cupy.queued(lambda: None, stream)
    fake_cupy.queued(lambda: None, stream)
    if version > 11:
        assert real.capture_dependencies(stream.ptr) == [1]
        real.set_capture_dependencies(stream.ptr, [0, 1])
        assert real.capture_dependencies(stream.ptr) == [0, 1]


def test_a_graph_of_graphs_by_the_drivers_bindings(machine, monkeypatch):
    """Made once for each number of steps, each of which waits for the one before; and given back."""
    bindings = Bindings(13)
    with monkeypatch.context() as patched:
        patched.setattr(driver.importlib, "import_module", lambda name: bindings)
        real = driver.CudaDriver()
    stream = fake_cupy.Stream()
    stream.begin_capture()
    copy = real.captured(stream.ptr)
    for count in (3, 1, 3):
        copy.launch(count, stream.ptr)
    three, one = (([], "the step"), ([1], "the step"), ([2], "the step")), (([], "the step"),)
    assert [entry for entry in bindings.log if entry[0] != "destroyed"] == [three, one, three]
    with pytest.raises(RuntimeError, match="refuses the launch of a graph: CUDA_ERROR_OUT_OF_MEMORY"):
        copy.launch(5, stream.ptr)
    del copy
    gone = [entry[1] for entry in bindings.log if entry[0] == "destroyed"]
    assert three in gone
    assert one in gone
    assert gone[-1] == "the step"
    names = [name for name in dir(Bindings) if name.startswith("cu")]
    installed = pytest.importorskip("cuda.bindings.driver", reason="comes with numba-cuda")
    assert all(hasattr(installed, name) for name in names)


def test_a_step_that_does_not_wait_computes_something_else(capturing, monkeypatch):
    """The stand-in for a graph runs nodes in any order that their edges allow: without edges the losses are wrong."""
    monkeypatch.setattr(branches.Access, "conflicts", lambda *_: False)
    losses = [lenet_training.trained(backend, 5, "float64", 8)[0] for backend in ("cuda", "numpy")]
    assert not np.allclose(*losses, rtol=1e-6)


def test_unknown_work_keeps_its_place_in_a_captured_step(capturing):
    """What gpuconv has not launched itself waits for all before it, and all behind it waits for it."""
    with gpuconv.use_backend("cuda"):
        x, out = capturing.asarray(random(2, 3)), capturing.zeros((2, 3), np.float32)

        def step(x):
            one, two = F.relu(x), F.relu(-x)
            out[...] = (one - two).data  # by CuPy
            return F.relu(Tensor(out)) + F.relu(Tensor(-out))

        captured = gpuconv.capture(step)
        for factor in (1, -1, 3, 2):
            result = captured(Tensor(x * factor))
            np.testing.assert_allclose(result.numpy(), abs(factor * x.get()), rtol=1e-6)
