"""A model's tokenizer, as its folder has it.

TransformerLens would complete one that has neither BOS nor EOS by a token that the model has never seen.
"""

from pathlib import Path
from typing import Any

from sae_service.activations.blame import blamed
from sae_service.errors import InvalidSpec, ModelNotFound
from sae_service.spec import ModelSpec, fields, is_path

IDS = "Give rows of token ids (stream.dataset.rows: kept), or take a model with such a tokenizer."


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model. Raises ModelNotFound if it has none, or one that cannot be read."""
    from transformers import AutoTokenizer

    name = str(Path(spec.name).expanduser().resolve()) if is_path(spec.name) else spec.name
    with blamed(ModelNotFound, f"{spec.name} has no tokenizer that can be read, and text needs one", fields.MODEL_NAME, IDS):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=spec.revision, trust_remote_code=False)
    # Of some families a class makes a tokenizer out of nothing.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ModelNotFound(f"{spec.name} has no tokenizer, and text needs one.", fields.MODEL_NAME, IDS)
    if tokenizer.is_fast:
        # Documents are packed whole, whatever the file says.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Token ids of each document, without special tokens."""
    if tokenizer.is_fast:
        return [item.ids for item in tokenizer.backend_tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
    return tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]


def strings(tokenizer: Any, n_vocab: int) -> list[str]:
    """Each token as it stands in a text, with the space before it; its id where there is no tokenizer, or no such token."""
    if tokenizer is None:
        return [str(token) for token in range(n_vocab)]
    known = min(n_vocab, len(tokenizer))
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(range(known)))]
    # A decoder drops the space of a first word, which some tokenizers write as this letter.
    texts = [piece.replace("\u2581", " ") if "\u2581" in piece else "" for piece in pieces]
    decoded = [text or tokenizer.decode([token]) for token, text in enumerate(texts)]
    return decoded + [str(token) for token in range(known, n_vocab)]


def separator(tokenizer: Any) -> int | None:
    """BOS, or EOS of a tokenizer without BOS, or None of one that has neither."""
    return next((int(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)


def start_token(tokenizer: Any, n_vocab: int) -> int:
    """The separator. Raises InvalidSpec if there is none, or if the model has no embedding for it."""
    token = separator(tokenizer)
    if token is None:
        raise InvalidSpec("the model's tokenizer has neither a BOS nor an EOS token, and text needs one.", fields.MODEL_NAME, IDS)
    if token >= n_vocab:
        message = f"the tokenizer starts a text with token {token}, and the model has embeddings for {n_vocab} tokens."
        raise InvalidSpec(message, fields.MODEL_NAME, "Take the tokenizer that belongs to the model.")
    return token
