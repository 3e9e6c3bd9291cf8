"""What a frozen encoder knows: the accuracy of a linear classifier on its representations.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR 2017
workshop, https://arxiv.org/abs/1610.01644; Figure 1 b and c of Wei et al., ECCV 2024, plot it.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int

from evenly.diagnosis.rows import floats
from evenly.features import Features

STEPS = 500


def linear_probe(train: Features, test: Features) -> dict[str, float]:
    """By modality, the accuracy on one split of logistic regression fitted on another.

    Each feature is standardised by the training split; the weights have scikit-learn's default
    penalty (C = 1). Samples that lack the modality count in neither split.

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
            found[name] = float((_fitted(x, y, unseen) == expected).mean())
    return found


def _fitted(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], unseen: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " k"]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if len(np.unique(y)) == 1:
        return np.full(len(unseen), y[0])
    scaler = StandardScaler().fit(x)
    classifier = LogisticRegression(max_iter=STEPS)
    # As many threads as everywhere else: two runs side by side would fight over the cores.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # by then its accuracy stands still
        classifier.fit(scaler.transform(x), y)
        guess: Int[np.ndarray, " k"] = classifier.predict(scaler.transform(unseen))
    return guess


def _rows(split: Features, name: str) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    here = split.present.get(name, slice(None))
    x = floats(split.features[name].detach()[here])
    # scikit-learn would calculate in half precision, and NumPy has no bfloat16.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.cpu().numpy(), split.target[here].cpu().numpy()
