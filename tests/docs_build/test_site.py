"""The documentation as a site: it builds without a warning, its links hold, and nothing in it comes from a network."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.tiny import ROOT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


def build(configuration, folder):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(configuration), "-d", str(folder)]
    done = subprocess.run(command, check=False, text=True, env=environment, capture_output=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    code, output = build(ROOT / "mkdocs.yml", folder)
    assert code == 0, output
    return folder


def test_every_page_is_in_the_site_and_so_are_those_from_outside_of_docs(site):
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    outside = ["index.html", "changelog.html", "contributing.html", "benchmarks.html", "reference/format.html"]
    assert [str(page) for page in [*pages, *outside] if not (site / page).is_file()] == []


def test_links_between_files_of_the_repository_are_links_between_pages(site):
    assert 'href="quality.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="reference/format.html"' in (site / "teachers.html").read_text(encoding="utf-8")
    assert 'href="../training-parameters.html"' in (site / "reference" / "parameters.html").read_text(encoding="utf-8")
    assert 'src="flow.svg"' in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_a_network(site):
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//"""
    )
    assert [page.name for page in site.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not any(re.search(r"""(?:url\(|@import\s)["']?(?:https?:)?//""", style) for style in styles)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gone](gone.md)", "docs/page.md links to docs/gone.md, which is no page of the site"),
        ("[code](../pipeline/cli.py)", "links to pipeline/cli.py"),
        ("[part](page.md#nowhere)", "nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, text, said):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"# A page\n\n{text}\n", encoding="utf-8")
    for path in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "storage/FORMAT.md"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("# A page\n", encoding="utf-8")
    shutil.copytree(ROOT / "docs_build", tmp_path / "docs_build")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    code, output = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert code != 0
    assert said in output
