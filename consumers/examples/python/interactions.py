"""Slash commands: registers /ping with Discord and answers it over REST, within Discord's 3 seconds.

Start it several times: each interaction goes to one of the processes. It has a durable consumer of
its own: two programs that answer different commands must not share one, since each interaction goes
to one worker only.

    NATS_URL=nats://127.0.0.1:4222 DISCORD_TOKEN=... python interactions.py
"""

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import nats
from nats.errors import TimeoutError as NoMessages
from nats.js.api import ConsumerConfig, DeliverPolicy

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
API = os.environ.get("DISCORD_API_URL", "https://discord.com/api/v10")
TOKEN = os.environ.get("DISCORD_TOKEN")
if not TOKEN:
    raise SystemExit("DISCORD_TOKEN is missing")
PREFIX = os.environ.get("SUBJECT_PREFIX", "discord")
EVENTS = f"{PREFIX.upper()}_EVENTS"

DURABLE = os.environ.get("CONSUMER_NAME", "python-commands")
FILTER = f"{PREFIX}.shard.*.events.*.INTERACTION_CREATE"
# Interactions answered at once.
CONCURRENCY = 32
# Discord forgets an interaction that was not answered for so long.
WINDOW = 3.0
# Another worker has the interaction so long after this one died; it is told more often that we live.
ACK_WAIT = 1.0
DISCORD_EPOCH_MS = 1_420_070_400_000
APPLICATION_COMMAND, CHANNEL_MESSAGE = 2, 4


async def ping(interaction):
    """Yours, one per command: returns the text of the answer."""
    age_ms = time.time() * 1000 - ((int(interaction["id"]) >> 22) + DISCORD_EPOCH_MS)
    return f"Pong from Python, {age_ms:.0f} ms after you typed it"


COMMANDS = {"ping": ("Says pong", ping)}


def request(method, path, body=None, timeout=5.0, authorised=True):
    """One REST request; returns status and JSON. Blocks, so it runs in a thread."""
    headers = {"User-Agent": "DiscordBot (https://example.com, 1.0)", "Content-Type": "application/json"}
    if authorised:
        headers["Authorization"] = f"Bot {TOKEN}"
    data = None if body is None else json.dumps(body).encode()
    ask = urllib.request.Request(f"{API}{path}", data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(ask, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            return error.code, json.loads(text)
        except ValueError:  # from something before Discord
            return error.code, {"message": text[:200].decode(errors="replace")}


async def register():
    """Adds what is missing or differs; commands of other programs stay."""
    status, application = await asyncio.to_thread(request, "GET", "/applications/@me")
    if status != 200:
        raise SystemExit(f"Discord answers {status}: {application}")
    path = f"/applications/{application['id']}/commands"
    _, there = await asyncio.to_thread(request, "GET", path)
    known = {command["name"]: command["description"] for command in there}
    for name, (description, _) in COMMANDS.items():
        if known.get(name) != description:
            body = {"name": name, "description": description, "type": 1}
            status, answer = await asyncio.to_thread(request, "POST", path, body)
            if status not in (200, 201):
                raise SystemExit(f"registering /{name}: {status} {answer}")


async def answer(interaction, text, left):
    """Posts the first response; says what becomes of the stored interaction: ack, nak or term."""
    path = f"/interactions/{interaction['id']}/{interaction['token']}/callback"
    body = {"type": CHANNEL_MESSAGE, "data": {"content": text}}
    deadline, pause = time.monotonic() + left, 0.05
    while (left := deadline - time.monotonic()) > 0:
        try:
            # A callback carries its own token, and its limit is not the bot's.
            status, said = await asyncio.to_thread(request, "POST", path, body, min(left, 1.0), False)
        except OSError as error:  # no connection, or no answer in time
            status, said = 503, {"message": str(error)}
        if status < 300 or said.get("code") == 40060:  # 40060: an earlier delivery was answered
            return "ack"
        if status != 429 and status < 500:
            print(f"Discord refuses the answer: {status} {said}", flush=True)
            return "term"
        await asyncio.sleep(float(said.get("retry_after", pause)))
        pause *= 2
    return "term"


async def work(message):
    """One delivery, in time or not at all."""
    alive = asyncio.create_task(keep_alive(message))
    try:
        interaction = json.loads(message.data)["d"]
        age = time.time() - ((int(interaction["id"]) >> 22) + DISCORD_EPOCH_MS) / 1000
        name = interaction.get("data", {}).get("name")
        if interaction["type"] != APPLICATION_COMMAND or name not in COMMANDS:
            verdict = "ack"  # somebody else's
        elif age >= WINDOW:
            verdict = "term"  # an answer would be refused, and confuse the user if not
        else:
            left = WINDOW - max(age, 0.0)
            try:
                # Half a second stays for posting.
                text = await asyncio.wait_for(COMMANDS[name][1](interaction), left - 0.5)
            except Exception as error:
                print(f"/{name} failed: {error!r}", flush=True)
                text = "Something went wrong while handling this command."
            verdict = await answer(interaction, text, left)
            print(f"/{name}: {verdict}", flush=True)
    except (ValueError, KeyError) as error:
        print(f"no interaction: {error!r}", flush=True)
        verdict = "term"
    finally:
        alive.cancel()
    await (message.ack() if verdict == "ack" else message.term())


async def keep_alive(message):
    while True:
        await asyncio.sleep(ACK_WAIT / 3)
        await message.in_progress()


async def take_interactions(nc, js, stopping):
    """One of CONCURRENCY that take an interaction each: nobody waits for a batch to fill."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.NEW, ack_wait=ACK_WAIT, max_deliver=5, max_ack_pending=1000
    )
    while not stopping.is_set():
        try:
            interactions = await js.pull_subscribe(FILTER, durable=DURABLE, stream=EVENTS, config=config)
            while not stopping.is_set():
                with contextlib.suppress(NoMessages):
                    [message] = await interactions.fetch(1, timeout=1)
                    await work(message)
        except nats.errors.Error as error:
            if nc.is_connected:  # somebody deleted the consumer
                print(f"pulling failed, trying again: {error!r}", flush=True)
            await asyncio.sleep(0.25)

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
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(CONCURRENCY))
    await register()
    nc = await connect()
    # Not before: while NATS is awaited, nothing would look at it, and a signal may end the program as it is.
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopping.set)
    js = nc.jetstream()
    await asyncio.gather(*(take_interactions(nc, js, stopping) for _ in range(CONCURRENCY)))
    await nc.flush()
    await nc.close()


asyncio.run(main())
