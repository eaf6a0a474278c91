// Ordered events: each guild's events one after the other, on any number of these processes.
//
// The shard is the unit: each shard has a durable consumer `<GROUP>-<shard>`, held by one process at a
// time. This is the protocol of `Events::ordered` in the Rust library, to the letter, so that workers
// in both languages can share a group:
//
// - The bucket `discord_workers` says who lives (`<GROUP>.member.<name>`, a key with a TTL, renewed: the
//   lease on all shards of its process) and who holds what (`<GROUP>.shard.<n>`, compare-and-set).
// - Everybody decides for itself by the same rule (`plan`) what to take and what to give up.
// - A lease cannot stop what a frozen process has asked for. The server can: a shard's consumer delivers
//   to one pinned client, and who takes a shard unpins the one before.
// - Before anything begins, all that the server has delivered and not seen acknowledged must be in
//   hand: what the holder before did not finish comes first.
//
// After a lost connection or lease the process gives up everything and joins again. Events in flight at
// that moment are handled again, before any later one of their guild.
//
//     NATS_URL=nats://127.0.0.1:4222 node ordered.mjs

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { connect, createInbox, headers } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;
const [EVENTS, DEAD] = [`${PREFIX.toUpperCase()}_EVENTS`, `${PREFIX.toUpperCase()}_DEAD`];
const BUCKET = `${PREFIX}_workers`;

const GROUP = process.env.CONSUMER_NAME ?? "javascript-ordered";
// Events this program handles; of every shard.
const NAMES = ["MESSAGE_CREATE", "MESSAGE_DELETE", "PROXY_GAP"];
// These speak of the whole shard: nothing else of it is handled meanwhile.
const ALONE = ["READY", "RESUMED", "PROXY_GAP", "PROXY_SHARD", "PROXY_RESHARD"];
// How long a process may be silent until its shards go to others, in whole seconds.
const LEASE_S = 2;
// How much earlier than the server's our own end of the lease is.
const MARGIN_MS = 150;
// Events of a shard in hand at most; the server is told of each three times per ACK_WAIT_MS.
const WINDOW = 256;
const ACK_WAIT_MS = 1000;
// Handlers at once, over all shards.
const CONCURRENCY = 64;
// Pauses after the first failed attempt, the second, ...: the guild waits, others go on.
const PAUSES_MS = [250, 1000, 3000, 8000];
// Events remembered after they are done: a lost acknowledgement brings them again.
const DONE_MAX = 4096;
// JetStream's error numbers.
const [CONSUMER_NOT_FOUND, NO_MESSAGE, NAME_IN_USE, STREAM_NOT_FOUND] = [10014, 10037, 10058, 10059];
const WRONG_LAST_SEQUENCE = [10071, 10164];
const NANOS_PER_S = 1e9;

/**
 * Yours. An error means: try again. The event's guild waits until it is done.
 *
 * @param {import("discord-api-types/v10").GatewayDispatchPayload} event
 */
async function handle(event, shard, guild, messageId) {
  if (event.t === "PROXY_GAP") {
    console.log(`gap on shard ${shard}: events before this one may be missing`);
    return;
  }
  console.log(`shard ${shard} guild ${guild} ${messageId} ${event.t}`);
}

/**
 * What to take and what to give up, from a view of the group. Pure, and the same everywhere.
 *
 * @param {Map<string, boolean>} members name -> leaving
 * @param {Map<number, string>} holders shard -> name
 * @param {Set<number>} shards all there are
 */
export function plan(me, members, holders, shards) {
  const ascending = (a, b) => a - b;
  const heldBy = (name) => [...holders].filter(([, holder]) => holder === name).map(([shard]) => shard);
  const mine = heldBy(me).sort(ascending);
  if (members.get(me) !== false) return { take: [], give: mine };
  // Whoever holds most keeps the one more that cannot be divided: the fewest moves.
  const staying = [...members].filter(([, leaving]) => !leaving).map(([name]) => ({ name, held: heldBy(name).length }));
  staying.sort((a, b) => b.held - a.held || (a.name < b.name ? -1 : 1));
  const [each, more] = [Math.floor(shards.size / staying.length), shards.size % staying.length];
  const quota = (rank) => each + (rank < more ? 1 : 0);
  const rank = staying.findIndex(({ name }) => name === me);
  if (mine.length > quota(rank)) return { take: [], give: mine.slice(quota(rank)) };
  const free = [...shards].sort(ascending).filter((shard) => !members.has(holders.get(shard)));
  // Those before us take theirs first, so that not everybody claims the same shard.
  const before = staying.slice(0, rank).reduce((sum, { held }, other) => sum + Math.max(quota(other) - held, 0), 0);
  return { take: free.slice(before, before + quota(rank) - mine.length), give: [] };
}

