"""The `hub` command: the engine's commands and the server's.

Exit status 0: done; 1: it failed; 2: misuse. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import rich_click as click

from engine.cli import as_json, commands

if TYPE_CHECKING:
    from server.context import Context
    from server.db.models import MaintenanceRun
    from server.services.templates import Offer
    from server.settings import Settings

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parent.parent

click.rich_click.COMMAND_GROUPS = {
    "hub": [
        {"name": "Run", "commands": ["dev", "serve", "worker", "scheduler", "migrate", "alive"]},
        {"name": "Ask", "commands": ["sync", "plan", "token", "openapi", "vault", "venue"]},
        {
            "name": "Write connectors and templates",
            "commands": ["new", "lint", "templates", "explain", "preview", "call", "pull", "push", "docs"],
        },
    ]
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="integration-hub")
def main() -> None:
    """The integration hub: one YAML manifest per provider, one mapping template per venue type."""


for command in commands.commands.values():
    main.add_command(command)


def _settings(*, stores: bool = True) -> Settings:
    """Read the settings, or end with what is wrong with them; `stores` says that the URLs are needed."""
    from server.settings import SettingsError, read_settings

    try:
        settings = read_settings()
    except SettingsError as error:
        raise click.ClickException(error.message) from error
    missing = [
        name
        for name, value in (("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url))
        if stores and value is None
    ]
    if missing:
        raise click.UsageError(f"{' and '.join(missing)} must be set; `hub dev` starts stores of its own")
    return settings


@main.command()
@click.option(
    "--real", is_flag=True, help="Connect to the real providers, with your credentials; see README."
)
@click.option("--once", is_flag=True, help="Stop after the first sync instead of serving on.")
@click.option("--fresh", is_flag=True, help="Forget what earlier runs left in the hub's own stores.")
@as_json
def dev(real: bool, once: bool, fresh: bool, json_output: bool) -> None:
    """Start everything on this machine, with a demo platform and simulated providers, and sync."""
    from server.dev import DevError, run_dev, stores_folder
    from server.embedded import EmbeddedError, forget

    settings = _settings(stores=False)
    if fresh and (settings.database_url or settings.redis_url):
        raise click.UsageError(
            "--fresh forgets the hub's own stores, and DATABASE_URL or REDIS_URL names another"
        )
    try:
        if fresh:
            forget(stores_folder(settings, real=real))
        sys.exit(run_dev(settings, real=real, once=once, json_output=json_output))
    except (DevError, EmbeddedError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
def serve() -> None:
    """Serve the API on HOST and PORT."""
    from server.serving import serve as run

    run(_settings())


@main.command()
@click.option("--lane", "lanes", multiple=True, type=click.Choice(["critical", "high", "normal", "low"]))
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), help="Operations at a time; default WORKER_CONCURRENCY."
)
def worker(lanes: tuple[str, ...], concurrency: int | None) -> None:
    """Work operations from the lanes, all four unless some are named."""
    from server.worker.main import run_worker

    settings = _settings()
    _run(run_worker(settings, lanes=lanes or None, concurrency=concurrency or settings.worker_concurrency))


@main.command()
def scheduler() -> None:
    """Make due operations known, start scheduled syncs, refresh credentials. Safe to run twice."""
    from server.worker.main import run_scheduler

    _run(run_scheduler(_settings()))


def _run(coroutine: Any) -> None:
    import uvloop

    uvloop.run(coroutine)


@main.command()
@click.option("--url", help="The API's address; default PORT on this machine.")
@click.option("--ready", is_flag=True, help="Ask `/ready` instead of `/health`.")
@as_json
def alive(url: str | None, ready: bool, json_output: bool) -> None:
    """Ask the API whether it lives, for health checks of containers; ends with 1 when it doesn't say so."""
    import http.client
    import urllib.request

    # Settings aren't read: a check runs every few seconds, and needs none of them.
    address = (
        f"{url or 'http://127.0.0.1:' + (os.environ.get('PORT') or '3007')}/{'ready' if ready else 'health'}"
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=4) as answer:
            said = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise click.ClickException(f"{address}: {error}") from error
    click.echo(json.dumps(said) if json_output else said["status"])


