"""What other providers sign, said in YAML alone: each signs a delivery here as its documentation says.

`providers.yaml` has the schemes. Nothing of the engine makes a signature in this file.
"""

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from engine.deliveries import Delivery
from engine.documents import read_document
from engine.errors import SignatureError
from engine.lint import lint_connector
from engine.manifest import Webhooks, compile_connector
from engine.ports import Secret
from engine.public_keys import keys_in
from engine.signatures import Reading, SignatureScheme, counting, key_address, verify
from engine.webhooks import Reply, probe_reply, proved_by, split_events, verify_delivery

HERE = Path(__file__).parent
WRITTEN: dict[str, Any] = yaml.safe_load((HERE / "providers.yaml").read_text("utf-8"))
URL = "https://hub.example/api/v1/integrations/webhooks/juniper"
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = int(MOMENT.timestamp())
KEY = "s3cr3t-of-juniper"
JSON = b'{"id":"e1","event_id":"e1","type":"order.paid","event":"order.paid","amount":1.50}'


@cache
def webhooks_of(name: str) -> Webhooks:
    manifest = yaml.safe_load((HERE / "square-legacy.yaml").read_text("utf-8"))
    written = {"event": {"type": "type"}, **WRITTEN[name], "events": {"*": {"ignore": True}}}
    document = read_document(yaml.safe_dump({**manifest, "webhooks": written}), file=f"{name}.yaml")
    assert [str(each) for each in lint_connector(document)] == []
    found = compile_connector(document).webhooks
    assert found is not None
    return found


@dataclass(frozen=True, slots=True)
class Signed:
    """A delivery, what the hub would know of its provider, and what it tells."""

    body: bytes = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: str = KEY
    url: str = URL
    keys: bytes = b""  # what is published
    at: str | None = None  # where
    method: str = "POST"
    type: str = "order.paid"
    loose: bool = False  # whether its body may be altered, as far as the provider is concerned

    def delivery(self) -> Delivery:
        named = {name.lower(): value for name, value in self.headers.items()}
        return Delivery(self.method, self.url, {"content-type": "application/json", **named}, self.body)


