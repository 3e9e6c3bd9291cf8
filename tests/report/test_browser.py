"""The page in a real browser, from the disk and without a network."""

import csv
import re

import numpy as np
import pytest
from browsing import FAINT, opened

from evenly.report import write_report

pytestmark = pytest.mark.xdist_group("browser")  # one browser for all

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>"
PHONE = {"width": 375, "height": 812}
NARROW = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LINES = '.figure[data-figure]:not([data-figure="accuracy"], [data-figure="contribution"], [data-figure="only"], [data-figure="without"], [data-figure="confusion"])'  # noqa: E501
# Of a map, the boxes of its names and of its frame.
NAMES = """box => [[...box.querySelectorAll(".names text")], [box.querySelector(".nsewdrag")]]
    .map(nodes => nodes.map(node => node.getBoundingClientRect())
    .map(({ left, top, right, bottom }) => [left, top, right, bottom]))"""
# By box, how many methods (or classes) its visible traces are of.
SHOWN = """boxes => boxes.map(box => box.data.filter(trace => trace.visible !== false))
    .map(traces => new Set(traces.map(trace => trace.meta ?? trace.name)).size)"""


@pytest.fixture(scope="module")
def small(browser, tmp_path_factory, write):
    """Three methods, one of which has a hostile name, and one that takes one modality alone."""
    folder = tmp_path_factory.mktemp("small")
    write(folder, methods=["joint", "relearn", HOSTILE], seeds=2, epochs=12, missing=[(HOSTILE, 1)])
    kept = next(path for path in folder.glob("runs/*/projection.npz") if "script" in str(path))
    with np.load(kept) as file:
        arrays = dict(file)
    np.savez(kept, **arrays | {"modalities": arrays["modalities"][:1]})
    return write_report(folder)


