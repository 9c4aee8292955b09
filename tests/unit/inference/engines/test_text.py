from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from placet.inference.engines.text import Detokenizer, StopFilter


def by_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def streamed(detokenizer: Detokenizer, tokens: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in tokens), detokenizer.end()]


@given(st.text())
def test_whole_characters_come_out_whole_and_at_once(text: str) -> None:
    detokenizer, raw = Detokenizer(by_bytes), text.encode()
    pieces = streamed(detokenizer, raw)
    assert "".join(pieces) == text
    if "�" not in text:
        assert "�" not in "".join(pieces)
        assert pieces[-1] == "", "a character that is whole is not held back"


@given(st.lists(st.integers(0, 255), max_size=80))
@example([0x80] * 60)
@example([0xF0, 0x9F, 0x8E] * 20)
def test_bytes_that_make_no_character_end_as_they_decode(tokens: list[int]) -> None:
    assert "".join(streamed(Detokenizer(by_bytes), tokens)) == by_bytes(tokens)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_the_window_is_short_however_long_the_text(tokens: list[int]) -> None:
    longest = 0

    def decode(window: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(window))
        return by_bytes(window)

    streamed(Detokenizer(decode), tokens * 3)
    assert longest <= 65


def test_a_balloon_over_four_tokens() -> None:
    assert streamed(Detokenizer(by_bytes), "a🎈b".encode()) == ["a", "", "", "", "🎈", "b", ""]


def test_a_decoder_that_falls_back_to_bytes_and_strips_the_first_space() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁the": 256, "▁cat": 257, "s": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokens = [256, 257, 258, *"日本🎈".encode(), *[256, 257] * 20]
    assert "".join(streamed(Detokenizer(tokenizer.decode), tokens)) == "the cats日本🎈" + " the cat" * 20


def test_the_test_models_tokenizer_too(model: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.from_file(str(model("language_model") / "tokenizer.json"))
    text = "the quick 🎈 Grüße 日本語 " * 10
    pieces = streamed(Detokenizer(tokenizer.decode), tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


# --- stop strings


def filtered(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    stop_filter, out = StopFilter(stops), []
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        out.append(text)
        if stopped:
            return out, True
    return [*out, stop_filter.end()], False


@pytest.mark.parametrize(
    ("stops", "text", "wanted"),
    [
        (["STOP"], "go STOP more", "go "),
        (["STOP"], "go STO", "go STO"),
        (["aab"], "aaab", "a"),
        (["bcd", "abcdef"], "abcdef", "a"),
        (["bcd", "abcd"], "abcd", ""),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
        (["🎈"], "up 🎈", "up "),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_text_ends_before_its_stop_string_however_it_is_cut_into_pieces(stops: list[str], text: str, wanted: str, size: int) -> None:
    pieces, stopped = filtered(stops, [text[at : at + size] for at in range(0, len(text), size)])
    assert "".join(pieces) == wanted
    assert stopped == (wanted != text)


ab = st.text("ab", min_size=1, max_size=4)


@given(st.lists(ab, min_size=1, max_size=3), st.lists(st.text("ab", max_size=3), max_size=12))
def test_no_piece_ever_holds_a_stop_string_or_its_beginning(stops: list[str], pieces: list[str]) -> None:
    out, stopped = filtered(stops, pieces)
    told, text = "".join(out), "".join(pieces)
    assert text.startswith(told)
    assert not any(stop in told for stop in stops)
    complete = min((at + len(stop) for stop in stops if (at := text.find(stop)) >= 0), default=None)
    assert stopped == (complete is not None)
    if complete is not None:
        assert told == text[: min(complete - len(stop) for stop in stops if text[:complete].endswith(stop))]
    else:
        assert told == text
