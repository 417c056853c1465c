"""One family of exceptions for all packages."""

from __future__ import annotations

import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from hurricane.agents import errors as agent_errors
from hurricane.ops.errors import LONGEST, BadRequest, HurricaneError
from hurricane.profiler import support

KINDS = [
    cls
    for _, cls in inspect.getmembers(agent_errors, inspect.isclass)
    if issubclass(cls, agent_errors.AgentError)
]


@pytest.mark.parametrize("cls", KINDS)
def test_a_script_catches_what_an_agent_raises_as_any_other_error(cls: type[Exception]) -> None:
    with pytest.raises(HurricaneError, match="the board"):
        raise cls("the board is gone")
    assert isinstance(pickle.loads(pickle.dumps(cls("x"))), cls)


def test_a_bad_request_is_one_whoever_refuses_it() -> None:
    refused = agent_errors.error_of(agent_errors.ErrorKind.BAD_REQUEST, "unknown target")
    assert isinstance(refused, BadRequest)
    assert isinstance(refused, agent_errors.AgentError)
    assert refused.exit_status == BadRequest.exit_status == 2
    others = [cls for cls in KINDS if not issubclass(cls, agent_errors.BadRequest)]
    assert {cls.exit_status for cls in others} == {1}
    assert not any(issubclass(cls, BadRequest) for cls in others)


def test_what_an_agent_says_of_an_error_obeys_no_terminal_and_has_an_end() -> None:
    error = agent_errors.Internal("\x1b[2J" + "x" * 10 * LONGEST)
    assert str(error).startswith("\\x1b")
    assert len(str(error)) < 2 * LONGEST


def test_a_lost_device_is_not_taken_for_a_graph_without_an_artefact() -> None:
    """Sending a graph fails with errors of both sides; only the host's speak of the graph."""

    def lost(_: object) -> str:
        raise agent_errors.DeviceLost("no answer")

    bench: Any = SimpleNamespace(digest_of=lost)
    row: Any = SimpleNamespace(alone=())
    with pytest.raises(agent_errors.DeviceLost, match="no answer"):
        list(support._ask(bench, [row], support.SupportSettings()))
