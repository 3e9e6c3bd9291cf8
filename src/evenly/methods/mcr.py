"""Multimodal competition regulariser (MCR).

Kontras, Strypsteen, Chatzichristos, Liang, Blaschko, De Vos, "Balancing Multimodal Training
Through Game-Theoretic Regularization", NeurIPS 2025, https://arxiv.org/abs/2411.07335.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly.chance import stream
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output


def divergence(one: Float[Tensor, "n c"], other: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
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


def coalitions(
    names: Collection[str], moved: str, k: int
) -> Iterator[tuple[Collection[str], float]]:
    """Whose features learn from the contribution of the modality `moved`, and how strongly.

    k = 1, collaborative: all together. k = 0, independent: itself alone. k = -1, greedy: itself,
    and each of the others against it, with -1 between them.
    """
    if k == 1:
        yield names, 1.0
        return
    yield (moved,), 1.0
    if k:
        yield from (((name,), k / (len(names) - 1)) for name in names if name != moved)


class MCR(Method):
    """Lets modalities compete for a say in the prediction, each by what only it can tell.

    L = CE(z) + strength · L_MIPD + contrast · L_Con + bottleneck · L_CEB.

    The contribution of modality m is J_m = JSD(p, p_m), where p_m is the prediction with the
    features of m permuted over the batch, over `samples` permutations, and
    L_MIPD = -Σ_m (J_m for encoder m + k · J_m for the other encoders): a game in which the others
    help (k = 1), look on (k = 0) or work against it (k = -1). J_m for an encoder is that with the
    features of all others held still, in p and in p_m. L_Con is the supervised contrastive loss
    over the features of all modalities, see `contrast`; L_CEB the mean squared error of the
    features that the head's decoder finds from the (detached) logits, which keeps out of the
    features what the prediction does not tell.
    """

    info = Info(
        title="Multimodal competition regulariser (MCR)",
        paper="Kontras, Strypsteen, Chatzichristos, Liang, Blaschko, De Vos. Balancing Multimodal "
        "Training Through Game-Theoretic Regularization. NeurIPS 2025",
        year=2025,
        url="https://arxiv.org/abs/2411.07335",
        category="objective",
        writes="loss",
        modalities="any number: each is permuted in turn, and the greedy k is shared out among "
        "the others, which for two is the paper's rule; with one there is no game",
        neutral={"strength": 0.0, "contrast": 0.0, "bottleneck": 0.0},
        needs=("fuse",),
        head="decoding",
        cost="M² passes of as many batches as there are permutations through the head (k = -1)",
        budget=1.2,
        within_batch=True,
        missing=True,
        doubts="The three terms are as in the released code, its model by itself; its trainer "
        "differs in details: there features are encoded again in evaluation mode for the game, "
        "and unimodal losses with a weight from 0.01 to 1 are added, which are left out here. "
        "There p is one prediction for all players, with the gradients of all encoders, which "
        "cancel for k = -1 and for k = 0 teach each encoder the contributions of the others, too; "
        "here p has, as p_m, those of the players alone, as the paper states the game. There a "
        "modality that does not play has its logits W_m f_m held still; here its features, so W_m "
        "takes part. Predictions with permuted features include the bias, which its model by "
        "itself leaves out. The temperature is the default of its trainer. Weights are tuned for "
        "each data set (0.1, 1 and 1 for CREMA-D with Conformers, 0.1, 1 and 0 with ResNets). The "
        "rule for more than two modalities is unverified. A method of the head is called outside "
        "of its forward pass, so FSDP2 must not shard the head by itself, only with the whole "
        "model.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        strength: float = 0.1,
        contrast: float = 1.0,
        bottleneck: float = 1.0,
        k: int = -1,
        samples: int = 32,
        temperature: float = 0.5,
        seed: int = 0,
        head: nn.Module | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the terms.

        Args:
            encoders: By modality; their names say whose features count.
            strength: Of the game, not negative; 0.1 for CREMA-D.
            contrast: Weight of the contrastive loss, not negative; 1 in the paper. It needs
                features of one width.
            bottleneck: Weight of the bottleneck, not negative; 1.
            k: The game: 1 collaborative, 0 independent, -1 greedy, as in the
                released runs.
            samples: Permutations in each step, at least 1; 32 in the paper.
            temperature: Of the contrastive loss, above 0; 0.5 in the released trainer.
            seed: Of the permutations, which come from a stream of their own.
            head: The model's head, for the bottleneck: `head.decode(logits)` gives features by
                modality, as `evenly.nn.heads.DecodingHead` does. It is asked outside of autocast,
                for logits that autocast may have narrowed.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or not finite, or the head cannot decode.
        """
        super().__init__(encoders, criterion=criterion)
        for name, value in (
            ("strength", strength),
            ("contrast", contrast),
            ("bottleneck", bottleneck),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"MCR: '{name}' is finite and not negative; found {value}.")
        if k not in (-1, 0, 1):
            raise ValueError(f"MCR: 'k' is -1, 0 or 1; found {k}.")
        if samples < 1:
            raise ValueError(f"MCR: 'samples' is at least 1; found {samples}.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"MCR: 'temperature' is finite and above 0; found {temperature}.")
        if bottleneck and not hasattr(head, "decode"):
            raise ValueError(
                f"MCR: the bottleneck needs a head that can decode; found {type(head).__name__}. "
                "Pass head=model.head of a model with the head 'decoding', or bottleneck=0."
            )
        self.strength, self.contrast, self.bottleneck = strength, contrast, bottleneck
        self.k, self.samples, self.temperature, self.seed = k, samples, temperature, seed
        self.head: Any = head
        self.steps = 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + strength · L_MIPD + contrast · L_Con + bottleneck · L_CEB."""
        loss = super().loss(output, target)
        features = {name: full(value) for name, value in self._features(output).items()}
        found: dict[str, Tensor] = {}
        if self.strength and len(self.encoders) > 1:
            game, contributions = self._game(output, features)
            loss = loss + self.strength * game
            found |= {f"contribution/{name}": value for name, value in contributions.items()}
        if self.contrast:
            found["contrast"] = self._contrast(features, target)
            loss = loss + self.contrast * found["contrast"]
        if self.bottleneck:
            found["bottleneck"] = self._bottleneck(output, features)
            loss = loss + self.bottleneck * found["bottleneck"]
        if torch.is_grad_enabled():
            self.metrics = {name: value.detach() for name, value in found.items()}
        return loss

    def before_step(self) -> None:
        """Counts the steps, as each has permutations of its own."""
        self.steps += 1

    def _game(self, output: Output, names: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """-Σ_m Σ_coalitions share · JSD(p, p_m), and the contributions of the modalities."""
        fuse = self._need(output, "fuse")
        order = self._orders(output.logits)
        kept = torch.arange(len(output.logits), device=order.device).repeat(self.samples)
        total = full(output.logits).new_zeros(())
        found = {}
        for moved in names:
            for players, share in coalitions(names, moved, self.k):
                playing = {
                    name: value if name in players else value.detach()
                    for name, value in output.features.items()
                }
                mixed = {
                    name: value[order if name == moved else kept] for name, value in playing.items()
                }
                found[moved] = divergence(full(fuse(playing))[kept], full(fuse(mixed)))
                total = total - share * found[moved]
        return total, found

    def _contrast(self, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        widths = {name: value.shape[1] for name, value in features.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"MCR: the contrastive loss compares features of one width; found {widths}. Give "
                "the encoders the same `out_features`, or pass contrast=0."
            )
        return contrast(
            torch.cat(list(features.values())), target.repeat(len(features)), self.temperature
        )

    def _bottleneck(self, output: Output, features: Mapping[str, Tensor]) -> Tensor:
        decoded = self.head.decode(output.logits.detach())
        return nn.functional.mse_loss(
            full(torch.cat([decoded[name] for name in features], dim=1)),
            torch.cat(list(features.values()), dim=1),
        )

    def _orders(self, logits: Tensor) -> Int[Tensor, " sn"]:
        """The rows of one permutation after the other: a function of seed and step."""
        drawn = torch.rand(
            self.samples,
            len(logits),
            generator=stream(logits.device, self.seed, self.steps),
            device=logits.device,
            dtype=torch.float64,
        )
        return drawn.argsort(1).flatten()
