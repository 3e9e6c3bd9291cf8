#!/usr/bin/env bash
# One would guess: features saved in bfloat16 with np.savez come back as bfloat16, or are refused.
# What happens: they come back as two raw bytes a number (|V2) without a word, even with ml_dtypes
# imported; float8_e5m2 cannot be loaded at all.
# Why it hurts: jax and caches of features save bfloat16. The values are lost only when somebody
# reads them, often long after the encoder is gone.
# Instead: widen to float32 before saving.
# Seen with NumPy 2.4.6 and ml_dtypes 0.6.0: |V2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6 ml_dtypes==0.6.0
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import io

import ml_dtypes
import numpy as np

file = io.BytesIO()
np.savez(file, features=np.arange(4).astype(ml_dtypes.bfloat16))
file.seek(0)
found = np.load(file)["features"]
print(f"NumPy {np.__version__}, ml_dtypes {ml_dtypes.__version__}: saved bfloat16, loaded {found.dtype.str}")
assert found.dtype.str == "|V2", "the behaviour has changed"
PYTHON
