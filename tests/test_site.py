"""The documentation as a site: built without a warning, whole, and read without a network."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import evenly
from evenly import METHODS

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]  # built once


class Page(HTMLParser):
    """What a page refers to, and what in it can be referred to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        if tag in ("img", "script", "iframe") and found.get("src"):
            self.loaded.add(found["src"])
        if tag == "link" and found["rel"] not in ("prev", "next"):
            self.loaded.add(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO ")]
    assert said == []
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """By name; but for the one that a server shows in place of a page that is not there."""
    return {path.name: Page(path) for path in site.glob("*.html") if path.name != "404.html"}


def names(nav):
    """The files of a navigation."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else names(value)


def test_every_page_of_the_navigation_is_there(pages):
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {name.replace(".md", ".html") for name in names(nav)} == pages.keys()


def test_every_public_name_is_documented(pages):
    assert {f"evenly.{name}" for name in evenly.__all__} <= pages["api.html"].ids
    assert METHODS.keys() <= pages["api-methods.html"].ids
    classes = {f"evenly.methods.{kind.__name__}" for kind in METHODS.values()}
    elsewhere = {f"evenly.methods.{name}" for name in evenly.__all__}
    assert classes - elsewhere <= pages["api-methods.html"].ids


def test_every_link_within_the_site_leads_somewhere(site, pages):
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            assert (site / (path or name)).is_file(), (name, link)
            if anchor:
                assert anchor in pages[path or name].ids, (name, link)


def test_nothing_is_loaded_from_a_network(site, pages):
    for name, page in pages.items():
        for source in page.loaded:
            assert (site / source).is_file(), (name, source)
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*['\"]?(?!data:)([^'\")]+)", path.read_text())
        assert not [link for link in found if "//" in link], path


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")

    def show(address):
        done = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files",
             f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
             "--virtual-time-budget=20000", "--dump-dom", address],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        return done.stdout

    return show


def test_the_search_works_from_a_folder(site, browse):
    found = browse(f"{(site / 'index.html').as_uri()}?q=purity")
    titles = re.findall(r'<a href="[^"]*?/(\w+)\.html\S*" class="md-search-result__link"', found)
    assert "diagnosis" in titles
    assert "matching documents" in found


SEARCH = """<body>
<script src="assets/iframe-worker.js"></script>
<script src="search/search_index.js"></script>
<script>
(async () => {
  const worker = new Worker(WORKER);
  const ask = data => new Promise(go => {
    worker.addEventListener("message", answer => go(answer.data), { once: true });
    worker.postMessage(data);
  });
  await ask({ type: 0, data: { ...__index, options: { suggest: false } } });
  const seen = {};
  for (const query of QUERIES) {
    const { items } = (await ask({ type: 2, data: query })).data;
    seen[query] = items.map(page => page.map(section => section.location));
  }
  const note = document.createElement("pre");
  note.id = "seen"; note.textContent = JSON.stringify(seen);
  document.body.append(note);
})();
</script>
"""


@pytest.fixture(scope="module")
def search(site, browse):
    """Asks the program that searches in a reader's browser; sections by page, the best first."""
    (worker,) = site.glob("assets/javascripts/workers/search*.js")

    def ask(queries):
        harness = site / "search.html"
        text = SEARCH.replace("WORKER", json.dumps(str(worker.relative_to(site))))
        harness.write_text(text.replace("QUERIES", json.dumps(queries)))
        found = re.search(r'<pre id="seen">(.*?)</pre>', browse(harness.as_uri()))
        harness.unlink()
        return json.loads(html.unescape(found[1]))

    return ask


def names_of(method, kind):
    """What a reader may call it: its name, its class, its title and what stands in brackets."""
    title = kind.info.title
    short, _, brackets = title.partition(" (")
    names = {method, method.replace("_", " "), method.replace("_", "-"), title, short}
    names |= {name.strip() for name in brackets.rstrip(")").split(",") if name}
    return names if method == "joint" else names | {kind.__name__}  # whose class is the base of all


def test_the_search_finds_every_method_by_any_of_its_names(search):
    names = {method: names_of(method, kind) for method, kind in METHODS.items()}
    names["ogm_ge"] |= {"OgmGe", "on-the-fly gradient modulation"}
    names["relearn"] |= {"Diagnosing and Re-learning", "diagnosing relearning", "d&r"}
    found = search(sorted(set().union(*names.values())))
    for method, queries in names.items():
        own = f"methods.html#{method}"
        for query in queries:
            first = [location for page in found[query][:2] for location in page[:2]]
            assert own in first, (method, query, first)


WIDTHS = """<script>
(async () => {
  const seen = {};
  for (const name of NAMES) {
    const frame = document.createElement("iframe");
    frame.style.width = "390px";
    frame.src = name;
    document.body.append(frame);
    await new Promise(go => frame.onload = go);
    seen[name] = frame.contentDocument.documentElement.scrollWidth;
    frame.remove();
  }
  const note = document.createElement("pre");
  note.id = "seen"; note.textContent = JSON.stringify(seen);
  document.body.append(note);
})();
</script>
"""


def test_a_phone_scrolls_down_only(site, pages, browse):
    harness = site / "widths.html"
    harness.write_text("<body>" + WIDTHS.replace("NAMES", json.dumps(sorted(pages))))
    found = re.search(r'<pre id="seen">(.*?)</pre>', browse(harness.as_uri()))
    seen = json.loads(html.unescape(found[1]))
    assert seen.keys() == pages.keys()
    assert {name for name, width in seen.items() if width > 390} == set()
