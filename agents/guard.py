"""What stands before every call: the token, deadlines for both directions, and typed errors.

All calls, of whatever kind, are served as streams of bytes, so that nothing waits for a caller's
message without a deadline, nothing is decoded for a caller without the token, and a message that
cannot be decoded is answered like any other bad request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Callable, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from . import wire
from .errors import AgentError, BadRequest, ErrorKind, Internal, TimedOut
from .eventloop import within

log = logging.getLogger(__name__)

FIRST_MESSAGE_S = 10.0
"""A caller who opens a call sends its request within this time."""
NEXT_MESSAGE_S = 30.0
"""Between two messages of a caller's stream."""
WRITE_S = 20.0
"""A caller reads an answer within this time, or is dropped."""

_T = TypeVar("_T")
_END: Any = getattr(grpc.aio, "EOF")  # noqa: B009 - which its type stubs do not know
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_NO_TOKEN = "the agent wants a token, and another one than this"
_STATUS = {
    ErrorKind.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNSUPPORTED_OPERATOR: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAUTHORISED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.BOARD_NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
}


class Guard(grpc.aio.ServerInterceptor):
    """Lets callers with the token through, and serves their calls.

    Args:
        token: what callers must know; empty: nothing. Others are told the agent's health and no
            more, whatever they send, which is not read.
        stopping: set when the agent no longer serves.
    """

    def __init__(self, token: str, stopping: threading.Event) -> None:
        self._expected = f"Bearer {token}".encode() if token else None
        self._stopping = stopping

    async def intercept_service(
        self,
        continuation: Callable[..., Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if not self._lets_through(handler_call_details):
            health = handler_call_details.method == _HEALTH_CHECK
            return grpc.stream_stream_rpc_method_handler(self._tell_health if health else _refuse)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return grpc.stream_stream_rpc_method_handler(_Call(handler).serve)

    def _lets_through(self, details: Any) -> bool:
        if self._expected is None:
            return True
        given = dict(details.invocation_metadata or ()).get(wire.TOKEN_METADATA, "")
        given = given if isinstance(given, bytes) else given.encode("utf-8", "replace")
        return hmac.compare_digest(given, self._expected)

    async def _tell_health(self, requests: Any, context: Any) -> None:
        serving, status = not self._stopping.is_set(), health_pb2.HealthCheckResponse
        answer = status(status=status.SERVING if serving else status.NOT_SERVING)
        await context.write(answer.SerializeToString())


async def _refuse(requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _NO_TOKEN)


class _Call:
    """Serves one method, of any kind, as a stream of bytes."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def serve(self, requests: Any, context: Any) -> None:
        try:
            await self._serve(context)
        except AgentError as error:
            sent = wire.error_to_wire(error)
            status = _STATUS.get(ErrorKind(sent.kind), grpc.StatusCode.INTERNAL)
            await context.abort(status, sent.message)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except grpc.aio.BaseError as error:
            log.info("a caller is gone: %s", type(error).__name__)
        except Exception:
            log.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the agent failed; its log says why")

    async def _serve(self, context: Any) -> None:
        handler = self._handler
        if handler.request_streaming:
            argument: Any = self._messages(context)
            unary, stream = handler.stream_unary, handler.stream_stream
        else:
            argument = await self._only_message(context)
            unary, stream = handler.unary_unary, handler.unary_stream
        if unary is not None:
            await self._write(context, await unary(argument, context))
            return
        answers = stream(argument, context)
        try:
            async for answer in answers:
                await self._write(context, answer)
        finally:
            await answers.aclose()

    async def _only_message(self, context: Any) -> Any:
        raw = await _within(FIRST_MESSAGE_S, context.read(), "no request")
        if raw is _END:
            raise BadRequest("a call without a request")
        return self._decoded(raw)

    async def _messages(self, context: Any) -> AsyncIterator[Any]:
        limit_s = FIRST_MESSAGE_S
        while True:
            raw = await _within(limit_s, context.read(), "no further message")
            if raw is _END:
                return
            yield self._decoded(raw)
            limit_s = NEXT_MESSAGE_S

    def _decoded(self, raw: bytes) -> Any:
        try:
            return self._handler.request_deserializer(raw)
        except Exception as error:  # protobuf's own, which differ between its versions
            raise BadRequest("a request that cannot be read; is this another version?") from error

    async def _write(self, context: Any, answer: Any) -> None:
        raw = self._handler.response_serializer(answer)
        if len(raw) > wire.MAX_MESSAGE_BYTES:
            raise Internal(f"an answer of {len(raw)} bytes; at most {wire.MAX_MESSAGE_BYTES}")
        try:
            await within(WRITE_S, context.write(raw))
        except asyncio.TimeoutError:
            log.warning("a caller who reads no answers is dropped")
            raise asyncio.CancelledError from None


async def _within(limit_s: float, awaitable: Awaitable[_T], what: str) -> _T:
    try:
        return await within(limit_s, awaitable)
    except asyncio.TimeoutError:
        raise TimedOut(f"{what} within {limit_s:g} s") from None
