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
    """Modality dropout in a transformer over modalities, of which what is dropped has no token.

    In each step, each modality of each sample is masked with probability p, never all that the
    sample has; the loss is CE(z) of the logits that the head finds in the others. It differs from
    `ModalityDropout` in two things: the fusion is a transformer layer over a token for each
    modality and a class token, and what is masked is kept from its attention, where features of
    zeros would still make a token. So a sample is trained on as it would be predicted without what
    is masked. Predictions are made with whatever modalities there are.
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
            head: The model's head, which passes over what samples lack: `head(features, here=here)`
                gives the fused logits (n, c) and more, with `here` by modality which samples have
                it (n). Those of `evenly.nn.heads` do; `AttentionHead` is the transformer.
            p: Probability that a modality is masked in a sample, from 0 to 1; at 1 each sample
                keeps one modality. With 0, training is joint training.
            seed: Of the masks, which are functions of seed, step and the sample's index.
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
        """The logits without the tokens of what is masked, or missing."""
        here = dict(output.present or {})
        for name, stays in mask.items():
            stays = stays.to(output.logits.device)
            here[name] = stays & here[name] if name in here else stays
        logits: Tensor = self.head(output.features, here=here)[0]
        return logits
