"""Features of a model as it stands, taken by forward hooks, so that the model need not change."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Pool = Callable[[Any], Tensor]


class Taps:
    """Forward hooks on the encoders of a model; `capture` makes one.

    Attributes:
        encoders: By modality, the modules that are listened to, as a method takes them.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], pools: Mapping[str, Pool]) -> None:
        """Starts to listen.

        Args:
            encoders: By modality, the modules whose outputs are the features.
            pools: By modality, what makes (n, width) vectors of an output.
        """
        self.encoders = dict(encoders)
        self._pools = dict(pools)
        self._last: dict[str, Tensor] = {}
        self._trained: set[str] = set()  # encoders that ran with gradients since features()
        self._hooks = [
            encoder.register_forward_hook(partial(self._listen, name))
            for name, encoder in self.encoders.items()
        ]

    def features(self) -> dict[str, Float[Tensor, "n _"]]:
        """By modality, the features of the last forward pass, still attached to its graph.

        They are handed out once, so that a training pass that missed an encoder is noticed.

        Raises:
            RuntimeError: If an encoder did not run since the last call.
        """
        silent = [name for name in self.encoders if name not in self._last]
        if silent:
            raise RuntimeError(
                f"no features of {silent}: these encoders did not run since features() was last "
                "called. Call the model first, with every modality in the batch."
            )
        last, self._last = self._last, {}
        self._trained.clear()
        return {name: last[name] for name in self.encoders}

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _listen(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs the encoder again, within the backward pass
        pooled = self._pools[name](output)
        if pooled.ndim != 2:
            raise ValueError(
                f"the features of '{name}' have shape {tuple(pooled.shape)} after pooling; "
                "they should be (samples, width). Pass capture(..., pool=...), for example "
                "pool=lambda x: x.mean(1) for (samples, time, width)."
            )
        if name in self._trained:
            raise RuntimeError(
                f"the encoder of '{name}' ran twice before features() was called, so one run "
                "would be lost. Call features() after each forward pass in training; if a pass "
                "runs the encoder once per frame or crop, capture a module that runs once."
            )
        if torch.is_grad_enabled():
            self._trained.add(name)
        self._last[name] = pooled


def capture(
    model: nn.Module,
    modules: Mapping[str, str],
    *,
    pool: Pool | Mapping[str, Pool] | None = None,
) -> Taps:
    """Listens to the encoders of an existing model by their module paths.

    ```python
    taps = evenly.capture(model, {"audio": "audio_net", "visual": "video.backbone"})
    method = evenly.Relearn(taps.encoders)

    def forward(model, batch):
        logits = model(batch["sound"], batch["frames"])
        return evenly.Output(logits, taps.features()), batch["label"]
    ```

    Args:
        model: The model, unchanged but for the hooks.
        modules: By modality, the path of its encoder, as `model.named_modules()` writes it.
        pool: What makes (samples, width) vectors of an encoder's output, for all or by
            modality. By default vectors are taken as they are, maps of four or five dimensions
            are averaged over space and time, and of a Transformers output the pooled vector or
            else the mean over the sequence is taken.

    Raises:
        ValueError: If a path names no module of the model; the nearest paths are named.
    """
    named = dict(model.named_modules())
    for name, path in modules.items():
        if path not in named:
            near = get_close_matches(path, named, n=3) or [n for n in list(named)[1:4] if n]
            raise ValueError(
                f"the model has no module '{path}' (for '{name}'). Did you mean "
                f"{' or '.join(repr(n) for n in near)}? model.named_modules() lists them all."
            )
    pools = {
        name: pool.get(name, vectors) if isinstance(pool, Mapping) else pool or vectors
        for name in modules
    }
    return Taps({name: named[path] for name, path in modules.items()}, pools)


def vectors(output: Any) -> Tensor:
    """The (samples, width) vectors in what an encoder returned, where that is unambiguous."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return vectors(pooled)
    sequence = getattr(output, "last_hidden_state", None)
    if sequence is not None:
        value: Tensor = sequence
        return value.mean(1) if value.ndim == 3 else vectors(value)
    if isinstance(output, tuple | list):
        return vectors(output[0])
    if not isinstance(output, Tensor):
        raise TypeError(
            f"an encoder returned {type(output).__name__}, which holds no features that capture "
            "can find. Pass capture(..., pool=...) to say where they are."
        )
    return output.flatten(2).mean(2) if output.ndim in (4, 5) else output
