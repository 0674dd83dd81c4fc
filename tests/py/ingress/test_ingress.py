"""nginx and HAProxy with the configurations of docs/ingress.md before two gateways."""

import contextlib
import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed

from front import HOST, PROXIES, Tunnel, here
from support.wait import DEADLINE, eventually

OVER = {"http/1.1": "--http1.1", "http/2": "--http2"}


def message(ws) -> dict:
    return json.loads(ws.recv())


def greeted(ws) -> str:
    """The connection's id."""
    first = message(ws)
    assert first["type"] == "connected", first
    return first["data"]["connectionId"]


def subscribed(ws):
    ws.send('{"type":"subscribe","channel":"post:1"}')
    assert message(ws)["type"] == "subscribed"
    return ws


def until(stream, text: str) -> str:
    """Reads a stream up to a line with a text; fails when it ends before."""
    read = ""
    for line in stream.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the stream ended before {text!r}:\n{read}")


@pytest.mark.parametrize("proxy", PROXIES)
def test_sockets_and_streams_pass_and_nothing_else(start, proxy):
    site = start(proxy)
    sockets = {}
    for _ in range(4):
        ws = site.socket()
        ident = greeted(ws)
        sockets[ident] = subscribed(ws)
    first, second = site.replicas
    assert [len(first.sockets()), len(second.sockets())] == [2, 2]
    for ident in [socket["id"] for socket in first.sockets()]:
        sockets.pop(ident).close()
    eventually("they are gone", lambda: not first.sockets())
    for _ in range(2):
        ws = site.socket()
        ident = greeted(ws)
        sockets[ident] = subscribed(ws)
    # In turn it would be one and three.
    assert [len(first.sockets()), len(second.sockets())] == [2, 2], "to where the fewest are"
    streams = [site.stream(option) for option in OVER.values()]
    for stream in streams:
        until(stream, '"subscribed"')
    site.publish("post:1", {"n": 1})
    assert [message(ws) for ws in sockets.values()] == [{"n": 1}] * 4
    for stream in streams:
        until(stream, '{"n": 1}')
    for version, option in OVER.items():
        # Without a token: the gateway's own answer, so that the path is passed on.
        assert site.status("/sse?channels=post:1", option) == (401, version.removeprefix("http/").removesuffix(".0"))
    for path in ("/", "/api/info", "/wss", "/ws/", "/metrics", "/sse/../api/info", "//ws"):
        assert site.status(path, "--path-as-is")[0] in (400, 404), path
    # A page of the same host may connect, one of another may not.
    greeted(site.socket(headers={"Origin": f"https://{HOST}:{site.port}"}))
    with pytest.raises(Exception, match="403"):
        site.socket(headers={"Origin": "https://other.example.com"})


def test_haproxy_takes_sockets_over_http2(start):
    site = start("haproxy")
    tunnel = Tunnel(site, site.token())
    tunnel.until(lambda: b'"connected"' in tunnel.came)
    tunnel.send('{"type":"subscribe","channel":"post:1"}')
    tunnel.until(lambda: b'"subscribed"' in tunnel.came)
    site.publish("post:1", {"n": 4})
    tunnel.until(lambda: b'{"n": 4}' in tunnel.came)


@pytest.mark.parametrize("proxy", PROXIES)
def test_no_token_is_in_the_log(start, proxy):
    site = start(proxy)
    token = site.token()
    greeted(site.socket(query=f"?token={token}"))
    site.closing.close()
    assert site.status(f"/sse?token={token[:-4]}AAAA")[0] == 401
    eventually("the log", lambda: re.search("GET /ws", site.access_log()) and site.access_log().count("/sse") > 1)
    assert "token" not in site.access_log() and token[:20] not in site.access_log()


@pytest.mark.parametrize(
    "proxy,other", [("nginx", {}), ("nginx", {"error_log /dev/null emerg": "error_log stderr"}), ("haproxy", {})]
)
def test_field_e3_no_token_is_in_a_log_of_errors(start, proxy, other):
    """With nginx' own level it is there, so that the line of the page is what keeps it out."""
    site = start(proxy, other=other)
    token = site.token()
    for replica in site.replicas:
        replica.end()
    for path in ("/sse", "/ws"):
        assert site.status(f"{path}?token={token}")[0] in (502, 503)
    eventually("the log", lambda: len(re.findall(r"/(?:sse|ws)\b.* 50[23] ", site.access_log())) == 2)
    logs = "".join(file.read_text() for file in site.folder.glob("*.log") if file.stem not in "ab")
    assert (token in logs) == bool(other)


