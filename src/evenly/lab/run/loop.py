"""The training loop of a run: the README's own, with what the lab measures around it."""

import torch

from evenly.data import SplitName
from evenly.diagnosis.gap import diagnose
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.parts import Parts
from evenly.lab.run.record import Record, Row
from evenly.methods.composed import parts as methods_of
from evenly.methods.relearn import Relearn
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
    found = Evaluation(len(parts.data.class_names))
    parts.model.eval()
    with torch.no_grad():
        for batch in parts.in_order(split, shared=True):
            found.add(*parts.forward(parts.model, batch))
    return found.together(len(parts.split(split)))


def _measured(parts: Parts, epoch: int) -> Row:
    """The metrics of the splits that are judged and, when it is time, purity and gap."""
    training = parts.cell.training
    # The first is what a method may see; the last is what the epoch is selected on.
    judged = dict.fromkeys(("val", training.selects_on))
    row: Row = {}
    for split in judged:
        metrics = evaluated(parts, split).metrics()
        row |= {f"{split}_{name}": value for name, value in metrics.items()}
    every = training.measure_every
    if every and (epoch % every == 0 or epoch == training.epochs - 1):
        row |= _diagnosis(parts, judged)
    for method in methods_of(parts.method):
        if isinstance(method, Relearn):
            for name, found in method.history.get(epoch, {}).items():
                row[f"relearn_strength/{name}"] = found["strength"]
    return row


def _diagnosis(parts: Parts, judged: "dict[SplitName, None]") -> Row:
    train = parts.in_order("train")
    probes = {
        split: Probe(parts.model, parts.forward, train, parts.in_order(split)) for split in judged
    }
    of_training = next(iter(probes.values())).features("train")
    found = {split: diagnose(of_training, probe.features("val")) for split, probe in probes.items()}
    columns = {"purity_train": found["val"].train, "gap": found["val"].gap}
    columns |= {f"purity_{split}": diagnosis.val for split, diagnosis in found.items()}
    return {f"{key}/{name}": value for key, of in columns.items() for name, value in of.items()}
