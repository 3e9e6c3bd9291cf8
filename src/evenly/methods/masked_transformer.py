"""The late-fusion transformer with modality masking.

Rheude, Eils, Wild, "Fusion or Confusion? Multimodal Complexity Is Not All You Need", 2025,
https://arxiv.org/abs/2512.22991.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info
from evenly.methods.modality_dropout import ModalityDropout
from evenly.output import Output
from evenly.targets import ANY


class MaskedTransformer(ModalityDropout):
    """Modality dropout in a transformer over modalities: a dropped modality has no token.

    In each step, each modality of each sample is masked with probability p, but never all
    modalities of a sample. The loss is CE(z) of the logits that the head makes from the rest. It
    differs from `ModalityDropout` in two ways. The fusion is a transformer layer over a class token
    and a token for each modality, and masked tokens are kept out of its attention, while features
    of zeros would still make a token. So training treats a sample as prediction does when the
    masked modalities are missing. Predictions use whatever modalities are there.
    """

    info = Info(
        title="Late-fusion transformer with modality masking",
        paper="Rheude, Eils, Wild. Fusion or Confusion? Multimodal Complexity Is Not All You Need. "
        "2025",
        year=2025,
        url="https://arxiv.org/abs/2512.22991",
        category="forward",
        writes="loss",
        targets=ANY,
        modalities="any number; with one, it masks nothing",
        neutral={"p": 0.0},
        needs=("index",),
        head="attention",
        cost="a transformer layer over M + 1 tokens, passed 2 (M + 1) times",
        budget=1.1,
        missing=True,
        doubts="The paper's baseline (SimBaMM) was read in summaries and in its code for UK "
        "Biobank, which only masks what a sample lacks: p = 0 is that baseline. Random "
        "masking, for which no p is published, is a reference of our own; its 0.5 is "
        "that of `modality_dropout`, so that the two differ only in the fusion. The "
        "paper tunes its transformer per data set (layers, width, heads, dropout), with "
        "post-norm and sinusoidal positions; here it is one pre-norm layer without "
        "dropout, with learnt positions.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: Callable[..., Any],
        p: float = 0.5,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the masks.

        Args:
            encoders: By modality; their names say which modalities may be masked.
            head: The model's head, which skips missing modalities: `head(features, here=here)`
                returns the fused logits (n, c) and more, where `here` tells by modality which
                samples have it (n). Heads of `evenly.nn.heads` do; `AttentionHead` is the
                transformer.
            p: Probability that a modality is masked in a sample, from 0 to 1; at 1 each sample
                keeps one modality. 0 is joint training.
            seed: Seed of the masks. A mask depends on seed, step and the sample's index.
            criterion: See `Method`.

        Raises:
            ValueError: If the probability is out of range, or the head takes no masks.
        """
        super().__init__(encoders, p=p, seed=seed, criterion=criterion)
        takes = signature(getattr(head, "forward", head)).parameters.values()
        if not any(each.name == "here" or each.kind is each.VAR_KEYWORD for each in takes):
            raise UserError(
                "MaskedTransformer masks modalities by `head(features, here=...)`, but "
                f"{type(head).__name__} takes no `here`. Build the model with LateFusion(..., "
                "head='attention'), or give your head that argument."
            )
        self.head = head

    def _masked(self, output: Output, mask: Mapping[str, Bool[Tensor, " n"]]) -> Tensor:
        """The logits without the tokens of masked or missing modalities."""
        here = dict(output.present or {})
        for name, stays in mask.items():
            stays = stays.to(output.logits.device)
            here[name] = stays & here[name] if name in here else stays
        logits: Tensor = self.head(output.features, here=here)[0]
        return logits
