"""The English prose of a docstring or comment: paragraphs without code, tables, parameter types and markup.

Works on reStructuredText (numpy and Sphinx style) and Markdown (Google style) alike, line by line: a real parser of
either would refuse much of what is found in docstrings, and the two are mixed in one file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

_SPOKEN_DIRECTIVES = {
    "attention",
    "caution",
    "danger",
    "error",
    "hint",
    "important",
    "note",
    "seealso",
    "tip",
    "warning",
}
"""Directives of reStructuredText whose body is prose; the body of any other (math, plot, code-block) is not."""
_SILENT_SECTIONS = {"references", "see also", "methods", "attributes", "author", "authors", "signature"}
"""Sections of numpy-style docstrings that are lists of names or citations."""

_DIRECTIVE = re.compile(r"\.\. ([\w:+-]+)::\s*(.*)")
_UNDERLINE = re.compile(r"""([=\-~^"'`*+#.:_])\1{2,}""")
_TO_BLANK_LINE = re.compile(r">>> .*|In \[\d*\]:.*|\$ .*|=+(?: +=+)+")
"""First line of a doctest, a session or a simple table, which end at a blank line."""
_TABLE = re.compile(r"[=+\-|:\s]{5,}")
_BULLET = re.compile(r"(?:[-*+•–]|\(?\d{1,2}[.)]|\(?[a-z]\)|\[\d+\])\s+")
_TYPE_LINE = re.compile(
    r"[\w*`'\"\[\].{}/,\s|-]{1,60}\s:\s.*"  # x : array_like of shape (n,)
    r"|[\w*]+: (?:.*\boptional\b.{0,20}|(?:str|int|float|bool|list|dict|tuple|callable|array)\b.{0,40})"
    r"|(?::r?type|@type|:meta|:group|:vartype|:module)\b.*"
)
_FIELD = re.compile(r"[:@](?:\w+)(?:\s+[^:]*)?:\s*")
_ARGUMENT = re.compile(r"[`*]{0,2}[\w.]+[`*]{0,2}\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*:(?:\s+|$)")
_HEADING = re.compile(r"(?:[A-Z][\w-]*\s?){1,4}:|#{1,6}\s.*")

_MARKUP: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needle, re.compile(pattern), replacement)
    for needle, pattern, replacement in (
        ("![", r"!\[[^\]]*\]\([^)]*\)", " "),  # Markdown image
        ("](", r"\[([^\]]+)\]\([^)\s]*\)", r"\1"),  # Markdown link
        ("[`", r"\[`~?\.?([\w.]+)`\]", r"\1"),  # cross reference of the Markdown dialect of Hugging Face
        ("`_", r"`([^`<]+?)\s*<[^`>]*>`_{0,2}", r"\1"),  # reStructuredText link
        (":`", r":[\w:+-]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`", r"\1"),  # reStructuredText role
        ("]_", r"\[#?[\w-]+\]_{1,2}", " "),  # footnote
        ("|", r"\|(\w[\w ]*)\|_?", r"\1"),  # substitution
        ("://", r"<?(?:https?|ftp)://[^\s>)\]]+>?", " "),
        ("<", r"</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>", " "),  # HTML tag
        ("`", r"`{1,2}([^`]*)`{1,2}_{0,2}", r"\1"),
        ("*", r"(?<![\w*])\*{1,3}(?=\S)([^*]+?)(?<=\S)\*{1,3}(?![\w*])", r"\1"),
        ("__", r"(?<!\w)__(\w[^_]*)__(?!\w)", r"\1"),
        ("_", r"(?<!\w)_(\w[^_]*\w)_(?!\w)", r"\1"),
        ("\u2018", r"\u2018", "'"),
        ("\u2019", r"\u2019", "'"),
        ("\u201c", r"\u201c", '"'),
        ("\u201d", r"\u201d", '"'),
        ("\u2013", r"\u2013", "-"),
        ("\u2014", r"\u2014", "-"),
        (" -- ", r"(?<=\s)--(?=\s)", "-"),
        (" (", r"(?<=\s)\(\s*\)", ""),  # emptied by the rules above
        (" [", r"(?<=\s)\[\s*\]", ""),
        (" ", r"\s+([.,;:!?)])(?=\s|$)", r"\1"),
    )
)
"""What is replaced, in this order, by what. Patterns are only tried on text that holds their first element."""

_REFUSED = re.compile(
    r"[\\$]|%\(|\{[\w.!]*\}|<<|>>|={3,}|[^\x00-\x7f]{3}"
    r"|\b(?:copyright|licen[cs]ed?|warranty|SPDX|noqa|pylint|mypy|pragma|fmt|TODO|FIXME|XXX|sphx_glr\w*)\b",
    re.IGNORECASE,
)
"""Formulas, templates, conflict markers, foreign scripts, legal boilerplate, instructions to tools."""

_PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z]+(?:['/-][A-Za-z]+)*[)\"']*[.,;:!?]*[)\"']*")
_FUNCTION_WORD = re.compile(
    r"\b(?:a|an|and|are|as|at|be|been|but|by|can|for|from|has|have|if|in|into|is|it|its|may|more|must|no|not|of|on|only"
    r"|or|other|should|such|than|that|the|their|then|there|these|they|this|to|use|used|was|we|when|where|which|will|with"
    r"|you)\b",
    re.IGNORECASE,
)
_SHORTEST_PARAGRAPH = 6  # words
_PLAIN_SHARE = 0.8
_FUNCTION_SHARE = 0.15


def paragraphs(text: str) -> list[str]:
    """The paragraphs of English prose in a docstring or comment, each on one line, in their order.

    What is not prose is left out: code, doctests, tables, formulas, headings, types of parameters, citations, markup,
    addresses, and paragraphs of fewer than six words.
    """
    lines = inspect.cleandoc(text).splitlines()
    candidates = (paragraph for paragraph in _grouped(_without_blocks(lines)) if _may_be_prose(paragraph))
    return [paragraph for paragraph in map(_plain, candidates) if _is_prose(paragraph)]


def _without_blocks(lines: list[str]) -> Iterator[str]:
    """The lines, those of code, tables, silent sections and headings replaced by blank ones."""
    fence: str | None = None
    hidden_below: int | None = None  # lines indented deeper than this belong to a literal block
    to_blank = silent = title = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        was_title, title = title, bool(content) and bool(_UNDERLINE.fullmatch(following.strip()))
        if fence is not None:
            fence = None if content.startswith(fence) else fence
        elif content.startswith(("```", "~~~")):
            fence = content[:3]
        elif not content:
            to_blank = False
        elif hidden_below is not None and indent > hidden_below:
            pass
        elif title and not _UNDERLINE.fullmatch(content):
            silent = content.lower() in _SILENT_SECTIONS
            hidden_below = None
        elif to_blank or _TO_BLANK_LINE.fullmatch(content):
            to_blank = True
        elif not (silent or was_title or _TABLE.fullmatch(content) or content.count("|") > 1):
            hidden_below, visible = _directive(content, indent)
            yield " " * indent + visible
            continue
        yield ""


def _directive(content: str, indent: int) -> tuple[int | None, str]:
    """The indentation below which what follows is hidden (None: nothing is), and what is left of the line itself."""
    if match := _DIRECTIVE.match(content):
        spoken = match[1] in _SPOKEN_DIRECTIVES
        return (None, match[2]) if spoken else (indent, "")
    if content.startswith(".. "):  # comment, footnote or link target
        return indent, ""
    if content.endswith("::"):
        return indent, content[:-1]
    return None, content


def _grouped(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs: runs of lines up to a blank line, a bullet, a parameter or another indentation."""
    current: list[str] = []
    indent = 0
    hanging = False  # after a bullet or parameter, the second line sets the indentation
    for line in lines:
        content = line.strip()
        depth = len(line) - len(line.lstrip())
        if not content or _HEADING.fullmatch(content) or _TYPE_LINE.fullmatch(content):
            yield " ".join(current)
            current, hanging = [], False
            continue
        head = _BULLET.match(content) or _FIELD.match(content) or _ARGUMENT.match(content)
        if head or not (depth == indent or (hanging and depth > indent and len(current) == 1)):
            yield " ".join(current)
            current, hanging = [], head is not None
        rest = content[head.end() :] if head else content
        if head and (argument := _ARGUMENT.match(rest)):  # a bullet that describes a parameter
            rest = rest[argument.end() :]
        current.append(rest)
        indent = depth
    yield " ".join(current)


def _plain(paragraph: str) -> str:
    """The paragraph without markup, one space between words."""
    for needle, pattern, replacement in _MARKUP:
        if needle in paragraph:
            paragraph = pattern.sub(replacement, paragraph)
    return " ".join(paragraph.split())


def _may_be_prose(paragraph: str) -> bool:
    """A cheap check that spares most of what is not prose the removal of markup."""
    return len(paragraph.split()) >= _SHORTEST_PARAGRAPH and not _REFUSED.search(paragraph)


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < _SHORTEST_PARAGRAPH:
        return False
    if sum(1 for word in words if _PLAIN_WORD.fullmatch(word)) < _PLAIN_SHARE * len(words):
        return False
    return len(_FUNCTION_WORD.findall(paragraph)) >= _FUNCTION_SHARE * len(words)
