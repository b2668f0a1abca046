"""Encryption of the key material of a backup with a passphrase.

The key is derived with scrypt. AES-256-GCM encrypts the files, and authenticates the manifest with
them: a changed manifest is noticed, and with it every changed file.
"""

import base64
import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mev.backup.manifest import BackupDamagedError, PassphraseError

_COST, _BLOCK, _PARALLEL = 2**16, 8, 1
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32


def encrypt(files: Mapping[str, bytes], manifest: bytes, passphrase: str) -> bytes:
    """Return the encrypted `files`, by their paths, bound to `manifest`."""
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    plain = json.dumps({path: _text(content) for path, content in files.items()}).encode()
    cipher = AESGCM(_derive(passphrase, salt)).encrypt(nonce, plain, manifest)
    return json.dumps(
        {"salt": _text(salt), "nonce": _text(nonce), "aes_256_gcm": _text(cipher)}
    ).encode()


def decrypt(encrypted: bytes, manifest: bytes, passphrase: str) -> dict[str, bytes]:
    """Return the files by their paths.

    :raises PassphraseError: if the passphrase or the manifest is another one.
    :raises BackupDamagedError: if `encrypted` is not an encrypted file.
    """
    try:
        found = {name: base64.b64decode(text) for name, text in json.loads(encrypted).items()}
        key = _derive(passphrase, found["salt"])
        plain = AESGCM(key).decrypt(found["nonce"], found["aes_256_gcm"], manifest)
    except InvalidTag:
        raise PassphraseError(
            "the keys cannot be decrypted: the passphrase is wrong, or the backup was changed"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BackupDamagedError("the file of the encrypted keys is damaged") from None
    return {path: base64.b64decode(text) for path, text in json.loads(plain).items()}


def _derive(passphrase: str, salt: bytes) -> bytes:
    kdf = Scrypt(salt=salt, length=_KEY_BYTES, n=_COST, r=_BLOCK, p=_PARALLEL)
    return kdf.derive(passphrase.encode())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
