#!/usr/bin/env bash
# One would guess: if Dask's scheduler is started again at its address, workers come back to it, and
# what they were doing goes on.
# What happens: the moment the connection is lost all futures of a client are cancelled
# (FutureCancelledError), and each worker ends with status 0: at once, or without a nanny when its
# present task is done. The new scheduler has no workers.
# Why it hurts: a supervisor that restarts on failure only (systemd's Restart=on-failure, Kubernetes'
# OnFailure) takes the status for a job that is done, and a program that waits for futures ends.
# Instead: have workers started again whatever their status is, and hand in again what was cancelled.
# Seen with distributed 2026.8.0: cancelled after 0.00 s, both workers end with status 0, none is back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet distributed==2026.8.0
cat > "$folder/lost.py" <<'PYTHON'
import logging
import socket
import subprocess
import sys
import time

import distributed

logging.getLogger("distributed").setLevel(logging.CRITICAL)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
address = f"tcp://127.0.0.1:{port}"


def start(*command):
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *command, "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def head():
    return start("scheduler", "--host", "127.0.0.1", "--port", str(port))


first = head()
workers = [start("worker", address, "--nthreads", "1", way) for way in ("--nanny", "--no-nanny")]
client = distributed.Client(address, timeout=60)
client.wait_for_workers(2, timeout=60)
future = client.submit(time.sleep, 3)
time.sleep(1)
first.kill()
lost = time.monotonic()
try:
    future.result(timeout=60)
    said = "its result"
except Exception as error:
    said = type(error).__name__
after = time.monotonic() - lost
second = head()
statuses = [worker.wait(120) for worker in workers]
with distributed.Client(address, timeout=60) as client:
    back = len(client.scheduler_info(n_workers=-1)["workers"])
second.kill()
print(f"distributed {distributed.__version__}: {said} after {after:.2f} s")
print(f"workers ended with {statuses}; the new scheduler has {back}")
assert said == "FutureCancelledError" and statuses == [0, 0] and back == 0, "it has changed"
PYTHON
"$folder/env/bin/python" "$folder/lost.py"
