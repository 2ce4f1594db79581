"""`hub dev`: everything on one machine, and the main job done through the public API.

Stores, migrations and a demo platform first; then simulated providers, the API, a worker and the scheduler as
processes of one supervisor; then a venue is connected to every provider and synced, as a client would do it.
No provider is named here: what a simulated one needs, it says itself when it is ready.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from engine.ports import Secret
from server.settings import Settings
from server.supervisor import ProcessFailedError, ProcessSpec, Running, stop_signals, supervised

PROJECT = Path(__file__).resolve().parent.parent
API = "/api/v1/integrations"
READY_SECONDS = 60.0
COLUMNS = {
    "read": "read",
    "created": "created",
    "updated": "updated",
    "unchanged": "unchanged",
    "skipped": "skipped",
    "failed": "failed",
    "api_calls": "calls",
}
WIDE = 90


class DevError(RuntimeError):
    """The hub can't be brought up here; the message says what to do."""


class ApiError(RuntimeError):
    """The hub's API refused a request."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What it takes to connect one provider: credentials for a key, or an app for OAuth."""

    name: str
    credentials: Mapping[str, Secret] = field(default_factory=dict)
    environment: str = "production"
    url: str | None = None  # of a simulated one
    replaces: Sequence[str] = ()
    app: tuple[str, Secret] | None = None
    approve: Mapping[str, str] | None = None  # query that makes a simulated consent page agree by itself


# ---- the API, as a client sees it ----------------------------------------------------------------


class ApiClient:
    """The few calls the demo makes. Raises ApiError with the hub's own sentence when one is refused."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self.http.request(method, path, **options)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ApiError(f"{method} {path}: no answer from the hub at {self.http.base_url}") from error
        if not answer.get("success"):
            raise ApiError(f"{method} {path}: {answer.get('error')} ({answer.get('code')})")
        return dict(answer)

    async def integrations(self, venue: str) -> dict[str, dict[str, Any]]:
        """Return the venue's integrations by provider."""
        answer = await self.request("GET", API, params={"venueId": venue, "limit": 200})
        return {row["integration_type"]: row for row in answer["data"]}

    async def connect(self, provider: Provider, venue: str, say: Console) -> None:
        """Connect with a key or by OAuth: a simulated consent is walked, a real one is waited for."""
        body = {
            "venueId": venue,
            "environment": provider.environment,
            "credentials": {name: value.reveal() for name, value in provider.credentials.items()},
            # The demo starts its syncs itself; a real venue leaves this on.
            "config": {"syncEnabled": False, "syncInterval": 300, "syncDirection": "bidirectional"},
        }
        answer = await self.request("POST", f"{API}/connect/{provider.name}", json=body)
        consent = answer["data"].get("authUrl")
        if consent is None:
            return
        if provider.approve is None:
            # The provider sends the browser back to this hub, which therefore has to stay.
            say.print(f"open this page to connect [bold]{provider.name}[/], within ten minutes:")
            say.print(consent, soft_wrap=True, highlight=False, markup=False)
            while True:
                row = (await self.integrations(venue))[provider.name]
                if row["status"] == "connected":
                    return
                if row["status"] != "connecting":
                    raise ApiError(f"connecting {provider.name}: {row['last_error']}")
                await asyncio.sleep(1)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as browser:
            page = await browser.get(httpx.URL(consent).copy_merge_params(dict(provider.approve)))
            if page.status_code != httpx.codes.FOUND:
                raise ApiError(f"{provider.name}'s consent page answered {page.status_code}")
            back = await browser.get(page.headers["location"], headers={"Accept": "application/json"})
        if back.status_code != httpx.codes.OK or not back.json().get("success"):
            raise ApiError(f"connecting {provider.name}: {back.text[:300]}")

    async def start_sync(self, provider: str, venue: str, sync_type: str = "full") -> str:
        body = {"venueId": venue, "syncType": sync_type, "options": {"force": True}, "wait": 0}
        answer = await self.request("POST", f"{API}/sync/{provider}/sync", json=body)
        return str(answer["data"]["syncId"])

    async def sync_under_way(self, provider: str, venue: str) -> str | None:
        """Return the id of the sync that waits or runs, if there is one."""
        answer = await self.request("GET", f"{API}/sync/{provider}/sync/status", params={"venueId": venue})
        current = answer["data"]["current"]
        return str(current["syncId"]) if current else None

    async def sync_progress(self, provider: str, sync_id: str) -> dict[str, Any]:
        answer = await self.request("GET", f"{API}/sync/{provider}/sync/{sync_id}")
        return dict(answer["data"])


