"""One call to one provider account: signed, spaced out, judged, and tried again when that can help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
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
    HubError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    RecordRejectedError,
    SilentProviderError,
    StaleCursorError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.filling import plain_credentials, server_url
from engine.manifest import Action, Connector
from engine.pagination import Ceilings, absolute_url
from engine.ports import Clock, Credentials, CredentialSource, RateLimiter
from engine.rate_limits import LONGEST_WAIT
from engine.transport import encode_body, encode_query, origin_of, with_query

T = TypeVar("T")

UNANSWERED_CALLS = 5  # in a row: by then it is the provider, whatever the records
LONGEST_WINDOW = 31 * 86_400.0  # seconds that a count of calls may be for
UNCOUNTED = 1000.0  # calls a second where only the answers say how many are left
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
class Quota:
    """What a provider said is left of the account's calls, when it did, and when there will be more."""

    remaining: int
    said_at: datetime
    resets_at: datetime | None = None


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
class _Prepared:
    """A request as it is sent, signature and all."""

    method: str
    url: str = field(repr=False)
    headers: httpx.Headers = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Home:
    """Where the account is, and what goes with every call there."""

    server: str
    headers: httpx.Headers = field(repr=False)  # signature included
    query: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Account:
    """What every call of these credentials shares; made anew when they change."""

    credentials: Credentials
    method: str  # the name of the way to sign
    found: Home | HubError = field(repr=False)  # or why it isn't known
    signature: Signature
    scope: Mapping[str, Any] = field(repr=False)  # what templates see: connection, credentials
    budget: str
    rate: float | None
    hide: Sequence[str] = field(repr=False)

    @property
    def home(self) -> Home:
        """Return where the account is; raises ManifestError or ExpressionError that name what isn't known."""
        if isinstance(self.found, HubError):
            raise type(self.found)(self.found.message)
        return self.found

    @property
    def server(self) -> str:
        """Return the address that calls are below; raises as `home` does."""
        return self.home.server


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
        self.quota: Quota | None = None  # as the last answer that told one had it
        self.answered_in: float | None = None  # seconds, the last answer
        self._unanswered = 0  # calls in a row, each tried as often as it may be
        self._connector = connector
        self._credentials = credentials
        self._http = http
        self._limiter = limiter
        self._clock = clock
        self._on_call = on_call
        self._page_bytes = ceilings.page_bytes
        self._budget = budget
        self._learned: dict[str, Any] = {}
        self._account: Account | None = None

    async def account(self) -> Account:
        """Return what calls share now; refreshes credentials that are about to expire."""
        return self._account_of(await self._credentials.current())

    async def turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return what lets in one at a time of all that go by this name in this account."""
        account = await self.account()
        return self._limiter.slot(f"{account.budget} {name}", 1)

    def learn(self, values: Mapping[str, Any]) -> None:
        """Take values for `connection` that were found out after the credentials were given."""
        self._learned.update(values)
        self._account = None

    async def call(
        self,
        label: str,
        request: Request,
        read: Callable[[Answer], T],
        *,
        writing: bool = False,
        repeatable: bool = True,
        elsewhere: bool = False,
        signed: bool = True,
    ) -> T:
        """Make a call and return what `read` makes of its answer.

        `label` names the call's budget. `read` may raise UnexpectedResponseError: the call is then tried
        again like after a server error. With `writing`, a refusal is one record's own and raises
        RefusedError. Unless it is `repeatable`, it is tried again only when surely nothing was done.
        `elsewhere` allows an address that isn't the account's server, because the manifest
        itself writes it; unless `signed`, the call carries the headers of the request alone. Raises
        AuthenticationError, RateLimitedError, UnavailableError, UnexpectedResponseError, StaleCursorError, or
        ProviderError for any other failure; SilentProviderError for a call without an answer after others.
        """
        account = await self.account()
        refreshed = unclear = False  # unclear: an attempt may have been carried out though it looked failed
        attempt, attempts = 1, self._connector.retries.attempts
        while True:
            try:
                prepared = self._prepared(account, request, elsewhere, signed)
                answer = await self._exchange(account, label, prepared, attempt)
                if not is_failure(self._connector.errors, answer.status, answer.body):
                    return read(answer)
            except (
                RateLimitedError
            ) as error:  # before it was sent: the limiter knows that it had to wait long
                if not unclear:
                    raise
                raise UnavailableError(error.message) from None
            except (UnavailableError, UnexpectedResponseError) as error:
                if attempt >= attempts or not repeatable:
                    raise self._given_up(error) from None
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
            last = attempt >= attempts or (unclear and not repeatable)
            await self._wait_out(verdict, account, label, attempt, last, unclear)
            attempt += 1

    def _given_up(self, error: ProviderError) -> ProviderError:
        """Return what a call raises that is given up: after several without an answer, what ends the run."""
        self._unanswered += 1
        if self._unanswered < UNANSWERED_CALLS:
            return error
        return SilentProviderError(f"{error.message}, as for {self._unanswered - 1} calls before")

    async def _wait_out(
        self, verdict: Verdict, account: Account, label: str, attempt: int, last: bool, unclear: bool
    ) -> None:
        """Wait before the next attempt, or raise when it was the last: RateLimitedError means nothing was
        done.
        """
        wait = verdict.wait
        if wait is not None and verdict.action == "wait":
            await self._limiter.hold(f"{account.budget} {label}", wait)
            await self._limiter.hold(account.budget, wait)
        if last or (wait or 0) > LONGEST_WAIT:
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

    def _prepared(self, account: Account, request: Request, elsewhere: bool, signed: bool) -> _Prepared:
        """Return the request as it is sent; raises ProviderError for an address that isn't the account's."""
        encoding = self._connector.encoding
        content, content_type = encode_body(request.body, encoding)
        signature = account.signature if signed else Signature()
        query = dict(request.query)
        if elsewhere and absolute_url(request.url, "") == request.url:
            url, headers = request.url, httpx.Headers({**HEADERS, **signature.headers})
        else:
            home = account.home
            url, headers = absolute_url(request.url, home.server), home.headers
            if url is request.url and origin_of(url) != origin_of(home.server):
                raise ProviderError("a call would carry the credentials to another server")
            query = {**{name: each for name, each in home.query.items() if not _has(url, name)}, **query}
        if request.headers or content_type:
            kind = {"Content-Type": content_type} if content_type else {}
            headers = headers.copy()
            headers.update({**kind, **request.headers, **signature.headers})
        url = with_query(url, [*encode_query(query, encoding), *signature.query.items()])
        return _Prepared(request.method, url, headers, content)

    async def _exchange(self, account: Account, label: str, request: _Prepared, attempt: int) -> Answer:
        """Make one exchange; raises UnavailableError without an answer, UnexpectedResponseError for
        nonsense.
        """
        connector = self._connector
        if account.rate is not None:
            await self._limiter.acquire(account.budget, account.rate, _burst(account.rate))
        each_call = connector.limits.calls.get(label, connector.limits.each_call)
        if each_call is not None:
            await self._limiter.acquire(f"{account.budget} {label}", each_call, _burst(each_call))
        status, size, started = None, 0, 0.0
        async with self._limiter.slot(account.budget, connector.limits.concurrent):
            started = self._clock.monotonic()
            self.calls += 1
            try:
                response = None
                async with asyncio.timeout(connector.retries.timeout):
                    sent = httpx.Request(
                        request.method, request.url, headers=request.headers, content=request.content
                    )
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
        self.answered_in = self._clock.monotonic() - started
        self._unanswered = 0
        await self._lower(account, response.headers)
        return Answer(status, response.headers, _decode(raw, status), size)

    async def _lower(self, account: Account, headers: Mapping[str, str]) -> None:
        """Tell the limiter what an answer says of the budget."""
        places = self._connector.limits.read
        remaining = read_number(headers.get(places.remaining.name)) if places else None
        if places is None or remaining is None:
            return
        said, now = headers.get(places.reset.name) if places.reset else None, self._clock.now()
        wait = read_number(said) if places.reset_is == "seconds" else read_wait(said, now)
        left = max(0, int(remaining))
        resets_at = None if wait is None else now + timedelta(seconds=min(max(wait, 0), LONGEST_WINDOW))
        self.quota = Quota(left, now, resets_at)
        await self._limiter.lower(account.budget, left, wait)

    async def download(self, label: str, url: str) -> bytes:
        """Return a file from wherever it lies, fetched without credentials; its address is the permission.

        Raises UnavailableError when the place is away, UnexpectedResponseError when there is nothing to be
        had under the address.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("https", "http") or not parsed.host or parsed.userinfo:
            raise UnexpectedResponseError("the address of a file can't be called")
        request = httpx.Request(
            "GET", parsed, headers={**HEADERS, "Accept": "*/*", "Accept-Encoding": "identity"}
        )
        for attempt in range(1, self._connector.retries.attempts + 1):
            status, raw = await self._fetch(label, request, attempt)
            if status == 200:
                return raw
            if status is not None and status != 429 and status < 500:
                raise UnexpectedResponseError("a file of results can't be fetched", status=status)
            if attempt < self._connector.retries.attempts:
                await self._pause(attempt)
        raise UnavailableError("a file of results can't be fetched", status=status)

    async def _fetch(self, label: str, request: httpx.Request, attempt: int) -> tuple[int | None, bytes]:
        status, raw, started = None, b"", self._clock.monotonic()
        self.calls += 1
        try:
            async with asyncio.timeout(self._connector.retries.timeout):
                response = await self._http.send(request, stream=True)
                status, raw = response.status_code, await self._read(response)
        except (httpx.TransportError, httpx.DecodingError, TimeoutError):
            status = None
        except ProviderError as error:
            raise UnexpectedResponseError(error.message, status=status) from error
        finally:
            self.bytes_read += len(raw)
            if self._on_call is not None:
                seconds = self._clock.monotonic() - started
                self._on_call(CallReport(label, status, seconds, len(raw), attempt))
        return status, raw

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
        connection = {**credentials.connection, **self._learned}
        scope = {
            "connection": connection,
            "credentials": plain_credentials(authenticator.method, credentials),
        }
        signature = authenticator.sign(credentials)
        self._account = Account(
            credentials=credentials,
            method=authenticator.method.name,
            found=_home(connector, environment, signature, scope),
            signature=signature,
            scope=scope,
            budget=f"{connector.name} {environment} {_who(connector, credentials, connection, self._budget)}",
            rate=connector.limits.requests.get(environment, UNCOUNTED if connector.limits.read else None),
            hide=_hidden(credentials),
        )
        return self._account


