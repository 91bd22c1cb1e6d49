"""Write output for CI systems: JUnit XML, GitHub's annotations and its step summary."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from sema_bench.errors import StoreError
from sema_bench.gate.report import gate_markdown, label_of, summary_of
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION
from sema_bench.gate.run import GateResult
from sema_bench.text.escape import printable_lines

_LEVELS = {REGRESSION: "error", INCOMPLETE: "error", INCONCLUSIVE: "warning"}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_junit(result: GateResult) -> str:
    """Write a gate as JUnit XML, a test case for each cell; a regression is a failure, an undecided cell an error."""
    verdicts = [judgement.verdict for judgement in result.judgements.values()]
    root = ET.Element("testsuites")
    cases = ET.SubElement(
        root,
        "testsuite",
        name="sema-bench gate",
        tests=str(len(verdicts)),
        failures=str(verdicts.count(REGRESSION)),
        errors=str(verdicts.count(INCOMPLETE) + verdicts.count(INCONCLUSIVE)),
        time=f"{result.took_s:.3f}",
    )
    for cell, judgement in result.judgements.items():
        case = ET.SubElement(cases, "testcase", classname="sema-bench.gate", name=_xml_text(label_of(cell)))
        if judgement.verdict != PASS:
            kind, reason = "failure" if judgement.verdict == REGRESSION else "error", _xml_text(judgement.reason)
            ET.SubElement(case, kind, type=judgement.verdict, message=reason).text = reason
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(result: GateResult) -> Iterator[str]:
    """Yield the workflow commands that mark a change; nothing in a name or a reason can become a command."""
    for cell, judgement in result.judgements.items():
        if level := _LEVELS.get(judgement.verdict):
            title = _data(f"{judgement.verdict}: {label_of(cell)}").replace(":", "%3A").replace(",", "%2C")
            yield f"::{level} title={title}::{_data(judgement.reason or judgement.verdict)}"
    yield f"::notice title=sema-bench gate::{_data(summary_of(result))}"


def write_step_summary(result: GateResult) -> None:
    """Append the Markdown of a gate to GitHub's step summary, if there is one."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(gate_markdown(result))
        except OSError as problem:
            raise StoreError(f"cannot write the step summary {path}: {problem.strerror}") from None


def _xml_text(text: str) -> str:
    """Escape what acts on a terminal, and replace what XML 1.0 cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", printable_lines(text))


def _data(text: str) -> str:
    return printable_lines(text).replace("%", "%25").replace("\n", "%0A")