def mac(text: bytes | str, algorithm: str = "sha256", key: bytes | str = KEY) -> bytes:
    as_bytes = key if isinstance(key, bytes) else key.encode()
    return hmac.new(as_bytes, text if isinstance(text, bytes) else text.encode(), algorithm).digest()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def p256_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def ed_public() -> bytes:
    return ed_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "juniper.example")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    made = made.not_valid_before(MOMENT - timedelta(days=1)).not_valid_after(MOMENT + timedelta(days=1))
    signed = made.public_key(rsa_key().public_key()).sign(rsa_key(), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


def web_keys(*, kid: str = "k1") -> bytes:
    numbers = rsa_key().public_key().public_numbers()
    made = {
        "kty": "RSA",
        "kid": kid,
        "use": "sig",
        "n": b64url(numbers.n.to_bytes(256, "big")),
        "e": b64url(numbers.e.to_bytes(3, "big")),
    }
    return json.dumps({"keys": [{"kty": "oct", "k": "AAAA"}, {**made, "use": "enc"}, made]}).encode()


def token(claims: Mapping[str, Any], algorithm: str = "HS256", **header: str) -> str:
    parts = [{"alg": algorithm, "typ": "JWT", **header}, claims]
    text = ".".join(b64url(json.dumps(each).encode()) for each in parts)
    if algorithm == "HS256":
        raw = mac(text)
    elif algorithm == "RS256":
        raw = rsa_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        halves = decode_dss_signature(p256_key().sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        raw = b"".join(each.to_bytes(32, "big") for each in halves)
    return f"{text}.{b64url(raw)}"


def over_body(
    header: str, *, algorithm: str = "sha256", prefix: str = "", hexed: bool = True, **more: Any
) -> Signed:
    body = more.pop("body", JSON)
    raw = mac(body, algorithm)
    written = raw.hex() if hexed else b64(raw)
    return Signed(body, {header: f"{prefix}{written}", **more.pop("headers", {})}, **more)


def form(parameters: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    return urlencode(parameters).encode(), {"Content-Type": "application/x-www-form-urlencoded"}


def adyen() -> Signed:
    item = {
        "pspReference": "7914073381342284",
        "merchantAccountCode": "TestMerchant",
        "merchantReference": "TestPayment-1407325143704",
        "amount": {"value": 1130, "currency": "EUR"},
        "eventCode": "AUTHORISATION",
        "success": "true",
    }
    # The vector that Adyen's libraries are tested with.
    key = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
    proof = "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="
    body = {
        "notificationItems": [
            {"NotificationRequestItem": {**item, "additionalData": {"hmacSignature": proof}}}
        ]
    }
    return Signed(json.dumps(body).encode(), secret=key, type="AUTHORISATION", loose=True)


def aws_sns() -> Signed:
    said = {
        "Type": "Notification",
        "MessageId": "m1",
        "TopicArn": "arn:aws:sns:eu-west-1:1:t",
        "Message": "{}",
    }
    said |= {"Subject": "Hello", "Timestamp": "2026-03-01T12:00:00.000Z"}
    return sns(said, ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"))


def sns(said: Mapping[str, str], names: tuple[str, ...]) -> Signed:
    text = "".join(f"{name}\n{said[name]}\n" for name in names)
    proof = b64(rsa_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA1()))
    at = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123.pem"
    body = json.dumps({**said, "SignatureVersion": "1", "Signature": proof, "SigningCertURL": at})
    headers = {"Content-Type": "text/plain; charset=UTF-8"}
    return Signed(body.encode(), headers, "", keys=certificate(), at=at, type=said["Type"], loose=True)


def braintree() -> Signed:
    payload = b64(b"<notification><kind>check</kind></notification>") + "\n"
    proof = mac(payload, "sha1", hashlib.sha1(KEY.encode(), usedforsecurity=False).digest()).hex()
    body, headers = form({"bt_signature": f"other_key|00&our_public_key|{proof}", "bt_payload": payload})
    return Signed(body, headers, type="notification", loose=True)


def contentful() -> Signed:
    at, names = f"{NOW}000", "x-contentful-signed-headers,x-contentful-timestamp"
    listed = f"x-contentful-signed-headers:{names};x-contentful-timestamp:{at}"
    text = "\n".join(("POST", "/api/v1/integrations/webhooks/juniper", listed, JSON.decode()))
    headers = {"X-Contentful-Signature": mac(text).hex(), "X-Contentful-Signed-Headers": names}
    return Signed(JSON, {**headers, "X-Contentful-Timestamp": at, "X-Contentful-Topic": "order.paid"})


def discord(body: bytes = JSON) -> Signed:
    proof = ed_key().sign(f"{NOW}".encode() + body).hex()
    headers = {"X-Signature-Ed25519": proof, "X-Signature-Timestamp": str(NOW)}
    return Signed(body, headers, ed_public().hex())


def ebay() -> Signed:
    body = b'{"metadata":{"topic":"order.paid"}}'
    proof = p256_key().sign(body, ec.ECDSA(hashes.SHA1()))
    wrapped = {"alg": "ecdsa", "kid": "k1", "signature": b64(proof), "digest": "SHA1"}
    key = p256_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Signed(body, {"X-EBAY-SIGNATURE": b64(json.dumps(wrapped).encode())}, key)


def http_signature() -> Signed:
    date, digest = "Sun, 01 Mar 2026 12:00:00 GMT", f"SHA-256={b64(hashlib.sha256(JSON).digest())}"
    lines = ("(request-target): post /api/v1/integrations/webhooks/juniper", "host: hub.example")
    text = "\n".join((*lines, f"date: {date}", f"digest: {digest}"))
    proof = b64(rsa_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))
    signed = (
        f'keyId="k1",algorithm="rsa-sha256",headers="(request-target) host date digest",signature="{proof}"'
    )
    key = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Signed(JSON, {"Host": "hub.example", "Date": date, "Digest": digest, "Signature": signed}, key)


def twitch() -> Signed:
    body, at = b'{"subscription":{"type":"order.paid"}}', "2026-03-01T12:00:00.123456789Z"
    headers = {"Twitch-Eventsub-Message-Id": "m1", "Twitch-Eventsub-Message-Timestamp": at}
    proof = mac(f"m1{at}".encode() + body).hex()
    return Signed(body, {**headers, "Twitch-Eventsub-Message-Signature": f"sha256={proof}"})


def google_pubsub() -> Signed:
    claims = {
        "aud": URL,
        "email": "push@juniper.iam.gserviceaccount.com",
        "email_verified": True,
        "exp": NOW + 60,
    }
    headers = {"Authorization": f"Bearer {token(claims, 'RS256', kid='k1')}"}
    body = b'{"message":{"messageId":"1","data":"e30="}}'
    at = "https://www.googleapis.com/oauth2/v3/certs"
    return Signed(body, headers, "", keys=web_keys(), at=at, type="message", loose=True)


def hubspot(before: str) -> Signed:
    body = b'[{"subscriptionType":"order.paid","objectId":7}]'
    proof = hashlib.sha256(before.encode() + body).hexdigest()
    return Signed(body, {"X-HubSpot-Signature": proof})


def linear() -> Signed:
    body = b'{"webhookTimestamp":%d000,"type":"order","action":"paid"}' % NOW
    return Signed(body, {"Linear-Signature": mac(body).hex()})


def mailgun() -> Signed:
    proof = {"timestamp": str(NOW), "token": "t0k", "signature": mac(f"{NOW}t0k").hex()}
    body = {"signature": proof, "event-data": {"event": "order.paid"}}
    return Signed(json.dumps(body).encode(), loose=True)


def mercado_pago() -> Signed:
    proof = mac(f"id:p1;request-id:r1;ts:{NOW};").hex()
    headers = {"X-Signature": f"ts={NOW},v1={proof}", "X-Request-Id": "r1"}
    return Signed(JSON, headers, url=f"{URL}?data.id=P1&type=payment", type="payment", loose=True)


def microsoft_graph() -> Signed:
    body = json.dumps({"value": [{"changeType": "order.paid", "clientState": KEY, "resource": "users/1"}]})
    return Signed(body.encode(), loose=True)


def paypal() -> Signed:
    body, at = b'{"id":"WH-1","event_type":"order.paid"}', "2026-03-01T11:59:00Z"
    text = f"tr-1|{at}|WEBHOOK-ID|{zlib.crc32(body)}"
    where = "https://api.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594"
    headers = {
        "PAYPAL-TRANSMISSION-ID": "tr-1",
        "PAYPAL-TRANSMISSION-TIME": at,
        "PAYPAL-CERT-URL": where,
        "PAYPAL-AUTH-ALGO": "SHA256withRSA",
        "PAYPAL-TRANSMISSION-SIG": b64(rsa_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())),
    }
    return Signed(body, headers, "WEBHOOK-ID", keys=certificate(), at=where)


def plaid() -> Signed:
    body = b'{"webhook_code": "order.paid"}'
    claims = {"iat": NOW - 20, "request_body_sha256": hashlib.sha256(body).hexdigest()}
    numbers = p256_key().public_key().public_numbers()
    halves = {name: b64url(getattr(numbers, name).to_bytes(32, "big")) for name in ("x", "y")}
    key = json.dumps({"kty": "EC", "crv": "P-256", "kid": "k1", **halves})
    return Signed(body, {"Plaid-Verification": token(claims, "ES256", kid="k1")}, key)


def plivo() -> Signed:
    body, headers = form({"To": "1", "Event": "order.paid", "From": "2"})
    proof = b64(mac(f"{URL}.Eventorder.paidFrom2To1.n0nce"))
    return Signed(
        body, {**headers, "X-Plivo-Signature-V3": f"{proof},other", "X-Plivo-Signature-V3-Nonce": "n0nce"}
    )


def salesforce() -> Signed:
    body = b"""<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <soapenv:Body>
  <notifications xmlns="http://soap.sforce.com/2005/09/outbound">
   <OrganizationId>00D1</OrganizationId>
   <SessionId xsi:nil="true"/>
   <Notification>
    <Id>04l1</Id>
    <sObject xsi:type="sf:Contact" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">
     <sf:Id>0031</sf:Id><sf:Email>ana@example.com</sf:Email>
    </sObject>
   </Notification>
  </notifications>
 </soapenv:Body>
</soapenv:Envelope>"""
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
    return Signed(body, headers, url=f"{URL}/{KEY}", type="changed", loose=True)


def sendgrid() -> Signed:
    body = b'[{"event":"order.paid","sg_event_id":"1"}]\r\n'
    proof = p256_key().sign(f"{NOW}".encode() + body, ec.ECDSA(hashes.SHA256()))
    key = p256_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = "X-Twilio-Email-Event-Webhook"
    return Signed(body, {f"{name}-Signature": b64(proof), f"{name}-Timestamp": str(NOW)}, b64(key))


def shopify_redirect() -> Signed:
    query = {"code": "c1", "shop": "juniper.myshopify.com", "timestamp": str(NOW)}
    proof = mac("&".join(f"{name}={query[name]}" for name in sorted(query))).hex()
    return Signed(b"{}", url=f"{URL}?hmac={proof}&{urlencode(query)}", type="redirect", loose=True)


def standard(header: str, sign: Callable[[bytes], bytes], secret: str) -> Signed:
    proof = b64(sign(f"msg_1.{NOW}.".encode() + JSON))
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW)}
    return Signed(JSON, {**headers, "webhook-signature": f"v9,AAAA {header},{proof}"}, secret)


