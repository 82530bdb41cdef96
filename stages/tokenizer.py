"""The tokenizer: trained on the corpus (WordPiece) or loaded. Both give a fast Hugging Face tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stages.config import SourceConfig, TrainTokenizerConfig
from stages.errors import InputError
from stages.figures import Objective
from stages.model_sources import resolve_source
from stages.models import load_tokenizer

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_CONTINUATION = "##"
_LARGEST_ALPHABET = 1000


def train_wordpiece(
    read: Callable[[], Iterable[str]], config: TrainTokenizerConfig, longest: int
) -> PreTrainedTokenizerFast:
    """BERT's tokenizer (Devlin et al. 2019; WordPiece of Wu et al. 2016), trained on the texts that `read()` gives, twice.

    The vocabulary is smaller than asked for where the corpus is too small to fill it. `longest` (tokens) becomes
    `model_max_length`. The same texts and parameters give the same tokenizer, in every process.
    """
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    alphabet = _alphabet(read(), normalizer, config)
    continued = [_CONTINUATION + character for character in alphabet]
    # The trainer numbers the continued characters in the order of a randomly seeded hash map, and ties between merges
    # follow the numbers. Given as special tokens they have fixed ones; the final tokenizer is then built without them.
    trained = _bert_tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]), normalizer)
    trained.train_from_iterator(
        read(),
        trainers.WordPieceTrainer(
            vocab_size=config.vocabulary_size,
            min_frequency=config.min_frequency,
            special_tokens=[*SPECIAL_TOKENS.values(), *continued],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=_CONTINUATION,
            show_progress=False,
        ),
    )
    model = models.WordPiece(trained.get_vocab(), unk_token=SPECIAL_TOKENS["unk"])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=_bert_tokenizer(model, normalizer),
        model_max_length=longest,
        # DistilBERT takes no token types, and BERT's default is the right one.
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
    )


def load_for_teacher(config: SourceConfig, project: Path, objective: Objective) -> PreTrainedTokenizerFast:
    """A tokenizer from a local folder or, at a pinned revision, from the hub; its code is never run.

    Raises `InputError` if it is not there or lacks what masked language modelling needs: a causal teacher
    needs neither mask nor padding token.
    """
    name, revision = resolve_source(config, project)
    tokenizer = load_tokenizer(name, revision=revision)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"the tokenizer {name} is written in Python; expected a fast one, with a tokenizer.json")
    for role in ("mask", "pad") if objective == "masked" else ():
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise InputError(
                f"the tokenizer {name} has no {role} token; expected one for masked language modelling (BERT's, say), "
                "or teacher.objective: causal"
            )
    return tokenizer


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Role (`pad`, `unk`, `cls`, `sep`, `mask`) -> id, None where the tokenizer has no such token; `bos`, `eos` where it has."""
    ids: dict[str, int | None] = {role: getattr(tokenizer, f"{role}_token_id") for role in SPECIAL_TOKENS}
    beyond = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")}
    return ids | {role: token for role, token in beyond.items() if token is not None}


def _bert_tokenizer(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUATION)
    ids = list(SPECIAL_TOKENS)
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids.index("cls")), (sep, ids.index("sep"))],
    )
    return tokenizer


def _alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, config: TrainTokenizerConfig) -> list[str]:
    """The characters that may occur in tokens, sorted: frequent enough, and few enough to leave room for words."""
    written: Counter[str] = Counter()
    for text in texts:
        written.update(text)
    counts: Counter[str] = Counter()
    for character, count in written.items():  # BERT's normalizer works character by character
        for normal in normalizer.normalize_str(character):
            counts[normal] += count
    frequent = sorted(
        (character for character, count in counts.items() if count >= config.min_frequency and not character.isspace()),
        key=lambda character: (-counts[character], character),
    )
    room = (config.vocabulary_size - len(SPECIAL_TOKENS)) // 4  # each character takes two entries: alone and continued
    return sorted(frequent[: min(_LARGEST_ALPHABET, room)])
