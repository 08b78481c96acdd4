"""API keys: who may use the service.

A key is 256 random bits, so that its SHA-256 gives nothing away that could be guessed back: no slow
password hash is needed, and only the SHA-256 is ever stored. A setting or a file lists entries
``NAME:KIND:SHA256``; the name stands for the key in the log.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from app.exceptions import StartupError
from app.settings import Settings, variable_name

KeyKind = Literal["user", "admin"]
"""A user may ask for everything but what is below ``/admin``, an admin for that, too."""

_KEY_PREFIX = "gth_"
"""By which people, and programs that look for leaked secrets, know a key."""
_KEY_BYTES = 32
_LONGEST_KEY = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored: without the key itself.

    Attributes:
        name: of whoever has it; the log may show it.
        kind: what it opens.
        digest: SHA-256 of the key.
    """

    name: str
    kind: KeyKind
    digest: bytes = field(repr=False)

    @property
    def entry(self) -> str:
        """Its line in a file, or its part of a setting."""
        return f"{self.name}:{self.kind}:{self.digest.hex()}"


class KeyRing:
    """The keys of one service.

    Args:
        keys: all of them, possibly none.
        allows_anonymous: whether requests without a key are served.
    """

    def __init__(self, keys: Sequence[ApiKey], *, allows_anonymous: bool) -> None:
        self.allows_anonymous = allows_anonymous
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def has_admin(self) -> bool:
        """Whether any key opens what is below ``/admin``."""
        return any(key.kind == "admin" for key in self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """The stored key that a client's key is, or None.

        Digests are compared in constant time, each with every key there is: how long it takes
        says nothing of how near a guess is, nor of whose key it is.
        """
        if len(secret) > _LONGEST_KEY:
            return None
        digest = _digest(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def make_key(name: str, kind: KeyKind) -> tuple[str, ApiKey]:
    """A new key, and what is stored of it.

    Raises:
        StartupError: the name is none.
    """
    secret = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return secret, _stored(f"{name}:{kind}:{_digest(secret).hex()}", "this name")


def read_keys(settings: Settings) -> KeyRing:
    """The keys that the settings list.

    Requests without a key are served as long as there is no user's key, on an address that only
    this machine can reach, or where the settings say so. An admin's key alone closes ``/admin``.

    Raises:
        StartupError: an entry is wrong, the file cannot be read, or others than this machine
            could use the service without a key, and nobody said that they may.
    """
    setting, file_setting = variable_name("api_keys"), variable_name("api_keys_file")
    keys = [
        _stored(entry, f"{setting}, entry {number}")
        for number, entry in enumerate(settings.api_keys, start=1)
    ]
    if settings.api_keys_file is not None:
        keys += read_key_file(settings.api_keys_file, file_setting)
    _refuse_twins(keys)
    if not keys:
        _refuse_unguarded(settings)
    has_users = any(key.kind == "user" for key in keys)
    may_be_open = settings.allow_anonymous or is_loopback(settings.host)
    return KeyRing(keys, allows_anonymous=may_be_open and not has_users)


def _refuse_unguarded(settings: Settings) -> None:
    """Refuse to serve without any key what looks as if it should have one."""
    if settings.allow_anonymous:
        return
    how = (
        f"list keys in {variable_name('api_keys')} or {variable_name('api_keys_file')} (gatehouse "
        f"keys makes them), or set {variable_name('allow_anonymous')}=true"
    )
    if settings.api_key is not None:
        raise StartupError(
            f"{variable_name('api_key')} is the key that a client sends, and protects nothing "
            f"here: {how} to serve without"
        )
    if not is_loopback(settings.host):
        raise StartupError(
            f"others may reach {settings.host}, so that listening there needs API keys: {how} "
            "where everyone who reaches it may use it"
        )


def read_key_file(path: Path, name: str = "the file of keys") -> list[ApiKey]:
    """The entries of a file: one a line; empty lines and those that begin with ``#`` do not count.

    Raises:
        StartupError: it cannot be read, or a line is no entry. The message never repeats a line,
            which might be a key itself.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartupError(f"{name}: cannot read {path}: {reason}") from None
    return [
        _stored(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def append_key(path: Path, key: ApiKey) -> None:
    """Write a key's entry at the end of a file, which is made where it is missing.

    Raises:
        StartupError: it cannot be read or written, or has a key of that name.
    """
    _refuse_twins([*(read_key_file(path) if path.exists() else []), key])
    try:
        content = path.read_bytes() if path.exists() else b""
        with path.open("ab") as file:
            if content and not content.endswith(b"\n"):
                file.write(b"\n")
            file.write(f"{key.entry}\n".encode())
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(secret: str) -> bytes:
    # A header may hold any byte, a body any character, lone surrogates among them.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _stored(entry: str, where: str) -> ApiKey:
    name, _, rest = entry.partition(":")
    kind, _, digest = rest.partition(":")
    if not _NAME.fullmatch(name):
        raise StartupError(
            f"{where}: the name of a key has up to 64 lower-case letters, digits, dots, dashes "
            "and underscores, in an entry NAME:KIND:SHA256 as 'gatehouse keys' writes it"
        )
    for known in get_args(KeyKind):
        if kind == known and _SHA256.fullmatch(digest):
            return ApiKey(name, known, bytes.fromhex(digest))
    raise StartupError(
        f"{where}: an entry is NAME:KIND:SHA256, as 'gatehouse keys' writes it, with the kind "
        f"{' or '.join(get_args(KeyKind))} and 64 hexadecimal digits"
    )


def _refuse_twins(keys: Iterable[ApiKey]) -> None:
    names: set[str] = set()
    for key in keys:
        if key.name in names:
            raise StartupError(f"two API keys have the name {key.name}")
        names.add(key.name)
