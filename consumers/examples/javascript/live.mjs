// The live feed: every event from now on, nothing kept while you are away.
//
//     NATS_URL=nats://127.0.0.1:4222 node live.mjs

import { connect } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;

/** Says when NATS is away; the connection comes back by itself, however long that takes. */
async function tell(nc) {
  for await (const { type } of nc.status()) {
    if (type === "disconnect") console.log("NATS is away");
    if (type === "reconnect") console.log("NATS is back; what came meanwhile is not shown");
  }
}

const nc = await connect({ servers: NATS_URL, maxReconnectAttempts: -1, reconnectTimeWait: 250 });
tell(nc);
const feed = nc.subscribe(`${PREFIX}.shard.*.events`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => feed.drain());

for await (const message of feed) {
  /** @type {import("discord-api-types/v10").GatewayDispatchPayload} */
  const event = message.json();
  // NATS' own header: the subject the event is stored under.
  console.log(message.headers.get("Nats-Subject"), event.s, event.t);
}
await nc.close();
