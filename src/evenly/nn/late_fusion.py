"""Late fusion, the model on which balanced multimodal learning is mostly studied."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from evenly import modes
from evenly.data.dataset import Padded
from evenly.distributed import world_size
from evenly.errors import UserError
from evenly.nn.encoders import Staged, Stages, Standardise, resumed, with_a_step
from evenly.nn.heads import HEADS, Head
from evenly.nn.presence import scattered, taken
from evenly.nn.tokens import Tokened, Tokens
from evenly.output import Output
from evenly.suggest import unknown

Inputs = Mapping[str, Shaped[Tensor, "n ..."] | Padded]
Encoder = Callable[[Any], Tensor]
HeadMaker = Callable[[Mapping[str, nn.Module], Mapping[str, int], int], Head]
"""Makes a head from encoders, the widths of their features, and the number of classes."""


class LateFusion(nn.Module):
    """One encoder per modality, and a head on their features.

    Only the head 'mmtm' reaches further back, with cross-modal blocks between the stages of
    `Staged` encoders.

    Attributes:
        encoders: Encoders by modality.
        head: Turns features into logits; see `evenly.nn.heads`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        head: str | HeadMaker = "concat",
        *,
        missing_token: bool = False,
    ) -> None:
        """Puts a head on the encoders.

        Args:
            encoders: By modality; each has `out_features`, the width of the vectors it returns.
            num_classes: Number of classes.
            head: A name in `HEADS`, by default a linear layer on the concatenated features;
                `METHODS[name].info.head` says which head a method is made for. Or a function that
                makes your own, such as `MyHead.on` of a class that derives from `Head`.
            missing_token: Whether the head learns a vector for each modality, zeros at first, to
                fuse instead of missing features.

        Raises:
            ValueError: If there is no encoder, one does not say how wide its features are, or
                the head is unknown.
        """
        super().__init__()
        if not encoders:
            raise UserError("LateFusion needs an encoder for each modality; found none.")
        if isinstance(head, str) and head not in HEADS:
            raise unknown("head", head, HEADS)
        widths = {name: feature_width(name, encoder) for name, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(dict(encoders))
        make = HEADS[head].on if isinstance(head, str) else head
        self.head = make(encoders, widths, num_classes)
        if missing_token:
            self.head.learn_missing()

    def forward(
        self, inputs: Inputs, present: Mapping[str, Bool[Tensor, " n"]] | None = None
    ) -> Output:
        """Encodes each modality in the batch, and fuses.

        Args:
            inputs: Inputs by modality.
            present: By modality, which samples have it; modalities not named are complete. Masks on
                the CPU, where the batch was read, are checked without waiting for the device. Each
                sample is predicted as in a batch without the modalities it lacks, whatever the
                others have: the encoder does not see it, its features and logits of that modality
                are zeros, and the fusion skips them. A sample without any modality has zeros as
                fused logits, too. A head with `missing_token` fuses its vectors instead of missing
                features.
        """
        # A complete mask counts as none, which saves grouping and copies.
        here = {name: mask for name, mask in (present or {}).items() if not mask.all()}
        encoders: dict[str, Encoder] = {
            name: _Partly(encoder, here[name]) if name in here else encoder
            for name, encoder in self.encoders.items()
        }
        features = self.head.encoded(encoders, inputs, here)
        logits, unimodal = self.head(features, here)
        zero: Tensor | None = None
        if (here or self.head.missing is not None) and world_size() > 1:
            # Other ranks wait for gradients of parts that no sample of this rank went through.
            zero = _nothing_of([*features.values(), *self.head.parameters()])
            logits = logits + zero
            unimodal = {name: x + zero for name, x in unimodal.items()}
        elif here and torch.is_grad_enabled():
            for z in (logits, *unimodal.values()):
                if not z.requires_grad:  # no sample has it, so its loss has no gradient
                    z.requires_grad_()
        precision = _precision(logits.device)

        def fuse(features: Mapping[str, Tensor]) -> Tensor:
            with precision():
                logits = self._fused(features, here)
            return logits if zero is None else logits + zero

        known: dict[tuple[str, bool, bool], Tensor] = {}

        def ablate(keep: Collection[str]) -> Tensor:
            with precision():
                return self._ablated(encoders, inputs, here, keep, known)

        seen = present and {
            name: mask.to(logits.device, non_blocking=True) for name, mask in present.items()
        }
        return Output(logits, features, unimodal, fuse=fuse, ablate=ablate, present=seen)

    def _fused(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " _"]],
    ) -> Float[Tensor, "n c"]:
        # A method may pass the batch several times over, each time with other features.
        again = {
            name: here[name].repeat(len(value) // len(here[name]))
            for name, value in features.items()
            if name in here
        }
        logits: Tensor = self.head(features, again)[0]
        return logits

    def _ablated(
        self,
        encoders: Mapping[str, Encoder],
        inputs: Inputs,
        here: Mapping[str, Bool[Tensor, " n"]],
        keep: Collection[str],
        known: dict[tuple[str, bool, bool], Tensor],
    ) -> Float[Tensor, "n c"]:
        """The logits of a batch without the other inputs.

        If encoders do not see each other, none has to run twice: `known` holds its features, by
        modality, whether it was kept, and whether gradients flow.
        """
        mine = {name: inputs[name] for name in self.encoders if name in inputs}
        with modes.restored(self):
            self.eval()  # BatchNorm's statistics come from real inputs
            if self.head.meets:
                masked = {
                    name: x if name in keep else blank(x, self.encoders[name])
                    for name, x in mine.items()
                }
                return self._fused(self.head.encoded(encoders, masked, here), here)
            features = {}
            for name, x in mine.items():
                key = (name, name in keep, torch.is_grad_enabled())
                if key not in known:
                    kept = name in keep
                    known[key] = encoders[name](x) if kept else self._blanked(encoders, name, x)
                features[name] = known[key]
            return self._fused(features, here)

    def _blanked(
        self, encoders: Mapping[str, Encoder], name: str, x: Tensor | Padded
    ) -> Float[Tensor, "n w"]:
        """The features of an input of zeros, computed for one sample and repeated for all."""
        encoder = encoders[name]
        if isinstance(x, Padded) or isinstance(encoder, _Partly):
            return encoder(blank(x, self.encoders[name]))
        return encoder(blank(x[:1], self.encoders[name])).expand(len(x), -1)


class _Partly:
    """An encoder that skips samples without its modality and returns zeros for them.

    So blanks do not count in a BatchNorm, and no encoder has to accept them. Only if several ranks
    train does it see one blank when all samples lack the modality, since the other ranks wait for
    it; the result is discarded.
    """

    def __init__(self, encoder: nn.Module, here: Bool[Tensor, " n"]) -> None:
        self.encoder, self.here = encoder, here
        self.width = feature_width("", encoder)
        self.rows = here.nonzero().flatten()
        idle = not len(self.rows) and world_size() > 1
        self.fed = self.rows.new_zeros(1) if idle else self.rows

    def __call__(self, x: Tensor | Padded) -> Float[Tensor, "n w"]:
        """The features."""
        if not len(self.fed):
            return self._zeros(x, self.width)
        with self._norms():
            return self._whole(self.encoder(self._taken(x)))

    def staged(self, x: Tensor | Padded) -> Stages:
        """Encodes stop by stop; means and factors cover all samples."""
        assert isinstance(self.encoder, Staged)
        if not len(self.fed):
            for width in self.encoder.stage_widths:
                yield self._zeros(x, width)
            return self._zeros(x, self.width)
        with self._norms():
            run = self.encoder.staged(self._taken(x))
            found = next(run)
            for _ in self.encoder.stage_widths:
                factor = yield self._whole(found)
                found = resumed(run, taken(factor, self.fed))
            return self._whole(found)

    def tokens(self, x: Tensor | Padded) -> Tokens:
        """The tokens; samples that lack the modality have none."""
        assert isinstance(self.encoder, Tokened)
        if not len(self.fed):
            return Tokens(self._zeros(x, 1, self.width), self._zeros(x, 1).bool())
        with self._norms():
            steps, there = self.encoder.tokens(self._taken(x))
        return Tokens(self._whole(steps), self._whole(there))

    @contextmanager
    def _norms(self) -> Iterator[None]:
        """Lets BatchNorm, which cannot train on a single sample, use its running statistics.

        Not SyncBatchNorm, which has the samples of all ranks, and waits for those of each.
        """
        norms = [
            module
            for module in self.encoder.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training
            and len(self.fed) == 1
            and not (isinstance(module, nn.SyncBatchNorm) and world_size() > 1)
        ]
        for module in norms:
            module.training = False
        try:
            yield
        finally:
            for module in norms:
                module.training = True

    def _taken(self, x: Tensor | Padded) -> Tensor | Padded:
        found = taken(x, self.fed)
        idle = len(self.fed) > len(self.rows)
        if idle and isinstance(found, Padded):  # a blank has one step, for the mean
            found = with_a_step(found)
            found = Padded(found.values, found.length.clamp_min(1))
        return found

    def _zeros(self, x: Tensor | Padded, *shape: int) -> Tensor:
        device = (x if isinstance(x, Tensor) else x.values).device
        return torch.zeros(len(self.here), *shape, device=device)

    def _whole(self, found: Tensor) -> Tensor:
        part = (self.rows, found[: len(self.rows)])
        return scattered([part], len(self.here), found.shape[1:], found.device)


def _nothing_of(several: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Zero, whose gradient is zero everywhere."""
    return torch.stack([x.flatten()[:0].float().sum() for x in several]).sum()


def _precision(device: torch.device) -> Callable[[], torch.autocast]:
    """Recreates the current autocast later, since losses are computed outside it."""
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype, enabled)


def feature_width(name: str, encoder: nn.Module) -> int:
    """The width of an encoder's features, which the encoder must declare."""
    width = getattr(encoder, "out_features", None)
    if not isinstance(width, int):
        raise UserError(
            f"encoder '{name}' ({type(encoder).__name__}) has no `out_features`, so the "
            "head cannot know how wide its features are. Set it to their width: "
            "encoder.out_features = 512."
        )
    return width


def blank(x: Tensor | Padded, encoder: nn.Module) -> Tensor | Padded:
    """The input that an encoder sees as zeros, after its own standardisation if any."""
    if isinstance(x, Tensor) and (known := getattr(encoder, "blank", None)) is not None:
        features: Tensor = known.expand(len(x), -1)
        return features
    if isinstance(x, Padded) and x.values.dim() == 2:
        return Padded(x.values, torch.zeros_like(x.length))  # a text without tokens
    if isinstance(x, Padded):
        values = blank(x.values, encoder)
        assert isinstance(values, Tensor)
        return Padded(values, x.length)
    standard = next((m for m in encoder.modules() if isinstance(m, Standardise)), None)
    if standard is None:
        return torch.zeros_like(x)
    return standard.mean.expand(x.shape)
