"""Multimodal competition regulariser (MCR).

Kontras, Strypsteen, Chatzichristos, Liang, Blaschko, De Vos, "Balancing Multimodal Training
Through Game-Theoretic Regularization", NeurIPS 2025, https://arxiv.org/abs/2411.07335.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.chance import orders, stream
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.methods.finetune import pretrain as pretrained
from evenly.modulation import full, is_sum
from evenly.optimizers import unwrapped
from evenly.output import Output
from evenly.presence import having, parts, those
from evenly.probe import Probe
from evenly.ranges import check_range

Names = tuple[str, ...]


def divergence(one: Float[Tensor, "*s n c"], other: Float[Tensor, "*s n c"]) -> Float[Tensor, ""]:
    """The mean Jensen-Shannon divergence of two predictions: JSD(softmax(z), softmax(z'))."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1).mean() / 2


def contrast(
    features: Float[Tensor, "n d"], target: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    """The supervised contrastive loss.

    The mean, over all pairs (a, p) of samples of one class, of
    -log exp(s_ap) / (exp(s_ap) + Σ_{k of other classes} exp(s_ak)), s = cosine / temperature.
    """
    x = nn.functional.normalize(features, dim=1, eps=1e-6)
    s = x @ x.T / temperature
    alike = target[:, None] == target[None, :]
    # a finite number for "no such pair": the gradient of a sum over none is not a number
    others = s.masked_fill(alike, torch.finfo(s.dtype).min / 4).logsumexp(1, keepdim=True)
    pairs = alike & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    found = nn.functional.softplus(others - s).masked_fill(~pairs, 0.0).sum()
    return found / pairs.sum().clamp_min(1)


def games(names: Sequence[str], k: int) -> Iterator[tuple[Names, Names, float]]:
    """What is permuted, whose logits learn from the change, and how strongly.

    Two modalities are permuted one at a time, three or more in pairs. With k = 1 (collaborative),
    all modalities learn. With k = 0 (independent), only the permuted ones do. With k = -1 (greedy),
    the permuted ones learn, and each of the others learns against them.
    """
    for moved in combinations(names, 2 if len(names) > 2 else 1):
        if k == 1:
            yield moved, tuple(names), 1.0
            continue
        yield moved, moved, 1.0
        if k == -1:
            yield from ((moved, (name,), -1.0) for name in names if name not in moved)


class MCR(Method):
    """Lets modalities compete for the prediction, each with what it alone can tell.

    L = CE(z) + unimodal · Σ_m CE(u_m) + strength · L_MIPD + contrast · L_Con + bottleneck · L_CEB,
    where z = Σ_m z_m + b are the logits of a linear fused layer, with z_m = W_m f_m, and u_m those
    of a classifier of modality m beside that layer.

    The contribution of a modality is J_m = JSD(p, p_m), where p_m is the prediction with z_m
    permuted over the batch, over `samples` permutations, and
    L_MIPD = -Σ_m (J_m for modality m + k · J_m for the others), with k = 1 simply -Σ_m J_m: a game
    in which the others help (k = 1), watch (k = 0) or work against it (k = -1). J_m for a modality
    passes gradients through only its own z_m (and the bias b) in p_m, but through all in p. With
    three or more modalities, each pair is permuted jointly. L_Con is the supervised contrastive
    loss over the features of all modalities, see `contrast`; L_CEB the mean squared error of the
    features that the head's decoder reconstructs from the detached logits, which keeps anything the
    prediction does not need out of the features.

    In a model of your own, give each modality a layer beside the fused one. `Output.unimodal` holds
    the logits of these layers, u_m; with the shares of `evenly.split_linear` instead, the unimodal
    losses would train the fused layer. `Output.fuse` applies the fused layer to other features;
    from it the method takes the z_m.

    Before the first epoch, the encoders may be pre-trained alone, as in `Finetune`.
    """

    info = Info(
        title="Multimodal competition regulariser (MCR)",
        paper="Kontras, Strypsteen, Chatzichristos, Liang, Blaschko, De Vos. Balancing Multimodal "
        "Training Through Game-Theoretic Regularization. NeurIPS 2025",
        year=2025,
        url="https://arxiv.org/abs/2411.07335",
        category="objective",
        writes="loss",
        modalities="any number: of two each is permuted in turn, of more each pair; with one there "
        "is no game",
        neutral={"strength": 0.0, "contrast": 0.0, "bottleneck": 0.0, "unimodal": 0.0},
        needs=("unimodal", "fuse"),
        unimodal="trains",
        head="decoding",
        cost="M² divergences of as many batches of logits as there are permutations (k = -1); the "
        "head once more on M + 1 times the batch",
        budget=1.2,
        within_batch=True,
        missing=True,
        doubts="The terms follow the released code (its models and trainers), which encodes "
        "features a second time, in evaluation mode, for the game. One version of its trainer "
        "for two modalities computes game and contrast, but leaves both out of the loss. Its "
        "models for Something-Something train W_m f_m + b in place of classifiers of the "
        "encoders' own. Encoders that were pre-trained alone bring their classifiers along; "
        "here classifiers start afresh. Its trainers for three modalities permute each alone "
        "as well as each pair, by an order of its own for each of the two, and each modality "
        "learns from a divergence of its own; here three or more are permuted in pairs, "
        "jointly, all with weight 1. The defaults are those of the run on CREMA-D with "
        "Conformers. With ResNets, `unimodal` is 0.01 and `bottleneck` 0, and the run begins "
        "with encoders pre-trained alone: set `pretrain` for that. The temperature is the "
        "default of its trainer. Because a method of the head is called outside its forward "
        "pass, FSDP2 must shard the head together with the whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps", "is_pretrained")

    def __init__(
        self,
        encoders: Encoders,
        *,
        strength: float = 0.1,
        contrast: float = 1.0,
        bottleneck: float = 1.0,
        unimodal: float = 1.0,
        k: int = -1,
        samples: int = 32,
        temperature: float = 0.5,
        pretrain: int = 0,
        seed: int = 0,
        head: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the terms.

        Args:
            encoders: By modality; their names say whose features count.
            strength: Weight of the game, not negative; 0.1 for CREMA-D.
            contrast: Weight of the contrastive loss, not negative; 1 in the paper. It needs
                features of equal width.
            bottleneck: Weight of the bottleneck, not negative; 1.
            unimodal: Weight of the unimodal losses, not negative; 1 in the released run with
                Conformers, 0.01 with ResNets.
            k: The game: 1 collaborative, 0 independent, -1 greedy (the released runs).
            samples: Permutations in each step, at least 1; 32 in the paper.
            temperature: Temperature of the contrastive loss, above 0; 0.5 in the released trainer.
            pretrain: Epochs of training the encoders alone before the first epoch.
            seed: Seed of the permutations, drawn from a separate stream, and of the order of
                samples in the pre-training.
            head: The model's head, for the bottleneck: `head.decode(logits)` returns features by
                modality, as in `evenly.nn.heads.DecodingHead`. It is called outside autocast, with
                logits that autocast may have narrowed.
            optimizer: The model's optimiser; another of its kind with its settings does the
                pre-training.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or not finite, the head cannot decode, or there
                is no optimiser to pre-train with.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(
            self,
            "finite and not negative",
            strength=strength,
            contrast=contrast,
            bottleneck=bottleneck,
            unimodal=unimodal,
            pretrain=pretrain,
        )
        if k not in (-1, 0, 1):
            raise UserError(f"MCR: 'k' is -1, 0 or 1; found {k}.")
        check_range(self, "at least 1", samples=samples)
        check_range(self, "finite and above 0", temperature=temperature)
        if bottleneck and not hasattr(head, "decode"):
            raise UserError(
                f"MCR: the bottleneck needs a head that can decode; found {type(head).__name__}. "
                "Pass head=model.head of a model with the head 'decoding', or bottleneck=0."
            )
        if pretrain and optimizer is None:
            raise UserError(
                "MCR: 'pretrain' trains the encoders alone with an optimiser like the model's; "
                "found none. Pass optimizer=optimizer."
            )
        if pretrain:
            self.info = replace(self.info, needs_probe=True, pretrains=True)
        if bottleneck == 0:  # then the decoder has no gradient
            self.info = replace(self.info, partial=True)
        if unimodal == 0:
            self.info = replace(self.info, unimodal="leaves")
        self.pretrain, self.optimizer = pretrain, optimizer and unwrapped(optimizer)
        self.is_pretrained = False
        self.unimodal = unimodal
        self.strength, self.contrast, self.bottleneck = strength, contrast, bottleneck
        self.k, self.samples, self.temperature, self.seed = k, samples, temperature, seed
        self.head: Any = head
        self.steps = 0
        self._adds_up = False

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Pre-trains the encoders before the first epoch, if asked to."""
        if not self.pretrain or self.is_pretrained:
            return
        assert self.optimizer is not None
        pretrained(self, self._probe(probe), self.pretrain, self.optimizer, self.seed, epoch)
        self.is_pretrained = True

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + unimodal · Σ CE(u_m) + strength · L_MIPD + contrast · L_Con + ..."""
        loss = super().loss(output, target)
        features = {name: full(value) for name, value in self._features(output).items()}
        found: dict[str, Tensor] = {}
        if self.strength and len(self.encoders) > 1:
            game, contributions = self._game(output)
            loss = loss + self.strength * game
            found |= {f"contribution/{'+'.join(m)}": value for m, value in contributions.items()}
        if self.unimodal:
            loss = loss + self.unimodal * self._unimodal_loss(output, target)
        elif output.unimodal and (self.strength or self.contrast or self.bottleneck):
            loss = loss + distributed.idle(output.unimodal.values())
        if self.contrast:
            found["contrast"] = self._contrast(output, features, target)
            loss = loss + self.contrast * found["contrast"]
        if self.bottleneck:
            found["bottleneck"] = self._bottleneck(output, features)
            loss = loss + self.bottleneck * found["bottleneck"]
        if torch.is_grad_enabled():
            self.metrics = {name: value.detach() for name, value in found.items()}
        return loss

    def before_step(self) -> None:
        """Counts the steps, since each draws its own permutations."""
        self.steps += 1

    def _game(self, output: Output) -> tuple[Tensor, dict[Names, Tensor]]:
        """-Σ share · JSD(p, p_m) over all games, and the effect of each permutation."""
        shares = self._shares(output)
        total = full(output.logits[:0]).sum()
        found: dict[Names, Tensor] = {}
        for part in parts(output, shares):
            own = {name: part.of(shares[name]) for name in part.names}
            logits = full(part.of(output.logits))
            orders = self._orders(logits)
            changed: dict[Names, Tensor] = {}
            for moved, players, share in games(tuple(own), self.k):
                held = {name: z if name in players else z.detach() for name, z in own.items()}
                # Leaves the value as it is, but detaches what the others add.
                still = logits + sum((held[m] - z for m, z in own.items()), logits.new_zeros(()))
                moves = [held[name][orders] - held[name] for name in moved]
                mixed = still + torch.stack(moves).sum(0)
                changed[moved] = part.share * divergence(logits.expand_as(mixed), mixed)
                total = total - share * changed[moved]
            for moved, value in changed.items():
                found[moved] = found[moved] + value if moved in found else value
        return total, found

    def _shares(self, output: Output) -> dict[str, Float[Tensor, "n c"]]:
        """W_m f_m: by how much each modality's features move the fused logits from zeros'."""
        fuse, features = self._need(output, "fuse"), output.features
        # Copies of the batch, each with one modality's features and zeros as the others', and one
        # with zeros only. A modality left out would count as missing, whose vector may be learnt.
        kept = (*features, None)
        copies = {
            name: torch.cat([x if name == one else torch.zeros_like(x) for one in kept])
            for name, x in features.items()
        }
        *alone, none = full(fuse(copies)).unflatten(0, (len(kept), len(output.logits)))
        shares = {name: z - none for name, z in zip(features, alone, strict=True)}
        if not self._adds_up:
            told = is_sum([none, *shares.values()], output.logits)
            if told is False:
                raise UserError(
                    "MCR permutes what each modality adds to the fused logits, but the logits that "
                    "`Output.fuse` gives the modalities one by one do not add up to "
                    "`Output.logits`. Use a linear layer on concatenated features, such as that of "
                    "the head 'decoding', or pass strength=0."
                )
            self._adds_up = told is True
        return self._mine(shares, "Output.features", present=features)

    def _contrast(self, output: Output, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        widths = {name: value.shape[1] for name, value in features.items()}
        if len(set(widths.values())) > 1:
            raise UserError(
                f"MCR: the contrastive loss compares features of one width; found {widths}. Give "
                "the encoders the same `out_features`, or pass contrast=0."
            )
        here = {name: having(output, name) for name in features}
        return contrast(
            torch.cat([those(value, here[name]) for name, value in features.items()]),
            torch.cat([those(target, here[name]) for name in features]),
            self.temperature,
        )

    def _bottleneck(self, output: Output, features: Mapping[str, Tensor]) -> Tensor:
        decoded = self.head.decode(output.logits.detach())
        loss = full(output.logits[:0]).sum()
        for part in parts(output, features):
            if part.names:
                error = nn.functional.mse_loss(
                    full(torch.cat([part.of(decoded[name]) for name in part.names], dim=1)),
                    torch.cat([part.of(features[name]) for name in part.names], dim=1),
                )
                loss = loss + part.share * error
        return loss

    def _orders(self, logits: Tensor) -> Int[Tensor, "s n"]:
        """Permutations of the rows, a function of seed and step."""
        numbers = stream(logits.device, self.seed, self.steps)
        return orders(self.samples, len(logits), numbers)
