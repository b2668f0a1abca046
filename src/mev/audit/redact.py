"""Redaction: values of secret fields are replaced by an HMAC, which is comparable."""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from mev.core.files import write_atomically

MAX_DETAILS_BYTES = 16_384
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET = frozenset(
    {
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "token",
        "tokens",
        "key",
        "keys",
        "apikey",
        "sk",
        "jwt",
    }
    | {"seed", "mnemonic", "credential", "credentials", "authorization", "cookie"}
)
# Names with such a word that are not secret: a key's name, not the key.
_HARMLESS_ENDS = frozenset({"id", "ids", "name", "names", "epoch", "count", "type"})
_HARMLESS = frozenset({"config_key", "config_keys", "public_key", "public_keys"})


class Redactor:
    """Replaces secrets by HMACs with a key of this data folder."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_folder(cls, folder: Path) -> "Redactor":
        """Return the redactor of `folder`; its key is created once."""
        path = folder / "hmac-key"
        if not path.exists():
            write_atomically(path, secrets.token_bytes(32))
        return cls(path.read_bytes())

    def details_json(self, details: Mapping[str, object]) -> str:
        """Return `details` as a JSON object without secrets.

        Above the size limit only its SHA-256.
        """
        text = json.dumps(
            self._clean(details), default=str, separators=(",", ":"), ensure_ascii=False
        )
        size = len(text.encode(errors="replace"))
        if size <= MAX_DETAILS_BYTES:
            return _valid(text)
        return json.dumps(
            {
                "too_long_bytes": size,
                "sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
            }
        )

    def _clean(self, value: object) -> object:
        if isinstance(value, Mapping):
            return {
                str(name): self._hide(inner) if is_secret(str(name)) else self._clean(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(inner) for inner in value]
        return value

    def _hide(self, value: object) -> object:
        if value is None or value == "" or isinstance(value, bool):
            return value
        text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
        return (
            "hmac:"
            + hmac.new(self._key, text.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]
        )


def is_secret(name: str) -> bool:
    """Return whether a field with this name contains a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or "_".join(words) in _HARMLESS or words[-1] in _HARMLESS_ENDS:
        return False
    return not _SECRET.isdisjoint(words)


def _valid(text: str) -> str:
    """Return `text` with lone surrogates replaced, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()