@pytest.fixture(scope="module")
def large(browser, tmp_path_factory, write):
    """Many methods and classes."""
    folder = tmp_path_factory.mktemp("large")
    classes = [f"playing instrument number {i}" for i in range(31)]
    methods = ["joint", "relearn", *(f"m{i}(setting=1)" for i in range(14))]
    write(folder, methods=methods, seeds=3, epochs=9, class_names=classes, samples=120,
          modalities=["sound", "vision", "a long name of a third modality"])  # fmt: skip
    # Seeds far apart have an interval beyond all accuracies; a purity may stay what it is.
    summary = folder / "summary.csv"
    wide = re.sub(r"(joint,test,accuracy,[^,]+,[^,]+),[^,]+,[^,]+", r"\1,-0.3,1.9",
                  summary.read_text())  # fmt: skip
    summary.write_text(wide)
    for path in folder.glob("runs/*/metrics.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["purity_val/vision"] = 0.66
        with path.open("w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return write_report(folder)


@pytest.fixture(scope="module")
def desk(browser, small):
    with opened(browser, small, viewport={"width": 1280, "height": 900}) as seen:
        yield seen


@pytest.fixture
def page(desk):
    return desk.page


def rows(page, column):
    return page.eval_on_selector_all(
        "#ranking tbody tr", "(rows, column) => rows.map(row => row.cells[column].dataset.value)",
        column,
    )  # fmt: skip


def shown(page, boxes):
    return page.eval_on_selector_all(boxes, SHOWN)


def points(page, place=0, side=0):
    """Samples that are drawn in a panel."""
    return page.locator(f'[data-place="{place}"][data-of="{side}"] .scatterlayer .point')


def point_at(page, spot):
    """Moves the pointer there; a layer that catches it lies above."""
    spot.evaluate("node => node.scrollIntoView({ block: 'center' })")
    box = spot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def hovered(page):
    """The lines of every label that is shown."""
    labels = page.locator(".hoverlayer .hovertext").all()
    return [
        [line.text_content() for line in label.locator("tspan.line").all()]
        or [label.locator("text").first.text_content()]
        for label in labels
    ]


def test_draws_every_figure_and_asks_for_nothing(desk, small):
    assert desk.said == []
    assert desk.asked == [small.as_uri()]
    # accuracy, two curves, map, contribution, alone, confusion, and six for each modality
    assert desk.page.locator(".figure[data-figure]").count() == 19
    counts = desk.page.eval_on_selector_all(
        ".figure",
        "boxes => boxes.map(box => [box.data.length, box.querySelectorAll('svg').length])",
    )
    assert len(counts) == 19 + 4
    assert all(traces > 0 and drawings > 0 for traces, drawings in counts)
    assert [points(desk.page, *panel).count() for panel in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        40, 40, 40, 40,
    ]  # fmt: skip


def test_no_name_becomes_markup(page):
    assert not page.evaluate("'broken' in window")
    assert page.evaluate("document.images.length") == 0
    labels = page.locator(".ytick text").all_text_contents()
    assert any(label.startswith("</script><script>") for label in labels)


def test_the_table_sorts_by_click(page):
    heads = page.locator("#ranking thead button")
    assert page.locator("#ranking [aria-sort]").count() == 0  # nothing differs, of two seeds
    heads.nth(1).click()
    descending = rows(page, 1)
    assert [float(x) for x in descending] == sorted(map(float, descending), reverse=True)
    heads.nth(1).click()
    assert rows(page, 1) == descending[::-1]
    heads.nth(0).click()
    assert rows(page, 0) == [HOSTILE, "joint", "relearn"]


@pytest.mark.slow
def test_the_legend_hides_a_method_and_its_marks_in_all_lines(page):
    keys = page.locator("#legend button")
    assert keys.nth(1).text_content() == "relearn"
    marks = "box => box.layout.shapes.length"
    curve = '[data-figure="curve/train_loss"]'
    # Only D&R has strengths.
    usual = [1 if name.startswith("strength") else 3 for name in page.eval_on_selector_all(
        LINES, "boxes => boxes.map(box => box.dataset.figure)")]  # fmt: skip
    assert len(usual) == 15
    assert shown(page, LINES) == usual
    assert page.eval_on_selector(curve, marks) == 3
    keys.nth(1).click()
    assert shown(page, LINES) == [count - 1 for count in usual]
    assert page.eval_on_selector(curve, marks) == 0
    keys.nth(1).click()
    keys.nth(1).dblclick()
    assert shown(page, LINES) == [1] * 15
    assert shown(page, '[data-figure="accuracy"], [data-figure="contribution"]') == [3, 3]
    keys.nth(1).dblclick()
    assert shown(page, LINES) == usual


def _apart(boxes):
    return all(
        a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for number, a in enumerate(boxes)
        for b in boxes[number + 1 :]
    )


def test_names_stand_beside_the_spots_of_the_map(page):
    box = '[data-figure="map/0/1"]'
    texts, keys = page.locator(f"{box} .names text"), page.locator("#legend button")
    lines = [text.locator("tspan").all_text_contents() for text in texts.all()]
    assert {"".join(line) for line in lines} == {"joint", "relearn", HOSTILE}
    names, ((left, top, right, bottom),) = page.eval_on_selector(box, NAMES)
    assert _apart(names)
    for name in names:
        assert left <= name[0] < name[2] <= right
        assert top <= name[1] < name[3] <= bottom
    keys.nth(1).click()
    assert "relearn" not in texts.all_text_contents()
    assert texts.count() == 2
    keys.nth(1).click()
    assert texts.count() == 3


def test_one_method_s_confusions_are_chosen(page):
    page.select_option("#confused", "1")
    box = '[data-figure="confusion"]'
    numbers = "box => box.data.filter(trace => trace.visible !== false).map(trace => trace.meta)"
    assert page.eval_on_selector(box, numbers) == [1]
    assert page.text_content("#confused-name") == "relearn"


def test_the_pointer_shows_the_name_and_the_numbers(page):
    means = page.locator('[data-figure="accuracy"] .scatterlayer .trace').nth(1)
    point_at(page, means.locator(".point"))
    page.wait_for_selector(".hoverlayer .hovertext")
    ((name, mean),) = hovered(page)  # two seeds have no interval
    assert name in ("joint", "relearn")
    assert mean.startswith("mean ")


def test_the_pointer_shows_what_a_modality_adds(page):
    """The second bar, 25 points, begins where the first ends, at 50."""
    point_at(page, page.locator('[data-figure="contribution"] .barlayer .point').nth(1))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert [lines[-1] for lines in hovered(page)] == ["bottom: 25.0 points"]


def test_the_pointer_finds_a_sample_in_every_panel(page):
    """The first sample of the first class is row 0 of the split, the last of the last row 78."""
    for spot, name, taught in (
        (points(page).first, "sample 0", 0),
        (points(page, 1, 1).last, "sample 78", 9),
    ):
        point_at(page, spot)
        page.wait_for_function(
            "name => document.querySelector('.planes').textContent.split(name).length === 5",
            arg=name,
        )
        text = [label for label in hovered(page) if label[0] == name]
        assert len(text) == 4
        assert {label[1] for label in text} == {f"{taught}, taken for {taught}"}
    page.mouse.move(5, 5)
    page.wait_for_function("!document.querySelector('.planes .hovertext')")


def test_wrong_predictions_are_hollow(page):
    box = '[data-place="1"][data-of="0"]'
    found = page.eval_on_selector(
        box, "box => box.data.flatMap(trace => trace.text.map((text, i) => [text, trace.marker.symbol[i]]))"  # noqa: E501
    )  # fmt: skip
    assert len(found) == 40
    wrong = 0
    for text, symbol in found:
        taught, guess = re.search(r"<br>(.*), taken for (.*)", text).groups()
        assert symbol == ("circle" if taught == guess else "circle-open")
        wrong += taught != guess
    assert 0 < wrong < 20


def test_classes_are_filtered_in_every_panel(page):
    keys = page.locator("#classes .key")
    assert keys.all_inner_texts() == list("0123456789")
    keys.nth(3).click()
    assert shown(page, "[data-place]") == [9] * 4
    assert points(page).count() == points(page, 1, 1).count() == 36
    keys.nth(3).click()
    keys.nth(3).dblclick()
    assert shown(page, "[data-place]") == [1] * 4
    assert points(page).count() == 4
    # What is chosen stays when another method comes.
    page.select_option('select[data-side="1"]', "0")
    assert points(page, 1, 1).count() == 4
    keys.nth(3).dblclick()
    assert points(page, 1, 1).count() == 40


def test_another_method_s_encoders_are_shown(page):
    page.select_option('select[data-side="1"]', label=HOSTILE)
    page.wait_for_function(
        'document.querySelector(\'[data-place="1"][data-of="1"]\').data.length === 0'
    )
    assert points(page, 0, 1).count() == 40
    panel = page.locator(".planes .panel").nth(3)
    assert "not in this model" in panel.text_content()
    assert HOSTILE in panel.locator("h3").text_content()
    page.select_option('select[data-side="1"]', "1")
    page.wait_for_function(
        'document.querySelector(\'[data-place="1"][data-of="1"]\').data.length > 0'
    )
    assert "not in this model" not in panel.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_read_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(FAINT, 4.5) == []
    assert len(page.evaluate(FAINT, 22)) > 100  # it does look at text
    page.emulate_media(color_scheme="light")


def test_print_holds_every_figure_whole(page):
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 4 <= pages <= 8
    page.set_viewport_size({"width": 700, "height": 1000})  # of the paper, within its margins
    page.emulate_media(media="print")
    try:
        assert page.locator("select:visible, input:visible, .choice button:visible").count() == 0
        boxes = page.eval_on_selector_all(".panel", """panels => panels.map(panel => {
          const outer = panel.getBoundingClientRect();
          const inner = panel.querySelector(".main-svg").getBoundingClientRect();
          const within = inner.left >= outer.left && inner.right <= outer.right
            && outer.left >= 1 && outer.right <= innerWidth - 1; // the paper cuts nothing
          return [outer.height < 900, within && inner.bottom <= outer.bottom,
            getComputedStyle(panel).breakInside];
        })""")  # fmt: skip
        assert boxes == [[True, True, "avoid"]] * 23
    finally:
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 1280, "height": 900})
    assert page.locator("select:visible").count() == 3


