"""What a server sends, read within bounds: so many bytes, unpacked, and not one more; the rest is never taken in."""

import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai

from nbutils.core import keys
from nbutils.engines.protocol import Request

# An answer is read to `allowed` bytes, a refusal, of which a sentence is shown, to so many.
REFUSAL = 64 * 1024
LEAST, MOST = 1024**2, 16 * 1024**2
PER_TOKEN, PER_TOKEN_WITH_LOGPROBS = 256, 4096
HEADERS = {"Accept-Encoding": "gzip, deflate"}  # what can be unpacked a piece at a time


class GarbledReplyError(RuntimeError):
    """The server answered 200 with something that is no chat completion (an HTML page, half a JSON document)."""


def allowed(max_tokens: int, *, logprobs: bool) -> int:
    """Return how many bytes an answer of so many tokens can take."""
    return min(LEAST + max_tokens * (PER_TOKEN_WITH_LOGPROBS if logprobs else PER_TOKEN), MOST)


class Client(openai.DefaultAsyncHttpxClient):
    """An HTTP client for `openai.AsyncOpenAI` that reads at most `most` bytes of an answer, however it is packed."""

    most = LEAST

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and return its response with the body read.

        Raises:
            GarbledReplyError: if the body of a success is longer, or is no UTF-8.
        """
        response = await super().send(request, stream=True, **options)
        try:
            limit = self.most if response.is_success else REFUSAL
            body = b"".join([piece async for piece in _unpacked(response, limit + 1)])
        finally:
            await response.aclose()
        if response.is_success:
            if len(body) > limit:
                raise GarbledReplyError(f"expected a chat completion, got more than {limit:,} bytes")
            try:
                body.decode()
            except UnicodeDecodeError:
                raise GarbledReplyError(f"expected a chat completion, got no UTF-8: {body[:80]!r}") from None
        kept = {name: response.headers[name] for name in ("retry-after", "x-request-id") if name in response.headers}
        return type(response)(response.status_code, headers=kept, content=body[:limit], request=request)


def client(server: str, key: str, timeout: float, requests: Sequence[Request]) -> openai.AsyncOpenAI:
    """Return a client that asks a server once and reads no more than these requests can be answered with."""
    http = Client(**keys.alone(server, key))
    http.most = max((allowed(r.sampling.max_tokens, logprobs=r.logprobs) for r in requests), default=LEAST)
    return openai.AsyncOpenAI(base_url=server, api_key=key, max_retries=0, timeout=timeout, http_client=http)


async def _unpacked(response: Any, limit: int) -> AsyncIterator[bytes]:
    """Yield a body piece by piece until `limit` bytes are reached, where it ends.

    Raises:
        GarbledReplyError: if it is packed in a way that was not asked for, or not as it says.
    """
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise GarbledReplyError(f"expected a chat completion, got one packed as {packed[:20]!r}")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed not in ("", "identity") else None
    left = limit
    async for piece in response.aiter_raw():
        try:
            plain = unpack.decompress(piece, left) if unpack else piece[:left]
        except zlib.error as error:
            raise GarbledReplyError(f"expected a chat completion, got one that cannot be unpacked: {error}") from None
        yield plain
        left -= len(plain)
        if left <= 0:
            return
