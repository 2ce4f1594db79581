"""OAuth's authorization code grant: begin it, finish it when the provider sends the browser back."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID, uuid4

import structlog
from sqlalchemy import and_, case, delete, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine import auth
from engine.errors import HubError, ProviderError
from engine.manifest import AuthMethod, Connector, OAuth
from engine.ports import Credentials
from server import vault
from server.context import Context
from server.credentials import client_app, oauth_method, seal_grant
from server.db.models import (
    AuditEntry,
    IntegrationConfig,
    IntegrationStatus,
    OAuthState,
    OAuthToken,
    VenueApiKey,
)
from server.errors import (
    Detail,
    InvalidRequestError,
    NotSupportedError,
    ServerError,
    StateInvalidError,
)
from server.metering import metered
from server.services import audit, integrations
from server.services.audit import Actor
from server.services.denials import STRANGER
from server.settings import Settings

log = structlog.get_logger(__name__)

_ERROR_CODE = re.compile(r"[a-z_]{1,50}")  # what RFC 6749 allows and more; anything else isn't repeated
# What the errors of RFC 6749, 4.1.2.1 mean for whoever wanted to connect.
_DECLINED: Mapping[str, str] = MappingProxyType(
    {
        "access_denied": "{title} wasn't allowed to be connected: whoever was asked there said no",
        "invalid_scope": "{title} doesn't grant what is asked for: look at the application registered there",
        "unauthorized_client": "{title} doesn't let the application that is registered there ask",
        "invalid_request": "{title} didn't understand what it was asked",
        "unsupported_response_type": "{title} didn't understand what it was asked",
        "server_error": "{title} failed on its side: try again",
        "temporarily_unavailable": "{title} is too busy or closed for now: try again later",
    }
)

Refusal = Literal["unknown", "used", "expired", "other_provider", "other_user"]


class ExchangeError(ServerError):
    """The provider didn't authorize, or didn't take the code it gave."""

    code = "OAUTH_EXCHANGE_FAILED"


def redirect_uri(settings: Settings, provider: str) -> str:
    """Return the address the provider sends the browser back to, as it must be registered there."""
    return f"{settings.api_url}/api/v1/integrations/oauth/callback/{provider}"


def allowed_redirect(settings: Settings, provider: str, wanted: str | None) -> str:
    """Return the redirect address to use: the hub's own, or a wanted one that an operator has listed.

    Raises InvalidRequestError for any other. They are compared letter by letter (RFC 9700, 2.1).
    """
    own = redirect_uri(settings, provider)
    listed = {each.replace("{provider}", provider) for each in settings.redirect_uris}
    if wanted in (None, own):
        return own
    if wanted not in listed:
        raise InvalidRequestError(
            "this redirect address isn't allowed",
            [Detail("redirectUri", "it isn't in HUB_REDIRECT_URIS; leave it out for the hub's own address")],
        )
    return str(wanted)


async def begin(
    context: Context,
    actor: Actor,
    *,
    provider: str,
    venue_id: UUID,
    environment: str,
    config: Mapping[str, Any],
    values: Mapping[str, str] = MappingProxyType({}),
    wanted_redirect: str | None = None,
) -> str:
    """Return where to send the venue's browser. What it comes back with works once, for ten minutes.

    `values` are those of the connection that the venue chose. With `wanted_redirect` the browser comes back
    there, and whoever is there finishes the authorization as the same user. Raises InvalidRequestError when
    the values aren't as the manifest says, that address isn't allowed, or the connector is connected with
    credentials; NotSupportedError when no application is registered with the provider.
    """
    connector = context.catalog.connector(provider)
    method, oauth = _method(connector)
    integrations.check_environment(connector, environment)
    uri = allowed_redirect(context.settings, provider, wanted_redirect)
    chosen = integrations.read_connection(connector, values)
    integrations.check_connection(connector, chosen, found_out=integrations.found_out(connector, method))
    client_id, _ = client_app(context.settings, connector, environment)
    await integrations.read_venue(context, venue_id)
    state = secrets.token_urlsafe(32)
    verifier = secrets.token_urlsafe(64) if oauth.pkce else None
    url = auth.authorization_url(
        connector,
        method,
        environment,
        client_id=client_id,
        redirect_uri=uri,
        state=state,
        code_verifier=verifier,
        values=chosen,
        origin_overrides=context.settings.origin_overrides,
    )
    row = OAuthState(
        state_hash=_hash(state),
        venue_id=venue_id,
        integration_type=provider,
        environment=environment,
        user_id=actor.id,
        redirect_uri=uri,
        config=dict(config),
        connection=chosen,
    )
    if verifier is not None:
        row.encrypted_verifier = await context.vault.seal(verifier, place(row))
    async with context.sessions.begin() as session:
        session.add(row)
        integration = await integrations.own_integration(session, venue_id, provider)
        if integration.status != IntegrationStatus.CONNECTED:
            integration.status = IntegrationStatus.CONNECTING
            integration.environment = environment
        audit.record(session, actor, "oauth.begun", venue_id=venue_id, provider=provider)
    return url


async def finish(
    context: Context,
    *,
    provider: str,
    state: str | None,
    code: str | None,
    error: str | None,
    ip: str | None,
    request_id: str | None,
    parameters: Mapping[str, str] = MappingProxyType({}),
    user_id: str | None = None,
) -> UUID:
    """Trade the code for tokens, store them and start the integration; returns the venue it is for.

    `parameters` are all those of the address, for providers that say there what was connected. `user_id` is
    whose token came with the call; a browser that a provider sends back has none.

    Raises InvalidRequestError without code and state, StateInvalidError for a state that is unknown, used,
    too old, another provider's or another user's, ExchangeError when the provider refuses.
    """
    connector = context.catalog.connector(provider)
    method, _ = _method(connector)
    missing = [name for name, value in (("state", state), ("code", code or error)) if not value]
    if state is None or missing:
        raise InvalidRequestError(
            f"{' and '.join(missing)} must be in the address",
            [Detail(name, f"{name} is required") for name in missing],
        )
    begun = await _take(context, provider, state, user_id, Actor(user_id or STRANGER, ip, request_id))
    actor = Actor(begun.user_id, ip, request_id)
    try:
        if error:
            raise _declined(connector, error)
        returned = _returned(connector, method, parameters)
        grant = await _exchange(context, connector, method, begun, code or "")
        known = {**begun.connection, **returned, **grant.connection}  # whose account it is, nobody chooses
        venue = await integrations.read_venue(context, begun.venue_id)
        values = {"access_token": grant.access_token}
        if grant.refresh_token is not None:
            values["refresh_token"] = grant.refresh_token
        connection = await integrations.explore(
            context,
            connector,
            venue,
            begun.venue_id,
            Credentials(values, known, begun.environment, grant.expires_at, method.name),
            begun.config,
        )
    except HubError as failure:
        await _give_up(context, actor, begun, failure)
        raise
    async with context.sessions.begin() as session:
        # Two that end at once wait for each other here, and then one finds the other's token.
        since = begun.used_at or begun.created_at
        await integrations.take_turn(session, begun.venue_id, provider, since=since)
        mine = {"venue_id": begun.venue_id, "integration_type": provider}
        ended = await session.scalar(select(IntegrationConfig.disconnected_at).filter_by(**mine))
        if ended is not None and ended > since:
            raise StateInvalidError("this integration was disconnected in the meantime: begin again")
        token = await session.scalar(select(OAuthToken).filter_by(**mine).with_for_update())
        if token is None:
            token = OAuthToken(id=uuid4(), **mine)
            session.add(token)
        token.environment = begun.environment
        token.encrypted_refresh_token, token.refresh_expires_at, token.scopes = None, None, []
        await seal_grant(token, grant, context.vault)
        token.refresh_count = token.refresh_failed_count = 0
        token.created_by, token.created_ip = _uuid(begun.user_id), ip
        token.updated_at = datetime.now(UTC)
        await session.flush()
        await session.execute(delete(VenueApiKey).filter_by(**mine))
        _, initial = await integrations.establish(session, context, actor, connection)
    await integrations.tell_workers(context, initial)
    await log.ainfo("integration.connected", provider=provider, venue_id=str(begun.venue_id))
    return begun.venue_id


def _method(connector: Connector) -> tuple[AuthMethod, OAuth]:
    found = oauth_method(connector)
    if found is None:
        fields = [field for method in connector.auth for field in method.credentials]
        if not fields:
            raise NotSupportedError(f"{connector.title} can't be connected by authorization")
        raise InvalidRequestError(
            f"{connector.title} is connected with credentials",
            [Detail(f"credentials.{field.name}", f"{field.title} is missing") for field in fields],
        )
    return found


async def _take(
    context: Context, provider: str, state: str, user_id: str | None, caller: Actor
) -> OAuthState:
    """Use up a state. Its row is locked meanwhile, so of two callbacks with it one gets it.

    Whoever shows it where it isn't good uses it up as well: it has been in wrong hands.
    """
    async with context.sessions.begin() as session:
        found = (
            await session.execute(
                select(OAuthState, OAuthState.expires_at <= func.now())
                .where(OAuthState.state_hash == _hash(state))
                .with_for_update()
            )
        ).one_or_none()
        begun = found[0] if found else None
        refusal = _refusal(context.settings, begun, bool(found and found[1]), provider, user_id)
        if begun is not None and begun.used_at is None:
            begun.used_at = datetime.now(UTC)
        if begun is not None and refusal is not None:
            await session.execute(_entry(begun, refusal, caller))
    if begun is None or refusal is not None:
        await log.awarning("oauth.refused", provider=provider, reason=refusal, ip=caller.ip)
        raise StateInvalidError("this authorization isn't known, is finished already, or is too old")
    return begun


def _entry(begun: OAuthState, refusal: Refusal, caller: Actor) -> Insert:
    """Return the entry about a refused state; showing it again adds to its count."""
    entry = insert(AuditEntry).values(
        venue_id=begun.venue_id,
        integration_type=begun.integration_type,
        actor=caller.id,
        action="oauth.refused",
        details={"reason": refusal, "begun_by": begun.user_id},
        ip=caller.ip,
        request_id=caller.request_id,
        same=_hash(f"{begun.state_hash} {refusal} {caller.id}"),
    )
    return entry.on_conflict_do_update(index_elements=[AuditEntry.same], set_={"count": AuditEntry.count + 1})


def _refusal(
    settings: Settings, begun: OAuthState | None, expired: bool, provider: str, user_id: str | None
) -> Refusal | None:
    """Say why a state isn't taken; None when it is."""
    if begun is None:
        return "unknown"
    if begun.integration_type != provider:
        return "other_provider"
    if begun.used_at is not None:
        return "used"
    if expired:
        return "expired"
    # A browser that comes straight back from the provider has no token to show; anybody else has to.
    straight = begun.redirect_uri == redirect_uri(settings, provider)
    return None if user_id == begun.user_id or (straight and user_id is None) else "other_user"


