"""A venue's integrations: connect, list, look at, disconnect."""

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID, uuid4

import orjson
import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from engine import auth
from engine.diagnostics import did_you_mean, listed
from engine.errors import AuthenticationError, HubError, ProviderError, UnavailableError
from engine.filling import kept_of_credentials, misfits
from engine.manifest import AuthMethod, ConnectionValue, Connector, CredentialField
from engine.memory import StaticCredentials
from engine.ports import Credentials, Record, Secret
from server.catalog import template_id
from server.context import Context
from server.credentials import client_app, oauth_method, place
from server.db.models import (
    FieldMappingTemplate,
    IntegrationConfig,
    IntegrationStatus,
    OAuthState,
    OAuthToken,
    Operation,
    OperationStatus,
    OperationType,
    PendingWrite,
    Priority,
    RecordFailure,
    RecordLink,
    SyncWatermark,
    VenueApiKey,
    WebhookEndpoint,
)
from server.errors import (
    Detail,
    IntegrationNotFoundError,
    InvalidRequestError,
    NotSupportedError,
    TemplateNotFoundError,
)
from server.host import SqlHost
from server.metering import metered
from server.services import audit, endpoints, operations, outbox, venues
from server.services.audit import Actor
from server.services.paging import Page as Page  # most lists find it here
from server.worker.relay import announce

log = structlog.get_logger(__name__)

DEFAULTS: Mapping[str, Any] = {"syncEnabled": True, "syncInterval": 300, "syncDirection": "bidirectional"}
_REVOKE_SECONDS = 10
_TEST_SECONDS = 45  # somebody waits for the answer


class ConnectionTestError(AuthenticationError):
    """The provider doesn't accept the credentials, or they may not do what the connector needs."""

    code = "CONNECTION_TEST_FAILED"


@dataclass(frozen=True, slots=True)
class Connection:
    """What makes an integration: found out at the provider before anything is stored."""

    connector: Connector
    venue: Record
    venue_id: UUID
    environment: str
    config: Mapping[str, Any]
    values: Mapping[str, Any]  # learned from the provider: account, locations
    account: str | None


# --- connect with credentials the venue typed in


async def connect(
    context: Context,
    actor: Actor,
    *,
    provider: str,
    venue_id: UUID,
    environment: str,
    credentials: Mapping[str, Secret],
    config: Mapping[str, Any],
    values: Mapping[str, str] = MappingProxyType({}),
) -> IntegrationConfig:
    """Test credentials at the provider; when they work, store them and start the integration.

    `values` are those of the connection that the venue chose. Nothing is stored unless the provider accepts
    the credentials. Raises InvalidRequestError for credentials or values that aren't as the manifest says,
    ConnectionTestError when the provider refuses, NotFoundError for an unknown venue.
    """
    asked_at = datetime.now(UTC)
    connector = context.catalog.connector(provider)
    given = read_given(connector, environment, credentials, values)
    venue = await read_venue(context, venue_id)
    connection = await explore(context, connector, venue, venue_id, given, config)
    # Its id is new even where it takes another's place: what is sealed is bound to it.
    row = VenueApiKey(id=uuid4(), venue_id=venue_id, integration_type=provider, environment=environment)
    sealed = await context.vault.seal(
        orjson.dumps({name: value.reveal() for name, value in given.values.items()}).decode(),
        place(row, "encrypted_api_key"),
    )
    async with context.sessions.begin() as session:
        await take_turn(session, venue_id, provider, since=asked_at)
        # Tokens before the integration, as a refresh does it: so the two never wait for each other in a ring.
        await session.execute(delete(OAuthToken).filter_by(venue_id=venue_id, integration_type=provider))
        integration, initial = await establish(session, context, actor, connection)
        stored = {
            "id": row.id,
            "encrypted_api_key": sealed,
            "key_name": given.method,
            "is_valid": True,
            "last_validated_at": func.now(),
            "validation_error": None,
            "updated_at": func.now(),
        }
        await session.execute(
            insert(VenueApiKey)
            .values(venue_id=venue_id, integration_type=provider, environment=environment, **stored)
            .on_conflict_do_update(
                index_elements=["venue_id", "integration_type", "environment"], set_=stored
            )
        )
    await tell_workers(context, initial)
    await log.ainfo("integration.connected", provider=provider, venue_id=str(venue_id))
    return integration


