"""`bench.static --step`: what a captured step of LeNet launches, and how it is shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import longest_path, step
from gpuconv import backends

if backends.available()["cuda"] is not None or backends.get("cuda").automatic():
    pytest.skip(f"needs the simulator: {backends.available()['cuda']}", allow_module_level=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 64, 128, 512])
def test_a_step_is_ten_kernels(batch, optimizer):
    """About ten, one more or less where the rule cuts otherwise; none moves much more than it has to."""
    launches = step.record(batch, optimizer)
    names = [one.kernel for one in launches]
    split, pair = "linear_chain_first" in names, "conv2d_relu_max_pool2d_pair" in names
    assert len(launches) <= 10 + split - pair
    assert (split, pair) == (batch == 64, batch in (64, 128))
    assert names[-1] == f"{optimizer}_update_all"
    # Image, weights and biases read; a pooled map, and a byte for each of its elements, written, and read by the next.
    blocks = 4 * (batch * 1024 + 156) + 5 * batch * 1176, 4 * (batch * 1176 + 2416) + 5 * batch * 400
    blocks = (sum(blocks) - 4 * batch * 1176,) if pair else blocks
    assert [one.bytes for one in launches[: len(blocks)]] == [*blocks]
    assert launches[0].arguments == (9 if pair else 6)
    # Each operation is found once: those of the forward pass have all of its multiply-adds.
    assert sum(one.flop for one in launches[: 3 + split - pair]) == 2 * batch * step.FORWARD_MACS
    assert all(one.flop for one in launches)


def test_the_longest_path():
    """At batch 64 each of six kernels waits for the one before; before that there were eight, and nine."""

    def path(variants):
        nodes = longest_path.nodes(64, variants=variants)
        # About what an H100 takes: of memory that is used again, there may be other edges, which decide nothing then.
        costs = [
            {block: 4.0, f"{block}_grad_input": 7.0, f"{block}_grad_weight": 4.0}.get(node.kernel, 2.0)
            for node in nodes
        ]
        return [nodes[at].kernel for at in longest_path.longest(nodes, costs)]

    block = "conv2d_relu_max_pool2d"
    first, before, now, _ = map(path, longest_path.COMPOSITIONS.values())
    gradients, update = [f"{block}_grad_input", f"{block}_grad_weight"], "sgd_update_all"
    chain = ["linear_chain", "softmax_cross_entropy_mean", "linear_chain_grad_input"]
    split = ["linear_chain_first", "linear_chain_loss_grad_input"]
    assert first == [block, block, *chain, *gradients, "sum_parts_of_two", update]
    assert before == [block, block, *split, *gradients, "sum_parts_of_two", update]
    assert now == [f"{block}_pair", *split, *gradients, update]


@pytest.mark.parametrize("augment", [False, True])
def test_what_training_adds(augment):
    """One kernel makes the batch and one counts, whatever their sizes; their bytes are those that have to move."""
    batch = 100
    gather, count = step.around(batch, augment=augment)
    assert (gather.kernel, count.kernel) == ("image_batch", "count_correct")
    # Of each image its pixels, its number, its label (read, and written) and its transform; table, inputs, the step.
    assert gather.bytes == batch * (28 * 28 + 3 * 8 + (24 if augment else 0)) + 256 * 4 + batch * 4 * 32 * 32 + 4
    # Logits and labels; loss and its place in the log, count, number of the step.
    assert count.bytes == batch * (40 + 8) + 4 * 4


def test_the_floor():
    """The work of a step is that of its layers, counted from their sizes here and there."""
    layers = [(1, 28, 6, 5), (6, 10, 16, 5)]
    convolutions = sum(c * k * size * size * taps * taps for c, size, k, taps in layers)
    assert convolutions + 400 * 120 + 120 * 84 + 84 * 10 == step.FORWARD_MACS == 416_520
    assert step.BACKWARD_MACS == 715_440
    assert step.FORWARD_BYTES == 19_992


@pytest.mark.slow
def test_the_command(tmp_path):
    """A table with a row for each launch and their sums; the same as JSON; what does not fit is one line."""

    def run(*arguments):
        command = [sys.executable, "-m", "bench.static", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    path = tmp_path / "step.json"
    text = run("--model", "lenet", "--step", "--batch", 8, "--json", path).stdout.splitlines()
    assert text[0].split() == ["kernel", "blocks", "threads", "arguments", "bytes", "FLOP"]
    assert text[11].startswith("10 kernels")
    document = json.loads(path.read_text())
    assert document["settings"] == {"model": "lenet", "batch": 8, "optimizer": "sgd", "augment": False}
    assert [one["kernel"] for one in document["launches"]] == [line.split()[0] for line in text[1:11]]
    assert f"{sum(one['bytes'] for one in document['launches']):,}" == text[11].split()[-2]
    assert text[12:16] == ["", "in gpuconv train also", *text[14:16]]
    assert [one["kernel"] for one in document["around"]] == [line.split()[0] for line in text[14:16]]
    for arguments, words in (
        (("--step", "--batch", 0), "--batch: '0' is not a whole number"),
        (("--batch", 8), "--batch is of a training step: add --step"),
        (("--augment",), "--augment is of a training step: add --step"),
        (("--step", "--path", "--augment"), "they are not on its --path"),
        (("--step", "--model", "vgg"), "--model: invalid choice: 'vgg'"),
    ):
        wrong = run(*arguments)
        assert wrong.returncode == 2
        assert words in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
