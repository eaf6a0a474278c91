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


async def main():
    stopping = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    nc = await nats.connect(NATS_URL)
    await nc.subscribe(f"{PREFIX}.shard.*.events", cb=show)
    await nc.flush()
    print("listening", flush=True)
    await stopping.wait()
    await nc.drain()


asyncio.run(main())