def telnyx() -> Signed:
    body = b'{"data":{"id":"1","event_type":"order.paid"}}'
    proof = b64(ed_key().sign(f"{NOW}|".encode() + body))
    return Signed(body, {"Telnyx-Signature-Ed25519": proof, "Telnyx-Timestamp": str(NOW)}, b64(ed_public()))


def timed(header: str, between: str, names: str, divider: str, body: bytes = JSON) -> Signed:
    """`t=…,v1=…`, as many write it."""
    at, proof = names.split()
    made = mac(f"{NOW}{between}".encode() + body).hex()
    return Signed(body, {header: f"{at}={NOW}{divider}{proof}={made}"})


def twilio() -> Signed:
    # Names in the order of their letters, each followed by its value.
    body, headers = form({"To": "+18005551212", "MessageSid": "SM1", "MessageStatus": "order.paid"})
    proof = b64(mac(f"{URL}?foo=1MessageSidSM1MessageStatusorder.paidTo+18005551212", "sha1"))
    return Signed(body, {**headers, "X-Twilio-Signature": proof}, url=f"{URL}?foo=1")


def twilio_json() -> Signed:
    url = f"{URL}?bodySHA256={hashlib.sha256(JSON).hexdigest()}"
    return Signed(JSON, {"X-Twilio-Signature": b64(mac(url, "sha1"))}, url=url)


