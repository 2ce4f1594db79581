"""`python -m tests.sandbox`: serve the stand-ins until told to stop."""

import argparse
import signal
import sys
from pathlib import Path

import orjson

from tests.sandbox import mailchimp, quickbooks
from tests.sandbox.running import PROVIDERS, listen, make_server, stand_ins, url_of
from tests.sandbox.square import DEFAULT_CLIENT, DEFAULT_SECRET

FIRST_PORT = 9101
# What a client needs to connect, and the origins each stands in for.
CLIENTS = {
    "stripe": {"replaces": ["https://api.stripe.com"], "credentials": {"apiKey": "sk_test_demo"}},
    "square": {
        "replaces": ["https://connect.squareup.com", "https://connect.squareupsandbox.com"],
        "app": {"client_id": DEFAULT_CLIENT, "client_secret": DEFAULT_SECRET},
        "approve": {"auto_approve": "1"},
    },
    "mailchimp": {
        "replaces": list(mailchimp.REPLACES),
        "app": {"client_id": mailchimp.DEFAULT_CLIENT, "client_secret": mailchimp.DEFAULT_SECRET},
        "approve": {"auto_approve": "1"},
    },
    "quickbooks": {
        "replaces": list(quickbooks.REPLACES),
        "app": {"client_id": quickbooks.DEFAULT_CLIENT, "client_secret": quickbooks.DEFAULT_SECRET},
        "approve": {"auto_approve": "1"},
    },
}


def main() -> int:
    """Serve; print one line of JSON when listening; return 0 after SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox", description=__doc__)
    for port, name in enumerate(PROVIDERS, FIRST_PORT):
        parser.add_argument(f"--{name}", type=int, default=port, metavar="PORT", help="0 takes a free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--move", action="store_true", help="take a free port where one is taken")
    parser.add_argument("--seed", choices=["demo"], help="what the providers hold at the start")
    parser.add_argument(
        "--known-emails", type=Path, metavar="FILE", help="addresses, one a line, for seeded customers"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep what they hold between two starts")
    options = parser.parse_args()
    emails: list[str] = []
    if options.known_emails is not None and options.known_emails.is_file():
        emails = options.known_emails.read_text(encoding="utf-8").split()

    # The server raises the signal that stopped it once more, for whoever comes after; nobody does.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    made = stand_ins(options.seed, emails)
    saved = {name: options.state / f"{name}.pickle" for name in made} if options.state else {}
    for name, stand_in in made.items():
        if name in saved and saved[name].is_file():
            stand_in.load(saved[name])
    sockets = [listen(options.host, getattr(options, name), move=options.move) for name in made]

    def announce() -> None:
        urls = {name: url_of(options.host, bound) for name, bound in zip(made, sockets, strict=True)}
        providers = {name: {"url": url, **CLIENTS[name]} for name, url in urls.items()}
        sys.stdout.write(orjson.dumps({"ready": True, **urls, "providers": providers}).decode() + "\n")
        sys.stdout.flush()

    make_server(sockets, list(made.values()), announce).run(sockets)
    for name, stand_in in made.items():
        if name in saved:
            saved[name].parent.mkdir(parents=True, exist_ok=True)
            stand_in.save(saved[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
