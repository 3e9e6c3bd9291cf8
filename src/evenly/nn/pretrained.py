"""The field's large encoders, by name: untrained, or with weights from a folder or the hub.

Each is Transformers' model of that name. `config` changes its configuration, and `pretrained` is
what `from_pretrained` takes: the path of a folder, or a name on the hub, which needs a network. If
you already have the weights, `pretrained` may be the configuration that they came with, as returned
by `configurations`; it needs neither folder nor network. Inputs are standardised with the
statistics of the training split.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from evenly.data.dataset import Kind, Modality, Padded
from evenly.errors import UserError
from evenly.nn.encoders import Frames, Standardise, with_a_step
from evenly.nn.prepared import check_sound, check_tokens
from evenly.nn.processors import Processor, Takes
from evenly.nn.tokens import Tokened, Tokens
from evenly.suggest import unknown

Config = dict[str, Any]

_UNREAD = frozenset({"mask_token", "masked_spec_embed", "num_batches_tracked"})
"""Parts of a model that no features depend on."""
_POOLING = frozenset({"pooler", "head"})
"""Parts that only the model's own pooling reads."""


class _Named(nn.Module):
    """What these encoders share: a Transformers model and the width of its features."""

    def __init__(self, name: str, pretrained: str | Config, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = _model(name, pretrained, config)
        self.is_pretrained = bool(pretrained)
        self._weights = pretrained if isinstance(pretrained, str) else name
        sizes: Any = self.model.config
        self.out_features: int = getattr(sizes, "hidden_size", None) or sizes.hidden_sizes[-1]

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"pretrained={self._weights!r}, out_features={self.out_features}"

    def configuration(self) -> Config | None:
        """The configuration that `pretrained` takes instead of a folder; None if there was none."""
        return settings_of(self.model.config) if self.is_pretrained else None


def configurations(encoders: nn.ModuleDict | Mapping[str, nn.Module]) -> dict[str, Config]:
    """The configuration of each encoder made with `pretrained`, by modality.

    It holds only JSON values. `pretrained` takes it instead of a folder or a name, and then gives
    the same encoder with newly initialised weights.
    """
    known: dict[str, Any] = dict(encoders.items())
    found = {
        name: encoder.configuration()
        for name, encoder in known.items()
        if hasattr(encoder, "configuration")
    }
    return {name: settings for name, settings in found.items() if settings is not None}


def settings_of(config: Any) -> Config:
    """A Transformers configuration, without the location and type of its weights."""
    settings: Config = json.loads(config.to_json_string(use_diff=False))
    for part in (settings, *settings.values()):
        for name in ("_name_or_path", "dtype") if isinstance(part, dict) else ():
            part.pop(name, None)
    return settings


def _check_kind(encoder: object, modality: Modality, *kinds: Kind) -> None:
    if modality.kind not in kinds:
        raise UserError(
            f"{type(encoder).__name__} takes {' or '.join(kinds)}, but '{modality.name}' is "
            f"{modality.kind} {modality.shape}."
        )


def _check_channel(encoder: object, modality: Modality, channels: int) -> None:
    if channels != 1:
        raise UserError(
            f"{type(encoder).__name__} takes sound of one channel, but '{modality.name}' has "
            f"{channels}: {modality.kind} {modality.shape}. Average them, or give another encoder."
        )


def _check_sound(place: str, modality: Modality, takes: Takes) -> None:
    rate = Processor.of(os.path.expanduser(place), takes).rate
    check_sound(place, modality, takes, rate)


def _model(name: str, pretrained: str | Config, config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    # Transformers accepts more than a configuration has, including settings that run foreign code.
    known = AutoConfig.for_model(name).to_dict().keys() - {"model_type"}
    for key in config:
        if key not in known:
            raise unknown(f"setting of {name}'s configuration", key, sorted(known))
    if not isinstance(pretrained, str):
        of_weights = {key: value for key, value in pretrained.items() if key in known}
        remade: nn.Module = AutoModel.from_config(
            AutoConfig.for_model(name, **{**of_weights, **config})
        )
        return remade.float()
    if not pretrained:
        made: nn.Module = AutoModel.from_config(AutoConfig.for_model(name, **config))
        return made
    with opening(pretrained) as place:
        loaded, info = AutoModel.from_pretrained(
            place, trust_remote_code=False, output_loading_info=True, **config
        )
    if loaded.config.model_type != name:
        raise UserError(
            f"'{pretrained}' holds a model of the type {loaded.config.model_type}, not {name}."
        )
    check_whole(pretrained, loaded, loaded, info["missing_keys"])
    ready: nn.Module = loaded.float().train()
    return ready


@contextmanager
def opening(pretrained: str) -> Iterator[str]:
    """The folder or name on the hub that weights are read from; raises if there are none."""
    place = os.path.expanduser(pretrained)
    only_a_path = pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1
    try:
        if only_a_path and not os.path.isdir(place):  # the hub is slow to say no
            raise FileNotFoundError("no such folder")
        yield place
    except (OSError, ValueError) as error:
        raise UserError(
            f"no weights found at '{pretrained}' ({str(error).splitlines()[0]}). Give the "
            "folder of a model, as written by model.save_pretrained."
        ) from error


def check_whole(
    place: str, model: nn.Module, used: nn.Module, missing: Iterable[str], *, pools: bool = False
) -> None:
    """Raises if weights that features depend on were missing, since they would be random.

    Args:
        place: The folder or name that they were read from.
        model: The model that was loaded.
        used: The part of it that encodes.
        missing: The names that had no weights, as the model writes them.
        pools: Whether the model's own pooling is used.
    """
    unread = _UNREAD if pools else _UNREAD | _POOLING
    whole = model.state_dict(keep_vars=True)
    mine = {id(value) for value in used.state_dict(keep_vars=True).values()}
    lost = [
        key
        for key in sorted(missing)
        if (key not in whole or id(whole[key]) in mine) and unread.isdisjoint(key.split("."))
    ]
    if not lost:
        return
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    is_pooling = pools and all(not _POOLING.isdisjoint(key.split(".")) for key in lost)
    step = (
        "Give pool=mean, cls or last, which need no pooler."
        if is_pooling
        else "Give a folder that save_pretrained wrote for this model."
    )
    raise UserError(
        f"the weights at '{place}' lack '{lost[0]}'{more}, which would stay random. {step}"
    )


class _Pictures(_Named):
    """Takes images; a video gives the mean over its frames."""

    def __init__(
        self,
        modality: Modality,
        name: str,
        pretrained: str | Config,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(name, pretrained, config)
        self.standardise = Standardise(modality)

    def forward(self, x: Shaped[Tensor, "n ..."] | Padded) -> Float[Tensor, "n d"]:
        """Encodes images or videos."""
        if isinstance(x, Tensor) and x.dim() == 4:
            return self._encoded(self.standardise(x))
        frames = Frames(x, training=self.training)
        return frames.mean(self._encoded(self.standardise(frames.pictures)))

    def _encoded(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        found: Tensor = self.model(images).pooler_output
        return found.flatten(1)


class ResNet18(_Pictures):
    """ResNet-18 (He et al., CVPR 2016), the encoder of the paper's tables.

    11.18 million parameters with three channels; 512 features, averaged over space.
    """

    def __init__(self, modality: Modality, pretrained: str | Config = "") -> None:
        """Makes it for the channels of the modality."""
        _check_kind(self, modality, "image", "video")
        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        config = {} if pretrained else {**sizes, "num_channels": modality.shape[-3]}
        super().__init__(modality, "resnet", pretrained, config)


class ViT(_Pictures, Tokened):
    """A vision transformer (Dosovitskiy et al., ICLR 2021); features come from its class token."""

    def __init__(
        self, modality: Modality, pretrained: str | Config = "", config: Config | None = None
    ) -> None:
        """Makes it for the channels and size of the modality."""
        _check_kind(self, modality, "image", "video")
        channels, *size = modality.shape[-3:]
        shape = {} if pretrained else {"num_channels": channels, "image_size": size}
        super().__init__(modality, "vit", pretrained, {**shape, **(config or {})})

    def _encoded(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        found: Tensor = self.model(images).last_hidden_state[:, 0]
        return found

    def tokens(self, x: Shaped[Tensor, "n ..."] | Padded) -> Tokens:
        """The patches' tokens after a class token; for a video, frame after frame."""
        if isinstance(x, Tensor) and x.dim() == 4:
            return all_there(self.model(self.standardise(x)).last_hidden_state)
        frames = Frames(x, training=self.training)
        return frames.tokens(self.model(self.standardise(frames.pictures)).last_hidden_state)


class AST(_Named, Tokened):
    """An audio spectrogram transformer (Gong et al., Interspeech 2021), for (1, bands, frames).

    It also accepts weights for other lengths, by interpolating their patches' positions, as the
    paper does with those of pictures.
    """

    def __init__(
        self, modality: Modality, pretrained: str | Config = "", config: Config | None = None
    ) -> None:
        """Makes it for the bands and frames of the modality."""
        _check_kind(self, modality, "image")
        channels, bands, frames = modality.shape
        _check_channel(self, modality, channels)
        shape = {"num_mel_bins": bands, "max_length": frames}
        of_weights = isinstance(pretrained, str) and pretrained
        settings = {**({} if of_weights else shape), **(config or {})}
        super().__init__("audio-spectrogram-transformer", pretrained, settings)
        if of_weights:
            _check_sound(str(pretrained), modality, "spectrogram")
            fit_positions(self.model, shape)
        self.standardise = Standardise(modality)

    def forward(self, x: Shaped[Tensor, "n 1 b t"]) -> Float[Tensor, "n d"]:
        """Encodes spectrograms."""
        found: Tensor = self.model(self.standardise(x)[:, 0].transpose(1, 2)).pooler_output
        return found

    def tokens(self, x: Shaped[Tensor, "n 1 b t"]) -> Tokens:
        """The patches' tokens after a class token."""
        sound = self.standardise(x)[:, 0].transpose(1, 2)
        return all_there(self.model(sound).last_hidden_state)


def fit_positions(model: nn.Module, shape: Config) -> None:
    """Interpolates the positions of an AST's patches to those of another shape."""
    parts: Any = model
    embeddings, sizes = parts.embeddings, parts.config
    before = embeddings.get_shape(sizes)
    for name, value in shape.items():
        setattr(sizes, name, value)
    after = embeddings.get_shape(sizes)
    if min(after) < 1:
        raise UserError(
            f"AST: a spectrogram of {shape['num_mel_bins']} bands and {shape['max_length']} "
            f"frames is smaller than a patch, {sizes.patch_size}. Read more of the "
            "sound."
        )
    if before == after:
        return
    tokens, patches = embeddings.position_embeddings.detach().split([2, before[0] * before[1]], 1)
    grid = patches.transpose(1, 2).unflatten(2, before)
    grid = nn.functional.interpolate(grid, after, mode="bilinear", align_corners=False)
    fitted = torch.cat([tokens, grid.flatten(2).transpose(1, 2)], 1)
    embeddings.position_embeddings = nn.Parameter(fitted)


class BERT(_Named, Tokened):
    """A BERT (Devlin et al., NAACL 2019), for texts; the mean over the tokens.

    With `pretrained`, the texts must have been read with its own tokenizer:
    `text(tokenizer=FOLDER)`. Texts that are known to be read otherwise are refused.

    Attributes:
        longest: Maximum tokens of a text, since each needs a position.
    """

    def __init__(
        self, modality: Modality, pretrained: str | Config = "", config: Config | None = None
    ) -> None:
        """Makes it for the tokens of the modality."""
        _check_kind(self, modality, "text")
        tokens = {} if pretrained else {"vocab_size": modality.shape[1]}
        super().__init__("bert", pretrained, {**tokens, **(config or {})})
        sizes: Any = self.model.config
        self.longest: int = sizes.max_position_embeddings
        if modality.shape[0] > self.longest:
            raise UserError(
                f"BERT has positions for {self.longest} tokens, but a text of '{modality.name}' "
                f"has {modality.shape[0]}. Cut the texts off, as text(length={self.longest}) does, "
                "or give it more in its config: max_position_embeddings."
            )
        if isinstance(pretrained, str) and pretrained:
            check_tokens(pretrained, modality, sizes.vocab_size)

    def forward(self, x: Padded) -> Float[Tensor, "n d"]:
        """Encodes texts."""
        return mean_of(*self.tokens(x))

    def tokens(self, x: Padded) -> Tokens:
        """The tokens of the text; BERT's tokenizer puts its class token first."""
        x = with_a_step(x)
        there = is_there(x)
        size: Any = self.model.config
        known = x.values.long()
        ids = torch.where(known < size.vocab_size, known, 1)
        found = self.model(input_ids=ids, attention_mask=there.long()).last_hidden_state
        return Tokens(found, there)


class Wav2Vec(_Named, Tokened):
    """A wav2vec 2.0 (Baevski et al., NeurIPS 2020), for waveforms (t, 1); the mean over time."""

    def __init__(
        self, modality: Modality, pretrained: str | Config = "", config: Config | None = None
    ) -> None:
        """Makes it, without masks in time or dropped layers, so all parameters stay in use."""
        _check_kind(self, modality, "sequence")
        _check_channel(self, modality, modality.shape[1])
        calm = {"apply_spec_augment": False, "layerdrop": 0.0, "add_adapter": False}
        super().__init__("wav2vec2", pretrained, {**calm, **(config or {})})
        check_adapter("Wav2Vec", self.model)
        if isinstance(pretrained, str) and pretrained:
            _check_sound(pretrained, modality, "waves")
        self.standardise = Standardise(modality)

    def forward(self, x: Shaped[Tensor, "n t 1"] | Padded) -> Float[Tensor, "n d"]:
        """Encodes waveforms, of equal or unequal lengths."""
        return mean_of(*self.tokens(x))

    def tokens(self, x: Shaped[Tensor, "n t 1"] | Padded) -> Tokens:
        """A token for each stretch of sound; the first serves as class token."""
        if isinstance(x, Padded):
            return self._of_each_length(x)
        return all_there(self.model(self.standardise(x)[..., 0]).last_hidden_state)

    def _of_each_length(self, x: Padded) -> Tokens:
        """The tokens of each sound as if alone: no norm or attention reaches over padding.

        A sound too short for a token is padded with zeros.
        """
        sound, count = filled(self.model, x)
        return waves(self.model, self.standardise(sound), count)


def check_adapter(name: str, model: nn.Module) -> None:
    """Raises if a model of wav2vec's family has an adapter, which `waves` does not run."""
    if getattr(model, "adapter", None) is not None:
        raise UserError(
            f"{name}: add_adapter=true makes fewer tokens of a sound, which nothing here reads. "
            "Give config={add_adapter: false}."
        )


def filled(model: nn.Module, x: Padded) -> tuple[Float[Tensor, "n t 1"], Int[Tensor, " n"]]:
    """Waveforms padded with zeros, long enough for tokens, and how much of each counts.

    Args:
        model: A model of wav2vec's family: convolutions, then a transformer.
        x: Waveforms (t, 1).
    """
    sound = x.values.masked_fill(~is_there(x)[..., None], 0)
    # An exported program needs two tokens, since it would treat one as the only possible number.
    sound = nn.functional.pad(sound, (0, 0, 0, max(0, samples_of(model, 2) - sound.shape[1])))
    return sound, x.length.clamp_min(samples_of(model, 1))


def waves(model: nn.Module, sound: Float[Tensor, "n t 1"], count: Int[Tensor, " n"]) -> Tokens:
    """The tokens of waveforms, each as if alone.

    Args:
        model: A model of wav2vec's family.
        sound: Sound in the form the model takes.
        count: Number of samples of each.
    """
    parts: Any = model
    steps = sound.transpose(1, 2)
    for layer in parts.feature_extractor.conv_layers:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        count = (count - kernel) // stride + 1
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            steps = layer.conv(steps)
            there = is_there(Padded(steps.transpose(1, 2), count))
            steps = layer.activation(_normed(norm, steps, there))
        else:
            steps = layer(steps)
    steps = steps.transpose(1, 2)
    there = is_there(Padded(steps, count))
    projected = parts.feature_projection(steps)
    steps = projected[0] if isinstance(projected, tuple) else projected  # HuBERT returns just one
    return Tokens(parts.encoder(steps, attention_mask=there).last_hidden_state, there)


def samples_of(model: nn.Module, tokens: int) -> int:
    """Number of sound samples that make so many tokens."""
    sizes: Any = model.config
    length = tokens
    for kernel, stride in zip(sizes.conv_kernel[::-1], sizes.conv_stride[::-1], strict=True):
        length = (length - 1) * stride + kernel
    return length


def _normed(
    norm: nn.GroupNorm, x: Float[Tensor, "n c t"], there: Bool[Tensor, "n t"]
) -> Float[Tensor, "n c t"]:
    """The norm of each channel over the valid steps."""
    valid, dtype = there[:, None], x.dtype
    x = x.float()
    count = valid.sum(2, keepdim=True)
    mean = x.masked_fill(~valid, 0).sum(2, keepdim=True) / count
    apart = (x - mean).masked_fill(~valid, 0)
    scale = (apart.square().sum(2, keepdim=True) / count + norm.eps).rsqrt()
    return (apart * scale * norm.weight[:, None] + norm.bias[:, None]).to(dtype)


class Transformer(Tokened):
    """Transformer layers over the steps of a sequence; features come from a class token.

    Attention skips padding. Steps have sinusoidal positions, so any length works.
    """

    def __init__(
        self, modality: Modality, width: int = 64, layers: int = 4, heads: int = 4
    ) -> None:
        """Makes it.

        Args:
            modality: A sequence or a text.
            width: Width of its features.
            layers: Number of layers.
            heads: Number of attention heads, which must divide the width.
        """
        super().__init__()
        _check_kind(self, modality, "sequence", "text")
        if width % (2 * heads):
            raise UserError(
                f"Transformer: width {width} is not a multiple of twice the {heads} heads."
            )
        self.out_features = width
        self._layers, self._heads = layers, heads
        self.known = modality.shape[1]
        self.embed: nn.Module
        if modality.kind == "text":
            self.embed = nn.Embedding(self.known, width)
        else:
            self.embed = nn.Sequential(Standardise(modality), nn.Linear(self.known, width))
        self.start = nn.Parameter(0.02 * torch.randn(width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), False)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"layers={self._layers}, heads={self._heads}, {super().extra_repr()}"

    def forward(self, x: Shaped[Tensor, "n t ..."] | Padded) -> Float[Tensor, "n w"]:
        """Encodes sequences, of equal or unequal lengths."""
        return self.tokens(x).steps[:, 0]

    def tokens(self, x: Shaped[Tensor, "n t ..."] | Padded) -> Tokens:
        """A token for each step, after a class token."""
        values = x.values if isinstance(x, Padded) else x
        there = is_there(x) if isinstance(x, Padded) else values.new_ones(values.shape[:2]).bool()
        if isinstance(self.embed, nn.Embedding):
            values = torch.where(values < self.known, values, 1).long()
        steps = self.embed(values)
        steps = steps + _positions(steps)
        start = self.start.expand(steps.shape[0], 1, -1).to(steps.dtype)
        there = torch.cat([there.new_ones(steps.shape[0], 1), there], dim=1)
        found: Tensor = self.layers(torch.cat([start, steps], dim=1), src_key_padding_mask=~there)
        return Tokens(found, there)


def all_there(steps: Float[Tensor, "n t w"]) -> Tokens:
    """Tokens without padding."""
    return Tokens(steps, steps.new_ones(steps.shape[:2], dtype=torch.bool))


def _positions(steps: Float[Tensor, "n t w"]) -> Float[Tensor, "t w"]:
    """Sines and cosines (Vaswani et al., NeurIPS 2017)."""
    _, count, width = steps.shape
    rate = torch.arange(0, width, 2, device=steps.device) / width
    angle = torch.arange(count, device=steps.device)[:, None] / 10_000**rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(steps.dtype)


def is_there(x: Padded) -> Bool[Tensor, "n t"]:
    """Which steps are not padding."""
    return torch.arange(x.values.shape[1], device=x.length.device) < x.length[:, None]


def mean_of(steps: Float[Tensor, "n t w"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n w"]:
    """The mean over the valid steps; 0 without any."""
    count: Int[Tensor, " n"] = there.sum(1, keepdim=True).clamp_min(1)
    return steps.masked_fill(~there[..., None], 0).sum(1) / count
