#!/usr/bin/env bash
# One would guess: weight decay shrinks a layer with an orthogonal weight a little, or not at all.
# What happens: the weight of a layer that is not square is zero after one step of AdamW with its
# default decay, and stays zero. The parametrization keeps signs (1 or -1) in the diagonal of the
# trained parameter and reads them by .int(); decay makes 0.99999 of 1, which is 0 then.
# Why it hurts: an orthogonal projection of features before the fusion gives nothing, and the loss
# looks like that of a weak modality.
# Instead: no weight decay (and no averaging) for such a parameter.
# Seen with torch 2.13.0: norm 2.000 before the step, 0.000 after it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

torch.manual_seed(0)
layer = orthogonal(nn.Linear(6, 4))
before = float(layer.weight.detach().norm())
optimizer = torch.optim.AdamW(layer.parameters(), 1e-3)
layer(torch.randn(3, 6)).square().sum().backward()
optimizer.step()
after = float(layer.weight.detach().norm())
print(f"torch {torch.__version__}: norm {before:.3f} before one step of AdamW, {after:.3f} after")
assert before > 1.9 and after == 0, "the behaviour has changed"
PYTHON
