"""What a frozen encoder knows: the accuracy of a linear classifier on its representations.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR 2017
workshop, https://arxiv.org/abs/1610.01644; Figure 1 b and c of Wei et al., ECCV 2024, plot it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from evenly.diagnosis.rows import floats
from evenly.features import Features

STEPS = 500
TOLERANCE = 1e-4
"""Size of each element of the mean loss's gradient at which the fit ends."""


@dataclass(frozen=True)
class Read:
    """What a linear classifier reads from the features of each sample of a split.

    Attributes:
        rows: The samples that have the modality, by their position in the split.
        log: Their log-probability of each class, up to the highest class in either split.
    """

    rows: Int[Tensor, " k"]
    log: Float[Tensor, "k c"]

    def right(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, " n"]:
        """Whether each sample of the split is read correctly; one without the modality is not."""
        found = torch.zeros_like(target, dtype=torch.bool)
        found[self.rows] = self.log.argmax(1) == target[self.rows]
        return found

    def luck(self, target: Shaped[Tensor, "n *c"]) -> Float[Tensor, " n"]:
        """For each sample, the share of all guesses that name its class.

        That is how often it would be read correctly if guesses were shuffled over the samples.
        """
        guesses = self.log.argmax(1).bincount(minlength=self.log.shape[1])
        return (guesses.double() / max(len(self.rows), 1))[target]


@dataclass(frozen=True)
class ReadLabels(Read):
    """The same for several labels; `log` has the log-odds of each.

    Attributes:
        above: (c,) The threshold above which log-odds predict a label; see `cut`.
    """

    above: Float[Tensor, " c"]

    def right(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, " n"]:
        """Values whose mean over the samples that have the modality is `balanced` accuracy."""
        found = torch.zeros(len(target), dtype=torch.float64, device=target.device)
        own = target[self.rows] > 0
        found[self.rows] = balanced((self.log > self.above) == own, own)
        return found

    def luck(self, target: Shaped[Tensor, "n *c"]) -> Float[Tensor, " n"]:
        """½, which any guesses reach when shuffled."""
        return torch.full((len(target),), 0.5, dtype=torch.float64, device=target.device)


