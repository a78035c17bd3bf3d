"""Encryption at rest: where the key is, what TileDB is given of it, and records that are sealed with it.

Voxels and tables are encrypted by TileDB, records of commits by AES-256-GCM of ``cryptography``; both keys are derived
from the cohort's (HKDF-SHA256), so that neither tells the other. Names of folders and sizes of files are not secret.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from radiodata.errors import ConfigError, EncryptionError

_MAGIC = b"radiodata sealed 1\n"
_NONCE = 12
_SAY = "say where the key is, ReadConfig(encryption_key='file:PATH') or RADIODATA_READ_ENCRYPTION_KEY=file:PATH"


def check_reference(value: Any) -> str:
    """Take where a key is: ``env:NAME`` or ``file:PATH``; the key itself belongs in no configuration."""
    scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if scheme not in ("env", "file") or not rest:
        raise ConfigError("encryption_key says where the key is: write env:NAME or file:PATH")
    return str(value)


def array_key(reference: str) -> str:
    """Key that TileDB is given: 32 characters of base64, 192 bits, for TileDB-Py passes on text alone."""
    return base64.urlsafe_b64encode(_derive(reference, b"radiodata arrays", 24)).decode()


def seal(raw: bytes, reference: str, name: str) -> bytes:
    """Encrypt a record, bound to its name."""
    nonce = os.urandom(_NONCE)
    return _MAGIC + nonce + bytes(_cipher(reference).encrypt(nonce, raw, name.encode()))


def unseal(raw: bytes, reference: str | None, name: str, where: str) -> bytes:
    """Undo ``seal``; what was never sealed is given as it is where no key is.

    Raises
    ------
    EncryptionError
        When a key is lacking, is not the one, or is there for what is not encrypted.
    """
    if not raw.startswith(_MAGIC):
        if reference is None:
            return raw
        raise EncryptionError(f"{where} is not encrypted, and encryption_key={reference!r} was given: leave it out")
    if reference is None:
        raise EncryptionError(f"{where} is encrypted: {_SAY}")
    from cryptography.exceptions import InvalidTag

    start = len(_MAGIC)
    try:
        return bytes(_cipher(reference).decrypt(raw[start : start + _NONCE], raw[start + _NONCE :], name.encode()))
    except (InvalidTag, ValueError) as error:
        raise EncryptionError(
            f"the key in {reference!r} does not open {where}: it is the key of another cohort, or the file is damaged"
        ) from error


def refused(error: Exception, uri: str) -> EncryptionError | None:
    """What TileDB says of a key, in our words; None where it speaks of something else."""
    told = str(error)
    if "given key is for NO_ENCRYPTION" in told:
        return EncryptionError(f"the cohort at {uri} is encrypted: {_SAY}")
    if "encrypted with NO_ENCRYPTION" in told:
        return EncryptionError(f"the cohort at {uri} is not encrypted, and an encryption_key was given: leave it out")
    if "finalizing decryption" in told:
        return EncryptionError(f"the key that was given is not that of the cohort at {uri}, or it is damaged")
    return None


def _cipher(reference: str) -> Any:
    key = _derive(reference, b"radiodata records", 32)
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _derive(reference: str, purpose: bytes, length: int) -> bytes:
    secret = _secret(reference)
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise ConfigError("an encrypted cohort needs cryptography: pip install 'radiodata[encryption]'") from error
    return bytes(HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(secret))


def _secret(reference: str) -> bytes:
    scheme, _, place = reference.partition(":")
    if scheme == "env":
        if not os.environ.get(place):
            raise ConfigError(f"encryption_key={reference!r}: the environment variable {place} is not set")
        return _parsed(os.environ[place].encode(), reference)
    try:
        raw = Path(place).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"encryption_key={reference!r}: the file cannot be read: {error}") from error
    return raw if len(raw) == 32 else _parsed(raw, reference)


def _parsed(raw: bytes, reference: str) -> bytes:
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            f"encryption_key={reference!r} holds no key: it must be 64 hexadecimal digits (`openssl rand -hex 32`), "
            "or a file of 32 bytes"
        )
    return key
