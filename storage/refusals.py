"""How a bad entry of a shard's arrays is found and named: by its sequence and position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidTargetsError
from storage.layout import ShardId
from storage.ragged import Indices

if TYPE_CHECKING:
    from storage.targets import ShardTargets


class Refusals:
    """Of the targets of one shard, whose sequences begin with `first_sequence`. Each raises for the first entry that is not fine."""

    def __init__(self, targets: ShardTargets, shard: ShardId, *, first_sequence: int) -> None:
        self.targets, self.shard, self.first_sequence = targets, shard, first_sequence

    def require_token(self, fine: NDArray[np.bool_], name: str, values: NDArray[Any], expected: str) -> None:
        """`fine` and `values` are of tokens, (N,)."""
        if not fine.all():
            token = int(np.argmin(fine))
            raise self.refuse(f"has {name} {values[token]} at {self.place(token)}; expected {expected}")

    def require_row(
        self, fine: NDArray[np.bool_], name: str, values: NDArray[Any], expected: str, first_row: int = 0
    ) -> None:
        """`fine` and `values` are of whole rows, (r,); the first of them is row `first_row`."""
        if not fine.all():
            row = int(np.argmin(fine))
            raise self.refuse_row(first_row + row, name, f"{values[row]:g}", expected)

    def require_entries(
        self, fine: NDArray[np.bool_], block: slice, offsets: Indices, name: str, values: NDArray[Any], expected: str
    ) -> None:
        """`fine` is of the entries in `block` of the flat array `values`, whose rows are at `offsets`."""
        if not fine.all():
            row = int(np.searchsorted(offsets, block.start + int(np.argmin(fine)), side="right")) - 1
            found = values[offsets[row] : offsets[row + 1]]
            raise self.refuse_row(row, name, np.array2string(found, threshold=8, max_line_width=200), expected)

    def refuse_row(self, row: int, name: str, found: str, expected: str) -> InvalidTargetsError:
        """The error for a bad row."""
        row_token = self.targets.row_token
        place = self.place(row if row_token is None else int(row_token[row]))
        return self.refuse(f"has {name} = {found} at {place}; expected {expected}")

    def place(self, token: int) -> str:
        """How an error calls the token of this index."""
        offsets = self.targets.sequence_offsets
        sequence = int(np.searchsorted(offsets, token, side="right")) - 1
        return f"sequence {self.first_sequence + sequence}, position {token - int(offsets[sequence])}"

    def refuse(self, what: str) -> InvalidTargetsError:
        """The error for a shard that `has` something wrong."""
        return InvalidTargetsError(f"shard {self.shard} {what}; nothing was stored")
