"""Constructors of layers: what cannot work is refused there, by name, and nothing that PyTorch takes."""

import importlib.util

import numpy as np
import pytest

from gpuconv import nn

HAS_TORCH = importlib.util.find_spec("torch") is not None
NAN, I64, F32 = float("nan"), np.int64, np.float32

#: For each kind of argument values that are good, and bad ones.
SIZES = (
    [1, 2, I64(2), (2, 3), [2, 2], np.array([2, 2])],
    ["3", 1.5, 2.0, 0, -1, (1, 2, 3), None, (1, "2"), (1, 2.0)],
)
STEPS = (SIZES[0], [value for value in SIZES[1] if value is not None])
SIZE = ([1, 2, I64(2), (2,), [2]], ["3", 1.5, 0, -1, (1, 2), None, (2.0,)])
STEP = (SIZE[0], [value for value in SIZE[1] if value is not None])
FLAG = ([True, False], ["no", "", 2, -1, 1.5])
CHANNELS = ([2, 4, I64(2)], [0, -2, 2.0, "2", None, (2,)])
#: Layer, the arguments with which it is built, and values for one of these or a further one.
TABLE = [
    ("Conv2d", {"in_channels": 2, "out_channels": 4, "kernel_size": 3}, {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "kernel_size": SIZES,
        "stride": STEPS,
        "padding": ([0, 1, I64(1), (1, 2), [1, 1], "same", "valid"], ["smae", "", 1.0, -1, None, (1, 2, 3), (1, "1")]),
        "dilation": STEPS,
        "groups": ([1, 2, I64(2)], [0, -1, 3, 1.0, "1", None, (1,)]),
        "bias": ([True, False, None], ["no", 2, 1.5]),
        "dtype": (["float32", np.float64, ">f4", "float16"], ["nope", np.int32, complex]),
    }),
    ("Conv1d", {"in_channels": 2, "out_channels": 4, "kernel_size": 3}, {
        "kernel_size": SIZE,
        "stride": STEP,
        "padding": ([0, 1, I64(1), (1,), "same", "valid"], ["smae", 1.0, -1, None, (1, 2), ("1",)]),
        "dilation": STEP,
        "groups": ([1, 2], [0, 3, 1.0]),
    }),
    ("Linear", {"in_features": 8, "out_features": 3}, {
        "in_features": ([8, I64(8)], [0, -1, 8.0, "8", None, (8,)]),
        "out_features": ([3, I64(3)], [0, -1, 3.0, "3", None]),
        "bias": ([True, False], ["no"]),
        "dtype": (["float32"], ["wide", np.int64]),
    }),
    ("MaxPool2d", {"kernel_size": 3}, {
        "kernel_size": SIZES,
        "stride": ([*STEPS[0], None, ()], STEPS[1]),
        "padding": ([0, 1, I64(1), (1, 0), [0, 1]], ["same", "valid", 1.0, -1, 2, (0, 2), None, (1, 1, 1)]),
        "dilation": STEPS,
        "return_indices": FLAG,
        "ceil_mode": FLAG,
    }),
    ("MaxPool1d", {"kernel_size": 3}, {
        "kernel_size": SIZE,
        "stride": ([*STEP[0], None], STEP[1]),
        "padding": ([0, 1, (1,)], ["same", 2, -1, 1.0, (1, 1)]),
        "dilation": STEP,
        "return_indices": FLAG,
        "ceil_mode": FLAG,
    }),
    ("AvgPool2d", {"kernel_size": 3}, {
        "kernel_size": SIZES,
        "stride": ([*STEPS[0], None], STEPS[1]),
        "padding": ([0, 1, (1, 0)], ["same", 1.0, -1, 2, None]),
        "ceil_mode": FLAG,
        "count_include_pad": FLAG,
        "divisor_override": ([None, 1, 3, -2, I64(2)], [0, 1.5, "2"]),
    }),
    ("SumPool2d", {"kernel_size": 3}, {
        "kernel_size": SIZES,
        "stride": ([*STEPS[0], None], STEPS[1]),
        "padding": ([0, 1], ["same", 2, -1]),
        "ceil_mode": FLAG,
    }),
    ("AdaptiveAvgPool2d", {"output_size": 2}, {
        "output_size": (
            [1, I64(2), (2, 1), [2, 2], (None, 1), (2, None)],
            ["2", 1.5, -1, (1,), (1, 2, 3), (1, "2"), (1.0, 1)],
        ),
    }),
    ("Flatten", {}, {
        "start_dim": ([0, 1, -3, I64(1)], ["1", 1.0, None, (1,), True]),
        "end_dim": ([-1, 2, I64(2)], ["1", 1.0, None, True]),
    }),
    ("Softmax", {"dim": -1}, {"dim": ([0, 1, -1, I64(1)], ["1", 1.0, (1,), True])}),
    ("LogSoftmax", {"dim": -1}, {"dim": ([0, 1, -1, I64(1)], ["1", 1.0, (1,), True])}),
    ("Dropout", {}, {"p": ([0, 1, 0.5, F32(0.5)], [-0.1, 1.5, NAN, "0.5", None, np.array(0.5)])}),
    ("CrossEntropyLoss", {}, {
        "weight": ([None], [[[1, 2]], "1", 2.0]),
        "ignore_index": ([-100, 1, I64(-1)], [1.5, "1", None, True]),
        "reduction": (["mean", "sum", "none"], ["men", None, "Mean", 1]),
        "label_smoothing": ([0, 0.1, 1], [2, NAN, "a", None]),
    }),
    ("MSELoss", {}, {"reduction": (["mean", "sum", "none"], ["men", None])}),
]  # fmt: skip

