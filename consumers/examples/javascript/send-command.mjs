// Gateway commands through the proxy that holds the shard: presence, and members of a guild.
//
//     node send-command.mjs presence 0 chess               # shard 0 plays chess
//     node send-command.mjs members 928069340888969672     # all members of a guild (GUILD_MEMBERS intent)

import { randomBytes } from "node:crypto";
import { DeliverPolicy, jetstream } from "@nats-io/jetstream";
import { connect, NoRespondersError, RequestError } from "@nats-io/transport-node";
import { ActivityType, GatewayOpcodes, PresenceUpdateStatus } from "discord-api-types/v10";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;
const EVENTS = `${PREFIX.toUpperCase()}_EVENTS`;
// How long a chunk may take, and how far our clock may be from the server's.
const [CHUNK_TIMEOUT_MS, CLOCK_MARGIN_MS] = [30_000, 10_000];

/** Ends the program with a word. */
class Refused extends Error {}

/** Sends a gateway payload and gives the proxy's reply; throws unless it was sent or waits for the shard's rate limit. */
async function send(nc, subject, /** @type {import("discord-api-types/v10").GatewaySendPayload} */ payload) {
  let reply;
  try {
    reply = (await nc.request(subject, JSON.stringify(payload), { timeout: 5000 })).json();
  } catch (error) {
    const nobody = error instanceof NoRespondersError || (error instanceof RequestError && error.isNoResponders());
    throw nobody ? new Refused(`nobody answers ${subject}: no proxy holds that shard`) : error;
  }
  if (reply.status === "rejected") throw new Refused(`rejected: ${reply.error}`);
  console.log(reply.status, reply.retry_after_ms ?? "");
  return reply;
}

async function presence(nc, shard, activity) {
  const activities = [{ name: activity, type: ActivityType.Playing }];
  const d = { since: null, activities, status: PresenceUpdateStatus.Online, afk: false };
  await send(nc, `${PREFIX}.shard.${shard}.commands`, { op: GatewayOpcodes.PresenceUpdate, d });
}

/** Discord answers with GUILD_MEMBERS_CHUNK events, which have our nonce. */
async function members(nc, guild) {
  const own = randomBytes(8).toString("hex");
  const d = { guild_id: guild, query: "", limit: 0, nonce: own };
  const reply = await send(nc, `${PREFIX}.guild.${guild}.commands`, { op: GatewayOpcodes.RequestGuildMembers, d });
  // All members of a guild may be asked for once in 30 s: if somebody just did, theirs are our chunks,
  // and they may have come already. The stream still has them.
  const nonce = reply.merged_with_nonce ?? own;
  const since = Date.now() - (reply.sent_ms_ago ?? 0) - CLOCK_MARGIN_MS;
  const chunks = await jetstream(nc).consumers.get(EVENTS, {
    filter_subjects: `${PREFIX}.shard.*.events.${guild}.GUILD_MEMBERS_CHUNK`,
    deliver_policy: DeliverPolicy.StartTime,
    opt_start_time: new Date(since).toISOString(),
  });
  for (let seen = 0; ; ) {
    const message = await chunks.next({ expires: CHUNK_TIMEOUT_MS + (reply.retry_after_ms ?? 0) });
    if (message === null) throw new Refused("no chunk came in time");
    /** @type {import("discord-api-types/v10").GatewayGuildMembersChunkDispatch} */
    const { d: chunk } = message.json();
    if (chunk.nonce !== nonce) continue;
    seen += 1;
    console.log(`chunk ${chunk.chunk_index + 1} of ${chunk.chunk_count}: ${chunk.members.length} members`);
    if (seen === chunk.chunk_count) return;
  }
}

const [what, ...rest] = process.argv.slice(2);
const verb = { presence: [presence, 2], members: [members, 1] }[what];
if (verb === undefined || rest.length !== verb[1]) {
  console.error("usage: send-command.mjs presence SHARD ACTIVITY | members GUILD");
  process.exit(1);
}
const nc = await connect({ servers: NATS_URL });
try {
  await verb[0](nc, ...rest);
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await nc.close();
}
