#!/usr/bin/env bash
# One would guess: torch.manual_seed costs a microsecond, so a loop may call it for each batch or
# sample (for augmentation that repeats, or dropout that a resumed run draws again).
# What happens: where a process has used no GPU, each call formats the whole Python stack three
# times, for CUDA, XPU and MTIA devices that may be initialised later. That takes a third of a
# millisecond in a script and more than one below a trainer's sixty frames: hundreds of times what
# seeding the CPU's generator takes.
# Why it hurts: a loader's worker that seeds for each sample of each modality spends more on that
# than on reading features.
# Instead: torch.default_generator.manual_seed(seed) where there is no GPU, or a torch.Generator.
# Seen with torch 2.13.0: 60 frames deep, 1377 us by torch.manual_seed and 1.5 us by the generator.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
CUDA_VISIBLE_DEVICES='' "$folder/env/bin/python" -W ignore - <<'PYTHON'
import time

import torch


def below(frames, call):
    return call() if frames == 0 else below(frames - 1, call)


def microseconds(seed, calls=500):
    start = time.process_time()
    for n in range(calls):
        seed(n)
    return (time.process_time() - start) / calls * 1e6


print(f"torch {torch.__version__}")
for frames in (0, 60):
    slow, quick = (
        below(frames, lambda: microseconds(seed))
        for seed in (torch.manual_seed, torch.default_generator.manual_seed)
    )
    print(f"{frames} frames: {slow:.0f} us by torch.manual_seed, {quick:.1f} us by the generator")
assert slow > 50 * quick, "the behaviour has changed"
PYTHON
