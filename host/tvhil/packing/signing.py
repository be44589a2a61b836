# SPDX-License-Identifier: Apache-2.0
"""Signatures of model files: Ed25519 (RFC 8032), kept in a file `MODEL.tvit.sig` beside the model.

The signature is over a context string and the SHA-256 of the whole file. It is checked by the host before the model is
read, so a model of somebody else is refused before any of it is looked at; the device checks none (see
`.github/SECURITY.md`). Needs the package `cryptography` (the extra `sign`).

The `signature` in a model's header is something else: a checksum that names the model, which anybody can compute.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvhil.errors import InputError, MissingToolError, UsageError
from tvhil.files import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SCHEMA = "tvhil.signature/1"
CONTEXT = b"tvhil model signature v1\0"
MAX_BYTES = 1 << 16  # of a key or signature file
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


class SignatureError(InputError):
    """A model that is not signed by a trusted key, or a key or signature file that is malformed."""


def _ed25519() -> tuple[type[Ed25519PrivateKey], type[Ed25519PublicKey]]:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingToolError(
            "signatures need the package cryptography: pip install 'tvhil[sign]' (or: pip install cryptography)"
        ) from None
    return ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey


def signature_path(model: Path) -> Path:
    """Where the signature of a model file lies."""
    return model.with_name(model.name + ".sig")


def fingerprint(key: Ed25519PublicKey) -> str:
    """The 32 bytes of a public key, in hex."""
    return key.public_bytes_raw().hex()


# --- keys ----------------------------------------------------------------------------------------------------


def generate_key() -> Ed25519PrivateKey:
    """A new key, from the operating system's randomness."""
    private, _ = _ed25519()
    return private.generate()


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM (SubjectPublicKeyInfo, RFC 8410)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_key(key: Ed25519PrivateKey, path: Path) -> Path:
    """Write a private key (PKCS 8, PEM, mode 0600) and its public half to `<path>.pub`; the path of the latter.

    Raises:
        UsageError: one of the files is there already; keys are never overwritten.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise UsageError(f"{file} is there already, and a key is never overwritten: choose another name")
    _create(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _create(public, public_pem(key.public_key()), 0o644)
    return public


def _create(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody else can read the key at any moment: the mode is there from the start.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key that `write_key` or `openssl genpkey -algorithm ed25519` wrote.

    Raises:
        SignatureError: no such file, not a key, encrypted, or readable by others.
    """
    private, _ = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path, "the private key")
    if path.stat().st_mode & 0o077:
        raise SignatureError(f"{path} can be read by others: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise SignatureError(f"{path} is encrypted: decrypt it first (openssl pkey -in {path} -out FILE)") from None
    except (ValueError, UnsupportedAlgorithm):  # their texts could quote the file
        raise SignatureError(f"{path} is no private key in PEM: make one with tvhil keygen") from None
    if not isinstance(key, private):
        raise SignatureError(f"{path} is no Ed25519 key: make one with tvhil keygen")
    return key


def read_trusted_keys(paths: Iterable[Path]) -> list[Ed25519PublicKey]:
    """Read public keys; a file may hold several, one PEM block after the other.

    Raises:
        SignatureError: no such file, or not Ed25519 public keys.
    """
    _, public = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for path in paths:
        content = _read(path, "the public key")
        if b"PRIVATE KEY" in content:
            raise SignatureError(f"{path} is a private key: name the public one ({path}.pub)")
        blocks = _PEM.findall(content)
        if not blocks:
            raise SignatureError(f"{path} holds no public key in PEM: tvhil keygen writes one to FILE.pub")
        for block in blocks:
            try:
                key = load_pem_public_key(block)
            except (ValueError, UnsupportedAlgorithm):
                raise SignatureError(f"{path} holds a malformed public key") from None
            if not isinstance(key, public):
                raise SignatureError(f"{path} holds a key that is not Ed25519")
            keys.append(key)
    return keys


# --- signatures ----------------------------------------------------------------------------------------------


def _message(model: bytes) -> bytes:
    return CONTEXT + hashlib.sha256(model).digest()


def sign(model: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of the signature file of a model file."""
    fields = {
        "schema": SCHEMA,
        "sha256": hashlib.sha256(model).hexdigest(),
        "key": fingerprint(key.public_key()),
        "signature": key.sign(_message(model)).hex(),
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def verify(model: bytes, signature: bytes, trusted: Sequence[Ed25519PublicKey], name: str) -> str:
    """Check the content of a signature file; the fingerprint of the key that signed.

    Args:
        model: the bytes of the model file.
        signature: the bytes of the signature file.
        trusted: keys of which one must have signed.
        name: of the model, for messages.

    Raises:
        SignatureError: it is malformed, of another file, or of a key that is not trusted.
    """
    from cryptography.exceptions import InvalidSignature

    fields = _parse(signature, name)
    if fields["sha256"] != hashlib.sha256(model).hexdigest():
        raise SignatureError(f"{name} is not the file that was signed: it was changed, or the signature is another's")
    # Only trusted keys are ever tried: the key that the file names is for the message.
    for key in trusted:
        if fingerprint(key) != fields["key"]:
            continue
        try:
            key.verify(bytes.fromhex(fields["signature"]), _message(model))
        except InvalidSignature:
            raise SignatureError(f"{name}: its signature is forged or damaged") from None
        return fingerprint(key)
    raise SignatureError(f"{name} is signed by key {fields['key'][:16]}…, which is not among the trusted keys")


def _parse(signature: bytes, name: str) -> dict[str, str]:
    lengths = {"sha256": 64, "key": 64, "signature": 128}
    try:
        fields = json.loads(signature) if len(signature) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise SignatureError(f"the signature of {name} is malformed: sign the model again with tvhil sign")
    for key, length in lengths.items():
        if not isinstance(fields.get(key), str) or not re.fullmatch(f"[0-9a-f]{{{length}}}", fields[key]):
            raise SignatureError(f"the signature of {name} is malformed: its {key} is not {length} hexadecimal digits")
    return fields


def write_signature(model: Path, content: bytes, key: Ed25519PrivateKey) -> Path:
    """Sign a model file's bytes; the signature file, which is replaced where there was one."""
    path = signature_path(model)
    write_whole(path, sign(content, key))
    return path


def require_signature(model: Path, content: bytes, trusted: Iterable[Path]) -> str:
    """Insist that a model was signed by one of the keys in `trusted` files; the fingerprint of the key that did.

    Args:
        model: its file; the signature lies beside it.
        content: the bytes that will be used, so that nothing can be exchanged between check and use.
        trusted: files of public keys.

    Raises:
        SignatureError: it is not signed, or not by one of them.
    """
    keys = read_trusted_keys(trusted)
    path = signature_path(model)
    if not path.is_file():
        raise SignatureError(f"{model} is not signed (there is no {path.name}), and only signed models are run here")
    return verify(content, _read(path, "the signature"), keys, str(model))


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SignatureError(f"cannot read {what} {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise SignatureError(f"{path} is too large for {what}")
    return content
