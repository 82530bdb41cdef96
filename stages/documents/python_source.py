"""The prose of a Python source file: docstrings, strings that document, and long comments. Nothing is imported or run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from stages.documents.prose import paragraphs

_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#(?![!:])[^\n]*\n){3,}", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)
_SHORTEST_STRING = 40  # characters; a shorter argument of a documenting call is a name


def file_paragraphs(path: Path) -> list[str]:
    """The paragraphs of prose in one source file, strings first, then comments, each in its order in the file.

    Empty for a file that this Python cannot parse or decode (templates, code of other versions): what such a file
    says is not worth a failure of the corpus.
    """
    try:
        source = path.read_text(encoding="utf-8")
        return [paragraph for text in _texts(source) for paragraph in paragraphs(text)]
    except (SyntaxError, ValueError, RecursionError):  # ValueError: not UTF-8, or null bytes
        return []


def _texts(source: str) -> Iterator[str]:
    if '"""' in source or "'''" in source:  # cheap, and spares the parser a third of the files
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            module = ast.parse(source)
        yield from _documenting_strings(module)
    for block in _COMMENT_BLOCK.finditer(source):
        yield _COMMENT_MARK.sub("", block[0])


def _documenting_strings(node: ast.AST) -> Iterator[str]:
    """Strings that stand alone (docstrings), are given to `add_docstr` and its like, or are named `..._doc...`.

    Only statements are visited: expressions are most of a tree and hold no statement.
    """
    for field in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.Expr | ast.Assign):
                yield from _strings_of(child)
            else:
                yield from _documenting_strings(child)


def _strings_of(statement: ast.Expr | ast.Assign) -> Iterator[str]:
    value = statement.value
    if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant):
        if isinstance(value.value, str):
            yield value.value
        return
    named = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(value, "func", None)
    if isinstance(named, ast.Name | ast.Attribute | ast.Subscript) and "doc" in ast.unparse(named).lower():
        for part in ast.walk(value):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) >= _SHORTEST_STRING:
                yield part.value