#: Where PyTorch lets a mistake pass, of whatever value or of that one.
LAXER = {
    ("Conv2d", "bias"), ("Linear", "bias"), ("MaxPool2d", "return_indices"), ("MaxPool1d", "return_indices"),
    ("Linear", "out_features", "0"), ("Linear", "in_features", "0"), ("Conv2d", "in_channels", "0"),
    ("CrossEntropyLoss", "label_smoothing", "nan"),
}  # fmt: skip
#: And where it refuses what is none.
STRICTER = {("AdaptiveAvgPool2d", "output_size", repr(I64(2)))}

CASES = [
    pytest.param(layer, good, name, value, is_good, id=f"{layer}-{name}-{value!r}")
    for layer, good, arguments in TABLE
    for name, values in arguments.items()
    for is_good, part in zip((True, False), values, strict=True)
    for value in part
]
#: PyTorch has no SumPool2d, other types, and no sizes in arrays.
SHARED = [
    case
    for case in CASES
    if case.values[0] != "SumPool2d" and case.values[2] != "dtype" and not isinstance(case.values[3], np.ndarray)
]
SHAPES = {"Conv1d": (2, 16), "MaxPool1d": (2, 16), "Linear": (8,)}


def run(module, layer, arguments, tensor):
    """Build a layer and run it over an input that it fits."""
    built = getattr(module, layer)(**arguments)
    if layer.endswith("Loss"):
        target = tensor(np.zeros(3, np.int64)) if layer[0] == "C" else tensor(np.zeros((3, 4), np.float32))
        return built(tensor(np.ones((3, 4), np.float32)), target)
    shape = SHAPES.get(layer, (arguments.get("in_channels", 2), 16, 16))
    return built(tensor(np.ones((2, *shape), arguments.get("dtype") or np.float32)))


@pytest.mark.parametrize(("layer", "good", "name", "value", "is_good"), CASES)
def test_an_argument_is_judged_at_construction(layer, good, name, value, is_good):
    """A good one runs; of a bad one the constructor names the layer and the argument."""
    arguments = {**good, name: value}
    if is_good:
        run(nn, layer, arguments, lambda array: array)
        return
    with pytest.raises((TypeError, ValueError), match=rf"^{layer}: (\w+=\S+ does not divide )?{name}\b") as caught:
        getattr(nn, layer)(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not HAS_TORCH, reason="compares with PyTorch")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("layer", "good", "name", "value", "is_good"), SHARED)
