"""Losses for unbalanced classes and labels, for any loop: the `criterion` of a method."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.modulation import full
from evenly.ranges import check_range
from evenly.targets import ignored_by


def balanced_weights(target: Int[Tensor, " n"], classes: int) -> Float[Tensor, " k"]:
    """Class weights that make all classes count the same in total: n / (k n_c).

    They equal scikit-learn's `balanced`: their mean over the samples is 1.

    Args:
        target: Class of each sample of the training split, from 0.
        classes: k, the number of classes.

    Raises:
        ValueError: If a class has no sample, so no weight is right for it.
    """
    counts = target.long().bincount(minlength=classes)
    if missing := torch.nonzero(counts == 0).flatten().tolist():
        raise UserError(
            f"balanced_weights: no sample is of class {', '.join(map(str, missing[:5]))}, so it "
            "has no weight. Split again so that every class is in the training split, or leave it "
            "out."
        )
    return len(target) / (classes * counts.float())


class CrossEntropy(nn.CrossEntropyLoss):
    """Torch's cross-entropy for logits of any precision, to which it converts the weights.

    The mean of a batch divides by the sum of its samples' weights, so only the ratios of weights
    matter.
    """

    def __init__(
        self, weight: Float[Tensor, " k"] | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        """Prepares the loss.

        Args:
            weight: Weight of each class, for example from `balanced_weights`.
            label_smoothing: Share of the label that is spread evenly over all classes, from 0 to 1.

        Raises:
            ValueError: If it is out of range.
        """
        super().__init__(weight, label_smoothing=label_smoothing)
        check_range(self, "from 0 to 1", label_smoothing=label_smoothing)

    def forward(self, logits: Float[Tensor, "n k"], target: Tensor) -> Float[Tensor, ""]:
        """The mean loss of a batch."""
        logits = full(logits)
        weight = None if self.weight is None else self.weight.to(logits)
        return nn.functional.cross_entropy(
            logits, target, weight, label_smoothing=self.label_smoothing
        )


class Focal(nn.Module):
    """Cross-entropy in which well-classified samples count less: -w_y (1 - p_y)^γ log p_y.

    Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
    https://arxiv.org/abs/1708.02002, equation 5, with a softmax over several classes and class
    weights w for α. The mean of a batch divides by the sum of its samples' weights, as in torch's
    cross-entropy, which this equals for γ = 0.

    Attributes:
        ignore_index: The class number of samples without a label.
    """

    ignore_index = -100

    def __init__(self, gamma: float = 2.0, weight: Float[Tensor, " k"] | None = None) -> None:
        """Prepares the loss.

        Args:
            gamma: γ, how much less; not negative, 2 in the paper.
            weight: Weight of each class, for example from `balanced_weights`.

        Raises:
            ValueError: If γ is negative or not finite.
        """
        super().__init__()
        check_range(self, "finite and not negative", gamma=gamma)
        self.gamma = gamma
        self.weight: Tensor | None
        self.register_buffer("weight", weight)

    def forward(self, logits: Float[Tensor, "n k"], target: Tensor) -> Float[Tensor, ""]:
        """The mean loss of a batch.

        Raises:
            ValueError: If the target is not one class number for each sample.
        """
        if target.ndim != 1 or target.is_floating_point() or logits.shape[1] < 2:
            raise UserError(
                "Focal takes class numbers, one for each sample, and a logit for each class; found "
                f"a target of {str(target.dtype).removeprefix('torch.')} and shape "
                f"{tuple(target.shape)} for logits of shape {tuple(logits.shape)}. Use another "
                "criterion."
            )
        weight = weights(self, target).to(full(logits))
        true = target.long().where(weight > 0, 0).unsqueeze(1)
        log_p = full(logits).log_softmax(1).gather(1, true).squeeze(1)
        # If γ is below 1, the power has no finite slope at 0.
        unknown = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(weight * unknown**self.gamma * log_p).sum() / weight.sum()


class BinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """Torch's loss for several labels, for logits of any precision, with label smoothing."""

    def __init__(
        self, pos_weight: Float[Tensor, " c"] | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        """Prepares the loss.

        Args:
            pos_weight: For each label, the weight of having it relative to not having it.
            label_smoothing: Share of each 0 and 1 that is spread evenly over both, from 0 to 1.

        Raises:
            ValueError: If it is out of range.
        """
        super().__init__(pos_weight=pos_weight)
        check_range(self, "from 0 to 1", label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Float[Tensor, "n c"], target: Tensor) -> Float[Tensor, ""]:
        """The mean loss of all labels of a batch."""
        logits = full(logits)
        smoothed = target.to(logits).lerp(logits.new_tensor(0.5), self.label_smoothing)
        weight = None if self.pos_weight is None else self.pos_weight.to(logits)
        return nn.functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weight)


