"""The training loop of a run: the README's, with the lab's measurements around it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from evenly import distributed
from evenly.data import SplitName
from evenly.data.dataset import bare
from evenly.diagnosis.gap import diagnose
from evenly.features import Features
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.inspection import informed
from evenly.lab.run.parts import Parts
from evenly.lab.run.record import Record, Row
from evenly.lab.run.settings import CALLED
from evenly.methods.composed import parts as methods_of
from evenly.methods.relearn import Relearn
from evenly.output import Output
from evenly.probe import Probe

_RELEARNT = {
    "strength": "relearn_strength",
    "gap": "relearn_gap",
    "error": "relearn_gap_error",
}
"""The columns of a re-learning, by their names in its history."""


def fit(parts: Parts, record: Record) -> None:
    """Trains from the record's current epoch until the record says that it is over.

    Args:
        parts: What trains.
        record: What is kept from the training.
    """
    method, optimizer, place, schedule = parts.method, parts.optimizer, parts.place, parts.schedule
    training, average = parts.cell.training, parts.average
    val = parts.in_order("val", training.batch_size)
    probe = Probe(parts.model, parts.forward, parts.train, val)
    while not record.is_over:
        epoch = record.epoch
        parts.begin(epoch)
        record.begin()
        if average:
            average.before_epoch(method, epoch, probe)
        else:
            method.before_epoch(epoch, probe)
        for number, passes in enumerate(parts.steps(epoch)):
            if schedule:
                schedule.step(epoch, number, len(parts.stepped))
            with record.step(number):
                for share, batch in passes:
                    with place.autocast():
                        output, target = parts.forward(parts.shared, batch)
                        loss = method.loss(output, target)
                    is_whole = isinstance(share, float) and share == 1
                    method.backward(loss if is_whole else share * loss)
                    record.add(loss, _informed(parts, output), batch["target"].to(loss.device))
                method.before_step()
                if training.clip is not None:
                    nn.utils.clip_grad_norm_(parts.model.parameters(), training.clip)
                optimizer.step()
                optimizer.zero_grad()
                if average:
                    average.update()
            record.stepped()
        record.trained()
        with average.applied() if average else nullcontext():
            measured = _measured(parts, record)
        if schedule:
            schedule.end(epoch, measured["val_loss"])
        record.end(measured)


def evaluated(parts: Parts, split: SplitName) -> Evaluation:
    """The predictions of the model for a split.

    Raises:
        ValueError: If a logit is not finite: training has diverged.
    """
    found, wanted = Evaluation(parts.data.task, parts.measures), _targets(parts, split)
    parts.model.eval()
    with torch.no_grad():
        for batch in parts.in_order(split, shared=True):
            output, _ = parts.forward(parts.model, batch)
            found.add(_informed(parts, output), wanted[output.index])
    distributed.reshard(parts.model)
    return _whole(parts, split, found)


def _looked_at(parts: Parts, split: SplitName) -> tuple[Evaluation, Features]:
    """The same, with the features, from one pass."""
    found, wanted = Evaluation(parts.data.task, parts.measures), _targets(parts, split)

    def noted(output: Output, _: Tensor) -> Mapping[str, Tensor]:
        found.add(_informed(parts, output), wanted[output.index])
        return output.features

    features = _features(parts, split, noted)
    return _whole(parts, split, found), features


def _whole(parts: Parts, split: SplitName, found: Evaluation) -> Evaluation:
    """The predictions of all processes, all of them finite."""
    whole = found.together(len(parts.split(split)))
    whole.check_finite(CALLED[split])
    return whole


def _informed(parts: Parts, output: Output) -> Output:
    """The output, with what is said without any input for samples that lack all that is read.

    A model of one modality has zeros for them, and would always guess the first class.
    """
    lost = bare(output.features, output.present or {})
    if lost is None or parts.model.head.missing is not None:
        return output
    return replace(output, logits=informed(output.logits, lost, parts.uninformed))


def _targets(parts: Parts, split: SplitName) -> Tensor:
    """The targets of a split in the form of the data; a forward pass gives them encoded."""
    return parts.split(split).target.to(parts.place.device)


def _features(
    parts: Parts, split: SplitName, of: Callable[[Output, Tensor], Mapping[str, Tensor]]
) -> Features:
    batches = parts.in_order(split)
    found = Probe(parts.model, parts.forward, batches, batches).features("val", of)
    if found.target.ndim == 2 and found.target.shape[1] == 1:  # one number
        return replace(found, target=found.target[:, 0])
    return found


def _measured(parts: Parts, record: Record) -> Row:
    """The metrics of the evaluated splits and, when due, purity and gap."""
    training, epoch = parts.cell.training, record.epoch
    # The first is the split that a method may see; the last selects the epoch.
    judged = dict.fromkeys(("val", training.selects_on))
    every = training.measure_every
    diagnosed = every and (epoch % every == 0 or epoch == training.epochs - 1)
    row: Row = {}
    seen: dict[SplitName, Features] = {}
    for split in judged:
        if diagnosed:
            found, seen[split] = _looked_at(parts, split)
        else:
            found = evaluated(parts, split)
        row |= {f"{split}_{name}": value for name, value in found.metrics().items()}
    if every and not diagnosed and record.ends_early(row):
        seen = {split: _features(parts, split, _only_features) for split in judged}
    if seen:
        row |= _diagnosis(_features(parts, "train", _only_features), seen)
    for method in methods_of(parts.method):
        if isinstance(method, Relearn):
            for name, of_epoch in method.history.get(epoch, {}).items():
                row |= {f"{column}/{name}": of_epoch[key] for key, column in _RELEARNT.items()}
    return row


def _only_features(output: Output, target: Tensor) -> Mapping[str, Tensor]:
    return output.features


def _diagnosis(train: Features, seen: Mapping[SplitName, Features]) -> Row:
    found = {split: diagnose(train, features) for split, features in seen.items()}
    of_val = found["val"]
    columns = {
        "purity_train": of_val.train,
        "gap": of_val.gap,
        "gap_error": of_val.standard_error,
    }
    columns |= {f"purity_{split}": diagnosis.val for split, diagnosis in found.items()}
    return {f"{key}/{name}": value for key, of in columns.items() for name, value in of.items()}
