"""ReconBoost: boosting over modalities, each reconciled with what the others have learnt.

Hua, Xu, Bao, Yang, Huang, "ReconBoost: Boosting Can Achieve Modality Reconcilement", ICML 2024,
https://arxiv.org/abs/2405.09321.
"""

from itertools import chain
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.optimizers import forget, unwrapped
from evenly.output import Output
from evenly.presence import having, only
from evenly.probe import Probe
from evenly.ranges import check_range


def boosting_loss(
    logits: Float[Tensor, "n c"],
    others: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    fit: float,
    reconcilement: float,
) -> Float[Tensor, ""]:
    """Mean over samples and classes of -w₁ y log p + w₂ (y q) log p, with q = softmax(others).

    With y the one-hot target this is (w₂ q[target] - w₁) · log p[target] / c: what the others
    already know counts less.
    """
    true = target.unsqueeze(-1)
    log_probability = logits.log_softmax(-1).gather(-1, true)
    known = others.softmax(-1).gather(-1, true)
    return ((reconcilement * known - fit) * log_probability).mean() / logits.shape[-1]


def agreement_loss(
    logits: Float[Tensor, "n c"], previous: Float[Tensor, "n c"]
) -> Float[Tensor, ""]:
    """Mean squared difference of the probabilities, with the previous learner as the reference."""
    return nn.functional.mse_loss(logits.softmax(-1), previous.detach().softmax(-1))


