"""Give a release the address of its repository, which only the workflow knows.

    python .github/address_links.py https://github.com/OWNER/NAME v1.2.3

Relative links of README.md become absolute, since they lead nowhere on the package index, and pyproject.toml gets
``[project.urls]``. Only the build uses the changed files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")
_URLS = """
[project.urls]
Homepage = "{repository}"
Documentation = "{repository}/tree/{tag}/docs"
Changelog = "{repository}/blob/{tag}/CHANGELOG.md"
Issues = "{repository}/issues"
"""


def main(repository: str, tag: str) -> None:
    """Rewrite both files in the working folder."""
    readme, pyproject = Path("README.md"), Path("pyproject.toml")

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({repository}/{kind}/{tag}/{link[3]})"

    readme.write_text(_LINK.sub(absolute, readme.read_text(encoding="utf-8")), encoding="utf-8")
    with pyproject.open("a", encoding="utf-8") as file:
        file.write(_URLS.format(repository=repository, tag=tag))


if __name__ == "__main__":
    main(*sys.argv[1:])