def _home(
    connector: Connector, environment: str, signature: Signature, scope: Mapping[str, Any]
) -> Home | HubError:
    """Return where the account is, or the error that says what isn't known of it yet."""
    try:
        server = server_url(connector, environment, {**scope, **scope["credentials"], **scope["connection"]})
        written = connector.headers.render(scope) if connector.headers else {}
        query = connector.query.render(scope) if connector.query else {}
    except (ManifestError, ExpressionError) as error:
        return error
    headers = {name: str(value) for name, value in written.items() if value is not None}
    return Home(server, httpx.Headers({**HEADERS, **headers, **signature.headers}), query)


def _hidden(credentials: Credentials) -> list[str]:
    """Return what no message may show, longest first; a very short value would only garble messages."""
    values = (secret.reveal() for secret in credentials.values.values())
    return sorted((value for value in values if len(value) >= 4), key=len, reverse=True)


def _who(
    connector: Connector, credentials: Credentials, connection: Mapping[str, Any], unnamed: str | None
) -> str:
    """Name the account whose budget calls come from: its id, or else what the client was given for it."""
    if connector.account is not None:
        try:
            named = connector.account.evaluate(connection, {"connection": connection})
        except ExpressionError:
            named = None
        if isinstance(named, str | int) and named:
            return str(named)
    if unnamed is not None:
        return unnamed
    values = "\n".join(secret.reveal() for _, secret in sorted(credentials.values.items()))
    return sha256(values.encode()).hexdigest()[:16]


def _has(url: str, name: str) -> bool:
    """Say whether an address carries a parameter: a link to the next page may repeat those of every call."""
    _, mark, query = url.partition("?")
    return bool(mark) and any(each == name for each, _ in parse_qsl(query, True))


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
