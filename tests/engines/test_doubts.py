"""engines/doubts.py: what is odd about a server's replies is said, with how often."""

import pytest

from nbutils.core.errors import InputError
from nbutils.core.sampling import Sample
from nbutils.engines import doubts
from nbutils.engines.protocol import Reply


def good(prompt_tokens=9, notes=()):
    return Reply((Sample("Po.", 3),), prompt_tokens, 3, notes=notes)


BAD = Reply((), refused="413: Payload Too Large")


def test_refused_requests_are_taken_out_counted_and_named_with_their_reason(caplog):
    kept, odd = doubts.answered([good(), BAD, None, BAD, good()])
    assert kept == [good(), None, None, None, good()]
    assert odd == {"refused": 2, "doubts": ["2 of 5 requests were refused: 413: Payload Too Large"]}
    assert odd["doubts"][0] in caplog.text


@pytest.mark.parametrize("replies", [[BAD], [BAD, None], [None]])
def test_where_nothing_was_answered_it_is_said_why(replies):
    with pytest.raises(InputError, match=r"no request was answered: (.*Payload Too Large|try again later)"):
        doubts.answered(replies)


def test_nothing_asked_or_nothing_odd_is_nothing_to_say(caplog):
    assert doubts.answered([]) == ([], {"refused": 0, "doubts": []})
    assert doubts.answered([good()]) == ([good()], {"refused": 0, "doubts": []})
    assert not caplog.records


def test_notes_are_counted_and_many_kinds_of_them_are_not_all_said():
    replies = [
        good(notes=("without a seed",)),
        good(notes=("without a seed", "by a model that calls itself x")),
        good(),
    ]
    assert doubts.of(replies) == [
        "2 of 3 replies are without a seed",
        "1 of 3 replies are by a model that calls itself x",
    ]
    assert len(doubts.of([good(notes=(f"note {i}",)) for i in range(100)])) == doubts.SHOWN


@pytest.mark.parametrize(("tokens", "cut"), [([4096] * 3 + [100], True), ([4096, 4096], False), ([5000] * 5, False)])
def test_prompts_that_seem_cut_are_pointed_out(tokens, cut):
    assert any("may cut" in line for line in doubts.of([good(n) for n in tokens])) == cut
