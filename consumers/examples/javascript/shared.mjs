// Shared events: one durable consumer, any number of these processes, no order between events.
//
// Each event is acknowledged by itself. One that fails comes again after a pause, to whichever worker
// is free; after the last attempt it goes to the dead-letter stream with the reason. The settings are
// those of `Events::shared` in the Rust library, so that workers in both languages may share a durable.
//
//     NATS_URL=nats://127.0.0.1:4222 node shared.mjs

import { setTimeout as sleep } from "node:timers/promises";
import { AckPolicy, DeliverPolicy, JetStreamApiError, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, headers, nanos } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;
const [EVENTS, DEAD] = [`${PREFIX.toUpperCase()}_EVENTS`, `${PREFIX.toUpperCase()}_DEAD`];

// All workers of one kind use one name; another kind needs another one.
const DURABLE = process.env.CONSUMER_NAME ?? "javascript-shared";
const FILTER = `${PREFIX}.shard.*.events.*.MESSAGE_CREATE`;
// Handlers mostly wait for a database or for Discord: this many at once.
const CONCURRENCY = 64;
// After this time without a sign of life an event goes to another worker.
const ACK_WAIT_MS = 5000;
// Pauses after the first failed attempt, the second, ...; one attempt more than pauses.
const PAUSES_MS = [250, 1000, 3000, 8000];
const ATTEMPTS = PAUSES_MS.length + 1;
const STREAM_NOT_FOUND = 10059;

/** Need not be handled, now or later. */
class Discard extends Error {}

/** Never again, but keep it in the dead-letter stream with this reason. */
class Dead extends Error {}

/**
 * Yours. Any other error means: try again later. It runs at least once per event; `messageId` is the
 * same each time, the key to tell repetitions.
 *
 * @param {import("discord-api-types/v10").GatewayMessageCreateDispatch} event
 * @param {string} messageId
 */
async function handle({ d: message }, messageId) {
  if (message.author.bot) throw new Discard();
  if (message.content === "!fail") throw new Error("the message asks for a failure");
  if (message.content === "!dead") throw new Dead("the message asks to be given up");
  console.log(`message ${message.id} in channel ${message.channel_id} (${messageId})`);
}

/** One delivery from arrival to acknowledgement. */
async function work(js, message) {
  const { stream, streamSequence, deliveryCount } = message.info;
  const place = `${stream}@${streamSequence}`;
  const messageId = message.headers?.get("Nats-Msg-Id") || place;
  const alive = setInterval(() => message.working(), ACK_WAIT_MS / 3);
  try {
    let event;
    try {
      event = message.json();
    } catch (error) {
      throw new Dead(`the frame is no JSON: ${error.message}`);
    }
    await handle(event, messageId);
    message.ack();
  } catch (error) {
    // A handler's failure is its event's trouble and nobody else's.
    if (error instanceof Discard) return message.ack();
    const gone = error instanceof Dead;
    if (!gone && deliveryCount < ATTEMPTS) return message.nak(PAUSES_MS[deliveryCount - 1]);
    const reason = gone ? error.message : `tried ${deliveryCount} times: ${error}`;
    console.log(`given up: ${messageId}: ${reason}`);
    try {
      await bury(js, message, messageId, reason, place);
      message.term();
    } catch (trouble) {
      console.log(`could not be stored as dead: ${trouble}`);
      message.nak(2000);
    }
  } finally {
    clearInterval(alive);
  }
}

async function bury(js, message, messageId, reason, place) {
  const all = headers();
  // Stored once, even if this is repeated.
  all.set("Nats-Msg-Id", `${DURABLE}/${messageId}`);
  all.set("Dead-Message-Id", messageId);
  all.set("Dead-Reason", reason.replace(/\s+/g, " ").slice(0, 1000));
  all.set("Dead-Subject", message.subject);
  all.set("Dead-Deliveries", String(message.info.deliveryCount));
  all.set("Dead-Place", place);
  await js.publish(`${PREFIX}.dead.${DURABLE}`, message.data, { headers: all });
}

async function openDeadLetters(jsm) {
  try {
    await jsm.streams.info(DEAD);
  } catch (error) {
    if (!(error instanceof JetStreamApiError && error.code === STREAM_NOT_FOUND)) throw error;
    const [week, twoMinutes] = [nanos(7 * 24 * 3600 * 1000), nanos(120_000)];
    await jsm.streams.add({
      name: DEAD, subjects: [`${PREFIX}.dead.*`], max_age: week, max_bytes: 2 ** 30, duplicate_window: twoMinutes,
      allow_direct: true,
    });
  }
}

/** One of CONCURRENCY that take an event each: nobody waits for a batch to fill. */
async function takeEvents(js, jsm, stopping) {
  while (!stopping.aborted) {
    try {
      // Made if it is missing; an existing one goes on where it was.
      await jsm.consumers.info(EVENTS, DURABLE).catch(() => jsm.consumers.add(EVENTS, {
        durable_name: DURABLE, filter_subject: FILTER, deliver_policy: DeliverPolicy.New, ack_policy: AckPolicy.Explicit,
        ack_wait: nanos(ACK_WAIT_MS), max_deliver: -1, max_ack_pending: 10_000,
      }));
      const events = await js.consumers.get(EVENTS, DURABLE);
      while (!stopping.aborted) {
        // Short, so that a signal to stop does not wait.
        const message = await events.next({ expires: 1000 });
        if (message !== null) await work(js, message);
      }
    } catch (error) {
      // NATS is away, or somebody deleted the consumer.
      console.log(`pulling failed, trying again: ${error}`);
      await sleep(1000);
    }
  }
}

/** Says when NATS is away; the connection comes back by itself, however long that takes. */
async function tell(nc) {
  for await (const { type } of nc.status()) {
    if (type === "disconnect") console.log("NATS is away");
    if (type === "reconnect") console.log("NATS is back");
  }
}

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());
const nc = await connect({ servers: NATS_URL, maxReconnectAttempts: -1, reconnectTimeWait: 250 });
tell(nc);
const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)];
await openDeadLetters(jsm);
await Promise.all(Array.from({ length: CONCURRENCY }, () => takeEvents(js, jsm, stop.signal)));
// Sends what is still to be said, acknowledgements above all.
await nc.drain();
