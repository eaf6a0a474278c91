"""Ordered events: each guild's events one after the other, on any number of these processes.

The shard is the unit: each shard has a durable consumer `<GROUP>-<shard>`, held by one process at a
time. This is the protocol of `Events::ordered` in the Rust library, to the letter, so that workers in
both languages can share a group:

- The bucket `discord_workers` says who lives (`<GROUP>.member.<name>`, a key with a TTL, renewed: the
  lease on all shards of its process) and who holds what (`<GROUP>.shard.<n>`, compare-and-set).
- Everybody decides for itself by the same rule (`plan`) what to take and what to give up.
- A lease cannot stop what a frozen process has asked for. The server can: a shard's consumer delivers
  to one pinned client, and who takes a shard unpins the one before.
- Before anything begins, all that the server has delivered and not seen acknowledged must be in hand:
  what the holder before did not finish comes first.

After a lost connection or lease the process gives up everything and joins again. Events in flight at
that moment are handled again, before any later one of their guild.

    NATS_URL=nats://127.0.0.1:4222 python ordered.py
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import time
from collections import OrderedDict

import nats
from nats.js.errors import APIError, NotFoundError

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = os.environ.get("SUBJECT_PREFIX", "discord")
EVENTS, DEAD, BUCKET = f"{PREFIX.upper()}_EVENTS", f"{PREFIX.upper()}_DEAD", f"{PREFIX}_workers"

GROUP = os.environ.get("CONSUMER_NAME", "python-ordered")
# Events this program handles; of every shard.
NAMES = ("MESSAGE_CREATE", "MESSAGE_DELETE", "PROXY_GAP")
# These speak of the whole shard: nothing else of it is handled meanwhile.
ALONE = ("READY", "RESUMED", "PROXY_GAP", "PROXY_SHARD", "PROXY_RESHARD")
# How long a process may be silent until its shards go to others, in whole seconds.
LEASE = 2
# How much earlier than the server's our own end of the lease is.
MARGIN = 0.15
# Events of a shard in hand at most; the server is told of each three times per ACK_WAIT.
WINDOW, ACK_WAIT = 256, 1.0
# Handlers at once, over all shards.
CONCURRENCY = 64
# Pauses after the first failed attempt, the second, ...: the guild waits, others go on.
PAUSES = (0.25, 1.0, 3.0, 8.0)


# JetStream's error numbers.
CONSUMER_NOT_FOUND, NO_MESSAGE, NAME_IN_USE, WRONG_LAST_SEQUENCE = 10014, 10037, 10058, (10071, 10164)


async def handle(event, shard, guild, message_id):
    """Yours. An exception means: try again. The event's guild waits until it is done."""
    if event["t"] == "PROXY_GAP":
        print(f"gap on shard {shard}: events before this one may be missing", flush=True)
        return
    print(f"shard {shard} guild {guild} {message_id} {event['t']}", flush=True)


def plan(me, members, holders, shards):
    """What to take and what to give up, from a view of the group. Pure, and the same everywhere.

    members: name -> leaving; holders: shard -> name; shards: all there are.
    """
    mine = sorted(shard for shard, holder in holders.items() if holder == me)
    if members.get(me) is not False:
        return [], mine
    held = {name: sum(holder == name for holder in holders.values()) for name in members}
    # Whoever holds most keeps the one more that cannot be divided: the fewest moves.
    staying = sorted((name for name, leaving in members.items() if not leaving), key=lambda name: (-held[name], name))
    each, more = divmod(len(shards), len(staying))
    quotas = [each + (rank < more) for rank in range(len(staying))]
    rank = staying.index(me)
    if len(mine) > quotas[rank]:
        return [], mine[quotas[rank] :]
    free = [shard for shard in sorted(shards) if holders.get(shard) not in members]
    # Those before us take theirs first, so that not everybody claims the same shard.
    before = sum(max(quotas[other] - held[staying[other]], 0) for other in range(rank))
    return free[before : before + quotas[rank] - len(mine)], []