def test_keys_are_drawn_on_paper(page):
    """Browsers print no backgrounds."""
    page.emulate_media(media="print")
    fills = page.locator(".swatch path, .modalities path").evaluate_all(
        "paths => paths.map(path => [getComputedStyle(path).fill, path.getBoundingClientRect().width > 3])"  # noqa: E501
    )
    page.emulate_media(media="screen")
    assert len(fills) == 3 + 2
    assert all(fill.startswith("rgb(") and seen for fill, seen in fills)


@pytest.mark.slow
def test_many_methods_at_a_desk(browser, large):
    with opened(browser, large, viewport={"width": 1280, "height": 900}) as seen:
        page = seen.page
        assert page.eval_on_selector(
            ".scroll", "box => box.scrollWidth <= box.clientWidth"
        )  # of three modalities the ranking is whole
        low, high = page.eval_on_selector(
            '[data-figure="accuracy"]', "box => box._fullLayout.xaxis.range"
        )
        assert (low, high) == (-2, 102)
        low, high = page.eval_on_selector(
            '[data-figure="purity_val/1"]', "box => box._fullLayout.yaxis.range"
        )
        assert -0.02 <= low < 0.66 < high <= 1.02
        names, _ = page.eval_on_selector('[data-figure="map/0/1"]', NAMES)
        assert len(names) == 8
        assert _apart(names)
        spot = page.eval_on_selector('[data-figure="confusion"]', """box => {
          box.scrollIntoView({ block: "center" });
          const { left, top } = box.getBoundingClientRect(), { xaxis, yaxis } = box._fullLayout;
          return [left + xaxis._offset + xaxis.d2p(2), top + yaxis._offset + yaxis.d2p(30)];
        }""")  # fmt: skip
        page.mouse.move(*spot)
        page.wait_for_selector(".hoverlayer .hovertext")
        ((_, said),) = hovered(page)
        name = "playing instrument number"
        assert said.startswith(f"{name} 30 taken for {name} 2: ")