def balanced(right: Shaped[Tensor, "n c"], has: Shaped[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Values of samples whose mean is the balanced accuracy, averaged over labels.

    For each label, that is the mean of two shares: of the samples with it that get it, and of the
    samples without it that do not. The values' spread is how it varies over draws of the samples:
    1/n of a sample's value is how far it moves the mean (its influence).

    Args:
        right: Whether each label of each sample is decided correctly; between 0 and 1 for a mean of
            several decisions.
        has: Whether the sample has the label. Labels that all samples have, or none, are left out.
    """
    here, right = (has > 0).double(), right.double()
    count = here.sum(0)
    known = (count > 0) & (count < len(here))
    here, right, count = here[:, known], right[:, known], count[known]
    value = torch.zeros_like(right)
    for one, size in ((here, count), (1 - here, len(here) - count)):
        share = (right * one).sum(0) / size
        value += (share + len(here) / size * one * (right - share)) / 2
    return value.mean(1)


def cut(log: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Thresholds of log-odds for labels: halfway between the samples with a label and without.

    There, both kinds are equally likely if they are equally many. At a probability of ½, a rare
    label would hardly ever be predicted, however well it is recognised.

    Args:
        log: Log-odds, or any logits, of the training samples.
        target: Their labels. A label that all have is always predicted, one that none has never.
    """
    has = (target > 0).to(log)
    count = has.sum(0)
    mean = [(log.nan_to_num() * one).sum(0) / one.sum(0).clamp_min(1) for one in (has, 1 - has)]
    found = (mean[0] + mean[1]) / 2
    found = torch.where(count == 0, math.inf, found)
    return torch.where(count == len(has), -math.inf, found)


def read(train: Features, test: Features) -> dict[str, Read]:
    """Logistic regression by modality, fitted on one split and applied to another.

    For several labels per sample, one is fitted for each label (`ReadLabels`).

    Each feature is standardised by the training split. The weights have the penalty ½|W|² beside
    the sum of all losses, scikit-learn's default (C = 1). Samples that lack the modality count in
    neither split.

    Args:
        train: Features to fit the classifier on, with classes as targets, or (n, c) labels, 1 or 0.
        test: Features to apply it to.

    Returns:
        Results by modality, without modalities that no sample of a split has.
    """
    of_labels = train.target.ndim == 2
    classes = int(max(split.target.max() for split in (train, test) if len(split.target))) + 1
    found: dict[str, Read] = {}
    for name in train.features:
        (_, x, y), (rows, unseen, _) = _rows(train, name), _rows(test, name)
        if not len(y) or not len(rows):
            continue
        unseen = unseen.to(x.device)
        if of_labels:
            both = torch.cat([x, unseen])
            log = torch.stack([_odds(x, label, both) for label in y.T.long()], 1)
            above = cut(log[: len(x)], y).to(test.target.device)
            found[name] = ReadLabels(rows, log[len(x) :].to(test.target.device), above)
        else:
            log = _fitted(x, y, unseen, classes)
            found[name] = Read(rows, log.to(test.target.device))
    return found


def _odds(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], unseen: Float[Tensor, "k d"]
) -> Float[Tensor, " k"]:
    """The log-odds of a label for other samples; infinite if all have it or none."""
    log = _fitted(x, y, unseen, 2)
    return log[:, 1] - log[:, 0]


def linear_probe(train: Features, test: Features) -> dict[str, float]:
    """Accuracy by modality of logistic regression fitted on another split; see `read`.

    Returns:
        Values between 0 and 1, without modalities that no sample of a split has.
    """
    return {
        name: int(found.right(test.target).sum()) / len(found.rows)
        for name, found in read(train, test).items()
    }


def _fitted(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], unseen: Float[Tensor, "k d"], count: int
) -> Float[Tensor, "k c"]:
    """The log-probability of each class for other samples; minus infinity for classes not in y."""
    classes: Tensor = y.unique()
    found = x.new_full((len(unseen), count), -math.inf)
    if len(classes) == 1:
        found[:, classes] = 0.0
        return found
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x, unseen = (x - mean) / spread, (unseen - mean) / spread
    # With two classes, one has the logit 0, so the penalty covers one vector.
    free = len(classes) if len(classes) > 2 else 1
    weight, bias = x.new_zeros(free, x.shape[1]), x.new_zeros(free, 1)
    truth = (classes[:, None] == y).to(x)

    def logits(rows: Float[Tensor, "m d"]) -> Float[Tensor, "c m"]:
        found = torch.addmm(bias, weight, rows.T)
        return found if free > 1 else torch.cat([torch.zeros_like(found), found])

    def loss() -> Tensor:
        """The penalised mean of the losses; writes its gradient beside the weights."""
        log = logits(x).log_softmax(0)
        excess = (log.exp() - truth)[-free:] / len(x)
        weight.grad, bias.grad = torch.addmm(weight / len(x), excess, x), excess.sum(1, True)
        found: Tensor = (weight.square().sum() / 2 - (log * truth).sum()) / len(x)
        return found

    torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    ).step(loss)
    found[:, classes] = logits(unseen).log_softmax(0).T
    return found


def _rows(
    split: Features, name: str
) -> tuple[Int[Tensor, " k"], Float[Tensor, "k d"], Shaped[Tensor, "k *c"]]:
    """The samples that have a modality, its features, and their targets."""
    rows = torch.arange(len(split.target), device=split.target.device)
    x = split.features[name].detach()
    if name in split.present:
        rows = rows[split.present[name].to(rows.device)]
        x = x[rows.to(x.device)]
    x = floats(x)
    return rows, x.to(torch.promote_types(x.dtype, torch.float32)), split.target[rows].to(x.device)
