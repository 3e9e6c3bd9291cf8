"""Any encoder that Transformers' AutoModel loads, with the preprocessing it was trained with."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from evenly.data.dataset import Modality, Padded
from evenly.errors import UserError
from evenly.nn.encoders import Frames, Standardise, with_a_step
from evenly.nn.late_fusion import blank
from evenly.nn.prepared import check_sound, check_tokens, filler
from evenly.nn.pretrained import (
    Config,
    all_there,
    check_adapter,
    check_whole,
    filled,
    fit_positions,
    is_there,
    mean_of,
    opening,
    samples_of,
    settings_of,
    waves,
)
from evenly.nn.processors import Processor, Takes
from evenly.nn.tokens import Tokened, Tokens
from evenly.spec import parse
from evenly.suggest import unknown

POOLS = ("mean", "cls", "last", "pooler")

_TOWERS = {"text": "text", "image": "vision", "video": "vision"}
"""The tower of a two-tower model that takes a kind of modality."""
_CALM = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
"""No masks in time and no dropped layers, so that all parameters stay in use."""
_FULL = ("siglip_text_model", "siglip2_text_model")
"""Text towers trained on texts padded to one length, which also read the padding."""
_READ_AS = {
    "pixel_values": "pictures: image(size=[224,224]) or video(...)",
    "input_ids": "texts: text(tokenizer=FOLDER)",
    "input_values": "sound: wave(...), or spectrogram(front=fbank) for an AST",
    "input_features": "sound, of which Whisper's encoder alone is known here: wave(...)",
}
"""What a model takes and how to prepare it, by the name of its input."""


class _Made(NamedTuple):
    """A model's output for a batch: its tokens, and what it pools itself, if anything."""

    tokens: Tokens
    pooled: Tensor | None