/** Something that happened, for whoever waits for it. */
class Bell {
  #rung = false;
  #wake = () => {};

  ring() {
    this.#rung = true;
    this.#wake();
  }

  /** Waits until it rings, at most so long; forgets it. */
  async wait(ms) {
    if (!this.#rung) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#wake = () => resolve(clearTimeout(timer));
      });
    }
    this.#rung = false;
  }
}

/** Handlers at once. */
class Slots {
  #free;
  #waiting = [];

  constructor(free) {
    this.#free = free;
  }

  async with(work) {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free += 1;
    }
  }
}

/** What the server's address for acknowledgements says of a delivery. */
function delivery(message) {
  // $JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.…
  const tokens = message.reply.split(".");
  const [deliveries, sequence] = tokens.slice(tokens.length > 9 ? 6 : 4).map(Number);
  return { deliveries, sequence };
}

/** Somebody else wrote the key since, or it has ended. */
class Conflict extends Error {}

/** The lease, the connection or a shard's consumer is not what it was. */
class Lost extends Error {}

class ApiError extends Error {
  constructor({ err_code, description }) {
    super(description);
    this.code = err_code;
  }
}

/** A request to JetStream's API. */
async function api(nc, subject, body = {}) {
  const reply = await nc.request(`$JS.API.${subject}`, JSON.stringify(body), { timeout: 5000 });
  const answer = reply.json();
  if (answer.error) throw new ApiError(answer.error);
  return answer;
}

/** Makes a stream unless it is there. */
async function makeStream(nc, config) {
  try {
    await api(nc, `STREAM.INFO.${config.name}`);
  } catch (error) {
    if (error.code !== STREAM_NOT_FOUND) throw error;
    const events = await api(nc, `STREAM.INFO.${EVENTS}`);
    try {
      await api(nc, `STREAM.CREATE.${config.name}`, { ...config, num_replicas: events.config.num_replicas });
    } catch (error) {
      if (error.code !== NAME_IN_USE) throw error; // another worker was faster
    }
  }
}

/** The bucket: compare-and-set writes, with a TTL where one is asked for. */
class Registry {
  constructor(nc) {
    this.nc = nc;
  }

  async open() {
    await makeStream(this.nc, {
      name: `KV_${BUCKET}`, subjects: [`$KV.${BUCKET}.>`], max_msgs_per_subject: 1, discard: "new", allow_direct: true,
      deny_delete: true, allow_rollup_hdrs: true,
      // Single keys end, and leave a mark for those who watch.
      allow_msg_ttl: true, subject_delete_marker_ttl: 60 * NANOS_PER_S,
    });
    await makeStream(this.nc, {
      name: DEAD, subjects: [`${PREFIX}.dead.*`], max_age: 7 * 24 * 3600 * NANOS_PER_S, max_bytes: 2 ** 30,
      duplicate_window: 120 * NANOS_PER_S, allow_direct: true,
    });
    // When the group began, by the server's clock: the first worker that asks decides it.
    await this.put("begin", { version: "javascript" }, 0).catch(unlessConflict);
    this.begin = (await this.get("begin")).message.time;
  }

  /** Writes if the key's last revision is this one (0: there is none); returns the new one. */
  async put(key, value, revision, ttlS) {
    return await this.#write(key, JSON.stringify(value), headers(), revision, ttlS);
  }

  async delete(key, revision, ttlS) {
    const all = headers();
    all.set("KV-Operation", "DEL");
    return await this.#write(key, "", all, revision, ttlS);
  }

