"""Recognises the kind of a target from its form and that of the logits."""

from collections.abc import Collection
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

Kind = Literal["classes", "ignored", "soft", "labels", "logit", "number"]

ANY: tuple[Kind, ...] = get_args(Kind)
"""For a method that only passes the target to its criterion."""

SINGLE: tuple[Kind, ...] = ("classes", "ignored", "soft")
"""For a method that takes the softmax of its logits as class probabilities."""

_IN_WORDS: dict[Kind, str] = {
    "classes": "class numbers",
    "ignored": "class numbers with an `ignore_index`",
    "soft": "soft labels",
    "labels": "several labels per sample",
    "logit": "one logit for two classes",
    "number": "regression targets",
}

_CRITERIA: dict[Kind, tuple[Any, ...]] = {
    "soft": (
        nn.CrossEntropyLoss,
        nn.KLDivLoss,
        nn.functional.cross_entropy,
        nn.functional.kl_div,
    ),
    "labels": (
        nn.BCEWithLogitsLoss,
        nn.MultiLabelSoftMarginLoss,
        nn.functional.binary_cross_entropy_with_logits,
        nn.functional.multilabel_soft_margin_loss,
    ),
    "number": (
        nn.MSELoss,
        nn.L1Loss,
        nn.SmoothL1Loss,
        nn.HuberLoss,
        nn.functional.mse_loss,
        nn.functional.l1_loss,
        nn.functional.smooth_l1_loss,
        nn.functional.huber_loss,
    ),
}
"""torch's criteria, as modules and functions, by what a row of targets means to them."""


def in_words(kinds: Collection[Kind]) -> str:
    """The kinds as words in a sentence; 'any' for all of them."""
    if set(kinds) == set(ANY):
        return "any"
    return ", ".join(_IN_WORDS[kind] for kind in ANY if kind in kinds)


def kinds(logits: Tensor, target: Tensor, criterion: Any = None) -> tuple[Kind, ...]:
    """What kinds the target of a batch may be; several if their forms are the same.

    Args:
        logits: (n, c), the fused prediction.
        target: Target of the batch, in any form.
        criterion: If it is one of torch's modules, it decides what numbers mean; otherwise their
            values do, as far as possible. Its `ignore_index` marks rows that do not count, -100 by
            default; for a function that hides it, any number that is not a class. Reading values
            waits for a device.

    Returns:
        Empty if the form is unknown.
    """
    one = logits.ndim == 2 and logits.shape[1] == 1
    if target.ndim == 2 and target.shape == logits.shape:
        return _column(target, criterion) if one else _rows(target, criterion)
    if target.ndim != 1:
        return ()
    if one:
        return _column(target, criterion)
    if target.is_floating_point():
        return ("number",)
    if target.is_meta:
        return ("classes",)
    return ("classes",) if counted(target, logits.shape[1], criterion).all() else ("ignored",)


def plain(target: Tensor) -> Tensor:
    """Class numbers as int64, since bytes used as an index would be a mask."""
    return target.long() if target.dtype == torch.uint8 and target.ndim == 1 else target


def counted(target: Integer[Tensor, " n"], classes: int, criterion: Any) -> Bool[Tensor, " n"]:
    """Which samples with class numbers the criterion counts."""
    here = target != ignored_by(criterion)
    if not _tells_ignored(criterion):  # then it ignores whatever is not a class
        here &= (target >= 0) & (target < classes)
    return here


def ignored_by(criterion: Any) -> int:
    """The class number of samples without a label; cross-entropy's default is -100."""
    found = getattr(criterion, "ignore_index", None)
    if isinstance(criterion, partial):
        found = criterion.keywords.get("ignore_index", ignored_by(criterion.func))
    return -100 if found is None else int(found)


def _tells_ignored(criterion: Any) -> bool:
    if isinstance(criterion, partial):
        return "ignore_index" in criterion.keywords or _tells_ignored(criterion.func)
    is_known = criterion is None or criterion is nn.functional.cross_entropy
    return is_known or hasattr(criterion, "ignore_index")


def _column(target: Tensor, criterion: Any) -> tuple[Kind, ...]:
    if _told(criterion) == "labels":  # smoothed labels are not 0 and 1
        return ("logit",)
    if _told(criterion) == "number" or not ((target == 0) | (target == 1)).all():
        return ("number",)
    return ("logit", "number")


def _rows(target: Tensor, criterion: Any) -> tuple[Kind, ...]:
    if told := _told(criterion):
        return (told,)
    if not target.is_floating_point():
        return ("labels",)
    sums = target.sum(1)
    shares = bool((target >= 0).all() & torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all())
    return ("soft",) if shares else ("labels", "number")


def _told(criterion: Any) -> Kind | None:
    function = criterion.func if isinstance(criterion, partial) else criterion
    for kind, criteria in _CRITERIA.items():
        for known in criteria:
            if isinstance(criterion, known) if isinstance(known, type) else function is known:
                return kind
    return None


def refusal(
    name: str, takes: Collection[Kind], found: Collection[Kind], logits: Tensor, target: Tensor
) -> str:
    """Why a method does not accept a target, in a sentence."""
    what = " or ".join(_IN_WORDS[kind] for kind in found) or "a form that evenly does not know"
    dtype = str(target.dtype).removeprefix("torch.")
    return (
        f"{name} takes {in_words(takes)}; found {what}: a target of {dtype} and shape "
        f"{tuple(target.shape)} for logits of shape {tuple(logits.shape)}. Joint training "
        "(evenly.Method) takes any target that its criterion does; `evenly methods NAME` and the "
        "page of methods say what each of the others takes."
    )
