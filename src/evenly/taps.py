"""Takes the features of an existing model by forward hooks, so that the model need not change."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from evenly.errors import UserError, UserRuntimeError

Pool = Callable[[Any], Tensor]

_POOLED = ("pooler_output", "text_embeds", "image_embeds", "audio_embeds", "sentence_embedding")
"""Names that libraries give the vector of a whole sample in an output of several parts."""

_PADDING = ("src_key_padding_mask", "key_padding_mask")
"""torch's name of a mask that is True at padding; Transformers' attention_mask is 1 elsewhere."""


class Taps:
    """Forward hooks on the encoders of a model; `capture` makes one.

    Attributes:
        encoders: The hooked modules by modality, as a method takes them.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], pools: Mapping[str, Pool]) -> None:
        """Adds the hooks.

        Args:
            encoders: The modules whose outputs are the features, by modality.
            pools: By modality, a function from an output to (n, width) vectors; `vectors` for
                modalities not named.
        """
        self.encoders = dict(encoders)
        self._pools = dict(pools)
        self._last: dict[str, Tensor] = {}
        self._trained: set[str] = set()  # encoders that ran with gradients since features()
        self._is_asked = True
        self._hooks = [
            encoder.register_forward_hook(partial(self._listen, name), with_kwargs=True)
            for name, encoder in self.encoders.items()
        ]

    def features(self) -> dict[str, Float[Tensor, "n _"]]:
        """The features of the last forward pass by modality, still attached to its graph.

        They are returned only once, so that a training pass that skipped an encoder is noticed.

        Raises:
            RuntimeError: If an encoder did not run since the last call.
        """
        silent = [name for name in self.encoders if name not in self._last]
        if silent:
            raise UserRuntimeError(
                f"no features of {silent}: these encoders did not run since features() was last "
                "called. Call the model first, with every modality in the batch; a model that is "
                "compiled must not have run before capture()."
            )
        last, self._last = self._last, {}
        self._trained.clear()
        self._is_asked = True
        return {name: last[name] for name in self.encoders}

    def remove(self) -> None:
        """Removes the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Taps":
        """For a copied model (EMA, a teacher), whose features may never be read."""
        made = Taps.__new__(Taps)
        memo[id(self)] = made
        empty = {"_last": {}, "_trained": set(), "_is_asked": False}
        vars(made).update(copy.deepcopy({**vars(self), **empty}, memo))
        return made

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _listen(
        self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs the encoder again, within the backward pass
        pool = self._pools.get(name)
        call = Call(module, args, kwargs, name)
        pooled = vectors(output, call) if pool is None else pool(output)
        if pooled.ndim != 2:
            raise UserError(
                f"the features of '{name}' have shape {tuple(pooled.shape)} after pooling; "
                "they should be (samples, width). Pass capture(..., pool=...), for example "
                "pool=lambda x: x.mean(1) for (samples, time, width)."
            )
        if name in self._trained:
            raise UserRuntimeError(
                f"the encoder of '{name}' ran twice before features() was called, so one run "
                "would be lost. Call features() after each forward pass in training; if a pass "
                "runs the encoder once per frame or crop, capture a module that runs once."
            )
        if torch.is_grad_enabled() and self._is_asked:
            self._trained.add(name)
        self._last[name] = pooled


# What torch.compiler.disable sets on a function, without importing the compiler.
Taps._listen._torchdynamo_disable = True  # type: ignore[attr-defined]


def capture(
    model: nn.Module,
    modules: Mapping[str, str],
    *,
    pool: Pool | Mapping[str, Pool] | None = None,
) -> Taps:
    """Takes features from the encoders of an existing model, given their module paths.

    ```python
    taps = evenly.capture(model, {"audio": "audio_net", "visual": "video.backbone"})
    method = evenly.Relearn(taps.encoders)

    def forward(model, batch):
        logits = model(batch["sound"], batch["frames"])
        return evenly.Output(logits, taps.features()), batch["label"]
    ```

    Args:
        model: The model, unchanged except for the hooks.
        modules: By modality, the path of its encoder, as `model.named_modules()` writes it.
        pool: A function from an encoder's output to (samples, width) vectors, for all or by
            modality. By default, vectors stay as they are, maps of four or five dimensions are
            averaged over space and time, with the second dimension as their channels, and a
            Transformers output gives its pooled vector or else the mean over the sequence. The mean
            leaves out padding, as marked by the encoder's `attention_mask` or, with torch's own
            layers, `src_key_padding_mask`, or by the lengths of a packed sequence.

    Raises:
        ValueError: If a path names no module of the model; the error suggests the nearest paths. In
            a forward pass, if an output is ambiguous, such as maps whose channels seem to be last.
    """
    named = dict(model.named_modules())
    if (inner := _unwrapped(model)) is not model:  # its own paths work, too
        named = {**dict(inner.named_modules()), **named}
    for name, path in modules.items():
        if path not in named:
            near = get_close_matches(path, named, n=3) or [n for n in list(named)[1:4] if n]
            raise UserError(
                f"the model has no module '{path}' (for '{name}'). Did you mean "
                f"{' or '.join(repr(n) for n in near)}? model.named_modules() lists them all."
            )
    pools = pool if isinstance(pool, Mapping) else dict.fromkeys(modules, pool) if pool else {}
    return Taps({name: named[path] for name, path in modules.items()}, pools)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel or PEFT."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner = module.module
    elif callable(peft := getattr(module, "get_base_model", None)):
        inner = peft()
    return module if inner is None or inner is module else _unwrapped(inner)


@dataclass(frozen=True)
class Call:
    """An encoder's arguments, which tell where padding is."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str

    def arguments(self) -> dict[str, Any]:
        """All arguments by name, including those in a dictionary of inputs."""
        signature = inspect.signature(_unwrapped(self.module).forward)
        try:
            bound = signature.bind_partial(*self.args, **self.kwargs)
        except TypeError:
            return dict(self.kwargs)
        bound.apply_defaults()
        found = dict(bound.arguments)
        for inputs in [value for value in found.values() if isinstance(value, Mapping)]:
            found |= {key: value for key, value in inputs.items() if found.get(key) is None}
        return found

    def steps(
        self, sequence: Float[Tensor, "n t d"], mask: str = "attention_mask"
    ) -> Bool[Tensor, "n t"] | None:
        """Which steps of each sample are not padding; None without a mask.

        Raises:
            ValueError: If there is a mask that cannot tell.
        """
        given = self.arguments()
        known = [name for name in (mask, *_PADDING) if name in given]
        for name in known:
            if given[name] is not None:
                return self._kept(name, given[name], sequence)
        shape = sequence.shape[:2]
        for name, value in {} if known else given.items():
            if name.endswith("mask") and getattr(value, "shape", None) == shape:
                raise self._unclear(name, value, "whose meaning its name does not tell")
        return None

    def _kept(self, name: str, given: Any, sequence: Tensor) -> Bool[Tensor, "n t"]:
        if not isinstance(given, Tensor) or given.ndim != 2:
            raise self._unclear(name, given, "which does not say which steps are padding")
        mask = given
        shorten = getattr(_unwrapped(self.module), "_get_feature_vector_attention_mask", None)
        if mask.shape != sequence.shape[:2] and callable(shorten):
            mask = shorten(sequence.shape[1], mask)  # for audio encoders: from samples to frames
        if mask.shape != sequence.shape[:2]:
            steps = f"but the output has {sequence.shape[1]} steps"
            raise self._unclear(name, mask, f"{steps} for {len(sequence)} samples")
        mask = mask.to(sequence.device)
        if name in _PADDING:
            # True at padding, or a term that is added to attention before its softmax
            padding = mask.exp() == 0 if mask.is_floating_point() else mask.bool()
            return padding.logical_not()
        if mask.is_floating_point() and bool((mask < 0).any()):
            raise self._unclear(name, mask, "which is not 1 at steps and 0 at padding")
        return mask.bool()

    def _unclear(self, name: str, mask: Any, why: str) -> UserError:
        shape = getattr(mask, "shape", None)
        what = type(mask).__name__ if shape is None else f"mask of shape {tuple(shape)}"
        return UserError(
            f"the encoder of '{self.name}' was given '{name}', a {what}, {why}. Pass "
            "capture(..., pool=...) to say how its output becomes vectors, for example "
            "pool=lambda x: x[:, 0] for (samples, time, width), or x.last_hidden_state[:, 0]."
        )


