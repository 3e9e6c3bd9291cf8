#!/usr/bin/env bash
# One would guess: a FLAC file that plays everywhere is read.
# What happens: one written to a pipe (ffmpeg ... -f flac - > a.flac) says 0 for its number of samples,
# as the format allows; soundfile, and so librosa, fails on it with "array is too big". FFmpeg reads it.
# Why it hurts: sound tracks are often cut out of videos by just such a pipe.
# Instead: read FLAC through FFmpeg, or write it to a file that can be sought in.
# Seen with soundfile 0.14.0 and PyAV 18.1.0: a ValueError, and all of 20,000 samples.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet soundfile==0.14.0 av==18.1.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import io

import av
import numpy as np
import soundfile

file = io.BytesIO()
soundfile.write(file, 0.3 * np.sin(np.arange(20_000) / 6), 16_000, format="FLAC")
whole = file.getvalue()
# STREAMINFO with an unknown number of samples, as a writer to a pipe leaves it
piped = whole[:21] + bytes([whole[21] & 0xF0]) + bytes(4) + whole[26:]
with av.open(io.BytesIO(piped)) as container:
    count = sum(frame.samples for frame in container.decode(audio=0))
try:
    soundfile.read(io.BytesIO(piped))
except ValueError as error:
    print(f"soundfile {soundfile.__version__}: {error}; PyAV {av.__version__}: {count} samples")
    assert "array is too big" in str(error) and count == 20_000
else:
    raise SystemExit("the behaviour has changed")
PYTHON