def two_checkout() -> Signed:
    proof = mac("ORDERSTATUS=order.paid&REFNO=7", "md5").hex()
    body, headers = form({"REFNO": "7", "ORDERSTATUS": "order.paid", "HASH": proof})
    return Signed(body, headers)


def vonage() -> Signed:
    body = b'{"message_uuid":"1","status":"order.paid"}'
    claims = {"iat": NOW, "jti": "1", "payload_hash": hashlib.sha256(body).hexdigest()}
    return Signed(body, {"Authorization": f"Bearer {token(claims)}"})


def wix() -> Signed:
    data = json.dumps({"eventType": "order.paid", "instanceId": "i1", "data": "{}"})
    key = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    body = token({"data": data, "iat": NOW, "exp": NOW + 3600}, "RS256").encode()
    return Signed(body, {"Content-Type": "text/plain"}, key)


def zendesk() -> Signed:
    at = "2026-03-01T12:00:00Z"
    headers = {"X-Zendesk-Webhook-Signature": b64(mac(at.encode() + JSON))}
    return Signed(JSON, {**headers, "X-Zendesk-Webhook-Signature-Timestamp": at})


def zoom(body: bytes = JSON) -> Signed:
    proof = mac(f"v0:{NOW}:".encode() + body).hex()
    return Signed(body, {"X-Zm-Request-Timestamp": str(NOW), "X-Zm-Signature": f"v0={proof}"})


def slack(body: bytes = b'{"event_id":"1","event":{"type":"order.paid"}}') -> Signed:
    proof = mac(f"v0:{NOW}:".encode() + body).hex()
    return Signed(body, {"X-Slack-Request-Timestamp": str(NOW), "X-Slack-Signature": f"v0={proof}"})


