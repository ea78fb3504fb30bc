"""Which failed requests to a server are tried again, and after how long."""

import email.utils
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from nbutils.engines.refusals import brief
from nbutils.engines.wire import GarbledReplyError

log = logging.getLogger(__name__)

# Longest wait in seconds between two tries, also where the server's Retry-After asks for more.
LONGEST_WAIT = 60.0


def until(ending: Callable[[], bool], tries: int, first: float) -> AsyncRetrying:
    """Return what tries a request so many times, or until the run is ending.

    Args:
        first: seconds before the second try.
    """
    return AsyncRetrying(
        stop=lambda state: ending() or stop_after_attempt(tries)(state),
        wait=partial(pause, first=first),
        retry=retry_if_exception(worth_retrying),
        before_sleep=_note,
    )


def _note(state: RetryCallState) -> None:
    log.debug("retrying after: %s", brief(state.outcome.exception() if state.outcome else None))


def worth_retrying(error: BaseException) -> bool:
    """Tell whether the same request may be answered at the next try."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
    return isinstance(error, GarbledReplyError | openai.APIError | TimeoutError)


def pause(state: RetryCallState, *, first: float) -> float:
    """Return the seconds to wait before the next try: twice as long each time, or as long as the server asks.

    Args:
        first: seconds before the first one, and the range of the jitter.
    """
    error = state.outcome.exception() if state.outcome else None
    asked = retry_after(error) if isinstance(error, openai.APIStatusError) else 0.0
    waited = wait_exponential(multiplier=first, max=LONGEST_WAIT)(state)
    return min(max(asked, waited), LONGEST_WAIT) + wait_random(0, first)(state)


def retry_after(error: openai.APIStatusError) -> float:
    """Return the seconds a server asks to wait, given as a number or a date; 0 where it says nothing readable."""
    value = error.response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))  # in this order "nan" is 0
    with suppress(Exception):  # a date can be wrong in more ways than one
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return 0.0