def test_haproxy_leaves_a_replica_that_hangs_alone(start):
    """Stopped, it still takes connections: the kernel does."""
    site = start("haproxy")
    hung, alive = site.replicas
    hung.send(signal.SIGSTOP)
    try:
        eventually("HAProxy knows", lambda: re.search(r"tollgate/a is DOWN", site.access_log()))
        for _ in range(6):
            greeted(site.socket())
        assert len(alive.sockets()) == 6
    finally:
        hung.send(signal.SIGCONT)


def lands_on(site, replica, token: str) -> bool:
    """A client comes, and goes again: was it sent to this replica?"""
    ws = site.socket(token=token)
    ident = greeted(ws)
    there = ident in {socket["id"] for socket in replica.sockets()}
    ws.close()
    return there


@pytest.mark.parametrize("proxy", PROXIES)
def test_field_e4_a_hung_replica_behind_nginx_is_found_in_seconds(start, proxy):
    """Its clients leave it, so that it has the fewest connections: each retry would go there again."""
    site = start(proxy)
    hung, alive = site.replicas
    token = site.token()

    before = {}
    for _ in range(40):
        ws = site.socket(token=token)
        before[greeted(ws)] = ws
    theirs = [before[socket["id"]] for socket in hung.sockets()]
    assert len(theirs) == 20

    def comes_back(ws) -> bool:
        ws.abort()
        # Each attempt has the ten seconds that the library gives it.
        for _attempt in range(3):
            with contextlib.suppress(TimeoutError):
                return bool(greeted(site.socket(token=token)))
        return False

    hung.send(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(theirs)) as clients:
            assert all(clients.map(comes_back, theirs))
        assert len(alive.sockets()) == 40
        assert site.status("/sse?channels=post:1")[0] == 401, "streams too"
    finally:
        hung.send(signal.SIGCONT)

    eventually("it has noticed that its clients are gone", lambda: not hung.sockets())
    eventually("it is trusted again", lambda: lands_on(site, hung, token))
    for _ in range(20):
        greeted(site.socket(token=token))
    assert len(hung.sockets()) >= 18, "it had the fewest"


@pytest.mark.parametrize("proxy", PROXIES)
def test_quiet_connections_stay(start, proxy):
    site = start(proxy, rest='[limits]\nping_interval = "2s"', quiet=6)
    ws = site.socket()
    ident = greeted(ws)
    subscribed(ws)
    streams = [site.stream(option) for option in OVER.values()]
    for stream in streams:
        until(stream, '"subscribed"')

    def old_enough() -> bool:
        every = [socket for replica in site.replicas for socket in replica.sockets()]
        assert ident in {socket["id"] for socket in every} and len(every) == 3, "one was cut off"
        return all(socket["openSeconds"] > 10 for socket in every)

    eventually("all open for longer than the time-out", old_enough)
    site.publish("post:1", {"n": 2})
    assert message(ws) == {"n": 2}
    for stream in streams:
        until(stream, '{"n": 2}')


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_pings_the_proxy_cuts_them_off(start, proxy):
    """What the test before rests on: the time-out is there, and only pings hold it off."""
    site = start(proxy, rest='[limits]\nping_interval = "1h"', quiet=2)
    ws, stream = site.socket(), site.stream()
    greeted(ws)
    with pytest.raises(ConnectionClosed):
        ws.recv()
    assert stream.wait(DEADLINE) is not None
    eventually("the gateway has none", lambda: not any(replica.sockets() for replica in site.replicas))


def refused_ip(site, number: int) -> str:
    """The address in the log's `number`th line about a refused token."""

    def lines() -> list[str]:
        text = "".join(replica.log.read_text() for replica in site.replicas)
        refused = re.findall(r"token refused.*", re.sub(r"\x1b\[[0-9;]*m", "", text))
        # Not of who looked whether the proxy is there, without a token.
        return [line for line in refused if "missing" not in line]

    found = eventually("the log's line", lambda: len(lines()) >= number and lines())
    addresses = [re.search(r"\bip=(\S+)", line).group(1) for line in found]
    return addresses[-1] if len(set(addresses)) == 1 else str(addresses)


