"""The one filter of secrets for all that is written or printed: manifests, logs, errors, reports, trackers.

`redact` is for values, `redact_sentence` for prose that may quote somebody else, `strip_credentials` for an address.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

_SECRET = re.compile(
    r"(?:^|_)(?:secret|password|passwd|passphrase|credential)s?(?:_|$)"
    r"|(?:^|_)(?:api|access|private|auth|account)_?keys?(?:_|$)"
    r"|(?<!bos)(?<!eos)(?<!pad)(?<!unk)(?:^|_)token(?:_\d+)?$"
)
"""Of a key in snake_case. `token` must end it and be one: token_ids and max_tokens are no secrets."""
_HARMLESS = {
    "allow_bucket_creation", "allow_bucket_deletion", "api_version", "background_writes", "branch", "charset",
    "connect_timeout", "driver", "endpoint_override", "force_virtual_addressing", "format", "host", "limit", "page",
    "port", "region", "retry_limit_seconds", "revision", "scheme", "sslmode", "timeout", "version", "x_amz_algorithm",
    "x_amz_date", "x_amz_expires", "x_amz_signedheaders",
}  # fmt: skip
"""Names in an address's query whose values may be seen; what is not known may sign, or let in."""
_NAME = re.compile(r"-*[\w.-]+")
_PLAIN = re.compile(r"[\w.:/%-]{0,60}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WHOLE = re.compile(rf"([\w.-]+=)?({_SCHEME.pattern}.*)", re.DOTALL)
_RUN = re.compile(rf"{_SCHEME.pattern}\S+")
_SPACED_PASSWORD = re.compile(r"(?<=://)(?!\*\*\*)[^\s/:]*:(?!\d{1,5}(?:$|[\s/?#'\",:;.)\]}>]))(?=\S)[^\n]*@")
"""In prose, a user and a password with spaces; digits alone are a port."""
_ASSIGNED = re.compile(r"([\w.-]+)(\s*=\s*|[\"']\s*:\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&]+)")
_BEARER = re.compile(r"(?i)\b(bearer\s+|authorization[\"']?\s*[:=]\s*[\"']?\w+\s+)[\w.~+/=-]{8,}")
_MASK = "***"
_SHORTEST = 4
"""Shorter pieces of a secret would be found in the middle of words."""
_MOST = 20
"""Of the parts of a password, so many are looked at."""
_addresses: set[str] = set()


def remember(address: str) -> None:
    """Have an address that this process uses masked in every sentence, however an error quotes or splits it."""
    if "@" in address or "?" in address:
        _addresses.add(address)


def redact(value: Any) -> Any:
    """`value` with every secret masked.

    Secret is what stands under a key that names one (token, password, api_key, ... in any spelling), in a command line
    as `key=value` or after `--key`, and in an address the user, the password and what a query may sign with.
    """
    if isinstance(value, Mapping):
        return {key: _mask_value(item) if _is_secret(str(key)) else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        flags = ["", *value][: len(value)]
        return [
            _mask_value(item) if isinstance(flag, str) and flag.startswith("--") and _is_secret(flag) else redact(item)
            for flag, item in zip(flags, value, strict=True)
        ]
    if not isinstance(value, str):
        return value
    names = value.split("=")
    for place, name in enumerate(names[:-1]):
        if _NAME.fullmatch(name) and _is_secret(name):
            return "=".join([*names[: place + 1], _MASK])
    if match := _WHOLE.fullmatch(value):
        return (match[1] or "") + _mask_address(match[2])
    for address in _addresses:
        for spelling in _spellings(address):
            value = value.replace(spelling, _mask_address(address))
    return _RUN.sub(lambda match: _mask_address(match[0]), value)


def redact_sentence(text: str) -> str:
    """Prose with every secret masked that it may quote: of addresses, the environment, headers and assignments."""
    for secret, mask in sorted(_secrets(), key=lambda pair: -len(pair[0])):
        text = text.replace(secret, mask)
    text = _RUN.sub(lambda match: _mask_address(match[0]), text)
    text = _SPACED_PASSWORD.sub(f"{_MASK}@", text)
    text = _BEARER.sub(rf"\1{_MASK}", text)
    return _ASSIGNED.sub(lambda match: f"{match[1]}{match[2]}{_MASK}" if _is_secret(match[1]) else match[0], text)


def strip_credentials(address: str) -> str:
    """Remove the user, the password and the query from an address."""
    scheme, mark, rest = address.partition("://")
    place, _, query = rest.partition("?")
    # An @ behind a ? may end a password as well as stand in a query.
    return scheme + mark + ("..." if "@" in query else place.rpartition("@")[2])


def has_secret(address: str) -> bool:
    """Whether a password stands in an address, or something in its query that may be one."""
    rest = address.partition("://")[2]
    masked = _mask_address(address)
    return ":" in rest.rpartition("@")[0] or f"={_MASK}" in masked or f"?{_MASK}" in masked


def _mask_address(address: str) -> str:
    """Mask user, password and query of an address that ends where the text does.

    A password may hold any character that SQLAlchemy and others accept, slashes and spaces too, so the user ends at
    the last @.
    """
    scheme, _, rest = address.partition("://")
    user, at, after = rest.rpartition("@")
    if at and re.match(r"[^/:]*(?::|$)", user):
        # An @ behind a ? may end a password as well as stand in a query.
        return f"{scheme}://{_MASK}" + ("" if re.search("[?#]", user) else "@" + _mask_query(after))
    if inner := _SCHEME.search(rest):
        rest = rest[: inner.start()] + _mask_address(rest[inner.start() :])
    return f"{scheme}://{_mask_query(rest)}"


def _mask_query(rest: str) -> str:
    """Mask the query's values in what follows the user of an address, but for harmless names."""
    parts = re.split(r"([?&#])", rest)
    return parts[0] + "".join(mark + _mask_part(part) for mark, part in zip(parts[1::2], parts[2::2], strict=True))


def _mask_part(part: str) -> str:
    name, equals, value = part.partition("=")
    if not (equals and _NAME.fullmatch(name)):
        return _MASK if part else ""
    harmless = _words(name) in _HARMLESS and _PLAIN.fullmatch(value)
    return part if harmless or not value else f"{name}={_MASK}"


def _spellings(address: str) -> set[str]:
    """An address as it is, and as reprs, JSON and other addresses quote it."""
    return {address, repr(address)[1:-1], json.dumps(address)[1:-1], quote(address)}


def _secrets() -> Iterator[tuple[str, str]]:
    """Yield what is secret in this process, each with its mask."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _is_secret(name):
            yield value, _MASK
    for address in _addresses | {value for value in os.environ.values() if _SCHEME.match(value) and "@" in value}:
        yield from ((spelling, _mask_address(address)) for spelling in _spellings(address))
        user, at, place = address.partition("://")[2].rpartition("@")
        host = re.split("[/?#]", place)[0]
        for password in {user.partition(":")[2], unquote(user.partition(":")[2])} if at else ():
            for piece in _pieces(password):
                # Who ends the user at another @ takes the rest for the host's beginning.
                yield f"{piece}@{host}", f"{_MASK}@{host}"
                if len(piece) >= _SHORTEST:
                    yield piece, _MASK


def _pieces(password: str) -> set[str]:
    """A password, and what those that parse the address in another way may take for a part of it."""
    ends = [match.start() for match in re.finditer(r"[@:/?#&=\s]", password)]
    starts, ends = [0, *(end + 1 for end in ends)][:_MOST], [*ends, len(password)][:_MOST]
    return {password} | {password[start:end] for start in starts for end in ends if start < end}


def _words(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", key).lower().strip("_")


def _is_secret(key: str) -> bool:
    words = _words(key)
    # What ends in env names a variable that holds a secret.
    return _SECRET.search(words) is not None and not words.endswith("_env")


def _mask_value(value: Any) -> Any:
    """Mask a value, unless it is empty or a flag: whether a secret is set may be seen."""
    return value if value is None or value == "" or isinstance(value, bool) else _MASK