def vectors(output: Any, call: Call) -> Tensor:
    """The (samples, width) vectors in an encoder's output, if unambiguous."""
    if isinstance(output, PackedSequence):
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        steps = torch.arange(padded.shape[1], device=padded.device)
        return _mean(padded, steps < lengths.to(padded.device)[:, None])
    for name in _POOLED:
        if (pooled := _part(output, name)) is not None:
            return vectors(pooled, call)
    sequence = _part(output, "last_hidden_state")
    if sequence is not None:
        if sequence.ndim != 3:
            return vectors(sequence, call)
        is_decoder = _part(output, "encoder_last_hidden_state") is not None
        mask = "decoder_attention_mask" if is_decoder else "attention_mask"
        return _mean(sequence, call.steps(sequence, mask))
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return vectors(tensors[0], call)
    elif isinstance(output, tuple | list) and output:
        return vectors(output[0], call)
    if not isinstance(output, Tensor):
        held = f" of {sorted(output)}" if isinstance(output, Mapping) else ""
        raise TypeError(
            f"an encoder returned {type(output).__name__}{held}, which holds no features that "
            "capture can find. Pass capture(..., pool=...) to say where they are."
        )
    if output.is_nested:
        return torch.stack([sample.flatten(0, -2).mean(0) for sample in output.unbind()])
    if output.ndim == 3:
        return _of_sequence(output, call)
    return _of_maps(output, call) if output.ndim in (4, 5) else output


