"""Fine-tuning of encoders that were first trained alone.

Pre-training by modality is among the remedies of Wang, Tran, Feiszli, "What Makes Training
Multi-Modal Classification Networks Hard?", CVPR 2020, https://arxiv.org/abs/1905.12681.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.errors import UserRuntimeError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.optimizers import check_trains, unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.reinit import is_fixed
from evenly.targets import ANY


class Finetune(Method):
    """Pre-trains each encoder alone, then trains all jointly.

    Before the first epoch the encoders are trained for `pretrain` epochs with Σ_m CE(z_m), each
    through its own linear layer. No parameter belongs to two modalities, so this equals separate
    trainings. Encoders keep the resulting weights, including BatchNorm's statistics; heads and
    optimiser start afresh. Training itself is joint training, L = CE(z).
    """

    info = Info(
        title="Fine-tuned uni-modal encoders",
        paper="Wang, Tran, Feiszli. What Makes Training Multi-Modal Classification Networks Hard? "
        "CVPR 2020",
        year=2020,
        url="https://arxiv.org/abs/1905.12681",
        category="optimisation",
        writes="weights",
        pretrains=True,
        keeps_loss=True,
        targets=ANY,
        modalities="any number; each is pre-trained by itself",
        neutral={"pretrain": 0},
        epochs=100,
        in_epochs=("pretrain",),
        needs=("unimodal",),
        unimodal="leaves",
        needs_probe=True,
        head="multi",
        missing=True,
        cost="none in a step; the pre-training comes before the first epoch",
        doubts="Papers that compare with it say little about the pre-training. We chose the "
        "length of the joint training, the same optimiser and a constant learning rate. "
        "The layers used for pre-training are discarded: the model's unimodal logits "
        "come from layers that were never trained.",
    )
    state: ClassVar[tuple[str, ...]] = ("is_pretrained",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        pretrain: int = 100,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the pre-training.

        Args:
            encoders: The modules to pre-train, by modality; those left out are only trained
                jointly.
            optimizer: The model's optimiser; another of its kind with its settings does the
                pre-training.
            pretrain: Epochs of pre-training; 0 is plain joint training.
            seed: Seed of the order of samples in the pre-training.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If the number of epochs is negative.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "not negative", pretrain=pretrain)
        if pretrain == 0:
            self.info = replace(self.info, partial=True, pretrains=False)
        self.optimizer, self.pretrain, self.seed = unwrapped(optimizer), pretrain, seed
        self.is_pretrained = False

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Pre-trains the encoders before the first epoch."""
        if self.pretrain == 0 or self.is_pretrained:
            return
        pretrain(self, self._probe(probe), self.pretrain, self.optimizer, self.seed, epoch)
        self.is_pretrained = True

    def is_due(self, epoch: int) -> bool:
        """Whether encoders are pre-trained before this epoch (from 0): before the first."""
        return epoch == 0 and self.pretrain > 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss, CE(z)."""
        loss = super().loss(output, target)
        if self.pretrain:
            loss = loss + distributed.idle(self._unimodal(output).values())
        return loss


def pretrain(
    method: Method, probe: Probe, epochs: int, optimizer: Optimizer, seed: int, epoch: int
) -> None:
    """Trains the encoders of a method by Σ_m CE(z_m) and keeps what they learn, but not the heads.

    Args:
        method: The method whose encoders learn.
        probe: Probe of the model.
        epochs: Passes over the training split.
        optimizer: Another of its kind with its settings does the work.
        seed: Seed of the order of samples.
        epoch: The epoch that begins, which must be the first, 0.

    Raises:
        RuntimeError: If training has begun.
        ValueError: If the optimiser leaves out trainable parameters of an encoder.
    """
    if epoch > 0:
        raise UserRuntimeError(
            f"{type(method).__name__}'s first epoch is {epoch}, so it is too late to pre-train. "
            "Resume with method.load_state_dict(checkpoint), or call before_epoch from epoch 0 on."
        )
    check_trains(optimizer, method.encoders, type(method).__name__)
    with probe.trained(
        method._unimodal_loss,
        epochs=epochs,
        optimizer=optimizer,
        seed=seed,
        criterion=method.criterion,
    ):
        found = [value.detach().clone() for value in _values(method)]
    with torch.no_grad():
        for value, trained in zip(_values(method), found, strict=True):
            value.copy_(trained)


def _values(method: Method) -> list[Tensor]:
    """Parameters and buffers of the encoders, without any quantised base."""
    return [
        value
        for encoder in method.encoders.values()
        for value in (*encoder.parameters(), *encoder.buffers())
        if not (isinstance(value, nn.Parameter) and is_fixed(value))
    ]
