"""The metrics of a model on one split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenly import distributed
from evenly.data.tasks import Task
from evenly.lab.run.measures import Measure, measured
from evenly.output import Output


@dataclass
class Evaluation:
    """Gathers predictions batch by batch, then computes the metrics of their task.

    Attributes:
        task: What is predicted.
        own: Metrics of the user's own, by name.
    """

    task: Task
    own: Mapping[str, Measure] = field(default_factory=dict)
    _logits: list[Tensor] = field(default_factory=list)
    _unimodal: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    _target: list[Tensor] = field(default_factory=list)
    _index: list[Tensor] = field(default_factory=list)

    def add(self, output: Output, target: Tensor) -> None:
        """Takes one batch, with its target as the data have it."""
        self._logits.append(output.logits.detach().float())
        self._target.append(target)
        if output.index is not None:
            self._index.append(output.index)
        for name, logits in (output.unimodal or {}).items():
            here = (output.present or {}).get(name, target.new_ones(len(target), dtype=torch.bool))
            of_batch = logits.detach().float(), target, here
            self._unimodal.setdefault(name, []).append(of_batch)

    def together(self, count: int) -> "Evaluation":
        """That of all processes, of which each has every so-manieth sample, in order.

        Args:
            count: Samples of the split; what the shares hold beyond is there to make them even.
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

    def metrics(self) -> dict[str, float]:
        """Those of the task and of the user, and the main one of each modality's own logits.

        The loss is the task's plain one, whatever the criterion of the training is.
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
        """What is worth knowing of the selected model alone, as the task has it."""
        return self.task.details(torch.cat(self._logits), torch.cat(self._target))

    def predictions(self) -> dict[str, Tensor]:
        """What is said of each sample (samples, names), target and index, in the split's order."""
        return {
            self.task.said: self.task.answers(torch.cat(self._logits)).cpu(),
            "target": torch.cat(self._target).cpu(),
            "index": torch.cat(self._index).cpu(),
        }