TOKEN = {"loose": True}  # whoever knows it says what there is to say
CHANGES = b'[{"eventType":"order.paid"}]'
DELIVERIES: dict[str, Callable[[], Signed]] = {
    "adyen": adyen,
    "asana": lambda: over_body("X-Hook-Signature", body=b'{"events":[{"action":"order.paid"}]}'),
    "aws_sns": aws_sns,
    "basic_auth": lambda: Signed(
        headers={"Authorization": f"Basic {b64(b'hub:pass word')}"}, secret="hub:pass word", loose=True
    ),
    "braintree": braintree,
    "calendly": lambda: timed("Calendly-Webhook-Signature", ".", "t v1", ","),
    "clover": lambda: Signed(b'{"appId":"order.paid"}', {"X-Clover-Auth": KEY}, loose=True),
    "coinbase_commerce": lambda: over_body(
        "X-CC-Webhook-Signature", body=b'{"event":{"id":"1","type":"order.paid"}}'
    ),
    "contentful": contentful,
    "discord": lambda: replace(discord(b'{"id":"1","type":2}'), type="2"),
    "docusign": lambda: Signed(
        JSON,
        {"X-DocuSign-Signature-1": b64(mac(JSON, key="older")), "X-DocuSign-Signature-2": b64(mac(JSON))},
    ),
    "dropbox": lambda: over_body("X-Dropbox-Signature", type="changes"),
    "ebay": ebay,
    "github": lambda: over_body(
        "X-Hub-Signature-256", prefix="sha256=", headers={"X-GitHub-Event": "order.paid"}
    ),
    "gitlab": lambda: Signed(headers={"X-Gitlab-Token": KEY, "X-Gitlab-Event": "order.paid"}, loose=True),
    "google_pubsub": google_pubsub,
    "http_signature": http_signature,
    "hubspot_v1": lambda: hubspot(KEY),
    "hubspot_v2": lambda: hubspot(f"{KEY}POST{URL}"),
    "intercom": lambda: over_body(
        "X-Hub-Signature", algorithm="sha1", prefix="sha1=", body=b'{"id":"1","topic":"order.paid"}'
    ),
    "lemon_squeezy": lambda: over_body("X-Signature", body=b'{"meta":{"event_name":"order.paid"}}'),
    "linear": lambda: replace(linear(), type="order.paid"),
    "linkedin": lambda: Signed(headers={"X-LI-Signature": mac(b"hmacsha256=" + JSON).hex()}),
    "mailgun": mailgun,
    "mercado_pago": mercado_pago,
    "meta": lambda: over_body("X-Hub-Signature-256", prefix="sha256=", body=b'{"object":"order.paid"}'),
    "microsoft_graph": microsoft_graph,
    "monday": lambda: Signed(
        b'{"event":{"type":"order.paid"}}',
        {"Authorization": token({"accountId": 1, "exp": NOW + 300})},
        loose=True,
    ),
    "okta": lambda: Signed(
        b'{"data":{"events":[{"uuid":"1","eventType":"order.paid"}]}}', {"Authorization": KEY}, loose=True
    ),
    "paddle": lambda: timed(
        "Paddle-Signature", ":", "ts h1", ";", b'{"event_id":"1","event_type":"order.paid"}'
    ),
    "paypal": paypal,
    "plaid": plaid,
    "plivo": plivo,
    "salesforce": salesforce,
    "sendgrid": sendgrid,
    "shopify_redirect": shopify_redirect,
    "slack": slack,
    "standard_webhooks": lambda: standard(
        "v1",
        lambda text: mac(text, key=b"twenty-four-bytes-of-key"),
        f"whsec_{b64(b'twenty-four-bytes-of-key')}",
    ),
    "standard_webhooks_public": lambda: standard("v1a", ed_key().sign, f"whpk_{b64(ed_public())}"),
    "telegram": lambda: Signed(
        b'{"update_id":7}', {"X-Telegram-Bot-Api-Secret-Token": KEY}, type="update", loose=True
    ),
    "telnyx": telnyx,
    "trello": lambda: Signed(
        b'{"action":{"id":"1","type":"order.paid"}}',
        {"X-Trello-Webhook": b64(mac(b'{"action":{"id":"1","type":"order.paid"}}' + URL.encode(), "sha1"))},
    ),
    "twilio": twilio,
    "twitch": twitch,
    "twilio_json": twilio_json,
    "two_checkout": two_checkout,
    "typeform": lambda: over_body(
        "Typeform-Signature",
        prefix="sha256=",
        hexed=False,
        body=b'{"event_id":"1","event_type":"order.paid"}',
    ),
    "vonage": vonage,
    "wix": wix,
    "woocommerce": lambda: over_body(
        "X-WC-Webhook-Signature", hexed=False, headers={"X-WC-Webhook-Topic": "order.paid"}
    ),
    "x": lambda: over_body("X-Twitter-Webhooks-Signature", prefix="sha256=", hexed=False, type="activity"),
    "xero": lambda: over_body(
        "x-xero-signature", hexed=False, body=b'{"events":[{"eventType":"order.paid"}]}'
    ),
    "zendesk": zendesk,
    "zoom": zoom,
}


def test_each_scheme_that_is_written_has_a_delivery() -> None:
    assert DELIVERIES.keys() == WRITTEN.keys()


def secrets_of(webhooks: Webhooks, secret: str) -> dict[str, list[Secret]]:
    return {each.name: [Secret(secret)] for each in webhooks.signatures} if secret else {}