async def api(nc, subject, body=None):
    """A request to JetStream's API, for what nats-py has no function for."""
    reply = await nc.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=5)
    answer = json.loads(reply.data)
    if "error" in answer:
        raise APIError.from_error(answer["error"])
    return answer


async def make_stream(nc, config):
    """Makes a stream unless it is there."""
    try:
        await api(nc, f"STREAM.INFO.{config['name']}")
    except NotFoundError:
        replicas = (await api(nc, f"STREAM.INFO.{EVENTS}"))["config"]["num_replicas"]
        try:
            await api(nc, f"STREAM.CREATE.{config['name']}", {**config, "num_replicas": replicas})
        except APIError as error:
            if error.err_code != NAME_IN_USE:  # another worker was faster
                raise


class Conflict(Exception):
    """Somebody else wrote the key since, or it has ended."""


class Registry:
    """The bucket: compare-and-set writes, with a TTL where one is asked for."""

    def __init__(self, nc):
        self.nc, self.js = nc, nc.jetstream()

    async def open(self):
        second = 1_000_000_000
        await make_stream(self.nc, {
            "name": f"KV_{BUCKET}", "subjects": [f"$KV.{BUCKET}.>"], "max_msgs_per_subject": 1, "discard": "new",
            "allow_direct": True, "deny_delete": True, "allow_rollup_hdrs": True,
            # Single keys end, and leave a mark for those who watch.
            "allow_msg_ttl": True, "subject_delete_marker_ttl": 60 * second,
        })
        await make_stream(self.nc, {
            "name": DEAD, "subjects": [f"{PREFIX}.dead.*"], "max_age": 7 * 24 * 3600 * second, "max_bytes": 1 << 30,
            "duplicate_window": 120 * second, "allow_direct": True,
        })
        # When the group began, by the server's clock: the first worker that asks decides it.
        with contextlib.suppress(Conflict):
            await self.put("begin", {"version": "python"}, 0)
        message, _ = await self.get("begin")
        self.begin = message["time"]

    async def put(self, key, value, revision, ttl=None):
        """Writes if the key's last revision is this one (0: there is none); returns the new one."""
        return await self._write(key, json.dumps(value).encode(), {}, revision, ttl)

    async def delete(self, key, revision, ttl=None):
        return await self._write(key, b"", {"KV-Operation": "DEL"}, revision, ttl)

    async def _write(self, key, value, headers, revision, ttl):
        headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        if ttl is not None:
            headers["Nats-TTL"] = f"{ttl}s"
        try:
            return (await self.js.publish(f"$KV.{BUCKET}.{GROUP}.{key}", value, headers=headers)).seq
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                raise Conflict(key) from error
            raise

    async def get(self, key):
        """The stored message and its revision; `None` if there is none."""
        try:
            what = {"last_by_subj": f"$KV.{BUCKET}.{GROUP}.{key}"}
            message = (await api(self.nc, f"STREAM.MSG.GET.KV_{BUCKET}", what))["message"]
        except APIError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return None, 0
        return (message if message.get("data") else None), message["seq"]

    async def watch(self):
        bucket = await self.js.key_value(BUCKET)
        return await bucket.watch(f"{GROUP}.>")

    async def watch_shards(self):
        """Records that proxies keep of their shards: `shard.<count>.<number>`."""
        fleet = await self.js.key_value(f"{PREFIX}_fleet")
        return await fleet.watch("shard.*.*")


class Lost(Exception):
    """The lease or the connection is gone: begin a new life."""


