"""Cases with known distributions, and so with unlimited fresh samples."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cases.plan import BATCH, HELD_BACK, UNUSED, VERDICTS, Batch, Part, Plan, pick
from cases.sources import MAKERS, Patterns, Source, shown

FRESH = 20_000
LEAST = 2
"""Samples of each class in each split."""


def _stream(seed: int, split: str) -> int:
    return int(np.random.SeedSequence([seed, *split.encode()]).generate_state(1)[0])


def drawn(plan: Plan, seed: int, split: str) -> Batch:
    stream = torch.Generator().manual_seed(_stream(seed, split))
    count = {"train": plan.sizes[0], "val": plan.sizes[1], "fresh": FRESH}[split]
    usual = plan.shares[0]
    shares = plan.shares[1] if split == "val" else usual
    y = torch.multinomial(shares, count, True, generator=stream)
    if y.bincount(minlength=plan.classes).min() < LEAST:
        each = torch.arange(plan.classes).repeat(LEAST)
        y[: len(each)] = each
    turn = torch.randint(plan.classes, (count,), generator=stream)
    inputs: list[Tensor] = []
    for position, part in enumerate(plan.parts.values()):
        if part.copy is not None:
            x = inputs[part.copy]
            inputs.append(x + part.noise * torch.randn(x.shape, generator=stream))
            continue
        label = shown(y, part.agree, usual, stream)
        if plan.together and position < 2:
            label = turn if position == 0 else (y - turn) % plan.classes
        inputs.append(part.source.draw(label, stream))
    if split == "train" and plan.flipped:
        y = shown(y, 1 - plan.flipped, usual, stream)
    return inputs, y


def synthetic(seed: int) -> Plan:
    """A random case by its seed; seeds take turns over the intended verdicts."""
    rng = np.random.default_rng([seed, 18])
    if seed % 30 == 29:
        return _together(rng)
    if seed % 10 == 7:
        return _eclipsed(rng)
    return _separate(rng, VERDICTS[seed % 5])


def _separate(rng: np.random.Generator, theme: str) -> Plan:
    """Modalities that each receive the class by themselves, or through a copy."""
    count = int(rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
    others = rng.choice(VERDICTS, count - 1, p=[0.1, 0.2, 0.35, 0.15, 0.2])
    truths = [theme, *map(str, others)]
    if not {"learnt", "over-trained"} & set(truths):
        truths[-1] = "learnt"  # at least one leads
    few = "over-trained" in truths
    classes = pick(rng, 2, 3, 4, 5, 6, 8, 10)
    train = _log_uniform(rng, 300, 700 if few else 3000)
    adam = rng.random() < 0.5
    stream = _torch_stream(rng)
    parts = [_MADE[truth](rng, classes, train, adam, stream) for truth in truths]
    if rng.random() < 0.5:
        parts.reverse()
    lead = next((i for i, part in enumerate(parts) if part.truth == "learnt"), None)
    if lead is not None and count < 4 and rng.random() < 0.2:
        parts.append(replace(parts[lead], copy=lead, noise=pick(rng, 0.0, 0.3)))
    return Plan(
        dict(zip("abcd", parts, strict=False)),
        classes,
        str(rng.choice(["concat", "sum", "gated", "mlp"], p=[0.4, 0.25, 0.2, 0.15])),
        "adam" if adam else "sgd",
        pick(rng, 2e-3, 5e-3) if adam else pick(rng, 0.03, 0.05, 0.1),
        max(4, round((500 if few else 350) * BATCH / train)),
        (train, _log_uniform(rng, 100, 1000)),
        _shares(rng, classes),
        flipped=pick(rng, 0.0, 0.1, 0.2) if few else 0.0,
    )


def _together(rng: np.random.Generator) -> Plan:
    """Two modalities, one rotated by the other: each is at chance alone."""
    classes, stream = pick(rng, 2, 3), _torch_stream(rng)
    made = [MAKERS["blobs"](classes, 3, 2, 3.0, stream) for _ in range(3)]
    parts = {
        letter: Part("learnt", width=24, source=source)
        for letter, source in zip("ab", made, strict=False)
    }
    if rng.random() < 0.5:
        parts["c"] = Part("scarce", source=made[2])
    equal = torch.full((classes,), 1 / classes)
    train = _log_uniform(rng, 1500, 3000)
    epochs = round(800 * BATCH / train)
    sizes = train, _log_uniform(rng, 100, 1000)
    return Plan(parts, classes, "mlp", "adam", 5e-3, epochs, sizes, (equal, equal), together=True)


def _eclipsed(rng: np.random.Generator) -> Plan:
    """A modality that tells the class immediately, and one that takes time to read."""
    classes, stream = pick(rng, 2, 3, 4, 5, 6), _torch_stream(rng)
    leader = MAKERS["blobs"](classes, 8, 0, 4.0, stream)
    behind = MAKERS["signs"](classes, 6, int(rng.integers(10, 24)), 2.5, stream)
    parts = {
        "a": Part("learnt", hidden=64, width=32, source=leader, agree=1.0),
        "b": Part("suppressed", "eclipsed", width=pick(rng, 8, 16), source=behind, agree=1.0),
    }
    if rng.random() < 0.5:
        parts["c"] = _scarce(rng, classes, 0, False, stream)
    train = _log_uniform(rng, 1000, 3000)
    return Plan(
        parts,
        classes,
        pick(rng, "concat", "sum"),
        "sgd",
        pick(rng, 0.03, 0.05),
        round(350 * BATCH / train),
        (train, _log_uniform(rng, 100, 1000)),
        _shares(rng, classes),
    )


def _learnt(
    rng: np.random.Generator, classes: int, train: int, adam: bool, stream: torch.Generator
) -> Part:
    strong = train < 1200 or rng.random() < 0.5
    agree = rng.uniform(0.92, 1.0) if strong else rng.uniform(0.6, 0.92)
    kind = str(
        rng.choice(["blobs", "signs", "corners", "rings", "pattern"], p=[0.4, 0.2, 0.1, 0.1, 0.2])
    )
    part = Part("learnt", agree=agree, own=pick(rng, 0.0, 0.5, 1.0))
    if kind == "pattern" and train > 800:
        return _with_pattern(rng, part, classes, stream)
    if kind == "pattern" or (kind == "rings" and classes > 5):
        kind = "blobs"
    scale = rng.uniform(1.2, 2.5) if train > 1200 else 2.0
    source = _made(rng, kind, classes, (0, 6), scale, stream)
    return replace(part, hidden=pick(rng, 16, 32), width=pick(rng, 8, 16), source=source)


def _suppressed(
    rng: np.random.Generator, classes: int, train: int, adam: bool, stream: torch.Generator
) -> Part:
    # Adam divides by the size of gradients, so rare signals are learnt just as fast.
    how = pick(rng, *(one for one in HELD_BACK if not (adam and one == "dropped")))
    part = Part("suppressed", how, agree=rng.uniform(0.92, 1.0))
    if train > 800 and rng.random() < 0.25:
        return _with_pattern(rng, part, classes, stream)
    kind = "signs" if rng.random() < 0.7 else "corners"
    source = _made(rng, kind, classes, (6, 20), 2.5, stream)
    return replace(part, hidden=pick(rng, 32, 64), width=pick(rng, 8, 16), source=source)


def _unused(
    rng: np.random.Generator, classes: int, train: int, adam: bool, stream: torch.Generator
) -> Part:
    part = Part("unused", pick(rng, *UNUSED), agree=rng.uniform(0.8, 1.0), own=1.0)
    if train > 800 and rng.random() < 0.2:
        return _with_pattern(rng, part, classes, stream)
    kind = pick(rng, "blobs", "signs", "corners", "rings")
    if kind == "rings" and classes > 5:
        kind = "blobs"
    source = _made(rng, kind, classes, (0, 6), 2.0, stream)
    return replace(part, hidden=pick(rng, 16, 32), width=pick(rng, 8, 16), source=source)


def _scarce(
    rng: np.random.Generator, classes: int, train: int, adam: bool, stream: torch.Generator
) -> Part:
    # Clusters unrelated to the class, or none.
    kind, scale = pick(rng, "blobs", "signs"), pick(rng, 0.0, 2.0)
    source = _made(rng, kind, classes, (0, 30), scale, stream)
    own = pick(rng, 0.0, 0.0, 1.0)
    hidden, width = pick(rng, 16, 32, 128), pick(rng, 8, 16, 32)
    return Part("scarce", hidden=hidden, width=width, own=own, source=source)


def _over_trained(
    rng: np.random.Generator, classes: int, train: int, adam: bool, stream: torch.Generator
) -> Part:
    own, share = pick(rng, 0.5, 1.0), (0.45, 0.6) if classes == 2 else (0.5, 0.75)
    part = Part("over-trained", width=pick(rng, 32, 64), own=own, agree=rng.uniform(*share))
    if classes > 3 and rng.random() < 0.25:
        return _with_pattern(rng, replace(part, agree=1.0, hidden=64), classes, stream)
    source = _made(rng, "blobs", classes, (30, 90), 2.0, stream)
    return replace(part, hidden=pick(rng, 128, 256), source=source)


_MADE = {
    "learnt": _learnt,
    "suppressed": _suppressed,
    "unused": _unused,
    "scarce": _scarce,
    "over-trained": _over_trained,
}


def _made(
    rng: np.random.Generator,
    kind: str,
    classes: int,
    noise: tuple[int, int],
    scale: float,
    stream: torch.Generator,
) -> Source:
    inner = int(rng.integers(max(3, classes // 2), 9))
    if kind == "corners":
        inner = 2 if classes == 2 else 3 if classes <= 4 else 4 if classes <= 6 else 5
    return MAKERS[kind](classes, inner, int(rng.integers(*noise)), scale, stream)


def _with_pattern(
    rng: np.random.Generator, part: Part, classes: int, stream: torch.Generator
) -> Part:
    """A pattern in a sequence: a shape for a convolution, or one moment's direction for a GRU."""
    encoder = pick(rng, "conv", "gru")
    channels, length = (2, 4) if encoder == "conv" else (8, 1)
    shape = torch.randn(classes, channels, length, generator=stream)
    size = 5.0 / shape.flatten(1).norm(dim=1)[:, None, None]
    return replace(part, encoder=encoder, source=Patterns(size * shape, 10))


def _shares(rng: np.random.Generator, classes: int) -> tuple[Tensor, Tensor]:
    equal = torch.full((classes,), 1 / classes)
    skewed = torch.tensor(rng.dirichlet(np.full(classes, 8.0)), dtype=torch.float32)
    kind = rng.choice(["equal", "skewed", "other"], p=[0.5, 0.3, 0.2])
    if kind == "equal":
        return equal, equal
    return (skewed, skewed) if kind == "skewed" else (equal, skewed)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _torch_stream(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**31)))