class ReconBoost(Method):
    """Trains the modalities in turns of whole epochs, each against the sum of the others.

    Training consists of stages; stage s trains modality m = s mod M. In its first `alternation`
    epochs only the encoder of m and the shared head learn, from

    L = mean over classes of [-w₁ y log p_m + w₂ (y softmax(J)) log p_m] + α MSE(p_m, p_prev),

    with J the prediction without m, and p_prev the probabilities of the previous stage's modality
    (not in the first stage, nor if that is m itself), both without gradient. In the next
    `rectification` epochs all encoders, the head and its boost rate learn from CE(rate · Σ_m z_m).
    Each phase starts with a fresh optimiser state. What is not trained gets no gradient at all, so
    neither momentum nor weight decay moves it.
    """

    info = Info(
        title="ReconBoost",
        paper="Hua, Xu, Bao, Yang, Huang. ReconBoost: Boosting Can Achieve Modality "
        "Reconcilement. ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2405.09321",
        category="optimisation",
        writes="gradients",
        modalities="any number, in the order of the encoders; with one, the others' prediction "
        "is that of no model: uniform",
        neutral={"alternation": 0},
        epochs=800,
        in_epochs=("alternation", "rectification"),
        needs=("unimodal", "fuse"),
        unimodal="trains",
        head="boosted",
        cost="half of the epochs train one encoder only, and pass the others' features through "
        "the head once more",
        budget=1.1,
        partial=True,
        missing=True,
        doubts="The released code detaches both sides of its agreement term, which therefore "
        "has no gradient; here the gradient of the modality in training is kept, as the "
        "paper intends. The released code runs for 1001 stages; our 800 epochs are its "
        "first 100, after which it kept its best model for CREMA-D. Its best results start "
        "from unimodally trained encoders; without them, it adds a modality to the sum "
        "only after the modality's first stage, while here all are in the sum from the "
        "start, as in the prediction. It divides its learning rate by ten every 30 "
        "stages, which is left to the loop. As in the released code, encoders that are "
        "not being trained stay in training mode.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        head: nn.Module,
        alternation: int = 4,
        rectification: int = 4,
        fit: float = 5.0,
        reconcilement: float = 1.0,
        agreement: float = 0.5,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the stages; the defaults are the paper's.

        Args:
            encoders: By modality, in the order of their stages.
            optimizer: The optimiser; each phase clears its state for encoders and head.
            head: The shared head, with its rate as `boost_rate`.
            alternation: T₁, epochs of a stage that train one modality; with 0, all training is one
                joint phase.
            rectification: T₂, epochs of a stage that train all modalities.
            fit: w₁, weight of the cross-entropy of the modality in training.
            reconcilement: w₂, weight of what the others already know.
            agreement: α, weight of the squared difference from the previous stage's modality.
            criterion: See `Method`; used in the joint phase.

        Raises:
            TypeError: If the head has no boost rate.
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(
            self,
            "not negative",
            alternation=alternation,
            rectification=rectification,
            fit=fit,
            reconcilement=reconcilement,
            agreement=agreement,
        )
        if alternation + rectification == 0:
            raise UserError(
                "ReconBoost: 'alternation' and 'rectification' are both 0, so a stage has no "
                "epochs. Make one of them at least 1."
            )
        rate = getattr(head, "boost_rate", None)
        if not isinstance(rate, nn.Parameter):
            raise TypeError(
                "ReconBoost needs a head with the parameter 'boost_rate'; "
                f"{type(head).__name__} has none. Use the head 'boosted' of evenly.nn."
            )
        self.optimizer, self.head = unwrapped(optimizer), head
        self.alternation, self.rectification = alternation, rectification
        self.fit, self.reconcilement, self.agreement = fit, reconcilement, agreement
        self.epoch = -1

    @property
    def stage(self) -> int:
        """The stage of this epoch, from 0."""
        return max(self.epoch, 0) // (self.alternation + self.rectification)

    @property
    def trained(self) -> str | None:
        """The modality that this epoch trains; None for all of them."""
        if self._within >= self.alternation:
            return None
        return self._modality(self.stage)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch; at the start of a phase, the optimiser starts afresh."""
        if epoch == self.epoch:  # a run resumed mid-epoch has already started its phase
            return
        self.epoch = epoch
        if probe is not None:  # the optimiser knows the shards only
            distributed.reshard(probe.model)
        if self.alternation and self._within in (0, self.alternation):
            forget(self.optimizer, self._parameters())

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The reconcilement loss of the modality in training, or the joint loss."""
        if (name := self.trained) is None:
            return super().loss(output, target)
        others = self._others(output, name)
        unimodal = {key: full(logits) for key, logits in self._unimodal(output).items()}
        if name not in unimodal:  # missing from the batch: nothing to learn, and no error
            return output.logits[:0].sum()
        boosting = boosting_loss(unimodal[name], others, target, self.fit, self.reconcilement)
        found = {"boosting": boosting}
        loss = boosting
        previous = self._modality(self.stage - 1)
        if self.stage > 0 and previous != name and previous in unimodal:
            here = having(output, name, previous)
            both = (only(unimodal[key], here) for key in (name, previous))
            found["agreement"] = agreement_loss(*both)
            loss = loss + self.agreement * found["agreement"]
        if torch.is_grad_enabled():
            self.metrics = {f"{key}/{name}": value.detach() for key, value in found.items()}
        waiting = (self.encoders[key].parameters() for key in unimodal if key != name)
        return distributed.joined(loss, chain([self._rate], *waiting))

    def before_step(self) -> None:
        """Removes the gradients of what is not trained."""
        if self.trained is None:
            return
        for name, encoder in self.encoders.items():
            if name != self.trained:
                encoder.zero_grad(set_to_none=True)
        self._rate.grad = None

    @property
    def _rate(self) -> nn.Parameter:
        return cast(nn.Parameter, self.head.boost_rate)

    @property
    def _within(self) -> int:
        return max(self.epoch, 0) % (self.alternation + self.rectification)

    def _modality(self, stage: int) -> str:
        return list(self.encoders)[stage % len(self.encoders)]

    @torch.no_grad()
    def _others(self, output: Output, name: str) -> Float[Tensor, "n c"]:
        """J: the prediction without a modality; zeros (uniform) if there is no other.

        A head that learnt a vector in place of missing features puts it in the modality's.
        """
        fuse = self._need(output, "fuse")
        features = {key: x for key, x in self._features(output).items() if key != name}
        found: Tensor = fuse(features) if features else torch.zeros_like(output.logits)
        return full(found)

    def _parameters(self) -> chain[nn.Parameter]:
        modules = (*self.encoders.values(), self.head)
        return chain.from_iterable(module.parameters() for module in modules)