def test_pytorch_judges_alike(layer, good, name, value, is_good):
    """PyTorch runs what is good here, and at the latest in forward refuses what is not."""
    import torch

    names = {(layer, name), (layer, name, repr(value))}
    try:
        run(torch.nn, layer, {**good, name: value}, torch.from_numpy)
    except Exception:
        assert not is_good or names & STRICTER
    else:
        assert is_good or names & LAXER


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Conv2d(1, 1, 3, padding="smae"), ValueError,
         "Conv2d: padding must be 'same', 'valid' or sizes, got 'smae'; did you mean 'same'?"),
        (lambda: nn.Conv1d(1, 1, 3, padding="vaild"), ValueError,
         "Conv1d: padding must be 'same', 'valid' or sizes, got 'vaild'; did you mean 'valid'?"),
        (lambda: nn.Conv2d(1, 1, 3, padding="same", stride=(1, 2)), ValueError,
         "Conv2d: padding='same' needs stride 1, got stride=(1, 2); give the padding in numbers"),
        (lambda: nn.Conv1d(1, 1, 3, padding="same", stride=2), ValueError, "Conv1d: padding='same' needs stride 1"),
        (lambda: nn.Conv2d(2, 4, 3, groups=3), ValueError, "Conv2d: groups=3 does not divide in_channels=2"),
        (lambda: nn.MaxPool2d((2, 3), 1, (1, 2)), ValueError,
         "MaxPool2d: padding 2 is more than half of kernel_size=(2, 3)"),
        (lambda: nn.MaxPool2d(2, padding="same"), TypeError, "MaxPool2d: padding must be given in numbers, got 'same'"),
        (lambda: nn.AvgPool2d(2, ceil_mode="no"), TypeError, "AvgPool2d: ceil_mode must be True or False, got 'no'"),
        (lambda: nn.Flatten(2, 1), ValueError, "Flatten: start_dim=2 comes after end_dim=1"),
        (lambda: nn.Flatten(-1, -2), ValueError, "Flatten: start_dim=-1 comes after end_dim=-2"),
        (lambda: nn.Linear(2, 2, dtype="int8"), TypeError,
         "Linear: dtype must be a float type of at most 64 bits, got int8"),
        (lambda: nn.CrossEntropyLoss(reduction="avg"), ValueError,
         "CrossEntropyLoss: reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        (lambda: nn.MSELoss(reduction="sun"), ValueError,
         "MSELoss: reduction must be one of 'mean', 'sum', 'none', got 'sun'; did you mean 'sum'?"),
        (lambda: nn.CrossEntropyLoss(weight=[["a"]]), TypeError, "CrossEntropyLoss: weight: elements must be numbers"),
    ],
)  # fmt: skip
def test_what_a_message_says(build, error, message):
    """The argument, what was given, and what would do."""
    with pytest.raises(error) as caught:
        build()
    assert str(caught.value).startswith(message)


def test_a_list_that_changes_later_changes_nothing():
    """A layer keeps the sizes that it was given, and they are plain integers."""
    sizes = [np.int64(1), np.int64(1)]
    conv, pool = nn.Conv2d(1, 1, 3, padding=sizes), nn.MaxPool2d([3, 3], padding=sizes, dilation=[1, 1])
    sizes[0] = -5
    assert (conv.padding, pool.padding, pool.kernel_size, pool.stride) == ((1, 1), (1, 1), (3, 3), (3, 3))
    assert {type(size) for size in (*conv.padding, *pool.padding, *pool.options["dilation"])} == {int}
    assert conv(np.zeros((1, 5, 5), np.float32)).shape == (1, 5, 5)


def test_the_functions_judge_flags_and_words_alike():
    """As the layers do: a word is no flag, and a misspelt one is told."""
    from gpuconv import functional as F

    image = np.zeros((1, 1, 8, 8), np.float32)
    for call in (
        lambda: F.max_pool2d(image, 2, ceil_mode="no"),
        lambda: F.max_pool2d(image, 2, return_indices="no"),
        lambda: F.avg_pool2d(image, 2, count_include_pad="no"),
    ):
        with pytest.raises(TypeError, match=r"_pool2d: \w+ must be True or False, got 'no'"):
            call()
    with pytest.raises(ValueError, match=r"conv2d: padding must be .*did you mean 'same'"):
        F.conv2d(image, np.zeros((1, 1, 3, 3), np.float32), padding="sme")
    with pytest.raises(ValueError, match=r"mse_loss: reduction must be one of .*did you mean 'mean'"):
        F.mse_loss(image, image, reduction="maen")
