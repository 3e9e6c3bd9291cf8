"""The page and the picture of a checkup."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from typing import get_args

import pytest
from browsing import FAINT, opened

from evenly.diagnosis.estimate import Estimate
from evenly.diagnosis.findings import Checkup, Finding, Shared
from evenly.diagnosis.verdict import Name, Verdict
from evenly.report import write_checkup, write_checkup_picture
from evenly.report.checkup import GLYPHS, axis, meanings, percent, plain
from evenly.report.checkup_picture import COLOURS

pytestmark = pytest.mark.xdist_group("browser")  # one browser for all

KINDS = get_args(Name)
HOSTILE = "<img src=x onerror=alert(1)>&amp;"
LONG = "a_name_without_any_place_to_break"


def about(value, half=0.03):
    return Estimate(value, value - half, value + half, 450)


def finding(verdict, **other):
    samples = 2100 if verdict == "unclear" else None
    return Finding(
        **{
            "chance": about(0.1),
            "raw": about(0.5),
            "untapped": about(-0.25),
            "there": about(0.75),
            "learnt": about(0.6),
            "gain": about(0.65),
            "held": about(0.5),
            "missed": about(0.15),
            "contribution": about(-0.01),
            "without": about(0.7),
            "lost": about(0.1),
            "flipped": about(0.05),
            "followed": about(0.2),
            "outvoted": about(0.5),
            "gap": about(0.02, 0.01),
            "strength": 0.06,
            "verdict": Verdict(verdict, f"why it is {verdict}", samples),
        }
        | other
    )  # fmt: skip


def checkup(*verdicts, names=None, together=0.05, **other):
    names = names or [f"modality {number}" for number in range(len(verdicts))]
    findings = {
        name: finding(verdict, **other) for name, verdict in zip(names, verdicts, strict=True)
    }
    pairs = tuple(
        Shared(pair, about(0.5), dict.fromkeys(pair, about(0.1)), about(-0.02))
        for pair in combinations(names, 2)
    )
    notes = ("A note & more.",)
    whole = (about(0.8), names[0], about(0.75), about(together), about(0.04))
    return Checkup(findings, *whole, pairs, notes)


@pytest.fixture
def write(tmp_path):
    """Writes the page of a checkup, from what JSON makes of it."""

    def write(found, **options):
        found = json.loads(json.dumps(found.as_dict()))
        return write_checkup(found, tmp_path / "checkup.html", **{"title": "digits"} | options)

    return write


def text(path):
    """What is read on a page, from top to bottom."""
    body = path.read_text(encoding="utf-8").partition("<main>")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).strip()


def test_of_several_labels_accuracy_is_balanced(write):
    found = replace(checkup("learnt", "scarce"), has_labels=True, synergy=None)
    said = text(write(found))
    assert "The joint model has a balanced accuracy of 80.0 %" in said
    assert "Balanced accuracy, %" in said
    assert "Balanced accuracy without it, %" in said
    assert "Synergy" not in said
    assert "commonest class" not in said


def test_every_verdict_has_its_mark_and_meaning():
    assert set(KINDS) == set(GLYPHS) == set(meanings()) == set(COLOURS)
    assert len(set(GLYPHS.values())) == len(KINDS)


def test_the_page_states_the_thresholds_of_the_verdicts(write):
    said = text(write(checkup("learnt")))
    for rule in (
        "tells little alone, but over 7 points are lost without it",
        "over 5 points more than in the joint model",
        "under 3% of the predictions change with it",
        "under 7 points above its guesses shuffled over the samples",
        "gap of purities is above 0.12",
    ):
        assert rule in said
    assert "the first of these" not in said  # much lost without it comes before scarce


def test_each_verdict_is_shown_with_its_reason_and_what_to_try(write):
    found = checkup(*KINDS)
    path = write(found)
    page = path.read_text(encoding="utf-8")
    for one in found.findings.values():
        card = next(x for x in page.split("<article") if f"Why it is {one.verdict.name}." in x)
        card = card.partition("</article>")[0]
        assert GLYPHS[one.verdict.name] in card
        assert f"</svg>{one.verdict.name}</p>" in card
        for advice in one.verdict.advice:
            assert advice.why[1:] in card
            assert all(f"<code>{method}</code>" in card for method in advice.methods)
    assert "About 2,100 validation samples would settle it." in page
    assert "A note &amp; more." in page


@pytest.mark.parametrize(
    ("together", "first"),
    [
        (-0.06, "The joint model is worse than sound alone, by 6.0 points (3.0 to 9.0)."),
        (0.05, "The joint model is better than the best modality alone, sound, by 5.0 points (2.0 to 8.0)."),  # noqa: E501
        (-0.01, "It is unclear whether the joint model is better than sound alone: the difference is −1.0 points (−4.0 to 2.0)."),  # noqa: E501
    ],
)  # fmt: skip
def test_whether_all_together_are_better_is_said_first(write, together, first):
    path = write(checkup("learnt", "scarce", names=["sound", "sight"], together=together))
    assert text(path).startswith(first)
    assert ('<div class="first worse alarm">' in path.read_text()) == (together < -0.03)


def test_the_text_gives_intervals_and_what_is_used():
    said = str(checkup("learnt", "scarce", names=["sound", "sight"])).splitlines()
    assert said[1] == (
        "Synergy: only all modalities together get 0.04 [0.01, 0.07] of the samples right."
    )
    start = said.index("sound is learnt: why it is learnt.")
    assert said[start + 1 : start + 6] == [
        "  Chance is 0.10 [0.07, 0.13], a linear probe of its input 0.50 [0.47, 0.53].",
        "  With sound swapped, the joint model reaches 0.70 [0.67, 0.73].",
        "  With the others swapped too, 0.05 [0.02, 0.08] of the predictions change with sound.",
        "  If sound is of another class, its class wins 0.20 [0.17, 0.23], that of the others "
        "0.50 [0.47, 0.53].",
        "  relearn(gap=stable) would pull its encoder back by 0.06 of the way.",
    ]
    one = str(checkup("learnt", names=["sound"], raw=None, followed=None, outvoted=None))
    assert "  Chance is 0.10 [0.07, 0.13].\n  With sound swapped, the " in one
    assert "Synergy" not in one
    assert "others" not in one
    assert "its class wins" not in one


def test_one_modality_is_compared_with_nothing(write):
    said = text(write(checkup("learnt", followed=None, outvoted=None, raw=None)))
    assert said.startswith("The model is right on 80.0 % of the validation samples (77.0 to 83.0).")
    assert "Synergy" not in said
    assert "Whose class wins" not in said
    assert "What pairs say" not in said
    assert "Some samples lack" not in said
    assert "Linear probe of its input" not in said


def test_figures_of_a_modality_that_some_lack_are_of_the_others(write):
    found = checkup("learnt", "unclear", names=["sound", "sight"])
    lacking = replace(found.findings["sight"], there=replace(about(0.75), count=45))
    found = replace(found, findings={**found.findings, "sight": lacking})
    said = text(write(found))
    assert "Some samples lack sight: figures of a modality cover only the samples" in said
    assert "About 2,100 validation samples that have it would settle it." in said
    assert "About 2100 validation samples that have it would settle it." in str(found)


def test_where_samples_cannot_settle_it_seeds_are_asked_for(write):
    found = checkup("unclear", names=["sound"])
    no_count = replace(finding("unclear"), verdict=Verdict("unclear", "why it is unclear"))
    found = replace(found, findings={"sound": no_count})
    for said in (text(write(found)), str(found)):
        words = " ".join(said.split())
        assert "more validation samples to settle it: check up runs of more seeds." in words
    found = checkup("scarce")
    assert "settle it" not in text(write(found)) + str(found)


def test_what_was_not_measured_stays_empty(write):
    found = checkup("learnt", "unclear", names=["sound", "sight"])
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    lacking = replace(found.findings["sight"], there=nothing, followed=None, outvoted=None)
    said = text(write(replace(found, findings={**found.findings, "sight": lacking})))
    assert "There: its encoder trained alone 75.0 72.0 to 78.0 – " in said
    assert "nan" not in said


def test_every_name_is_escaped(write):
    path = write(checkup("learnt", "scarce", names=[HOSTILE, LONG]), title=HOSTILE,
                 about=[(HOSTILE, HOSTILE)])  # fmt: skip
    page = path.read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&amp;amp;") >= 9


def test_what_pairs_say_is_shown_in_bits(write):
    said = text(write(checkup("learnt", "learnt", "scarce", names=["a", "b", "c"])))
    for one, other in ("ab", "ac", "bc"):
        assert (
            f"{one} and {other} both 0.50 0.47 to 0.53 only {one} 0.10 0.07 to 0.13 "
            f"only {other} 0.10 0.07 to 0.13 only together −0.02 −0.05 to 0.01"
        ) in said


def test_settings_are_listed(write):
    page = text(write(checkup("learnt"), about=[("epochs", "10")]))
    assert "intervals over the validation samples, and over seeds where there are several" in page
    assert "Settings epochs 10" in page
    assert "Settings" not in text(write(checkup("learnt")))


def test_axes_hold_every_interval():
    found = axis([percent({"value": 0.93, "low": 0.904, "high": 0.957}), None], 100)
    assert found.labels == ["90", "92", "94", "96"]
    assert [found.at(0.90), found.at(0.93)] == ["0.00%", "50.00%"]
    below = axis([plain({"value": -0.004, "low": -0.012, "high": 0.004})], 1)
    assert below.labels == ["−0.02", "−0.01", "0.00", "0.01"]
    bits = axis([plain({"value": 1.0, "low": -2.4, "high": 3.1})], 1)
    assert bits.labels == ["−4", "−2", "0", "2", "4"]
    assert axis([plain({"value": 0.0, "low": 0.0, "high": 0.0})], 1).labels == ["0.00", "0.01"]
    assert plain({"value": -0.001, "low": -0.0, "high": 0.0}).text == "0.00"


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_in_a_browser_without_a_complaint(browser, write, width, scheme):
    names = [HOSTILE, LONG, "thermal camera (80 × 60) & more", "d", "e", "f"]
    path = write(checkup(*KINDS, names=names, together=-0.06), about=[("command", "x" * 200)])
    assert path.stat().st_size < 200_000
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with opened(browser, path, "true", **options) as seen:
        assert seen.said == []
        assert seen.asked == [path.as_uri()]
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width
        assert seen.page.evaluate("document.images.length") == 0
        assert seen.page.evaluate(FAINT, 4.5) == []
        # Dots lie on their axes, and each row is no higher than its text.
        strips = seen.page.eval_on_selector_all(".dots li:not(.group)", """rows => rows.map(row => {
          const inner = row.querySelector(".strip").getBoundingClientRect();
          const dots = [...row.querySelectorAll(".strip > svg > path")]
            .map(dot => dot.getBoundingClientRect());
          return [row.offsetHeight < 100, inner.width > 100 && inner.right <= innerWidth,
            dots.every(dot => dot.left >= inner.left - 7 && dot.right <= inner.right + 7)];
        })""")  # fmt: skip
        assert strips == [[True] * 3] * (6 * 4 + 15 * 4 + 4 * 6 + 2 + 6)


def test_paper_cuts_nothing(browser, write):
    path = write(checkup(*KINDS[:4], names=[HOSTILE, LONG, "sound", "sight"]))
    with opened(browser, path, "true") as seen:
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", seen.page.pdf(format="A4"))) <= 8
        seen.page.set_viewport_size({"width": 700, "height": 1000})
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 700


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_picture_holds_names_verdicts_and_figures(tmp_path, count):
    found = checkup(*KINDS[:count], names=["sound", "<svg> & more", "text", "touch"][:count])
    path = write_checkup_picture(found.as_dict(), tmp_path / "picture.svg")
    assert path.stat().st_size < 100_000
    texts = ["".join(x.itertext()) for x in ET.parse(path).iter() if x.tag.endswith("text")]
    assert {*found.findings, *KINDS[:count], "there 75.0", "learnt 60.0", "0.02"} <= set(texts)
    again = write_checkup_picture(json.loads(json.dumps(found.as_dict())), tmp_path / "again.svg")
    assert again.read_bytes() == path.read_bytes()
