"""Takes the picture of a report that the pages show, with chromium.

python docs/make_screenshot.py demo/report.html docs/report.png
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

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
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"]
            )
            page = browser.new_page(viewport=dict(zip(("width", "height"), SIZE, strict=True)))
            page.goto(options.report.resolve().as_uri())
            page.wait_for_function("document.documentElement.dataset.drawn", timeout=300_000)
            page.screenshot(path=taken)
            browser.close()
        with Image.open(taken) as picture:
            picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
                options.picture, optimize=True
            )
    print(options.picture)


if __name__ == "__main__":
    main()
