#!/usr/bin/env bash
# One would guess: what `import lightning_fabric` costs depends on lightning_fabric.
# What happens: it depends on what else is installed. Fabric asks whether torchmetrics is 1.0 or later
# by importing it (compare_version in lightning_utilities), and torchmetrics imports Transformers to
# ask the same of it.
# Why it hurts: `lightning` brings torchmetrics, so with Transformers beside it every process that uses
# nothing but Fabric pays for both, and for what these import in their turn.
# Instead: do without Fabric in small processes, or keep torchmetrics out of their environment.
# Seen with lightning-fabric 2.6.6, torchmetrics 1.9.0, Transformers 5.23.0, torch 2.13.0 (CPU), SciPy and
# scikit-learn: 2.99 s of the processor and 392 MB; with torchmetrics out of reach 1.87 s and 296 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet lightning-fabric==2.6.6 torchmetrics==1.9.0 transformers==5.23.0 \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/env/bin/python" - <<'PYTHON'
import subprocess
import sys


def imported(before="pass"):
    """Seconds and megabytes of a process, and whether it has Transformers."""
    code = (
        f"import sys; {before}; import lightning_fabric; import resource; "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(used.ru_utime, used.ru_maxrss / 2**10, int('transformers.utils' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


imported()  # compiles
seconds, memory, there = imported()
bare_seconds, bare_memory, _ = imported("sys.modules['torchmetrics'] = None")
print(f"lightning_fabric: {seconds:.2f} s, {memory:.0f} MB")
print(f"without torchmetrics: {bare_seconds:.2f} s, {bare_memory:.0f} MB")
assert there and memory > 1.05 * bare_memory, "the behaviour has changed"
PYTHON
