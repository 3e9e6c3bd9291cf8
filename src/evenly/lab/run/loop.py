"""The training loop of a run: the README's own, with what the lab measures around it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from evenly.data import SplitName
from evenly.diagnosis.gap import diagnose
from evenly.features import Features
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.parts import Parts
from evenly.lab.run.record import Record, Row
from evenly.methods.composed import parts as methods_of
from evenly.methods.relearn import Relearn
from evenly.output import Output
from evenly.probe import Probe


def fit(parts: Parts, record: Record) -> None:
    """Trains from the epoch that the record stands at to the last.

    Args:
        parts: What trains.
        record: What is kept of it.
    """
    method, optimizer, place = parts.method, parts.optimizer, parts.place
    training = parts.cell.training
    val = parts.in_order("val", training.batch_size)
    probe = Probe(parts.model, parts.forward, parts.train, val)
    for epoch in range(record.epoch, training.epochs):
        parts.begin(epoch)
        record.begin()
        method.before_epoch(epoch, probe)
        for number, batch in enumerate(parts.batches(epoch)):
            with record.step(number):
                with place.autocast():
                    output, target = parts.forward(parts.shared, batch)
                    loss = method.loss(output, target)
                method.backward(loss)
                method.before_step()
                optimizer.step()
                optimizer.zero_grad()
            record.add(loss, output, target)
        if parts.schedule:
            parts.schedule.step()
        record.trained()
        record.end(_measured(parts, epoch))


def evaluated(parts: Parts, split: SplitName) -> Evaluation:
    """The predictions of the model for a split."""
    found = Evaluation(parts.data.task)
    parts.model.eval()
    with torch.no_grad():
        for batch in parts.in_order(split, shared=True):
            found.add(*parts.forward(parts.model, batch))
    return found.together(len(parts.split(split)))


def _looked_at(parts: Parts, split: SplitName) -> tuple[Evaluation, Features]:
    """The same and the features, from one pass."""
    found = Evaluation(parts.data.task)

    def noted(output: Output, target: Tensor) -> Mapping[str, Tensor]:
        found.add(output, target)
        return output.features

    features = _features(parts, split, noted)
    return found.together(len(parts.split(split))), features


def _features(
    parts: Parts, split: SplitName, of: Callable[[Output, Tensor], Mapping[str, Tensor]]
) -> Features:
    batches = parts.in_order(split)
    return Probe(parts.model, parts.forward, batches, batches).features("val", of)


def _measured(parts: Parts, epoch: int) -> Row:
    """The metrics of the splits that are judged and, when it is time, purity and gap."""
    training = parts.cell.training
    # The first is what a method may see; the last is what the epoch is selected on.
    judged = dict.fromkeys(("val", training.selects_on))
    every = training.measure_every if parts.data.task.name == "classes" else 0
    diagnosed = every and (epoch % every == 0 or epoch == training.epochs - 1)
    row: Row = {}
    seen: dict[SplitName, Features] = {}
    for split in judged:
        if diagnosed:
            found, seen[split] = _looked_at(parts, split)
        else:
            found = evaluated(parts, split)
        row |= {f"{split}_{name}": value for name, value in found.metrics().items()}
    if diagnosed:
        row |= _diagnosis(_features(parts, "train", lambda output, _: output.features), seen)
    for method in methods_of(parts.method):
        if isinstance(method, Relearn):
            for name, of_epoch in method.history.get(epoch, {}).items():
                row[f"relearn_strength/{name}"] = of_epoch["strength"]
    return row


def _diagnosis(train: Features, seen: Mapping[SplitName, Features]) -> Row:
    found = {split: diagnose(train, features) for split, features in seen.items()}
    columns = {"purity_train": found["val"].train, "gap": found["val"].gap}
    columns |= {f"purity_{split}": diagnosis.val for split, diagnosis in found.items()}
    return {f"{key}/{name}": value for key, of in columns.items() for name, value in of.items()}
