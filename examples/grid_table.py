"""A table of the GRID corpus: clips of people saying a sentence, labelled by its first word.

    python examples/grid_table.py CLIPS grid.csv
    evenly prepare grid.csv --out grid
    evenly compare --data grid

The first letter of a clip's name is the command: bin, lay, place or set. A command with fewer than
three clips is left out, since each split needs one.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

COMMANDS = {"b": "bin", "l": "lay", "p": "place", "s": "set"}


def main(clips: Path, out: Path) -> None:
    by_command = defaultdict(list)
    for path in sorted(clips.glob("*.mpg")):
        by_command[COMMANDS[path.name[0]]].append(path.resolve())
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "audio", "video", "label", "split"])
        for command, paths in by_command.items():
            if len(paths) < 3:
                print(f"'{command}' has {len(paths)} clip{'s'[len(paths) == 1 :]} and is left out")
                continue
            for number, path in enumerate(paths):
                split = ("val", "test")[number] if number < 2 else "train"
                writer.writerow([path.stem, path, path, command, split])
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
