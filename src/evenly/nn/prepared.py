"""Checks that data were prepared as pretrained weights expect, if it is known how."""

import os
from typing import Any

from evenly.data.dataset import Modality
from evenly.errors import UserError
from evenly.nn.processors import Takes, has_file
from evenly.spec import parse

_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files of a tokenizer, of which each has at least one."""


def check_sound(name: str, modality: Modality, takes: Takes, rate: int | None) -> None:
    """Raises if files of sound were read with settings other than a model's.

    Args:
        name: The folder of the model, or its name on the hub.
        modality: The sound.
        takes: What the model takes.
        rate: Samples of sound per second that its processor takes; None if it has none.
    """
    if not modality.read:
        return
    spec = parse(modality.read)
    wanted: dict[str, Any] = {} if rate is None else {"sample_rate": rate}
    if takes == "spectrogram":
        wanted["front"] = "fbank"
    for key, value in wanted.items():
        found = spec.settings.get(key, value)
        if found != value:
            raise UserError(
                f"'{name}' takes sound with {key}={value}, but '{modality.name}' was read with "
                f"{key}={found}. Prepare it with {spec.name}({key}={value})."
            )


def check_tokens(name: str, modality: Modality, count: int) -> None:
    """Raises if texts were read with another tokenizer than a model's, or have too many tokens.

    Args:
        name: The folder of the model, or its name on the hub.
        modality: The texts.
        count: Number of tokens that the model knows.
    """
    if modality.read:
        _check_tokenizer(name, modality)
    if modality.shape[1] > count:
        raise UserError(
            f"'{name}' knows {count} tokens, but '{modality.name}' has {modality.shape[1]}. "
            f"Prepare it with text(tokenizer={name})."
        )


def _check_tokenizer(name: str, modality: Modality) -> None:
    used = str(parse(modality.read).settings.get("tokenizer", ""))
    if os.path.expanduser(used) == os.path.expanduser(name):
        return
    own = _vocabulary(name)
    if used and (own is None or own == _vocabulary(used)):
        return
    if own is None:
        raise UserError(
            f"'{name}' has no tokenizer beside its weights, and '{modality.name}' was read with "
            "no tokenizer, so nothing tells whether both number tokens alike. Put the files of "
            f"its tokenizer there, and prepare the texts with text(tokenizer={name})."
        )
    how = f"the tokenizer '{used}', which numbers tokens otherwise" if used else "no tokenizer"
    raise UserError(
        f"'{name}' has a tokenizer of its own, but '{modality.name}' was read with {how}. "
        f"Prepare it with text(tokenizer={name})."
    )


def filler(name: str, modality: Modality) -> int | None:
    """The token that fills texts up, by the model's tokenizer or else that of the texts.

    None if there is neither. A configuration may name another token: that of SigLIP 2 has the
    default of SigLIP.
    """
    used = parse(modality.read).settings.get("tokenizer", "") if modality.read else ""
    for place in filter(None, (name, str(used))):
        token = getattr(_tokenizer(place), "pad_token_id", None)
        if token is not None:
            return int(token)
    return None


def _vocabulary(place: str) -> dict[str, int] | None:
    """A tokenizer's token numbers; None if there is none."""
    found = _tokenizer(place)
    if found is None:
        return None
    numbers: dict[str, int] = found.get_vocab()
    return numbers


def _tokenizer(place: str) -> Any:
    """The tokenizer beside weights; None if there is none.

    Transformers itself would make an empty one from the configuration of the weights.
    """
    from transformers import AutoTokenizer

    place = os.path.expanduser(place)
    if not has_file(place, _FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        return None
