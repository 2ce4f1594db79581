"""Stand-ins for providers' own hosts, written from the providers' documentation.

They keep state, check what they are sent as strictly as the originals do, and can be told to fail.
`python -m tests.sandbox --help` starts them, `tests.sandbox.running.running_sandbox` starts them in
a test. Beside the provider's own paths each port has a control API, JSON both ways:

    GET    /_sandbox/calls            counters: total, by_call, by_status, writes, effects, …
    POST   /_sandbox/calls/reset      set them to zero
    GET    /_sandbox/objects?type=…   everything stored of a type, of all accounts, deleted included
    POST   /_sandbox/faults           {"rules": [{match, fault, rate, times, headers}], "seed"}
    DELETE /_sandbox/faults           no more faults
    POST   /_sandbox/latency          {"seconds"}: every call takes at least that long
    POST   /_sandbox/limits           {"requests_per_second", "per_endpoint"}: a rate, or null for none
    POST   /_sandbox/clock            {"advance": seconds}: let time go by, so that tokens and cursors end
    POST   /_sandbox/accounts         a new account and a key or token for it
    POST   /_sandbox/tokens/revoke    {"account"} or {"key"} or {"token"}
    POST   /_sandbox/payments         Stripe: {"count", "customer_emails"}
    POST   /_sandbox/orders           Square: {"count"}
    POST   /_sandbox/reset            as just started, seed included

What else a provider's port takes is said at the top of its module.

Faults: `status:500`, `html`, `disconnect` and `timeout:2.0` come before the call is executed;
`truncated` and `repeat_page` spoil the answer; `after:500`, `after:disconnect` and
`after:timeout:2.0` execute the call and then lose the answer. A timeout that comes before executes
the call when it is over, whether or not the caller is still there. Stripe keeps a 500 as the outcome
of an idempotency key, as the original does; any other `after:` fault leaves the real outcome there.
"""
