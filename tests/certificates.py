"""Certificates for tests of TLS: authorities, an agent, and callers who may or may not come in."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


def make_certificates(folder: Path) -> Path:
    """Writes ``NAME.pem`` and ``NAME.key`` of these, and gives the folder.

    ``ca`` and ``stranger-ca`` are authorities. Of ``ca`` are ``agent`` (for localhost), ``caller``
    and ``expired``; ``stranger`` is of ``stranger-ca``, and ``nobody`` of itself.
    """
    keys = {
        name: ec.generate_private_key(ec.SECP256R1())
        for name in ("ca", "stranger-ca", "agent", "caller", "expired", "stranger", "nobody")
    }
    issuers = {"agent": "ca", "caller": "ca", "expired": "ca", "stranger": "stranger-ca"}
    now = datetime.datetime.now(datetime.UTC)
    for name, key in keys.items():
        issuer = issuers.get(name, name)
        begin, end = (now - 3 * _DAY, now - _DAY) if name == "expired" else (now - _DAY, now + _DAY)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(name.endswith("ca"), None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(keys[issuer], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return folder


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
