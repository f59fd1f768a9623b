"""Encrypt and Decrypt: Google's requests in, Google's answers out, every CRC32C both ways.

Rules: https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#encryptrequest
"""

import hashlib
import os
import struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud import kms_v1 as kms

from ops.kms_emulator import resource_names
from ops.kms_emulator.backend_methods import check_hsm_instance
from ops.kms_emulator.causes import build_refusal
from ops.kms_emulator.faults import EmulatorFaults
from ops.kms_emulator.model import EXTERNAL_LEVELS, EmulatedState, Key, failed_precondition, invalid_argument
from ops.kms_emulator.store import EmulatorStore
from shared.kms.gcp.client import compute_crc32c

_FORMAT = 1
_HEADER = struct.Struct(">B8sI")
_NONCE = 12
_TAG = 16


def encrypt(plaintext: bytes, aad: bytes, *, key: str, version: int, material: bytes) -> bytes:
    """The ciphertext; `key` is the key's name, `version` the number of the version that `material` belongs to."""
    header = _HEADER.pack(_FORMAT, _fingerprint_key(key), version)
    nonce = os.urandom(_NONCE)
    return header + nonce + AESGCM(material).encrypt(nonce, plaintext, header + aad)


def parse_version(ciphertext: bytes, *, key: str) -> int | None:
    """Return the version of `key` that made this ciphertext; None if `key` did not."""
    if len(ciphertext) < _HEADER.size + _NONCE + _TAG:
        return None
    format_, fingerprint, number = _HEADER.unpack_from(ciphertext)
    return int(number) if (format_, fingerprint) == (_FORMAT, _fingerprint_key(key)) else None


def decrypt(ciphertext: bytes, aad: bytes, *, material: bytes) -> bytes:
    """Raises InvalidTag if the ciphertext is not of this key version with this AAD."""
    header, nonce, encrypted = struct.unpack(
        f"{_HEADER.size}s{_NONCE}s{len(ciphertext) - _HEADER.size - _NONCE}s", ciphertext
    )
    return AESGCM(material).decrypt(nonce, encrypted, header + aad)


def _fingerprint_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:8]


MAX_BYTES = 64 * 1024
"""Of a plaintext, and of additional authenticated data, for protection level SOFTWARE."""


class CryptoMethods:
    """The two methods that use key material."""

    def __init__(self, store: EmulatorStore, faults: EmulatorFaults) -> None:
        self._store = store
        self._faults = faults

    async def encrypt(self, request: kms.EncryptRequest) -> kms.EncryptResponse:
        """On a key: with its primary version; on a version: with that one."""
        name, number = request.name, None
        if "/cryptoKeyVersions/" in name:
            name, number = resource_names.parse_version_name(name)
        resource_names.parse_key_name(name)
        _check_size("plaintext", request.plaintext)
        _check_size("additional_authenticated_data", request.additional_authenticated_data)
        verified_plaintext = _verify_checksum("plaintext", request.plaintext, request.plaintext_crc32c)
        verified_aad = _verify_aad_checksum(request)
        key = await self._store.get_key(name)
        number = number or self._get_primary(key)
        material = await self._use_material("Encrypt", key, number)
        ciphertext = encrypt(
            request.plaintext, request.additional_authenticated_data, key=name, version=number, material=material
        )
        return kms.EncryptResponse(
            name=key.version_name(number),
            ciphertext=ciphertext,
            ciphertext_crc32c=compute_crc32c(ciphertext),
            verified_plaintext_crc32c=verified_plaintext,
            verified_additional_authenticated_data_crc32c=verified_aad,
            protection_level=getattr(kms.ProtectionLevel, key.protection_level),
        )

    async def decrypt(self, request: kms.DecryptRequest) -> kms.DecryptResponse:
        """Decrypt with the version that made the ciphertext."""
        name = resource_names.parse_key_name(request.name)
        _check_size("additional_authenticated_data", request.additional_authenticated_data)
        _verify_checksum("ciphertext", request.ciphertext, request.ciphertext_crc32c)
        _verify_aad_checksum(request)
        key = await self._store.get_key(name)
        number = parse_version(request.ciphertext, key=name)
        wrong_key = invalid_argument("Decryption failed: verify that 'name' refers to the correct CryptoKey.")
        if number is None or number > len(key.versions):
            raise wrong_key
        material = await self._use_material("Decrypt", key, number)
        try:
            plaintext = decrypt(request.ciphertext, request.additional_authenticated_data, material=material)
        except InvalidTag:
            raise wrong_key from None
        return kms.DecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=compute_crc32c(plaintext),
            used_primary=number == key.primary,
            protection_level=getattr(kms.ProtectionLevel, key.protection_level),
        )

    async def _use_material(self, operation: str, key: Key, number: int) -> bytes:
        """The material of a version that this key's policy, HSM instance and external key manager let us use."""
        reasons = key.allowed_access_reasons
        if reasons is not None and "CUSTOMER_INITIATED_ACCESS" not in reasons:
            raise build_refusal("justification", operation, key.name)
        version = key.version(number)
        # "Disabling a key version is eventually consistent": https://cloud.google.com/kms/docs/consistency
        now = self._store.clock()
        age = now - (version.disabled_at or 0.0)
        slow = version.state in {EmulatedState.DISABLED, EmulatedState.DESTROY_SCHEDULED} and self._faults.match(
            "slow_disable", operation, key.name, lambda fault: age < (fault.seconds or 0)
        )
        material = version.material if slow and version.material else key.get_usable_material(number)
        if key.protection_level == "HSM_SINGLE_TENANT":
            check_hsm_instance(self._store, key.backend)
        if refusal := self._faults.match_external(operation, key.name, key.version_name(number)):
            # "When EKM_ELEMENT is key, Cloud EKM also disables": https://cloud.google.com/kms/docs/reference/ekm_errors
            if key.protection_level in EXTERNAL_LEVELS and refusal.cause == "ekm_denied":
                await self._store.update_key(key.name, lambda key: key.with_state(number, EmulatedState.DISABLED, now))
            raise refusal
        return material

    def _get_primary(self, key: Key) -> int:
        if key.primary is None:
            raise failed_precondition(f"CryptoKey {key.name} has no primary version.")
        if key.previous_primary is None:
            return key.primary
        # "Changing the primary version is eventually consistent": https://cloud.google.com/kms/docs/consistency
        age = self._store.clock() - key.primary_changed
        slow = self._faults.match("slow_primary", "Encrypt", key.name, lambda fault: age < (fault.seconds or 0))
        return key.previous_primary if slow else key.primary


def _check_size(field: str, data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise invalid_argument(f"The {field} is too long: {len(data)} bytes, the maximum is {MAX_BYTES}.")


def _verify_checksum(field: str, data: bytes, checksum: Any) -> bool:
    """Whether the caller sent a checksum; compare it. Raises INVALID_ARGUMENT.

    Args:
        field: the name of the field that holds `data`.
        data: the field's content.
        checksum: int or None, whatever the annotation says: proto-plus unwraps Int64Value. 0 is a checksum.
    """
    if checksum is None:
        return False
    if checksum != compute_crc32c(data):
        raise invalid_argument(f"The checksum in field {field}_crc32c did not match the data in field {field}.")
    return True


def _verify_aad_checksum(request: kms.EncryptRequest | kms.DecryptRequest) -> bool:
    return _verify_checksum(
        "additional_authenticated_data",
        request.additional_authenticated_data,
        request.additional_authenticated_data_crc32c,
    )
