"""What mkdocs does not do by itself (`hooks` in mkdocs.yml): pages from outside of docs/, with links that hold on GitHub as well.

Pages link to each other by their paths in the repository, as GitHub wants it. Here each link is turned into one between
pages of the site. A link to a file that is none of them is a warning, which `--strict` makes an error.
"""

from __future__ import annotations

import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = get_plugin_logger("docs_build")

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "storage/FORMAT.md": "reference/format.md",
}
"""Path in the repository -> path in the site, of the pages that are not in docs/."""

FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
NAMED = re.compile(r"(?<!\[)`([\w./-]+\.md)`(?!\])")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for path, uri in OUTSIDE.items():
        source = posixpath.join(posixpath.dirname(config.config_file_path), path)
        files.append(File.generated(config, uri, abs_src_path=source))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  mkdocs' signature
    """Turn links between files of the repository into links between pages; name no page without a link to it."""
    uri = page.file.src_uri
    path = {there: here for here, there in OUTSIDE.items()}.get(uri, f"docs/{uri}")

    def target(link: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))
        found = _in_site(there)
        if found is None or files.get_file_from_path(found) is None:
            log.warning("%s links to %s, which is no page of the site", path, there)
            return link[1]
        return posixpath.relpath(found, posixpath.dirname(uri) or ".")

    def named(code: re.Match[str]) -> str:
        found = _in_site(code[1])
        known = found not in (None, uri) and files.get_file_from_path(str(found)) is not None
        return f"[{code[0]}]({posixpath.relpath(str(found), posixpath.dirname(uri) or '.')})" if known else code[0]

    parts = FENCE.split(markdown)
    parts[::2] = [NAMED.sub(named, LINK.sub(target, part)) for part in parts[::2]]
    return "".join(parts)


def _in_site(path: str) -> str | None:
    """Where in the site a file of the repository is, if it is of its pages or their pictures."""
    return OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
