use serde_json::json;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A guild of shard 1 of 4.
const GUILD: u64 = 5 << 22;

fn queue() -> CommandQueue {
    CommandQueue::new(ShardId::new(1, 4).unwrap())
}

fn command(op: u64, d: &Value) -> GatewayCommand {
    GatewayCommand::parse(json!({"op": op, "d": d}).to_string().as_bytes()).unwrap()
}

fn presence(name: &str) -> GatewayCommand {
    command(
        3,
        &json!({"since": null, "activities": [{"name": name}], "status": "online", "afk": false}),
    )
}

fn voice() -> GatewayCommand {
    command(
        4,
        &json!({"guild_id": GUILD.to_string(), "channel_id": null, "self_mute": false}),
    )
}

fn all_members(guild: u64, nonce: &str) -> GatewayCommand {
    command(
        8,
        &json!({"guild_id": guild.to_string(), "query": "", "limit": 0, "nonce": nonce}),
    )
}

fn found(query: &str, nonce: Option<&str>) -> GatewayCommand {
    command(
        8,
        &json!({"guild_id": GUILD.to_string(), "query": query, "limit": 5, "nonce": nonce}),
    )
}

fn next(queue: &mut CommandQueue, now: Instant) -> Option<u64> {
    queue.poll(now, || Ok(())).map(|(ticket, _)| ticket)
}

#[test]
fn voice_goes_before_presence_before_requests() {
    let (mut queue, now) = (queue(), Instant::now());
    let sounds = command(31, &json!({"guild_ids": [GUILD.to_string()]}));
    for (ticket, command) in [
        (1, sounds),
        (2, found("a", None)),
        (3, presence("x")),
        (4, voice()),
        (5, voice()),
    ] {
        assert_eq!(queue.submit(ticket, command, now), Ok(Placed::Waiting));
    }
    let order: Vec<u64> = std::iter::from_fn(|| next(&mut queue, now)).collect();
    assert_eq!(order, [4, 5, 3, 2, 1]);
    assert_eq!(queue.poll_timeout(now), None);
}

#[test]
fn without_room_a_command_waits_as_long_as_the_budget_says() {
    let (mut queue, now) = (queue(), Instant::now());
    queue.submit(1, voice(), now).unwrap();
    assert_eq!(queue.poll(now, || Err(Some(7 * SECOND))), None);
    assert_eq!(queue.wait_of(1, now), Some(7 * SECOND));
    assert_eq!(queue.poll_timeout(now), Some(now + 7 * SECOND));
    queue.handle_disconnected();
    assert_eq!(
        queue.poll_timeout(now),
        Some(now),
        "a new connection has a new budget"
    );
    assert_eq!(next(&mut queue, now), Some(1));
    assert_eq!(queue.wait_of(1, now), None);
}

#[test]
fn presences_keep_their_limit_and_the_newest_wins() {
    let (mut queue, now) = (queue(), Instant::now());
    for ticket in 0..5 {
        queue.submit(ticket, presence("x"), now).unwrap();
        assert_eq!(next(&mut queue, now), Some(ticket));
    }
    queue.submit(6, presence("old"), now).unwrap();
    assert_eq!(next(&mut queue, now), None);
    queue.submit(7, presence("new"), now + SECOND).unwrap();
    assert_eq!(queue.wait_of(6, now + SECOND), None, "replaced");
    assert_eq!(queue.poll_dropped(), Some((CommandOp::PresenceUpdate, 1)));
    assert_eq!(queue.poll_dropped(), None, "told once");
    assert_eq!(queue.wait_of(7, now + SECOND), Some(19 * SECOND));
    assert_eq!(queue.poll_timeout(now), Some(now + 20 * SECOND));
    assert_eq!(next(&mut queue, now + 20 * SECOND), Some(7));
}

#[test]
fn equal_member_requests_are_sent_once() {
    let (mut queue, now) = (queue(), Instant::now());
    queue.submit(1, found("ann", Some("first")), now).unwrap();
    let merged = |with| {
        Ok(Placed::Merged {
            nonce: Some("first".to_owned()),
            with,
        })
    };
    assert_eq!(
        queue.submit(2, found("ann", Some("second")), now),
        merged(Equal::Waiting(1))
    );
    assert_eq!(next(&mut queue, now), Some(1));
    let later = now + 2 * SECOND;
    assert_eq!(
        queue.submit(3, found("ann", None), later),
        merged(Equal::Sent(2 * SECOND))
    );
    assert_eq!(
        queue.submit(4, found("bob", Some("x")), later),
        Ok(Placed::Waiting)
    );
    let much_later = now + 11 * SECOND;
    assert_eq!(
        queue.submit(5, found("ann", Some("y")), much_later),
        Ok(Placed::Waiting)
    );
}

