"""Escape text before it is shown: a name, a reason or a command may hold anything.

Each function serves one output: a terminal, a CSV, JSON, Markdown or LaTeX. All of them print control characters and
bidirectional overrides as escapes (``\\x1b``, ``\\u202e``). Pages get their text as JSON, see ``report.html``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence

#: Starts of a formula in a spreadsheet, full-width forms included.
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "#$%&_"},
}
_SCHEMES = re.compile(r"(?<![A-Za-z])(javascript|vbscript|data|file|https?|ftp|mailto|xmpp):(?=\S)", re.IGNORECASE)


def printable(text: str) -> str:
    """Escape control characters: terminal sequences, line breaks, overrides."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """Escape like ``printable``, but keep line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def for_terminal(text: str) -> str:
    """Keep GitHub from running text in its log as a command; colours stay."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or not re.search("::|##\\[", text):
        return text
    token = secrets.token_hex(16)
    return f"::stop-commands::{token}\n{text.rstrip()}\n::{token}::\n"


def for_log(text: str) -> str:
    """Escape one line for a log, so that it controls no terminal and GitHub runs no command."""
    line = printable(text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        line = re.sub(r"^(\s*):(?=:)", r"\1: ", line.replace("##[", "## ["))
    return line


def for_csv(text: str) -> str:
    """Escape one field so that no spreadsheet takes it for a formula; spreadsheets hide the leading apostrophe."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # readers end a row at a lone carriage return
    guard = "'" if text.startswith(("\t", "\n")) or text.lstrip().startswith(_FORMULA_STARTS) else ""
    return guard + "\t".join(map(printable_lines, text.split("\t")))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV with line feeds; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([for_csv(value) if isinstance(value, str) else value for value in row] for row in rows)
    return out.getvalue()


def json_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write rows as a JSON list of objects; None is null."""
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    return for_json(json.dumps(objects, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def for_json(text: str) -> str:
    """Escape the characters of a JSON text that act on a terminal; its meaning stays."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def for_markdown(text: str) -> str:
    """Escape ``text`` for a cell of a Markdown table; on GitHub, it also links to and mentions nothing."""
    text = printable(re.sub(r"\s+", " ", text).strip())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])|(?<!\w)(_)|(_)(?!\w)", lambda match: f"\\{match[0]}", text)
    text = re.sub(r"((?<!\w)@|#)(?=\w)|@(?=[\w-]+\.\w)", "\\g<0>\u200b", text)
    return re.sub(r"(?<![A-Za-z])(www)\.", r"\1&#46;", _SCHEMES.sub(r"\1&#58;", text), flags=re.IGNORECASE)


def for_latex(text: str) -> str:
    """Escape ``text`` so that TeX prints it literally."""
    text = printable(re.sub(r"\s+", " ", text).strip())
    # At the start of a row TeX would take these for an option of the line break before it.
    guard = "{}" if text[:1] in ("[", "*") else ""
    return guard + "".join(_LATEX.get(character, character) for character in text)