class Lease:
    """The member's key. Whoever works under it asks, by the monotonic clock, before it begins anything."""

    def __init__(self, registry):
        self.registry, self.end, self.leaving, self.revision = registry, 0.0, False, 0
        # Everything under it must end. Tasks are cancelled as well, but a library may swallow that.
        self.over = False
        self.worker = f"python-{os.getpid()}"
        # One life of one worker, never used again.
        self.member = f"{self.worker}-{secrets.token_hex(4)}"
        self.since = int(time.time() * 1000)

    async def renew(self):
        sent = time.monotonic()
        record = {"worker": self.worker, "since_unix_ms": self.since, "leaving": self.leaving}
        self.revision = await self.registry.put(f"member.{self.member}", record, self.revision, LEASE)
        self.end = sent + LEASE - MARGIN

    async def keep(self):
        while not self.over:
            await asyncio.sleep(LEASE / 4)
            try:
                async with asyncio.timeout(LEASE):
                    await self.renew()
            except Conflict:
                # Ours, from a write whose answer got lost, or it has ended: nobody else uses this key.
                message, self.revision = await self.registry.get(f"member.{self.member}")
                if message is None:
                    raise Lost("the lease has ended") from None
            except (nats.errors.Error, TimeoutError):
                pass  # it stops being valid by itself, and comes back if NATS does in time

    def is_valid(self):
        return time.monotonic() < self.end

    async def valid(self):
        while not self.is_valid():
            await asyncio.sleep(0.01)


