"""Whether a teacher can read the tokens: the same words for the same ids, and positions enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import InputError
from stages.model_config import ModelShape
from stages.models import load_tokenizer
from stages.sequences import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN_TOKENIZER = (
    "expected the teacher's own tokenizer; set tokenize.tokenizer to load and tokenize.load to the teacher's folder or hub "
    "id, and run: pipeline tokenize"
)


def check_teacher_fits(
    name: str, shape: ModelShape, tokenizer: PreTrainedTokenizerBase | None, tokens: TokenStore
) -> None:
    """Refuse a teacher called `name` that does not fit the tokens; `tokenizer` is its own, None where it brings none.

    Its vocabulary may be padded beyond the tokenizer's. Raises `InputError` with both figures and what to do.
    """
    if shape.vocabulary_size < tokens.vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokens.vocabulary_size} entries and the teacher's vocabulary {shape.vocabulary_size} "
            f"({name}); {_OWN_TOKENIZER}"
        )
    positions = shape.positions
    if positions is not None and tokens.longest > positions:
        raise InputError(
            f"the longest sequence in data/tokens has {tokens.longest} tokens and the teacher {positions} positions "
            f"({name}); set tokenize.sequence_tokens to at most {positions} and run: pipeline tokenize"
        )
    if tokenizer is None:
        return
    own, other = tokenizer.get_vocab(), load_tokenizer(tokens.tokenizer_folder).get_vocab()
    if own != other:
        raise InputError(
            f"the tokenizers of the teacher {name} ({len(own)} entries) and of data/tokens ({len(other)} entries) differ in "
            f"{len(own.items() ^ other.items())} entries: the same id would mean different words; {_OWN_TOKENIZER}"
        )
