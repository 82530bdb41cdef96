"""The tiny projects of the stages' tests serve here too."""

from tests.stages.conftest import make_project, tokenized

__all__ = ["make_project", "tokenized"]