async def validate(
    context: Context,
    actor: Actor,
    *,
    provider: str,
    venue_id: UUID | None,
    environment: str,
    credentials: Mapping[str, Secret],
    values: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Try credentials at the provider and store nothing; returns None when it takes them, or why it doesn't.

    Raises InvalidRequestError for fields that aren't as the manifest says, and what `connect` raises when
    the provider can't be asked.
    """
    connector = context.catalog.connector(provider)
    given = read_given(connector, environment, credentials, values, shaped=False)
    refusal = _misshapen(connector, given)
    if refusal is None:
        try:
            await learn(context, connector, given)
        except ConnectionTestError as error:
            refusal = error.message
    async with context.sessions.begin() as session:
        audit.record(
            session,
            actor,
            "credentials.validated",
            venue_id=venue_id,
            provider=provider,
            details={"environment": environment, "valid": refusal is None},
        )
    return refusal


def read_given(
    connector: Connector,
    environment: str,
    credentials: Mapping[str, Secret],
    values: Mapping[str, str],
    *,
    shaped: bool = True,
) -> Credentials:
    """Check what a venue typed in against the manifest; raises InvalidRequestError with what is wrong.

    Unless they must be `shaped`, credentials needn't look as the manifest says.
    """
    check_environment(connector, environment)
    method, secrets = read_credentials(connector, credentials, shaped=shaped)
    known = {**read_connection(connector, values), **kept_of_credentials(method, secrets)}
    check_connection(connector, known, found_out=found_out(connector, method))
    return Credentials(secrets, known, environment, method=method.name)


def check_environment(connector: Connector, environment: str) -> None:
    """Raise InvalidRequestError for an environment that the provider doesn't have."""
    if environment not in connector.servers:
        message = f"{connector.title} has no `{environment}`; it has {listed(connector.servers)}"
        raise InvalidRequestError(message, [Detail("environment", message)])


def read_credentials(
    connector: Connector, given: Mapping[str, Secret], *, shaped: bool = True
) -> tuple[AuthMethod, dict[str, Secret]]:
    """Check credentials against the manifest's fields; raises InvalidRequestError with all that is wrong.

    A connector with several methods is connected by the one whose fields fit best.
    """
    methods = [method for method in connector.auth if method.oauth is None and method.type != "none"]
    if not methods:
        raise NotSupportedError(f"{connector.title} takes no credentials here: connect without them")
    method = max(
        methods,
        key=lambda m: (
            len({field.name for field in m.credentials} & set(given)),
            -len(m.credentials),
        ),
    )
    fields = {field.name: field for field in method.credentials}
    problems: list[Detail] = []
    for name in given:
        if name not in fields:
            advice = did_you_mean(name, fields) or (f"it takes {listed(fields)}",)
            problems.append(Detail(f"credentials.{name}", f"`{name}` is not a credential here; {advice[0]}"))
    for field in fields.values():
        value = given.get(field.name)
        if not value and not field.optional:
            problems.append(Detail(f"credentials.{field.name}", f"{field.title} is missing"))
        elif value and shaped and not _looks_right(field, value):
            problems.append(Detail(f"credentials.{field.name}", f"this doesn't look like: {field.title}"))
    if problems:
        raise InvalidRequestError(f"these credentials can't be those of {connector.title}", problems)
    return method, {name: value for name, value in given.items() if value}


def _looks_right(field: CredentialField, value: Secret) -> bool:
    return field.pattern is None or re.fullmatch(field.pattern, value.reveal()) is not None


def _misshapen(connector: Connector, given: Credentials) -> str | None:
    """Say which credential can't be one of this provider's; None when all could."""
    fields = [
        field for method in connector.auth if method.name == given.method for field in method.credentials
    ]
    wrong = next(
        (f for f in fields if f.name in given.values and not _looks_right(f, given.values[f.name])), None
    )
    return f"this doesn't look like: {wrong.title}" if wrong else None


def read_connection(connector: Connector, given: Mapping[str, str]) -> dict[str, str]:
    """Check values of the connection that a venue chose; raises InvalidRequestError with what is wrong.

    A list is none of them: it is looked up, and again each day, which would undo a choice.
    """
    declared = connector.connection
    problems: list[Detail] = []
    for name in given:
        if name not in declared:
            advice = did_you_mean(name, declared) or (
                f"it takes {listed(declared)}" if declared else "it takes none",
            )
            message = f"`{name}` is not a value of a connection here; {advice[0]}"
            problems.append(Detail(f"connection.{name}", message))
    chosen = {name: value for name, value in given.items() if value}
    problems += [
        Detail(
            f"connection.{name}", f"{declared[name].title} are looked up at {connector.title}: leave it out"
        )
        for name in chosen
        if name in declared and declared[name].list
    ]
    problems += [_unlike(each) for each in misfits(connector, chosen)]
    if problems:
        raise InvalidRequestError(f"{connector.title} can't be connected with these values", problems)
    return chosen


def check_connection(
    connector: Connector, known: Mapping[str, Any], *, found_out: Collection[str] = ()
) -> None:
    """Raise InvalidRequestError for values that don't fit, or are missing and not `found_out` later."""
    problems = [_unlike(each) for each in misfits(connector, known)]
    problems += [
        Detail(f"connection.{each.name}", f"{each.title} is missing")
        for each in connector.connection.values()
        if not each.optional and each.name not in known and each.name not in found_out
    ]
    if problems:
        raise InvalidRequestError(f"{connector.title} can't be connected with these values", problems)


def found_out(connector: Connector, method: AuthMethod) -> set[str]:
    """Return the names of the connection's values that come from the provider, or from the credentials."""
    oauth = method.oauth
    looked_up = {name for lookup in connector.after_connecting for name in lookup.keep}
    answered = {*oauth.keep, *oauth.keep_from_callback} if oauth else set()
    return {*looked_up, *answered, *method.keep}


def _unlike(declared: ConnectionValue) -> Detail:
    return Detail(f"connection.{declared.name}", f"this doesn't look like: {declared.title}")


async def read_venue(context: Context, venue_id: UUID) -> Record:
    """Return the platform's record of a venue; raises NotFoundError."""
    return await SqlHost(context.platform, context.catalog.platform, venue_id).venue()


async def explore(
    context: Context,
    connector: Connector,
    venue: Record,
    venue_id: UUID,
    credentials: Credentials,
    config: Mapping[str, Any],
) -> Connection:
    """Try the credentials, and learn what later calls need; raises what `learn` does."""
    async with metered(context.sessions, venue_id, connector.name):
        values = await learn(context, connector, credentials)
    account = connector.account.evaluate(values) if connector.account else None
    return Connection(
        connector,
        venue,
        venue_id,
        credentials.environment,
        {**DEFAULTS, **config},
        values,
        None if account is None else str(account),
    )


async def learn(context: Context, connector: Connector, credentials: Credentials) -> dict[str, Any]:
    """Try credentials at the provider and return the values of the connection, those found there included.

    Raises ConnectionTestError when the provider refuses, UnavailableError and others when it can't be asked.
    """
    client = context.client(connector, StaticCredentials(credentials))
    call = f"{connector.check.method} {connector.check.path}"
    try:
        async with asyncio.timeout(_TEST_SECONDS):
            learned = await client.learn(check=True)
    except TimeoutError as error:
        raise UnavailableError(f"{connector.title} doesn't answer") from error
    except ProviderError as error:
        if error.status == 403:
            raise ConnectionTestError(
                f"{connector.title} knows these credentials, but they may not do all that is needed, such as "
                f"{call}: {error.message}",
                status=403,
                provider_code=error.provider_code,
            ) from error
        if isinstance(error, AuthenticationError):
            raise ConnectionTestError(
                f"{connector.title} refuses these credentials: {error.message}",
                status=error.status,
                provider_code=error.provider_code,
            ) from error
        raise
    values = {**credentials.connection, **learned}
    check_connection(connector, values)
    return values


async def take_turn(session: AsyncSession, venue_id: UUID, provider: str, *, since: datetime) -> None:
    """Wait for whoever else is connecting this integration, until the end of the transaction.

    Raises BeingErasedError when the venue is being erased, or was `since` somebody asked to connect.
    """
    await venues.check_open(session, venue_id, since=since)
    await session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(f"{provider} {venue_id}", 0)))
    )