def _declined(connector: Connector, error: str) -> ExchangeError:
    code = error if _ERROR_CODE.fullmatch(error) else "error"
    said = _DECLINED.get(code, "{title} didn't authorize the connection").format(title=connector.title)
    return ExchangeError(said, [Detail("error", code)])


def _returned(connector: Connector, method: AuthMethod, parameters: Mapping[str, str]) -> dict[str, str]:
    try:
        auth.check_issuer(connector, method, parameters)
        return auth.kept_of_callback(connector, method, parameters)
    except ProviderError as failure:
        raise ExchangeError(failure.message) from failure


async def _exchange(
    context: Context,
    connector: Connector,
    method: AuthMethod,
    begun: OAuthState,
    code: str,
) -> auth.Grant:
    client_id, client_secret = client_app(context.settings, connector, begun.environment)
    verifier = (
        (await context.vault.open(begun.encrypted_verifier, place(begun))).reveal()
        if begun.encrypted_verifier
        else None
    )
    try:
        async with metered(context.sessions, begun.venue_id, connector.name):
            return await auth.exchange_code(
                connector,
                method,
                begun.environment,
                http=context.http,
                client_id=client_id,
                client_secret=client_secret,
                redirect_uri=begun.redirect_uri,
                code=code,
                code_verifier=verifier,
                values=begun.connection,
            )
    except ProviderError as failure:
        raise ExchangeError(f"{connector.title} gave no tokens: {failure.message}") from failure


