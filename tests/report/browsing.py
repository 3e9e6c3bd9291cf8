"""What the tests of pages ask a browser."""

from contextlib import contextmanager
from types import SimpleNamespace

# Text that has less than the given contrast with what it stands on, after WCAG 2.
FAINT = """least => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(x => x / 255)
    .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const ground = node => {
    for (let up = node; up; up = up.parentElement) {
      const found = channels(getComputedStyle(up).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !node.getClientRects().length || node.closest("option, noscript")) continue;
    const style = getComputedStyle(node);
    const ink = light(channels(node.closest("svg") ? style.fill : style.color));
    const back = light(ground(node));
    const contrast = (Math.max(ink, back) + .05) / (Math.min(ink, back) + .05);
    if (contrast < least) faint.push(`${node.textContent.trim()}: ${contrast.toFixed(1)}`);
  }
  return faint;
}"""


@contextmanager
def opened(browser, path, ready="document.documentElement.dataset.drawn", whole=True, **options):
    """The page once it is ready, `whole` or as it opens; what the browser said and asked."""
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(ready)
    if whole:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # which draws all
    yield SimpleNamespace(page=page, said=said, asked=asked)
    context.close()
