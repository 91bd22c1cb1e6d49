"""What CI systems read: JUnit's XML, GitHub's annotations and step summary, Bencher's metrics."""

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


def gate_junit(result: GateResult) -> str:
    """Return a gate as JUnit XML: a test case a cell; a slower one is a failure, what is not decided an error."""
    cases = ET.Element("testsuite", name="sema-bench gate", tests=str(len(result.judgements)))
    counts = [judgement.verdict for judgement in result.judgements.values()]
    cases.set("failures", str(counts.count(REGRESSION)))
    cases.set("errors", str(counts.count(INCOMPLETE) + counts.count(INCONCLUSIVE)))
    cases.set("time", f"{result.took_s:.3f}")
    for cell, judgement in result.judgements.items():
        case = ET.SubElement(cases, "testcase", classname="sema-bench.gate", name=_xml_text(label_of(cell)))
        if judgement.verdict != PASS:
            kind = "failure" if judgement.verdict == REGRESSION else "error"
            told = ET.SubElement(case, kind, type=judgement.verdict, message=_xml_text(judgement.reason))
            told.text = _xml_text(judgement.reason)
    root = ET.Element("testsuites")
    root.append(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(result: GateResult) -> Iterator[str]:
    """Yield the workflow commands that mark a change; nothing of a name or a reason can become a command."""
    for cell, judgement in result.judgements.items():
        if level := _LEVELS.get(judgement.verdict):
            title = _property(f"{judgement.verdict}: {label_of(cell)}")
            yield f"::{level} title={title}::{_data(judgement.reason or judgement.verdict)}"
    yield f"::notice title=sema-bench gate::{_data(summary_of(result))}"


def write_step_summary(result: GateResult) -> None:
    """Append the Markdown of a gate to GitHub's summary of the step, where there is one.

    Raises:
        StoreError: it cannot be written.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(gate_markdown(result))
        except OSError as problem:
            raise StoreError(f"cannot write the step summary {path}: {problem.strerror}") from None


_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml_text(text: str) -> str:
    """Return ``text`` with what acts on a terminal shown as what it is, and without what XML 1.0 cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", printable_lines(text))


def _data(text: str) -> str:
    return printable_lines(text).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
