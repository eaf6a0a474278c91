"""Shared events: one durable consumer, any number of these processes, no order between events.

Each event is acknowledged by itself. One that fails comes again after a pause, to whichever worker
is free; after the last attempt it goes to the dead-letter stream with the reason. The settings are
those of `Events::shared` in the Rust library, so that workers in both languages may share a durable.

    NATS_URL=nats://127.0.0.1:4222 python shared.py
"""

import asyncio
import contextlib
import json
import os
import signal

import nats
from nats.errors import TimeoutError as NoMessages
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import NotFoundError

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = os.environ.get("SUBJECT_PREFIX", "discord")
EVENTS, DEAD = f"{PREFIX.upper()}_EVENTS", f"{PREFIX.upper()}_DEAD"

# All workers of one kind use one name; another kind needs another one.
DURABLE = os.environ.get("CONSUMER_NAME", "python-shared")
FILTER = f"{PREFIX}.shard.*.events.*.MESSAGE_CREATE"
# Handlers mostly wait for a database or for Discord: this many at once.
CONCURRENCY = 64
# After this time without a sign of life an event goes to another worker.
ACK_WAIT = 5.0
# Pauses after the first failed attempt, the second, ...; one attempt more than pauses.
PAUSES = (0.25, 1.0, 3.0, 8.0)
ATTEMPTS = len(PAUSES) + 1


class Discard(Exception):
    """Need not be handled, now or later."""


class Dead(Exception):
    """Never again, but keep it in the dead-letter stream with this reason."""


async def handle(event, message_id):
    """Yours. Any other exception means: try again later.

    It runs at least once per event; `message_id` is the same each time, the key to tell repetitions.
    """
    message = event["d"]
    if message["author"].get("bot"):
        raise Discard
    if message["content"] == "!fail":
        raise RuntimeError("the message asks for a failure")
    if message["content"] == "!dead":
        raise Dead("the message asks to be given up")
    print(f"message {message['id']} in channel {message['channel_id']} ({message_id})", flush=True)


async def work(js, message):
    """One delivery from arrival to acknowledgement."""
    headers, deliveries = message.headers or {}, message.metadata.num_delivered
    place = f"{message.metadata.stream}@{message.metadata.sequence.stream}"
    message_id = headers.get("Nats-Msg-Id", place)
    alive = asyncio.create_task(keep_alive(message))
    try:
        try:
            event = json.loads(message.data)
        except ValueError as error:
            raise Dead(f"the frame is no JSON: {error}") from error
        await handle(event, message_id)
        await message.ack()
    except Discard:
        await message.ack()
    except Exception as error:  # a handler's failure is its event's trouble and nobody else's
        reason = str(error) if isinstance(error, Dead) else f"tried {deliveries} times: {error!r}"
        if not isinstance(error, Dead) and deliveries < ATTEMPTS:
            await message.nak(delay=PAUSES[deliveries - 1])
            return
        print(f"given up: {message_id}: {reason}", flush=True)
        try:
            await bury(js, message, message_id, reason, place)
        except nats.errors.Error as trouble:
            print(f"could not be stored as dead: {trouble}", flush=True)
            await message.nak(delay=2)
        else:
            await message.term()
    finally:
        alive.cancel()


async def keep_alive(message):
    """Tells the server that the event is still being worked on."""
    while True:
        await asyncio.sleep(ACK_WAIT / 3)
        await message.in_progress()


async def bury(js, message, message_id, reason, place):
    headers = {
        # Stored once, even if this is repeated.
        "Nats-Msg-Id": f"{DURABLE}/{message_id}",
        "Dead-Message-Id": message_id,
        "Dead-Reason": " ".join(reason.split())[:1000],
        "Dead-Subject": message.subject,
        "Dead-Deliveries": str(message.metadata.num_delivered),
        "Dead-Place": place,
    }
    await js.publish(f"{PREFIX}.dead.{DURABLE}", message.data, headers=headers)


async def open_dead_letters(js):
    try:
        await js.stream_info(DEAD)
    except NotFoundError:
        subjects = [f"{PREFIX}.dead.*"]
        week, gibibyte = 7 * 24 * 3600, 1 << 30
        await js.add_stream(StreamConfig(
            name=DEAD, subjects=subjects, max_age=week, max_bytes=gibibyte, duplicate_window=120, allow_direct=True,
        ))


async def take_events(nc, js, stopping):
    """One of CONCURRENCY that take an event each: nobody waits for a batch to fill."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.NEW, ack_wait=ACK_WAIT, max_deliver=-1, max_ack_pending=10_000
    )
    while not stopping.is_set():
        try:
            # Made if it is missing; an existing one goes on where it was.
            events = await js.pull_subscribe(FILTER, durable=DURABLE, stream=EVENTS, config=config)
            while not stopping.is_set():
                with contextlib.suppress(NoMessages):
                    # Short, so that a signal to stop does not wait.
                    [message] = await events.fetch(1, timeout=1)
                    await work(js, message)
        except nats.errors.Error as error:
            if nc.is_connected:  # somebody deleted the consumer
                print(f"pulling failed, trying again: {error!r}", flush=True)
            await asyncio.sleep(1)

async def connect():
    """A connection that comes back by itself, however long NATS is away, and says so."""

    async def gone():
        if not nc.is_closed:  # that is us
            print("NATS is away", flush=True)

    async def back():
        print("NATS is back", flush=True)

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
    js = nc.jetstream()
    await open_dead_letters(js)
    await asyncio.gather(*(take_events(nc, js, stopping) for _ in range(CONCURRENCY)))
    # Sends what is still to be said, acknowledgements above all.
    await nc.flush()
    await nc.close()


asyncio.run(main())
