"""A trained run as a program that needs torch alone."""

import json
import warnings
from collections.abc import Collection, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.data import Padded
from evenly.errors import UserError, UserRuntimeError
from evenly.files import replacing
from evenly.lab.run.stored import Stored
from evenly.lab.trained.predict import Trained
from evenly.suggest import unknown

ABOUT = "evenly.json"
"""The extra file of a program that says what it takes and answers."""

# What torch cannot prove about free sizes, a program checks at run time; older versions have no
# choice.
_DEFERRED: Any = (
    {"prefer_deferred_runtime_asserts_over_guards": True}
    if ("prefer_deferred_runtime_asserts_over_guards" in signature(torch.export.export).parameters)
    else {}
)


def export(run: Trained, path: Path, without: Collection[str] = ()) -> None:
    """Writes the model of a run as a `torch.export` program, which does not need this package.

    It takes a mapping of inputs by modality, all but those left out, in the form and type of the
    run's data (`modalities`), and returns logits, or numbers in the data's units. The number of
    samples is free. Inputs of unequal lengths are padded and come with their lengths:
    `(values, length)`. For these, and for other sequences if their encoder allows it, the number of
    steps is also free, up to the encoder's limit. Its extra file, `ABOUT`, says what it takes and
    answers.

    Raises:
        ValueError: If such a file is impossible.
        RuntimeError: If a user's encoder makes decisions by values, which no program can.
    """
    from evenly.lab.run.prepare import say  # it loads the training engine

    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{path}: cannot write a file there. Give the name of a new file.")
    for name in without:
        if name not in run.modalities:
            raise unknown(f"modality of {run.folder}", name, run.modalities)
    taken = {name: known for name, known in run.modalities.items() if name not in without}
    if not taken:
        raise UserError(
            f"{run.folder} has the modalities {', '.join(run.modalities)}, and --without leaves "
            "none. Leave at least one."
        )
    example = {name: _example(known) for name, known in taken.items()}
    n = torch.export.Dim("n")
    shapes: dict[str, Any] = {name: {0: n} for name in example}
    for number, (name, known) in enumerate(taken.items()):
        if known.ragged:
            steps = torch.export.Dim(f"steps_{number}", max=run.longest(name))
            shapes[name] = ({0: n, 1: steps}, {0: n})
        elif known.kind == "sequence":
            shapes[name] = {0: n, 1: torch.export.Dim.AUTO}
    say(run.notes)
    try:
        with warnings.catch_warnings():
            # Recurrent layers and MMTM record tensors that the program does not need.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during exp")
            program = torch.export.export(
                _Program(run), (example,), dynamic_shapes=(shapes,), **_DEFERRED
            )
    except Exception as error:
        kinds = ", ".join(type(encoder).__name__ for encoder in run.model.encoders.values())
        said = str(error).strip().partition("\n")[0]
        raise UserRuntimeError(
            f"{run.folder}: torch.export cannot trace its model, with the encoders {kinds} "
            f"({type(error).__name__}: {said[:200]}). Use 'evenly predict', which needs no "
            "export."
        ) from error
    _drop_guesses(program.graph_module)
    with replacing(path) as new:
        about = json.dumps(_about(run, taken))
        torch.export.save(program, new, extra_files={ABOUT: about})


def _about(run: Trained, taken: Mapping[str, Stored]) -> dict[str, Any]:
    """What one must know to call a program."""
    modalities = {}
    for name, known in taken.items():
        shape: list[int | None] = [*known.shape[:1]] if known.kind == "text" else [*known.shape]
        if known.ragged or known.kind == "sequence":
            shape[0] = None
        modalities[name] = {
            "shape": shape,
            "dtype": known.dtype,
            "ragged": known.ragged,
            "longest": run.longest(name),
        }
    return {"modalities": modalities, "task": run.task.name, "names": list(run.task.names)}


def _drop_guesses(program: torch.fx.GraphModule) -> None:
    """Removes torch's assertions about memory layouts, which hold only for two or more samples.

    While tracing, it compares products of sizes and records that they differed; no computation
    depends on that.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and (
            "expression Ne(" in str(node.args[1])
        ):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


class _Program(nn.Module):
    """Returns only the logits or numbers, as an exported program must."""

    def __init__(self, run: Trained) -> None:
        super().__init__()
        self.model, self.task = run.model, run.task

    def forward(self, inputs: Mapping[str, Any]) -> Float[Tensor, "n c"]:
        whole = {name: Padded(*x) if isinstance(x, tuple) else x for name, x in inputs.items()}
        logits: Tensor = self.model(whole).logits
        return self.task.answers(logits) if self.task.name == "number" else logits


def _example(known: Stored) -> Tensor | tuple[Tensor, Tensor]:
    shape = known.shape[:1] if known.kind == "text" else known.shape
    values = torch.zeros(2, *shape, dtype=known.type)
    return (values, torch.full((2,), shape[0])) if known.ragged else values
