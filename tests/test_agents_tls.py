"""Who comes in where an agent wants the caller's certificate: nobody but who has one of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hurricane.agents.backends.base import Context
from hurricane.agents.client import AgentClient, TlsFiles
from hurricane.agents.errors import Unauthorised, Unreachable
from hurricane.agents.server import AgentServer, Security

from .certificates import make_certificates

pytestmark = pytest.mark.process

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(folder: Path, *, mutual: bool = True, token: str = "") -> Iterator[str]:
    """The address of an agent without a target, with TLS."""
    security = Security(
        token,
        tls_cert=folder / "agent.pem",
        tls_key=folder / "agent.key",
        tls_client_ca=folder / "ca.pem" if mutual else None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hurricane.agents.supervisor.backend_names", list)
        server = AgentServer("127.0.0.1:0", Context("board"), security)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


@pytest.fixture(scope="module")
def mutual(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def files(folder: Path, name: str | None) -> TlsFiles:
    """Of a caller who trusts the agent's authority, and shows a certificate if he has a name."""
    if name is None:
        return TlsFiles(folder / "ca.pem")
    return TlsFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def test_who_shows_a_certificate_of_the_authority_comes_in(folder: Path, mutual: str):
    with AgentClient(mutual, tls=files(folder, "caller")) as agent:
        assert agent.describe().device.name == "board"


@pytest.mark.parametrize("name", [None, "stranger", "nobody", "expired"])
def test_who_shows_none_of_the_authority_stays_outside(folder: Path, mutual: str, name: str | None):
    with AgentClient(mutual, tls=files(folder, name)) as agent, pytest.raises(Unreachable):
        agent.describe()


def test_who_speaks_no_tls_stays_outside(mutual: str):
    with AgentClient(mutual) as agent, pytest.raises(Unreachable):
        agent.describe()


def test_a_token_stands_for_no_certificate_nor_a_certificate_for_a_token(folder: Path):
    with serving(folder, token=TOKEN) as address:
        with AgentClient(address, TOKEN, files(folder, "caller")) as agent:
            assert agent.describe().device.name == "board"
        with AgentClient(address, TOKEN, files(folder, None)) as agent, pytest.raises(Unreachable):
            agent.describe()
        caller = files(folder, "caller")
        with AgentClient(address, tls=caller) as agent, pytest.raises(Unauthorised):
            agent.describe()


def test_an_agent_without_an_authority_asks_for_no_certificate(folder: Path):
    with (
        serving(folder, mutual=False) as address,
        AgentClient(address, tls=files(folder, None)) as agent,
    ):
        assert agent.describe().device.name == "board"
