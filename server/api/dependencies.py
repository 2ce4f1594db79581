"""What handlers are given: what the process shares, and who acts."""

import asyncio
from collections.abc import Mapping
from typing import Any

from litestar import Request
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from server.api.errors import request_id
from server.context import Context
from server.services.audit import Actor, address

# It is ours already: looking whether it is one would go through every manifest that it holds.
Shared = NamedDependency[SkipValidation[Context]]
Acting = NamedDependency[Actor]
Stopping = NamedDependency[asyncio.Event]  # set when the server is told to stop: whoever waits, answers


async def _context(state: State) -> Context:
    context: Context = state.context
    return context


async def _stopping(state: State) -> asyncio.Event:
    stopping: asyncio.Event = state.stopping
    return stopping


async def _actor(request: Request[Any, Any, Any]) -> Actor:
    host = request.client.host if request.client else None
    return Actor(request.user.id, address(host), request_id(request.scope), request.user.role)


DEPENDENCIES: Mapping[str, Provide] = {
    "context": Provide(_context),
    "actor": Provide(_actor),
    "stopping": Provide(_stopping),
}
