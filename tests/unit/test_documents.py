"""What may stand in a text column, and what is said of what may not."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sae_service.activations.documents import Documents
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.errors import DataNotFound, InvalidSpec
from sae_service.evaluation.on_text import _too_little
from sae_service.spec import DatasetSpec
from tests.letters import BOS, TURNS, Letters, chat_tokenizer

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
TALK = [USER, ANSWER]
MARKED = TURNS.replace(
    "<{{ m.role }}>{{ m.content }}</>",
    "<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}</>",
)
THINKING = TURNS.replace("{{ m.content }}", "{% if loop.last %}(thinks){% endif %}{{ m.content }}")


def spec(**fields: Any) -> DatasetSpec:
    return DatasetSpec(path="./text", held_out_split="test", **fields)


def documents(dataset: DatasetSpec, template: str | None = TURNS) -> Documents:
    return Documents(dataset, "train", Letters(chat_tokenizer(template)), 4)


def tokens(dataset: DatasetSpec, *values: Any, template: str | None = TURNS) -> list[list[int]]:
    return documents(dataset, template).tokens(values, lambda index: f"row {index + 1}")


def text(ids: list[int]) -> str:
    """Tokens as text, with a bar in place of each that is not trained on."""
    return "".join("|" if token < 0 else chr(token) for token in ids)


def packed(dataset: DatasetSpec, *values: Any) -> list[list[int]]:
    reader = PackedTokens(dataset, "train", Letters(), 4, 1, repeat=False)
    return reader.pack([], reader.documents.tokens(values, str))[0]


def test_lists_of_ids_are_packed_like_text_and_none_gets_a_second_bos() -> None:
    assert packed(spec(), [7, 8], [BOS, 9, 10, 11, 12]) == [[BOS, 7, 8, BOS], [BOS, 9, 10, 11]]
    assert packed(spec(), "ab", "cd") == packed(spec(), [97, 98], [99, 100])


def test_lists_of_ids_that_are_kept_are_rows_as_they_are() -> None:
    assert packed(spec(rows="kept"), [BOS, 7, 8, 9, 10], [1, 2, 3, 4]) == [[BOS, 7, 8, 9], [1, 2, 3, 4]]


def test_a_list_that_is_shorter_than_the_row_that_it_is_to_be_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="row 2 has 3 tokens, fewer than context_size") as refused:
        tokens(spec(rows="kept"), [1, 2, 3, 4], [1, 2, 3])
    assert refused.value.param == "/stream/dataset/rows"


@pytest.mark.parametrize("token", [-1, 256, 1 << 40])
def test_an_id_that_the_model_does_not_have_is_named_with_its_row(token: int) -> None:
    with pytest.raises(InvalidSpec, match=rf"row 2 holds token {token}; the model's are 0 to 255"):
        tokens(spec(), [1, 2], [3, token])


def test_ids_need_no_tokenizer() -> None:
    class Bare(Letters):
        @property
        def bos(self) -> int:
            raise InvalidSpec("there is no tokenizer")

    dataset = spec(rows="kept")
    reader = PackedTokens(dataset, "train", Bare(), 4, 1, repeat=False)
    assert reader.pack([], reader.documents.tokens([[1, 2, 3, 4]], str))[0] == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"bytes", "holds values of type bytes; strings or lists of token ids are needed"),
        (5, "holds values of type int"),
        ([1.5, 2.0], "holds lists of float"),
        (["a", "b"], "holds lists of str"),
        ([True], "holds lists of bool"),
        ([{"from": "human", "value": "hi"}], "holds lists of dict"),
        (TALK, "dataset.chat: true"),
    ],
)
def test_what_is_no_document_is_refused_by_its_type(value: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        tokens(spec(), "text", value)
    assert "row 2 " in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(("fields", "value"), [({"chat": True}, "text"), ({"chat": True}, [1, 2]), ({"rows": "kept"}, "text")])
def test_documents_of_another_kind_than_the_spec_says_are_refused(fields: dict[str, Any], value: Any) -> None:
    with pytest.raises(InvalidSpec, match="are needed") as refused:
        tokens(spec(**fields), value)
    assert refused.value.param == "/stream/dataset/column"


def test_a_column_does_not_mix_texts_and_ids() -> None:
    with pytest.raises(InvalidSpec, match="row 2 holds lists of token ids, and rows before it strings"):
        tokens(spec(), "text", [1, 2])


def test_missing_values_are_left_out_and_counted() -> None:
    found = documents(spec())
    assert found.tokens([None, "ab", "", None], str) == [[97, 98]]
    assert (found.n_null, found.n_seen) == (2, 1)


def test_a_conversation_goes_through_the_chat_template() -> None:
    assert list(map(text, tokens(spec(chat=True), TALK))) == ["\x01<user>hi</><assistant>ho</>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [(TURNS, "|" * 23 + "ho</>" + "|" * 11), (MARKED, "|" * 23 + "ho" + "|" * 14)],
)
def test_only_the_assistants_turns_are_trained_on_if_that_is_asked_for(template: str, expected: str) -> None:
    (ids,) = tokens(spec(chat=True, train_on="assistant"), [USER, ANSWER, USER], template=template)
    assert text(ids) == expected
    assert text([max(token, ~token) for token in ids]) == "\x01<user>hi</><assistant>ho</><user>hi</>"


def test_fields_that_a_table_adds_to_a_message_do_not_reach_the_template() -> None:
    template = TURNS.replace("{{ m.content }}", "{{ m.content }}{% if m.name is defined %}!{% endif %}")
    assert tokens(spec(chat=True), [USER | {"name": None}], template=template) == tokens(spec(chat=True), [USER])


def test_a_tokenizer_without_a_template_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidSpec, match=r"no chat template.*chat_template\.jinja") as refused:
        documents(spec(chat=True), None)
    assert refused.value.param == "/stream/dataset/chat"
    with pytest.raises(InvalidSpec, match="no chat template"):
        Documents(spec(chat=True), "train", Letters(), 4)


@pytest.mark.parametrize(
    ("template", "train_on", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "all", "roles must alternate"),
        ("{{ messages[5].content }}", "all", "refused by the chat template"),
        (THINKING, "assistant", "message 2.*train_on: all"),
    ],
)
def test_a_conversation_that_the_template_does_not_fit_is_named(template: str, train_on: str, said: str) -> None:
    with pytest.raises(InvalidSpec, match=f"row 1 .*{said}"):
        tokens(spec(chat=True, train_on=train_on), [USER, ANSWER, USER, ANSWER], template=template)


@pytest.mark.parametrize(("fields", "at"), [({"train_on": "assistant"}, "train_on"), ({"chat": True, "rows": "kept"}, "rows")])
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as refused:
        spec(**fields)
    assert refused.value.errors()[0]["loc"] == (at,)


@pytest.mark.parametrize("value", ["text", [1, 2, 3], TALK])
def test_documents_of_any_kind_are_held_out_by_what_they_are(value: Any) -> None:
    dataset = DatasetSpec(path="./text", held_out_share=0.4, chat=value is TALK)
    copies = [value, *([value[0], value[-1], index] if value == [1, 2, 3] else value for index in range(3)), value]
    model = Letters(chat_tokenizer())
    found = [len(Documents(dataset, part, model, 4).tokens(copies, str)) for part in ("train", "held_out")]
    assert sum(found) == 5
    if value != [1, 2, 3]:
        assert 0 in found


@pytest.mark.parametrize(("row", "said"), [('{"text": null}', "are NULL or empty"), ('{"text": ""}', "are empty")])
def test_text_without_any_document_ends_at_once_with_its_column(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(f"{row}\n" * 200)
    dataset = DatasetSpec(path=str(file))
    reader = PackedTokens(dataset, "train", Letters(), 4, 1, repeat=True)
    with pytest.raises(DataNotFound, match=f"split 'train' of .* has no text in column 'text': its rows {said}") as refused:
        next(reader.read(Cursor()))
    assert refused.value.param == "/stream/dataset/column"
    packed = PackedTokens(dataset, "held_out", Letters(), 4, 1, repeat=False)
    assert "has no text in column 'text'" in _too_little(packed).message


@pytest.mark.parametrize(
    ("fields", "value", "hint"),
    [
        ({"chat": True}, "text", "or leave chat out."),
        ({"chat": True, "train_on": "assistant"}, "text", "or leave chat and train_on out."),
        ({"chat": True, "train_on": "assistant"}, [1, 2], "or leave chat and train_on out."),
        ({"rows": "kept"}, "text", "or leave rows out."),
        ({}, TALK, "read with dataset.chat: true."),
    ],
)
def test_the_hint_for_another_kind_of_column_names_the_fields_that_are_in_the_way(
    fields: dict[str, Any], value: Any, hint: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        tokens(spec(**fields), value)
    assert refused.value.hint.endswith(hint)