def refusal(name: str, signed: Signed, **altered: Any) -> str | None:
    """Return why a delivery isn't taken, None when it is; as the API does it."""
    webhooks, delivery = webhooks_of(name), signed.delivery()
    secrets = secrets_of(webhooks, altered.get("secret", signed.secret))
    try:
        scheme = counting(webhooks.signatures, secrets)
        assert scheme is not None
        assert key_address(scheme, delivery) == signed.at
        keys = keys_in(signed.keys) if signed.keys else ()
        now = MOMENT + altered.get("later", timedelta(0))
        verify_delivery(webhooks, delivery, secrets, now=now, keys=keys)
    except SignatureError as error:
        return error.reason
    return None


@pytest.mark.parametrize("name", DELIVERIES)
def test_what_the_provider_signed_is_taken_and_read(name: str) -> None:
    signed = DELIVERIES[name]()
    assert refusal(name, signed) is None
    webhooks, delivery = webhooks_of(name), signed.delivery()
    proved = proved_by(webhooks, webhooks.signatures[0].name, delivery, secrets_of(webhooks, signed.secret))
    [event] = split_events(webhooks, proved)
    assert event.type == signed.type
    assert probe_reply(webhooks, delivery, verified=True, now=MOMENT) is None


@pytest.mark.parametrize("name", DELIVERIES)
def test_what_was_altered_is_not(name: str) -> None:
    signed = DELIVERIES[name]()
    place = signed.body.rfind(b'"') - 1 if not signed.loose else None
    if place is not None:
        place = place if signed.body.startswith((b"{", b"[")) else len(signed.body) - 2
        other = b"A" if signed.body[place : place + 1] != b"A" else b"B"
        altered = signed.body[:place] + other + signed.body[place + 1 :]
        assert refusal(name, replace(signed, body=altered)) in ("signature_mismatch", "requirement_not_met")
    if signed.at is None:
        assert refusal(name, signed, secret=_another(name, signed)) in (
            "signature_mismatch",
            "url_secret_mismatch",
        )
    bare = {key: value for key, value in signed.headers.items() if key.lower() == "content-type"}
    if bare != signed.headers and signed.headers:
        assert refusal(name, replace(signed, headers=bare)) in (
            "missing_signature",
            "forbidden_key_address",
        ) or name in ("aws_sns", "braintree", "mailgun", "salesforce", "two_checkout", "wix")


def _another(name: str, signed: Signed) -> str:
    """Return a secret of the same kind."""
    public = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    other = {
        "adyen": signed.secret.replace("44", "55"),
        "discord": raw.hex(),
        "telnyx": b64(raw),
        "standard_webhooks": f"whsec_{b64(b'another')}",
        "standard_webhooks_public": f"whpk_{b64(raw)}",
        **dict.fromkeys(("ebay", "http_signature", "plaid", "sendgrid", "wix"), pem),
    }
    return other.get(name, f"{signed.secret}0")


TIMED = (
    *(
        "calendly",
        "contentful",
        "discord",
        "linear",
        "mailgun",
        "mercado_pago",
        "paddle",
        "plaid",
        "sendgrid",
    ),
    *("slack", "standard_webhooks", "telnyx", "vonage", "zendesk", "zoom"),
)


@pytest.mark.parametrize("name", TIMED)
def test_what_is_old_is_not_taken(name: str) -> None:
    assert (
        refusal(name, DELIVERIES[name](), later=timedelta(minutes=4) if name != "linear" else timedelta(0))
        is None
    )
    assert refusal(name, DELIVERIES[name](), later=timedelta(minutes=6)) == "timestamp_outside_tolerance"


def test_a_token_that_ended_is_not_taken() -> None:
    assert refusal("monday", DELIVERIES["monday"](), later=timedelta(seconds=299)) is None
    for name, ended in (("monday", 300), ("google_pubsub", 60), ("wix", 3600)):
        assert (
            refusal(name, DELIVERIES[name](), later=timedelta(seconds=ended)) == "timestamp_outside_tolerance"
        )


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none", "kid": "k1"}, "malformed_signature"),
        ({"alg": "HS256", "kid": "k1"}, "malformed_signature"),
        ({"alg": "RS256", "kid": "k2"}, "unknown_key"),
        ({"alg": "RS256", "kid": "k1", "crit": ["exp"]}, "malformed_signature"),
        ({"alg": "RS256"}, "signature_mismatch"),  # signed with another key id in its header
    ],
)
def test_a_token_of_another_kind(header: dict[str, Any], reason: str) -> None:
    signed = google_pubsub()
    _, claims, proof = signed.headers["Authorization"].split(".")
    first = b64url(json.dumps(header).encode())
    other = replace(signed, headers={"Authorization": f"Bearer {first}.{claims}.{proof}"})
    assert refusal("google_pubsub", other) == reason


