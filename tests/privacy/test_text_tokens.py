"""Text to tokens and back."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from fhe_llm.privacy.text_tokens import joined, tokens_of


@given(st.text(max_size=20))
@example("İ ŉ ß ǅ ﬁ ½ ①")
def test_a_token_is_its_own_only_token(text: str) -> None:
    for token in tokens_of(text):
        assert tokens_of(token) == [token]


@given(st.lists(st.sampled_from(["ant", "7", ".", ",", "'", "(", ")", "-", "$", "#", "’"]), max_size=12))
def test_texts_of_drawn_words_read_the_same(tokens: list[str]) -> None:
    assert tokens_of(joined(tokens)) == [token for t in tokens for token in tokens_of(t)]


def test_marks_and_forms() -> None:
    assert tokens_of("It's  Ünïted\u200b, №5!") == ["it", "'", "s", "united", ",", "no5", "!"]
    assert tokens_of("snake_case \x00 ") == ["snake", "_", "case"]
    assert tokens_of("") == []
    assert joined(["where", "is", "it", "?", "(", "here", ")"]) == "where is it? (here)"
