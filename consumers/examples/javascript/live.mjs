// The live feed: every event from now on, nothing kept while you are away.
//
//     NATS_URL=nats://127.0.0.1:4222 node live.mjs

import { connect } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", SUBJECT_PREFIX: PREFIX = "discord" } = process.env;

const nc = await connect({ servers: NATS_URL });
const feed = nc.subscribe(`${PREFIX}.shard.*.events`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => feed.drain());

for await (const message of feed) {
  /** @type {import("discord-api-types/v10").GatewayDispatchPayload} */
  const event = message.json();
  // NATS' own header: the subject the event is stored under.
  console.log(message.headers.get("Nats-Subject"), event.s, event.t);
}
await nc.close();