async def _give_up(context: Context, actor: Actor, begun: OAuthState, failure: HubError) -> None:
    """Note why an authorization came to nothing; an integration that was connected before stays so."""
    async with context.sessions.begin() as session:
        integration = await integrations.own_integration(session, begun.venue_id, begun.integration_type)
        if integration.status == IntegrationStatus.CONNECTING:
            lives = integration.connected_at is not None and integration.disconnected_at is None
            integration.status = IntegrationStatus.ERROR if lives else IntegrationStatus.DISCONNECTED
        integration.last_error, integration.last_error_at = failure.message, datetime.now(UTC)
        audit.record(
            session,
            actor,
            "oauth.failed",
            venue_id=begun.venue_id,
            provider=begun.integration_type,
            details={"error": failure.code},
        )


async def give_up_forgotten(session: AsyncSession) -> None:
    """Take integrations back that wait for an authorization nobody can come back from any more."""
    waits = exists().where(
        OAuthState.venue_id == IntegrationConfig.venue_id,
        OAuthState.integration_type == IntegrationConfig.integration_type,
        OAuthState.expires_at > func.now(),
    )
    # One that was connected before was in error, or it would have stayed connected meanwhile.
    kind = IntegrationConfig.status.type
    lives = and_(IntegrationConfig.connected_at.is_not(None), IntegrationConfig.disconnected_at.is_(None))
    await session.execute(
        update(IntegrationConfig)
        .where(IntegrationConfig.status == IntegrationStatus.CONNECTING, ~waits)
        .values(
            status=case(
                (lives, literal(IntegrationStatus.ERROR, kind)),
                else_=literal(IntegrationStatus.DISCONNECTED, kind),
            ),
            updated_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )


def place(row: OAuthState) -> vault.Context:
    """Return where a sealed verifier lives, for the vault."""
    return vault.Context(
        OAuthState.__tablename__,
        "encrypted_verifier",
        row.state_hash,
        row.venue_id,
        row.integration_type,
        row.environment,
    )


def _hash(state: str) -> str:
    # The state has 256 random bits, so a plain hash can't be guessed back.
    return hashlib.sha256(state.encode()).hexdigest()


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
