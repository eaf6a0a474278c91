// @discordjs/ws, unchanged, against the simulator: connect, load guilds, op 7, a dropped TCP
// connection, events after each; with zlib-stream, payload compression and none.
//
//   npm install @discordjs/ws @discordjs/rest
//   node discordjs.mjs http://127.0.0.1:PORT/api/v10 simulated.bot.token

import { CompressionMethod, WebSocketManager, WebSocketShardEvents } from '@discordjs/ws';
import { REST } from '@discordjs/rest';

const [apiUrl, token] = process.argv.slice(2);
const control = apiUrl.replace('/api/v10', '/_sim');
const PATIENCE_MS = 20_000;

async function act(action) {
  const answer = await fetch(`${control}/actions`, { method: 'POST', body: JSON.stringify(action) });
  if (!answer.ok) throw new Error(await answer.text());
}

const look = async (what) => (await fetch(`${control}/${what}`)).json();
const fault = (kind, more = {}) =>
  act({ action: 'fault', target: 'all', fault: { kind, ...more } });

/** Resolves with the first event of this kind that `fits`. */
function once(manager, event, fits = () => true) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${event}`)), PATIENCE_MS);
    const listener = (...args) => {
      if (!fits(...args)) return;
      clearTimeout(timer);
      manager.off(event, listener);
      resolve(args);
    };
    manager.on(event, listener);
  });
}

const dispatch = (manager, name) =>
  once(manager, WebSocketShardEvents.Dispatch, (payload) => payload.t === name);

async function check(name, options) {
  const before = await look('stats');
  const manager = new WebSocketManager({
    token,
    intents: 53608447,
    rest: new REST({ api: apiUrl.replace('/v10', ''), version: '10' }).setToken(token),
    ...options,
  });
  manager.on(WebSocketShardEvents.Error, (error) => console.error(name, error));
  const guild = dispatch(manager, 'GUILD_CREATE');
  await manager.connect();
  await guild;
  for (const [kind, more] of [['reconnect'], ['drop_tcp'], ['close', { code: 4000 }]]) {
    const resumed = once(manager, WebSocketShardEvents.Resumed);
    await fault(kind, more);
    await resumed;
    const typing = dispatch(manager, 'TYPING_START');
    await act({ action: 'burst', event: 'TYPING_START' });
    await typing;
  }
  const after = await look('stats');
  // Code 1000: the session ends.
  await manager.destroy();
  const identifies = after.identifies - before.identifies;
  const resumes = after.resumes - before.resumes;
  if (identifies !== 1 || resumes !== 3 || after.resumes_refused !== 0) {
    throw new Error(`${name}: ${identifies} identifies, ${resumes} resumes`);
  }
  console.log(`${name}: 1 identify, 3 resumes, events after each`);
}

await check('zlib-stream', { compression: CompressionMethod.ZlibNative });
await check('payload compression', { compression: null, useIdentifyCompression: true });
await check('no compression', { compression: null });
const violations = await look('violations');
if (violations.length > 0) {
  console.error(violations);
  process.exit(1);
}
console.log('no rule broken');
