"""One call to one provider account: signed, spaced out, judged, and tried again when that can help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import httpx
import orjson

from engine.auth import Authenticator, Signature
from engine.calls import Request
from engine.error_rules import Verdict, is_failure, judge, read_number, read_wait
from engine.errors import (
    AuthenticationError,
    ExpressionError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    StaleCursorError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.filling import plain_credentials, server_url
from engine.manifest import Action, Connector
from engine.pagination import Ceilings, absolute_url
from engine.ports import Clock, Credentials, CredentialSource, RateLimiter
from engine.transport import encode_body, encode_query, origin_of, with_query

T = TypeVar("T")

UNCOUNTED = 1000.0  # calls a second where only the answers say how many are left
LONGEST_PAUSE = 120.0  # seconds a run waits for a provider; told to wait longer, it ends and comes back later
HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "integration-hub",
}


@dataclass(frozen=True, slots=True)
class CallReport:
    """One HTTP exchange, for metrics and costs. `status` is None when there was no answer."""

    call: str  # method and path as the manifest writes them
    status: int | None
    seconds: float
    bytes: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered call. `body` is decoded JSON, None when empty, text when it failed and isn't JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any
    size: int = 0


class RefusedError(RecordRejectedError):
    """A refusal that concerns one record, with what the manifest says to do about it."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(
            verdict.message,
            status=verdict.status,
            provider_code=verdict.code,
            request_id=verdict.request_id,
            field=verdict.field,
        )
        self.action: Action = verdict.action


@dataclass(frozen=True, slots=True)
class Account:
    """What every call of these credentials shares; made anew when they change."""

    credentials: Credentials
    server: str
    signature: Signature
    headers: httpx.Headers = field(repr=False)  # those of every call, signature included
    scope: Mapping[str, Any] = field(repr=False)  # what templates see: connection, credentials
    budget: str
    rate: float | None
    hide: Sequence[str] = field(repr=False)


def whole(answer: Answer) -> Answer:
    """Read an answer as it is."""
    return answer


