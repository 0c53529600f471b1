"""The budget page in a real browser: what it shows, and that it loads, runs and leaks nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Tab, chromium

from fhe_llm.privacy import Budget, SqliteLedger
from fhe_llm.privacy.events import (
    EncryptedCall,
    IdentifiersReplaced,
    TextInClear,
    TokensReplaced,
    VectorsNoised,
    WorkDone,
)
from fhe_llm.privacy.reporting import BudgetReport, html_page, report_on, write_page

HOUR = 3_600_000
NOON = 20_000 * 24 * HOUR + 12 * HOUR
HOSTILE = "<script>alert(1)</script>"
ATTRIBUTE = "\"'><img src=x onerror=alert(2)>{{ 7*7 }}</title></style></script>"
LONG = "w" * 256


def fill(path: Path) -> BudgetReport:
    """A ledger with every kind of event, hostile names and texts; more than 500 entries."""
    now = [NOON]
    with SqliteLedger(path, clock=lambda: now[0]) as ledger:
        ledger.set_budget("ann", Budget.of(400, "epsilon"))
        ledger.set_budget("ann", Budget.of(60, "epsilon", "day"))
        ledger.set_budget("ann", Budget.of(1, "rho", "week"))
        ledger.set_budget(HOSTILE, Budget.of(5, "metric-epsilon", "hour"))
        ledger.set_budget(LONG, Budget.of(0, "queries"))
        for i in range(520):
            now[0] += HOUR // 4
            event = TokensReplaced(tokens=2, epsilon=0.25, unit="epsilon", mechanism="exponential")
            if i % 40 == 3:
                ledger.reserve("ann", event, key=f"r{i}")
            ledger.charge("ann", event, key=f"t{i}")
        vectors = VectorsNoised(vectors=3, noise_multiplier=8.0, clip=1.0, dimensions=4)
        ledger.charge("ann", vectors, key="v")
        call = EncryptedCall(model=HOSTILE, rounds=3, bytes_up=5, bytes_down=7, assumption=ATTRIBUTE)
        ledger.charge(HOSTILE, call, key="e")
        evil = TokensReplaced(
            tokens=4, epsilon=1.0, unit="metric-epsilon", mechanism=ATTRIBUTE + "\ud800\x00\x1b"
        )
        ledger.charge(HOSTILE, evil, key="m")
        ledger.charge(HOSTILE, TextInClear(messages=1, characters=9), key="c")
        ledger.charge(HOSTILE, IdentifiersReplaced(replaced=1, entity_types=(HOSTILE,)), key="i")
        done = WorkDone(rounds=1_503_777, ciphertexts=2, bytes=3_011_683_128, milliseconds=43_159_404)
        ledger.charge(LONG, done, key="w")
        return report_on(ledger)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BudgetReport]:
    """The page and what it must say."""
    folder = tmp_path_factory.mktemp("report")
    report = fill(folder / "ledger.sqlite")
    write_page(html_page(report), folder / "page.html")
    return folder / "page.html", report


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, made: tuple[Path, BudgetReport]) -> Tab:
    browser.open(made[0])
    return browser


def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = tab.value(
        f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent.trim())"
    )
    return found


def choose(tab: Tab, select: str, value: str) -> None:
    tab.value(
        f"{{ const s = document.getElementById({select!r}); s.value = {value!r};"
        "s.dispatchEvent(new Event('change', {bubbles: true})); }"
    )


def test_it_asks_for_nothing_and_complains_about_nothing(tab: Tab, made: tuple[Path, BudgetReport]) -> None:
    tab.value("window.scrollTo(0, document.body.scrollHeight)")
    tab.value("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    assert tab.requests == [made[0].as_uri()]
    assert tab.complaints == []
    assert tab.value("performance.getEntriesByType('resource').length") == 0


def test_its_policy_stops_what_an_injection_would_do(tab: Tab) -> None:
    tab.value(
        "{ const s = document.createElement('script'); s.textContent = 'hit = 1'; document.body.append(s); }"
    )
    tab.value("{ const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); }")
    tab.value("new Promise((done) => setTimeout(done, 100))")
    assert tab.value("typeof hit") == "undefined"
    assert len([each for each in tab.complaints if "Content Security Policy" in each]) >= 2


def test_hostile_names_and_texts_are_text(tab: Tab, made: tuple[Path, BudgetReport]) -> None:
    assert set(texts(tab, ".person h2")) == {"ann", HOSTILE, LONG}
    assert tab.value("document.querySelectorAll('script').length") == 1
    assert tab.value("document.querySelectorAll('img').length") == 0
    assert any(ATTRIBUTE in note for note in texts(tab, ".tile .note"))
    assert any(HOSTILE in what for what in texts(tab, "#event-table td:last-child"))
    assert tab.complaints == []
    page = made[0].read_text()
    assert HOSTILE not in page
    assert "49" not in re.findall(r"onerror=alert\(2\)&gt;(\S+)", page)[0]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", page)


def test_the_tables_hold_the_exact_numbers(tab: Tab, made: tuple[Path, BudgetReport]) -> None:
    lines = [line for person in made[1].principals for line in person.lines]
    drawn: list[list[list[str]]] = tab.value(
        "[...document.querySelectorAll('.card')].map((card) => [...card.querySelectorAll('.numbers tbody tr')]"
        ".map((row) => [row.dataset.at, ...[...row.children].map((cell) => cell.textContent)]))"
    )
    assert len(drawn) == len(lines)
    wanted = [[str(point.time), point.spent, point.left] for line in lines for point in line.series.points]
    scale = {"ε": 10**6, "ε per distance": 10**6, "ρ": 10**9}

    def amount(cell: str) -> int | None:
        number, _, unit = cell.partition(" ")
        return None if cell == "–" else round(float(number.replace(",", "")) * scale.get(unit, 1))

    found = [[row[0], amount(row[2]), amount(row[4])] for rows in drawn for row in rows]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    assert "1,503,777 rounds" in texts(tab, ".numbers td")
    assert "3,011,683,128 bytes" in texts(tab, ".numbers td")


def test_every_chart_has_a_step_for_every_point(tab: Tab, made: tuple[Path, BudgetReport]) -> None:
    charts: list[dict[str, Any]] = tab.value(
        "[...document.querySelectorAll('.card')].map((card) => ({"
        "rows: card.querySelectorAll('.numbers tbody tr').length,"
        "steps: card.querySelector('.plot .spent').getAttribute('d').split('H').length,"
        "length: card.querySelector('.plot .spent').getTotalLength(),"
        "limit: card.querySelectorAll('.plot .limit').length,"
        "forecast: card.querySelectorAll('.plot .forecast').length,"
        "label: card.querySelector('.plot').getAttribute('aria-label')}))"
    )
    lines = [line for person in made[1].principals for line in person.lines]
    assert len(charts) == len(lines)
    for chart in charts:
        assert chart["steps"] == chart["rows"]
        assert chart["length"] > 10
        assert len(chart["label"]) > 20
    assert sum(chart["limit"] for chart in charts) == sum(line.balance.budget is not None for line in lines)
    assert (
        sum(chart["forecast"] for chart in charts)
        == sum(line.forecast.pace is not None for line in lines)
        > 0
    )


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_every_width(browser: Tab, made: tuple[Path, BudgetReport], width: int) -> None:
    browser.open(made[0], width=width, height=740)
    browser.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert width - 20 <= browser.value("document.documentElement.clientWidth") <= width
    small = browser.value(
        "Math.min(...[...document.querySelectorAll('main *')]"
        ".filter((e) => e.textContent.trim() && !e.children.length && !e.closest('.hidden, svg'))"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert small >= 11


CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  return [...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, select, .hidden, .skip, script") &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.className || e.tagName, e.textContent.trim().slice(0, 40)]; })
    .filter((found) => found[0] < 4.5);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_its_text_stands_out_from_its_ground(
    browser: Tab, made: tuple[Path, BudgetReport], dark: bool
) -> None:
    browser.open(made[0], dark=dark)
    assert browser.value(CONTRAST) == []


def test_the_filter_shows_one_principal_or_one_ledger(tab: Tab) -> None:
    rows = "[...document.querySelectorAll('#event-table tbody tr')].filter((row) => row.checkVisibility())"
    people = "[...document.querySelectorAll('.person')].filter((e) => e.checkVisibility()).length"
    assert tab.value("document.getElementById('filters').checkVisibility()")
    assert (tab.value(f"{rows}.length"), tab.value(people)) == (500, 3)
    choose(tab, "by-name", HOSTILE)
    assert (tab.value(f"{rows}.length"), tab.value(people)) == (4, 1)
    assert texts(tab, "#found") == ["4 of 500 events"]
    choose(tab, "by-name", "")
    choose(tab, "by-kind", "embedding")
    assert (tab.value(f"{rows}.length"), tab.value(people)) == (1, 3)
    kinds = "[...document.querySelectorAll('.card')].filter((e) => e.checkVisibility()).map((e) => e.dataset.kind)"
    assert set(tab.value(kinds)) == {"embedding"}
    choose(tab, "by-kind", "")
    assert tab.value(f"{rows}.length") == 500


def test_a_chart_reads_out_what_the_pointer_is_on(tab: Tab) -> None:
    tab.value("document.querySelector('.card .plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = tab.value(
        "(({x, y, width}) => [x, y, width])(document.querySelector('.card .plot').getBoundingClientRect())"
    )
    rest = tab.value("document.querySelector('.card .readout').textContent")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + 20)
    told = tab.value("document.querySelector('.card .readout').textContent")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: [\d.]+ [^,]+ spent(, [\d.]+ .+ left)?", told), told
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert tab.value("document.querySelector('.card .readout').textContent") == rest


def test_it_reads_without_scripts(browser: Tab, made: tuple[Path, BudgetReport]) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made[0])
        text = browser.call(
            "DOM.getOuterHTML", nodeId=browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        )
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert 'id="filters" hidden' in text["outerHTML"]
    assert text["outerHTML"].count('class="plot') == sum(len(person.lines) for person in made[1].principals)


def test_every_part_is_named_and_every_link_leads_somewhere(tab: Tab) -> None:
    broken = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => !document.querySelector(a.hash)).length"
    assert tab.value(broken) == 0
    assert tab.value("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == tab.value(
        "document.querySelectorAll('[id]').length"
    )
    unnamed = "svg[role=img]:not([aria-label]), table:not(:has(caption)), section:not([aria-labelledby])"
    assert tab.value(f"document.querySelectorAll({unnamed!r}).length") == 0
    assert "ε and ε per distance are different units" in tab.value(
        "document.querySelector('.legend').textContent"
    )


def test_it_says_what_needs_attention(tab: Tab) -> None:
    alerts = texts(tab, ".attention li")
    assert f"{LONG} disclosures · in all: used up" in alerts
    assert f"{HOSTILE} 2 texts left without a guarantee" in alerts
