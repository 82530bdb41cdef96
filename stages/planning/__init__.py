"""The parts of `pipeline plan`: a sample, what it takes on disk, how fast the teacher is, and when a cache pays."""

KEPT = "a plan keeps nothing"
"""For who stops one."""
