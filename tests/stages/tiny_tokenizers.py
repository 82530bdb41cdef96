"""Tokenizers of the common kinds, small enough to be made in a test."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

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