@pytest.mark.parametrize("proxy", PROXIES)
def test_clients_have_their_own_address(start, proxy):
    # Each replica counts for itself: the second of a client goes to the other one.
    site = start(proxy, rest="[limits]\nconnections_per_ip = 1")
    for source in ("127.0.0.11", "127.0.0.12"):
        for made_up in (None, "203.0.113.1"):
            headers = {"X-Forwarded-For": made_up} if made_up else {}
            greeted(site.socket(source, headers=headers))
    for made_up in ("203.0.113.2", "203.0.113.3, 127.0.0.1", "127.0.0.1"):
        third = site.socket("127.0.0.11", headers={"X-Forwarded-For": made_up})
        with pytest.raises(ConnectionClosed) as closed:
            third.recv()
        assert closed.value.rcvd.code == 4429 and "address" in closed.value.rcvd.reason, made_up
    greeted(site.socket("127.0.0.13"))


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_log_has_the_clients_address(start, proxy):
    site = start(proxy)
    for number, made_up in enumerate(("203.0.113.1", "203.0.113.2, 203.0.113.3"), 1):
        ws = site.socket("127.0.0.21", token="x.y.z", headers={"X-Forwarded-For": made_up})
        with pytest.raises(ConnectionClosed):
            ws.recv()
        assert refused_ip(site, number) == "127.0.0.21"


def test_whoever_is_no_trusted_proxy_is_not_believed(start):
    site = start("nginx")
    ws = site.socket("127.0.0.31", token="x.y.z", headers={"X-Forwarded-For": "203.0.113.1"}, direct=True)
    with pytest.raises(ConnectionClosed):
        ws.recv()
    assert refused_ip(site, 1) == "127.0.0.31"


@pytest.mark.parametrize("proxy", PROXIES)
def test_behind_a_proxy_that_is_not_trusted_all_are_one(start, proxy):
    # nginx keeps connections of its probes for a moment, which count too: so it is not said which is one too many.
    site = start(proxy, server="", rest="[limits]\nconnections_per_ip = 2")
    closed = []
    for number in range(5):
        ws = site.socket(f"127.0.0.{41 + number}")
        try:
            greeted(ws)
        except ConnectionClosed as end:
            closed.append(end.rcvd.code)
    assert closed and set(closed) == {4429}


def test_haproxy_leaves_a_draining_replica_and_its_sockets_alone(start):
    site = start("haproxy", rest='[drain]\nsettle = "1h"')
    before = [site.socket() for _ in range(4)]
    for ws in before:
        greeted(ws)
        subscribed(ws)
    leaving, staying = site.replicas
    leaving.send(signal.SIGTERM)
    eventually("it drains", lambda: not leaving.is_ready())
    eventually("HAProxy knows", lambda: re.search(r"tollgate/a is DOWN", site.access_log()))
    for _ in range(4):
        greeted(site.socket())
    assert [len(leaving.sockets()), len(staying.sockets())] == [2, 6]
    site.publish("post:1", {"n": 3})
    assert [message(ws) for ws in before] == [{"n": 3}] * 4


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_replica_that_does_not_listen_is_passed_over(start, proxy):
    site = start(proxy)
    leaving, staying = site.replicas
    leaving.end()
    for _ in range(6):
        greeted(site.socket())
        assert site.status("/sse?channels=post:1")[0] == 401
    assert len(staying.sockets()) == 6


def test_nginx_gives_a_replica_that_comes_back_its_share(start):
    """Once marked, it would get one socket in each `fail_timeout` if no probes ended there."""
    site = start("nginx")
    leaving, staying = site.replicas
    token = site.token()
    leaving.end()
    for _ in range(6):
        greeted(site.socket(token=token))

    with leaving:
        eventually("it is trusted again", lambda: lands_on(site, leaving, token))
        eventually("nobody is there", lambda: not leaving.sockets())
        for _ in range(6):
            greeted(site.socket(token=token))
        assert len(leaving.sockets()) >= 5 and len(staying.sockets()) >= 6


def test_a_configuration_that_lost_a_line_is_noticed():
    assert here("listen 443;", {"443": "1"}) == "listen 1;"
    for text in ("listen 8443;\nlisten 443;", "listen 80;"):
        with pytest.raises(AssertionError, match="times in the configuration"):
            here(text, {"443": "1"})
