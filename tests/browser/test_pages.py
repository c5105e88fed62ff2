"""report.html and the page of `kubequant compare` in a browser: seen, narrow, printed, safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.page.hostile import hostile_report
from tests.page.reports import METHODS, whole_report

from kubequant.api.contract import RunReport
from kubequant.api.enums import Method
from kubequant.api.outcome import ExitCode, Outcome
from kubequant_worker.comparison import compare
from kubequant_worker.page import comparison_page, report_page

if TYPE_CHECKING:
    from collections.abc import Callable

BARE = RunReport(digest="9f2c41aa", outcome=Outcome.PUBLISHED, exit_code=ExitCode.PUBLISHED)
PAGES: dict[str, Callable[[], bytes]] = {
    "several variants": lambda: report_page(whole_report()),
    "one variant": lambda: report_page(whole_report(Method.AWQ)),
    "nothing measured": lambda: report_page(BARE),
    "hostile texts": lambda: report_page(hostile_report()),
    "a comparison": lambda: comparison_page(
        compare([(str(m), whole_report(m)) for m in METHODS] + [("hostile", hostile_report())])
    ),
}
# axe cannot tell what lies behind text that a plot draws over its own shapes.
UNDECIDED = {"color-contrast"}


@pytest.fixture(scope="module", params=PAGES)
def content(request: pytest.FixtureRequest) -> bytes:
    return PAGES[request.param]()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_on_a_page_violates_a_rule_of_accessibility(
    show: Callable[..., Any], content: bytes, width: int, scheme: str
) -> None:
    with show(content, width=width, scheme=scheme) as shown:
        found = Axe().run(shown.page).response

    assert {one["id"]: [node["html"] for node in one["nodes"]] for one in found["violations"]} == {}
    assert {one["id"] for one in found["incomplete"]} <= UNDECIDED
    assert len(found["passes"]) > 10


@pytest.mark.parametrize("width", [1280, 360])
def test_a_page_is_as_wide_as_its_window(
    show: Callable[..., Any], content: bytes, width: int
) -> None:
    with show(content, width=width) as shown:
        assert shown.run("document.documentElement.scrollWidth") == width
        # Text of a plot is as large on a phone as other small print.
        smallest = shown.run(
            "Math.min(...[...document.querySelectorAll('figure svg')].map("
            "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width), 9)"
        )
    assert smallest * 11 > 8.5


def test_on_a_phone_the_name_of_a_table_is_whole_and_rows_keep_theirs(
    show: Callable[..., Any],
) -> None:
    with show(report_page(whole_report()), width=360) as shown:
        widest = shown.run(
            "Math.max(...[...document.querySelectorAll('caption span')].map("
            "one => one.getBoundingClientRect().right))"
        )
        left = shown.run(
            "[...document.querySelectorAll('.scroll')].map(one => { one.scrollLeft = 9999;"
            "return one.querySelector('tbody th').getBoundingClientRect().left; })"
        )

    assert widest <= 360
    assert min(left) > 0


def test_a_page_loads_nothing_and_runs_nothing(show: Callable[..., Any], content: bytes) -> None:
    with show(content) as shown:
        shown.page.wait_for_timeout(100)
        requests, complaints, title = shown.requests, shown.complaints, shown.page.title()
        scripts = shown.run("document.scripts.length + document.querySelectorAll('img').length")
        handlers = shown.run(
            "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
            ".filter(a => a.name.startsWith('on')).length"
        )
        links = shown.run("[...document.links].map(one => one.protocol)")

    assert len(requests) == 1
    assert complaints == []
    assert title != "run"
    assert (scripts, handlers) == (0, 0)
    assert set(links) <= {"file:"}


def test_the_colours_of_a_plot_follow_the_theme(show: Callable[..., Any]) -> None:
    seen = []
    for scheme in ("light", "dark"):
        with show(report_page(whole_report()), scheme=scheme) as shown:
            seen.append(
                shown.run(
                    "[getComputedStyle(document.body).backgroundColor, "
                    "getComputedStyle(document.querySelector('figure text')).fill]"
                )
            )
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert not set(seen[0]) & set(seen[1])


def test_a_printed_page_is_dark_on_white_also_in_a_dark_theme(show: Callable[..., Any]) -> None:
    # As wide as A4 without its margins.
    with show(report_page(whole_report()), width=718, scheme="dark") as shown:
        shown.page.emulate_media(media="print", color_scheme="dark")
        colours = shown.run(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.body).color]"
        )
        width = shown.run("document.documentElement.scrollWidth")
        printed = shown.page.pdf(format="A4")

    assert width == 718
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") in range(2, 16)


def test_a_click_on_a_command_selects_all_of_it(show: Callable[..., Any]) -> None:
    with show(report_page(whole_report())) as shown:
        shown.page.locator(".command pre").first.click()
        selected = shown.run("getSelection().toString().trim()")

    assert selected == "llama-server -m llama-3-1-8b-Q4_K_M.gguf"
