"""A model's side of text without a model: every letter is a token, and it can be given a chat template."""

from functools import cache
from typing import Any

from sae_service.activations.documents import Tokenizing

BOS = 0
N_VOCAB = 256
TURNS = (
    "{{ '\x01' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template: turns such as <user>hello</>, after a token of its own."""


class Letters(Tokenizing):
    """Tokens are the code points of letters."""

    bos = BOS
    n_vocab = N_VOCAB

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Token ids of each document."""
        return [[ord(letter) for letter in document] for document in documents]


@cache
def chat_tokenizer(template: str | None = TURNS) -> Any:
    """A tokenizer of transformers whose tokens are those of `Letters`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({chr(code): code for code in range(N_VOCAB)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
