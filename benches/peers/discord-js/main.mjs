// The peer: @discordjs/ws and nats.js, every dispatch published to JetStream with a message id.
import { CompressionMethod, WebSocketManager, WebSocketShardEvents } from '@discordjs/ws';
import { jetstream } from '@nats-io/jetstream';
import { connect, headers } from '@nats-io/transport-node';

const setup = JSON.parse(process.argv[2]);
const connection = await connect({ servers: setup.nats });
const stream = jetstream(connection, { timeout: 120_000 });
const guildInId = new Set(['GUILD_CREATE', 'GUILD_UPDATE', 'GUILD_DELETE']);
const sessions = new Map();

const manager = new WebSocketManager({
  token: setup.token,
  intents: setup.intents,
  shardCount: setup.shards,
  compression: CompressionMethod.ZlibNative,
  // All that the manager asks REST for is where the gateway is.
  rest: {
    get: async () => ({
      url: setup.gateway,
      shards: setup.shards,
      session_start_limit: {
        total: 1_000_000,
        remaining: 1_000_000,
        reset_after: 86_400_000,
        max_concurrency: setup.shards,
      },
    }),
  },
});

manager.on(WebSocketShardEvents.Dispatch, (payload, shard) => {
  if (payload.t === 'READY') sessions.set(shard, payload.d.session_id);
  const guild = (guildInId.has(payload.t) ? payload.d?.id : payload.d?.guild_id) ?? 'none';
  const head = headers();
  head.set('Nats-Msg-Id', `${sessions.get(shard)}:${payload.s}`);
  stream
    .publish(`discord.shard.${shard}.events.${guild}.${payload.t}`, JSON.stringify(payload), { headers: head })
    .catch((error) => {
      console.error(`publish: ${error}`);
      process.exit(1);
    });
});
manager.on(WebSocketShardEvents.Error, (error) => console.error('shard', error));

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
console.log('ready');
await manager.connect();
