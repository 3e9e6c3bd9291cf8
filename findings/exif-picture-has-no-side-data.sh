#!/usr/bin/env bash
# One would guess: frame.side_data of a picture holds what the decoder found beside the pixels, or
# nothing.
# What happens: it raises for a JPEG with EXIF: FFmpeg 8.1 puts the EXIF there, for which PyAV has no
# name.
# Why it hurts: code that asks every frame for its display matrix reads videos and breaks on the first
# photograph of a phone.
# Instead: read photographs with Pillow, or expect the ValueError.
# Seen with PyAV 18.1.0: ValueError, "31 is not a valid Type".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet av==18.1.0 pillow==13.0.0
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import io

import av
from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6
file = io.BytesIO()
Image.new("RGB", (16, 16)).save(file, "JPEG", exif=exif)
with av.open(io.BytesIO(file.getvalue())) as container:
    frame = next(container.decode(video=0))
try:
    frame.side_data
except ValueError as error:
    print(f"PyAV {av.__version__}: ValueError: {error}")
    assert "not a valid Type" in str(error)
else:
    raise SystemExit("the behaviour has changed")
PYTHON
