#!/usr/bin/env bash
# One would guess: frames are decoded in the order of showing, and their times ascend.
# What happens: of H.264 with B-frames in .avi the frames come in the order of showing, but frame.time
# does not ascend: the container keeps the order of coding only.
# Why it hurts: whoever sorts frames by time, or takes the frame nearest to a time, shuffles the video.
# Instead: trust the decoder's order, and ask for times only where a container keeps them.
# Seen with PyAV 18.1.0: ten frames of rising grey, times not in order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import pathlib
import tempfile

import av
import numpy as np

options = {"x264-params": "bframes=3:b-adapt=0:scenecut=0"}
with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder, "a.avi"))
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(10):
            picture = np.full((32, 32, 3), 20 * k, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode())
    with av.open(path) as container:
        frames = [(f.time, f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]
times, grey = map(list, zip(*frames))
print(f"PyAV {av.__version__}: times {times}")
assert grey == sorted(grey), "the frames are not in the order of showing"
assert times != sorted(times), "the behaviour has changed"
PYTHON
