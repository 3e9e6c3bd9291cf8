"""Cases from real sets with some altered modalities."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits

from cases.plan import BATCH, HELD_BACK, UNUSED, VERDICTS, Batch, Part, Plan, pick

DATA = Path(os.environ.get("EVENLY_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real(seed: int) -> Plan:
    """A real set with some altered modalities, drawn by the seed."""
    rng = np.random.default_rng([seed, 19])
    theme, names = VERDICTS[seed % 5], real_sets()
    if theme in ("suppressed", "over-trained"):
        names = [name for name in names if name in EASY[theme]]
    name = names[seed // 5 % len(names)]
    modalities, classes = _modalities(name)
    count = int(rng.integers(2, 4))
    few = theme == "over-trained"
    truths = [theme, *map(str, rng.choice(VERDICTS[:4], count - 1, p=[0.5, 0.15, 0.15, 0.2]))]
    if not {"learnt", "over-trained"} & set(truths):
        truths[-1] = "learnt"
    order = [str(value) for value in rng.permutation(modalities)]
    parts: list[Part] = []
    for position, truth in enumerate(truths):
        mine = order[position] if position < len(order) else None
        parts.append(_real_part(rng, name, truth, mine, order[0], parts))
    adam = rng.random() < 0.5
    train = int(rng.integers(250, 400)) if few else 10**9  # all of them
    plan = Plan(
        dict(zip("abcd", parts, strict=False)),
        classes,
        pick(rng, "concat", "sum", "gated", "mlp"),
        "adam" if adam else "sgd",
        pick(rng, 2e-3, 5e-3) if adam else pick(rng, 0.03, 0.05),
        0,
        (train, 10**9),
        flipped=pick(rng, 0.3, 0.4) if few else 0.0,
        real=name,
    )
    rows = len(altered(plan, seed)["train"][1])
    steps = 1000 if few else 400
    return replace(plan, epochs=max(4, round(steps * BATCH / rows)))


def _real_part(
    rng: np.random.Generator,
    name: str,
    truth: str,
    mine: str | None,
    first: str,
    before: list[Part],
) -> Part:
    """An alteration of a modality, or of a copy or noise if the set has no more modalities."""
    if truth == "scarce":
        what = pick(rng, "noise", mine or first)
        return Part(truth, hidden=pick(rng, 16, 64), input=what, agree=0.0)
    if mine is None:
        copied = next((i for i, part in enumerate(before) if part.agree), None)
        noise = pick(rng, 0.0, 0.3)
        part = Part(truth, input=first, agree=1.0, copy=copied, noise=noise)
    else:
        part = Part(truth, input=mine, agree=1.0)
    if truth == "suppressed":
        # A wide untrained encoder keeps the class; a few units lose it.
        hows = [how for how in HELD_BACK if how != "dropped"]
        return replace(part, how=pick(rng, *hows), hidden=pick(rng, 8, 12), width=pick(rng, 4, 6))
    if truth == "unused":
        return replace(part, how=pick(rng, *UNUSED), own=1.0)
    if truth == "over-trained":
        return replace(part, hidden=256, width=64, own=1.0)
    if name == "cremad_votes" and rng.random() < 0.2:
        return replace(part, how="frozen", hidden=512, width=128)  # this keeps everything
    return replace(part, hidden=pick(rng, 16, 32), own=pick(rng, 0.0, 0.5))


EASY = {
    "suppressed": ("digits", "cremad_votes", "leaves"),
    "over-trained": ("digits", "cremad_votes"),
}
"""Sets in which a narrow untrained encoder loses the class; sets small enough to memorise."""


def real_sets() -> list[str]:
    """The available sets: scikit-learn's always, others if there is a folder with them."""
    shared = {"cremad_votes", "htad", "leaves"}
    return ["digits", "breast_cancer", *sorted(n for n in shared if (DATA / n).is_dir())]


def _modalities(name: str) -> tuple[list[str], int]:
    inputs, y, _ = _read(name)
    return sorted(inputs), int(y.max()) + 1


@cache
def _read(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    """Inputs by modality, classes, and if there is a split, 0, 1, 2 for train, val, test."""
    if name == "digits":
        images, y = load_digits(return_X_y=True)
        return {"top": images[:, :32], "bottom": images[:, 32:]}, y, None
    if name == "breast_cancer":
        x, y = load_breast_cancer(return_X_y=True)
        return {"mean": x[:, :10], "error": x[:, 10:20], "worst": x[:, 20:]}, y, None
    (file,) = (DATA / name).glob("*.npz")
    with np.load(file) as data:
        y = data["label"].astype(int)
        if name == "cremad_votes":
            inputs = {
                sense: np.hstack(
                    [
                        data[f"{sense}_votes"] / data[f"{sense}_votes"].sum(1, keepdims=True),
                        np.nan_to_num(data[f"{sense}_level"]),
                    ]
                )
                for sense in ("audio", "visual")
            }
            return inputs, y, data["split_paper"]
        if name == "htad":
            return {key: data[key] for key in ("audio", "accelerometer")}, y, data["split"]
        return {key: data[key] for key in ("margin", "shape", "texture")}, y, None


def altered(plan: Plan, seed: int) -> dict[str, Batch]:
    """Standardised inputs; `fresh` is the test split."""
    assert plan.real is not None
    raw, y, split = _read(plan.real)
    rng = np.random.default_rng([seed, 20])
    if split is None:
        split = np.empty(len(y), int)
        for one in np.unique(y):
            of = rng.permutation(np.flatnonzero(y == one))
            split[of] = np.searchsorted([0.5, 0.65], np.arange(len(of)) / len(of), side="right")
    rows = [rng.permutation(np.flatnonzero(split == part)) for part in range(3)]
    rows[0] = rows[0][: plan.sizes[0]]
    inputs: list[np.ndarray] = []
    for part in plan.parts.values():
        if part.copy is not None:
            x = inputs[part.copy]
            x = x + part.noise * rng.normal(size=x.shape)
        elif part.input == "noise":
            x = rng.normal(size=(len(y), 16))
        else:
            x = raw[part.input].astype(float)
            x = (x - x[rows[0]].mean(0)) / np.maximum(x[rows[0]].std(0), 1e-6)
        if not part.agree:
            x = x.copy()
            for of in rows:
                x[of] = x[rng.permutation(of)]
        inputs.append(x)
    turned = rng.random(len(y)) < plan.flipped
    noisy = np.where(turned, rng.permutation(y), y)
    return {
        name: (
            [torch.tensor(x[of], dtype=torch.float32).clamp(-10, 10) for x in inputs],
            torch.tensor((noisy if name == "train" else y)[of], dtype=torch.int64),
        )
        for name, of in zip(("train", "val", "fresh"), rows, strict=True)
    }
