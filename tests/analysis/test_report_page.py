"""report.html in a real headless Chromium: it acts, no text of a row does, nothing is fetched."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from targen_async import cli
from targen_async.analysis.analyze import analyze
from targen_async.analysis.report.page import write_report
from targen_async.analysis.rows import Rows
from targen_async.stats import LimitView
from tests.analysis.sets import HOSTILE, hostile, learnable, planted, prose, rows_of
from tests.running import command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESK, PHONE = (1400, 900), (390, 844)
SHOTS = os.environ.get("REPORT_SHOTS")
"""A folder to keep the pictures in, for who wants to look at them."""


class Opened:
    """A report in the browser, and all that it said and asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)

    def rows(self) -> int:
        """What the table says it has found."""
        found = re.match(r"([\d,]+) row", self.page.locator("#rows [role=status]").inner_text())
        return int(found[1].replace(",", "")) if found else 0

    def is_quiet(self, path: Path) -> None:
        """Nothing in the console, and no request but that for the page."""
        assert self.said == []
        assert self.asked == [path.as_uri()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--no-first-run"])
        yield opened
        opened.close()


def opened(browser: Any, path: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    return Opened(context.new_page(), path)


def made(folder: Path, rows: Rows, against: Rows | None = None, **options: Any) -> Path:
    analysis, notes = analyze(rows, against=against, **options)
    write_report(analysis, notes, rows, against, folder, None)
    return folder / "report.html"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with every fault beside its evaluation set, with hostile texts in some rows."""
    rows, evaluation = planted(600)
    odd = [
        structs.replace(row, fields={**row.fields, "premise": HOSTILE[place % len(HOSTILE)]})
        for place, row in enumerate(rows.rows[100:160])
    ]
    mixed = Rows([*rows.rows[:100], *odd, *rows.rows[160:]], name=rows.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)  # As conftest does for each test.
        return made(tmp_path_factory.mktemp("faulty"), mixed, evaluation)


def test_the_first_screen_shows_each_planted_fault(browser: Any, faulty: Path) -> None:
    page = opened(browser, faulty).page
    faults = page.locator("#faults li.fault")
    kinds = faults.evaluate_all("items => items.map((item) => item.dataset.kind)")
    assert {"label_noise", "near_duplicates", "overlap", "position", "one_field"} <= set(kinds)
    for number in range(faults.count()):
        assert faults.nth(number).bounding_box()["y"] < DESK[1]
    assert page.locator(".area").count() >= 4


def test_filters_search_and_labels_narrow_the_table(browser: Any, faulty: Path) -> None:
    report = opened(browser, faulty)
    page = report.page
    assert report.rows() == 600
    assert page.locator("#rows tbody tr").count() == 25
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#rows tbody tr").count() == 50
    page.locator("#rows [data-filter=overlap]").click()
    assert report.rows() == 18
    assert page.locator("#rows tbody").inner_text().count("stands also in") == 18
    page.locator("#rows [data-filter=duplicate]").click()
    assert report.rows() >= 60
    page.locator("#rows [data-filter=lowest]").click()
    values = page.locator("#rows td.pvi").all_inner_texts()
    numbers = [float(value.replace("\u2212", "-")) for value in values]
    assert numbers == sorted(numbers)
    assert numbers[-1] < 0
    page.locator("#rows [data-filter=suspect]").click()
    assert 20 < report.rows() < 120
    page.locator("#rows [data-filter=all]").click()
    text = page.locator("#rows .texts p").nth(9).inner_text().split(maxsplit=1)[1]
    page.locator("#rows input").fill(text.upper())
    assert report.rows() == 2, "the row and its near duplicate"
    assert page.locator("#rows mark").all_inner_texts()[:3] == text.split()[:3]
    page.locator("#rows input").fill("no such words anywhere")
    assert page.locator("#rows [role=status]").inner_text() == "no row fits"
    page.locator("#rows input").fill("")
    page.locator("#rows select").select_option("choice2")
    assert 100 < report.rows() < 300
    texts = page.locator("#rows .texts").first
    texts.focus()
    page.keyboard.press("Enter")
    assert page.locator("#rows tr.open").count() == 1
    report.is_quiet(faulty)


def test_a_fault_leads_to_its_rows(browser: Any, faulty: Path) -> None:
    report = opened(browser, faulty)
    report.page.locator("#faults li[data-kind=overlap] button").click()
    assert report.rows() == 18
    pressed = report.page.locator("#rows [aria-pressed=true]")
    assert pressed.inner_text() == "Overlaps 18"


def test_texts_show_and_do_not_act(browser: Any, tmp_path: Path) -> None:
    path = made(tmp_path, hostile(120), hostile(90))
    report = opened(browser, path)
    page = report.page
    assert page.evaluate("window.acted") is None
    assert page.locator("main img, main script, main b b, main i i").count() == 0
    table = page.locator("#rows tbody").inner_text()
    assert "<script>window.acted = 1</script>" in table
    assert "</script><img src=x onerror='window.acted = 1'>" in table
    assert "\"quotes\" 'and' `more` \\ {data} {{x}} %s ${window.acted = 1}" in table
    assert "\u2039U+202E\u203agnirts" in table
    assert "<i>yes</i>" in table
    assert not set(page.inner_text("body")) & set("\u202e\u2066\u2028\u0000")
    page.locator("#rows input").fill("</script><img")
    assert report.rows() == 20
    page.locator("#rows td .texts").first.click()
    high = "bar => bar.getBoundingClientRect().height > 20"
    bars = page.locator(".chart svg [aria-roledescription=bar]")
    next(bar for bar in bars.all() if bar.evaluate(high)).hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "script>" in page.inner_text("#vg-tooltip-element")
    assert page.evaluate("window.acted") is None
    report.is_quiet(path)


def test_the_page_can_reach_nothing(browser: Any, faulty: Path) -> None:
    page = opened(browser, faulty).page
    refused = page.evaluate(
        """async () => {
          const seen = [];
          const noted = (event) => seen.push(event.effectiveDirective);
          addEventListener("securitypolicyviolation", noted);
          await fetch("http://127.0.0.1:9/").catch(() => {});
          const image = new Image();
          image.src = "http://127.0.0.1:9/x.png";
          const script = document.createElement("script");
          script.textContent = "window.acted = 1";
          document.body.append(image, script);
          await new Promise((done) => setTimeout(done, 300));
          return seen;
        }"""
    )
    assert {"connect-src", "img-src", "script-src-elem"} <= set(refused)
    assert page.evaluate("window.acted") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_and_follows_the_scheme(
    browser: Any, faulty: Path, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    report = opened(browser, faulty, size, scheme)
    page = report.page
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    wide = page.evaluate(
        """(most) => [...document.querySelectorAll("main *")]
          .filter((node) => node.getBoundingClientRect().right > most + 1)
          .map((node) => node.outerHTML.slice(0, 80))""",
        size[0],
    )
    assert wide == []
    charts = page.locator(".chart")
    assert charts.count() >= 7
    for number in range(charts.count()):
        drawn = charts.nth(number).locator("svg, canvas").first.bounding_box()
        assert drawn["width"] > 200 and drawn["height"] > 40
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    shot = page.screenshot(full_page=True)
    assert len(shot) > 100_000
    folder = Path(SHOTS) if SHOTS else tmp_path
    (folder / f"report-{size[0]}-{scheme}.png").write_bytes(shot)
    report.is_quiet(faulty)


def test_a_run_tells_its_cost_and_its_corrections(browser: Any, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    noise = "data.simulator.label_noise=0.3"
    made_by = ["generate", "copa", "-n", "40", "--simulate", "--quiet", "--set", noise]
    # In a process of its own: the browser's driver has the event loop of this one.
    subprocess.run(command(*made_by, "--out", run), check=True)
    assert cli.main(["analyze", str(run), "--out", str(out)]) == 0
    report = opened(browser, out / "report.html", PHONE)
    page = report.page
    assert "SIMULATED rows, not from a language model" in page.inner_text("#head")
    told = page.inner_text("#run")
    assert "40 of 40" in told
    assert "simulated: nothing was paid" in told
    assert "calls refused" in told
    assert "How the limits moved on the way is not in a run's folder" in told
    assert "What self-correction did" in page.inner_text("#labels")
    page.locator("#rows [data-filter=relabelled]").click()
    assert 2 < report.rows() < 30
    assert "choice1 \u2192 choice2" in page.inner_text("#rows tbody")
    report.is_quiet(out / "report.html")
    # As a run that was killed leaves it: what it told last.
    manifest = json.loads((run / "manifest.json").read_bytes())
    limit = LimitView(
        name="generator",
        in_flight=7,
        most_in_flight=12,
        waiting=3,
        requests_per_minute=88.0,
        requests_limit=None,
        tokens_per_minute=4_000.0,
        tokens_limit=None,
        refused=5,
        waits_for="waiting 42 s: Retry-After from the endpoint",
    )
    now = {"at": "2026-01-31T12:00:00Z", "limits": [msgspec.to_builtins(limit)], "why": ""}
    (run / "manifest.json").write_text(json.dumps({**manifest, "now": now}))
    assert cli.main(["analyze", str(run), "--out", str(out)]) == 0
    told = opened(browser, out / "report.html", PHONE).page.inner_text("#run")
    assert "limits at work, generator" in told
    assert "7 of 12 calls out" in told and "5 times 429 since its start" in told
    assert "waiting 42 s: Retry-After" in told and "told them last, at 2026-01-31" in told


A_DOT = """canvas => {
  const { width, height } = canvas, scale = width / canvas.clientWidth;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  for (let y = Math.round(60 * scale); y < height - 60 * scale; y++)
    for (let x = Math.round(60 * scale); x < width - 20; x++) {
      const at = (y * width + x) * 4, part = data.slice(at, at + 3);
      if (data[at + 3] > 90 && Math.max(...part) - Math.min(...part) > 60)
        return [x / scale, y / scale + 2];
    }
}"""
"""Where the first coloured spot of a chart is, below its legend."""


def test_charts_change_with_the_scheme(browser: Any, faulty: Path) -> None:
    report = opened(browser, faulty)
    ink = report.page.locator(".chart svg text").first.get_attribute("fill")
    report.page.emulate_media(color_scheme="dark")
    # Some texts never had that colour, so none may be left of those that had.
    redrawn = "ink => !document.querySelector('.chart').innerHTML.includes(ink)"
    report.page.wait_for_function(redrawn, arg=ink, timeout=20_000)
    report.is_quiet(faulty)


def test_maps_show_the_text_of_a_row_and_one_set_alone(browser: Any, tmp_path: Path) -> None:
    rows, _ = learnable(80)
    theirs, _ = learnable(60, seed=3)
    other = Rows([structs.replace(row, key=f"o{row.key}") for row in theirs.rows])
    analysis, notes = analyze(rows, against=other)
    trained = [
        structs.replace(
            note, confidence=place / 80, variability=place % 9 / 20, correctness=place % 5 / 4
        )
        for place, note in enumerate(notes)
    ]
    write_report(analysis, trained, rows, other, tmp_path, None)
    path = tmp_path / "report.html"
    report = opened(browser, path)
    texts = {row.key: row.text for row in (*rows.rows, *other.rows)}
    for name in ("Cartography", "Rows that are near each other"):
        figure = report.page.locator("figure", has_text=name).last
        figure.locator("canvas").scroll_into_view_if_needed()
        right, down = figure.locator("canvas").evaluate(A_DOT)
        figure.locator("canvas").hover(position={"x": right, "y": down})
        report.page.wait_for_selector("#vg-tooltip-element.visible")
        figure.locator("canvas").click(position={"x": right, "y": down})
        key = figure.locator(".told b").inner_text()
        assert texts[key][:40] in figure.locator(".told").inner_text()
        assert texts[key][:40] in report.page.inner_text("#vg-tooltip-element")
    report.is_quiet(path)


@pytest.mark.parametrize(
    ("rows", "against"),
    [
        (rows_of(["one row"], ["yes"]), None),
        (rows_of(["one row"], ["yes"]), rows_of(["one", "two"], ["yes", "no"])),
        (rows_of(prose(30), ["yes"] * 30), rows_of(prose(30, seed=1), ["yes"] * 30)),
        (rows_of(["a", "b"]), None),
        (rows_of(["", ""], ["yes", "no"]), rows_of(["", ""], ["yes", "no"])),
        (rows_of(["x " * 500_000, *prose(20)], ["a", "b", "a"] * 7), None),
        (learnable(100)[0], learnable(100)[0]),
        (rows_of(prose(120), [f"label {n}" for n in range(120)]), None),
    ],
    ids=[
        "one-row",
        "one-row-beside",
        "one-label",
        "no-labels",
        "no-words",
        "1-MB",
        "identical",
        "own-labels",
    ],
)
def test_odd_sets_have_a_page(
    browser: Any, tmp_path: Path, rows: Rows, against: Rows | None
) -> None:
    path = made(tmp_path, rows, against)
    report = opened(browser, path, PHONE)
    assert report.rows() == len(rows)
    assert report.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert "undefined" not in report.page.inner_text("body")
    assert "NaN" not in report.page.inner_text("body")
    report.is_quiet(path)