class SigmoidFocal(nn.BCEWithLogitsLoss):
    """Binary cross-entropy in which well-classified labels count less: -w (1 - p)^γ log p.

    Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
    https://arxiv.org/abs/1708.02002, equation 5, with p the probability of a label's true state,
    and the weight w of having a label for α / (1 - α). The mean is over all labels of a batch,
    while the paper's sum divides by the number of objects.
    """

    def __init__(self, gamma: float = 2.0, pos_weight: Float[Tensor, " c"] | None = None) -> None:
        """Prepares the loss.

        Args:
            gamma: γ, how much less; not negative, 2 in the paper.
            pos_weight: For each label, the weight of having it relative to not having it.

        Raises:
            ValueError: If γ is negative or not finite.
        """
        super().__init__(pos_weight=pos_weight)
        check_range(self, "finite and not negative", gamma=gamma)
        self.gamma = gamma

    def forward(self, logits: Float[Tensor, "n c"], target: Tensor) -> Float[Tensor, ""]:
        """The mean loss of all labels of a batch.

        Raises:
            ValueError: If the target is not one number for each logit.
        """
        if target.shape != logits.shape:
            raise UserError(
                "SigmoidFocal takes 0 or 1 for each logit; found a target of shape "
                f"{tuple(target.shape)} for logits of shape {tuple(logits.shape)}. Use another "
                "criterion."
            )
        logits = full(logits)
        target = target.to(logits)
        weight = 1.0 if self.pos_weight is None else self.pos_weight.to(logits)
        has, lacks = (nn.functional.logsigmoid(x) for x in (logits, -logits))
        # Powers of p as exponentials: with a small γ, plain powers have no finite slope at 0.
        of_one = weight * (self.gamma * lacks).exp() * has
        of_none = (self.gamma * has).exp() * lacks
        return -(target * of_one + (1 - target) * of_none).mean()


def weights(criterion: Any, target: Tensor) -> Float[Tensor, " n"]:
    """The weight of each sample in a criterion's mean, which divides by their sum.

    Args:
        criterion: Cross-entropy or `Focal`, whose class weights apply. With any other criterion,
            and with targets that are not class numbers, all samples weigh the same.
        target: Target of a batch.
    """
    one = torch.ones(len(target), device=target.device)
    if not _is_of_classes(criterion) or target.ndim != 1 or target.is_floating_point():
        return one
    here = target != ignored_by(criterion)
    weight = _setting(criterion, "weight")
    if weight is not None:
        one = weight.to(target.device)[target.long().where(here, 0)]
    return one.where(here, 0)


def partitions(
    criterion: Any, logits: Float[Tensor, "n k"], target: Tensor
) -> Float[Tensor, " n"] | None:
    """The factor a_i of each sample's log Σ_k exp z_ik in a cross-entropy; None if all are 1 / n.

    The rest of the loss is linear in the logits, so a method may replace a sample's own partition
    function with another.

    Args:
        criterion: Cross-entropy, with class weights and label smoothing if wanted.
        logits: Logits of a batch.
        target: Class numbers, or shares of the classes.
    """
    weight = _setting(criterion, "weight") if _is_of_classes(criterion) else None
    if weight is None:
        return None
    weight = weight.to(logits)
    smoothed = float(_setting(criterion, "label_smoothing") or 0)
    if target.is_floating_point():
        shares, total = target.to(logits), len(target)
    else:
        shares = nn.functional.one_hot(target.long(), len(weight)).to(logits)
        total = (shares @ weight).sum()
    found: Tensor = ((1 - smoothed) * (shares @ weight) + smoothed * weight.mean()) / total
    return found


def _is_of_classes(criterion: Any) -> bool:
    function = criterion.func if isinstance(criterion, partial) else criterion
    return function is nn.functional.cross_entropy or isinstance(
        criterion, nn.CrossEntropyLoss | Focal
    )


def _setting(criterion: Any, name: str) -> Any:
    if isinstance(criterion, partial):
        return criterion.keywords.get(name)
    return getattr(criterion, name, None)
