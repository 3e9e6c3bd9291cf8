#!/usr/bin/env bash
# One would guess: Dataset.to_parquet of pictures and sounds writes what a Parquet file of the Hub
# holds, the media among it, or at least where they lie.
# What happens: the cells of pictures and sounds that came from files hold no bytes and only the
# path as it was given. A relative path is kept relative, to no stated folder: load_dataset of the
# file from another folder makes a table, and only the access to a sample raises. push_to_hub, of the
# same data set, embeds the bytes.
# Why it hurts: a prepared multimodal set of 40 kB is copied to the machine with the accelerator, it
# loads, its columns are right, and the first epoch ends with FileNotFoundError; where another file
# lies at that path, that one is learnt from.
# Instead: rows.with_format("arrow").map(datasets.table.embed_table_storage, batched=True) before
# to_parquet; look for null bytes in struct<bytes, path> before a copy.
# Seen with datasets 5.2.0, pyarrow 25.0.1: bytes null, path "media/0.png"; from the folder it was
# made in the sample is read, from another one FileNotFoundError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet datasets==5.2.0 pyarrow==25.0.1 pillow==12.3.0
mkdir -p "$folder/made/media" "$folder/elsewhere"
cat > "$folder/make.py" <<'PYTHON'
import datasets
import pyarrow.parquet
from PIL import Image

Image.new("RGB", (4, 4), (255, 0, 0)).save("media/0.png")
rows = datasets.Dataset.from_dict({"picture": ["media/0.png"], "label": [1]})
rows.cast_column("picture", datasets.Image()).to_parquet("set.parquet")
(cell,) = pyarrow.parquet.read_table("set.parquet")["picture"].to_pylist()
print(f"datasets {datasets.__version__}, pyarrow {pyarrow.__version__}: {cell}")
assert cell == {"bytes": None, "path": "media/0.png"}, "the behaviour has changed"
PYTHON
cat > "$folder/read.py" <<'PYTHON'
import sys

import datasets

rows = datasets.load_dataset("parquet", data_files=sys.argv[1], cache_dir=sys.argv[2])["train"]
try:
    print(f"{len(rows)} rows; the first: {rows[0]['picture'].size}")
except FileNotFoundError as error:
    print(f"{len(rows)} rows; the first: {type(error).__name__}")
PYTHON
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
run() { (cd "$1" && "$folder/env/bin/python" -W ignore "${@:2}"); }
run "$folder/made" "$folder/make.py"
near=$(run "$folder/made" "$folder/read.py" "$folder/made/set.parquet" "$folder/cache" 2>/dev/null)
far=$(run "$folder/elsewhere" "$folder/read.py" "$folder/made/set.parquet" "$folder/cache" 2>/dev/null)
printf 'in its folder: %s\nin another: %s\n' "$near" "$far"
[ "$near" = "1 rows; the first: (4, 4)" ] && [ "$far" = "1 rows; the first: FileNotFoundError" ] ||
    { echo "the behaviour has changed"; exit 1; }
