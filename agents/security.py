"""Who may use an agent: addresses, tokens and TLS."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import grpc

from .errors import BadRequest
from .files import read_bytes

MIN_TOKEN = 16
"""Characters: what a program would take too long to guess."""

MAX_TOKEN_BYTES = 64 * 1024
"""Of a file with a token."""

_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[^\s\[\]/]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})", re.ASCII
)


@dataclass(frozen=True)
class Security:
    """Who may use the agent.

    Args:
        token: required from every caller; empty: none.
        tls_cert, tls_key: PEM files of the server's certificate chain and key.
        tls_client_ca: PEM file; callers must show a certificate of this authority.
        insecure: listen off loopback without TLS.
    """

    token: str = ""
    tls_cert: Optional[Path] = None
    tls_key: Optional[Path] = None
    tls_client_ca: Optional[Path] = None
    insecure: bool = False

    def check(self, host: str) -> None:
        """Refuses to open a machine, or its token, to a network by accident.

        Raises:
            BadRequest: settings that contradict each other or the address.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise BadRequest("TLS needs both --tls-cert and --tls-key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise BadRequest("--tls-client-ca needs --tls-cert and --tls-key")
        if self.tls_cert is not None or self.insecure or is_loopback(host):
            return
        if self.token:
            raise BadRequest(
                f"{host} can be reached from the network, where anyone can read a token sent "
                "without TLS: give --tls-cert and --tls-key (or --insecure, on a network where "
                "everyone may know it)"
            )
        raise BadRequest(
            f"{host} can be reached from the network: give --tls-cert and --tls-key, and a "
            "--token-file (or --insecure, to let anyone who reaches it run graphs here)"
        )

    def warning(self, host: str) -> str:
        """What whoever starts the agent has to know; empty: nothing."""
        if is_loopback(host):
            return ""
        if self.tls_cert is not None:
            known = self.token or self.tls_client_ca is not None
            return "" if known else f"anyone who reaches {host} can run graphs: give --token-file"
        if self.token:
            return f"--insecure: the token for {host} goes over the network as plain text"
        return f"--insecure: anyone who reaches {host} can run graphs on this machine"

    def credentials(self) -> Optional[grpc.ServerCredentials]:
        """TLS credentials, or None.

        Raises:
            BadRequest: a file cannot be read.
        """
        if self.tls_cert is None or self.tls_key is None:
            return None
        key, chain = _pem(self.tls_key), _pem(self.tls_cert)
        authority = _pem(self.tls_client_ca) if self.tls_client_ca else None
        try:
            return grpc.ssl_server_credentials(
                [(key, chain)], authority, require_client_auth=authority is not None
            )
        except Exception as error:
            raise BadRequest(f"{self.tls_cert} and {self.tls_key} make no TLS: {error}") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[V6]:PORT``.

    Raises:
        BadRequest: not an address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise BadRequest(f"{address!r} is no address; give HOST:PORT, such as 127.0.0.1:50051")
    return match["v6"] or match["host"], int(match["port"])


def check_address(address: str, where: str) -> str:
    """The address of an agent to connect to; `where` stands first in the error.

    Raises:
        BadRequest: not an address, or one with port 0, which is for listening.
    """
    try:
        if split_address(address)[1] == 0:
            raise BadRequest(f"{address!r} has no port; give HOST:PORT")
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from error
    return address


def read_token(path: Union[str, Path], where: str) -> str:
    """The token in the first line of a file, for an agent or for its callers.

    Args:
        path: the file.
        where: names it in errors, such as ``--token-file``.

    Raises:
        BadRequest: it cannot be read, or its first line is no token that agents take.
    """
    try:
        text = read_bytes(path, where, MAX_TOKEN_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{where} {path} is not UTF-8 text") from error
    token = text.partition("\n")[0].strip()
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable():
        raise BadRequest(
            f"the first line of {where} {path} is no token: at least {MIN_TOKEN} printable "
            "characters; make one with: openssl rand -hex 32"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(path: Path) -> bytes:
    return read_bytes(path, "PEM file")