#[test]
fn a_request_whose_chunks_cannot_be_found_by_nonce_is_not_joined() {
    let (mut queue, now) = (queue(), Instant::now());
    queue.submit(1, found("ann", None), now).unwrap();
    assert_eq!(
        queue.submit(2, found("ann", Some("mine")), now),
        Ok(Placed::Waiting)
    );
    let merged = Placed::Merged {
        nonce: None,
        with: Equal::Waiting(1),
    };
    assert_eq!(queue.submit(3, found("ann", None), now), Ok(merged));
}

#[test]
fn all_members_of_a_guild_are_asked_for_once_in_thirty_seconds() {
    let (mut queue, now) = (queue(), Instant::now());
    queue.submit(1, all_members(GUILD, "a"), now).unwrap();
    assert_eq!(next(&mut queue, now), Some(1));
    let at = now + 20 * SECOND;
    let merged = Placed::Merged {
        nonce: Some("a".to_owned()),
        with: Equal::Sent(20 * SECOND),
    };
    assert_eq!(queue.submit(2, all_members(GUILD, "b"), at), Ok(merged));
    let with_presences = command(
        8,
        &json!({"guild_id": GUILD.to_string(), "query": "", "limit": 0, "presences": true}),
    );
    queue.submit(3, with_presences, at).unwrap();
    queue.submit(4, all_members(9 << 22, "c"), at).unwrap();
    assert_eq!(next(&mut queue, at), Some(4), "another guild need not wait");
    assert_eq!(next(&mut queue, at), None);
    assert_eq!(queue.wait_of(3, at), Some(10 * SECOND));
    assert_eq!(next(&mut queue, now + 30 * SECOND), Some(3));
}

#[test]
fn what_discord_would_close_or_ignore_is_refused() {
    let mut queue = queue();
    let mut refused = |op, d: Value| {
        queue
            .submit(1, command(op, &d), Instant::now())
            .unwrap_err()
    };
    let guild = GUILD.to_string();
    assert_eq!(
        refused(3, json!({"activities": []})),
        Refusal::Field("status")
    );
    assert_eq!(
        refused(3, json!({"status": "idle"})),
        Refusal::Field("activities")
    );
    assert_eq!(
        refused(4, json!({"channel_id": null})),
        Refusal::Field("guild_id")
    );
    assert_eq!(
        refused(4, json!({"guild_id": guild})),
        Refusal::Field("channel_id")
    );
    assert_eq!(
        refused(8, json!({"guild_id": guild})),
        Refusal::Field("query")
    );
    assert_eq!(
        refused(8, json!({"guild_id": guild, "query": ""})),
        Refusal::Field("limit")
    );
    assert_eq!(
        refused(31, json!({"guild_ids": "1"})),
        Refusal::Field("guild_ids")
    );
    assert_eq!(
        refused(43, json!({"guild_id": guild})),
        Refusal::Field("fields")
    );
    let long = json!({"guild_id": guild, "query": "", "limit": 0, "nonce": "x".repeat(33)});
    assert_eq!(refused(8, long), Refusal::Nonce(33));
    let elsewhere = Refusal::OtherShard {
        guild: GuildId::new(6 << 22).unwrap(),
        shard: 2,
    };
    let other = (6_u64 << 22).to_string();
    assert_eq!(
        refused(4, json!({"guild_id": other, "channel_id": null})),
        elsewhere
    );
    assert_eq!(refused(31, json!({"guild_ids": [guild, other]})), elsewhere);
}

#[test]
fn no_more_wait_than_the_bound_and_none_for_ever() {
    let (mut queue, now) = (queue(), Instant::now());
    for ticket in 0..WAITING_MAX as u64 {
        queue.submit(ticket, voice(), now).unwrap();
    }
    assert_eq!(queue.submit(999, voice(), now), Err(Refusal::Full));
    let last = WAITING_MAX as u64 - 1;
    assert!(queue.wait_of(last, now).unwrap() > 50 * SECOND);
    assert_eq!(
        queue.submit(999, voice(), now + EXPIRES_AFTER),
        Ok(Placed::Waiting)
    );
    assert_eq!(next(&mut queue, now + EXPIRES_AFTER), Some(999));
}
