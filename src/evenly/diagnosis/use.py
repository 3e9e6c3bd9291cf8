"""How a model uses each modality: how its predictions change when the modality is swapped.

To remove a modality, each sample gets that of another. The input of the fusion then stays as likely
as before, unlike zeros or noise, and this works with any model. (Breiman, "Random forests", 2001,
on permutation; Shapley, 1953, on shares.)
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from evenly import loaders
from evenly.diagnosis.classes import Classes, Labels
from evenly.diagnosis.contribution import contributions
from evenly.diagnosis.estimate import placed
from evenly.errors import UserError
from evenly.output import Output
from evenly.probe import Probe, Split

ROUNDS = 4
"""Number of other samples that each sample takes a modality from."""

TRIED = (5, 7)
"""Batch sizes used to find where an encoder's output has a row for each sample."""

MIXED = 0.5
"""How often two samples of a batch must differ in class, as a share of how often two samples of the
split do."""

Subset = frozenset[str]


@dataclass(frozen=True)
class Use:
    """Means over the swaps for each sample of a split, in random order.

    A value is NaN if the sample lacks the modality or no other sample of its batch has it. With
    several labels per sample, "right" is a value whose mean is the balanced accuracy
    (`linear_probe.balanced`), `flipped` is the share of labels predicted before or after that
    change, and there are no votes.

    Attributes:
        without: By modality, whether the prediction is correct with the modality of another sample.
        lost: By modality, whether the prediction is correct minus that.
        flipped: By modality, whether the prediction changes with it while the others also come from
            other samples, so that a modality that repeats another does not look unused. NaN as well
            if only two samples of a batch have the modality.
        contribution: By modality, its Shapley value in whether the prediction is correct, with all
            modalities outside a set taken from another sample.
        followed: By modality, whether the prediction is the class of this modality if that comes
            from a sample of another class. NaN as well if none of a sample's swaps is with one.
        outvoted: The same, whether it is the class of all others.
    """

    without: Mapping[str, Float[Tensor, " n"]]
    lost: Mapping[str, Float[Tensor, " n"]]
    flipped: Mapping[str, Float[Tensor, " n"]]
    contribution: Mapping[str, Float[Tensor, " n"]]
    followed: Mapping[str, Float[Tensor, " n"]]
    outvoted: Mapping[str, Float[Tensor, " n"]]


def use(
    probe: Probe,
    encoders: Mapping[str, nn.Module],
    classes: Classes,
    *,
    split: Split = "val",
    seed: int = 0,
) -> Use:
    """How the model's predictions depend on each modality.

    If the `Output` has `fuse`, features are swapped before the fusion; otherwise, another pass of
    the model swaps the encoders' outputs.

    Args:
        probe: Probe of the model.
        encoders: Encoders by modality.
        classes: What targets and logits mean.
        split: Split to look at.
        seed: Seed of the swaps.

    Raises:
        ValueError: If no batch has three samples with a modality, if the samples of a batch are
            mostly of one class, or if an encoder's output cannot be swapped.
    """
    names = list(encoders)
    tally = _Tally(names, classes)
    places: list[_Places] = []

    def swap_all(chosen: Sequence[Subset]) -> None:
        swaps = {frozenset(names) - keep for keep in chosen} | {frozenset([m]) for m in names}
        stream = torch.Generator().manual_seed(seed)

        def take(batch: Any, output: Output, target: Tensor) -> None:
            if len(target) < 2:  # such as a last batch, whose sample has no partner
                return
            if output.fuse is None and not places:
                places.append(_Places(probe, encoders, split))
            fuse = _fusing(probe, encoders, batch, output, *places)
            here, target = classes.labelled(target), classes.of(target)
            rows = _rows(output, names, len(target))
            for partner in _partners(rows, len(target), stream):
                for swap in swaps:
                    guess = classes.guess(fuse({m: partner[m] for m in swap}))
                    tally.add(swap, guess, target, partner, here)
                mixed, others = _apart(rows, len(target), stream)
                guess = classes.guess(fuse(mixed))
                for name in names:
                    turned = classes.guess(fuse({**mixed, name: others[name]}))
                    tally.flip(name, classes.changed(guess, turned)[here])
            tally.end(target, here, rows)

        probe.each(split, take, seed=seed)
        tally.check(is_drawn=loaders.drawn(probe.loaders[split]) is not None)

    def values(name: str, chosen: Sequence[Subset]) -> Mapping[Subset, Tensor]:
        if tally.is_empty:  # the sets are the same for each modality
            swap_all(chosen)
        return {frozenset(names) - swap: right for swap, right in tally.right(name).items()}

    return tally.use(
        {name: contributions(partial(values, name), names, seed=seed)[name] for name in names}
    )


