//! The AsyncAPI 3.0 document: every subject as a channel, every JSON body as a message.

use schemars::generate::SchemaSettings;
use schemas::{EventKind, FleetVerb, ProxyEventKind, message};
use serde_json::{Map, Value, json};

use super::catalogue::{DOCUMENTS, Document};

const ABOUT: &str = "Discord gateway events in NATS JetStream, and everything around them. The first token of \
    every subject is the prefix, `discord` unless `--subject-prefix` says otherwise; stream and \
    bucket names follow it (`mybot` has the stream `MYBOT_EVENTS` and the bucket `mybot_fleet`). \
    Operations are those of the proxies, and of workers where they begin with `worker`.";

/// The whole document; `example` gives each body's example.
pub(crate) fn document(example: &dyn Fn(&Document) -> Value) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "gateway-proxy",
            "version": "1.0.0",
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS 2.14 or newer with JetStream.",
            },
        },
        "channels": channels(),
        "operations": operations(),
        "components": {
            "messages": messages(example),
            "parameters": parameters(),
            "schemas": schemas(),
        },
    })
}

/// A value each parameter may have.
pub(crate) fn sample(parameter: &str) -> &'static str {
    match parameter {
        "shard" => "3",
        "count" => "16",
        "guild" => "81384788765712384",
        "event" => "MESSAGE_CREATE",
        "what" => "guild",
        "id" => "81384788765712384",
        "topic" => "cache",
        "consumer" => "commands",
        "proxy" => "proxy-1",
        "instance" => "directory-1",
        "member" => "host-17-18c2f0a1",
        "task" => "digest",
        other => panic!("the parameter {other} has no sample"),
    }
}

fn parameters() -> Value {
    let events: Vec<&str> = EventKind::ALL
        .iter()
        .map(|kind| kind.name())
        .chain(ProxyEventKind::ALL.iter().map(|kind| kind.name()))
        .collect();
    let described = |name: &str, description: &str| json!({ "description": description, "examples": [sample(name)] });
    json!({
        "shard": described("shard", "Number of the shard, from 0."),
        "count": described("count", "How many shards the sharding has."),
        "guild": {
            "description": "Snowflake of the guild, or `none`: `d.id` for GUILD_CREATE, GUILD_UPDATE \
                and GUILD_DELETE, else `d.guild_id`.",
            "examples": [sample("guild"), "none"],
        },
        "event": {
            "description": "Discord's `t`, every character outside `A-Z a-z 0-9 _ -` as `_`; events \
                that are not in the examples occur.",
            "examples": events,
        },
        "what": {
            "description": "What the directory is asked for.",
            "examples": ["stats", "guilds", "shards", "guild", "user"],
        },
        "id": described("id", "Snowflake of the guild or user."),
        "topic": described("topic", "One or more tokens, chosen by the sender."),
        "consumer": described("consumer", "Name of the durable consumer that gave the event up."),
        "proxy": described("proxy", "Name of the proxy in the fleet."),
        "member": described("member", "One life of one worker."),
        "task": described("task", "Name of a task that only one worker runs."),
        "instance": described("instance", "Name of the directory's process."),
    })
}

const EVENT_MESSAGES: [&str; 4] = [
    "DispatchFrame",
    "ProxyGapFrame",
    "ProxyShardFrame",
    "ProxyReshardFrame",
];

fn channel(address: Option<&str>, summary: &str, messages: &[&str]) -> Value {
    let reference = |name: &&str| {
        (
            (*name).to_owned(),
            json!({ "$ref": format!("#/components/messages/{name}") }),
        )
    };
    let mut channel = json!({
        "address": address,
        "summary": summary,
        "messages": messages.iter().map(reference).collect::<Map<_, _>>(),
    });
    let names: Vec<&str> = address
        .unwrap_or_default()
        .split('.')
        .filter_map(|token| token.strip_prefix('{')?.strip_suffix('}'))
        .collect();
    if !names.is_empty() {
        let reference = |name: &str| {
            (
                name.to_owned(),
                json!({ "$ref": format!("#/components/parameters/{name}") }),
            )
        };
        channel["parameters"] = names
            .into_iter()
            .map(reference)
            .collect::<Map<_, _>>()
            .into();
    }
    channel
}

