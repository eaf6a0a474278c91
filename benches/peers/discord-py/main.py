"""The peer: discord.py and nats-py, every dispatch published to JetStream as it came, with a message id.

discord.py keeps no cache and parses nothing into its models here: what a forwarder does not need."""

import asyncio
import json
import sys

import discord
import nats
from discord.gateway import DiscordWebSocket
from yarl import URL

SETUP = json.loads(sys.argv[1])
WINDOW = 1024
GUILD_IN_ID = {"GUILD_CREATE", "GUILD_UPDATE", "GUILD_DELETE"}
SESSION_EVENTS = {"READY", "RESUMED"}

discord.http.Route.BASE = SETUP["api"]
DiscordWebSocket.DEFAULT_GATEWAY = URL(SETUP["gateway"])


class Client(discord.AutoShardedClient):
    async def before_identify_hook(self, shard_id, *, initial=False):
        """The simulated Discord lets all shards identify at once."""


async def main():
    connection = await nats.connect(SETUP["nats"])
    stream = connection.jetstream(timeout=120, publish_async_max_pending=WINDOW)
    sessions = {}
    library = DiscordWebSocket.received_message

    async def received_message(self, message, /):
        if type(message) is bytes:
            message = self._decompressor.decompress(message)
            if message is None:
                return
        frame = json.loads(message)
        await library(self, message)
        name = frame.get("t")
        if frame.get("op") != 0:
            return
        data = frame.get("d") or {}
        if name == "READY":
            sessions[self.shard_id] = data["session_id"]
        guild = data.get("id" if name in GUILD_IN_ID else "guild_id") or "none"
        await stream.publish_async(
            f"discord.shard.{self.shard_id or 0}.events.{guild}.{name}",
            message.encode(),
            headers={"Nats-Msg-Id": f"{sessions[self.shard_id]}:{frame['s']}"},
            wait_stall=120,
        )

    DiscordWebSocket.received_message = received_message
    client = Client(
        intents=discord.Intents._from_value(SETUP["intents"]),
        shard_count=SETUP["shards"],
        chunk_guilds_at_startup=False,
        member_cache_flags=discord.MemberCacheFlags.none(),
        max_messages=None,
    )
    for name in client._connection.parsers:
        if name not in SESSION_EVENTS:
            client._connection.parsers[name] = lambda data: None
    print("ready", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    running = asyncio.ensure_future(client.start(SETUP["token"]))
    await asyncio.wait({ended, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()


asyncio.run(main())