class Shard:
    """One shard while this process holds it."""

    def __init__(self, nc, number, lease, begin, slots):
        self.nc, self.number, self.lease, self.begin, self.slots = nc, number, lease, begin, slots
        self.consumer = f"{EVENTS}.{GROUP}-{number}"
        self.releasing, self.trouble = False, None
        self.in_hand = {}  # stream sequence -> its newest delivery, until it is done
        self.done = OrderedDict()  # the last ones done: a lost acknowledgement brings them again
        self.waiting = []  # arrived while nothing may begin; None afterwards
        self.tails, self.alone, self.tasks = {}, None, set()
        self.arrived, self.outstanding, self.overdue, self.pin = asyncio.Event(), 0, 0.0, None

    def release(self):
        self.releasing = True
        self.arrived.set()

    async def hold(self):
        """Returns once everything in hand is done or given back."""
        await self.open()
        inbox = self.nc.new_inbox()
        arrivals = await self.nc.subscribe(inbox, cb=self.take)
        keeping = asyncio.create_task(self.keep_alive())
        try:
            await self.recover(inbox)
            while not self.releasing:
                await self.ask(inbox)
                await self.something_comes()
            await api(self.nc, f"CONSUMER.UNPIN.{self.consumer}", {"group": "holder"})
            # Handlers that run go on; what has not begun is given back, in `run`.
            while self.tasks:
                await asyncio.wait(self.tasks)
        finally:
            for task in (keeping, *self.tasks):
                task.cancel()
            with contextlib.suppress(nats.errors.Error):
                await arrivals.unsubscribe()

    async def open(self):
        """The durable, made if it is missing, where the group began; then nobody is pinned."""
        subjects = [f"{PREFIX}.shard.{self.number}.events.*.{name}" for name in NAMES]
        name = self.consumer.partition(".")[2]
        config = {
            "durable_name": name, "description": "Events of one shard, in order", "filter_subjects": subjects,
            "deliver_policy": "by_start_time", "opt_start_time": self.begin, "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * 1e9), "max_deliver": -1, "max_ack_pending": WINDOW,
            "priority_policy": "pinned_client", "priority_groups": ["holder"], "priority_timeout": 60_000_000_000,
        }
        try:
            config = (await api(self.nc, f"CONSUMER.INFO.{self.consumer}"))["config"]
        except APIError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            await api(self.nc, f"CONSUMER.DURABLE.CREATE.{self.consumer}", {"stream_name": EVENTS, "config": config})
        there = config.get("filter_subjects") or [config.get("filter_subject", "")]
        if not set(subjects) <= set(there) and not any(subject.endswith(".*.*") for subject in there):
            # A worker of another version selected less; nothing is ever taken away.
            config.pop("filter_subject", None)
            config["filter_subjects"] = [*there, *sorted(set(subjects) - set(there))]
            await api(self.nc, f"CONSUMER.DURABLE.CREATE.{self.consumer}", {"stream_name": EVENTS, "config": config})
        await api(self.nc, f"CONSUMER.UNPIN.{self.consumer}", {"group": "holder"})

    async def recover(self, inbox):
        """Waits until every delivery that the server waits for is in hand; then they begin, in order."""
        while (await api(self.nc, f"CONSUMER.INFO.{self.consumer}"))["num_ack_pending"] > len(self.in_hand):
            await self.request(inbox, max(WINDOW - len(self.in_hand), 1), 0.1)
            while self.outstanding > 0 and not self.releasing:
                await self.something_comes()
            if self.releasing:
                break
        waiting, self.waiting = self.waiting, None
        for sequence in sorted(waiting):
            self.schedule(sequence)

    async def ask(self, inbox):
        """As much as there is room for, but not for each place that becomes free."""
        room = WINDOW - len(self.in_hand) - self.outstanding
        if room > 0 and (self.outstanding == 0 or room >= WINDOW // 4):
            # Until we are pinned for less than any lease: we might freeze right now.
            await self.request(inbox, room, 5.0 if self.pin else 0.5)

    async def request(self, inbox, batch, expires):
        await self.lease.valid()
        body = {"batch": batch, "expires": int(expires * 1e9), "group": "holder"}
        if self.pin:
            body["id"] = self.pin
        self.outstanding += batch
        self.overdue = time.monotonic() + expires + 0.5
        await self.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self.consumer}", json.dumps(body).encode(), reply=inbox)

    async def something_comes(self):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):  # unlike wait_for, it never swallows that we are cancelled
                await self.arrived.wait()
        self.arrived.clear()
        if self.trouble is None and self.outstanding > 0 and time.monotonic() > self.overdue:
            self.trouble = "the server has forgotten a request, and perhaps what it answered"
        if self.lease.over:
            self.trouble = "the lease is over"
        if self.trouble is not None:
            raise Lost(f"shard {self.number}: {self.trouble}")

    async def take(self, message):
        """What comes in: an event, or a status."""
        self.arrived.set()
        headers = message.headers or {}
        status, text = headers.get("Status"), headers.get("Description", "")
        if status in ("404", "408") or "Batch Completed" in text:  # a request is over
            self.outstanding = max(self.outstanding - int(headers.get("Nats-Pending-Messages", self.outstanding)), 0)
        elif status is not None:
            # Another holder or leader, or no consumer: the order of what comes now means nothing.
            self.trouble = f"{status} {text}"
        else:
            self.outstanding = max(self.outstanding - 1, 0)
            self.pin = headers.get("Nats-Pin-Id", self.pin)
            sequence = message.metadata.sequence.stream
            if sequence in self.done:
                await message.ack()
            elif sequence in self.in_hand:
                self.in_hand[sequence] = message
            else:
                self.in_hand[sequence] = message
                if self.waiting is None:
                    self.schedule(sequence)
                else:
                    self.waiting.append(sequence)

    def schedule(self, sequence):
        """Each event waits for the one before it of its guild; one of the whole shard, for all."""
        *_, guild, name = self.in_hand[sequence].subject.split(".")
        if name in ALONE:
            before = [self.alone, *self.tails.values()]
        else:
            before = [self.tails.get(guild, self.alone)]
        task = asyncio.create_task(self.run(sequence, guild, name, [other for other in before if other]))
        if name in ALONE:
            self.tails, self.alone = {}, task
        else:
            self.tails[guild] = task
        self.tasks.add(task)
        task.add_done_callback(lambda _: self.finished(task, guild))

    def finished(self, task, guild):
        self.tasks.discard(task)
        if self.tails.get(guild) is task:
            del self.tails[guild]
        if not task.cancelled() and task.exception() is not None:
            self.trouble = repr(task.exception())
        self.arrived.set()

    async def run(self, sequence, guild, name, before):
        """Attempts until the event is handled or buried."""
        if before:
            await asyncio.wait(before)
        attempt, message_id = 0, None
        while True:
            async with self.slots:
                await self.lease.valid()
                if self.releasing:
                    await self.in_hand.pop(sequence).nak()  # the next holder goes on
                    return
                message = self.in_hand[sequence]
                message_id = (message.headers or {}).get("Nats-Msg-Id", f"{EVENTS}@{sequence}")
                try:
                    if name in NAMES:
                        await handle(json.loads(message.data), self.number, guild, message_id)
                    break
                except Exception as error:  # a handler's failure is its guild's trouble and nobody else's
                    print(f"{message_id} failed: {error!r}", flush=True)
                    if attempt == len(PAUSES):
                        await self.bury(sequence, message_id, f"tried {attempt + 1} times: {error!r}")
                        break
            # The guild waits; the slot does not.
            await asyncio.sleep(PAUSES[attempt])
            attempt += 1
        self.done[sequence] = True
        if len(self.done) > 4096:
            self.done.popitem(last=False)
        await self.in_hand.pop(sequence).ack()

    async def bury(self, sequence, message_id, reason):
        message = self.in_hand[sequence]
        headers = {
            "Nats-Msg-Id": f"{GROUP}/{message_id}", "Dead-Message-Id": message_id,
            "Dead-Reason": " ".join(reason.split())[:1000], "Dead-Subject": message.subject,
            "Dead-Deliveries": str(message.metadata.num_delivered), "Dead-Place": f"{EVENTS}@{sequence}",
        }
        await self.nc.jetstream().publish(f"{PREFIX}.dead.{GROUP}", message.data, headers=headers)

    async def keep_alive(self):
        """What waits or runs is not to be delivered again."""
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            for message in list(self.in_hand.values()):
                await self.nc.publish(message.reply, b"+WPI")


