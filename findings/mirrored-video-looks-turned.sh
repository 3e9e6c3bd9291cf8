#!/usr/bin/env bash
# One would guess: frame.rotation says how a frame must be turned to be shown upright.
# What happens: a video that is to be shown mirrored (as front cameras write it) has a rotation of
# 180 degrees, the same as one that stands on its head. The display matrix tells them apart.
# Why it hurts: whoever turns frames by `rotation` trains on faces upside down.
# Instead: read the display matrix from frame.side_data: a half turn has both diagonal entries below 0,
# a mirror only the first.
# Seen with PyAV 18.1.0: rotation -180, diagonal -65536 and 65536.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import io
import struct

import av
import numpy as np

file = io.BytesIO()
with av.open(file, "w", format="mp4") as out:
    stream = out.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
    out.mux(stream.encode())
whole = file.getvalue()
plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
mirror = struct.pack(">9i", -65536, 0, 0, 0, 65536, 0, 32 << 16, 0, 1 << 30)
at = whole.index(plain, whole.index(b"tkhd"))
with av.open(io.BytesIO(whole[:at] + mirror + whole[at + 36 :])) as container:
    frame = next(container.decode(video=0))
matrix = np.frombuffer(bytes(frame.side_data.get("DISPLAYMATRIX")), np.int32).reshape(3, 3)
print(f"PyAV {av.__version__}: rotation {frame.rotation}, diagonal {matrix[0, 0]}, {matrix[1, 1]}")
assert abs(frame.rotation) == 180, "the behaviour has changed"
assert matrix[0, 0] < 0 < matrix[1, 1]
PYTHON
