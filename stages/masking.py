"""Which tokens are predicted and what the models see in their place. The one owner of masks and of the causal shift.

A mask is a pure function of (seed, split, variant, sequence id): the teacher's pass, a repaired shard and a student on
another machine all get the same one, in any order. The scheme is DistilBERT's (Sanh et al. 2019, section 3 and the
published training code): a share of a sequence's tokens, never special or unknown ones, rarer tokens more often
(weight count^-smoothing), replaced by the mask token, a random one, or kept (BERT's 80/10/10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stages.config import Config, MaskingConfig
from stages.errors import InputError
from stages.randomness import uniforms, words
from stages.sequences import TokenStore
from storage import Split


class SeesTokens(Protocol):
    """What a teacher sees of a sequence."""

    def mask(
        self, sequence_id: int, variant: int, original_ids: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.uint8]]:
        """Ids that the teacher reads, (tokens,), and u1 (tokens,) 1 where a token is to be predicted from the others."""


def masker_of(config: Config, tokens: TokenStore, split: Split) -> SeesTokens:
    """What the teacher of these parameters sees of a split. Raises as `Masker.of`."""
    return Unmasked() if config.teacher.objective == "causal" else Masker.of(config.masking, tokens, split)


class Unmasked:
    """For causal teachers, who see every token and predict the one after it."""

    def mask(
        self, sequence_id: int, variant: int, original_ids: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.uint8]]:
        """The tokens as they are, and no mask."""
        del sequence_id, variant
        return original_ids.copy(), np.zeros(len(original_ids), np.uint8)


class Masker:
    """Masks sequences of one split. `token_counts` (V,) are the training split's counts per id."""

    def __init__(
        self,
        config: MaskingConfig,
        *,
        split: Split,
        token_counts: npt.NDArray[np.int64],
        special_ids: Sequence[int],
        mask_id: int | None,
        vocabulary_size: int,
    ) -> None:
        if mask_id is None:
            raise InputError(
                "the tokenizer has no mask token, which masked language modelling needs; expected [MASK] or the like; "
                "choose another tokenizer in params.yaml (tokenize), or teacher.objective: causal"
            )
        self._config = config
        self._split = split
        self._probability = config.probability if split == "train" else config.evaluation_probability
        self._weights = np.maximum(token_counts, 1).astype(np.float64) ** -config.smoothing
        self._weights[list(special_ids)] = 0.0
        self._mask_id = mask_id
        self._vocabulary_size = vocabulary_size

    @classmethod
    def of(cls, config: MaskingConfig, tokens: TokenStore, split: Split) -> Masker:
        """The masker of a split of the tokens. Raises `InputError` for a tokenizer without a mask token."""
        return cls(
            config,
            split=split,
            token_counts=tokens.token_counts,
            special_ids=tokens.special_ids,
            mask_id=tokens.special_tokens["mask"],
            vocabulary_size=tokens.vocabulary_size,
        )

    def mask(
        self, sequence_id: int, variant: int, original_ids: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.uint8]]:
        """What the models see, (tokens,) of the dtype of `original_ids`, and u1 (tokens,) 1 where a token is predicted.

        `floor(probability * n + u)` of the n tokens are chosen, u uniform, without replacement and by weight: the
        smallest arrival times of an exponential race (Efraimidis and Spirakis 2006).
        """
        count = len(original_ids)
        raw = words(f"mask/{self._config.seed}/{self._split}/{variant}", sequence_id, 1 + 3 * count)
        weights = self._weights[original_ids]
        wanted = int(self._probability * count + float(uniforms(raw[:1])[0]))
        wanted = min(wanted, int(np.count_nonzero(weights)))
        with np.errstate(divide="ignore"):
            arrival = -np.log(uniforms(raw[1 : 1 + count])) / weights
        chosen = np.sort(np.argsort(arrival, kind="stable")[:wanted])

        fate = uniforms(raw[1 + count : 1 + 2 * count])[chosen]
        random_ids = (uniforms(raw[1 + 2 * count :])[chosen] * self._vocabulary_size).astype(original_ids.dtype)
        input_ids = original_ids.copy()
        masked_share, random_share = self._config.mask, self._config.random
        input_ids[chosen[fate < masked_share]] = self._mask_id
        randomised = (fate >= masked_share) & (fate < masked_share + random_share)
        input_ids[chosen[randomised]] = random_ids[randomised]
        masked = np.zeros(count, np.uint8)
        masked[chosen] = 1
        return input_ids, masked


def next_tokens(original_ids: npt.NDArray[np.integer], nothing: int) -> npt.NDArray[np.int64]:
    """i8 (tokens,): the id that a causal model predicts at each token, the one after it; `nothing` at the last."""
    targets = np.full(len(original_ids), nothing, np.int64)
    targets[:-1] = original_ids[1:]
    return targets
