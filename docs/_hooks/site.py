"""Hooks of MkDocs: fill in the tables of the reference, and add the files of the repository that pages link to.

A page may link to any file of the repository by its relative path, as on GitHub: ``../../results/RUN/report.txt``.
The file becomes part of the site, under ``repository/``, and the link leads there.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the code of this checkout, whatever is installed

import reference  # noqa: E402 - this folder is on the path while hooks are loaded

#: File of the repository → the page that shows it.
INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "results/README.md": "results/files.md",
}
_CODE = re.compile(r"<code>(?=[^<]{1,24}</code>)")
_LINK = re.compile(r"(?P<start>\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the root of the repository, and the files that pages link to."""
    for name, page in INCLUDED.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, name, f"docs/{page}")))
    targets = set()
    for page in files.documentation_pages():
        targets |= {_outside(page.src_uri, link["path"]) for link in _LINK.finditer(page.content_string)}
    for target in sorted(filter(None, targets - INCLUDED.keys())):
        files.append(File.generated(config, f"repository/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in generated tables, and point links to files of the repository at their copies in the site."""
    source = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        target = _outside(source, link["path"])
        if not target:
            return link[0]
        path = INCLUDED.get(target, f"repository/{target}")
        return _link(link, posixpath.relpath(path, posixpath.dirname(source) or "."))

    return _LINK.sub(moved, reference.with_tables(markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Keep names, and short cells of tables, in one piece; let a touch open a picture.

    A browser would break ``--ray-address`` after its hyphens, and ``[0.92, 0.98]`` after its comma.
    """
    html = re.sub(r"<code>(?=[^<\s]{1,32}</code>)", '<code class="name">', html)
    html = re.sub(r"<td.*?</td>", lambda cell: _CODE.sub('<code class="name">', cell[0]), html, flags=re.DOTALL)
    html = re.sub(r"<td(?=[^>]*>[^<]{1,24}</td>)", '<td class="short"', html)
    html = re.sub(r"<th.*?</th>", lambda cell: cell[0].replace(" %", "\N{NO-BREAK SPACE}%"), html, flags=re.DOTALL)
    return re.sub(r'(?<!">)(<img\b[^>]*\bsrc="([^"]+)"[^>]*>)(?!</a>)', r'<a href="\2">\1</a>', html)


def _outside(page: str, path: str) -> str | None:
    """Find the path in the repository of a file outside docs/; None for other links."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
    return None if target.startswith(("docs/", "..", "/")) or not (ROOT / target).is_file() else target


def _moved(text: str, before: str, after: str) -> str:
    """Rewrite the relative links of a page for another folder."""

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(before), link["path"]))
        return _link(link, posixpath.relpath(target, posixpath.dirname(after)))

    return _LINK.sub(moved, text)


def _link(link: re.Match[str], path: str) -> str:
    return f"{link['start']}{path}{link['anchor'] or ''}"
