#!/usr/bin/env bash
# One would guess: FlopCounterMode counts twice the forward pass for the backward pass of a
# convolution, half for the gradient of its input and half for that of its weight.
# What happens: with groups the backward pass counts as 1 + groups times the forward pass, as the
# gradient of the weight is counted as if every group saw all channels. For a depthwise layer of
# 64 channels that is 65 times instead of 2.
# Why it hurts: a table of costs says that an encoder with depthwise or grouped convolutions
# (mobile networks, ConvNeXt, ResNeXt, the sound encoders of Wav2Vec) is many times dearer to train
# than another modality's, which it is not.
# Instead: count the forward pass, and twice that for the backward pass of such layers.
# Seen with torch 2.13.0: 2, 3, 9 and 65 times the forward pass for 1, 2, 8 and 64 groups.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def ratio(groups):
    layer, x = nn.Conv1d(64, 64, 3, groups=groups), torch.randn(2, 64, 10, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = layer(x).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return backward.get_total_flops() / forward.get_total_flops()


found = {groups: ratio(groups) for groups in (1, 2, 8, 64)}
print(f"torch {torch.__version__}: backward over forward by groups: {found}")
assert found == {1: 2, 2: 3, 8: 9, 64: 65}, "the behaviour has changed"
PYTHON