def _of_maps(maps: Float[Tensor, "n c *place"], call: Call) -> Float[Tensor, "n c"]:
    """The mean over space and time.

    Raises:
        ValueError: If the maps look like squares with their channels last.
    """
    one, other, last = maps.shape[-3:]
    if one == other < last and (maps.ndim == 4 or maps.shape[1] <= last):  # time before both
        axes = tuple(range(1, maps.ndim - 1))
        raise UserError(
            f"the output of '{call.name}' has shape {tuple(maps.shape)}, whose channels seem to "
            f"be last. Pass capture(..., pool=...): pool=lambda x: x.mean({axes}) if they are, or "
            "pool=lambda x: x.flatten(2).mean(2) if they are second."
        )
    return maps.flatten(2).mean(2)


def _of_sequence(output: Tensor, call: Call) -> Tensor:
    """The mean over steps, if something tells which dimension they are."""
    layer = _unwrapped(call.module)
    if isinstance(layer, nn.TransformerEncoder):
        layer = layer.layers[0]
    if isinstance(layer, nn.TransformerEncoderLayer):
        sequence = output if layer.self_attn.batch_first else output.transpose(0, 1)
        return _mean(sequence, call.steps(sequence))
    steps = call.steps(output)
    return output if steps is None else _mean(output, steps)


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _mean(sequence: Float[Tensor, "n t d"], steps: Bool[Tensor, "n t"] | None) -> Tensor:
    """The mean over all or the given steps; zeros if a sample has none."""
    if steps is None:
        return sequence.mean(1)
    keep = steps[..., None]
    # Padding may hold NaN, which a factor of zero does not remove.
    total = torch.where(keep, sequence, 0.0).sum(
        1, dtype=torch.promote_types(sequence.dtype, torch.float32)
    )
    return (total / keep.sum(1).clamp_min(1)).to(sequence.dtype)