async def show_syncs(api: ApiClient, syncs: Mapping[str, str], *, json_output: bool) -> int:
    """Follow syncs to their ends, showing a live table; returns 0, or 1 when one failed or a record did."""
    console = Console(stderr=json_output)
    states = await _follow(api, syncs, console)
    if json_output:
        sys.stdout.write(json.dumps({"syncs": states}) + "\n")
    for provider, state in states.items():
        if state["status"] != "completed":
            console.print(
                f"[red]{provider}: {state['status']}: {state.get('error') or 'no reason was kept'}[/]"
            )
    good = all(
        state["status"] == "completed" and not any(row.get("failed") for row in _mappings(state))
        for state in states.values()
    )
    return 0 if good else 1


async def _follow(api: ApiClient, syncs: Mapping[str, str], console: Console) -> dict[str, dict[str, Any]]:
    """Show syncs in a table until all have ended; returns how they ended, by provider."""
    states: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    with Live(console=console, refresh_per_second=4, auto_refresh=console.is_terminal) as live:
        while True:
            for provider, sync_id in syncs.items():
                if not states.get(provider, {}).get("ended"):
                    states[provider] = await api.sync_progress(provider, sync_id)
            done = all(state["ended"] for state in states.values())
            if console.is_terminal or done:
                live.update(_table(states, time.monotonic() - started, done, console.width))
            if done:
                break
            await asyncio.sleep(0.25)
    if not console.is_terminal:
        console.print()  # on a terminal the live display ends the last line
    return states


async def sync_all(
    api: ApiClient, venue: str, providers: Sequence[str], say: Console, *, json_output: bool
) -> int:
    """Sync every provider; returns as `show_syncs`.

    What an interrupted run left goes first: it may be past records that have changed since.
    """
    left = {provider: await api.sync_under_way(provider, venue) for provider in providers}
    if under_way := {provider: sync_id for provider, sync_id in left.items() if sync_id}:
        say.print("[dim]going on with what was interrupted…[/]")
        await _follow(api, under_way, say)
    syncs = {provider: await api.start_sync(provider, venue) for provider in providers}
    return await show_syncs(api, syncs, json_output=json_output)


