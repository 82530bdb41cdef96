"""Values to code: hidden states (R, L, H) and rows of descending logits, dense and ragged."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

STATES = st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(1, 70))
"""Shapes of hidden states: also no row, one row, and widths that no group divides."""


def hidden_states(limit: float) -> st.SearchStrategy[np.ndarray]:
    """f4 (R, L, H) within `limit`: subnormals, -0.0 and the limit itself among them."""
    limit = float(np.float32(limit))
    special = [0.0, -0.0, 2.0**-149, -(2.0**-126), 2.0**-25, 2.0**-14, limit, -limit]
    elements = st.sampled_from(special) | st.floats(width=32, min_value=-limit, max_value=limit)
    return hnp.arrays(np.float32, STATES, elements=elements)


def descending_rows(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    """f4 (R, k), each row descending; also no row."""
    rows = hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 5), st.integers(1, 40)),
        elements=st.floats(width=32, min_value=low, max_value=high),
    )
    return rows.map(lambda array: -np.sort(-array, axis=1))


def ragged_rows(low: float, high: float) -> st.SearchStrategy[list[np.ndarray]]:
    """Descending rows f4 (1 to 12,), from none to six of them."""
    row = st.lists(st.floats(width=32, min_value=low, max_value=high), min_size=1, max_size=12)
    return st.lists(row.map(lambda values: -np.sort(-np.array(values, np.float32))), max_size=6)


def flat(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (E,), `top_count` (R,) and `stat` (R, 1) of ragged rows."""
    logits = np.concatenate([np.empty(0, np.float32), *rows])
    count = np.array([len(row) for row in rows], np.uint8)
    return logits, count, np.array([row[0] for row in rows], np.float32).reshape(-1, 1)