@main.command()
@click.option("--down", metavar="REVISION", help="Go back to this revision; `base` is the empty database.")
@as_json
def migrate(down: str | None, json_output: bool) -> None:
    """Bring the database at DATABASE_URL up to date."""
    from server.db import migrate as migrations
    from server.settings import SettingsError, read_settings

    try:
        url = read_settings().database_url
    except SettingsError as error:
        raise click.ClickException(error.message) from error
    if url is None:
        raise click.UsageError("DATABASE_URL must be set")
    before = migrations.current(url)
    if down:
        migrations.downgrade(url, down)
    else:
        migrations.upgrade(url)
    after = migrations.current(url)
    if json_output:
        click.echo(json.dumps({"before": before, "after": after, "head": migrations.head()}))
    else:
        click.echo(f"already at {after}" if before == after else f"{before or 'empty'} → {after or 'empty'}")


@main.command()
@click.argument("provider")
@click.option("--venue", required=True, help="The venue's id.")
@click.option(
    "--type",
    "sync_type",
    type=click.Choice(["products", "customers", "transactions", "full"]),
    default="full",
)
@click.option("--url", help="The hub's address; default API_URL.")
@as_json
def sync(provider: str, venue: str, sync_type: str, url: str | None, json_output: bool) -> None:
    """Sync one venue with one provider through the API of a running hub, showing progress."""
    import asyncio

    from server.dev import ApiClient, ApiError, show_syncs

    settings = _settings(stores=False)
    token = _token(settings, "venue_admin", venue, 3600)

    async def run() -> int:
        async with ApiClient(url or settings.api_url, token) as api:
            sync_id = await api.start_sync(provider, venue, sync_type)
            return await show_syncs(api, {provider: sync_id}, json_output=json_output)

    try:
        sys.exit(asyncio.run(run()))
    except ApiError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("provider")
@click.option("--venue", required=True, help="The venue's id.")
@click.option(
    "--type",
    "sync_type",
    type=click.Choice(["products", "customers", "transactions", "full"]),
    default="full",
)
@click.option("--id", "plan_id", type=click.UUID, help="Show a plan that is there instead of making one.")
@click.option("--apply", is_flag=True, help="Write what the plan lists, and nothing else.")
@click.option("--yes", is_flag=True, help="Don't ask whether it is meant.")
@click.option("--url", help="The hub's address; default API_URL.")
@as_json
def plan(
    provider: str,
    venue: str,
    sync_type: str,
    plan_id: UUID | None,
    apply: bool,
    yes: bool,
    url: str | None,
    json_output: bool,
) -> None:
    """Show what a sync would write at a provider, and why, through the API of a running hub.

    Ends with 1 when a record can't be written, or applying the plan left one out.
    """
    import asyncio

    from server.dev import ApiClient, ApiError
    from server.showing import show_plan

    settings = _settings(stores=False)
    token = _token(settings, "venue_admin", venue, 3600)

    def sure(writes: int) -> bool:
        return yes or click.confirm(f"Write {writes} records at {provider}?", err=json_output)

    async def run() -> int:
        async with ApiClient(url or settings.api_url, token) as api:
            return await show_plan(
                api,
                provider,
                venue,
                sync_type,
                plan_id=str(plan_id) if plan_id else None,
                sure=sure if apply else None,
                json_output=json_output,
            )

    try:
        sys.exit(asyncio.run(run()))
    except ApiError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option(
    "--role", type=click.Choice(["admin", "venue_admin", "user"]), default="admin", show_default=True
)
@click.option("--venue", help="The venue's id, for venue_admin and user.")
@click.option("--hours", type=click.FloatRange(0.01, 24 * 365), default=12, show_default=True)
@as_json
def token(role: str, venue: str | None, hours: float, json_output: bool) -> None:
    """Print a token for the API, signed with JWT_SECRET. For trying things out and for scripts."""
    if role != "admin" and not venue:
        raise click.UsageError(f"a {role} needs --venue")
    value = _token(_settings(stores=False), role, venue, int(hours * 3600))
    click.echo(json.dumps({"token": value, "role": role, "venueId": venue}) if json_output else value)


def _token(settings: Settings, role: str, venue: str | None, seconds: int) -> str:
    import time

    import jwt

    if not settings.jwt_algorithm.startswith("HS"):
        raise click.UsageError(
            f"tokens are signed with {settings.jwt_algorithm} elsewhere; only JWT_SECRET can sign here"
        )
    now = int(time.time())
    claims: dict[str, Any] = {"sub": f"hub-cli-{role}", "role": role, "iat": now, "exp": now + seconds}
    if venue:
        claims["venueId"] = venue
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return jwt.encode(claims, settings.jwt_key.reveal(), algorithm=settings.jwt_algorithm)


