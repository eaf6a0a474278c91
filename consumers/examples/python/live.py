"""The live feed: every event from now on, nothing kept while you are away.

    NATS_URL=nats://127.0.0.1:4222 python live.py
"""

import asyncio
import json
import os
import signal

import nats

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = os.environ.get("SUBJECT_PREFIX", "discord")


async def show(message):
    event = json.loads(message.data)
    # NATS' own header: the subject the event is stored under.
    print(message.headers["Nats-Subject"], event["s"], event["t"], flush=True)

async def connect():
    """A connection that comes back by itself, however long NATS is away, and says so."""

    async def gone():
        if not nc.is_closed:  # that is us
            print("NATS is away", flush=True)

    async def back():
        print("NATS is back; what came meanwhile is not shown", flush=True)

    async def trouble(error):
        if not isinstance(error, OSError):  # a failed attempt to connect again is no news
            print(f"NATS: {error!r}", flush=True)

    patience = asyncio.get_running_loop().call_later(2, lambda: print(f"waiting for NATS at {NATS_URL}", flush=True))
    nc = await nats.connect(
        NATS_URL, max_reconnect_attempts=-1, reconnect_time_wait=0.25, disconnected_cb=gone, reconnected_cb=back,
        error_cb=trouble,
    )
    patience.cancel()
    return nc


async def main():
    stopping = asyncio.Event()
    nc = await connect()
    # Not before: while NATS is awaited, nothing would look at it, and a signal may end the program as it is.
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    await nc.subscribe(f"{PREFIX}.shard.*.events", cb=show)
    await nc.flush()
    print("listening", flush=True)
    await stopping.wait()
    await nc.drain()


asyncio.run(main())
