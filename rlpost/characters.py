"""A character-level tokenizer made from nothing, saved as ordinary tokenizer files."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<|endoftext|>"]
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def character_tokenizer(alphabet: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte, which in ASCII is one a character.

    `alphabet` restricts it to some bytes, written as byte-level BPE does; others are dropped.

    It is a byte-level BPE without merges, the form of Qwen2's own tokenizer: for a folder whose
    model is a Qwen2, transformers rebuilds the tokenizer in that form, whatever class was saved,
    and any other would lose its spaces there.
    """
    known = alphabet or sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *known])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