fn channels() -> Value {
    let mut channels = subjects();
    for (verb, request, _) in fleet_verbs() {
        let address = verb.subject(&schemas::Prefix::default());
        let summary = "A question or an order to the coordinator.";
        channels[fleet_channel(verb)] = channel(Some(&address), summary, &[request]);
    }
    for (name, key, value, summary) in KEYS {
        let address = format!("$KV.discord_fleet.{key}");
        channels[name] = channel(Some(&address), summary, &[value]);
    }
    for (name, address, value, summary) in DIRECTORY_KEYS.into_iter().chain(WORKERS_KEYS) {
        channels[name] = channel(Some(address), summary, &[value]);
    }
    channels
}

/// Every channel that is no key and no question to the coordinator.
fn subjects() -> Value {
    json!({
        "events": channel(
            Some("discord.shard.{shard}.events.{guild}.{event}"),
            "One gateway event, stored once, in order per shard, in the stream DISCORD_EVENTS.",
            &EVENT_MESSAGES,
        ),
        "liveFeed": channel(
            Some("discord.shard.{shard}.events"),
            "The same events for plain subscribers, republished by the stream; subscribe \
                discord.shard.*.events.",
            &["LiveEvent"],
        ),
        "shardCommands": channel(
            Some("discord.shard.{shard}.commands"),
            "Requests to send a gateway command on a shard.",
            &["GatewayCommand"],
        ),
        "guildCommands": channel(
            Some("discord.guild.{guild}.commands"),
            "The same by guild: whoever holds the guild's shard answers.",
            &["GatewayCommand"],
        ),
        "commandReplies": channel(None, "Inboxes of those who sent a command.", &["CommandReply"]),
        "shardMessages": channel(
            Some("discord.shard.{shard}.messages"),
            "A user's own messages and requests to the worker that holds the shard (ordered mode). \
                While nobody holds it there are no responders.",
            &["UserMessage"],
        ),
        "query": channel(
            Some("discord.query.{what}"),
            "Questions to the directory about the whole bot: stats, guilds, shards.",
            &["Query", "GuildsRequest", "ShardsRequest"],
        ),
        "queryById": channel(
            Some("discord.query.{what}.{id}"),
            "Questions to the directory about one guild or user.",
            &["Query"],
        ),
        "queryReplies": channel(
            None,
            "Inboxes of those who asked the directory; errors come in the service error headers.",
            &["DirectoryStats", "GuildPage", "ShardPage", "GuildInfo", "UserInfo"],
        ),
        "broadcast": channel(
            Some("discord.broadcast.{topic}"),
            "To every worker of every kind: cache invalidation, settings. Who sets a reply subject \
                may get an answer of each.",
            &["UserMessage"],
        ),
        "workerReplies": channel(
            None,
            "Inboxes of those who asked workers; errors come in the service error headers.",
            &["WorkerReply"],
        ),
        "dead": channel(
            Some("discord.dead.{consumer}"),
            "Events a worker gave up on, in the stream DISCORD_DEAD.",
            &["DeadEvent"],
        ),
        "fleetReplies": channel(
            None,
            "Inboxes of those who asked the coordinator.",
            &["FleetReply", "IdentifyReply", "ClusterState"],
        ),
    })
}

/// Channel, key, value, and what it is for.
const KEYS: [(&str, &str, &str, &str); 5] = [
    (
        "kvMember",
        "member.{proxy}",
        "Member",
        "Heartbeat of a proxy; ends with its TTL.",
    ),
    (
        "kvLeader",
        "leader",
        "Leader",
        "Lease of the coordinator; ends with its TTL.",
    ),
    ("kvPlan", "plan", "Plan", "Who shall hold which shard."),
    (
        "kvShard",
        "shard.{count}.{shard}",
        "ShardRecord",
        "What a shard does and how to resume it.",
    ),
    (
        "kvIdentify",
        "identify",
        "IdentifyState",
        "What keeps a new coordinator from granting twice.",
    ),
];

