"""Test the page: its summary in words, names that never act as markup, and its use in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_support import invoke
from comparison_support import failed, loaded, record, write_run

from sema_bench.report.html import page_data, report_page
from sema_bench.report.summary import summary_of
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record

NASTY = '<img src=x onerror="document.title=1">[b]</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def swept() -> list[Record]:
    """Return two models whose lines cross between 224 and 896 pixels, and one that fails at the largest size."""
    cells = []
    for side in (224, 320, 448, 896):
        cells += [
            record("linear", side, 0.02 * (side / 224) ** 2),
            record("quadratic", side, 0.01 * (side / 224) ** 4),
        ]
        cells.append(record(NASTY, side, 0.05) if side < 896 else failed(NASTY, side))
    return cells


def test_the_summary_says_who_is_first_how_cost_grows_and_what_failed() -> None:
    ((conditions, sentences),) = summary_of(swept())
    assert conditions.startswith("cpu · float32")
    text = "\n".join(sentences)
    assert f"Fastest: quadratic at 224; linear and quadratic (level) at 320; {NASTY} at 448; linear at 896." in text
    assert "linear 1.00; quadratic 2.00 (1 is linear, 2 quadratic)" in text
    assert "quadratic is slower than linear from 448 px (unclear where between 224 and 448)" in text
    assert f"1 of 12 cells gave no result: {NASTY} at 896 (crashed: it [bold]died[/])." in text


def test_the_summary_and_the_page_name_cells_bound_by_kernel_launches() -> None:
    bound = dataclasses.replace(record("a", 224, 0.1), details={"launch_bound": True})
    records = [bound, record("b", 224, 0.2)]
    ((_, sentences),) = summary_of(records)
    assert any(sentence.startswith("1 of 2 cells (~) were bound by kernel launches") for sentence in sentences)
    (group,) = page_data([loaded("a", records)])["runs"][0]["groups"]
    assert [cell["launch_bound"] for cell in group["cells"]] == [True, False]


def test_intervals_that_overlap_leave_it_open() -> None:
    ((_, sentences),) = summary_of([record("a", 224, 0.1), record("b", 224, 0.101)])
    assert sentences[0] == "Fastest: no clear winner at 224."


def test_models_are_level_only_with_the_first_unless_all_intervals_overlap() -> None:
    def timed(model: str, value: float, low: float, high: float) -> Record:
        latency = Measurement(metric="latency_s", value=value, ci_low=low, ci_high=high)
        return dataclasses.replace(record(model, 224, value), measurements={"latency_s": latency})

    deit, sima = timed("deit", 18.0, 17.92, 18.21), timed("sima", 16.9, 16.78, 17.04)
    wide, slow = timed("wide", 16.5, 15.0, 18.0), timed("slow", 30.0, 29.0, 31.0)
    ((_, sentences),) = summary_of([deit, sima, wide, slow])
    assert sentences[0] == "Fastest: wide (level with deit and sima) at 224."
    ((_, sentences),) = summary_of([sima, wide, slow])
    assert sentences[0] == "Fastest: sima and wide (level) at 224."
    others = [timed(str(i), 17.0 + i / 10, 16.9 + i / 10, 17.05 + i / 10) for i in range(3)]
    ((_, sentences),) = summary_of([*others, wide, slow])
    assert sentences[0] == "Fastest: wide (level with 3 others) at 224."


def test_models_that_gave_no_result_are_named_beside_a_rank_that_lacks_them() -> None:
    def with_memory(model: str, value: float) -> Record:
        each = record(model, 224, 0.1)
        memory = Measurement(metric="peak_memory_bytes", value=value)
        return dataclasses.replace(each, measurements={**each.measurements, "peak_memory_bytes": memory})

    ((_, sentences),) = summary_of([with_memory("a", 10), with_memory("b", 10), with_memory("c", 20), failed("d", 224)])
    assert "Smallest in peak memory: a and b (equal) at 224. Not ranked, without result: d at 224." in sentences


def test_a_cell_that_was_not_sampled_with_its_neighbours_is_named() -> None:
    def sampled(model: str, *others: str, **changes: Any) -> Record:
        return dataclasses.replace(record(model, 224, 0.1, **changes), details={"interleaved_with": [*others]})

    together = [sampled("a", "b", "c"), sampled("b", "a", "c")]
    again = "so drift of the machine is in the comparison: c at 224."
    assert not any("in turns" in each for each in summary_of([*together, sampled("c", "a", "b")])[0][1])
    assert any(each.endswith(again) for each in summary_of([*together, sampled("c")])[0][1])
    assert not any("in turns" in each for each in summary_of([*together, record("c", 224, 0.1)])[0][1])
    assert not any("in turns" in each for each in summary_of([sampled("a"), failed("b", 224)])[0][1])
    largest = [sampled(model, batch_policy="max") for model in "ab"]
    assert not any("in turns" in each for each in summary_of(largest)[0][1])


def test_growth_is_given_with_the_drift_of_the_machine() -> None:
    tick = {224: 1.0, 320: 1.0, 448: 1.0, 896: 1.3}
    records = []
    for side, factor in tick.items():
        each = record("a", side, 1e-6 * side**2)
        yardstick = Measurement(metric="yardstick_s", value=0.05 * factor)
        records.append(dataclasses.replace(each, measurements={**each.measurements, "yardstick_s": yardstick}))
    ((_, sentences),) = summary_of(records)
    assert any("drifted by up to 30%" in sentence for sentence in sentences)


def test_no_name_is_markup() -> None:
    page = report_page([loaded(NASTY, swept())])
    after = page.partition('<script type="application/json" id="data">')[2]
    assert "<img src=x" not in page
    assert "</script>[b]" not in after
    assert json.loads(after.partition("</script>")[0])["runs"][0]["name"] == NASTY


def test_the_page_loads_nothing() -> None:
    page = report_page([loaded("a", swept())])
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"?(https?:)?//", markup)
    assert "default-src 'none'" in markup


def test_trainings_from_several_seeds_are_one_line_and_a_mark_each() -> None:
    records = []
    for seed, share in enumerate((0.90, 0.92, 0.94)):
        cell = Cell(model="sema_micro", height=64, width=64, data="digits:cue", weights=f"seed {seed}@12345678")
        top1 = Measurement(metric="top1", value=share, ci_low=share - 0.01, ci_high=share + 0.01)
        records.append(Record(cell=cell, status="ok", measurements={"top1": top1}))
    data = page_data([loaded("a", records)])
    (cell,) = data["runs"][0]["groups"][0]["cells"]
    assert cell["seeds"] == {"top1": [0.90, 0.92, 0.94]}
    assert "Student's" in data["metrics"]["top1"]["what"]
    data = page_data([loaded("a", records[:1])])
    assert data["runs"][0]["groups"][0]["cells"][0]["seeds"] == {}
    assert "Wilson's" in data["metrics"]["top1"]["what"]


def test_several_runs_stand_side_by_side() -> None:
    data = page_data([loaded("a", swept()), loaded("b", swept()[:2])])
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    assert data["csv"].count("\n") == 15
    assert list(data["metrics"]) == ["latency_s", "throughput_images_per_s", "macs"]


def test_the_command_writes_into_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, "a", swept()[:2])
    code, shown, err = invoke("report", "a", "--out", str(tmp_path))
    assert (code, err, shown.strip()) == (0, "", str(tmp_path / "a" / "report.html"))
    assert (tmp_path / "a" / "report.html").stat().st_size > 1_000_000
    assert invoke("report", "gone", "--out", str(tmp_path))[0] == 2


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    flags = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=CHROMIUM, args=list(flags))
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_the_page_works_in_a_browser(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    path = tmp_path / "report.html"
    records = [dataclasses.replace(r, reason=r.reason or "") for r in swept()]
    path.write_text(report_page([loaded("a", records), loaded("b", records)]))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda problem: complaints.append(str(problem)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#plot .scatterlayer .trace")
    page.wait_for_selector("#plot .annotation" if width > 700 else "#plot .legend")
    assert page.locator("#plot path.point").count() == 12  # 11 results, and a cross where there is none

    assert not page.is_visible("#reference")
    page.select_option("#view", "ratio")
    page.select_option("#reference", "linear")
    page.wait_for_function("document.querySelector('#plot .ytitle').textContent === 'latency / that of linear'")
    if width > 700:
        page.locator("#plot .annotation", has_text="quadratic").click()
        page.wait_for_function("document.querySelectorAll('#plot path.point').length === 8")
        page.locator("#plot .annotation", has_text="quadratic").click()
        page.wait_for_function("document.querySelectorAll('#plot path.point').length === 12")
    page.select_option("#view", "value")
    assert page.title() == "sema-bench: a, b"

    page.select_option("#metric", "throughput_images_per_s")
    page.uncheck("#logy")
    page.wait_for_function("document.querySelector('#plot .ytitle').textContent.startsWith('throughput')")

    rows = page.locator("#table tbody tr")
    assert rows.count() == 24
    heading = page.locator("#table th", has_text="latency")
    heading.click()
    column = heading.evaluate("th => [...th.parentNode.children].indexOf(th)")
    shown = [rows.nth(i).locator("td").nth(column).inner_text() for i in range(24)]
    values = [float(text) for text in shown if text != "–"]
    assert values == sorted(values)
    assert shown[-2:] == ["–", "–"]
    heading.click()
    assert float(rows.nth(0).locator("td").nth(column).inner_text()) == max(values)
    assert all(len(text.replace(".", "").lstrip("0")) >= 3 for text in shown if text != "–"), "three digits, as printed"
    growth = page.locator("#exponents").inner_text()
    assert "latency" in growth
    assert "latency_s" not in growth
    page.fill("#filter", "quadratic 448")
    assert rows.count() == 2
    page.fill("#filter", "")

    background = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != first
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_text().startswith("run,model,")
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    context.close()
