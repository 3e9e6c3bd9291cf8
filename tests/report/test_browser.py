"""The page in a real browser, from the disk."""

import html
import json
import re
import shutil
import subprocess

import pytest

from evenly.report import write_report

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>"

# Waits for the figures, uses the page as a reader would, and leaves what it saw in the document.
PROBE = """
<script>
(async () => {
  while (!document.documentElement.dataset.drawn) await new Promise(go => setTimeout(go, 50));
  const visible = () => [...document.querySelectorAll(".figure")].filter(
    box => box.dataset.figure !== "confusion").map(box =>
    new Set(box.data.filter(trace => trace.visible !== false).map(trace => trace.meta)).size);
  const shapes = () => document.querySelectorAll(".figure")[1].layout.shapes.length;
  const values = column => [...document.querySelectorAll("#ranking tbody tr")].map(
    row => row.cells[column].dataset.value);
  const seen = { drawn: document.querySelectorAll(".main-svg").length, broken: "broken" in window,
    figures: document.querySelectorAll(".figure").length, images: document.images.length,
    labels: [...document.querySelectorAll(".ytick text")].map(node => node.textContent),
    shown: visible(), marks: shapes(), wide: document.documentElement.scrollWidth > innerWidth };
  const heads = document.querySelectorAll("#ranking thead button");
  heads[1].click(); seen.ascending = values(1);
  heads[1].click(); seen.descending = values(1);
  heads[0].click(); seen.names = values(0);
  const keys = document.querySelectorAll("#legend button");
  keys[1].click(); seen.hidden = visible(); seen.marksHidden = shapes();
  keys[1].click(); keys[1].dispatchEvent(new Event("dblclick")); seen.alone = visible();
  keys[1].dispatchEvent(new Event("dblclick"));
  const chosen = document.getElementById("confused");
  chosen.value = "1"; chosen.dispatchEvent(new Event("change"));
  seen.confused = document.querySelector('[data-figure="confusion"]').data
    .filter(trace => trace.visible !== false).map(trace => trace.meta);
  Plotly.Fx.hover(document.querySelector(".figure"), [{ curveNumber: 1, pointNumber: 0 }]);
  await new Promise(go => setTimeout(go, 200));
  seen.hover = [...document.querySelectorAll(".hoverlayer tspan, .hoverlayer text")]
    .filter(node => !node.querySelector("tspan")).map(node => node.textContent);
  const note = document.createElement("pre");
  note.id = "seen"; note.textContent = JSON.stringify(seen);
  document.body.append(note);
})();
</script>
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory, write):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    folder = tmp_path_factory.mktemp("browser")
    write(folder, methods=["joint", "relearn", HOSTILE], seeds=2, epochs=12, missing=[(HOSTILE, 0)])
    page = write_report(folder)
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=500,900",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(found[1])), "console": console}


def test_draws_every_figure_without_an_error(seen):
    assert seen["console"] == []
    # accuracy, two curves, contribution, map, confusion, four figures for each modality
    assert seen["figures"] == 14
    assert seen["drawn"] >= seen["figures"]


def test_no_name_becomes_markup(seen):
    assert not seen["broken"]
    assert seen["images"] == 0
    assert any(label.startswith("</script><script>") for label in seen["labels"])


def test_the_table_sorts_by_click(seen):
    numbers = [float(value) for value in seen["ascending"]]
    assert numbers == sorted(numbers)
    assert seen["descending"] == seen["ascending"][::-1]
    assert seen["names"] == [HOSTILE, "joint", "relearn"]


def test_the_legend_hides_a_method_and_its_marks_everywhere(seen):
    assert seen["shown"] == [3] * 13
    assert seen["hidden"] == [2] * 13
    assert seen["alone"] == [1] * 13
    assert seen["marks"] == 3
    assert seen["marksHidden"] == 0


def test_one_method_s_confusions_are_chosen(seen):
    assert seen["confused"] == [1]


def test_the_pointer_shows_the_name_and_the_numbers(seen):
    name, mean, interval = (text for text in seen["hover"] if text)
    assert name in ("joint", "relearn")
    assert mean.startswith("mean ")
    assert interval.startswith("95 % interval ")


def test_a_narrow_window_scrolls_down_only(seen):
    assert not seen["wide"]
