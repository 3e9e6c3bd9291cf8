"""Takes the picture of a report that the pages show, with chromium.

python docs/make_screenshot.py demo/report.html docs/report.png
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZE = 1120, 1065  # the head, the ranking and the first figure
COLOURS = 256  # as many as the page has; the file is a third


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("The picture is taken with chromium, which is not on this machine.")
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        subprocess.run(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={SIZE[0]},{SIZE[1]}",
             f"--user-data-dir={folder}/profile", "--virtual-time-budget=10000",
             f"--screenshot={taken}", options.report.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(taken) as picture:
            picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                options.picture, optimize=True
            )
    print(options.picture)


if __name__ == "__main__":
    main()
