#!/usr/bin/env bash
# One would guess: with a GradScaler no step is taken whose gradients are not finite.
# What happens: the scaler looks at gradients in unscale_ and never again. What is written to them
# between unscale_ and step (where clipping and gradient modulation belong) is not looked at: a NaN
# written there reaches the weights.
# Why it hurts: methods that scale gradients by ratios of losses or scores write just there, and the
# ratio of an overflowed batch is a NaN.
# Instead: check the factor before it is applied, and leave the gradient as it is where it is not
# finite.
# Seen with torch 2.13.0: a weight of 1 is NaN after the step, and the scale has not been lowered.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch

weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([weight], 0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
scaler.scale(2 * weight.sum()).backward()
scaler.unscale_(optimizer)
weight.grad.mul_(float("nan"))  # as a method does between unscale_ and step
scaler.step(optimizer)
scaler.update()
print(f"torch {torch.__version__}: weight {weight.item()}, scale {scaler.get_scale()}")
assert weight.isnan().all() and scaler.get_scale() == 8.0, "the behaviour has changed"
PYTHON
