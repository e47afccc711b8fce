"""Tokens to text, up to a stop sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxort.serve.text import TextStream


def run(pieces, stops):
    """What is sent, piece by piece, and whether a stop sequence was met."""
    stream = TextStream(lambda token: pieces[token], stops)
    sent = []
    for token in range(len(pieces)):
        sent.append(stream.push(token))
        if stream.stopped:
            return sent, True
    return [*sent, stream.rest()], False


@pytest.mark.parametrize(
    ("pieces", "stops", "sent", "stopped"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""], False),
        (["ab", "cd"], ["bc"], ["a", ""], True),  # across two tokens: the b was held back
        (["ab", "xd"], ["bc"], ["a", "bxd", ""], False),  # and is sent when it was none
        (["ab"], ["bc"], ["a", "b"], False),
        (["abcabd"], ["abd", "ca"], ["ab"], True),  # the first in the text, not in the list
        (["aab", "b"], ["aabb"], ["", ""], True),
        (["", "é"], ["é"], ["", ""], True),
    ],
)
def test_stop_sequences(pieces, stops, sent, stopped):
    assert run(pieces, stops) == (sent, stopped)


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_what_is_sent_ends_where_the_text_first_has_a_stop_sequence(pieces, stops):
    sent, stopped = run(pieces, stops)
    text = "".join(pieces)
    met = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(met)
    if not met:
        assert "".join(sent) == text
    else:
        assert text.startswith("".join(sent))
        assert not any(stop in "".join(sent) for stop in stops)