def test_a_token_made_with_a_public_key_as_if_it_were_a_secret() -> None:
    """The oldest trick with tokens: the algorithm is the manifest's, whatever the token says."""
    signed = wix()
    text = signed.body.decode().partition(".")[2].rpartition(".")[0]
    first = b64url(b'{"alg":"HS256"}')
    proof = b64url(mac(f"{first}.{text}", key=signed.secret))
    assert refusal("wix", replace(signed, body=f"{first}.{text}.{proof}".encode())) == "malformed_signature"


@pytest.mark.parametrize(
    "url",
    [
        "https://paypal.com.evil.example/cert",
        "http://api.paypal.com/cert",
        "https://api.paypal.com@evil.example/cert",
        "https://evil.example/api.paypal.com",
        "https://api.paypal.com:8443/cert",
        "https://api.paypal.com\\@evil.example/",
        "//api.paypal.com/cert",
        "https://xapi.paypal.com/cert",
        "",
    ],
)
def test_keys_are_looked_for_at_the_provider_only(url: str) -> None:
    signed = paypal()
    headers = {**signed.headers, "PAYPAL-CERT-URL": url}
    assert refusal("paypal", replace(signed, headers=headers, at=url)) == "forbidden_key_address"


def test_a_star_in_a_host_is_one_part_of_a_name() -> None:
    signed = aws_sns()
    for host in ("sns.evil.example/x.amazonaws.com", "sns.a.b.amazonaws.com", "sns..amazonaws.com"):
        body = signed.body.replace(b"sns.eu-west-1.amazonaws.com", host.encode())
        assert refusal("aws_sns", replace(signed, body=body)) == "forbidden_key_address"


def test_rsa_may_be_padded_in_another_way() -> None:
    salted = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    key = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    delivery = Delivery("POST", URL, {"x-s": rsa_key().sign(JSON, salted, hashes.SHA256()).hex()}, JSON)
    scheme = SignatureScheme("s", "public_key", read=Reading("x-s"), padding="pss")
    assert verify([scheme], delivery, {"s": [Secret(key)]}, now=NOW) is scheme
    with pytest.raises(SignatureError):
        verify([replace(scheme, padding="pkcs1")], delivery, {"s": [Secret(key)]}, now=NOW)


def test_what_a_secret_in_a_body_is_not_kept() -> None:
    signed = microsoft_graph()
    for secret, written in ((KEY, KEY), ('a/b"ü', 'a\\/b\\"\\u00fc'), ('a/b"ü', 'a/b\\"ü')):
        body = signed.body.replace(KEY.encode(), written.encode())
        secrets = secrets_of(webhooks_of("microsoft_graph"), secret)
        given = replace(signed, body=body, secret=secret)
        assert refusal("microsoft_graph", given) is None
        kept = proved_by(webhooks_of("microsoft_graph"), "secret_field", given.delivery(), secrets)
        assert json.loads(kept.body)["value"][0]["clientState"] == "***"


# --- handshakes


def answered(name: str, signed: Signed, *, secret: str = KEY) -> Reply | None:
    webhooks = webhooks_of(name)
    verified = refusal(name, signed, secret=secret) is None if signed.headers else False
    secrets = {**secrets_of(webhooks, secret), "verification": [Secret(secret)]}
    return probe_reply(webhooks, signed.delivery(), verified=verified, now=MOMENT, secrets=secrets)


def asked(query: str, **headers: str) -> Signed:
    return Signed(b"", headers, url=f"{URL}{query}", method="GET")


def in_json(reply: Reply | None) -> Any:
    assert reply is not None
    assert reply.kind == "application/json"
    return json.loads(reply.text)


def test_a_challenge_in_the_address_is_given_back() -> None:
    assert answered("meta", asked("?hub.mode=subscribe&hub.challenge=115&hub.verify_token=x")) == Reply("115")
    assert answered("dropbox", asked("?challenge=a%3Cb")) == Reply("a<b")
    assert answered("meta", asked("?hub.mode=subscribe")) is None
    graph = Signed(b"", url=f"{URL}?validationToken=Validation%3A+1")
    assert answered("microsoft_graph", graph) == Reply("Validation: 1")


