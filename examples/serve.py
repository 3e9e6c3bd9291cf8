"""Answers requests over HTTP with programs of `evenly export`; evenly itself is not needed.

    evenly export RUN --out model.pt2
    evenly export RUN --without bottom --out top.pt2
    python serve.py model.pt2 top.pt2 --port 8000

Each program answers the requests that name the modalities it takes.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Body, FastAPI, HTTPException
from torch.nn.utils.rnn import pad_sequence

ANSWERS = {
    "classes": lambda logits: logits.softmax(1),
    "labels": lambda logits: logits.sigmoid(),
    "number": lambda numbers: numbers,
}


class Program:
    """A model, and what is known of it: what it takes, and the names of what it answers."""

    def __init__(self, path: Path) -> None:
        extra = {"evenly.json": ""}
        self.model = torch.export.load(path, extra_files=extra).module()
        known = json.loads(extra["evenly.json"])
        self.modalities, self.names = known["modalities"], known["names"]
        self.answers = ANSWERS[known["task"]]

    def __call__(self, request: dict[str, Any]) -> list[dict[str, float]]:
        inputs = {name: self.taken(name, request[name]) for name in self.modalities}
        if len({len(values) for values in request.values()}) > 1:
            raise ValueError("The modalities differ in their number of samples. Make them equal.")
        try:
            with torch.no_grad():
                found = self.answers(self.model(inputs).float())
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"The model cannot take this: {str(error).splitlines()[0]}") from error
        return [dict(zip(self.names, row, strict=True)) for row in found.tolist()]

    def taken(self, name: str, samples: Any) -> Any:
        """A modality as the model takes it: of unequal lengths padded, with the lengths."""
        known = self.modalities[name]
        dtype, wanted = getattr(torch, known["dtype"]), known["shape"]
        if not isinstance(samples, list) or not samples:
            raise ValueError(f"'{name}' must be a list of samples.")
        try:
            each = [torch.tensor(sample, dtype=torch.float64) for sample in samples]
        except (TypeError, ValueError) as error:
            raise ValueError(f"Each sample of '{name}' must be numbers, in even rows.") from error
        for x in each:
            fits = [b in (None, a) for a, b in zip(x.shape, wanted, strict=False)]
            if x.ndim != len(wanted) or not all(fits) or not x.numel():
                found, shape = (str(list(s)).replace("None", "any") for s in (x.shape, wanted))
                raise ValueError(f"A sample of '{name}' has the shape {found}, not {shape}.")
            if known["longest"] and len(x) > known["longest"]:
                said = f"has {len(x)} steps, but its encoder takes at most {known['longest']}."
                raise ValueError(f"A sample of '{name}' {said}")
            typed = x.to(dtype)
            exact = dtype.is_floating_point or torch.equal(typed.double(), x)
            if not (exact and typed.isfinite().all()):
                raise ValueError(f"A sample of '{name}' holds what is no {known['dtype']}.")
        if known["ragged"]:
            padded = pad_sequence([x.to(dtype) for x in each], batch_first=True)
            return padded, torch.tensor([len(x) for x in each])
        if len({x.shape for x in each}) > 1:
            raise ValueError(f"The samples of '{name}' differ in shape. Send them one by one.")
        return torch.stack(each).to(dtype)


def serving(paths: Iterable[Path]) -> FastAPI:
    """The application: POST /predict takes a list of samples by modality, GET / says which."""
    programs = {frozenset(each.modalities): each for each in map(Program, paths)}
    known = {name: x for each in programs.values() for name, x in each.modalities.items()}
    app = FastAPI()

    @app.get("/")
    def about() -> list[dict[str, Any]]:
        return [{"modalities": x.modalities, "names": x.names} for x in programs.values()]

    @app.post("/predict")
    def predict(request: Annotated[dict[str, Any], Body()]) -> list[dict[str, float]]:
        request = {name: samples for name, samples in request.items() if samples is not None}
        for name in request:
            if name not in known:
                raise HTTPException(422, f"There is no modality '{name}', only {', '.join(known)}.")
        program = programs.get(frozenset(request))
        if program is None:
            sets = "; ".join(", ".join(sorted(names)) for names in programs)
            given = ", ".join(sorted(request)) or "none"
            raise HTTPException(422, f"No program takes {given}. There is one for each of: {sets}.")
        try:
            return program(request)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="+", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(serving(options.programs), port=options.port)
