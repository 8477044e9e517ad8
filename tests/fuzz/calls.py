"""Calls of operations that have PyTorch's names, for programs: what they do to a shape is told in a word.

``{x}`` stands for a value, ``{d}`` for one of its dimensions, ``{y}`` for a target of its shape between 0 and 1. What
PyTorch computes less exactly than is compared here, as hardsigmoid with its sixth in float32, is in another test.
"""

#: The same shape; of any value.
SAME_SHAPE = [
    "F.leaky_relu({x}, 0.1)", "F.elu({x}, 0.5)", "F.celu({x}, 1.5)", "F.selu({x})", "F.gelu({x})",
    "F.gelu({x}, approximate='tanh')", "F.silu({x})", "F.mish({x})", "F.relu6({x})", "F.hardtanh({x}, -0.7, 1.3)",
    "F.hardswish({x})", "F.hardshrink({x}, 0.3)", "F.softshrink({x}, 0.3)", "F.tanhshrink({x})",
    "F.softplus({x}, 2.0)", "F.softsign({x})", "F.logsigmoid({x})", "F.threshold({x}, 0.2, -1.0)",
    "F.softmin({x}, {d})", "F.normalize({x}, 2.0, {d}, 0.1)", "F.layer_norm({x}, ({x}.shape[-1],), eps=0.1)",
    "nn.LeakyReLU(0.2)({x})", "nn.GELU()({x})", "nn.SiLU()({x})", "nn.Hardtanh()({x})", "nn.ELU()({x})",
    "nn.Identity()({x})",
]  # fmt: skip
#: Likewise, of a Tensor alone.
METHODS = [
    "{x}.abs()", "{x}.neg()", "{x}.square()", "{x}.sin()", "{x}.cos()", "{x}.clamp(-0.6, 0.9)", "{x}.clamp(min=0.1)",
    "{x}.clone()", "{x}.maximum({x} * 0.5)", "{x}.minimum(-{x})", "({x}.abs() + 0.2).sqrt()",
    "({x}.abs() + 0.3).rsqrt()", "({x}.abs() + 0.5).reciprocal()", "({x}.abs() + 1).log2()", "{x}.flip({d})",
    "{x}.cumsum({d})", "{x}.masked_fill({x} > 0.4, 0.25)", "{x}.unsqueeze({d}).squeeze({d})", "{x}.transpose(0, {d})"
    ".transpose(0, {d})", "cat([{x}, {x} * 2], {d}).chunk(2, {d})[1]" , "stack([{x}, {x} * 3], 0).mean(0)",
    "stack([{x}, -{x}], {d}).amax({d})", "cat([{x}, {x}], {d}).narrow({d}, 0, {x}.shape[{d}])",
    "({x} - {x}.mean({d}, keepdim=True))", "({x} - {x}.amax({d}, keepdim=True)).exp()",
]  # fmt: skip
#: A single number; of a Tensor.
NUMBERS = [
    "{x}.mean()", "{x}.var()", "{x}.std()", "{x}.amax()", "{x}.amin()", "{x}.max()", "{x}.min()",
    "({x} * 0.3 + 1).prod()", "{x}.reshape(-1).logsumexp(0)", "{x}.norm()", "F.l1_loss({x}, {y})",
    "F.smooth_l1_loss({x}, {y}, beta=0.4)", "F.huber_loss({x}, {y}, delta=0.6)",
    "F.binary_cross_entropy_with_logits({x}, {y})", "F.binary_cross_entropy(F.sigmoid({x}), {y})",
    "F.kl_div(F.log_softmax({x}, {d}), {y}, reduction='sum')", "nn.L1Loss()({x}, {y})", "nn.SmoothL1Loss()({x}, {y})",
    "nn.BCEWithLogitsLoss()({x}, {y})",
]  # fmt: skip
