"""Sign requests, and walk OAuth's authorization code grant: authorize, exchange, refresh, revoke.

Nothing here keeps a token: a `Grant` goes back to the caller, who must save it before using it, since many
providers end the old refresh token with the same answer.

To add a type of signing: write a function from credential values to a `Signature` and name it in TYPES.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

import httpx
import orjson

from engine.clock import SystemClock
from engine.errors import (
    AuthenticationError,
    ExpressionError,
    ManifestError,
    ProviderError,
    RateLimitedError,
    UnavailableError,
    UnexpectedResponseError,
)
from engine.expressions import Expression, Path
from engine.filling import fill_path, misfits, server_url
from engine.manifest import AuthMethod, CallSpec, Connector, OAuth
from engine.ports import Clock, Credentials, Secret
from engine.transport import encode_body, form_text, rewrite_origin, with_query

LONGEST_MESSAGE = 500  # characters of a provider's own words
LONGEST_CALL = 30.0  # seconds, however slowly the answer comes
LONGEST_WAIT = 86_400.0  # seconds; whoever is told to wait longer asks again
LONGEST_CODE = 100  # characters of a provider's own code
LARGEST_ANSWER = 2**20  # bytes
MILLISECONDS = 10**11  # a moment above it is counted in them: in seconds it would be the year 5138
FORM = "application/x-www-form-urlencoded"
DEAD = ("invalid_token", "invalid_grant", "token_expired", "token_revoked")  # of a token that is over
REFUSED = ("invalid_client", "unauthorized_client", "unsupported_token_type")  # of a call that isn't right


@dataclass(frozen=True, slots=True)
class Signature:
    """What signing adds to a request. It holds secrets: it is never logged or stored."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What an authorization server granted. `connection` holds the plain values the manifest keeps of it.

    A moment that is None isn't known, or never comes.
    """

    access_token: Secret
    refresh_token: Secret | None
    expires_at: datetime | None
    scopes: tuple[str, ...]
    connection: Mapping[str, Any] = field(default_factory=dict)
    refresh_expires_at: datetime | None = None


# ------------------------------------------------------------------------------------------- signing


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Signs the requests of one authentication method."""

    method: AuthMethod

    @classmethod
    def choose(cls, connector: Connector, credentials: Credentials) -> Authenticator:
        """Return the authenticator these credentials are for; raises ManifestError when there is none."""
        if credentials.method is None and len(connector.auth) == 1:
            return cls(connector.auth[0])
        for method in connector.auth:
            if credentials.method in (method.name, method.type):
                return cls(method)
        raise ManifestError(f"{connector.name} has no authentication method `{credentials.method}`")

    def sign(self, credentials: Credentials) -> Signature:
        """Return what to add to every request; raises AuthenticationError when a credential is missing."""
        values = {name: secret.reveal() for name, secret in credentials.values.items()}
        return TYPES[self.method.type](self.method, values)


def _none(method: AuthMethod, values: Mapping[str, str]) -> Signature:
    return Signature()


def _bearer(method: AuthMethod, values: Mapping[str, str]) -> Signature:
    return Signature(headers={"Authorization": f"Bearer {_value(method.token, values, method)}"})


def _oauth2(method: AuthMethod, values: Mapping[str, str]) -> Signature:
    token = values.get("access_token")
    if not token:
        raise AuthenticationError("there is no access token yet; connect first")
    return Signature(headers={"Authorization": f"Bearer {token}"})


def _basic(method: AuthMethod, values: Mapping[str, str]) -> Signature:
    username = _value(method.username, values, method)
    password = _value(method.password, values, method) if method.password else ""
    return Signature(headers={"Authorization": _basic_header(username, password)})


def _api_key(method: AuthMethod, values: Mapping[str, str]) -> Signature:
    key = method.prefix + _value(method.token, values, method)
    if method.send is None or method.send.where == "body":
        raise ManifestError(f"`{method.name}` must send its key in a header or the query")
    if method.send.where == "query":
        return Signature(query={method.send.name: key})
    return Signature(headers={method.send.name: key})


TYPES: Mapping[str, Callable[[AuthMethod, Mapping[str, str]], Signature]] = {
    "none": _none,
    "api_key": _api_key,
    "bearer": _bearer,
    "basic": _basic,
    "oauth2": _oauth2,
}


