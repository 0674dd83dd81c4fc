"""The relay's unit: what it has of the gateway's, and that the relay runs with it and nothing else."""

from units import PACKAGING, unit

GATEWAY, RELAY = (unit((PACKAGING / f"{name}.service").read_text()) for name in ("tollgate", "tollgate-relay"))


def test_it_is_shut_in_as_the_gateway_is():
    """What each says for itself is here; all else is the same line for line."""
    own = {"User", "Group", "EnvironmentFile", "ExecStart", "TimeoutStopSec"}
    assert {name for name in RELAY if GATEWAY.get(name) != RELAY[name]} == own
    # The relay reads its configuration at the start, and has a few connections.
    assert {name for name in GATEWAY if name not in RELAY} == {"ExecReload", "LimitNOFILE"}


def test_no_user_and_no_file_is_the_gateways():
    for name in ("User", "Group", "EnvironmentFile"):
        assert RELAY[name] != GATEWAY[name]
    assert RELAY["ExecStart"].split()[-1] != GATEWAY["ExecStart"].split()[-1]
