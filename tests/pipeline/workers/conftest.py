"""The tiny projects of the stages' tests serve here too."""

from tests.stages.conftest import cached, make_project, tokenized

__all__ = ["cached", "make_project", "tokenized"]
