#!/usr/bin/env bash
# One would guess: a training that does not compile pays nothing for torch.compile.
# What happens: the first optimiser that is made imports torch._dynamo, the compiler's front end, by a
# decorator that is to keep it from being compiled. It doubles the time of `import torch` and takes a
# third more memory.
# Why it hurts: each of many short runs pays most of a second and 70 MB for nothing, and a profile of
# the first epoch shows it as a slow first step.
# Instead: import torch._dynamo once, before the processes of the runs are forked.
# Seen with torch 2.13.0 (CPU): 0.82 s of the processor and 73 MB, beside 0.69 s and 218 MB of torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import resource
import sys

import torch


def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime, found.ru_maxrss / 2**10


seconds, memory = used()
before = "torch._dynamo" in sys.modules
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
after = "torch._dynamo" in sys.modules
more_seconds, more_memory = (now - then for now, then in zip(used(), (seconds, memory)))
print(f"torch {torch.__version__}: {seconds:.2f} s, {memory:.0f} MB")
print(f"an optimiser: {more_seconds:.2f} s, {more_memory:.0f} MB more")
assert not before and after and more_memory > 30, "the behaviour has changed"
PYTHON