class Auto(Tokened):
    """Any encoder of Transformers, from a folder or by a name on the hub.

    The kind of the modality decides which part of a model is used: the picture or text tower of two
    towers (CLIP, SigLIP), the encoder of an encoder and a decoder (Whisper, T5). The encoder
    applies the preprocessing of the processor beside the weights: scale, mean and deviation of
    pictures, normalisation of waveforms, the mel bands of Whisper. Without a processor, inputs are
    standardised with the statistics of the training split. Code that comes with weights never runs.

    Pictures are encoded one by one, and a video as the mean over its frames, unless the model takes
    clips (VideoMAE).

    Attributes:
        model: The encoder itself.
        processor: The preprocessing that the weights expect.
        pool: How tokens become features.
        longest: Maximum steps or tokens of a sample; None for any.
        blank: What `pooled` returns for a blank input, once features are taken instead of inputs.
    """

    mel: Tensor
    blank: Tensor | None = None

    def __init__(
        self,
        modality: Modality,
        pretrained: str | Config,
        pool: str | None = None,
        config: Config | None = None,
        freeze: bool | int = False,
        width: int = 0,
        lora: int = 0,
        checkpointing: bool = False,
    ) -> None:
        """Loads the model.

        Args:
            modality: Pictures, videos, spectrograms, waveforms (t, 1) or texts.
            pretrained: The path of a folder or a name on the hub; or the result of
                `configurations`.
            pool: Features are the `mean` over the valid tokens, the first token (`cls`), the last
                (`last`, for models whose tokens see only earlier ones), or what the model itself
                pools (`pooler`). The default is `pooler` for two-tower models, which are trained
                with it, and `mean` for all others.
            config: Changes to the configuration.
            freeze: Whether the model stays fixed, in evaluation mode; or how many of its first
                layers do, with everything that their output depends on.
            width: Width of a layer after the model (norm, linear, GELU) that is always trained; 0
                for none.
            lora: Rank of adapters (Hu et al., ICLR 2022) on all its linear layers, which are
                trained instead of the model; 0 for none. Needs PEFT.
            checkpointing: Whether to discard what layers compute and recompute it for the
                gradients, which takes less memory and more time.

        Raises:
            ValueError: If there are no such weights, the model takes another kind of input, or the
                data were prepared differently from those that it was trained on.
        """
        super().__init__()
        if pool not in (None, *POOLS):
            raise unknown("pooling of auto", str(pool), POOLS)
        model, self._config, missing = _loaded(pretrained, modality, config or {})
        self.model, is_tower = _taken(model, modality)
        self.asked_pool = pool
        self.pool: str = pool or ("pooler" if is_tower else "mean")
        # Data that a run was trained on have been checked.
        self._is_new = isinstance(pretrained, str)
        sizes: Any = self.model.config
        name = pretrained if isinstance(pretrained, str) else sizes.model_type
        self._settings: dict[str, Any] = {
            "pretrained": name,
            "pool": self.pool,
            **({"config": config} if config else {}),
            "freeze": freeze,
            "width": width,
            "lora": lora,
            "checkpointing": checkpointing,
        }
        self.takes = _takes(name, self.model, modality)
        check_whole(name, model, self.model, missing, pools=self.pool == "pooler")
        made = int(getattr(sizes, "hidden_size", 0) or sizes.hidden_sizes[-1])
        self.out_features = width or made
        self.behind: nn.Module = nn.Identity()
        if width:
            self.behind = nn.Sequential(nn.LayerNorm(made), nn.Linear(made, width), nn.GELU())
        self.processor = (
            Processor.of(os.path.expanduser(pretrained), self.takes)
            if isinstance(pretrained, str)
            else Processor(**pretrained["processor"])
        )
        self.longest: int | None = None
        self._sees_padding = False
        self._still: list[nn.Module] = []  # what stays in evaluation mode, each by itself
        if self.takes in ("pictures", "clips"):
            self._take_pictures(name, modality)
        elif self.takes == "tokens":
            self._take_texts(name, modality)
        else:
            self._take_sound(name, modality)
        self.eval()  # for passes that try it
        if self.takes in ("tokens", "waves"):
            self._sees_padding = self._depends_on_padding()
        if self._sees_padding and self.takes == "tokens":
            raise UserError(
                f"'{name}' ({type(self.model).__name__}) mixes padding into its tokens, so "
                "features of a text would depend on the texts beside it. Give another encoder."
            )
        if lora:
            _adapt(name, self.model, lora, freeze)
        elif freeze is True:
            self.model.requires_grad_(False)
        elif freeze:
            self._still = _freeze(
                name, self.model, freeze, lambda: self._made(self._tiny(modality))
            )
        if checkpointing:
            _checkpoint(name, self.model, is_partly_frozen=bool(self._still))
        self.train()

    def train(self, mode: bool = True) -> "Auto":
        """Sets the mode; frozen parts stay in evaluation mode, without dropout."""
        super().train(mode)
        for part in self.model.modules():
            own = list(part.parameters())
            if own and not any(p.requires_grad for p in own):
                part.eval()
        for part in self._still:
            part.training = False
        return self

    def configuration(self) -> Config:
        """The configuration that `pretrained` takes instead of the folder."""
        return {"model": self._config, "processor": self.processor.as_dict()}

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        shown = {**self._settings, "out_features": self.out_features}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def forward(self, x: Any) -> Float[Tensor, "n d"]:
        """Encodes samples as they are stored."""
        found: Tensor = self.behind(self.pooled(x))
        return found

    def pooled(self, x: Any) -> Float[Tensor, "n _"]:
        """The model's own features of samples, before the layer after it."""
        if self.blank is not None:
            given: Tensor = x
            return given
        found: Tensor
        frames = self._frames(x)
        (steps, there), own = self._made(x if frames is None else frames.pictures)
        if self.pool == "pooler":
            if own is None:
                raise UserError(
                    f"{type(self.model).__name__} has no pooling of its own. Give pool=mean, "
                    "cls or last."
                )
            found = own.flatten(1)
        elif self.pool == "mean":
            found = mean_of(steps, there)
        elif self.pool == "cls":
            found = steps[:, 0]
        else:
            rows = torch.arange(steps.shape[0], device=steps.device)
            found = steps[rows, there.sum(1).clamp_min(1) - 1]
        return found if frames is None else frames.mean(found)

    def take_features(self, x: Any) -> None:
        """From now on, `forward` takes what `pooled` returns instead of inputs like `x`."""
        if isinstance(x, Padded):  # a blank has one step, for the mean
            x = with_a_step(x)
            x = Padded(x.values, x.length.clamp_min(1))
        self.blank = self.pooled(blank(x, self))

    def tokens(self, x: Any) -> Tokens:
        """The tokens; for a video, frame after frame."""
        frames = self._frames(x)
        (steps, there), _ = self._made(x if frames is None else frames.pictures)
        if frames is not None:
            steps, there = frames.tokens(steps)
        return Tokens(self.behind(steps), there)

    def _frames(self, x: Any) -> Frames | None:
        """The pictures of samples with several each; None for all else."""
        if self.takes != "pictures" or (isinstance(x, Tensor) and x.dim() == 4):
            return None
        return Frames(x, training=self.training)

    @torch.no_grad()
    def _depends_on_padding(self) -> bool:
        """Tries whether the tokens of an input change beside one twice as long."""
        device = next(self.model.parameters()).device
        if self.takes == "tokens":
            whole = min(6, self.longest or 6)
            half = whole // 2
            if self._is_full or not half:
                return False
            values = (torch.arange(whole, device=device) % self._count).expand(2, -1)
        else:
            half, whole = samples_of(self.model, 3), samples_of(self.model, 6)
            values = torch.arange(whole, device=device).sin().expand(2, -1)[..., None]
        lengths = torch.tensor([half, whole], device=device)
        with torch.random.fork_rng([]):
            alone = self._made(
                Padded(values[:1, :half], lengths[:1])
                if self.takes == "tokens"
                else values[:1, :half]
            ).tokens.steps[0]
            beside = self._made(Padded(values, lengths)).tokens.steps[0, : len(alone)]
        # In 32 bits, rounding changes 1e-5 of the largest; padding in a mean or convolution, 1e-2.
        return len(alone) > len(beside) or bool(
            ((alone - beside).abs() > 1e-3 * alone.abs().max()).any()
        )

    def _tiny(self, modality: Modality) -> Any:
        """An input that takes little to pass through the model."""
        device = next(self.model.parameters()).device
        if self.takes == "tokens":
            ids = torch.ones(1, 2, dtype=torch.int32, device=device)
            return Padded(ids, torch.tensor([2], device=device))
        if self.takes in ("waves", "mel"):
            steps = samples_of(self.model, 2) if self.takes == "waves" else 2 * self.processor.hop
            return torch.zeros(1, steps, 1, device=device)
        shape = modality.shape[-3:] if self.takes == "pictures" else modality.shape
        return torch.zeros(1, *shape, device=device)

    def _made(self, x: Any) -> _Made:
        if self.takes == "tokens":
            return self._of_text(x)
        if self.takes == "waves":
            return _Made(self._of_waves(x), None)
        if self.takes == "mel":
            return _Made(self._of_mel(x), None)
        values = self.standardise(x)
        if self.takes == "spectrogram":
            return _made(self.model(values[:, 0].transpose(1, 2)))
        return _made(self.model(pixel_values=values))

    # Pictures

    def _take_pictures(self, name: str, modality: Modality) -> None:
        """Prepares for pictures, and checks that they suit the model."""
        known, sizes = self.processor, _sizes(self.model)
        if not self._is_new:
            self.standardise = Standardise(modality)
            return
        channels, height, width = modality.shape[-3:]
        wanted = known.size or _pair(sizes.get("image_size"))
        reader = "image" if modality.kind == "image" else "video"
        if channels != sizes.get("num_channels", channels):
            raise UserError(
                f"'{name}' takes pictures of {sizes['num_channels']} channels, but "
                f"'{modality.name}' has {channels}. Prepare it with {reader}(...), or give another "
                "encoder."
            )
        if wanted and wanted != [height, width]:
            raise UserError(
                f"'{name}' takes pictures of {wanted[0]} x {wanted[1]}, but '{modality.name}' has "
                f"{height} x {width}. Prepare it with {reader}(size=[{wanted[0]},{wanted[1]}])."
            )
        read = parse(modality.read).settings if modality.read else {}
        if self.takes == "clips" and read.get("several"):
            raise UserError(
                f"'{name}' takes clips of {sizes['num_frames']} frames, but '{modality.name}' has "
                "as many pictures as lie in a cell. Give an encoder of pictures."
            )
        if self.takes == "clips" and modality.shape[0] != sizes["num_frames"]:
            raise UserError(
                f"'{name}' takes clips of {sizes['num_frames']} frames, but '{modality.name}' has "
                f"{modality.shape[0]}. Prepare it with video(frames={sizes['num_frames']})."
            )
        self.standardise = Standardise(_of_bytes(name, known, modality))

    # Texts

    def _take_texts(self, name: str, modality: Modality) -> None:
        sizes = _sizes(self.model)
        self._count: int = sizes["vocab_size"]
        self._is_full = sizes["model_type"] in _FULL
        if self._is_full and self._is_new:
            self.processor = replace(self.processor, pad=filler(name, modality))
        pad = self.processor.pad
        self._pad = sizes.get("pad_token_id") or 0 if pad is None else pad
        self.longest = _positions(self.model)
        if not self._is_new:
            return
        if self.longest and modality.shape[0] > self.longest:
            raise UserError(
                f"'{name}' has positions for {self.longest} tokens, but a text of "
                f"'{modality.name}' has {modality.shape[0]}. Cut the texts off: "
                f"text(tokenizer={name},length={self.longest})."
            )
        _check_blocks(name, self.model, modality)
        check_tokens(name, modality, self._count)

    def _of_text(self, x: Padded) -> _Made:
        x = with_a_step(x)
        there = is_there(x)
        ids = torch.where(x.values < self._count, x.values, 1).long()
        ids = ids.masked_fill(~there, self._pad)
        if self._is_full:
            assert self.longest is not None
            more = self.longest - ids.shape[1]
            found = self.model(input_ids=nn.functional.pad(ids, (0, more), value=self._pad))
            return _made(found, nn.functional.pad(there, (0, more)))
        seen = is_there(Padded(x.values, x.length.clamp_min(1)))
        found = self.model(input_ids=ids, attention_mask=seen.long())
        return _made(found, there)

    # Sound

    def _take_sound(self, name: str, modality: Modality) -> None:
        known, sizes = self.processor, _sizes(self.model)
        if self._is_new:
            check_sound(name, modality, self.takes, known.rate)
        if self.takes == "mel":
            self.longest = 2 * sizes["max_source_positions"] * known.hop
            self.register_buffer("mel", _mel(sizes["num_mel_bins"], known), persistent=False)
            if self._is_new and modality.shape[0] > self.longest:
                raise UserError(
                    f"'{name}' hears {self.longest} samples at most, but '{modality.name}' has "
                    f"{modality.shape[0]}. Prepare it with wave(seconds="
                    f"{self.longest / (known.rate or 1):g})."
                )
        elif self.takes == "waves":
            check_adapter(f"'{name}'", self.model)
            if known.normalise is None:
                self.standardise = Standardise(modality)
        else:
            self._take_spectrogram(name, modality)

    def _take_spectrogram(self, name: str, modality: Modality) -> None:
        known, sizes = self.processor, _sizes(self.model)
        if self._is_new:
            _, bands, frames = modality.shape
            if bands != sizes["num_mel_bins"]:
                raise UserError(
                    f"'{name}' takes spectrograms of {sizes['num_mel_bins']} bands, but "
                    f"'{modality.name}' has {bands}. Prepare it with spectrogram(front=fbank)."
                )
            shape = {"num_mel_bins": bands, "max_length": frames}
            fit_positions(self.model, shape)
            self._config |= shape
        if self._is_new and known.mean and known.std:
            modality = replace(modality, mean=torch.tensor(known.mean), std=torch.tensor(known.std))
        self.standardise = Standardise(modality)

    def _of_waves(self, x: Shaped[Tensor, "n t 1"] | Padded) -> Tokens:
        """The tokens of waveforms, each as if alone."""
        if isinstance(x, Padded):
            if self._sees_padding:
                raise UserError(
                    f"{type(self.model).__name__} mixes padding into its tokens, so it takes "
                    "sounds of one length only. Read them with wave(seconds=...), or give another "
                    "encoder."
                )
            sound, count = filled(self.model, x)
            return waves(self.model, self._normed(sound, is_there(Padded(sound, x.length))), count)
        whole = torch.ones_like(x[..., 0], dtype=torch.bool)
        return all_there(self.model(self._normed(x, whole)[..., 0]).last_hidden_state)

    def _normed(
        self, sound: Shaped[Tensor, "n t 1"], there: Bool[Tensor, "n t"]
    ) -> Float[Tensor, "n t 1"]:
        """Waveforms normalised as by the processor."""
        if self.processor.normalise is None:
            found: Tensor = self.standardise(sound)
            return found
        dtype = next(self.model.parameters()).dtype
        if not self.processor.normalise:
            return sound.to(dtype)
        valid, sound = there[..., None], sound.float()
        count = there.sum(1)[:, None, None].clamp_min(1)
        mean = sound.sum(1, keepdim=True) / count
        apart = (sound - mean).masked_fill(~valid, 0)
        spread = (apart.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        return (apart / spread).to(dtype)

    def _of_mel(self, x: Shaped[Tensor, "n t 1"] | Padded) -> Tokens:
        """The tokens of waveforms through Whisper's log mel bands."""
        assert self.longest is not None
        known = self.processor
        if not isinstance(x, Padded):
            x = Padded(x, x.new_full((x.shape[0],), x.shape[1], dtype=torch.long))
        sound, length = x.values.masked_fill(~is_there(x)[..., None], 0), x.length
        with torch.autocast(sound.device.type, enabled=False):
            sound = nn.functional.pad(sound[..., 0].float(), (0, self.longest - sound.shape[1]))
            window = torch.hann_window(known.n_fft, device=sound.device)
            found = torch.stft(sound, known.n_fft, known.hop, window=window, return_complex=True)
            power = found[..., :-1].abs().square()
            bands = (self.mel.float().T @ power).clamp_min(1e-10).log10()
            bands = torch.maximum(bands, bands.amax((1, 2), keepdim=True) - 8)
            bands = (bands + 4) / 4
        steps = self.model(bands.to(next(self.model.parameters()).dtype)).last_hidden_state
        frames = length // known.hop  # the convolutions turn two into a token
        return Tokens(steps, is_there(Padded(steps, ((frames + 1) // 2).clamp_min(1))))


def _freeze(name: str, model: nn.Module, count: int, passing: Callable[[], Any]) -> list[nn.Module]:
    """Freezes the first layers and all that they depend on, which a pass through the model finds.

    Args:
        name: What to call the model.
        model: The model, in evaluation mode.
        count: How many layers.
        passing: Passes an input through the model.

    Returns:
        The modules that have to stay in evaluation mode, each by itself, for the layers to give
        the same. Modules around the layers are among them, for functional dropout before these.
    """
    layers = _layers(model)
    if not 0 < count <= len(layers):
        has = f"has {len(layers)} layers" if layers else "has no countable layers"
        raise UserError(f"'{name}' {has}, and freeze={count} was asked for. Give true, or fewer.")
    begun, needed = _until(layers[count - 1], model, passing)
    still = [part for layer in layers[:count] for part in layer.modules()]
    for parameter in (*needed, *(p for part in still for p in part.parameters())):
        parameter.requires_grad_(False)
    return [*begun, *still]


def _layers(model: nn.Module) -> Sequence[nn.Module]:
    count = _sizes(model).get("num_hidden_layers") or _sizes(model).get("encoder_layers")
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    # There may be as many convolutions before them.
    return [*next((part for part in reversed(lists) if len(part) == count), ())]


def _until(
    last: nn.Module, model: nn.Module, passing: Callable[[], Any]
) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules that run up to the end of a layer, and the trained parameters behind its output.

    Order of registration does not tell: a norm that is registered after the layers may come before.
    """
    begun: list[nn.Module] = []
    before: list[nn.Module] = []
    needed: list[Tensor] = []

    def end(_part: nn.Module, _given: Any, found: Any) -> None:
        before.extend(begun)
        needed.extend(_leaves(found))

    hooks = [
        part.register_forward_pre_hook(lambda part, _given: begun.append(part))
        for part in model.modules()
    ]
    hooks.append(last.register_forward_hook(end))
    # The graph tells all, so no activation has to be kept for gradients.
    unsaved = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda kept: kept)
    try:
        with torch.enable_grad(), torch.random.fork_rng([]), unsaved:
            passing()
    finally:
        for hook in hooks:
            hook.remove()
    return before, needed


def _leaves(found: Any) -> list[Tensor]:
    """The parameters that tensors were computed from."""
    several = found if isinstance(found, (tuple, list)) else [found]
    nodes = [x.grad_fn for x in several if isinstance(x, Tensor) and x.grad_fn is not None]
    seen, leaves = set(nodes), []
    while nodes:
        node: Any = nodes.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        after = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(after)
        nodes += after
    return leaves


def _adapt(name: str, model: nn.Module, rank: int, freeze: bool | int) -> None:
    """Puts low-rank adapters on the linear layers, and freezes all else."""
    if freeze:
        raise UserError(
            f"'{name}': lora={rank} already freezes the model and trains adapters. Leave freeze "
            "out."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            f"'{name}': lora={rank} needs PEFT. Install it with pip install '.[adapters]' in "
            "evenly's clone."
        ) from error
    model.requires_grad_(False)
    wanted = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    try:
        inject_adapter_in_model(wanted, model)
    except ValueError as error:
        raise UserError(f"'{name}' takes no adapters of lora={rank} ({error}).") from error


def _checkpoint(name: str, model: Any, *, is_partly_frozen: bool) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"'{name}' ({type(model).__name__}) does not support gradient checkpointing. Leave "
            "checkpointing out."
        )
    # Older releases go by the mode of the module around the layers, which stays in evaluation.
    if is_partly_frozen and not hasattr(_layers(model)[-1], "gradient_checkpointing"):
        raise UserError(
            f"'{name}': of a model whose first layers are frozen, the installed Transformers "
            "recomputes nothing. Upgrade it (pip install -U transformers), or leave checkpointing "
            "out."
        )
    # Transformers 6 knows only the new name, 4 only the old one.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _made(found: Any, there: Bool[Tensor, "n t"] | None = None) -> _Made:
    steps = found.last_hidden_state
    if steps.dim() == 4:  # from a convolutional network
        steps = steps.flatten(2).transpose(1, 2)
    tokens = all_there(steps) if there is None else Tokens(steps, there)
    return _Made(tokens, getattr(found, "pooler_output", None))


def _sizes(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    return {**config.to_dict(), "model_type": config.model_type}


def _pair(size: Any) -> list[int] | None:
    """Height and width from a size that may be one number."""
    if not size:
        return None
    return [size, size] if isinstance(size, int) else list(size)


def _check_blocks(name: str, model: nn.Module, modality: Modality) -> None:
    """Raises if texts are long enough for block-sparse attention, as in BigBird.

    Its last block, to which all tokens attend, is that of the padded text. After the first shorter
    batch, such a model attends in full for good.
    """
    sizes = _sizes(model)
    if sizes.get("attention_type") != "block_sparse":
        return
    full = (5 + 2 * sizes["num_random_blocks"]) * sizes["block_size"]
    if modality.shape[0] > full:
        raise UserError(
            f"'{name}' ({type(model).__name__}) attends by blocks in texts of more than {full} "
            f"tokens, and '{modality.name}' has texts of up to {modality.shape[0]}; their features "
            "would depend on the texts beside them. Give config={attention_type: original_full}, "
            f"or cut the texts off: text(tokenizer={name},length={full})."
        )


# Loading


def _loaded(
    pretrained: str | Config, modality: Modality, changes: Mapping[str, Any]
) -> tuple[Any, Config, Iterable[str]]:
    """A model, its configuration for a checkpoint, and the names without weights in a folder."""
    from transformers import AutoConfig, AutoModel

    missing: Iterable[str] = ()

    if isinstance(pretrained, dict):
        asked = pretrained["model"]
        whole = AutoConfig.for_model(**_known(asked))
        model = AutoModel.from_config(whole)
    else:
        with opening(pretrained) as place:
            whole = AutoConfig.from_pretrained(place, trust_remote_code=False)
            _change(whole, modality, changes)
            try:
                model, info = AutoModel.from_pretrained(
                    place, config=whole, trust_remote_code=False, output_loading_info=True
                )
            except RuntimeError as error:  # weights of another size
                raise ValueError(str(error).strip()) from error
        missing = info["missing_keys"]
        _keep_fixed(model, whole)
    return model.float(), settings_of(whole), missing


def _keep_fixed(model: nn.Module, whole: Any) -> None:
    """Fixes what a new model has fixed, such as Whisper's sinusoids, which loading may not keep."""
    from accelerate import init_empty_weights
    from transformers import AutoModel

    with torch.random.fork_rng([]), init_empty_weights():
        new = AutoModel.from_config(whole)
    fixed = {key for key, parameter in new.named_parameters() if not parameter.requires_grad}
    for key, parameter in model.named_parameters():
        if key in fixed:
            parameter.requires_grad_(False)


def _known(asked: Config) -> Config:
    """A checkpoint's settings, limited to those that its kind of configuration has.

    Transformers accepts more, including settings that run third-party code.
    """
    from transformers import AutoConfig

    kinds = {"model_type": asked["model_type"]}
    known = AutoConfig.for_model(asked["model_type"]).to_dict()
    return _pruned(asked, known) | kinds


def _pruned(asked: Config, known: Config) -> Config:
    inner = {
        key: _pruned(value, known[key])
        for key, value in asked.items()
        if isinstance(value, dict) and isinstance(known.get(key), dict) and "model_type" in value
    }
    return {key: value for key, value in asked.items() if key in known} | inner


def _change(whole: Any, modality: Modality, changes: Mapping[str, Any]) -> None:
    """Changes the configuration of the used part of a model."""
    part = getattr(whole, f"{_TOWERS.get(modality.kind)}_config", whole)
    known = part.to_dict().keys() - {"model_type"}
    for name, value in changes.items():
        if name not in known:
            raise unknown(f"setting of {part.model_type}'s configuration", name, sorted(known))
        setattr(part, name, value)
    for name, value in _CALM.items():
        if name in known and name not in changes:
            setattr(part, name, value)


def _taken(model: Any, modality: Modality) -> tuple[nn.Module, bool]:
    """The used part of a model, and whether it is one of two towers."""
    tower = getattr(model, f"{_TOWERS.get(modality.kind)}_model", None)
    if tower is not None:
        return tower, True
    # A folder of T5's encoder alone says it is no encoder-decoder, but AutoModel makes both.
    is_both = (
        hasattr(model, "decoder") and "decoder_input_ids" in signature(model.forward).parameters
    )
    if model.config.is_encoder_decoder or is_both:
        return model.get_encoder(), False
    return model, model.config.model_type.endswith(("_text_model", "_vision_model"))


def _takes(name: str, model: Any, modality: Modality) -> Takes:
    """What a model takes; raises if that does not match the modality."""
    sizes, given, shape = _sizes(model), modality.kind, modality.shape
    main = getattr(model, "main_input_name", "")
    found: Takes | None = None
    if main == "pixel_values" and given in ("image", "video"):
        found = "clips" if "num_frames" in sizes else "pictures"
        if found == "clips" and given == "image":
            found = None
    elif main == "input_ids" and given == "text":
        found = "tokens"
    elif main == "input_values" and given == "image" and "num_mel_bins" in sizes:
        found = "spectrogram" if shape[0] == 1 else None
    elif given == "sequence" and shape[1] == 1 and sizes["model_type"] == "whisper":
        found = "mel"
    elif given == "sequence" and shape[1] == 1 and hasattr(model, "feature_projection"):
        found = "waves" if main == "input_values" else None
    if found is None:
        what = _READ_AS.get(main, f"'{main}', which no modality is read as")
        raise UserError(
            f"'{name}' ({type(model).__name__}) takes {what}, but '{modality.name}' is "
            f"{given} {shape}."
        )
    return found


# How the data were prepared


def _of_bytes(name: str, known: Processor, modality: Modality) -> Modality:
    """The modality with a processor's statistics, on the scale of its pictures."""
    if known.mean is None or known.std is None:
        return modality
    mean, std = torch.tensor(known.mean), torch.tensor(known.std)
    channels = modality.shape[-3]
    if len(mean) not in (1, channels):
        raise UserError(
            f"the processor of '{name}' has statistics of {len(mean)} channels, but "
            f"'{modality.name}' has {channels}. Give another encoder."
        )
    largest, least = float(modality.mean.max()), float(modality.mean.min())
    # Between 0 and 1, no deviation is larger; it is 1 in what a run's folder says.
    is_unit = largest <= 1 and bool(((modality.std <= 0.5) | (modality.std == 1)).all())
    if least < 0 or (largest <= 1 and not is_unit):
        raise UserError(
            f"'{name}' takes pictures of bytes, or from 0 to 1, but those of '{modality.name}' "
            f"have means from {least:g} to {largest:g}. Give them as they were read."
        )
    scale = 1 / 255 if is_unit else 1.0
    return replace(
        modality, mean=(mean * scale).expand(channels), std=(std * scale).expand(channels)
    )


def _positions(model: nn.Module) -> int | None:
    """The number of tokens that a model has positions for; None if these are computed."""
    for part, layer in model.named_modules():
        is_position = part.endswith(("position_embedding", "position_embeddings"))
        if is_position and isinstance(layer, nn.Embedding):
            # RoBERTa and its kin number positions from padding's plus one.
            first = 0 if layer.padding_idx is None else layer.padding_idx + 1
            return layer.num_embeddings - first
    most = _sizes(model).get("max_position_embeddings")
    return most if isinstance(most, int) else None


def _mel(bands: int, known: Processor) -> Float[Tensor, "frequencies bands"]:
    """Whisper's filters."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        1 + known.n_fft // 2, bands, 0.0, 8000.0, known.rate or 16_000, norm="slaney",
        mel_scale="slaney",
    )  # fmt: skip
    return torch.from_numpy(filters).float()
