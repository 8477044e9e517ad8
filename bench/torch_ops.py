"""The operations of ``gpuconv.kernels.VARIANTS`` in PyTorch, from the same arrays.

In float64 they are the reference that kernels are judged by, in float32 the peer that they are timed beside. On a GPU
the convolutions are cuDNN's.

``OPERATIONS`` maps an operation to a function of ``(torch, geometry, tensors, keywords)``. The tensors are the operands
of a variant's ``launch`` up to its results, those that it changes in place included, a tuple where it takes several as
one; the function gets them ready and returns a step without arguments: what is timed. A step returns one tensor, or a
tuple of them, for each result, in their order, or None for one that it does not have.

For a fused operation PyTorch has no single function. Its step is then the shortest chain of PyTorch's own kernels, the
ones that autograd would launch, without autograd's work on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Step = Callable[[], tuple[Any, ...]]

#: The settings of the optimizers' steps.
UPDATES: Mapping[str, Mapping[str, Any]] = {
    "sgd_update_all": {"lr": 0.1, "momentum": 0.9, "dampening": 0.0},
    "adam_update_all": {"step": 1, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}


def _sides(geometry: Any) -> list[int]:
    """Padding as PyTorch takes it.

    Raises:
        ValueError: it is not the same on both sides.
    """
    if any(before != after for before, after in geometry.padding):
        raise ValueError(f"padding {geometry.padding} is not the same on both sides")
    return [before for before, _ in geometry.padding]


def _conv2d(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    x, weight, bias = tensors
    padding = _sides(g)
    conv2d = torch.nn.functional.conv2d
    return lambda: (conv2d(x, weight, bias, g.stride, padding, g.dilation, g.groups),)


def _conv_backward(torch: Any, g: Any, grad: Any, x: Any, weight: Any, wanted: int) -> Step:
    arguments = (grad, x, weight, None, g.stride, _sides(g), g.dilation, False, [0, 0], g.groups)
    mask = [number == wanted for number in range(3)]
    return lambda: (torch.ops.aten.convolution_backward(*arguments, mask)[wanted],)


def _conv2d_grad_input(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    grad, weight = tensors
    return _conv_backward(torch, g, grad, grad.new_empty(g.input_shape), weight, 0)


def _conv2d_grad_weight(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    grad, x = tensors
    return _conv_backward(torch, g, grad, x, grad.new_empty(g.weight_shape), 1)


def _conv2d_grad_bias(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    (grad,) = tensors
    return lambda: (grad.sum((0, 2, 3)),)


def _relu(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    (x,) = tensors
    return lambda: (torch.relu(x),)


def _relu_grad(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    grad, y = tensors
    return lambda: (torch.ops.aten.threshold_backward(grad, y, 0),)


def _max_pool2d(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    (x,) = tensors
    window = _window(g)

    def step() -> tuple[Any, ...]:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
        return y, indices

    return step


def _window(g: Any) -> tuple[Any, ...]:
    """The window as PyTorch's max pooling takes it."""
    return [g.r, g.s], list(g.stride), _sides(g), list(g.dilation), _ceil(g)


def _max_pool2d_grad(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    grad, winners = tensors
    window = _window(g)
    indices, x = indices_of(torch, winners, g), grad.new_empty(g.input_shape)
    return lambda: (torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, indices),)


