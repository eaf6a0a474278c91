"""discord.py, unchanged, against the simulator: connect, load guilds, op 7, a dropped TCP connection,
events after each; with zlib-stream or zstd-stream.

    pip install discord.py zstandard
    python discordpy.py http://127.0.0.1:PORT/api/v10 simulated.bot.token zstd
"""

import asyncio
import sys

API, TOKEN, COMPRESSION = sys.argv[1:4]
if COMPRESSION == "zlib":
    # discord.py takes zstd where it can import it.
    sys.modules["zstandard"] = sys.modules["compression.zstd"] = None

import aiohttp  # noqa: E402
import discord  # noqa: E402
import yarl  # noqa: E402
from discord.gateway import DiscordWebSocket  # noqa: E402

PATIENCE_S = 20


class Bot(discord.Client):
    def __init__(self, control):
        super().__init__(intents=discord.Intents.all(), enable_debug_events=True)
        self.control = control
        self.result = None

    async def act(self, action):
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self.control}/actions", json=action) as answer:
                assert answer.status == 200, await answer.text()

    async def look(self, what):
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{self.control}/{what}") as answer:
                return await answer.json()

    async def setup_hook(self):
        self.task = asyncio.create_task(self.check())

    async def check(self):
        try:
            await asyncio.wait_for(self.steps(), PATIENCE_S * 4)
            self.result = 0
        except BaseException as error:  # the process must end, whatever it was
            print(repr(error), file=sys.stderr)
            self.result = 1
        await self.close()

    async def until(self, event):
        return await self.wait_for(event, timeout=PATIENCE_S)

    async def steps(self):
        before = await self.look("stats")
        await self.until("ready")
        assert len(self.guilds) == before["guilds"], len(self.guilds)
        for fault in ({"kind": "reconnect"}, {"kind": "drop_tcp"}, {"kind": "close", "code": 4000}):
            resumed = asyncio.create_task(self.until("resumed"))
            await asyncio.sleep(0)
            await self.act({"action": "fault", "target": "all", "fault": fault})
            await resumed
            message = asyncio.create_task(self.until("message"))
            await asyncio.sleep(0)
            await self.act({"action": "burst", "event": "MESSAGE_CREATE"})
            await message
        after = await self.look("stats")
        assert after["resumes"] - before["resumes"] == 3, after
        assert after["resumes_refused"] == 0, after
        assert await self.look("violations") == [], await self.look("violations")
        print("1 identify, 3 resumes, events after each, no rule broken")


async def main():
    # The addresses are class attributes in discord.py; everything else is as it comes.
    discord.http.Route.BASE = API
    bot = Bot(API.replace("/api/v10", "/_sim"))
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL((await bot.look("urls"))["gateway"])
    async with bot:
        await bot.start(TOKEN)
    return 1 if bot.result is None else bot.result


sys.exit(asyncio.run(main()))
