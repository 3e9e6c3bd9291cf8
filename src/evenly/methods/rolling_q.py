"""RollingQ: rotates the query with which a class token attends to modalities.

Ni, Wei, Liu, Chen, Peng, Lin, Hu, "RollingQ: Reviving the Cooperation Dynamics in Multimodal
Transformer", ICML 2025, https://arxiv.org/abs/2506.11465.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import ANY


def imbalance(cosine: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """How imbalanced attention is, from 0 to 2: max s - min s; for two, |AIR| = |s_a - s_v|."""
    return cosine.max() - cosine.min()


def shares(cosine: Float[Tensor, " m"], rho: float) -> Float[Tensor, " m"]:
    """α = softmax(-2ρ s), which is larger the less attention a modality has.

    For two modalities it is the paper's α_a = ½ (1 + tanh(-ρ (s_a - s_v))).
    """
    return (-2 * rho * cosine).softmax(0)


def anchor(keys: Float[Tensor, "m w"], share: Float[Tensor, " m"]) -> Float[Tensor, " w"]:
    """Where the query should point: Σ α_m k̄_m / ‖k̄_m‖."""
    return share @ nn.functional.normalize(keys, dim=1)


def rotation(query: Float[Tensor, " w"], goal: Float[Tensor, " w"]) -> Float[Tensor, "w w"]:
    """The rotation that turns one vector's direction to another's, in their plane.

    R = I + [u v] (T - I) [u v]ᵀ with u along the query, v orthogonal to it on the goal's side, and
    T the rotation by the angle between them. It equals U Vᵀ from a singular value decomposition of
    goal queryᵀ, which has rank one and leaves open what happens to vectors orthogonal to both:
    here, nothing. If either vector is zero, it is the identity; if they are opposite, the
    reflection.
    """
    identity = torch.eye(len(query), dtype=query.dtype, device=query.device)
    if not (query.norm() > 0 and goal.norm() > 0):
        return identity
    u, along = nn.functional.normalize(query, dim=0), nn.functional.normalize(goal, dim=0)
    cosine = along @ u
    aside = along - cosine * u
    sine = aside.norm()
    plane = torch.stack([u, nn.functional.normalize(aside, dim=0)])
    turn = torch.stack([cosine - 1, -sine, sine, cosine - 1]).view(2, 2)
    return identity + plane.T @ turn @ plane


@runtime_checkable
class Rolling(Protocol):
    """A head with a class token whose query can be rotated, such as 'rolling'."""

    def query(self) -> Tensor:
        """The class token's query (w), as rotated so far."""

    def keys(self, features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The keys (n, w) that the query meets, by modality."""

    def turn(self, rotation: Tensor) -> None:
        """Rotates the query further, by a matrix (w, w)."""


class RollingQ(Method):
    """Turns the class token's query away from the modality that dominates attention.

    Training is joint training. Before each epoch but the first, as long as rotations remain, the
    method measures s_m = mean cos(q, k_m), the cosine of the query with modality m's keys, and the
    mean key k̄_m on the training split. If the largest s is more than `beta` above the smallest
    (for two, |AIR| > β with AIR = s_a - s_v), the query is rotated from the direction of q to

        Σ_m α_m k̄_m / ‖k̄_m‖,   α = softmax(-2ρ s), for two ½ (1 ± tanh(-ρ AIR)),

    which is nearer to the keys of the modality with less attention. The rotation is not trained. It
    multiplies the earlier ones in a buffer of the head, so a checkpoint of the model alone predicts
    the same.

    Attributes:
        turns: The number of rotations so far.
    """

    info = Info(
        title="Rolling Query (RollingQ)",
        paper="Ni, Wei, Liu, Chen, Peng, Lin, Hu. RollingQ: Reviving the Cooperation Dynamics in "
        "Multimodal Transformer. ICML 2025",
        year=2025,
        url="https://arxiv.org/abs/2506.11465",
        category="forward",
        writes="weights",
        targets=ANY,
        modalities="the paper uses two; with more, the greatest and the least cosine are compared, "
        "and the shares are a softmax, which for two is the paper's rule; with one, nothing is "
        "rotated",
        neutral={"times": 0},
        needs_probe=True,
        head="rolling",
        cost="attention of a token, passed M + 1 times; a pass over the training split before each "
        "epoch until the rotations are made",
        budget=1.05,
        missing=True,
        doubts="Read in the released code and in summaries of the paper. Both leave β and ρ "
        "open, which are tuned per data set (the code's command line has 0 for both): "
        "0.2 and 1 are guesses. The published rule acts after an epoch, by the AIR of "
        "its last batch. Here it acts before the next epoch, by the whole training "
        "split in evaluation mode, so that what is validated has been trained; nothing "
        "comes after the last epoch. As here, the paper's anchor uses mean keys of "
        "length 1; the code does not normalise them. The published rotation comes from "
        "a decomposition of a rank-one matrix, which is not unique and depends on the "
        "last bits of its input; here it is the rotation in the plane of query and "
        "anchor. The head is the paper's single attention without dropout, and a "
        "modality is one token, its features; in the paper it is all tokens of a ViT, "
        "and the mean of their keys counts. Several layers, trained one after the "
        "other, are not built. Because a method of the head is called outside its "
        "forward pass, FSDP2 must shard the head together with the whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "turns")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        beta: float = 0.2,
        rho: float = 1.0,
        times: int = 1,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the rotations.

        Args:
            encoders: By modality; their names say whose keys count.
            head: The head whose query is rotated.
            beta: β, how far apart cosines may be without a rotation, from 0 to 2 (no rotations).
            rho: ρ, how far the query turns towards the modality with less attention; not negative.
                With 0, all have equal shares.
            times: The maximum number of rotations; in the paper 1 for CREMA-D and CMU-MOSEI, 3 for
                Kinetics-Sounds.
            criterion: See `Method`.

        Raises:
            TypeError: If the head has no query to rotate.
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        if not isinstance(head, Rolling):
            raise TypeError(
                f"RollingQ needs a head with a query to rotate; {type(head).__name__} has none. "
                "Use the head 'rolling' of evenly.nn."
            )
        if not 0 <= beta <= 2:
            raise UserError(f"RollingQ: 'beta' must be from 0 to 2; found {beta}.")
        check_range(self, "finite and not negative", rho=rho)
        check_range(self, "not negative", times=times)
        self.head: Rolling = head
        self.beta, self.rho, self.times = beta, rho, times
        self.epoch, self.turns = -1, 0

    @property
    def is_active(self) -> bool:
        """Whether a rotation may still come."""
        return len(self.encoders) > 1 and self.turns < self.times

    def is_due(self, epoch: int) -> bool:
        """Whether cosines are measured before this epoch (from 0)."""
        return epoch > 0 and self.is_active

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Rotates the query if attention is imbalanced."""
        if not self.is_active or epoch == self.epoch:
            return  # a run resumed mid-epoch continues where it was
        probe = self._probe(probe)
        if self.is_due(epoch):
            self._look(probe)
        self.epoch = epoch

    @torch.no_grad()
    def _look(self, probe: Probe) -> None:
        query, keys, cosine = self._found(probe)
        if not cosine.isfinite().all():  # such as for a modality that no sample has
            return
        if imbalance(cosine) > self.beta:
            self.head.turn(rotation(query, anchor(keys, shares(cosine, self.rho))))
            self.turns += 1
        self.metrics = self._per_modality(cosine=cosine)
        self.metrics["turns"] = torch.tensor(float(self.turns))

    def _found(
        self, probe: Probe
    ) -> tuple[Float[Tensor, " w"], Float[Tensor, "m w"], Float[Tensor, " m"]]:
        """The query, each modality's mean key and mean cosine, over all samples that have it."""
        query = torch.empty(0)

        def of(output: Output, _: Tensor) -> dict[str, Tensor]:
            nonlocal query
            query = self.head.query()
            keys, here = self.head.keys(self._features(output)), output.present or {}
            nothing = query.new_full((len(output.logits), len(query)), math.nan)
            found = {name: keys.get(name, nothing) for name in self.encoders}
            return {
                name: x.where(here[name].unsqueeze(1), nothing) if name in here else x
                for name, x in found.items()
            }

        found = probe.features("train", of)
        query = query.double()
        sums = []
        for name in self.encoders:
            key = found.features[name].to(query)
            there = key.isfinite().all(1)
            key = key.masked_fill(~there.unsqueeze(1), 0.0)
            cosine = nn.functional.cosine_similarity(key, query.unsqueeze(0))
            sums.append(torch.cat([key.sum(0), torch.stack([cosine.sum(), there.sum()])]))
        total = distributed.sum_(torch.stack(sums), sharded=found.sharded)
        mean = total[:, :-1] / total[:, -1:]
        return query, mean[:, :-1], mean[:, -1]
