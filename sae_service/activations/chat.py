"""Conversations as text and as tokens, by the chat template of the model's tokenizer."""

import re
from collections.abc import Iterator
from typing import Any

from sae_service.errors import InvalidSpec
from sae_service.spec import fields

Message = dict[str, Any]
MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def no_template() -> InvalidSpec:
    """What to say of a model whose tokenizer has no chat template."""
    return InvalidSpec(
        "the model's tokenizer has no chat template.",
        param=fields.CHAT,
        hint="Name a model that was made for chat, or put a chat_template.jinja into the model's folder.",
    )


def check_template(tokenizer: Any, train_on: str) -> None:
    """Raises InvalidSpec if the tokenizer cannot make tokens of conversations."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise no_template()
    if train_on != "all" and not tokenizer.is_fast:
        raise InvalidSpec(
            "the model's tokenizer does not say which token comes from where in the text.",
            param="/stream/dataset/train_on",
            hint="Use train_on: all, or a tokenizer that has a tokenizer.json.",
        )


def rendered(tokenizer: Any, messages: list[Message], **options: Any) -> Any:
    """The conversation as text. Raises ValueError with what the template says against it.

    Args:
        options: of `apply_chat_template`.
    """
    from jinja2 import TemplateError

    # Tables give every message each field that any message has.
    said = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        return tokenizer.apply_chat_template(said, **({"tokenize": False} | options))
    except (TemplateError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"is refused by the chat template: {error}") from error


def answers_only(tokenizer: Any, messages: list[Message]) -> list[int]:
    """The tokens of a conversation, those that the assistant does not write as `~id`. Raises ValueError."""
    if MARKS_ANSWERS.search(tokenizer.get_chat_template()):
        found = rendered(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return [token if wrote else ~token for token, wrote in zip(found["input_ids"], found["assistant_masks"], strict=True)]
    text = rendered(tokenizer, messages)
    spans = list(_answers(tokenizer, messages, text))
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return [
        token if any(start <= at < end for start, end in spans) else ~token
        for token, (at, _) in zip(encoded.ids, encoded.offsets, strict=True)
    ]


def _answers(tokenizer: Any, messages: list[Message], text: str) -> Iterator[tuple[int, int]]:
    """From where to where in `text` the assistant writes: from where the template would have the model begin its turn to
    where the text of the conversation up to that turn ends, so the token that ends it is part of it.

    Raises:
        ValueError: the template writes a turn otherwise once another follows.
    """
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:index], add_generation_prompt=True) if index else ""
        until = text if index + 1 == len(messages) else rendered(tokenizer, messages[: index + 1])
        if not (until.startswith(before) and text.startswith(until)):
            raise ValueError(
                f"has an assistant's turn (message {index + 1}) that the chat template writes otherwise once another follows, so "
                "where it begins or ends cannot be told. Use train_on: all, or mark it in the template with {% generation %}"
            )
        yield len(before), len(until)