class _Tally:
    """Collects the effects of all batches' swaps."""

    def __init__(self, names: Sequence[str], classes: Classes) -> None:
        self.names, self.classes = names, classes
        self.votes = len(names) > 1 and not isinstance(classes, Labels)
        self._target: list[Tensor] = []
        self._batch: dict[tuple[str, Subset], list[Tensor]] = {}
        self._all: dict[tuple[str, Subset], list[Tensor]] = {}
        self._among: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def add(
        self,
        swap: Subset,
        guess: Tensor,
        target: Tensor,
        partner: Mapping[str, Tensor],
        here: Tensor,
    ) -> None:
        """Adds the predictions of a batch under one swap."""
        right = self.classes.right(guess, target)[here].double()
        self._batch.setdefault(("right", swap), []).append(right)
        if len(swap) == 1 and self.votes:
            (name,) = swap
            other = target[partner[name]]
            apart = here & here[partner[name]] & self.classes.differ(other, target)
            for what, label in (("followed", other), ("outvoted", target)):
                won = placed(self.classes.right(guess, label)[apart], apart)
                self._batch.setdefault((what, swap), []).append(won[here])

    def flip(self, name: str, turned: Tensor) -> None:
        """Adds which predictions of a batch a modality has changed."""
        self._batch.setdefault(("flipped", frozenset([name])), []).append(turned.double())

    def end(self, target: Tensor, here: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Ends a batch, keeping each labelled sample's mean over its swaps, and its target."""
        self._target.append(target[here])
        for key, rounds in self._batch.items():
            # A vote of the same class is NaN, and does not count.
            self._all.setdefault(key, []).append(torch.stack(rounds).nanmean(0))
        self._batch.clear()
        for name, own in rows.items():
            for what, least in (("right", 2), ("flipped", 3)):
                among = torch.zeros_like(here)
                among[own if len(own) >= least else own[:0]] = True
                self._among[what, name].append(among[here])

    def check(self, *, is_drawn: bool) -> None:
        """Raises if the swaps can tell nothing.

        Args:
            is_drawn: Whether batches are random draws of the split.
        """
        for name in self.names:
            if not any(bool(among.any()) for among in self._among["flipped", name]):
                raise UserError(
                    f"the checkup swaps '{name}' within a batch, but no batch of the validation "
                    "loader has three samples with it. Use a larger batch_size; if fewer than "
                    "three samples of the split have it, leave its encoder out."
                )
        if not (is_drawn or are_mixed(self._target)):
            raise UserError(
                "the checkup swaps modalities within a batch, but most samples of a batch of the "
                "validation loader have the same class. Shuffle its samples before they are put "
                "into batches."
            )

    @property
    def is_empty(self) -> bool:
        """Whether no batch was added."""
        return not self._all

    def right(self, name: str) -> dict[Subset, Tensor]:
        """How often each sample that can swap a modality is predicted correctly, by what is."""
        target, among = torch.cat(self._target), torch.cat(self._among["right", name])
        return {
            swap: placed(self.classes.values(torch.cat(x)[among], target[among]), among)
            for (what, swap), x in self._all.items()
            if what == "right"
        }

    def use(self, shares: Mapping[str, Tensor]) -> Use:
        """The result."""
        right = {name: self.right(name) for name in self.names}
        without = {name: right[name][frozenset([name])] for name in self.names}
        flipped = {}
        for name in self.names:
            among = torch.cat(self._among["flipped", name])
            flipped[name] = placed(torch.cat(self._all["flipped", frozenset([name])])[among], among)
        votes = {
            what: {name: torch.cat(self._all[what, frozenset([name])]) for name in self.names}
            if self.votes
            else {}
            for what in ("followed", "outvoted")
        }
        return Use(
            without,
            {name: right[name][frozenset()] - x for name, x in without.items()},
            flipped,
            shares,
            votes["followed"],
            votes["outvoted"],
        )


def are_mixed(targets: Sequence[Shaped[Tensor, "_ *c"]]) -> bool:
    """Whether samples that share a batch differ in class nearly as often as any two samples.

    Args:
        targets: Classes or labels of each batch.
    """
    several = [target for target in targets if len(target) > 1]
    within = sum(len(target) * _differing(target) for target in several)
    count = sum(len(target) for target in several)
    return not several or within >= MIXED * count * _differing(torch.cat(several))


def _differing(target: Shaped[Tensor, "n *c"]) -> float:
    """The share of pairs of different samples whose classes differ."""
    counts = target.unique(dim=0, return_counts=True)[1].double()
    return 1 - float((counts * (counts - 1)).sum()) / (len(target) * (len(target) - 1))


def _rows(output: Output, names: Sequence[str], size: int) -> dict[str, Int[Tensor, " k"]]:
    """By modality, which samples of a batch have it."""
    everyone = torch.arange(size, device=output.logits.device)
    present = output.present or {}
    return {
        name: everyone[present[name].to(everyone.device)] if name in present else everyone
        for name in names
    }


def _partners(
    rows: Mapping[str, Int[Tensor, " k"]], size: int, stream: torch.Generator
) -> Iterator[dict[str, Int[Tensor, " n"]]]:
    """For each round and modality, the index of the sample that each sample takes it from.

    It is the same for all modalities, except that partners must have the modality.
    """
    for _ in range(ROUNDS):
        part = float(torch.rand((), generator=stream))
        yield {name: _partner(own, size, _shift(own, part)) for name, own in rows.items()}


def _apart(
    rows: Mapping[str, Int[Tensor, " k"]], size: int, stream: torch.Generator
) -> tuple[dict[str, Int[Tensor, " n"]], dict[str, Int[Tensor, " n"]]]:
    """The same for one round, with each modality taken from a different sample, twice.

    The second time, each sample takes a modality from another sample than the first time, if three
    have it.
    """
    parts = [torch.rand(len(rows), generator=stream).tolist() for _ in range(2)]
    first, second = {}, {}
    for (name, own), one, other in zip(rows.items(), *parts, strict=True):
        shift, next_shift = _shift(own, one), _shift(own, other)
        if next_shift == shift:
            next_shift = shift % max(len(own) - 1, 1) + 1
        first[name], second[name] = (_partner(own, size, x) for x in (shift, next_shift))
    return first, second


def _shift(rows: Int[Tensor, " k"], part: float) -> int:
    """How far samples shift: a fraction of the places that leave none where it was."""
    return 1 + int(part * (len(rows) - 1))


def _partner(rows: Int[Tensor, " k"], size: int, shift: int) -> Int[Tensor, " n"]:
    """Which sample of a batch takes a modality from which, if those that have it shift."""
    partner = torch.arange(size, device=rows.device)
    partner[rows] = rows.roll(shift)
    return partner


def _fusing(
    probe: Probe,
    encoders: Mapping[str, nn.Module],
    batch: Any,
    output: Output,
    *places: "_Places",
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function that returns the logits, given who takes which modality from whom."""
    if output.fuse is not None:
        fuse, features = output.fuse, output.features

        def fused(partner: Mapping[str, Tensor]) -> Tensor:
            return fuse(
                {name: x[partner[name]] if name in partner else x for name, x in features.items()}
            )

        return fused
    replay = _Replay(encoders, len(output.logits), *places)
    with replay.recording():
        probe.forward(probe.model, batch)
    replay.check(output)

    def passed(partner: Mapping[str, Tensor]) -> Tensor:
        with replay.swapped(partner):
            return probe.forward(probe.model, batch)[0].logits

    if not torch.allclose(passed({}).float(), output.logits.float(), rtol=1e-2, atol=1e-3):
        raise UserError(
            "given the same encoder outputs twice, the model predicts differently, so a checkup "
            "cannot tell what it uses of each modality. If forward draws random numbers in "
            "evaluation mode, switch that off; otherwise fill `Output.fuse` in it: a function of "
            "features by modality that returns the logits."
        )
    return passed


class _Replay:
    """Makes encoders return their earlier outputs again, with samples swapped."""

    def __init__(self, encoders: Mapping[str, nn.Module], size: int, places: "_Places") -> None:
        self.encoders, self.size, self._places = encoders, size, places
        self._returned: dict[str, list[Any]] = {name: [] for name in encoders}

    def place(self, name: str, number: int, x: Any) -> int | None:
        """The dimension of the samples in a part of an encoder's output."""
        return self._places(name, number, x, self.size)

    def shapes(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """The shapes of each part of each encoder's first output."""
        return {
            (name, number): tuple(x.shape)
            for name, returned in self._returned.items()
            for number, x in enumerate(tree_leaves(returned[:1]))
            if isinstance(x, Tensor)
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what each encoder returns."""

        def note(name: str, _: nn.Module, __: Any, returned: Any) -> None:
            self._returned[name].append(returned)

        hooks = [
            encoder.register_forward_hook(partial(note, name))
            for name, encoder in self.encoders.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, output: Output) -> None:
        """Raises if an encoder gave nothing that could be swapped.

        Args:
            output: Output of the recorded pass.
        """
        here = _rows(output, list(self.encoders), self.size)
        for name, returned in self._returned.items():
            if not returned and name in output.features and len(here[name]):
                raise UserError(
                    f"the forward pass never calls the encoder of '{name}' as a module, so its "
                    "output cannot be swapped: it calls another method of it, such as "
                    "encoder.forward(x), or runs a compiled model. Have forward call encoder(x), "
                    "pass the model that is not compiled, or fill `Output.fuse`: a function of "
                    "features by modality that returns the logits."
                )

    @contextmanager
    def swapped(self, partner: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block, encoders do not run; those in `partner` return swapped samples."""
        again = {
            name: iter([self._taken(name, x, partner.get(name)) for x in self._returned[name]])
            for name in self.encoders
        }
        before = {
            name: vars(x)["forward"] for name, x in self.encoders.items() if "forward" in vars(x)
        }
        try:
            for name, encoder in self.encoders.items():
                encoder.forward = partial(_next, again[name])
            yield
        finally:
            for name, encoder in self.encoders.items():
                vars(encoder).pop("forward", None)
                if name in before:
                    encoder.forward = before[name]

    def _taken(self, name: str, returned: Any, partner: Tensor | None) -> Any:
        if partner is None:
            return returned
        leaves, form = tree_flatten(returned)
        places = [self.place(name, number, x) for number, x in enumerate(leaves)]
        if all(place is None for place in places):
            raise UserError(
                f"what the encoder of '{name}' returns has no row for each of the {self.size} "
                "samples of a batch, so samples cannot change places in it. Fill `Output.fuse` in "
                "forward: a function of features by modality that gives the logits."
            )
        moved = [
            x if place is None else x.index_select(place, partner.to(x.device))
            for x, place in zip(leaves, places, strict=True)
        ]
        return tree_unflatten(moved, form)


class _Places:
    """The dimension of a batch's samples in the outputs of encoders.

    It is the one as long as the batch, for a batch of five samples and for one of seven.
    """

    def __init__(self, probe: Probe, encoders: Mapping[str, nn.Module], split: Split) -> None:
        self._shapes: list[dict[tuple[str, int], tuple[int, ...]]] = []
        self._sizes: list[int] = []
        for count in TRIED:
            replay = _Replay(encoders, 0, self)
            with replay.recording():
                output, _ = probe.sample(split, count)
            self._sizes.append(len(output.logits))
            self._shapes.append(replay.shapes())

    def __call__(self, name: str, number: int, x: Any, size: int) -> int | None:
        """The dimension in a part of an encoder's output; None if it has no rows."""
        if not isinstance(x, Tensor):
            return None
        found = [place for place, length in enumerate(x.shape) if length == size]
        shapes = [shapes.get((name, number), ()) for shapes in self._shapes]
        if self._sizes[0] != self._sizes[1]:
            found = [
                place
                for place in found
                if all(
                    place < len(shape) and shape[place] == length
                    for shape, length in zip(shapes, self._sizes, strict=True)
                )
            ]
        return found[0] if found else None


def _next(returned: Iterator[Any], *_: Any, **__: Any) -> Any:
    return next(returned)
