// Slash commands: registers /ping with Discord and answers it over REST, within Discord's 3 seconds.
//
// Start it several times: each interaction goes to one of the processes. It has a durable consumer of
// its own: two programs that answer different commands must not share one, since each interaction goes
// to one worker only.
//
//     NATS_URL=nats://127.0.0.1:4222 DISCORD_TOKEN=... node interactions.mjs

import { setTimeout as sleep } from "node:timers/promises";
import { DiscordAPIError, HTTPError, REST } from "@discordjs/rest";
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, nanos } from "@nats-io/transport-node";
import {
  ApplicationCommandType, InteractionResponseType, InteractionType, RESTJSONErrorCodes, Routes,
} from "discord-api-types/v10";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;
const { DISCORD_API_URL = "https://discord.com/api/v10", DISCORD_TOKEN } = process.env;
if (!DISCORD_TOKEN) throw new Error("DISCORD_TOKEN is missing");
const EVENTS = `${PREFIX.toUpperCase()}_EVENTS`;

const DURABLE = process.env.CONSUMER_NAME ?? "javascript-commands";
const FILTER = `${PREFIX}.shard.*.events.*.INTERACTION_CREATE`;
// Interactions answered at once.
const CONCURRENCY = 32;
// Discord forgets an interaction that was not answered for so long.
const WINDOW_MS = 3000;
// Another worker has the interaction so long after this one died; it is told more often that we live.
const ACK_WAIT_MS = 1000;
const DISCORD_EPOCH_MS = 1_420_070_400_000n;

/** @param {import("discord-api-types/v10").APIInteraction} interaction */
const ageMs = (interaction) => Date.now() - Number((BigInt(interaction.id) >> 22n) + DISCORD_EPOCH_MS);

/**
 * Yours, one per command: returns the text of the answer.
 *
 * @param {import("discord-api-types/v10").APIChatInputApplicationCommandInteraction} interaction
 */
async function ping(interaction) {
  return `Pong from JavaScript, ${ageMs(interaction)} ms after you typed it`;
}

const COMMANDS = new Map([["ping", { description: "Says pong", answer: ping }]]);

const [, api, version] = DISCORD_API_URL.match(/^(.*)\/v(\d+)\/?$/);
// It retries 5xx and time-outs, waits out 429s, and does not count callbacks to the global limit.
const rest = new REST({ api, version, timeout: 1000, retries: 2 }).setToken(DISCORD_TOKEN);

/** Adds what is missing or differs; commands of other programs stay. */
async function register() {
  const { id } = await rest.get(Routes.currentApplication());
  /** @type {import("discord-api-types/v10").RESTGetAPIApplicationCommandsResult} */
  const there = await rest.get(Routes.applicationCommands(id));
  for (const [name, { description }] of COMMANDS) {
    if (there.some((command) => command.name === name && command.description === description)) continue;
    await rest.post(Routes.applicationCommands(id), { body: { name, description, type: ApplicationCommandType.ChatInput } });
  }
}

/** Posts the first response; says what becomes of the stored interaction. */
async function answer(interaction, content, leftMs) {
  const body = { type: InteractionResponseType.ChannelMessageWithSource, data: { content } };
  try {
    // A callback carries its own token.
    const signal = AbortSignal.timeout(Math.max(leftMs, 1));
    await rest.post(Routes.interactionCallback(interaction.id, interaction.token), { body, auth: false, signal });
    return "ack";
  } catch (error) {
    // An earlier delivery was answered.
    if (error instanceof DiscordAPIError && error.code === RESTJSONErrorCodes.InteractionHasAlreadyBeenAcknowledged) return "ack";
    console.log(`${error instanceof DiscordAPIError || error instanceof HTTPError ? error.status : ""} ${error}`);
    return "term";
  }
}

/** One delivery, in time or not at all. */
async function work(message) {
  const alive = setInterval(() => message.working(), ACK_WAIT_MS / 3);
  try {
    message[await verdict(message)]();
  } catch (error) {
    console.log(`no interaction: ${error}`);
    message.term();
  } finally {
    clearInterval(alive);
  }
}

async function verdict(message) {
  /** @type {import("discord-api-types/v10").GatewayInteractionCreateDispatch} */
  const { d: interaction } = message.json();
  const command = interaction.type === InteractionType.ApplicationCommand && COMMANDS.get(interaction.data.name);
  if (!command) return "ack"; // somebody else's
  const deadline = Date.now() + WINDOW_MS - Math.max(ageMs(interaction), 0);
  if (deadline <= Date.now()) return "term"; // an answer would be refused
  let text;
  try {
    // Half a second stays for posting.
    const limit = sleep(deadline - Date.now() - 500, undefined, { ref: false }).then(() => {
      throw new Error("too slow");
    });
    text = await Promise.race([command.answer(interaction), limit]);
  } catch (error) {
    console.log(`/${interaction.data.name} failed: ${error}`);
    text = "Something went wrong while handling this command.";
  }
  const verdict = await answer(interaction, text, deadline - Date.now());
  console.log(`/${interaction.data.name}: ${verdict}`);
  return verdict;
}

/** One of CONCURRENCY that take an interaction each: nobody waits for a batch to fill. */
async function takeInteractions(js, jsm, stopping) {
  while (!stopping.aborted) {
    try {
      await jsm.consumers.info(EVENTS, DURABLE).catch(() => jsm.consumers.add(EVENTS, {
        durable_name: DURABLE, filter_subject: FILTER, deliver_policy: DeliverPolicy.New, ack_policy: AckPolicy.Explicit,
        ack_wait: nanos(ACK_WAIT_MS), max_deliver: 5, max_ack_pending: 1000,
      }));
      const interactions = await js.consumers.get(EVENTS, DURABLE);
      while (!stopping.aborted) {
        const message = await interactions.next({ expires: 1000 });
        if (message !== null) await work(message);
      }
    } catch (error) {
      console.log(`pulling failed, trying again: ${error}`);
      await sleep(250);
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
await register();
const nc = await connect({ servers: NATS_URL, maxReconnectAttempts: -1, reconnectTimeWait: 250 });
tell(nc);
const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)];
await Promise.all(Array.from({ length: CONCURRENCY }, () => takeInteractions(js, jsm, stop.signal)));
await nc.drain();
