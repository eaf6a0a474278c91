"""Gateway commands through the proxy that holds the shard: presence, and members of a guild.

    python send_command.py presence 0 "chess"              # shard 0 plays chess
    python send_command.py members 928069340888969672      # all members of a guild (GUILD_MEMBERS intent)
"""

import asyncio
import json
import os
import secrets
import sys
from datetime import datetime, timedelta, timezone

import nats
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig, DeliverPolicy

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = os.environ.get("SUBJECT_PREFIX", "discord")
EVENTS = f"{PREFIX.upper()}_EVENTS"
PRESENCE_UPDATE, REQUEST_GUILD_MEMBERS = 3, 8
# Seconds a chunk may take, and how far our clock may be from the server's.
CHUNK_TIMEOUT, CLOCK_MARGIN = 30, 10


async def send(nc, subject, op, data):
    """Sends a gateway payload; raises unless it was sent or waits for the shard's rate limit.

    Gives the proxy's reply.
    """
    payload = json.dumps({"op": op, "d": data}).encode()
    try:
        reply = json.loads((await nc.request(subject, payload, timeout=5)).data)
    except NoRespondersError:
        raise SystemExit(f"nobody answers {subject}: no proxy holds that shard") from None
    if reply["status"] == "rejected":
        raise SystemExit(f"rejected: {reply['error']}")
    print(reply["status"], reply.get("retry_after_ms") or "", flush=True)
    return reply


async def presence(nc, shard, activity):
    activities = [{"name": activity, "type": 0}]
    data = {"since": None, "activities": activities, "status": "online", "afk": False}
    await send(nc, f"{PREFIX}.shard.{shard}.commands", PRESENCE_UPDATE, data)


async def members(nc, guild):
    """Discord answers with GUILD_MEMBERS_CHUNK events, which have our nonce."""
    data = {"guild_id": guild, "query": "", "limit": 0, "nonce": secrets.token_hex(8)}
    reply = await send(nc, f"{PREFIX}.guild.{guild}.commands", REQUEST_GUILD_MEMBERS, data)
    # All members of a guild may be asked for once in 30 s: if somebody just did, theirs are our chunks,
    # and they may have come already. The stream still has them.
    nonce = reply.get("merged_with_nonce") or data["nonce"]
    since = datetime.now(timezone.utc) - timedelta(milliseconds=reply.get("sent_ms_ago") or 0, seconds=CLOCK_MARGIN)
    config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=since)
    subject = f"{PREFIX}.shard.*.events.{guild}.GUILD_MEMBERS_CHUNK"
    feed = await nc.jetstream().subscribe(subject, stream=EVENTS, ordered_consumer=True, config=config)
    patience = CHUNK_TIMEOUT + (reply.get("retry_after_ms") or 0) / 1000
    seen = 0
    while True:
        message = await feed.next_msg(timeout=patience)
        chunk = json.loads(message.data)["d"]
        if chunk.get("nonce") != nonce:
            continue
        seen += 1
        print(f"chunk {chunk['chunk_index'] + 1} of {chunk['chunk_count']}: {len(chunk['members'])} members", flush=True)
        if seen == chunk["chunk_count"]:
            return


async def main():
    nc = await nats.connect(NATS_URL)
    try:
        match sys.argv[1:]:
            case ["presence", shard, activity]:
                await presence(nc, shard, activity)
            case ["members", guild]:
                await members(nc, guild)
            case _:
                raise SystemExit(__doc__)
    finally:
        await nc.close()


asyncio.run(main())