  async #write(key, value, all, revision, ttlS) {
    all.set("Nats-Expected-Last-Subject-Sequence", String(revision));
    if (ttlS !== undefined) all.set("Nats-TTL", `${ttlS}s`);
    const reply = await this.nc.request(`$KV.${BUCKET}.${GROUP}.${key}`, value, { headers: all, timeout: 5000 });
    const stored = reply.json();
    if (stored.error === undefined) return stored.seq;
    throw WRONG_LAST_SEQUENCE.includes(stored.error.err_code) ? new Conflict(key) : new ApiError(stored.error);
  }

  /** The stored message and its revision; no message where there is none. */
  async get(key) {
    try {
      const { message } = await api(this.nc, `STREAM.MSG.GET.KV_${BUCKET}`, { last_by_subj: `$KV.${BUCKET}.${GROUP}.${key}` });
      return { message: message.data ? message : undefined, revision: message.seq };
    } catch (error) {
      if (error.code !== NO_MESSAGE) throw error;
      return { message: undefined, revision: 0 };
    }
  }
}

const unlessConflict = (error) => {
  if (!(error instanceof Conflict)) throw error;
};

/** The member's key. Whoever works under it asks, by the monotonic clock, before it begins anything. */
class Lease {
  worker = `javascript-${process.pid}`;
  // One life of one worker, never used again.
  member = `${this.worker}-${randomBytes(4).toString("hex")}`;
  since = Date.now();
  revision = 0;
  end = 0;
  leaving = false;

  constructor(registry) {
    this.registry = registry;
  }

  async renew() {
    const sent = performance.now();
    const record = { worker: this.worker, since_unix_ms: this.since, leaving: this.leaving };
    this.revision = await this.registry.put(`member.${this.member}`, record, this.revision, LEASE_S);
    this.end = sent + LEASE_S * 1000 - MARGIN_MS;
  }

  /** Renews until the signal; throws when the lease has ended. */
  async keep(signal) {
    while (!signal.aborted) {
      await sleep((LEASE_S * 1000) / 4, undefined, { signal }).catch(() => {});
      if (signal.aborted) return;
      try {
        await this.renew();
      } catch (error) {
        // Without an answer it stops being valid by itself, and comes back if NATS does in time.
        if (!(error instanceof Conflict)) continue;
        // Ours, from a write whose answer got lost, or it has ended: nobody else uses this key.
        const { message, revision } = await this.registry.get(`member.${this.member}`);
        if (message === undefined) throw new Lost("the lease has ended");
        this.revision = revision;
      }
    }
  }

  isValid() {
    return performance.now() < this.end;
  }

  async valid() {
    while (!this.isValid()) await sleep(10);
  }
}

/** One shard while this process holds it. */
class Shard {
  releasing = false;
  /** Somebody else has the shard: nothing begins, and nothing is acknowledged. */
  dead = false;
  trouble;
  inHand = new Map(); // stream sequence -> its newest delivery, until it is done
  done = new Set();
  waiting = []; // arrived while nothing may begin; undefined afterwards
  tails = new Map(); // guild -> its last event's task
  alone = Promise.resolve();
  tasks = new Set();
  bell = new Bell();
  outstanding = 0;
  overdue = 0;
  pin;

  constructor(nc, number, lease, begin, slots) {
    Object.assign(this, { nc, number, lease, begin, slots });
    this.consumer = `${EVENTS}.${GROUP}-${number}`;
  }

  release() {
    this.releasing = true;
    this.bell.ring();
  }

  lose() {
    this.dead = true;
    this.release();
  }

  /** Returns once everything in hand is done or given back. */
  async hold() {
    await this.open();
    const inbox = createInbox();
    const arrivals = this.nc.subscribe(inbox, { callback: (error, message) => !error && this.take(message) });
    const keeping = setInterval(() => this.keepAlive(), ACK_WAIT_MS / 3);
    try {
      await this.recover(inbox);
      while (!this.releasing) {
        await this.ask(inbox);
        await this.somethingComes();
      }
      if (!this.dead) await api(this.nc, `CONSUMER.UNPIN.${this.consumer}`, { group: "holder" });
      // Handlers that run go on; what has not begun is given back, in `run`.
      while (this.tasks.size > 0) await Promise.all(this.tasks);
    } catch (error) {
      this.lose();
      throw error;
    } finally {
      clearInterval(keeping);
      arrivals.unsubscribe();
    }
  }

