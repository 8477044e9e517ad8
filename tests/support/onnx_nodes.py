"""The ONNX backend tests: what the `onnx` wheel carries to judge whoever runs its graphs.

For every operator there are small models with inputs and expected outputs, of one node or, "expanded", of the smaller
operators that define it; and others that PyTorch exported. :func:`collect` lists all of them, and :func:`why_not` is
the whole rule by which one does not apply; everything else has to pass.

``python tests/support/onnx_nodes.py`` prints the table.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

if __name__ == "__main__":  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).parents[1]))
from support.shared import kept

import gpuconv.onnx
from gpuconv.onnx.node import OPERATORS
from gpuconv.onnx.reading import OLDEST_OPSET

#: Sets of models that lie in the wheel as files; those of kind "node" it generates.
STORED_KINDS = ("pytorch-converted", "pytorch-operator", "simple")

#: Element types that gpuconv has, as the wheel's arrays have them.
TYPES = {"float16", "bfloat16", "float32", "float64", "bool"}
TYPES |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

#: Tests that do not apply although their operators and types do: the end of the name, and why.
EXCLUDED = {
    "test_training_dropout": "the expected values are one generator's random numbers",
    "test_training_dropout_default": "the expected values are one generator's random numbers",
    "test_training_dropout_mask": "the expected values are one generator's random numbers",
    "test_training_dropout_default_mask": "the expected values are one generator's random numbers",
    "test_col2im_5d": "gpuconv folds two dimensions",
}


@dataclass(frozen=True)
class Case:
    """One test: a model, what goes in and what comes out."""

    name: str
    model: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    def __str__(self) -> str:
        return self.name

    @property
    def operators(self) -> set[str]:
        """The types of its nodes, those of other domains with the domain."""
        return {n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}.{n.op_type}" for n in self.model.graph.node}


def collect() -> list[Case]:
    """All backend tests of the installed onnx wheel, applicable or not."""
    return [*_generated(), *_stored()]


def collected(folder: Path) -> list[Case]:
    """The same, kept in a file of the folder: it takes seconds to generate them, and each process wants them."""
    source = f"{onnx.__version__} {np.__version__} {sys.version} {Path(__file__).read_text(encoding='utf-8')}"
    name = f"onnx-nodes-{hashlib.sha256(source.encode()).hexdigest()[:16]}.pickle"
    cases: list[Case] = pickle.loads(kept(folder / name, lambda: pickle.dumps(collect())))
    return cases


def _generated() -> Iterable[Case]:
    with warnings.catch_warnings():
        # Building the cases overflows casts on purpose.
        warnings.simplefilter("ignore")
        np.random.seed(0)  # noqa: NPY002 - the wheel draws its inputs from the global generator
        tests = collect_testcases(None)
    for test in tests:
        for inputs, outputs in test.data_sets:
            yield _case(f"node/{test.name}", test, test.model, inputs, outputs)


def _stored() -> Iterable[Case]:
    for kind in STORED_KINDS:
        for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            tensors_only = all(
                value.type.HasField("tensor_type") for value in (*model.graph.input, *model.graph.output)
            )
            for data in sorted(folder.glob("test_data_set_*")):
                inputs, outputs = (_tensors(data, name) if tensors_only else [] for name in ("input", "output"))
                yield _case(f"{kind}/{test.name}", test, model, inputs, outputs)


def _tensors(folder: Path, prefix: str) -> list[Any]:
    count = len(list(folder.glob(f"{prefix}_*.pb")))
    return [numpy_helper.to_array(onnx.load_tensor(folder / f"{prefix}_{i}.pb")) for i in range(count)]


def _case(name: str, test: Any, model: Any, inputs: Any, outputs: Any) -> Case:
    arrays = [
        tuple(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in values)
        for values in (inputs, outputs)
    ]
    return Case(name, model, *arrays, test.rtol, test.atol)


# Which apply


def why_not(case: Case) -> str | None:
    """Why a test does not apply to gpuconv; None if it does. The first reason that fits is the one given."""
    if case.operators - set(OPERATORS):
        return "operators that gpuconv does not have"
    if not all(value.type.HasField("tensor_type") for value in (*case.model.graph.input, *case.model.graph.output)):
        return "values that are no tensors"
    if min(entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx")) < OLDEST_OPSET:
        return f"opset below {OLDEST_OPSET}"
    if _types(case) - TYPES:
        return "element types that gpuconv does not compute in"
    return EXCLUDED.get(case.name.partition("/")[2])


def _types(case: Case) -> set[str]:
    found = {str(np.asarray(value).dtype) for value in (*case.inputs, *case.outputs)}
    declared = [value.type.tensor_type.elem_type for value in (*case.model.graph.input, *case.model.graph.output)]
    return found | {str(onnx.helper.tensor_dtype_to_np_dtype(number)) for number in declared}


def summary(cases: Iterable[Case]) -> Counter[str]:
    """How many tests apply, and how many do not for each reason."""
    return Counter(why_not(case) or "apply" for case in cases)


def run(case: Case) -> tuple[np.ndarray, ...]:
    """The model's outputs, computed by gpuconv."""
    result = gpuconv.onnx.load(case.model)(*case.inputs)
    return tuple(output.numpy() for output in (result if isinstance(result, tuple) else (result,)))


if __name__ == "__main__":
    everything = collect()
    for each in everything:
        print(f"{each.name:<90}{why_not(each) or 'applies'}")
    print(f"operators of tests that apply: {len(set().union(*(c.operators for c in everything if not why_not(c))))}")
    print(*[f"{count:>6}  {what}" for what, count in summary(everything).most_common()], sep="\n")
