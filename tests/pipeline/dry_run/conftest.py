"""The cached project of the stages' tests."""

from tests.stages.conftest import cached, copy_cached  # noqa: F401  fixtures
