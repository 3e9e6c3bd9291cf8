"""The metrics of a model on one split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenly import distributed
from evenly.data.tasks import Task
from evenly.errors import UserError
from evenly.lab.run.measures import Measure, measured
from evenly.output import Output


@dataclass
class Evaluation:
    """Gathers predictions batch by batch, then computes the metrics of their task.

    Attributes:
        task: What is predicted.
        own: The user's own metrics, by name.
    """

    task: Task
    own: Mapping[str, Measure] = field(default_factory=dict)
    _logits: list[Tensor] = field(default_factory=list)
    _unimodal: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    _target: list[Tensor] = field(default_factory=list)
    _index: list[Tensor] = field(default_factory=list)

    def add(self, output: Output, target: Tensor) -> None:
        """Adds one batch, with its target in the form of the data."""
        self._logits.append(output.logits.detach().float())
        self._target.append(target)
        if output.index is not None:
            self._index.append(output.index)
        for name, logits in (output.unimodal or {}).items():
            here = (output.present or {}).get(name, target.new_ones(len(target), dtype=torch.bool))
            of_batch = logits.detach().float(), target, here
            self._unimodal.setdefault(name, []).append(of_batch)

    def together(self, count: int) -> "Evaluation":
        """The evaluation over all processes, whose shares are interleaved, in order.

        Args:
            count: Number of samples in the split; any more are padding of the shares.
        """
        if distributed.world_size() == 1:
            return self
        whole = Evaluation(self.task, self.own)

        def joined(parts: list[Tensor]) -> Tensor:
            shares = distributed.gather(torch.cat(parts))
            return torch.stack(shares, 1).flatten(0, 1)[:count]

        whole._logits, whole._target = [joined(self._logits)], [joined(self._target)]
        whole._index = [joined(self._index)] if self._index else []
        for name, parts in self._unimodal.items():
            logits, target, here = (joined(list(column)) for column in zip(*parts, strict=True))
            whole._unimodal[name] = [(logits, target, here)]
        return whole

    def check_finite(self, split: str) -> None:
        """Raises if a logit is NaN or infinite: scores would take NaN for some prediction.

        Args:
            split: Name of the split, in words.

        Raises:
            ValueError: If a fused logit is not finite, or a modality's own for a sample with it.
        """
        found = {"": torch.cat(self._logits)}
        for name, parts in self._unimodal.items():
            found[f" of '{name}'"] = torch.cat([logits[here] for logits, _, here in parts])
        for of, logits in found.items():
            if not logits.isfinite().all():
                raise UserError(
                    f"some logits{of} of the {split} split are NaN or infinite. Training has "
                    "diverged or the input holds such values: lower the learning rate, or clean "
                    "the input."
                )

    def metrics(self) -> dict[str, float]:
        """The metrics of the task and the user, and the main one for each modality's own logits.

        The loss is the task's plain one, whatever the training's criterion.
        """
        logits, targets = torch.cat(self._logits), torch.cat(self._target)
        found = self.task.measured(logits, targets)
        found |= measured(self.own, self.task.answers(logits), targets)
        for name, parts in self._unimodal.items():
            own, of_those, here = (torch.cat(column) for column in zip(*parts, strict=True))
            if here.any():
                score = self.task.mean_score(own[here], of_those[here])
                found[f"{self.task.main}/{name}"] = score
        return found

    def details(self) -> dict[str, float]:
        """The task's further metrics, only for the selected model."""
        return self.task.details(torch.cat(self._logits), torch.cat(self._target))

    def predictions(self) -> dict[str, Tensor]:
        """Predictions of the samples (samples, names), target and index, in the split's order."""
        return {
            self.task.said: self.task.answers(torch.cat(self._logits)).cpu(),
            "target": torch.cat(self._target).cpu(),
            "index": torch.cat(self._index).cpu(),
        }
