"""Which paragraphs say something new: exact duplicates and near duplicates are dropped."""

from __future__ import annotations

import re
from hashlib import blake2b

_WORD = re.compile(r"[a-z0-9_]+")
_GRAM = 6


class Novelty:
    """A memory of the paragraphs seen so far. What it answers depends on the order of the questions."""

    def __init__(self, max_seen_share: float) -> None:
        """A paragraph is old when more than `max_seen_share` of its 6-grams of words were seen before."""
        self._max_seen_share = max_seen_share
        self._paragraphs: set[bytes] = set()
        self._words: dict[str, int] = {}
        self._grams: set[int] = set()

    def is_new(self, paragraph: str) -> bool:
        """Whether the paragraph is new; it is remembered if it is. Case and punctuation do not count."""
        words = _WORD.findall(paragraph.lower())
        digest = blake2b(" ".join(words).encode(), digest_size=12).digest()
        if digest in self._paragraphs:
            return False
        self._paragraphs.add(digest)
        # A tuple of integers, unlike one of strings, has the same hash in every process.
        ids = [self._words.setdefault(word, len(self._words)) for word in words]
        grams = [hash(tuple(ids[i : i + _GRAM])) for i in range(max(1, len(ids) - _GRAM + 1))]
        seen = sum(1 for gram in grams if gram in self._grams)
        if seen > self._max_seen_share * len(grams):
            return False
        self._grams.update(grams)
        return True