def _mappings(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((state.get("progress") or {}).get("mappings") or [])


def _table(states: Mapping[str, Mapping[str, Any]], seconds: float, done: bool, width: int) -> Table:
    """Lay out what every mapping did so far; a narrow terminal goes without the column least asked for."""
    title = f"synced in {seconds:.1f} s" if done else f"syncing… {seconds:.0f} s"
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    columns = [(name, heading) for name, heading in COLUMNS.items() if name != "skipped" or width >= WIDE]
    table.add_column("", no_wrap=True)
    for heading in (*(heading for _, heading in columns), "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for provider, state in states.items():
        rows = _mappings(state)
        table.add_row(f"[bold]{provider}[/]" + ("" if rows else f" {state['status']}"))
        for row in rows:
            arrow = "→" if row["direction"] == "push" else "←"
            counts = [
                f"[red]{row[name]}[/]" if name == "failed" and row[name] else str(row.get(name, 0))
                for name, _ in columns
            ]
            took = f"{row.get('duration_ms', 0) / 1000:.1f}s"
            table.add_row(f" {row['entity']} {arrow} {row['resource']}", *counts, took)
    return table


# ---- bringing everything up ----------------------------------------------------------------------


def run_dev(settings: Settings, *, real: bool, once: bool, json_output: bool) -> int:
    """Run the whole hub until Ctrl-C (or, with `once`, until the sync ended); returns the exit status."""
    from server.embedded import EmbeddedError, embedded_stores

    if settings.production:
        raise DevError("`hub dev` is for development; in production run serve, worker and scheduler")
    say = Console(stderr=json_output)
    state = stores_folder(settings, real=real)
    try:
        say.print("[dim]starting stores…[/]")
        with embedded_stores(
            state, database_url=settings.database_url, redis_url=settings.redis_url
        ) as stores:
            settings = _with_port(settings)
            from server.db.migrate import upgrade
            from server.demo.generate import load_demo

            upgrade(stores.database_url)
            say.print("[dim]loading the demo platform…[/]")
            platform_url = settings.platform_database_url or stores.database_url
            load_demo(platform_url)
            env = {
                "DATABASE_URL": stores.database_url,
                "REDIS_URL": stores.redis_url,
                "PLATFORM_DATABASE_URL": platform_url,
                "HUB_STATE": str(settings.state),
                "PORT": str(settings.port),
                # One address is all the simulated providers, and one token does all there is to see.
                "RATE_LIMIT_MAX_REQUESTS": os.environ.get("RATE_LIMIT_MAX_REQUESTS") or "10000",
                "HUB_RATE_LIMIT_WEBHOOKS": os.environ.get("HUB_RATE_LIMIT_WEBHOOKS") or "10000",
            }
            return asyncio.run(_run(settings, env, state, say, real=real, once=once, json_output=json_output))
    except (EmbeddedError, ProcessFailedError, ApiError) as error:
        raise DevError(str(error)) from error


def stores_folder(settings: Settings, *, real: bool) -> Path:
    """Return where a run keeps its stores: what real providers hold never meets what simulated ones do."""
    return settings.state / "real" if real else settings.state


def _with_port(settings: Settings) -> Settings:
    """Return the settings with a port the API can have; raises DevError when another program has it."""
    try:
        kind, _, _, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            port = probe.getsockname()[1]
    except OSError as error:
        raise DevError(
            f"the API can't listen at {settings.host} on port {settings.port} ({error.strerror}): "
            "choose another port with PORT"
        ) from error
    if settings.port:
        return settings
    return replace(settings, port=port, api_url=f"http://127.0.0.1:{port}")


async def _run(
    settings: Settings,
    env: dict[str, str],
    state: Path,
    say: Console,
    *,
    real: bool,
    once: bool,
    json_output: bool,
) -> int:
    logs = state / "logs"
    async with stop_signals() as stop:
        if real:
            providers = _real_providers(settings)
            return await _serve(settings, env, providers, say, stop, logs, once=once, json_output=json_output)
        ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def heard(name: str, line: str) -> None:
            if not ready.done() and line.startswith('{"ready"'):
                ready.set_result(json.loads(line))

        argv = [
            sys.executable,
            "-m",
            "tests.sandbox",
            *SANDBOX_ARGUMENTS,
            "--state",
            str(state / "sandbox"),
        ]
        sandbox = ProcessSpec("sandbox", argv, env={"PYTHONPATH": str(PROJECT)})
        async with supervised([sandbox], logs=logs, on_line=heard) as running:
            say.print("[dim]starting simulated providers…[/]")
            told = await _before(running, ready, stop, "the simulated providers didn't start")
            if told is None:
                return 130
            providers = [
                _simulated(name, entry)
                for name, entry in told["providers"].items()
                if (settings.connectors_dir / f"{name}.yaml").is_file()
            ]
            overrides = {origin: provider.url for provider in providers for origin in provider.replaces}
            env["HUB_ORIGIN_OVERRIDES"] = ",".join(f"{origin}={url}" for origin, url in overrides.items())
            for provider in providers:
                if provider.app:
                    env[f"{provider.name.upper()}_CLIENT_ID"] = provider.app[0]
                    env[f"{provider.name.upper()}_CLIENT_SECRET"] = provider.app[1].reveal()
            return await _serve(settings, env, providers, say, stop, logs, once=once, json_output=json_output)


SANDBOX_ARGUMENTS = ("--seed", "demo", "--move")


def _simulated(name: str, entry: Mapping[str, Any]) -> Provider:
    app = entry.get("app")
    return Provider(
        name=name,
        credentials={key: Secret(value) for key, value in (entry.get("credentials") or {}).items()},
        environment="sandbox",
        url=entry["url"],
        replaces=entry["replaces"],
        app=(app["client_id"], Secret(app["client_secret"])) if app else None,
        approve=entry.get("approve"),
    )


def _real_providers(settings: Settings) -> list[Provider]:
    """Find, among all manifests, the providers whose credentials are in the environment."""
    from engine.manifest import load_connector

    environment = os.environ.get("HUB_PROVIDER_ENVIRONMENT", "production")
    found: list[Provider] = []
    for path in sorted(settings.connectors_dir.glob("*.yaml")):
        if path == settings.platform:
            continue
        connector = load_connector(path)
        prefix = connector.name.upper().replace("-", "_")
        for method in connector.auth:
            given = {
                field.name: Secret(os.environ[f"{prefix}_{field.name.upper()}"])
                for field in method.credentials
                if os.environ.get(f"{prefix}_{field.name.upper()}")
            }
            app = settings.client_app(connector.name) if method.oauth else None
            if given or app:
                found.append(Provider(connector.name, given, environment, app=app))
                break
    if not found:
        raise DevError("no provider has credentials in the environment; README says which variables to set")
    return found


async def _serve(
    settings: Settings,
    env: Mapping[str, str],
    providers: Sequence[Provider],
    say: Console,
    stop: asyncio.Event,
    logs: Path,
    *,
    once: bool,
    json_output: bool,
) -> int:
    from server.demo.generate import DEMO_VENUE_ID

    hub = [sys.executable, "-m", "server.cli"]
    specs = [
        ProcessSpec(name, [*hub, command], env=env)
        for name, command in (("api", "serve"), ("worker", "worker"), ("scheduler", "scheduler"))
    ]
    async with supervised(specs, logs=logs) as running:
        say.print("[dim]starting the API, a worker and the scheduler…[/]")
        up = await _before(
            running, _until_ready(settings.api_url), stop, f"the API didn't start; see {logs}/api.log"
        )
        if up is None:
            return 130
        from server.cli import _token as issue

        venue = str(DEMO_VENUE_ID)
        async with ApiClient(settings.api_url, issue(settings, "venue_admin", venue, 12 * 3600)) as api:

            async def work() -> int:
                there = await api.integrations(venue)
                for provider in providers:
                    if there.get(provider.name, {}).get("status") != "connected":
                        await api.connect(provider, venue, say)
                        say.print(f"connected [bold]{provider.name}[/]")
                names = [provider.name for provider in providers]
                return await sync_all(api, venue, names, say, json_output=json_output)

            status = await _before(running, work(), stop, None)
        if status is None or once:
            return 130 if status is None else status
        token = issue(settings, "admin", None, 12 * 3600)
        shown = [
            ("API", f"{settings.api_url}{API}?venueId={venue}"),
            ("OpenAPI", f"{settings.api_url}/schema"),
        ]
        shown += [(each.name, f"{each.url}/_sandbox/calls (simulated)") for each in providers if each.url]
        say.print()
        for name, place in (*shown, ("Logs", str(logs))):
            say.print(f"{name:<10} {place}", soft_wrap=True)  # an address in two lines can't be followed
        say.print("Token      (admin, 12 hours)")
        say.print(token, soft_wrap=True, highlight=False)
        say.print(
            "\n[dim]Ctrl-C stops everything; the next run starts in seconds and writes only what changed.[/]"
        )
        await _before(running, stop.wait(), stop, None)
        say.print("[dim]stopping…[/]")
        return 0


async def _until_ready(url: str) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                if (await http.get(f"{url}/ready")).status_code == httpx.codes.OK:
                    return True
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
    raise TimeoutError


async def _before(running: Running, work: Any, stop: asyncio.Event, late: str | None) -> Any:
    """Await `work` unless somebody asks to stop (None) or a process can't be kept running (raises)."""
    job = asyncio.ensure_future(work)
    failed = asyncio.ensure_future(running.wait())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait(
            {job, failed, stopped},
            timeout=READY_SECONDS if late else None,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if job in done:
            return job.result()
        if failed in done:
            failed.result()
        if stopped in done:
            return None
        raise DevError(late or "it took too long")
    except TimeoutError as error:
        raise DevError(late or "it took too long") from error
    finally:
        for task in (job, failed, stopped):
            task.cancel()
        await asyncio.gather(job, failed, stopped, return_exceptions=True)