  /** The durable, made if it is missing, where the group began; then nobody is pinned. */
  async open() {
    const subjects = NAMES.map((name) => `${PREFIX}.shard.${this.number}.events.*.${name}`);
    let config = {
      durable_name: `${GROUP}-${this.number}`, description: "Events of one shard, in order", filter_subjects: subjects,
      deliver_policy: "by_start_time", opt_start_time: this.begin, ack_policy: "explicit", ack_wait: ACK_WAIT_MS * 1e6,
      max_deliver: -1, max_ack_pending: WINDOW, priority_policy: "pinned_client", priority_groups: ["holder"],
      priority_timeout: 60 * NANOS_PER_S,
    };
    const write = () => api(this.nc, `CONSUMER.DURABLE.CREATE.${this.consumer}`, { stream_name: EVENTS, config });
    try {
      ({ config } = await api(this.nc, `CONSUMER.INFO.${this.consumer}`));
    } catch (error) {
      if (error.code !== CONSUMER_NOT_FOUND) throw error;
      await write();
    }
    const there = config.filter_subjects ?? [config.filter_subject ?? ""];
    const missing = subjects.filter((subject) => !there.includes(subject));
    if (missing.length > 0 && !there.some((subject) => subject.endsWith(".*.*"))) {
      // A worker of another version selected less; nothing is ever taken away.
      config = { ...config, filter_subject: undefined, filter_subjects: [...there, ...missing] };
      await write();
    }
    await api(this.nc, `CONSUMER.UNPIN.${this.consumer}`, { group: "holder" });
  }

  /** Waits until every delivery that the server waits for is in hand; then they begin, in order. */
  async recover(inbox) {
    while ((await api(this.nc, `CONSUMER.INFO.${this.consumer}`)).num_ack_pending > this.inHand.size) {
      await this.request(inbox, Math.max(WINDOW - this.inHand.size, 1), 100);
      while (this.outstanding > 0 && !this.releasing) await this.somethingComes();
      if (this.releasing) break;
    }
    const waiting = this.waiting.sort((a, b) => a - b);
    this.waiting = undefined;
    for (const sequence of waiting) this.schedule(sequence);
  }

  /** As much as there is room for, but not for each place that becomes free. */
  async ask(inbox) {
    const room = WINDOW - this.inHand.size - this.outstanding;
    if (room <= 0 || (this.outstanding > 0 && room < WINDOW / 4)) return;
    // Until we are pinned for less than any lease: we might freeze right now.
    await this.request(inbox, room, this.pin ? 5000 : 500);
  }

