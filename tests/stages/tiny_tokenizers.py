"""Tokenizers of the common kinds, small enough to be made in a test."""

import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_text

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def bert_like():
    """[CLS] text [SEP]; a word is a token."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={name: number for number, name in enumerate(names)})


def _byte_level(processor, specials, **roles):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*specials, *alphabet, "al", "Ġal", "be", "ta"]
    merges = [("a", "l"), ("Ġ", "al"), ("b", "e"), ("t", "a")]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def roberta_like():
    """<s> text </s>"""
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
    return _byte_level(
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        **{f"{role}_token": token for role, token in roles.items()},
    )


def gpt2_like():
    """Text, and nothing around it."""
    return _byte_level(
        processors.ByteLevel(trim_offsets=False),
        ["<|endoftext|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def t5_like():
    """text </s>"""
    return _byte_level(
        processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)]),
        ["<pad>", "</s>"],
        eos_token="</s>",
        pad_token="<pad>",
    )


KINDS = {"bert": bert_like, "roberta": roberta_like, "gpt2": gpt2_like, "t5": t5_like}


def trained_byte_level(*, begin=None):
    """GPT-2's kind, trained on the tiny text: no mask, no padding; with `begin`, that token in front of every sequence."""
    special = ["<|endoftext|>", *([begin] if begin else [])]
    tokenizer = _trained_byte_level(special)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, special.index(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin or special[0], eos_token=special[0], model_max_length=24
    )


def trained_roberta():
    """RoBERTa's kind, trained on the tiny text: <s> text </s>, padding 1, and a mask that is its last entry."""
    tokenizer = _trained_byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
    names = {f"{role}_token": token for role, token in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **names)


def _trained_byte_level(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_text().splitlines(), trainer)
    return tokenizer


def word_level(text, *, lowercase, unused=0):
    """BERT's kind, with every word of a text as an entry, cased or not, after so many unused ones."""
    words = re.findall(r"\w+|[^\w\s]", text.lower() if lowercase else text)
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"[unused{n}]" for n in range(unused)),
        *sorted(set(words)),
    ]
    return BertTokenizer(vocab={name: number for number, name in enumerate(names)}, do_lower_case=lowercase)
