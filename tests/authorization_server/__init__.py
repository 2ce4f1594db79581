"""An OAuth 2.0 authorization server for tests: the rules are authlib's, the wire is real HTTP.

    with running_authorization_server() as server:
        server.url, server.client_id, server.client_secret
        server.behaviour.rotates = False            # it can be changed at any time
        server.faults.append(Fault(after=True, drop=True))
        server.wait_for(lambda: server.counts["refresh_token"] == 1)

It imports nothing of the engine or the server: what it says is what RFC 6749, 7009, 7636 and 9207 say.
"""

from tests.authorization_server.grants import Behaviour
from tests.authorization_server.running import (
    Asked,
    AuthorizationServer,
    Fault,
    running_authorization_server,
)

__all__ = ["Asked", "AuthorizationServer", "Behaviour", "Fault", "running_authorization_server"]
