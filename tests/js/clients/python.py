"""A client of PyPI, as its manual has it: `python.py LIBRARY URL CHANNEL TOKEN_FILE`. It prints what it hears."""

import asyncio
import json
import pathlib
import sys
import time

library, url, channel, token_file = sys.argv[1:]
since = None


def tell(**what):
    print(json.dumps(what), flush=True)


def token() -> str:
    return pathlib.Path(token_file).read_text()


def subscribe() -> str:
    return json.dumps({"type": "subscribe", "channel": channel, "since": since})


def heard(text: str):
    global since
    message = json.loads(text)
    position = message["data"] if message["type"] == "subscribed" else message
    if "epoch" in position:
        since = {name: position[name] for name in ("epoch", "offset")}
    if message["type"] == "subscribed":
        tell(live=True, lost=message["data"].get("recovered") is False)
    elif message["type"] == "event":
        tell(n=message["data"]["n"])
    elif message["type"] == "gap":
        tell(lost=True)


def address() -> str:
    return url.replace("http", "ws") + "/ws?format=envelope"


async def websockets():
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    # Its own loop, `async for`, keeps the headers of the first attempt: the token is asked for in this one.
    while True:
        try:
            headers = {"Authorization": f"Bearer {token()}"}
            async with connect(address(), additional_headers=headers, proxy=None) as socket:
                await socket.send(subscribe())
                async for text in socket:
                    heard(text)
        except ConnectionClosed as closed:
            if closed.rcvd:
                tell(code=closed.rcvd.code, reason=closed.rcvd.reason)
        except (OSError, InvalidHandshake):
            pass
        await asyncio.sleep(0.3)


def websocket_client():
    from websocket import WebSocketApp

    def closed(app, code, reason):
        if code:
            tell(code=code, reason=reason)

    while True:
        app = WebSocketApp(
            address(),
            header=[f"Authorization: Bearer {token()}"],
            on_open=lambda app: app.send(subscribe()),
            on_message=lambda app, text: heard(text),
            on_close=closed,
        )
        app.run_forever(ping_interval=5, ping_timeout=3)
        time.sleep(0.3)


def httpx_sse():
    import httpx
    from httpx_sse import connect_sse

    last = None
    while True:
        headers = {"Authorization": f"Bearer {token()}"} | ({"Last-Event-ID": last} if last else {})
        try:
            with httpx.Client(timeout=60, trust_env=False) as client:
                with connect_sse(client, "GET", f"{url}/sse", params={"channels": channel}, headers=headers) as source:
                    if source.response.status_code != 200:
                        tell(code=source.response.status_code)
                    else:
                        for event in source.iter_sse():
                            last = event.id or last
                            data = json.loads(event.data)
                            if event.event == "message":
                                tell(n=data["n"])
                            elif event.event == "subscribed":
                                tell(live=True)
                            elif event.event == "gap":
                                tell(lost=True)
        except httpx.TransportError:
            pass
        time.sleep(0.3)


if library == "websockets":
    asyncio.run(websockets())
elif library == "websocket-client":
    websocket_client()
else:
    httpx_sse()
