"""What a frozen encoder knows: the accuracy of a linear classifier on its representations.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR 2017
workshop, https://arxiv.org/abs/1610.01644; Figure 1 b and c of Wei et al., ECCV 2024, plot it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly.diagnosis.rows import floats
from evenly.features import Features

STEPS = 500
TOLERANCE = 1e-4
"""Of the gradient of the mean loss, element by element, at which the fit ends."""


def linear_probe(train: Features, test: Features) -> dict[str, float]:
    """By modality, the accuracy on one split of logistic regression fitted on another.

    Each feature is standardised by the training split; the weights have the penalty ½|W|² beside
    the sum of all losses, scikit-learn's default (C = 1). Samples that lack the modality count in
    neither split.

    Args:
        train: What the classifier is fitted on, with classes as targets.
        test: What it is judged on.

    Returns:
        Between 0 and 1; modalities that no sample of a split has are left out.
    """
    found = {}
    for name in train.features:
        x, y = _rows(train, name)
        unseen, expected = _rows(test, name)
        if len(y) and len(expected):
            guess = _fitted(x, y, unseen.to(x.device))
            found[name] = int((guess == expected.to(guess.device)).sum()) / len(expected)
    return found


def _fitted(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], unseen: Float[Tensor, "k d"]
) -> Int[Tensor, " k"]:
    """The classes that logistic regression fitted on x, y takes other samples for."""
    classes: Tensor = y.unique()
    if len(classes) == 1:
        return classes.expand(len(unseen))
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x, unseen = (x - mean) / spread, (unseen - mean) / spread
    # Of two classes one has the logit 0, so that the penalty is of one vector.
    free = len(classes) if len(classes) > 2 else 1
    weight, bias = x.new_zeros(free, x.shape[1]), x.new_zeros(free, 1)
    truth = (classes[:, None] == y).to(x)

    def logits(rows: Float[Tensor, "m d"]) -> Float[Tensor, "c m"]:
        found = torch.addmm(bias, weight, rows.T)
        return found if free > 1 else torch.cat([torch.zeros_like(found), found])

    def loss() -> Tensor:
        """The penalised mean of the losses; its gradient is written beside the weights."""
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
    guess: Tensor = classes[logits(unseen).argmax(0)]
    return guess


def _rows(split: Features, name: str) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    here = split.present.get(name, slice(None))
    x = floats(split.features[name].detach()[here])
    return x.to(torch.promote_types(x.dtype, torch.float32)), split.target[here]