def _value(expression: Expression | None, values: Mapping[str, str], method: AuthMethod) -> str:
    if expression is None:  # a method with a single credential needn't name it
        found: Any = next(iter(values.values()), None)
    else:
        try:
            found = expression.evaluate(values, values)
        except ExpressionError:
            found = None
    if not isinstance(found, str) or not found:
        named = f"`{expression.text}`" if expression and "{" not in expression.text else "a value"
        raise AuthenticationError(f"the credentials for `{method.name}` lack {named}")
    if not found.isprintable() or not found.isascii():
        raise AuthenticationError(
            f"the credentials for `{method.name}` hold characters a request can't carry"
        )
    return found


def _client_header(client_id: str, client_secret: str) -> str:
    # RFC 6749, 2.3.1: both are encoded first, so that a colon in the id doesn't divide them.
    return _basic_header(quote(client_id, safe=""), quote(client_secret, safe=""))


def _basic_header(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


# --------------------------------------------------------------------------------------------- OAuth


def authorization_url(
    connector: Connector,
    method: AuthMethod,
    environment: str,
    *,
    client_id: str,
    redirect_uri: str,
    state: str,
    code_verifier: str | None = None,
    values: Mapping[str, Any] | None = None,
    origin_overrides: Mapping[str, str] | None = None,
) -> str:
    """Return where to send the browser. With PKCE in the manifest, `code_verifier` is required.

    `values` fill placeholders of the URL, such as a shop's domain; `origin_overrides` lead it to a stand-in.
    """
    from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
    from authlib.oauth2.rfc7636 import create_s256_code_challenge

    oauth = _oauth_of(method)
    extra: dict[str, str] = dict(oauth.authorize_params)
    if oauth.pkce:
        if not code_verifier:
            raise ManifestError(f"{connector.name} wants PKCE, so a code verifier is needed")
        challenge: str = create_s256_code_challenge(code_verifier)  # type: ignore[no-untyped-call]  # untyped stub
        extra.update(code_challenge=challenge, code_challenge_method="S256")
    url: str = prepare_grant_uri(
        _endpoint(connector, environment, oauth.authorize_url, values or {}),
        client_id,
        "code",
        redirect_uri=redirect_uri,
        scope=oauth.scope_separator.join(oauth.scopes) or None,
        state=state,
        **extra,
    )
    return rewrite_origin(url, origin_overrides or {})


async def exchange_code(
    connector: Connector,
    method: AuthMethod,
    environment: str,
    *,
    http: httpx.AsyncClient,
    client_id: str,
    client_secret: Secret | None,
    redirect_uri: str,
    code: str,
    code_verifier: str | None = None,
    values: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> Grant:
    """Trade the code of the redirect for tokens. A code works once, so this is never tried twice.

    Raises AuthenticationError (refused), UnavailableError (no usable answer), RateLimitedError.
    """
    oauth = _oauth_of(method)
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
    if oauth.pkce and code_verifier:
        fields["code_verifier"] = code_verifier
    url = _endpoint(connector, environment, oauth.token_url, values or {})
    hidden = [code, code_verifier or ""]
    answer = await _token_call(http, oauth, url, fields, client_id, client_secret, hidden)
    return _grant(connector, oauth, answer, None, clock or SystemClock())


def kept_of_callback(
    connector: Connector, method: AuthMethod, parameters: Mapping[str, str]
) -> dict[str, str]:
    """Return the values of `connection` that the redirect's parameters hold.

    Raises UnexpectedResponseError when one is missing, or isn't as the manifest declares it.
    """
    kept: dict[str, str] = {}
    for name, parameter in _oauth_of(method).keep_from_callback.items():
        value = parameters.get(parameter)
        if not value:
            raise UnexpectedResponseError(f"{connector.title} sent the browser back without `{parameter}`")
        kept[name] = value
    check_kept(connector, kept)
    return kept


def check_issuer(connector: Connector, method: AuthMethod, parameters: Mapping[str, str]) -> None:
    """Raise UnexpectedResponseError unless the redirect comes from the issuer the manifest names (RFC 9207).

    It keeps the code of one authorization server from being shown to another.
    """
    issuer = _oauth_of(method).issuer
    if issuer is not None and parameters.get("iss") != issuer:
        raise UnexpectedResponseError(f"the browser didn't come back from {connector.title}'s own server")


def check_kept(connector: Connector, values: Mapping[str, Any]) -> None:
    """Raise UnexpectedResponseError unless values a provider gave are as the manifest declares them."""
    wrong = misfits(connector, values)
    if wrong:
        names = " and ".join(f"`{each.name}`" for each in wrong)
        raise UnexpectedResponseError(f"{connector.title} gave {names} in a form that isn't expected")


async def refresh(
    connector: Connector,
    method: AuthMethod,
    environment: str,
    *,
    http: httpx.AsyncClient,
    client_id: str,
    client_secret: Secret | None,
    refresh_token: Secret,
    values: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> Grant:
    """Trade the refresh token for a new access token. Without a new refresh token in the answer, the old one
    stays. Asked once, and once more without an answer when the manifest says that a refresh token `keeps`.

    Call it under a lock shared by all processes, and save the grant before using it. Raises
    AuthenticationError with the provider's code (`invalid_grant`: the venue has to reconnect),
    UnavailableError, RateLimitedError.
    """
    oauth = _oauth_of(method)
    fields = {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal()}
    url = _endpoint(connector, environment, oauth.token_url, values or {})
    hidden = [refresh_token.reveal()]
    try:
        answer = await _token_call(http, oauth, url, fields, client_id, client_secret, hidden)
    except UnavailableError:
        if oauth.refresh_token != "keeps":  # noqa: S105 - a choice of the manifest
            raise  # the lost answer may have ended this token
        answer = await _token_call(http, oauth, url, fields, client_id, client_secret, hidden)
    return _grant(connector, oauth, answer, refresh_token, clock or SystemClock())


# What says that the call isn't right, or the application it is made for: the grant may be as good as ever.
NOT_THE_GRANT = (
    *("invalid_client", "unauthorized_client", "invalid_request", "unsupported_grant_type", "invalid_scope"),
    *("temporarily_unavailable", "server_error", "slow_down"),
)


def ends_grant(error: ProviderError, *, refused: bool = False) -> bool:
    """Tell whether a failed refresh means that the grant is over: the venue has to connect again.

    Only an answer that names what it refuses does; a bare 400 or 403 may come from anything on the way. A
    code of the provider's own with 401 or 403 may be about the application, unless the access token was
    `refused` as well.
    """
    code = error.provider_code
    if not isinstance(error, AuthenticationError) or code is None or code in NOT_THE_GRANT:
        return False
    return code == "invalid_grant" or error.status == 400 or refused


async def revoke(
    connector: Connector,
    method: AuthMethod,
    environment: str,
    *,
    http: httpx.AsyncClient,
    client_id: str,
    client_secret: Secret | None,
    credentials: Credentials,
) -> bool:
    """End the tokens at the provider; False when the manifest names no call for it.

    Where the manifest says that each token is revoked by itself, one that can't be doesn't keep the others
    from it. Tokens that are already dead count as ended. Raises UnavailableError, RateLimitedError,
    AuthenticationError.
    """
    oauth = _oauth_of(method)
    if oauth.revoke is None:
        return False
    secrets = {name: secret.reveal() for name, secret in credentials.values.items()}
    scope = {
        "client_id": client_id,
        "client_secret": client_secret.reveal() if client_secret else "",
        "access_token": secrets.get("access_token", ""),
        "refresh_token": secrets.get("refresh_token", ""),
        "connection": credentials.connection,
    }
    failure: ProviderError | None = None
    for name in oauth.revoke_tokens or ("",):
        if name and not secrets.get(name):
            continue
        token = {"token": secrets[name], "token_type_hint": name} if name else {}
        try:
            await _revoke_call(connector, oauth, oauth.revoke, environment, http, {**scope, **token})
        except ProviderError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return True


async def _revoke_call(
    connector: Connector,
    oauth: OAuth,
    call: CallSpec,
    environment: str,
    http: httpx.AsyncClient,
    scope: Mapping[str, Any],
) -> None:
    url = _endpoint(connector, environment, call.path, scope["connection"], scope)
    headers = {**_rendered(call, "headers", scope)}
    body = call.body.render(scope) if call.body else None
    content, content_type = encode_body(body, oauth.revoke_encoding)
    if content_type:
        headers["Content-Type"] = content_type
    if oauth.revoke_client == "header":
        headers["Authorization"] = _client_header(scope["client_id"], scope["client_secret"])
    query = [(name, str(value)) for name, value in _rendered(call, "query", scope).items()]
    response = await _send(http, call.method, with_query(url, query), headers, content)
    if response.is_success and not _said(response).get("error"):
        return
    error = _oauth_error(
        response, [scope[name] for name in ("client_secret", "access_token", "refresh_token")]
    )
    unknown = response.status_code in (400, 404, 410) and isinstance(error, AuthenticationError)
    if error.provider_code not in DEAD and (not unknown or error.provider_code in REFUSED):
        raise error


def _oauth_of(method: AuthMethod) -> OAuth:
    if method.oauth is None:
        raise ManifestError(f"`{method.name}` isn't OAuth")
    return method.oauth


def _rendered(call: CallSpec, part: str, scope: Mapping[str, Any]) -> Mapping[str, Any]:
    template = call.headers if part == "headers" else call.query
    rendered: Mapping[str, Any] = template.render(scope) if template else {}
    return rendered


def _endpoint(
    connector: Connector,
    environment: str,
    url: str,
    values: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> str:
    scope = {**values, "connection": values, "credentials": values, **(more or {})}
    if url.startswith("/"):
        return server_url(connector, environment, scope) + fill_path(url, scope)
    return fill_path(url, scope)


async def _token_call(
    http: httpx.AsyncClient,
    oauth: OAuth,
    url: str,
    fields: Mapping[str, str],
    client_id: str,
    client_secret: Secret | None,
    hidden: Collection[str],
) -> Mapping[str, Any]:
    secret = client_secret.reveal() if client_secret else None
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    sent = dict(fields)
    if oauth.client == "header" and secret is not None:
        headers["Authorization"] = _client_header(client_id, secret)
    else:
        sent["client_id"] = client_id
        if secret is not None:
            sent["client_secret"] = secret
    if oauth.token_body == "json":  # noqa: S105 - an encoding, no password
        headers["Content-Type"] = "application/json"
        content = orjson.dumps(sent)
    else:
        headers["Content-Type"] = FORM
        content = form_text(sent.items()).encode()
    response = await _send(http, "POST", url, headers, content)
    hidden = [*hidden, secret or ""]
    if not response.is_success:
        raise _oauth_error(response, hidden)
    answer = _decoded(response)
    if answer is None:
        raise UnavailableError(
            "the authorization server answered with something that isn't JSON", status=response.status_code
        )
    if not isinstance(answer, dict):
        raise UnexpectedResponseError("the authorization server's answer isn't an object")
    if answer.get("error") and not answer.get("access_token"):
        raise _oauth_error(response, hidden)  # some report errors with status 200
    return answer


def _decoded(response: httpx.Response) -> Any:
    """Read an answer: JSON, whatever it calls itself, or a form where it says so. None for neither."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        pass
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != FORM:
        return None
    return dict(parse_qsl(response.content.decode("utf-8", "replace")))


def _said(response: httpx.Response) -> Mapping[str, Any]:
    answer = _decoded(response)
    return answer if isinstance(answer, dict) else {}


async def _send(
    http: httpx.AsyncClient, method: str, url: str, headers: Mapping[str, str], content: bytes | None
) -> httpx.Response:
    raw = b""
    try:
        request = http.build_request(method, url, headers=dict(headers), content=content)
        async with asyncio.timeout(LONGEST_CALL):
            # A redirect isn't followed, whatever the client does else: it would carry a secret elsewhere.
            response = await http.send(request, stream=True, follow_redirects=False)
            try:
                async for chunk in response.aiter_bytes():
                    raw += chunk
                    if len(raw) > LARGEST_ANSWER:
                        raise UnexpectedResponseError("the authorization server's answer is far too long")
            finally:
                await response.aclose()
    except (httpx.RequestError, TimeoutError):
        raise UnavailableError("the authorization server can't be reached or doesn't answer") from None
    except httpx.InvalidURL:
        raise ManifestError("the authorization server has no address that can be called") from None
    kept = {name: response.headers.get(name, "") for name in ("Content-Type", "Retry-After")}
    return httpx.Response(response.status_code, headers=kept, content=raw)


def _oauth_error(response: httpx.Response, hidden: Collection[str]) -> ProviderError:
    """Tell a refusal from a server that is down: only a refusal means that the venue must reconnect."""
    status = response.status_code
    body = _decoded(response)
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        return RateLimitedError(
            "the authorization server asks to slow down",
            retry_after=min(float(wait), LONGEST_WAIT) if wait.isdecimal() else None,
            status=status,
        )
    if 300 <= status < 400:
        return UnavailableError(
            f"the authorization server sends elsewhere ({status}), which isn't followed", status=status
        )
    if status >= 500 or (body is None and status not in (400, 401, 403)):
        return UnavailableError(f"the authorization server answered {status}", status=status)
    code, message = (_without(text, hidden) for text in _code_and_message(body))
    code = code[:LONGEST_CODE] if code else None
    said = f": {message[:LONGEST_MESSAGE]}" if message else ""
    return AuthenticationError(
        f"the authorization server refused ({code or status}){said}", status=status, provider_code=code
    )


def _without(text: str | None, hidden: Collection[str]) -> str | None:
    """Return a provider's words on one line and without the secrets of the call; None for none."""
    for secret in hidden:
        if secret and text:
            text = text.replace(secret, "***")
    return " ".join(text.split()) or None if text else None


def _code_and_message(body: Any) -> tuple[str | None, str | None]:
    """Read an OAuth error, or the nearest thing providers send instead of one."""
    if not isinstance(body, dict):
        return None, None
    first = body
    if isinstance(body.get("errors"), list) and body["errors"] and isinstance(body["errors"][0], dict):
        first = body["errors"][0]
    elif isinstance(body.get("error"), dict):
        first = body["error"]
    code = first.get("error") or first.get("code") or body.get("type")
    message = first.get("error_description") or first.get("detail") or first.get("message")
    return (
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else None,
    )


def _grant(
    connector: Connector, oauth: OAuth, answer: Mapping[str, Any], previous: Secret | None, clock: Clock
) -> Grant:
    token, kind = answer.get("access_token"), answer.get("token_type")
    if not isinstance(token, str) or not token:
        raise UnexpectedResponseError("the authorization server's answer holds no access token")
    if not token.isprintable() or not token.isascii() or " " in token:
        raise UnexpectedResponseError("the authorization server granted a token that no header can carry")
    if isinstance(kind, str) and kind and kind.lower() != "bearer":
        raise UnexpectedResponseError("the authorization server granted a token that isn't a bearer token")
    new = answer.get("refresh_token")
    found = {name: expression.evaluate(answer) for name, expression in oauth.keep.items()}
    connection = {name: value for name, value in found.items() if value is not None}
    check_kept(connector, connection)
    return Grant(
        access_token=Secret(token),
        refresh_token=Secret(new) if isinstance(new, str) and new else previous,
        expires_at=_expiry(answer, clock, oauth.expires_in, oauth.expires_at),
        scopes=_scopes(answer.get("scope"), oauth.scope_separator) or oauth.scopes,
        connection=connection,
        refresh_expires_at=_expiry(answer, clock, oauth.refresh_expires_in, oauth.refresh_expires_at),
    )


def _scopes(granted: Any, separator: str) -> tuple[str, ...]:
    """Return what an answer says was granted: text with the manifest's separator, or a list."""
    if isinstance(granted, str):
        return tuple(granted.split(separator.strip() or None)) if granted else ()
    return tuple(each for each in granted if isinstance(each, str)) if isinstance(granted, list) else ()


def _expiry(
    answer: Mapping[str, Any], clock: Clock, lifetime: str | None, moment: str | None
) -> datetime | None:
    """Return when a token ends, by the path of its lifetime or of the moment in the answer.

    None when the answer doesn't say, or says 0: it doesn't end.
    """
    if moment:
        try:
            return _moment(Path.parse(moment).find(answer))
        except (TypeError, ValueError, OverflowError):
            raise UnexpectedResponseError(f"`{moment}` isn't a time") from None
    found = Path.parse(lifetime).find(answer) if lifetime else None
    try:
        seconds = float(found) if found and not isinstance(found, bool) else 0.0
        return clock.now() + timedelta(seconds=seconds) if seconds > 0 else None
    except (TypeError, ValueError, OverflowError):
        raise UnexpectedResponseError(f"`{lifetime}` isn't a number of seconds") from None


def _moment(said: Any) -> datetime | None:
    """Read RFC 3339 text, or seconds or milliseconds since 1970; raises for anything else."""
    if isinstance(said, str) and said and not said.isdecimal():
        read = datetime.fromisoformat(said)
        return read if read.tzinfo else read.replace(tzinfo=UTC)
    if isinstance(said, bool) or not isinstance(said, int | float | str) or not said:
        return None
    seconds = float(said)
    return datetime.fromtimestamp(seconds / 1000 if seconds > MILLISECONDS else seconds, UTC)