class Caller:
    """Calls one account. Counts every exchange in `calls` and every byte of the answers in `bytes_read`."""

    def __init__(
        self,
        connector: Connector,
        credentials: CredentialSource,
        *,
        http: httpx.AsyncClient,
        limiter: RateLimiter,
        clock: Clock,
        on_call: Callable[[CallReport], None] | None,
        ceilings: Ceilings,
        budget: str | None = None,
    ) -> None:
        self.calls = 0
        self.bytes_read = 0
        self._connector = connector
        self._credentials = credentials
        self._http = http
        self._limiter = limiter
        self._clock = clock
        self._on_call = on_call
        self._page_bytes = ceilings.page_bytes
        self._budget = budget
        self._account: Account | None = None

    async def account(self) -> Account:
        """Return what calls share now; refreshes credentials that are about to expire."""
        return self._account_of(await self._credentials.current())

    async def turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return what lets in one at a time of all that go by this name in this account."""
        account = await self.account()
        return self._limiter.slot(f"{account.budget} {name}", 1)

    async def call(
        self, label: str, request: Request, read: Callable[[Answer], T], *, writing: bool = False
    ) -> T:
        """Make a call and return what `read` makes of its answer.

        `label` names the call's budget. `read` may raise UnexpectedResponseError: the call is then tried
        again like after a server error. With `writing`, a refusal is one record's own and raises
        RefusedError. Raises AuthenticationError, RateLimitedError, UnavailableError, UnexpectedResponseError,
        StaleCursorError, or ProviderError for any other failure.
        """
        account = await self.account()
        refreshed = unclear = False  # unclear: an attempt may have been carried out though it looked failed
        attempt = 1
        while True:
            try:
                answer = await self._exchange(account, label, request, attempt)
                if not is_failure(self._connector.errors, answer.status, answer.body):
                    return read(answer)
            except (UnavailableError, UnexpectedResponseError):
                if attempt >= self._connector.retries.attempts:
                    raise
                unclear = True
                await self._pause(attempt)
                attempt += 1
                continue
            verdict = judge(
                self._connector.errors,
                answer.status,
                answer.headers,
                answer.body,
                writing=writing,
                now=self._clock.now(),
                hide=account.hide,
            )
            if verdict.action == "ignore":
                return read(Answer(answer.status, answer.headers, {}, answer.size))
            if verdict.action == "refresh_credentials" and not refreshed:
                refreshed = True
                account = self._account_of(await self._credentials.refresh(account.credentials))
                continue
            if verdict.action not in ("retry", "wait"):
                raise _failure(verdict, writing)
            unclear = unclear or verdict.action == "retry"
            await self._wait_out(verdict, account, label, attempt, unclear)
            attempt += 1

    async def _wait_out(
        self, verdict: Verdict, account: Account, label: str, attempt: int, unclear: bool
    ) -> None:
        """Wait before the next attempt, or raise when there is none: RateLimitedError means nothing was
        done.
        """
        wait = verdict.wait
        if wait is not None and verdict.action == "wait":
            await self._limiter.hold(f"{account.budget} {label}", wait)
            await self._limiter.hold(account.budget, wait)
        if attempt >= self._connector.retries.attempts or (wait or 0) > LONGEST_PAUSE:
            if not unclear:
                raise RateLimitedError(verdict.message, retry_after=wait, status=verdict.status)
            raise UnavailableError(
                verdict.message,
                status=verdict.status,
                provider_code=verdict.code,
                request_id=verdict.request_id,
            )
        await self._pause(attempt, wait)

    async def _pause(self, attempt: int, wait: float | None = None) -> None:
        """Wait as long as told, a little spread out; else twice as long each time, with full jitter."""
        retries = self._connector.retries
        if wait is None:
            seconds = (
                min(retries.longest_wait, retries.first_wait * 2 ** (attempt - 1)) * self._clock.random()
            )
        else:
            seconds = wait + retries.first_wait * self._clock.random()
        await self._clock.sleep(seconds)

    async def _exchange(self, account: Account, label: str, request: Request, attempt: int) -> Answer:
        """Make one exchange; raises UnavailableError without an answer, UnexpectedResponseError for
        nonsense.
        """
        connector = self._connector
        content, content_type = encode_body(request.body, connector.encoding)
        headers = account.headers
        if request.headers or content_type:
            kind = {"Content-Type": content_type} if content_type else {}
            headers = account.headers.copy()
            headers.update({**kind, **request.headers, **account.signature.headers})
        url = _url(request, account, connector.encoding)
        if account.rate is not None:
            await self._limiter.acquire(account.budget, account.rate, _burst(account.rate))
        each_call = connector.limits.each_call
        if each_call is not None:
            await self._limiter.acquire(f"{account.budget} {label}", each_call, _burst(each_call))
        status, size, started = None, 0, 0.0
        async with self._limiter.slot(account.budget, connector.limits.concurrent):
            started = self._clock.monotonic()
            self.calls += 1
            try:
                response = None
                async with asyncio.timeout(connector.retries.timeout):
                    sent = httpx.Request(request.method, url, headers=headers, content=content)
                    response = await self._http.send(sent, stream=True)
                    status = response.status_code
                    raw = await self._read(response)
                    size = response.num_bytes_downloaded
            except (httpx.TimeoutException, TimeoutError):
                seconds = connector.retries.timeout
                raise UnavailableError(f"the provider did not answer within {seconds:g} seconds") from None
            except httpx.DecodingError:
                raise UnexpectedResponseError(
                    "the provider's answer can't be decoded", status=status
                ) from None
            except httpx.TransportError as error:
                reason = "closed the connection" if response or status else "can't be reached"
                if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
                    reason = "closed the connection"
                raise UnavailableError(f"the provider {reason}") from None
            except httpx.InvalidURL:
                raise ManifestError(f"`{label}` doesn't lead to an address that can be called") from None
            finally:
                self.bytes_read += size
                if self._on_call is not None:
                    seconds = self._clock.monotonic() - started
                    self._on_call(CallReport(label, status, seconds, size, attempt))
        await self._lower(account, response.headers)
        return Answer(status, response.headers, _decode(raw, status), size)

    async def _lower(self, account: Account, headers: Mapping[str, str]) -> None:
        """Tell the limiter what an answer says of the budget."""
        places = self._connector.limits.read
        remaining = read_number(headers.get(places.remaining.name)) if places else None
        if places is None or remaining is None:
            return
        said = headers.get(places.reset.name) if places.reset else None
        wait = read_number(said) if places.reset_is == "seconds" else read_wait(said, self._clock.now())
        await self._limiter.lower(account.budget, max(0, int(remaining)), wait)

    async def _read(self, response: httpx.Response) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in response.aiter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > self._page_bytes:
                    limit = self._page_bytes // 2**20
                    raise ProviderError(
                        f"the provider's answer is larger than {limit} MiB", status=response.status_code
                    )
        finally:
            await response.aclose()
        return b"".join(chunks)

    def _account_of(self, credentials: Credentials) -> Account:
        if self._account is not None and self._account.credentials is credentials:
            return self._account
        connector, environment = self._connector, credentials.environment
        authenticator = Authenticator.choose(connector, credentials)
        scope = {
            "connection": dict(credentials.connection),
            "credentials": plain_credentials(authenticator.method, credentials),
        }
        signature = authenticator.sign(credentials)
        written = connector.headers.render(scope) if connector.headers else {}
        headers = {name: str(value) for name, value in written.items() if value is not None}
        self._account = Account(
            credentials=credentials,
            server=server_url(
                connector, environment, {**scope, **scope["credentials"], **scope["connection"]}
            ),
            signature=signature,
            headers=httpx.Headers({**HEADERS, **headers, **signature.headers}),
            scope=scope,
            budget=f"{connector.name} {environment} {_who(connector, credentials, self._budget)}",
            rate=connector.limits.requests.get(environment, UNCOUNTED if connector.limits.read else None),
            hide=_hidden(credentials),
        )
        return self._account


def _hidden(credentials: Credentials) -> list[str]:
    """Return what no message may show, longest first; a very short value would only garble messages."""
    values = (secret.reveal() for secret in credentials.values.values())
    return sorted((value for value in values if len(value) >= 4), key=len, reverse=True)


def _who(connector: Connector, credentials: Credentials, unnamed: str | None) -> str:
    """Name the account whose budget calls come from: its id, or else what the client was given for it."""
    if connector.account is not None:
        try:
            named = connector.account.evaluate(credentials.connection, {"connection": credentials.connection})
        except ExpressionError:
            named = None
        if isinstance(named, str | int) and named:
            return str(named)
    if unnamed is not None:
        return unnamed
    values = "\n".join(secret.reveal() for _, secret in sorted(credentials.values.items()))
    return sha256(values.encode()).hexdigest()[:16]


def _url(request: Request, account: Account, encoding: str) -> str:
    url = absolute_url(request.url, account.server)
    if url is request.url and origin_of(url) != origin_of(account.server):
        raise ProviderError("a call would carry the credentials to another server")
    return with_query(url, [*encode_query(request.query, encoding), *account.signature.query.items()])


def unsigned(request: Request, signature: Signature) -> Request:
    """Return a request without the key its address carries: a link to the next page may repeat it."""
    path, mark, query = request.url.partition("?")
    if not mark or not signature.query:
        return request
    kept = [each for each in parse_qsl(query, True) if each[0] not in signature.query]
    return replace(request, url=with_query(path, kept))


def _burst(rate: float) -> float:
    """Return how many calls may go at once: few, so that no second sees much more than `rate`."""
    return 1 + rate / 10


def _decode(raw: bytes, status: int) -> Any:
    if not raw.strip():
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        if 200 <= status < 300:
            raise UnexpectedResponseError("the provider's answer isn't JSON", status=status) from None
        return raw[:4096].decode("utf-8", "replace")


_ENDS_THE_RUN: Mapping[Action, type[ProviderError]] = {
    "refresh_credentials": AuthenticationError,  # it was refreshed already
    "reconnect": AuthenticationError,
    "restart_read": StaleCursorError,
    "fail": ProviderError,
}


def _failure(verdict: Verdict, writing: bool) -> ProviderError:
    kind = _ENDS_THE_RUN.get(verdict.action)
    if kind is None and writing:
        return RefusedError(verdict)
    return (kind or ProviderError)(
        verdict.message,
        status=verdict.status,
        provider_code=verdict.code,
        request_id=verdict.request_id,
        field=verdict.field,
    )