/// Channel, address, value, and what it is for: written by the directory, not by proxies.
const DIRECTORY_KEYS: [(&str, &str, &str, &str); 4] = [
    (
        "kvDirectoryGuild",
        "$KV.discord_directory.guild.{guild}",
        "GuildEntry",
        "What the directory knows of a guild.",
    ),
    (
        "kvDirectoryPosition",
        "$KV.discord_directory.position.{shard}",
        "ShardPosition",
        "How far the directory has read a shard's events, and which instance reads them.",
    ),
    (
        "kvDirectoryInstance",
        "$KV.discord_directory.instance.{instance}",
        "DirectoryInstance",
        "Heartbeat of an instance of the directory; ends with its TTL.",
    ),
    (
        "kvUser",
        "$KV.discord_users.user.{id}",
        "UserInfo",
        "A user the directory has seen, if the operator wants them kept.",
    ),
];

/// Channel, address, value, and what it is for: written by workers.
const WORKERS_KEYS: [(&str, &str, &str, &str); 6] = [
    (
        "kvWorkerGroup",
        "$KV.discord_workers.{consumer}.begin",
        "WorkerGroup",
        "Where the events of workers that hold shards begin.",
    ),
    (
        "kvWorkerMember",
        "$KV.discord_workers.{consumer}.member.{member}",
        "WorkerMember",
        "Heartbeat of a worker that holds shards; ends with its TTL.",
    ),
    (
        "kvShardClaim",
        "$KV.discord_workers.{consumer}.shard.{shard}",
        "ShardClaim",
        "Which worker holds a shard.",
    ),
    (
        "kvShare",
        "$KV.discord_workers.rest.share.{member}",
        "ShareClaim",
        "How many of the bot's REST requests per second a worker claims; ends with its TTL.",
    ),
    (
        "kvSingletonLease",
        "$KV.discord_workers.singleton.lease.{task}",
        "SingletonLease",
        "Which worker runs what only one may run; ends with its TTL.",
    ),
    (
        "kvSingletonRun",
        "$KV.discord_workers.singleton.run.{task}",
        "SingletonRun",
        "When such a task began and ended last.",
    ),
];

/// Operation, channel, action, and what it is for.
const WORKER_OPERATIONS: [(&str, &str, &str, &str); 4] = [
    (
        "workerBroadcasts",
        "broadcast",
        "send",
        "Any worker tells all others, and may gather answers until a deadline.",
    ),
    (
        "workerHearsBroadcast",
        "broadcast",
        "receive",
        "Workers with a handler for the topic hear it, in the order it was sent.",
    ),
    (
        "workerAsksHolder",
        "shardMessages",
        "send",
        "Any program tells or asks the worker that holds the shard.",
    ),
    (
        "workerHearsShard",
        "shardMessages",
        "receive",
        "The worker listens while it holds the shard.",
    ),
];

/// Verb, request, reply.
fn fleet_verbs() -> [(FleetVerb, &'static str, &'static str); FleetVerb::ALL.len()] {
    FleetVerb::ALL.map(|verb| match verb {
        FleetVerb::Identify => (verb, "IdentifyRequest", "IdentifyReply"),
        FleetVerb::Drain => (verb, "DrainRequest", "FleetReply"),
        FleetVerb::Migrate => (verb, "MigrateRequest", "FleetReply"),
        FleetVerb::Reshard => (verb, "ReshardRequest", "FleetReply"),
        FleetVerb::Restart => (verb, "RestartRequest", "FleetReply"),
        FleetVerb::State => (verb, "StateRequest", "ClusterState"),
    })
}

fn fleet_channel(verb: FleetVerb) -> String {
    let verb = verb.as_str();
    format!("fleet{}{}", verb[..1].to_ascii_uppercase(), &verb[1..])
}