def indices_of(torch: Any, winners: Any, g: Any) -> Any:
    """Offsets inside the windows, as gpuconv keeps them, as PyTorch's positions ``row · w + column``, int64."""
    (top, left), offsets = _sides(g), winners.to(torch.int64)
    rows = torch.arange(g.p, device=winners.device)[:, None] * g.stride[0] - top
    columns = torch.arange(g.q, device=winners.device) * g.stride[1] - left
    return (rows + offsets // g.s * g.dilation[0]) * g.w + columns + offsets % g.s * g.dilation[1]


def offsets_of(torch: Any, indices: Any, g: Any) -> Any:
    """The inverse of :func:`indices_of`, in the element type in which gpuconv keeps them."""
    top, left = _sides(g)
    rows = torch.arange(g.p, device=indices.device)[:, None] * g.stride[0] - top
    columns = torch.arange(g.q, device=indices.device) * g.stride[1] - left
    i, j = (indices // g.w - rows) // g.dilation[0], (indices % g.w - columns) // g.dilation[1]
    return (i * g.s + j).to(torch.uint8 if g.r * g.s <= 256 else torch.int32)


def _ceil(g: Any) -> bool:
    """Whether the output has the size that PyTorch computes with ``ceil_mode``."""
    spans = ((g.h, g.r, 0, g.p), (g.w, g.s, 1, g.q))
    floors = [
        (size + 2 * g.padding[axis][0] - g.dilation[axis] * (window - 1) - 1) // g.stride[axis] + 1
        for size, window, axis, _ in spans
    ]
    return floors != [out for *_, out in spans]


def _avg_pool2d(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    (x,) = tensors
    options = (keywords["count_include_pad"], keywords["divisor_override"])
    window = ([g.r, g.s], list(g.stride), _sides(g), _ceil(g), *options)
    return lambda: (torch.ops.aten.avg_pool2d(x, *window),)


def _avg_pool2d_grad(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    (grad,) = tensors
    x = grad.new_empty(g.input_shape)
    options = (keywords["count_include_pad"], keywords["divisor_override"])
    window = ([g.r, g.s], list(g.stride), _sides(g), _ceil(g), *options)
    return lambda: (torch.ops.aten.avg_pool2d_backward(grad, x, *window),)


def _softmax_cross_entropy(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    logits, labels, weight, _ = tensors
    cross_entropy, options = torch.nn.functional.cross_entropy, {"reduction": "none", **keywords}
    return lambda: (None, cross_entropy(logits, labels, weight, **options), torch.softmax(logits, 1))


def _softmax_cross_entropy_grad(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    grad, probabilities, labels, weight = tensors
    if keywords["label_smoothing"]:
        raise ValueError("the peer's gradient is written for no label smoothing")
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), shape[1]).to(grad.dtype)
    share = (weight[labels.clamp(min=0)] * (labels != keywords["ignore_index"]))[:, None]
    return lambda: ((probabilities - hot) * share * grad[:, None],)


def _fused_adam(torch: Any, params: Any, grads: Any, means: Any, squares: Any, keywords: Any) -> Step:
    options = {name: keywords[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}
    update = torch.ops.aten._fused_adamw_ if keywords["decoupled"] else torch.ops.aten._fused_adam_
    # PyTorch counts no step here, so that each call is of the same one.
    steps = [torch.tensor(float(keywords["step"]), device=param.device) for param in params]
    lists = (params, grads, means, squares, [], steps)

    def step() -> tuple[Any, ...]:
        update(*lists, amsgrad=False, maximize=False, **options)
        return params, means, squares, None

    return step


# -- fused operations --------------------------------------------------------------------------------------------------


def _block(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    """The second result is the maps before pooling instead of the winners; see :func:`values_at`."""
    convolve, window = _conv2d(torch, g.conv, tensors, {}), _window(g.pool)

    def step() -> tuple[Any, ...]:
        maps = torch.relu_(convolve()[0])
        return torch.ops.aten.max_pool2d_with_indices(maps, *window)[0], maps

    return step


def _block_pair(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    """The second results are the maps before pooling, as :func:`_block`'s is."""
    x, weights, biases = tensors

    def step() -> tuple[Any, ...]:
        y, found = x, []
        for block, weight, bias in zip(g, weights, biases, strict=True):
            found.append(_block(torch, block, (y, weight, bias), {})())
            y = found[-1][0]
        return tuple(zip(*found, strict=True))

    return step


def values_at(torch: Any, maps: Any, winners: Any, g: Any) -> Any:
    """What the maps hold where the winners are: of elements that are almost the same, rounding makes any the winner."""
    # A byte that is no element of its window may point anywhere: still into the map, where the value will be another.
    indices = indices_of(torch, winners, g).clamp(0, g.h * g.w - 1)
    return maps.flatten(2).gather(2, indices.flatten(2)).reshape(winners.shape)


def _maps_grad(torch: Any, g: Any, grad: Any, y: Any, winners: Any) -> Step:
    """The gradient of a block's maps before ReLU: ReLU's part on the pooled maps, where it is the least work."""
    indices, maps = indices_of(torch, winners, g.pool), grad.new_empty(g.pool.input_shape)
    aten, window = torch.ops.aten, _window(g.pool)
    return lambda: (aten.max_pool2d_with_indices_backward(aten.threshold_backward(grad, y, 0), maps, *window, indices),)


def _block_grad_input(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    grad, weight, y, winners = tensors
    maps_grad, x = _maps_grad(torch, g, grad, y, winners), grad.new_empty(g.conv.input_shape)
    return lambda: _conv_backward(torch, g.conv, *maps_grad(), x, weight, 0)()


def _block_grad_weight(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    grad, x, y, winners = tensors
    maps_grad, weight = _maps_grad(torch, g, grad, y, winners), grad.new_empty(g.conv.weight_shape)
    rest = (x, weight, [g.conv.k], g.conv.stride, _sides(g.conv), g.conv.dilation, False, [0, 0], g.conv.groups)
    return lambda: torch.ops.aten.convolution_backward(*maps_grad(), *rest, [False, True, True])[1:]


def _linear_chain(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    x, weights, biases = tensors
    linear = torch.nn.functional.linear

    def step() -> tuple[Any, ...]:
        ys = []
        for weight, bias, relu in zip(weights, biases, g.relu, strict=True):
            y = linear(ys[-1] if ys else x, weight, bias)
            ys.append(torch.relu_(y) if relu else y)
        return (tuple(ys),)

    return step


def _linear_chain_grad_input(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    last, weights, ys = tensors
    threshold_backward = torch.ops.aten.threshold_backward

    def step() -> tuple[Any, ...]:
        grad, grads = last, []
        for weight, y, relu in reversed(list(zip(weights, ys, g.relu, strict=True))):
            grads.append(threshold_backward(grad, y, 0) if relu else grad)
            grad = grads[-1] @ weight
        return tuple(reversed(grads)), grad

    return step


def _linear_chain_loss_grad_input(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    y, labels, weights, biases = tensors
    rest = g._replace(sizes=g.sizes[1:], relu=g.relu[1:])
    forward = _linear_chain(torch, rest, (y, weights[1:], biases[1:]), {})

    def step() -> tuple[Any, ...]:
        (ys,) = forward()
        _, grad, _ = _softmax_cross_entropy_mean(
            torch, None, (ys[-1], labels, None), {"label_smoothing": 0.0, **keywords}
        )()
        return _linear_chain_grad_input(torch, g, (grad, weights, (y, *ys)), {})()

    return step


def _linear_chain_grad_weight(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    xs, grads = tensors
    return lambda: (
        tuple(grad.T @ x for x, grad in zip(xs, grads, strict=True)),
        tuple(grad.sum(0) for grad in grads),
    )


def _softmax_cross_entropy_mean(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    if keywords["label_smoothing"]:
        raise ValueError("the peer's gradient is written for no label smoothing")
    logits, labels, weight = tensors
    aten, one, mean = torch.ops.aten, logits.new_ones(()), (1, keywords["ignore_index"])

    def step() -> tuple[Any, ...]:
        logs = aten._log_softmax(logits, 1, False)
        loss, total = aten.nll_loss_forward(logs, labels, weight, *mean)
        grad = aten.nll_loss_backward(one, logs, labels, weight, *mean, total)
        return loss.reshape(1), aten._log_softmax_backward_data(grad, logs, 1, logs.dtype), None

    return step


def _sgd_update_all(torch: Any, sizes: Any, tensors: Any, keywords: Any) -> Step:
    params, grads, velocities, _ = tensors
    options = {**UPDATES["sgd_update_all"], **keywords}

    def step() -> tuple[Any, ...]:
        torch.ops.aten._fused_sgd_(params, grads, velocities, maximize=False, is_first_step=False, **options)
        return params, velocities, None

    return step


def _of_parts(update: Callable[[Any, Any, Any, Any], Step]) -> Callable[[Any, Any, Any, Any], Step]:
    """The peer of an update that first adds up gradients: of another one, with the sums before it."""

    def peer(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
        params, grads, rows, *states = tensors
        then = update(torch, g.sizes, (params, grads, *states), keywords)
        targets = [
            (part, grads[number])
            for one, row in zip(g.sums, rows, strict=True)
            for number, part in zip(one.members, row.split([g.sizes[n] for n in one.members], 1), strict=True)
        ]

        def step() -> tuple[Any, ...]:
            for part, grad in targets:
                torch.sum(part, 0, out=grad)
            updated, *rest = then()
            return updated, grads, *rest

        return step

    return peer


def _adam_update_all(torch: Any, sizes: Any, tensors: Any, keywords: Any) -> Step:
    params, grads, means, squares, _ = tensors
    return _fused_adam(torch, params, grads, means, squares, {**UPDATES["adam_update_all"], **keywords})


# -- data --------------------------------------------------------------------------------------------------------------


def _batch_norm_stats(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    (x,) = tensors
    return lambda: tuple(reversed(torch.var_mean(x, (0, 2), correction=0)))


def _batch_norm(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    x, mean, var, weight, bias, residual = tensors
    norm, last = torch.nn.functional.batch_norm, torch.relu if keywords["relu"] else lambda y: y
    return lambda: (last(norm(x, mean, var, weight, bias, False, 0.0, keywords["eps"]) + residual),)


def _batch_norm_grad_stats(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    grad, x, y, mean, var = tensors

    def step() -> Any:
        g = torch.ops.aten.threshold_backward(grad, y, 0)
        unit = (x - mean[:, None]) * torch.rsqrt(var + keywords["eps"])[:, None]
        return (g * unit).sum((0, 2)), g.sum((0, 2))

    return step


def _batch_norm_grad_input(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    grad, x, y, mean, var, weight, dweight, dbias = tensors

    def step() -> Any:
        g, rate = torch.ops.aten.threshold_backward(grad, y, 0), torch.rsqrt(var + keywords["eps"])[:, None]
        unit = (x - mean[:, None]) * rate
        share = 1 / (shape[0] * shape[2])
        return (g - (dbias[:, None] + unit * dweight[:, None]) * share) * rate * weight[:, None], g

    return step


def _image_batch(torch: Any, g: Any, tensors: Any, keywords: Any) -> Step:
    table, images, labels, index, transforms = tensors
    top, left = (g.p - g.h) // 2, (g.q - g.w) // 2
    sides = (left, g.q - g.w - left, top, g.p - g.h - top)
    functional = torch.nn.functional
    rows, columns = (torch.arange(size, dtype=table.dtype, device=table.device) - (size - 1) / 2 for size in (g.p, g.q))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)

    def step() -> tuple[Any, ...]:
        found = functional.pad(table[images[index].int()] - table[0], sides)[:, None]
        if g.warps:
            # From pixels to PyTorch's coordinates, in which the middles of the outermost pixels are -1 and 1.
            at = (transforms[index] @ points).reshape(-1, 2, g.p, g.q).movedim(1, 3)
            at = at / at.new_tensor([(g.q - 1) / 2, (g.p - 1) / 2])
            found = functional.grid_sample(found, at, mode="bilinear", padding_mode="zeros", align_corners=True)
        return found + table[0], labels[index]

    return step


def _count_correct(torch: Any, shape: Any, tensors: Any, keywords: Any) -> Step:
    logits, labels = tensors
    return lambda: ((logits.argmax(1) == labels).sum(0, keepdim=True, dtype=torch.int32),)


OPERATIONS: Mapping[str, Callable[[Any, Any, Any, Any], Step]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "conv2d_grad_bias": _conv2d_grad_bias,
    "relu": _relu,
    "relu_grad": _relu_grad,
    "max_pool2d": _max_pool2d,
    "max_pool2d_grad": _max_pool2d_grad,
    "avg_pool2d": _avg_pool2d,
    "avg_pool2d_grad": _avg_pool2d_grad,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "softmax_cross_entropy_grad": _softmax_cross_entropy_grad,
    "conv2d_relu_max_pool2d": _block,
    "conv2d_relu_max_pool2d_grad_input": _block_grad_input,
    "conv2d_relu_max_pool2d_grad_weight": _block_grad_weight,
    "conv2d_relu_max_pool2d_pair": _block_pair,
    "linear_chain": _linear_chain,
    "linear_chain_grad_input": _linear_chain_grad_input,
    "linear_chain_loss_grad_input": _linear_chain_loss_grad_input,
    "linear_chain_grad_weight": _linear_chain_grad_weight,
    "softmax_cross_entropy_mean": _softmax_cross_entropy_mean,
    "batch_norm_stats": _batch_norm_stats,
    "batch_norm": _batch_norm,
    "batch_norm_grad_stats": _batch_norm_grad_stats,
    "batch_norm_grad_input": _batch_norm_grad_input,
    "sgd_update_all": _sgd_update_all,
    "sgd_update_all_of_parts": _of_parts(_sgd_update_all),
    "adam_update_all": _adam_update_all,
    "adam_update_all_of_parts": _of_parts(_adam_update_all),
    "image_batch": _image_batch,
    "count_correct": _count_correct,
}