def test_a_challenge_in_json_is_given_back_in_json() -> None:
    challenge = Signed(b'{"challenge":"3eZbrw1a"}')
    assert in_json(answered("monday", challenge)) == {"challenge": "3eZbrw1a"}
    assert answered("monday", replace(challenge, body=b'{"event":{"type":"x"}}')) is None
    assert in_json(answered("discord", discord(b'{"type":1}'), secret=ed_public().hex())) == {"type": 1}
    forged = replace(discord(b'{"type":1}'), body=b'{"type": 1}')
    assert answered("discord", forged, secret=ed_public().hex()) is None
    verification = in_json(answered("okta", asked("", **{"x-okta-verification-challenge": "abc"})))
    assert verification == {"verification": "abc"}
    said = slack(b'{"type":"url_verification","challenge":"abc"}')
    assert answered("slack", said) == Reply("abc")


def test_a_challenge_is_signed() -> None:
    crc = in_json(answered("x", asked("?crc_token=OTEwZjQ4&nonce=1")))
    assert crc == {"response_token": f"sha256={b64(mac('OTEwZjQ4'))}"}
    asks = zoom(b'{"payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"},"event":"endpoint.url_validation"}')
    assert in_json(answered("zoom", asks)) == {
        "plainToken": "qgg8vlvZRS6UYooatFL8Aw",
        "encryptedToken": mac("qgg8vlvZRS6UYooatFL8Aw").hex(),
    }
    code = "9d6a5a3e-7f0e-4b0e"
    assert in_json(answered("linkedin", asked(f"?challengeCode={code}"))) == {
        "challengeCode": code,
        "challengeResponse": mac(code).hex(),
    }
    wanted = hashlib.sha256(f"{code}{KEY}{URL}".encode()).hexdigest()
    assert in_json(answered("ebay", asked(f"?challenge_code={code}"))) == {"challengeResponse": wanted}


def test_a_challenge_is_not_signed_without_a_secret() -> None:
    known = webhooks_of("x")
    given = asked("?crc_token=abc").delivery()
    assert probe_reply(known, given, verified=False, now=MOMENT, secrets={}) is None


@pytest.mark.parametrize("text", ['{"a":1}', "a.b", "v0:1:{}", "a=b", "a b", "", "ü", "a" * 300, "a\n"])
def test_nobody_has_a_delivery_signed_by_asking(text: str) -> None:
    """What is signed for whoever asks could else be sent as a delivery."""
    assert answered("x", asked(f"?crc_token={quote(text)}")) is None


def test_a_secret_that_the_provider_names_is_to_be_kept_and_said_again() -> None:
    first = Signed(b"", {"X-Hook-Secret": "b537207f20cbfa02357cf448134da559"}, secret="")
    reply = probe_reply(webhooks_of("asana"), first.delivery(), verified=False, now=MOMENT)
    assert reply is not None
    assert reply.headers == {"x-hook-secret": "b537207f20cbfa02357cf448134da559"}
    assert reply.keep == Secret("b537207f20cbfa02357cf448134da559")
    assert reply.scheme == "hmac_sha256"
    split = replace(first, headers={"X-Hook-Secret": "a\r\nSet-Cookie: b"})
    assert probe_reply(webhooks_of("asana"), split.delivery(), verified=False, now=MOMENT) is None


def test_an_address_is_called_for_a_signed_probe_and_at_the_provider_only() -> None:
    said = {
        "Type": "SubscriptionConfirmation",
        "MessageId": "m1",
        "TopicArn": "arn:t",
        "Message": "You chose",
    }
    said |= {"Timestamp": "2026-03-01T12:00:00.000Z", "Token": "2336"}
    for host, visited in (("sns.eu-west-1.amazonaws.com", True), ("evil.example", False)):
        said["SubscribeURL"] = f"https://{host}/?Action=ConfirmSubscription&Token=2336"
        names = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
        signed = sns(said, names)
        assert refusal("aws_sns", signed) is None
        reply = probe_reply(webhooks_of("aws_sns"), signed.delivery(), verified=True, now=MOMENT)
        assert (reply.visit if reply else None) == (said["SubscribeURL"] if visited else None)
        assert probe_reply(webhooks_of("aws_sns"), signed.delivery(), verified=False, now=MOMENT) is None


def test_the_intent_to_receive() -> None:
    """Xero sends wrong signatures on purpose: right ones are 200, wrong ones 401."""
    empty = over_body("x-xero-signature", hexed=False, body=b'{"events":[],"entropy":"S0m3"}')
    assert refusal("xero", empty) is None
    assert split_events(webhooks_of("xero"), empty.delivery()) == []
    assert (
        refusal("xero", replace(empty, headers={"x-xero-signature": b64(mac(b"x"))})) == "signature_mismatch"
    )