fn operation(action: &str, channel: &str, summary: &str, messages: &[&str]) -> Value {
    json!({
        "action": action,
        "channel": { "$ref": format!("#/channels/{channel}") },
        "summary": summary,
        "messages": message_references(channel, messages),
    })
}

fn message_references(channel: &str, messages: &[&str]) -> Value {
    let reference =
        |name: &&str| json!({ "$ref": format!("#/channels/{channel}/messages/{name}") });
    messages.iter().map(reference).collect()
}

fn with_reply(mut operation: Value, channel: &str, message: &str) -> Value {
    operation["reply"] = json!({
        "channel": { "$ref": format!("#/channels/{channel}") },
        "messages": message_references(channel, &[message]),
    });
    operation
}

fn operations() -> Value {
    let by_shard = "A gateway command for a shard of this proxy.";
    let by_guild = "A gateway command for the shard of a guild.";
    let command = |channel, summary| {
        let receive = operation("receive", channel, summary, &["GatewayCommand"]);
        with_reply(receive, "commandReplies", "CommandReply")
    };
    let live = "What is stored, to plain subscribers (the stream does this).";
    let mut operations = json!({
        "publishEvent": operation("send", "events", "Store an event.", &EVENT_MESSAGES),
        "republishEvent": operation("send", "liveFeed", live, &["LiveEvent"]),
        "answerShardCommand": command("shardCommands", by_shard),
        "answerGuildCommand": command("guildCommands", by_guild),
    });
    for (verb, request, reply) in fleet_verbs() {
        let channel = fleet_channel(verb);
        let receive = operation("receive", &channel, "The coordinator answers.", &[request]);
        let mut answer = with_reply(receive, "fleetReplies", reply);
        // The queue group NATS services use: one instance answers each request.
        answer["bindings"] = json!({ "nats": { "queue": "q", "bindingVersion": "0.1.0" } });
        operations[format!(
            "answer{}{}",
            channel[..1].to_ascii_uppercase(),
            &channel[1..]
        )] = answer;
    }
    for (name, channel, action, summary) in WORKER_OPERATIONS {
        let plain = operation(action, channel, summary, &["UserMessage"]);
        operations[name] = with_reply(plain, "workerReplies", "WorkerReply");
    }
    for (channel, _, value, summary) in KEYS {
        operations[format!("write{}", &channel["kv".len()..])] =
            operation("send", channel, summary, &[value]);
    }
    operations
}

fn messages(example: &dyn Fn(&Document) -> Value) -> Value {
    let mut messages = Map::new();
    for document in DOCUMENTS {
        let mut message = json!({
            "name": document.name,
            "payload": { "$ref": format!("#/components/schemas/{}", document.name) },
            "examples": [{ "payload": example(document) }],
        });
        if EVENT_MESSAGES.contains(&document.name) {
            message["headers"] = json!({ "$ref": "#/components/schemas/EventHeaders" });
            message["summary"] = json!(frame_summary(document.name));
        }
        messages.insert(document.name.to_owned(), message);
    }
    let event = json!({ "$ref": "#/components/schemas/DispatchFrame" });
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    messages.insert(
        "LiveEvent".to_owned(),
        json!({
            "name": "LiveEvent",
            "summary": "An event as it is stored, with JetStream's own headers.",
            "headers": reference("LiveHeaders"),
            "payload": event,
        }),
    );
    messages.insert(
        "DeadEvent".to_owned(),
        json!({
            "name": "DeadEvent",
            "summary": "An event as it was stored, with the reason it was given up.",
            "headers": reference("DeadHeaders"),
            "payload": event,
        }),
    );
    messages.insert(
        "Query".to_owned(),
        json!({
            "name": "Query",
            "summary": "A question whose subject says it all; a body may narrow it down.",
            "payload": { "description": "Empty, or a JSON object." },
        }),
    );
    messages.insert(
        "UserMessage".to_owned(),
        json!({
            "name": "UserMessage",
            "summary": "Bytes that only sender and receiver understand.",
            "contentType": "application/octet-stream",
            "payload": { "description": "Any bytes." },
        }),
    );
    messages.insert(
        "WorkerReply".to_owned(),
        json!({
            "name": "WorkerReply",
            "summary": "What a worker answers to a broadcast or a message to a shard's holder.",
            "contentType": "application/octet-stream",
            "headers": reference("WorkerHeaders"),
            "payload": { "description": "Any bytes; empty with an error." },
        }),
    );
    messages.into()
}