@pytest.mark.slow
def test_many_methods_and_classes_on_a_phone_in_the_dark(browser, large):
    options = {"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True}
    with opened(browser, large, **options) as seen:
        page = seen.page
        assert seen.said == []
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        pressed = page.locator("#legend button[aria-pressed=true]").all_inner_texts()
        assert len(pressed) == 8
        assert {"joint", "relearn"} < set(pressed)
        assert max(shown(page, LINES)) == 8
        wide = page.eval_on_selector_all(
            ".panel", "all => all.map(panel => panel.getBoundingClientRect().right)"
        )
        assert max(wide) <= 375
        assert page.evaluate(FAINT, 4.5) == []
        # All three panels of each method, one below the other.
        assert [points(page, place).count() for place in range(3)] == [120] * 3

        keys = page.locator("#classes .key")
        page.fill("#classes input[type=search]", "Number 3")
        assert page.locator("#classes .key:visible").all_inner_texts() == [
            f"playing instrument number {i}" for i in (3, 30)
        ]
        page.click("#classes button[value='']")
        assert points(page).count() == 0
        keys.nth(30).tap()
        assert points(page).count() == 3
        page.click("#classes button[value=all]")
        assert points(page).count() == 120
        styles = page.eval_on_selector(
            "[data-place]", "box => box.data.map(x => x.marker.color + x.marker.symbol[0].split('-open')[0])"  # noqa: E501
        )  # fmt: skip
        assert len(set(styles)) == 31


@pytest.fixture(scope="module")
def phone(browser, tmp_path_factory, write):
    folder = tmp_path_factory.mktemp("phone")
    path = write_report(write(folder, methods=["joint", "relearn", "modality_dropout"], epochs=12))
    with opened(browser, path, whole=False, **NARROW) as seen:
        yield seen.page


@pytest.mark.slow
def test_a_phone_shows_the_results_and_folds_the_rest(phone):
    page = phone
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.documentElement.scrollHeight") <= 8000
    open_ = page.eval_on_selector_all("details.part", "parts => parts.map(part => part.open)")
    assert open_[:2] == [True, True]
    assert not any(open_[2:])
    assert len(open_) == 10
    assert page.locator(".hint").is_visible()
    table = page.locator(".scroll").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    assert page.locator(".js-plotly-plot").count() == 1  # the others are drawn as they come near
    # A link of the contents opens the part that it leads to, below what stays in reach.
    page.locator(".contents a", has_text="Noise").click()
    page.wait_for_function("document.querySelectorAll('#noise .js-plotly-plot').length === 2")
    page.wait_for_function("document.querySelector('#noise').getBoundingClientRect().top < 400")
    bars = page.locator(".contents, .legend").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect()).map(box => [box.top, box.bottom])"
    )
    assert bars[0][0] == 0
    assert bars[1][0] == pytest.approx(bars[0][1], abs=3)
    head = page.locator("#noise").evaluate("node => node.parentNode.getBoundingClientRect().top")
    assert head >= bars[1][1] - 12


def test_names_break_between_words(phone):
    """The lines that a name takes in the table."""
    lines = phone.evaluate("""() => {
      const cell = [...document.querySelectorAll("#ranking tbody th")].at(-1);
      const lines = {};
      for (const node of [...cell.childNodes].filter(node => node.nodeType === 3))
        for (let i = 0; i < node.data.length; i++) {
          const range = document.createRange();
          range.setStart(node, i);
          range.setEnd(node, i + 1);
          const top = Math.round(range.getBoundingClientRect().top);
          lines[top] = (lines[top] ?? "") + node.data[i];
        }
      return Object.values(lines).map(line => line.trim()).filter(line => line);
    }""")
    assert "".join(lines) == "modality_dropout"
    assert lines in (["modality_", "dropout"], ["modality_dropout"])


def test_the_contents_stay_in_reach(page):
    page.evaluate("scrollTo(0, 2500)")
    top = page.locator(".contents").evaluate("bar => bar.getBoundingClientRect().top")
    assert top == 0
    page.evaluate("scrollTo(0, 0)")