@main.group()
def vault() -> None:
    """The keys that seal credentials."""


@vault.command("status")
@as_json
def vault_status(json_output: bool) -> None:
    """Show how much is sealed under which key, and which keys nothing needs any more."""
    from server.services import rotation

    async def run(context: Context) -> list[rotation.KeyUse]:
        async with context.sessions() as session:
            return await rotation.usage(session, context.vault.keys)

    keys = _with_context(run)
    if json_output:
        rows = [
            {
                "keyId": key.key_id,
                "values": key.count,
                "byColumn": dict(key.values),
                "known": key.known,
                "current": key.current,
                "removable": key.removable,
            }
            for key in keys
        ]
        click.echo(json.dumps({"keys": rows}))
    else:
        width = max(len(key.key_id or "") for key in keys)
        for key in keys:
            click.echo(f"{key.key_id or 'not sealed':{width}}  {key.count:>8} values  {key.remark}")


@vault.command("rotate")
@click.option("--wait", is_flag=True, help="Work it here to its end, showing progress.")
@as_json
def vault_rotate(wait: bool, json_output: bool) -> None:
    """Put everything under the current key, in batches, while all else goes on.

    Without --wait the scheduler does it. One that is under way is joined.
    """
    from server.services import rotation, upkeep
    from server.services.audit import Actor

    async def run(context: Context) -> MaintenanceRun:
        begun, _ = await rotation.request(context, Actor("hub-cli"))
        return await upkeep.work_to_end(context, begun.id, _progress(json_output)) if wait else begun

    done = _with_context(run)
    if json_output:
        click.echo(json.dumps({"runId": str(done.id), "status": done.status, "result": done.result}))
    elif not wait:
        click.echo(f"rotation {done.id} is under way; `hub vault status` shows how far it is")
    elif done.status == "completed":
        click.echo(f"all values are under {(done.result or {})['key']}")
    if wait and done.status != "completed":
        for value in (done.result or {}).get("values", []):
            click.echo(f"{value['column']} of row {value['row']}: {value['error']}", err=True)
        raise click.ClickException(done.error or f"the rotation is {done.status}")


def _with_context(work: Callable[[Context], Awaitable[T]]) -> T:
    """Run something that needs the stores and the vault; what the hub refuses ends the command."""
    import uvloop

    from engine.errors import HubError
    from server.context import open_context
    from server.telemetry import configure_logging

    settings = _settings()
    configure_logging("error" if settings.log_level == "error" else "warning", sys.stderr)

    async def run() -> T:
        async with open_context(settings, application_name="integration-hub cli", connections=4) as context:
            return await work(context)

    try:
        return uvloop.run(run())
    except HubError as error:
        raise click.ClickException(error.message) from error


@main.command()
@click.argument("provider")
@click.option("--type", "kind", help="A venue's type: which template it would get, and why.")
@click.option("--name", help="A venue's name: the same.")
@click.option("--usage", is_flag=True, help="Count how much each is used, in the database at DATABASE_URL.")
@as_json
def templates(provider: str, kind: str | None, name: str | None, usage: bool, json_output: bool) -> None:
    """List the mapping templates of PROVIDER, the kinds of venue each is for, and which suits a venue."""
    from engine.errors import HubError
    from server.catalog import load_catalog
    from server.services.templates import offers, with_use

    settings = _settings(stores=usage)
    try:
        catalog = load_catalog(settings.connectors_dir, settings.templates_dir, settings.platform)
        offered = offers(catalog, provider, {"type": kind, "name": name} if kind or name else None)
    except HubError as error:
        raise click.ClickException(error.message) from error

    async def count(context: Context) -> list[Offer]:
        async with context.sessions() as session:
            return await with_use(session, provider, offered)

    listed = _with_context(count) if usage else offered
    if json_output:
        click.echo(json.dumps([_offer(each, usage=usage) for each in listed], ensure_ascii=False))
        return
    for each in listed:
        over = f", over {each.extends}" if each.extends else ""
        click.echo(f"{click.style(each.template.name, bold=True)}{over}: {each.template.title}")
        for what, words in (
            ("for", each.template.suits.venue_types),
            ("names with", each.template.suits.name_mentions),
        ):
            if words:
                click.echo(f"  {what} {', '.join(words)}")
        if usage:
            click.echo(f"  in use {each.in_use}, adapted {each.adapted}, given {each.used} times")
        if each.because:
            click.secho(f"  suits: {each.because}", fg="green")


