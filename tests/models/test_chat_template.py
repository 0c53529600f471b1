"""Chat prompts: the template's control tokens and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CHAT_TEMPLATE, SPECIALS

from fhe_llm.errors import ModelError
from fhe_llm.models.chat_template import ChatTemplate
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import TextTokenizer

VECTORS = Path(__file__).parent.parent / "vectors" / "smollm2_135m.json"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> TextTokenizer:
    return TextTokenizer(open_gguf(tiny_model_path).tokenizer)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def control(ids: list[int]) -> list[int]:
    return [i for i in ids if i < len(SPECIALS)]


FRAGMENTS = st.lists(
    st.sampled_from([*SPECIALS, "<", "<|", "im_", "end|>", "|>", "<|im_start", "a", " ", "\n", "system"]),
    max_size=8,
).map("".join)


@given(contents=st.lists(st.one_of(FRAGMENTS, st.text(max_size=20)), min_size=1, max_size=3))
def test_contents_never_become_control_tokens(tokenizer: TextTokenizer, contents: list[str]) -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": content} for content in contents]
    ids = template.encode(tokenizer, messages)
    assert control(ids) == [1, 2] * len(contents) + [1]
    assert tokenizer.decode(ids, skip_special=False) == template.render(messages)


def test_contents_that_the_template_joins_cannot_form_a_control_token(tokenizer: TextTokenizer) -> None:
    template = ChatTemplate("<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>")
    ids = template.encode(tokenizer, [*user("<|im_"), *user("start|>")])
    assert control(ids) == [1, 2]
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|><|im_start|><|im_end|>"


def test_roles_and_other_keys_are_contents_too(tokenizer: TextTokenizer) -> None:
    ids = ChatTemplate(CHAT_TEMPLATE).encode(tokenizer, [{"role": "<|im_end|>", "content": "x"}])
    assert control(ids) == [1, 2, 1]


@given(content=st.text(alphabet="ab <|_>\n12", max_size=30))
def test_ordinary_contents_are_encoded_as_transformers_would(tokenizer: TextTokenizer, content: str) -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    assert template.encode(tokenizer, user(content)) == tokenizer.encode(template.render(user(content)))


def test_messages_are_not_changed(tokenizer: TextTokenizer) -> None:
    messages = user("<|im_end|>")
    ChatTemplate(CHAT_TEMPLATE).encode(tokenizer, messages)
    assert messages == user("<|im_end|>")


def test_environment_is_that_of_transformers() -> None:
    source = (
        "{%- for m in messages %}\n    {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {% if true %}\n{{ m | tojson }}{{ bos_token }}{{ strftime_now('%Y') | length }}\n    "
        "{% endif %}\n"
        "{%- endfor %}"
    )
    template = ChatTemplate(source, bos_token="<s>")
    assert template.render(user("é<")) == '{"role": "user", "content": "é<"}<s>4\n'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ range(10 ** 9) | list }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'other' %}",
        "{% for %}",
        "{{",
    ],
)
def test_bad_templates_are_typed_errors(source: str) -> None:
    with pytest.raises(ModelError, match=r"^cannot (render|compile) chat"):
        ChatTemplate(source).render(user("x"))


def test_the_templates_own_complaint_is_shown() -> None:
    with pytest.raises(ModelError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(user("x"))


def test_messages_without_content_are_a_typed_error() -> None:
    with pytest.raises(ModelError, match="cannot render chat"):
        ChatTemplate(CHAT_TEMPLATE).render([{"role": "user", "content": None}])


@pytest.mark.slow
def test_prompts_equal_those_of_transformers(smollm2_path: Path) -> None:
    data = open_model(smollm2_path).tokenizer
    vectors, tokenizer = json.loads(VECTORS.read_text()), TextTokenizer(data)
    assert data.chat_template == vectors["chat_template"]
    template = ChatTemplate(data.chat_template)
    for prompt in vectors["prompts"]:
        assert template.render(prompt["messages"]) == prompt["prompt_text"]
        assert template.encode(tokenizer, prompt["messages"]) == prompt["prompt_ids"]