async def establish(
    session: AsyncSession, context: Context, actor: Actor, connection: Connection
) -> tuple[IntegrationConfig, Operation | None]:
    """Write the integration as connected, give it a mapping template, and queue its first sync.

    The caller stores the credentials in the same transaction, and calls `tell_workers` after it.
    """
    connector, venue_id = connection.connector, connection.venue_id
    await operations.hold_running(session, venue_id, connector.name)
    integration = await own_integration(session, venue_id, connector.name)
    before, again = audit.picture(integration), integration.connected_at is not None
    now = datetime.now(UTC)
    if integration.connected_at is not None and (integration.environment, integration.account) != (
        connection.environment,
        connection.account,
    ):
        await operations.end_running(session, venue_id, connector.name)
        await _forget_records(session, venue_id, connector.name)
    integration.environment = connection.environment
    integration.account = connection.account
    integration.connection = dict(connection.values)
    integration.config = dict(connection.config)
    integration.status = IntegrationStatus.CONNECTED
    integration.connected_at, integration.disconnected_at = now, None
    integration.failure_count, integration.last_error, integration.last_error_at = 0, None, None
    integration.circuit_failures = 0
    integration.circuit_opened_at, integration.circuit_until = None, None
    enabled = bool(connection.config["syncEnabled"])
    interval = timedelta(seconds=connection.config["syncInterval"])
    integration.next_sync_at = now + interval if enabled else None
    integration.updated_at = now
    template = await _apply_template(session, context, integration, connection)
    await endpoints.establish(session, context, integration)
    audit.record(
        session,
        actor,
        "integration.connected",
        venue_id=venue_id,
        provider=connector.name,
        target=str(integration.id),
        details={"environment": connection.environment, "account": connection.account, **template},
        before=before,
        after=audit.picture(integration),
    )
    outbox.announce(
        session,
        venue_id=venue_id,
        event="integration.connected",
        data={
            "provider": connector.name,
            "integration_id": str(integration.id),
            "environment": connection.environment,
            "reconnected": again,
        },
    )
    if not enabled or await syncing(session, venue_id, connector.name):
        return integration, None
    return integration, await operations.enqueue(
        session,
        venue_id=venue_id,
        provider=connector.name,
        operation_type=OperationType.SYNC,
        entity_type="full",
        payload={"syncType": "full", "operation": "initial_sync"},
        priority=Priority.NORMAL,
        run_id=uuid4(),
        correlation_id=actor.request_id,
    )