  async request(inbox, batch, expiresMs) {
    await this.lease.valid();
    const body = { batch, expires: expiresMs * 1e6, group: "holder", id: this.pin };
    this.outstanding += batch;
    this.overdue = performance.now() + expiresMs + 500;
    this.nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${this.consumer}`, JSON.stringify(body), { reply: inbox });
  }

  async somethingComes() {
    await this.bell.wait(500);
    if (this.outstanding > 0 && performance.now() > this.overdue) {
      this.trouble ??= "the server has forgotten a request, and perhaps what it answered";
    }
    if (this.trouble) throw new Lost(`shard ${this.number}: ${this.trouble}`);
  }

  /** What comes in: an event, or a status. */
  take(message) {
    this.bell.ring();
    const [status, text] = [message.headers?.code ?? 0, message.headers?.description ?? ""];
    if ([404, 408].includes(status) || text.includes("Batch Completed")) {
      // A request is over.
      const left = message.headers.get("Nats-Pending-Messages") || this.outstanding;
      this.outstanding = Math.max(this.outstanding - Number(left), 0);
      return;
    }
    if (status !== 0) {
      // Another holder or leader, or no consumer: the order of what comes now means nothing.
      this.trouble = `${status} ${text}`;
      return;
    }
    this.outstanding = Math.max(this.outstanding - 1, 0);
    this.pin = message.headers?.get("Nats-Pin-Id") || this.pin;
    const { sequence } = delivery(message);
    if (this.done.has(sequence)) return message.respond("+ACK");
    const known = this.inHand.has(sequence);
    this.inHand.set(sequence, message);
    if (known) return;
    if (this.waiting) this.waiting.push(sequence);
    else this.schedule(sequence);
  }

  /** Each event waits for the one before it of its guild; one of the whole shard, for all. */
  schedule(sequence) {
    const [guild, name] = this.inHand.get(sequence).subject.split(".").slice(-2);
    const alone = ALONE.includes(name);
    const before = alone ? [this.alone, ...this.tails.values()] : [this.tails.get(guild) ?? this.alone];
    const task = this.run(sequence, guild, name, before).catch((error) => {
      this.trouble = String(error);
    });
    const finished = task.then(() => {
      this.tasks.delete(finished);
      if (this.tails.get(guild) === finished) this.tails.delete(guild);
      this.bell.ring();
    });
    this.tasks.add(finished);
    if (alone) {
      this.tails.clear();
      this.alone = finished;
    } else {
      this.tails.set(guild, finished);
    }
  }

  /** Attempts until the event is handled or buried. */
  async run(sequence, guild, name, before) {
    await Promise.all(before);
    for (let attempt = 0; ; attempt += 1) {
      const over = await this.slots.with(() => this.attempt(sequence, guild, name, attempt));
      if (this.dead) return;
      if (over === "given back") return void this.inHand.delete(sequence);
      if (over) break;
      // The guild waits; the slot does not.
      await sleep(PAUSES_MS[attempt]);
    }
    this.done.add(sequence);
    if (this.done.size > DONE_MAX) this.done.delete(this.done.values().next().value);
    this.inHand.get(sequence).respond("+ACK");
    this.inHand.delete(sequence);
  }

  async attempt(sequence, guild, name, attempt) {
    while (!this.lease.isValid() && !this.dead) await sleep(10);
    if (this.dead) return true;
    const message = this.inHand.get(sequence);
    if (this.releasing) {
      message.respond("-NAK"); // the next holder goes on
      return "given back";
    }
    const messageId = message.headers?.get("Nats-Msg-Id") || `${EVENTS}@${sequence}`;
    try {
      if (NAMES.includes(name)) await handle(message.json(), this.number, guild, messageId);
      return true;
    } catch (error) {
      // A handler's failure is its guild's trouble and nobody else's.
      console.log(`${messageId} failed: ${error}`);
      if (attempt < PAUSES_MS.length) return false;
      await this.bury(sequence, messageId, `tried ${attempt + 1} times: ${error}`);
      return true;
    }
  }

  async bury(sequence, messageId, reason) {
    const message = this.inHand.get(sequence);
    const all = headers();
    all.set("Nats-Msg-Id", `${GROUP}/${messageId}`);
    all.set("Dead-Message-Id", messageId);
    all.set("Dead-Reason", reason.replace(/\s+/g, " ").slice(0, 1000));
    all.set("Dead-Subject", message.subject);
    all.set("Dead-Deliveries", String(delivery(message).deliveries));
    all.set("Dead-Place", `${EVENTS}@${sequence}`);
    await jetstream(this.nc).publish(`${PREFIX}.dead.${GROUP}`, message.data, { headers: all });
  }

  /** What waits or runs is not to be delivered again. */
  keepAlive() {
    for (const message of this.inHand.values()) if (!this.dead) message.respond("+WPI");
  }
}

/** From joining the group to leaving it, or to the loss of the lease or the connection. */
class Life {
  members = new Map();
  holders = new Map();
  revisions = new Map();
  shards = new Set();
  held = new Map(); // shard -> Shard
  loaded = false;
  slots = new Slots(CONCURRENCY);
  bell = new Bell();
  end = new AbortController();
  failure;

  constructor(nc, registry) {
    Object.assign(this, { nc, registry, lease: new Lease(registry) });
    this.me = this.lease.member;
  }

  fail(error) {
    this.failure ??= error;
    this.bell.ring();
  }

  async run(stopping) {
    await this.lease.renew();
    const kvm = new Kvm(this.nc);
    const [workers, fleet] = [await kvm.open(BUCKET), await kvm.open(`${PREFIX}_fleet`)];
    const watches = [await workers.watch({ key: `${GROUP}.>` }), await fleet.watch({ key: "shard.*.*" })];
    const wake = () => this.bell.ring();
    stopping.addEventListener("abort", wake);
    this.lease.keep(this.end.signal).catch((error) => this.fail(error));
    this.follow(watches[0]).catch((error) => this.fail(error));
    this.learnShards(watches[1]).catch((error) => this.fail(error));
    try {
      while (!(this.lease.leaving && this.held.size === 0)) {
        if (this.failure) throw this.failure;
        if (stopping.aborted && !this.lease.leaving) {
          this.lease.leaving = true;
          await this.lease.renew().catch(unlessConflict); // or the next renewal says it
        }
        await this.look();
        await this.bell.wait(500);
      }
    } finally {
      this.end.abort();
      stopping.removeEventListener("abort", wake);
      for (const shard of this.held.values()) shard.lose();
      for (const watch of watches) watch.stop();
      // At once, rather than with its TTL: nothing of ours begins any more.
      if (isConnected) await this.registry.delete(`member.${this.me}`, this.lease.revision, 60).catch(() => {});
    }
  }

  async learnShards(watch) {
    for await (const entry of watch) {
      this.shards.add(Number(entry.key.split(".").at(-1)));
      this.bell.ring();
    }
  }

  async follow(watch) {
    for await (const entry of watch) {
      const [, kind, name] = entry.key.split(".");
      const value = entry.operation === "PUT" ? entry.json() : undefined;
      if (kind === "member") {
        this.members.delete(name);
        if (value) this.members.set(name, value.leaving ?? false);
      } else if (kind === "shard" && entry.revision >= (this.revisions.get(Number(name)) ?? 0)) {
        // Our own writes are known before the watch tells of them, and of older ones.
        this.claimed(Number(name), entry.revision, value?.member);
      }
      // Before, the living look dead. Our own key is there, so something always comes.
      this.loaded ||= entry.isUpdate || entry.delta === 0;
      this.bell.ring();
    }
  }

  claimed(shard, revision, holder) {
    this.revisions.set(shard, revision);
    this.holders.delete(shard);
    if (holder) this.holders.set(shard, holder);
    if (holder !== this.me) this.held.get(shard)?.lose(); // another worker took it
  }

  /** Does what the plan says. */
  async look() {
    for (const [shard, holder] of this.holders) {
      if (holder !== this.me || this.held.has(shard)) continue;
      const deleting = this.registry.delete(`shard.${shard}`, this.revisions.get(shard) ?? 0);
      // After a conflict the watch will tell.
      await deleting.then((revision) => this.claimed(shard, revision), unlessConflict);
    }
    if (!this.loaded || !this.lease.isValid()) return;
    this.members.set(this.me, this.lease.leaving);
    const all = new Set([...this.shards, ...this.holders.keys()]);
    const { take, give } = plan(this.me, this.members, this.holders, all);
    for (const number of give) this.held.get(number)?.release();
    for (const number of take) {
      if (this.held.has(number)) continue; // not given up entirely yet
      const claim = { member: this.me, since_unix_ms: Date.now() };
      const putting = this.registry.put(`shard.${number}`, claim, this.revisions.get(number) ?? 0);
      // After a conflict another worker was faster.
      await putting.then((revision) => {
        this.claimed(number, revision, this.me);
        this.hold(number);
      }, unlessConflict);
    }
  }

  async hold(number) {
    const shard = new Shard(this.nc, number, this.lease, this.registry.begin, this.slots);
    this.held.set(number, shard);
    console.log(`shard ${number} taken`);
    try {
      await shard.hold();
    } catch (error) {
      console.log(`shard ${number} cannot be read: ${error}`);
      await sleep(500);
    }
    console.log(`shard ${number} released`);
    this.held.delete(number);
    this.bell.ring();
  }
}

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());
const nc = await connect({ servers: NATS_URL, maxReconnectAttempts: -1, reconnectTimeWait: 250 });
const registry = new Registry(nc);
await registry.open();
let life;
let isConnected = true;
(async () => {
  for await (const { type } of nc.status()) {
    if (type === "disconnect") {
      isConnected = false;
      console.log("NATS is away");
      life?.fail(new Lost("the connection was lost"));
    }
    if (type === "reconnect") {
      isConnected = true;
      console.log("NATS is back");
    }
  }
})();
while (!stop.signal.aborted) {
  // Requests would only wait for their timeout.
  while (!isConnected && !stop.signal.aborted) await sleep(50);
  life = new Life(nc, registry);
  try {
    await life.run(stop.signal);
  } catch (error) {
    console.log(`joining the group again: ${error}`);
    await sleep(250);
  }
}
await nc.drain();