class Life:
    """From joining the group to leaving it, or to the loss of the lease or the connection."""

    def __init__(self, nc, registry):
        self.nc, self.registry, self.lease = nc, registry, Lease(registry)
        self.me = self.lease.member
        self.slots, self.changed = asyncio.Semaphore(CONCURRENCY), asyncio.Event()
        self.members, self.holders, self.revisions = {}, {}, {}
        self.loaded, self.shards, self.held = False, set(), {}

    async def run(self, stopping, disconnected):
        await self.lease.renew()
        watcher = await self.registry.watch()
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self.needs(self.lease.keep())),
                    tasks.create_task(self.needs(self.follow(watcher))),
                    tasks.create_task(self.needs(self.learn_shards())),
                    tasks.create_task(self.needs(until_lost(disconnected))),
                ]
                while not (self.lease.leaving and not self.held):
                    if self.lease.over:
                        raise Lost("part of this life is over")
                    if stopping.is_set() and not self.lease.leaving:
                        self.lease.leaving = True
                        with contextlib.suppress(Conflict):  # the next renewal says it
                            await self.lease.renew()
                    await self.look(tasks)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await self.changed.wait()
                    self.changed.clear()
                for task in background:
                    task.cancel()
        finally:
            if self.nc.is_connected:
                # At once, rather than with its TTL: nothing of ours runs any more.
                with contextlib.suppress(nats.errors.Error, Conflict):
                    await self.registry.delete(f"member.{self.me}", self.lease.revision, 60)
                with contextlib.suppress(nats.errors.Error):
                    await watcher.stop()

    async def needs(self, part):
        """Runs something without which this life is over."""
        try:
            await part
        finally:
            self.lease.over = True
            self.changed.set()

    async def learn_shards(self):
        watcher = await self.registry.watch_shards()
        async for entry in watcher:
            if entry is not None:
                self.shards.add(int(entry.key.rpartition(".")[2]))
                self.changed.set()

    async def follow(self, watcher):
        async for entry in watcher:
            self.changed.set()
            if entry is None:
                self.loaded = True  # before, the living look dead
                continue
            _, kind, *name = entry.key.split(".")
            value = None if entry.operation in ("DEL", "PURGE") else json.loads(entry.value)
            if kind == "member":
                self.members.pop(name[0], None)
                if value is not None:
                    self.members[name[0]] = value.get("leaving", False)
            elif kind == "shard" and entry.revision >= self.revisions.get(int(name[0]), 0):
                # Our own writes are known before the watch tells of them, and of older ones.
                self.claimed(int(name[0]), entry.revision, value and value["member"])

    def claimed(self, shard, revision, holder):
        self.revisions[shard] = revision
        self.holders.pop(shard, None)
        if holder is not None:
            self.holders[shard] = holder
        if holder != self.me and shard in self.held:
            self.held[shard][0].cancel()  # another worker took it

    async def look(self, tasks):
        """Does what the plan says."""
        self.held = {shard: held for shard, held in self.held.items() if not held[0].done()}
        for shard in [shard for shard, holder in self.holders.items() if holder == self.me and shard not in self.held]:
            with contextlib.suppress(Conflict):  # the watch will tell
                revision = await self.registry.delete(f"shard.{shard}", self.revisions.get(shard, 0))
                self.claimed(shard, revision, None)
        if not self.loaded or not self.lease.is_valid():
            return
        self.members[self.me] = self.lease.leaving
        take, give = plan(self.me, self.members, self.holders, self.shards | set(self.holders))
        for shard in give:
            if shard in self.held:
                self.held[shard][1].release()
        for number in take:
            if number in self.held:
                continue  # not given up entirely yet
            claim = {"member": self.me, "since_unix_ms": int(time.time() * 1000)}
            with contextlib.suppress(Conflict):  # another worker was faster
                revision = await self.registry.put(f"shard.{number}", claim, self.revisions.get(number, 0))
                shard = Shard(self.nc, number, self.lease, self.registry.begin, self.slots)
                self.claimed(number, revision, self.me)
                self.held[number] = (tasks.create_task(self.hold(shard)), shard)

    async def hold(self, shard):
        print(f"shard {shard.number} taken", flush=True)
        try:
            await shard.hold()
        except (Lost, nats.errors.Error) as error:
            print(f"shard {shard.number} cannot be read: {error}", flush=True)
            await asyncio.sleep(0.5)
        print(f"shard {shard.number} released", flush=True)
        self.changed.set()