fn frame_summary(name: &str) -> &'static str {
    match name {
        "DispatchFrame" => "Discord's dispatch frame, decompressed, byte for byte.",
        "ProxyGapFrame" => "Between two sessions of a shard events are missing, or may be.",
        "ProxyShardFrame" => "A shard changed its state.",
        "ProxyReshardFrame" => "The fleet changes its shard count.",
        other => panic!("{other} is no frame"),
    }
}

/// The bodies' schemas and the headers'.
fn schemas() -> Value {
    // AsyncAPI's own schema format is a superset of draft 7.
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    for document in DOCUMENTS {
        document.define(&mut generator);
    }
    let mut schemas = generator.take_definitions(true);
    for document in DOCUMENTS {
        let schema = schemas.get_mut(document.name);
        document.fix_constants(schema.unwrap_or_else(|| panic!("{} is undefined", document.name)));
    }
    schemas.insert("EventHeaders".to_owned(), headers(&[], &[]));
    let live = [
        (message::LIVE_STREAM, "Stream the event is stored in."),
        (
            message::LIVE_SUBJECT,
            "Subject it is stored under: with the guild and the event's name.",
        ),
        (message::LIVE_SEQUENCE, "Its sequence in the stream."),
    ];
    schemas.insert("LiveHeaders".to_owned(), headers(&live, &[]));
    let dead = [
        (message::DEAD_REASON, "Why it was given up, for people."),
        (message::DEAD_SUBJECT, "Subject it had."),
        (message::DEAD_MESSAGE_ID, "`Nats-Msg-Id` it had."),
        (message::DEAD_DELIVERIES, "How often it was delivered."),
        (message::DEAD_PLACE, "Its place, `<stream>@<sequence>`."),
    ];
    schemas.insert(
        "DeadHeaders".to_owned(),
        headers(&dead, &[message::DEAD_REASON]),
    );
    schemas.insert(
        "WorkerHeaders".to_owned(),
        json!({
            "type": "object",
            "required": [message::WORKER],
            "properties": {
                message::WORKER: { "description": "Name of the worker that answers.", "type": "string" },
                message::SERVICE_ERROR: {
                    "description": "Why there is no answer, for people.", "type": "string",
                },
                message::SERVICE_ERROR_CODE: {
                    "description": "413: the answer is longer than NATS takes. 500: the handler failed.",
                    "type": "string",
                },
            },
        }),
    );
    schemas.into()
}

fn headers(more: &[(&str, &str)], required: &[&str]) -> Value {
    let mut properties = json!({
        message::NATS_MSG_ID: {
            "description": "`<session_id>:<s>`, unique per event; for the events a proxy adds \
                `<session_id>:<s>:<NAME>:<unique>` with the shard's checkpoint, `none:0` before the \
                first.",
            "type": "string",
            "pattern": "^[^:]+:[0-9]+(:[A-Z_]+:.+)?$",
        },
        message::TRACEPARENT: {
            "description": "W3C trace context, on sampled events only.",
            "type": "string",
        },
    });
    for (name, description) in more {
        properties[name] = json!({ "description": description, "type": "string" });
    }
    let required: Vec<&str> = std::iter::once(message::NATS_MSG_ID)
        .chain(required.iter().copied())
        .collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// The document of this name exists: a typo in this file fails here, not in a reader's tool.
#[test]
fn every_message_a_channel_names_exists() {
    let messages = messages(&|_| Value::Null);
    for (_, request, reply) in fleet_verbs() {
        for name in [request, reply] {
            assert_eq!(messages[name]["name"], Document::named(name).name);
        }
    }
}
