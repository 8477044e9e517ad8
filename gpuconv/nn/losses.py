"""Losses as modules, with PyTorch's names, arguments and defaults; ``gpuconv.functional`` documents them."""

from __future__ import annotations

from typing import Any

from gpuconv import functional as F
from gpuconv.autograd import Tensor
from gpuconv.nn.module import Calling, Module

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CosineEmbeddingLoss",
    "CosineSimilarity",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MarginRankingLoss",
    "NLLLoss",
    "PairwiseDistance",
    "PoissonNLLLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "TripletMarginLoss",
]


_REDUCTIONS = ("mean", "sum", "none")


class _Loss(Calling):
    """Calls a loss function with the module's options, which are its attributes."""

    def __init__(self, reduction: str, choices: tuple[str, ...] = _REDUCTIONS, **options: Any):
        super().__init__()
        if reduction not in choices:
            wanted = ", ".join(map(repr, choices))
            raise ValueError(f"{type(self).__name__}: reduction must be one of {wanted}, got {reduction!r}")
        self.reduction = reduction
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def _keep(self, name: str, values: Any) -> None:
        """Register an option that is an array or None as a buffer."""
        self.register_buffer(name, None if values is None else Tensor(values))
        self._names += (name,)

    def forward(self, *inputs: Any) -> Any:
        options = {name: getattr(self, name) for name in self._names}
        return type(self).function(*inputs, reduction=self.reduction, **options)


class L1Loss(_Loss, function=F.l1_loss):
    """See :func:`gpuconv.functional.l1_loss`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(reduction)


class SmoothL1Loss(_Loss, function=F.smooth_l1_loss):
    """See :func:`gpuconv.functional.smooth_l1_loss`."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction, beta=beta)


class HuberLoss(_Loss, function=F.huber_loss):
    """See :func:`gpuconv.functional.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction, delta=delta)


class NLLLoss(_Loss, function=F.nll_loss):
    """See :func:`gpuconv.functional.nll_loss`."""

    def __init__(self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__(reduction, ignore_index=ignore_index)
        self._keep("weight", weight)


class BCELoss(_Loss, function=F.binary_cross_entropy):
    """See :func:`gpuconv.functional.binary_cross_entropy`."""

    def __init__(self, weight: Any = None, reduction: str = "mean"):
        super().__init__(reduction)
        self._keep("weight", weight)


class BCEWithLogitsLoss(_Loss, function=F.binary_cross_entropy_with_logits):
    """See :func:`gpuconv.functional.binary_cross_entropy_with_logits`."""

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None):
        super().__init__(reduction)
        self._keep("weight", weight)
        self._keep("pos_weight", pos_weight)


class KLDivLoss(_Loss, function=F.kl_div):
    """See :func:`gpuconv.functional.kl_div`."""

    def __init__(self, reduction: str = "mean", log_target: bool = False):
        super().__init__(reduction, (*_REDUCTIONS, "batchmean"), log_target=log_target)


class PoissonNLLLoss(_Loss, function=F.poisson_nll_loss):
    """See :func:`gpuconv.functional.poisson_nll_loss`."""

    def __init__(self, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(reduction, log_input=log_input, full=full, eps=eps)


class GaussianNLLLoss(_Loss, function=F.gaussian_nll_loss):
    """See :func:`gpuconv.functional.gaussian_nll_loss`."""

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean"):
        super().__init__(reduction, full=full, eps=eps)


class MarginRankingLoss(_Loss, function=F.margin_ranking_loss):
    """See :func:`gpuconv.functional.margin_ranking_loss`."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction, margin=margin)


class HingeEmbeddingLoss(_Loss, function=F.hinge_embedding_loss):
    """See :func:`gpuconv.functional.hinge_embedding_loss`."""

    def __init__(self, margin: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction, margin=margin)


class SoftMarginLoss(_Loss, function=F.soft_margin_loss):
    """See :func:`gpuconv.functional.soft_margin_loss`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(reduction)


class CosineEmbeddingLoss(_Loss, function=F.cosine_embedding_loss):
    """See :func:`gpuconv.functional.cosine_embedding_loss`."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction, margin=margin)


class TripletMarginLoss(_Loss, function=F.triplet_margin_loss):
    """See :func:`gpuconv.functional.triplet_margin_loss`."""

    def __init__(
        self, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6, swap: bool = False, reduction: str = "mean"
    ):
        super().__init__(reduction, margin=margin, p=p, eps=eps, swap=swap)


class CosineSimilarity(Module):
    """See :func:`gpuconv.functional.cosine_similarity`."""

    def __init__(self, dim: int = 1, eps: float = 1e-8):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x1: Any, x2: Any) -> Any:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Module):
    """See :func:`gpuconv.functional.pairwise_distance`."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False):
        super().__init__()
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, x1: Any, x2: Any) -> Any:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)