async def until_lost(disconnected):
    await disconnected.wait()
    raise Lost("the connection was lost")


async def main():
    stopping, disconnected = asyncio.Event(), asyncio.Event()

    async def gone():
        disconnected.set()
        if not nc.is_closed:  # that is us
            print("NATS is away", flush=True)

    async def back():
        print("NATS is back", flush=True)

    async def trouble(error):
        if not isinstance(error, OSError):  # a failed attempt to connect again is no news
            print(f"NATS: {error!r}", flush=True)

    # Comes back by itself, however long NATS is away.
    patience = asyncio.get_running_loop().call_later(2, lambda: print(f"waiting for NATS at {NATS_URL}", flush=True))
    nc = await nats.connect(
        NATS_URL, max_reconnect_attempts=-1, reconnect_time_wait=0.25, disconnected_cb=gone, reconnected_cb=back,
        error_cb=trouble,
    )
    patience.cancel()
    # Not before: while NATS is awaited, nothing would look at it, and a signal may end the program as it is.
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    registry = Registry(nc)
    await registry.open()
    while not stopping.is_set():
        try:
            disconnected.clear()
            await Life(nc, registry).run(stopping, disconnected)
        except* (Lost, Conflict, nats.errors.Error) as group:
            print(f"joining the group again: {group.exceptions[0]!r}", flush=True)
            disconnected.set()
        if disconnected.is_set() and not stopping.is_set():
            while not nc.is_connected and not stopping.is_set():
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
    await nc.flush()
    await nc.close()


asyncio.run(main())
