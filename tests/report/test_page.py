import base64
import gzip
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from evenly.files import read_sealed, write_sealed
from evenly.lab.run.result import is_headline
from evenly.report import write_report
from evenly.report.comparison import as_rows
from evenly.report.finding import what_was_found
from evenly.report.folder import read_comparison

VOID = {"meta", "link", "br", "line", "wbr", "img", "input"}


class Page(HTMLParser):
    """The text of the page, the cells of its ranking, its scripts, and whether its tags match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.scripts, self.links = [], [], {}, []
        self.bold, self.text, self.anchors, self.ids = [], "", [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        links = [attrs[name] for name in ("src", "href", "action") if name in attrs]
        self.links += [link for link in links if not link.startswith("#")]
        self.anchors += [link[1:] for link in links if link.startswith("#")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.script = attrs.get("id", f"code {len(self.scripts)}")
            self.scripts[self.script] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[self.script] += data
            return
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or ("tbody" in self.open and "th" in self.open):
            self.rows[-1][-1] += ("\n" if "small" in self.open else "") + data
        if "strong" in self.open:
            self.bold.append(data)


def _page(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def _unpacked(text):
    return gzip.decompress(base64.b64decode(text)).decode()


def _figures(page):
    return json.loads(_unpacked(page.scripts["figures"]))


def _summary(folder, rows):
    head = (
        "method,split,metric,mean,std,low,high,seeds,pairs,"
        "difference,difference_low,difference_high,p_value,p_holm\n"
    )
    (folder / "summary.csv").write_text(head + rows)


def test_holds_every_method_and_seed_the_command_and_the_settings(folder):
    page = _page(folder)
    for text in ("joint", "relearn", "ogm_ge", "Seeds: 0, 1, 2.", "no validation split",
                 "evenly compare --data digits --methods joint,relearn,ogm_ge --seeds 3",
                 "2.13.0", "2 cores, Intel Xeon with AMX, no GPU", "batch_size"):  # fmt: skip
        assert text in page.text
    assert "not complete" not in page.text


def test_holds_every_number_of_the_summary(folder):
    found = read_comparison(folder)
    rows = {row[0].split("\n")[0].strip(): "|".join(row) for row in _page(folder).rows[1:]}
    assert set(rows) == set(found.methods)
    for (method, split, metric), estimate in found.summary.items():
        if split == "test" and is_headline(metric):
            numbers = [f"{100 * estimate.mean:.1f}"]
            if "/" not in metric:
                numbers[0] += f" ± {100 * estimate.std:.1f}"
            if metric == "accuracy":
                numbers.append(f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]")
            for number in numbers:
                assert number in rows[method]


def test_the_ranking_by_hand(tmp_path, write):
    write(tmp_path, methods=["b", "joint"], seeds=3, modalities=["x"], epochs=6)
    _summary(
        tmp_path,
        "joint,test,accuracy,0.8125,0.0151,0.7004,0.9249,3,3,,,,,\n"
        "joint,test,macro_f1,0.8,0.02,0.7,0.9,3,3,,,,,\n"
        "joint,test,accuracy/x,0.5,0.02,0.4,0.6,3,3,,,,,\n"
        "b,test,accuracy,0.7999,0.01,0.75,0.85,3,3,-0.0126,-0.0301,0.0049,0.0004,0.0499\n"
        "b,test,macro_f1,0.79,0.01,0.7,0.9,3,3,-0.01,,,0.5,0.5\n"
        "b,test,accuracy/x,0.6049,0.01,0.5,0.7,3,3,0.1,,,0.01,0.01\n",
    )
    page = _page(tmp_path)
    joint, other = page.rows[1], page.rows[2]  # they differ: the best comes first
    assert joint[:7] == ["joint\n3 of 3", "81.2 ± 1.5\n[70.0, 92.5]", "80.0 ± 2.0", "50.0",
                         "reference", "–", "–"]  # fmt: skip
    assert other[:7] == ["b\n3 of 3", "80.0 ± 1.0\n[75.0, 85.0]", "79.0 ± 1.0", "60.5",
                         "−1.3\n[−3.0, +0.5]", "< 0.001", "0.050"]  # fmt: skip
    assert page.bold == ["−1.3", "0.050"]
    assert "b is worse than joint training." in page.text
    assert "stand in the order" not in page.text


def test_why_memory_is_unknown(folder, tmp_path, write):
    assert "Memory is unknown" not in _page(folder).text
    write(tmp_path, methods=["joint"], seeds=2, epochs=6)
    for path in tmp_path.glob("runs/*/result.json"):
        write_sealed(path, {**read_sealed(path), "peak_memory_mb": None})
    page = _page(tmp_path)
    assert "Memory is unknown for runs on CPUs that torchrun or srun started" in page.text
    assert page.rows[1][-1] == "–"


@pytest.mark.parametrize("p_holm", ["0.05", "0.3", "1.0"])
def test_nothing_is_bold_unless_significant_after_correction(tmp_path, write, p_holm):
    write(tmp_path, methods=["joint", "b"], seeds=3, epochs=6)
    _summary(
        tmp_path,
        "joint,test,accuracy,0.8,0.01,0.7,0.9,3,3,,,,,\n"
        f"b,test,accuracy,0.9,0.01,0.8,1.0,3,3,0.1,0.0,0.2,0.001,{p_holm}\n",
    )
    page = _page(tmp_path)
    assert page.bold == []
    assert "No method differs significantly from joint training" in page.text
    # An order by means would show chance.
    assert [row[0] for row in page.rows[1:]] == ["joint\n3 of 3", "b\n3 of 3"]
    assert "the rows stand in the order in which the methods were named" in page.text


def test_two_seeds_have_neither_interval_nor_test(tmp_path, write):
    """Nor is b, whose mean is higher, the first."""
    write(tmp_path, methods=["joint", "b"], seeds=2, modalities=["x"], epochs=6)
    _summary(
        tmp_path,
        "joint,test,accuracy,0.8,0.01,,,2,2,,,,,\nb,test,accuracy,0.9,0.01,,,2,2,0.1,,,,\n",
    )
    page = _page(tmp_path)
    joint, other = page.rows[1], page.rows[2]
    assert joint[1] == "80.0 ± 1.0\ntoo few seeds"
    assert other[1] == "90.0 ± 1.0\ntoo few seeds"
    assert other[4:7] == ["+10.0\ntoo few seeds", "–", "–"]
    assert page.bold == []
    assert "an interval or a test needs at least 3" in page.text
    assert "2 seeds are too few to tell whether methods differ" in page.text
    assert all("error_x" not in trace for trace in _figures(page)["accuracy"]["data"])


def test_a_test_of_two_shared_seeds_is_none(tmp_path, write):
    """Three seeds each, but 0, 1, 2 and 1, 2, 3: two pairs."""
    write(tmp_path, methods=["joint", "b"], seeds=4, modalities=["x"], epochs=6,
          missing=[("joint", 3), ("b", 0)])  # fmt: skip
    _summary(
        tmp_path,
        "joint,test,accuracy,0.8,0.01,0.7,0.9,3,3,,,,,\n"
        "b,test,accuracy,0.9,0.01,0.8,1.0,3,2,0.1,,,,\n",
    )
    page = _page(tmp_path)
    other = page.rows[2]
    assert other[1] == "90.0 ± 1.0\n[80.0, 100.0]"
    assert other[4:7] == ["+10.0\ntoo few seeds", "–", "–"]
    assert page.bold == []
    assert "2 shared seeds are too few to tell whether methods differ" in page.text
    assert "a mean is over a method's own seeds, a difference and its test over" in page.text
    assert "needs at least 3, that of a difference 3 shared with joint" in page.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "starting weights per seed, optimiser and epochs, and the head"),
        (
            {"settings": "published for x", "lr": "published", "epochs": "published"},
            "own, as listed below (epochs, lr); all others are equal",
        ),
        ({"tuned_trials": 4, "tuned_seeds": 1, "lr": "tuned"}, "listed below (lr); all others"),
    ],
)
def test_the_page_says_which_settings_are_equal(tmp_path, write, config, said):
    folder = write(tmp_path, methods=["joint"], seeds=1, epochs=6)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | config))
    text = " ".join(_page(folder).text.split())
    assert said in text
    assert ("optimiser and epochs" in text) == (not config)


def test_the_page_begins_with_what_was_found(folder):
    """What the command prints, sentence by sentence."""
    page = _page(folder)
    found = what_was_found(as_rows(read_comparison(folder).summary))
    assert len(found) > 1
    said = " ".join(page.text.split())
    places = [said.index(sentence) for sentence in found]
    assert places == sorted(places)
    assert places[0] < said.index("3 methods over 3 seeds")


def test_the_contents_lead_to_every_part(folder, tmp_path, write):
    whole = _page(folder)
    assert whole.anchors == [
        "results", "training", "learnt", "noise", "missing", "probes", "worth", "samples",
        "confusion", "settings",
    ]  # fmt: skip
    assert set(whole.anchors) < set(whole.ids)
    bare = write(tmp_path / "bare", seeds=1, epochs=3, methods=["joint"], unfinished=[("joint", 0)])
    page = _page(bare)
    assert page.anchors == ["results", "training", "learnt", "settings"]
    assert set(page.anchors) < set(page.ids)


def test_the_legend_is_in_the_order_of_the_table(tmp_path, write):
    names = ["relearn", "joint", "ogm_ge"]
    folder = write(tmp_path, methods=names, epochs=9)
    text = write_report(folder).read_text()
    rows = [row[0].split("\n")[0] for row in Page(text).rows[1:]]
    assert rows == read_comparison(folder).ranking
    assert _pressed(text) == rows


def test_a_folder_in_the_making_says_which_cells_are_open(tmp_path, write):
    write(tmp_path, seeds=3, epochs=9, missing=[("joint", 2)], unfinished=[("relearn", 1)],
          failed=[("ogm_ge", 0)])  # fmt: skip
    page = _page(tmp_path)
    assert "3 of 9" in page.text
    for text in ("joint, seed 2: not started", "relearn, seed 1: unfinished, 3 epochs so far",
                 "ogm_ge, seed 0: failed: the loss is <nan>."):  # fmt: skip
        assert text in page.text
    assert {row[0].split("\n")[1] for row in page.rows[1:]} == {"2 of 3"}


def test_before_the_first_result_the_page_holds_what_there_is(tmp_path, write):
    write(tmp_path, methods=["joint"], seeds=1, epochs=9, unfinished=[("joint", 0)])
    page = _page(tmp_path)
    assert page.rows[1] == ["joint\n0 of 1", "–\n–", "–", "–", "–", "reference", *"––––"]
    assert set(_figures(page)) >= {"curve/train_loss", "gap/0"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("methods: [joint]\nseeds: 1\n")
    page = _page(tmp_path / "empty")
    assert "joint, seed 0: not started" in page.text
    assert "plotly" not in page.scripts


def test_one_seed_has_no_interval_and_says_why(tmp_path, write):
    page = _page(write(tmp_path, seeds=1, epochs=9))
    assert all(row[1].endswith("\ntoo few seeds") for row in page.rows[1:])
    assert "1 seed is too few to tell whether methods differ" in page.text


@pytest.mark.parametrize(("count", "drawn"), [(3, ""), (7, ", estimated from 32 of them")])
def test_the_contribution_is_explained_for_any_number_of_modalities(tmp_path, write, count, drawn):
    names = [f"m{i}" for i in range(count)]
    text = _page(write(tmp_path, methods=["joint"], modalities=names, seeds=1, epochs=3)).text
    assert (
        f"the mean gain from it over all orders in which modalities can be added{drawn}. Together "
        "they are the model's accuracy minus that of always naming the commonest class."
    ) in " ".join(text.split())


def test_noise_is_added_to_that_of_the_data(folder):
    assert "on top of it" not in _page(folder).text
    path = folder / "config.yaml"
    path.write_text(path.read_text() + "noise: {bottom: 2.0}\nlimit_samples: 40\n")
    page = _page(folder)
    said = " ".join(page.text.split())
    assert (
        "40 samples of each split are used. White noise is added to bottom (2 standard deviations)"
        in said
    )
    assert "The noise of --noise on bottom stays, too: what is added here comes on top" in said
    assert _figures(page)["noise/1"]["layout"]["xaxis"]["title"]["text"].startswith("added noise")


def test_names_from_the_data_cannot_break_out(tmp_path, write):
    hostile = "</script><script>window.broken=1</script>"
    image = '"><img src=x onerror=alert(1)>'
    write(tmp_path, methods=["joint", hostile, image], class_names=[hostile, "-->", "]]>"],
          modalities=[hostile, image], seeds=2, epochs=6, failed=[(image, 1)])  # fmt: skip
    page = _page(tmp_path)
    assert len(page.scripts) == 6  # folding, sorting, figures, samples, library, drawing
    assert page.links == ["data:,"]
    assert {row[0].split("\n")[0].strip() for row in page.rows[1:]} == {"joint", hostile, image}
    assert f"{hostile}, -->, ]]>" in page.text
    names = {trace["name"] for trace in _figures(page)["accuracy"]["data"]}
    assert {unescape(name) for name in names} == {"joint", hostile, image}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"]), min_size=1,
               max_size=30))  # fmt: skip
def test_any_name_reaches_the_page_unchanged(tmp_path_factory, write, name):
    folder = tmp_path_factory.mktemp("names")
    page = _page(write(folder, methods=[name], modalities=[name], seeds=1, epochs=2))
    assert page.rows[1][0] == f"{name}\n1 of 1"
    (trace, _) = _figures(page)["accuracy"]["data"]
    assert unescape(trace["name"]) == name


def test_the_page_needs_nothing_but_itself(folder):
    text = write_report(folder).read_text()
    page = Page(text)
    assert page.links == ["data:,"]
    assert "@import" not in text
    assert "url(" not in text
    assert _unpacked(page.scripts["plotly"]) == get_plotlyjs()
    assert "Licensed under the MIT license" in page.text


def test_the_same_folder_gives_the_same_page_and_nothing_else(folder):
    before = set(folder.rglob("*"))
    first = write_report(folder)
    text = first.read_text()
    assert write_report(folder).read_text() == text
    assert set(folder.rglob("*")) - before == {folder / "report.html"} == {first}


def test_fifty_runs_stay_small(tmp_path, write):
    """Of 31 classes, with as many samples in the plane as a run keeps."""
    write(tmp_path, methods=["joint", *(f"m{i}" for i in range(9))], seeds=5, epochs=100,
          modalities=list("abcdef"), samples=500,
          class_names=[f"class number {i}" for i in range(31)])  # fmt: skip
    assert write_report(tmp_path).stat().st_size < 3_500_000


def test_thirty_methods_each_have_a_row_and_a_key(tmp_path, write):
    names = ["joint", *(f"method_{i}" for i in range(29))]
    page = _page(write(tmp_path, methods=names, seeds=1, epochs=4))
    assert sorted(row[0].split("\n")[0] for row in page.rows[1:]) == sorted(names)


def _pressed(text):
    pattern = (
        r'<button type="button" data-number="\d+" aria-pressed="(\w+)">.*?</svg>(.*?)</button>'
    )
    buttons = re.findall(pattern, text)
    return [name.replace("<wbr>", "") for state, name in buttons if state == "true"]


def test_of_many_methods_lines_of_the_likely_ones_are_drawn_at_first(tmp_path, write):
    names = ["a", "b", "joint", *(f"m{i}" for i in range(15)), "relearn", "relearn(gap=shared)"]
    folder = write(tmp_path, methods=names, seeds=2, epochs=9)
    shown = _pressed(write_report(folder).read_text())
    assert len(shown) == 8
    assert {"joint", "relearn", "relearn(gap=shared)"} < set(shown)
    others = [m for m in read_comparison(folder).ranking if m not in ("joint", *names[-2:])]
    assert set(shown) == {"joint", *names[-2:], *others[:5]}


def test_of_few_methods_all_lines_are_drawn(folder):
    assert _pressed(write_report(folder).read_text()) == read_comparison(folder).ranking


def test_a_model_of_the_second_modality_has_its_figures(tmp_path, write):
    """Those of the first have nothing to show, and the headings are there all the same."""
    folder = write(tmp_path, methods=["unimodal(modality=bottom)"], seeds=1, epochs=9)
    for path in [*folder.glob("runs/*/metrics.csv"), folder / "summary.csv"]:
        path.write_text(path.read_text().replace("/top", "/none"))
    text = _page(folder).text
    assert "How well each modality is learnt" in text
    assert "With a noisy or missing modality" in text
    assert "With a modality missing from some samples" in text


def test_a_folder_that_is_no_comparison_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Give the folder that 'evenly compare --out'"):
        write_report(tmp_path)


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, evenly.report; "
        "print(*{'torch', 'plotly', 'matplotlib', 'jinja2', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_file_is_called_by_its_name(folder):
    path = folder / "config.yaml"
    named = "data: /somewhere/else.npz\nname: my speech"
    path.write_text(path.read_text().replace("data: digits", named))
    assert "<h1>my speech</h1>" in write_report(folder).read_text()
