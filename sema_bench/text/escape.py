"""Text on its way out: a name, a reason or a command may hold anything, and nothing it holds may act where it is shown.

Each function is for one place: a terminal, a CSV, JSON, Markdown or LaTeX. All of them show control characters and
bidirectional overrides as what they are (``\\x1b``, ``\\u202e``). Pages get their text as JSON, see ``report.html``.
"""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
from collections.abc import Iterable, Sequence

#: What a spreadsheet takes for the start of a formula, full-width forms included.
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
    """Return ``text`` with control characters (terminal escapes, line breaks, overrides) shown as what they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return ``text`` like ``printable``, with its line feeds kept."""
    return "\n".join(map(printable, text.split("\n")))


def for_terminal(text: str) -> str:
    """Return lines such that GitHub, where it reads the log, takes none of them for a command; colours are kept."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or not re.search("::|##\\[", text):
        return text
    token = secrets.token_hex(16)
    return f"::stop-commands::{token}\n{text.rstrip()}\n::{token}::\n"


def for_log(text: str) -> str:
    """Return one line for a log that GitHub may read: nothing in it acts on a terminal or is a command."""
    line = printable(text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        line = re.sub(r"^(\s*):(?=:)", r"\1: ", line.replace("##[", "## ["))
    return line


def for_csv(text: str) -> str:
    """Return the text of one field, which no spreadsheet takes for a formula; it shows what follows an apostrophe."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # readers end a row at a lone carriage return
    guard = "'" if text.startswith(("\t", "\n")) or text.lstrip().startswith(_FORMULA_STARTS) else ""
    return guard + "\t".join(map(printable_lines, text.split("\t")))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV with line feeds; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([for_csv(value) if isinstance(value, str) else value for value in row] for row in rows)
    return out.getvalue()


def for_json(text: str) -> str:
    """Return JSON whose strings mean the same and hold no character that acts on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def for_markdown(text: str) -> str:
    """Return ``text`` so that a Markdown table shows it as it is.

    Markup, HTML, pipes and line breaks are inert, no address becomes a link, and a comment that holds it mentions no
    one and refers to nothing.
    """
    text = printable(re.sub(r"\s+", " ", text).strip())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])|(?<!\w)(_)|(_)(?!\w)", lambda match: f"\\{match[0]}", text)
    text = re.sub(r"((?<!\w)@|#)(?=\w)|@(?=[\w-]+\.\w)", "\\g<0>\u200b", text)
    return re.sub(r"(?<![A-Za-z])(www)\.", r"\1&#46;", _SCHEMES.sub(r"\1&#58;", text), flags=re.IGNORECASE)


def for_latex(text: str) -> str:
    """Return ``text`` so that TeX prints it as it is."""
    text = printable(re.sub(r"\s+", " ", text).strip())
    # At the start of a row TeX would take these for an option of the line break before it.
    guard = "{}" if text[:1] in ("[", "*") else ""
    return guard + "".join(_LATEX.get(character, character) for character in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