async def own_integration(session: AsyncSession, venue_id: UUID, provider: str) -> IntegrationConfig:
    """Return the integration's row, made if need be, locked until the end of the transaction.

    Raises BeingErasedError while the venue is being erased.
    """
    await venues.check_open(session, venue_id)
    await session.execute(
        insert(IntegrationConfig)
        .values(venue_id=venue_id, integration_type=provider)
        .on_conflict_do_nothing(index_elements=["venue_id", "integration_type"])
    )
    rows = await session.scalars(
        select(IntegrationConfig)
        .filter_by(venue_id=venue_id, integration_type=provider)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return rows.one()


async def syncing(session: AsyncSession, venue_id: UUID, provider: str) -> Operation | None:
    """Return the sync that waits or runs for an integration. Hold its row's lock to act on the answer."""
    rows = await session.scalars(
        select(Operation)
        .filter_by(venue_id=venue_id, integration_type=provider, operation_type=OperationType.SYNC)
        .where(Operation.status.in_([*operations.WAITING, OperationStatus.PROCESSING]))
        .order_by(Operation.queued_at)
        .limit(1)
    )
    return rows.one_or_none()


async def tell_workers(context: Context, operation: Operation | None) -> None:
    """Announce an operation that has been committed."""
    if operation is not None:
        await announce(context.redis, [operations.as_due(operation)])


async def _apply_template(
    session: AsyncSession, context: Context, integration: IntegrationConfig, connection: Connection
) -> dict[str, Any]:
    """Give a new integration the template that suits its venue; one that has a template keeps it."""
    name = connection.connector.name
    if integration.field_mappings:
        return {"template": None}  # the venue's own mapping stays
    if integration.template_id is not None:
        try:
            return {"template": context.catalog.template(name, integration.template_id).name}
        except TemplateNotFoundError:
            pass  # its pack is gone: choose again
    template, why = context.catalog.detect(name, connection.venue)
    identity = template_id(name, template.name)
    integration.template_id, integration.template_applied_at = identity, datetime.now(UTC)
    await session.execute(
        update(FieldMappingTemplate)
        .where(FieldMappingTemplate.id == identity)
        .values(usage_count=FieldMappingTemplate.usage_count + 1, last_used_at=func.now())
    )
    await log.ainfo("template.given", provider=name, template=template.name, because=why)
    return {"template": template.name, "because": why}


async def _stop_running(session: AsyncSession, venue_id: UUID, provider: str) -> None:
    """Ask whatever runs for an integration to stop: its credentials are gone."""
    await session.execute(
        update(Operation)
        .filter_by(venue_id=venue_id, integration_type=provider, status=OperationStatus.PROCESSING)
        .values(stop_requested=True, updated_at=func.now())
    )


async def _forget_records(session: AsyncSession, venue_id: UUID, provider: str) -> None:
    """Forget which records are linked and how far syncs got: another account has other records.

    End what runs before it, or its worker would save some of them again.
    """
    for table in (RecordLink, SyncWatermark, PendingWrite, RecordFailure):
        await session.execute(delete(table).filter_by(venue_id=venue_id, integration_type=provider))


# --- list and get


async def get_integration(session: AsyncSession, venue_id: UUID, provider: str) -> IntegrationConfig:
    """Return an integration; raises IntegrationNotFoundError."""
    rows = await session.scalars(
        select(IntegrationConfig).filter_by(venue_id=venue_id, integration_type=provider)
    )
    integration = rows.one_or_none()
    if integration is None:
        raise not_connected(provider)
    return integration


def not_connected(provider: str) -> IntegrationNotFoundError:
    """Return the error for an integration that isn't there."""
    return IntegrationNotFoundError(f"`{provider}` isn't connected at this venue")


# --- disconnect


# What became of the tokens at the provider. `shared`: another venue is connected with the same account, and
# many providers end all of an account's tokens at once, so they are left alive.
Revocation = Literal["done", "failed", "not_offered", "shared"]


async def disconnect(context: Context, actor: Actor, *, venue_id: UUID, provider: str) -> Revocation | None:
    """End an integration: its credentials are erased here, and revoked at the provider if that can be done.

    Returns what became of its tokens there, None when it had none. Links are kept, so that connecting the
    same account again goes on where it was. Doing it twice is fine, and so is a connector that isn't there
    any more: then nothing is revoked.
    """
    connector = context.catalog.connectors.get(provider)
    mine = {"venue_id": venue_id, "integration_type": provider}
    credentials: Credentials | None = None
    await endpoints.end(context, venue_id, provider)
    async with context.sessions.begin() as session:
        if connector is not None:
            credentials = await _credentials_to_revoke(session, context, connector, venue_id)
        for table in (OAuthToken, VenueApiKey, OAuthState, WebhookEndpoint):
            await session.execute(delete(table).filter_by(**mine))
        try:
            integration = await get_integration(session, venue_id, provider)
        except IntegrationNotFoundError:
            context.catalog.connector(provider)  # which knows better what is wrong with a provider unheard of
            raise
        await session.execute(
            delete(Operation)
            .filter_by(**mine)
            .where(Operation.status.in_([*operations.WAITING, OperationStatus.PAUSED]))
        )
        await _stop_running(session, venue_id, provider)
        before = audit.picture(integration)
        if integration.status is not IntegrationStatus.DISCONNECTED:
            outbox.announce(
                session,
                venue_id=venue_id,
                event="integration.disconnected",
                data={
                    "provider": provider,
                    "integration_id": str(integration.id),
                    "environment": integration.environment,
                },
            )
        integration.status = IntegrationStatus.DISCONNECTED
        integration.disconnected_at = integration.updated_at = datetime.now(UTC)
        integration.next_sync_at = None
        audit.record(
            session,
            actor,
            "integration.disconnected",
            venue_id=venue_id,
            provider=provider,
            target=str(integration.id),
            before=before,
            after=audit.picture(integration),
        )
        shared = await _is_shared(session, integration)
    await log.ainfo("integration.disconnected", provider=provider, venue_id=str(venue_id))
    if connector is None or credentials is None or "access_token" not in credentials.values:
        return None
    error: str | None = None
    outcome: Revocation = "shared"
    if not shared:
        async with metered(context.sessions, venue_id, provider):
            outcome, error = await _revoke(context, connector, credentials)
    async with context.sessions.begin() as session:
        audit.record(
            session,
            actor,
            "integration.revoked" if outcome == "done" else "integration.not_revoked",
            venue_id=venue_id,
            provider=provider,
            target=str(integration.id),
            details={"revocation": outcome, **({"error": error} if error else {})},
        )
    return outcome


async def _is_shared(session: AsyncSession, integration: IntegrationConfig) -> bool:
    """Say whether another venue is connected with the same account of the provider."""
    if integration.account is None:
        return False
    others = (
        select(IntegrationConfig.id)
        .filter_by(
            integration_type=integration.integration_type,
            environment=integration.environment,
            account=integration.account,
            disconnected_at=None,
        )
        .where(IntegrationConfig.id != integration.id, IntegrationConfig.connected_at.is_not(None))
        .limit(1)
    )
    return await session.scalar(others) is not None


async def _credentials_to_revoke(
    session: AsyncSession, context: Context, connector: Connector, venue_id: UUID
) -> Credentials | None:
    """Return the credentials as they are stored, dead or alive; None when there is nothing to revoke."""
    if oauth_method(connector) is None:
        return None
    try:
        return await context.credentials(venue_id, connector.name).stored(session)
    except HubError as error:
        await log.awarning("integration.revoke_skipped", provider=connector.name, reason=error.message)
        return None


async def _revoke(
    context: Context, connector: Connector, credentials: Credentials
) -> tuple[Revocation, str | None]:
    """Revoke tokens at the provider, and say why when it doesn't work: they are erased here already."""
    found = oauth_method(connector)
    if found is None:
        return "not_offered", None
    try:
        client_id, client_secret = client_app(context.settings, connector, credentials.environment)
        async with asyncio.timeout(_REVOKE_SECONDS):
            done = await auth.revoke(
                connector,
                found[0],
                credentials.environment,
                http=context.http,
                client_id=client_id,
                client_secret=client_secret,
                credentials=credentials,
            )
    except (HubError, TimeoutError) as error:
        why = error.message if isinstance(error, HubError) else f"no answer within {_REVOKE_SECONDS} seconds"
        await log.awarning("integration.revoke_failed", provider=connector.name, error=why)
        return "failed", why
    return ("done" if done else "not_offered"), None