def _offer(offer: Offer, *, usage: bool) -> dict[str, Any]:
    used = {
        "usageCount": offer.used,
        "lastUsedAt": offer.last_used_at.isoformat() if offer.last_used_at else None,
        "inUse": offer.in_use,
        "adapted": offer.adapted,
    }
    return {
        "templateId": str(offer.id),
        "name": offer.template.name,
        "title": offer.template.title,
        "extends": offer.extends,
        "venueTypes": offer.template.suits.venue_types,
        "nameMentions": offer.template.suits.name_mentions,
        **(used if usage else {}),
        "because": offer.because,
    }


@main.group()
def venue() -> None:
    """A venue's data: all of it as one file, and all of it erased."""


@venue.command("export")
@click.argument("venue_id", metavar="ID", type=click.UUID)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write."
)
@as_json
def venue_export(venue_id: UUID, out: Path, json_output: bool) -> None:
    """Write all the hub has stored for a venue into a zip archive. Credentials are left out."""
    from server.services import export, upkeep
    from server.services.audit import Actor

    async def run(context: Context) -> MaintenanceRun:
        actor = Actor("hub-cli", role="operator")
        begun = await export.start(context, actor, venue_id)
        done = await upkeep.work_to_end(context, begun.id, _progress(json_output))
        if done.status == "completed":
            archive = await export.open_archive(context, actor, venue_id, done.id)
            await _write_parts(out, export.read_parts(context, archive))
        return done

    done = _with_context(run)
    _tell(done, json_output, f"{(done.result or {}).get('rows')} rows of {venue_id} are in {out}")


@venue.command("erase")
@click.argument("venue_id", metavar="ID", type=click.UUID)
@click.option("--yes", is_flag=True, help="Don't ask whether it is meant.")
@as_json
def venue_erase(venue_id: UUID, yes: bool, json_output: bool) -> None:
    """Disconnect a venue's integrations and delete all the hub has stored for it. This can't be undone."""
    from server.services import erasure, upkeep
    from server.services.audit import Actor

    if not yes:
        click.confirm(f"Erase all the hub has stored for venue {venue_id}?", abort=True)

    async def run(context: Context) -> MaintenanceRun:
        begun = await erasure.start(context, Actor("hub-cli", role="operator"), venue_id)
        return await upkeep.work_to_end(context, begun.id, _progress(json_output))

    done = _with_context(run)
    tables = (done.result or {}).get("tables", {}).values()
    erased, left = (sum(table[count] for table in tables) for count in ("erased", "left"))
    _tell(done, json_output, f"{erased} rows of {venue_id} are erased, {left} are left")


def _progress(json_output: bool) -> Callable[[MaintenanceRun], None]:
    """Return what shows how far a run is, each time it is somewhere else."""
    shown: set[str] = set()

    def show(run: MaintenanceRun) -> None:
        line = (
            f"{run.progress.get('done', 0)} of {run.progress.get('total', 0)}  {run.progress.get('step', '')}"
        )
        if not json_output and line not in shown:
            shown.add(line)
            click.echo(line)

    return show


def _tell(run: MaintenanceRun, json_output: bool, sentence: str) -> None:
    if json_output:
        click.echo(json.dumps({"runId": str(run.id), "status": run.status, "result": run.result}))
    if run.status != "completed":
        raise click.ClickException(run.error or f"the run is {run.status.value}")
    if not json_output:
        click.echo(sentence)


async def _write_parts(path: Path, parts: AsyncIterator[bytes]) -> None:
    """Write a file that only its owner may read, and that is there when it is whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        async for part in parts:
            file.write(part)
    unfinished.replace(path)


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file; default standard output."
)
def openapi(out: Path | None) -> None:
    """Print the OpenAPI 3.1 document of the API."""
    from server.app import openapi_document

    text = json.dumps(openapi_document(), indent=2, ensure_ascii=False)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        click.echo(text)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=PROJECT / "docs" / "reference",
    show_default="docs/reference",
    help="The folder for the pages.",
)
@as_json
def docs(out: Path, json_output: bool) -> None:
    """Write the reference pages from the schemas, manifests and code of this project."""
    from engine.reference import write_pages
    from server.reference import every_page

    files = write_pages(out, every_page(main))
    if json_output:
        click.echo(json.dumps({"files": [str(file) for file in files]}))
    else:
        click.echo(f"wrote {len(files)} pages to {out}")


if __name__ == "__main__":
    main()
