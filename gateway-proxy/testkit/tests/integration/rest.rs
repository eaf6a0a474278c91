//! REST as a library sees it (twilight-http), its limits, and the control endpoints.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::{Client as Http, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use testkit::simulator::{Action, Config, Rule, Simulator};
use twilight_model::http::interaction::{
    InteractionResponse, InteractionResponseData, InteractionResponseType,
};
use twilight_model::id::Id;

use crate::client::{Client, eventually};

struct Caller {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
}

impl Caller {
    fn new(sim: &Simulator) -> Self {
        Self {
            http: Http::builder(TokioExecutor::new()).build_http(),
            base: sim.api_url().replace("/api/v10", ""),
            token: format!("Bot {}", sim.token()),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (Response<()>, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", &self.token)
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        let (head, body) = self.http.request(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
        (Response::from_parts(head, ()), value)
    }

    async fn get(&self, path: &str) -> (Response<()>, Value) {
        self.call(Method::GET, path, Value::Null).await
    }
}

fn header(response: &Response<()>, name: &str) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

fn twilight(sim: &Simulator) -> twilight_http::Client {
    let authority = sim
        .api_url()
        .trim_start_matches("http://")
        .replace("/api/v10", "");
    twilight_http::Client::builder()
        .token(sim.token().to_owned())
        .proxy(authority, true)
        .ratelimiter(None)
        .build()
}

#[tokio::test]
async fn twilight_http_reads_every_answer() {
    let sim = Simulator::start(Config {
        shards: 3,
        guilds: 2,
        ..Config::default()
    })
    .await
    .unwrap();
    let client = twilight(&sim);
    let gateway = client
        .gateway()
        .authed()
        .await
        .unwrap()
        .model()
        .await
        .unwrap();
    assert_eq!(
        (gateway.shards, gateway.url.as_str()),
        (3, sim.gateway_url())
    );
    assert_eq!(gateway.session_start_limit.remaining, 1000);
    assert_eq!(
        client.gateway().await.unwrap().model().await.unwrap().url,
        sim.gateway_url()
    );
    let me = client.current_user().await.unwrap().model().await.unwrap();
    let application = client
        .current_user_application()
        .await
        .unwrap()
        .model()
        .await
        .unwrap();
    assert_eq!(application.id.get(), me.id.get());
    let guild = Id::new(sim.guild_ids()[0]);
    assert_eq!(
        client.guild(guild).await.unwrap().model().await.unwrap().id,
        guild
    );
    let message = client
        .create_message(Id::new(5))
        .content("hi")
        .await
        .unwrap();
    assert_eq!(message.model().await.unwrap().content, "hi");

    let interactions = client.interaction(application.id);
    let made = interactions
        .create_global_command()
        .chat_input("ping", "Says pong")
        .await
        .unwrap();
    assert_eq!(made.model().await.unwrap().name, "ping");
    let listed = interactions
        .global_commands()
        .await
        .unwrap()
        .models()
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    let set = interactions
        .set_global_commands(&listed)
        .await
        .unwrap()
        .models()
        .await
        .unwrap();
    assert_eq!(set[0].description, "Says pong");
}

#[tokio::test]
async fn the_bots_guilds_come_in_pages_with_the_names_of_their_events() {
    let config = Config {
        guilds: 25,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let api = twilight(&sim);
    let mut ids = sim.guild_ids();
    ids.sort_unstable();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let mut page = api.current_user_guilds().limit(10);
        if let Some(after) = after {
            page = page.after(after);
        }
        let page = page.await.unwrap().models().await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        listed.extend(page);
    }
    let found: Vec<u64> = listed.iter().map(|guild| guild.id.get()).collect();
    assert_eq!(found, ids);

    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let described = client.expect_event("GUILD_CREATE").await["d"].clone();
    let of_it = |guild: &Value| described["id"] == guild["id"];
    let caller = Caller::new(&sim);
    let list = "/api/v10/users/@me/guilds";
    let (_, all) = caller.get(&format!("{list}?with_counts=true")).await;
    let guild = all.as_array().unwrap().iter().find(|guild| of_it(guild));
    let object = format!("/api/v10/guilds/{}", described["id"].as_str().unwrap());
    let (_, object) = caller.get(&format!("{object}?with_counts=true")).await;
    for answer in [guild.unwrap(), &object] {
        assert_eq!(answer["name"], described["name"]);
        assert_eq!(
            answer["approximate_member_count"],
            described["member_count"]
        );
    }
    assert_eq!(object["owner_id"], described["owner_id"]);
    let (_, before) = caller
        .get(&format!("{list}?before={}&limit=2", ids[10]))
        .await;
    assert_eq!(before[1]["id"], ids[9].to_string());
    assert_eq!(before[1]["approximate_member_count"], Value::Null);
    for refused in ["limit=0", "limit=201", "after=x"] {
        let (head, body) = caller.get(&format!("{list}?{refused}")).await;
        assert_eq!(
            (head.status().as_u16(), &body["code"]),
            (400, &json!(50035))
        );
    }
}

#[tokio::test]
async fn options_come_nested_and_typed_as_they_were_registered() {
    let sim = Simulator::start(Config {
        guilds: 1,
        ..Config::default()
    })
    .await
    .unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let definition = json!({"name": "find", "description": "Finds something", "options": [
        {"name": "guild", "type": 1, "description": "Finds a server", "options": [
            {"name": "query", "type": 3, "description": "Its name"},
            {"name": "limit", "type": 4, "description": "At most"},
        ]},
    ]});
    let path = "/api/v10/applications/1/commands";
    let (made, _) = Caller::new(&sim).call(Method::POST, path, definition).await;
    assert_eq!(made.status(), 201);
    let action = Action::Command {
        text: "/find guild query:two words limit:7".to_owned(),
        guild: 0,
    };
    assert_eq!(sim.apply(action), 1);
    let event = client.expect_event("INTERACTION_CREATE").await;
    assert_eq!(
        event["d"]["data"]["options"],
        json!([{"name": "guild", "type": 1, "options": [
            {"name": "query", "type": 3, "value": "two words"},
            {"name": "limit", "type": 4, "value": 7},
        ]}])
    );
    let none = Action::Command {
        text: "/ping".to_owned(),
        guild: 9,
    };
    assert_eq!(sim.apply(none), 0, "there is no tenth guild");
}

#[tokio::test]
async fn a_slash_command_is_answered_once_and_in_time() {
    let sim = Simulator::start(Config {
        guilds: 1,
        ..Config::default()
    })
    .await
    .unwrap();
    assert_eq!(
        sim.type_command(Some(0), "ping"),
        None,
        "nobody is connected"
    );
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let typed = sim.type_command(Some(0), "ping").unwrap();
    let event = client.expect_event("INTERACTION_CREATE").await;
    assert_eq!(event["d"]["id"], typed.to_string());
    assert_eq!(
        (&event["d"]["data"]["name"], &event["d"]["type"]),
        (&json!("ping"), &json!(2))
    );
    let sent_ms = (typed >> 22) + 1_420_070_400_000;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(
        now.as_millis() as u64 - sent_ms < 5000,
        "its snowflake carries the real time"
    );

    let http = twilight(&sim);
    let interactions = http.interaction(Id::new(898_710_496_221_405_185));
    let token = event["d"]["token"].as_str().unwrap();
    let data = InteractionResponseData {
        content: Some("pong".to_owned()),
        ..Default::default()
    };
    let response = InteractionResponse {
        kind: InteractionResponseType::ChannelMessageWithSource,
        data: Some(data),
    };
    interactions
        .create_response(Id::new(typed), token, &response)
        .await
        .unwrap();
    let again = interactions
        .create_response(Id::new(typed), token, &response)
        .await;
    assert!(again.unwrap_err().to_string().contains("40060"));
    let unknown = interactions
        .create_response(Id::new(5), token, &response)
        .await;
    assert!(unknown.unwrap_err().to_string().contains("10062"));

    let stats = sim.stats().interactions;
    assert_eq!((stats.typed, stats.answered, stats.doubled), (1, 1, 1));
}

/// A session that saw `/ping` and answered it, and the interaction's token.
async fn answered(sim: &Simulator, caller: &Caller) -> (Client, String) {
    let (mut client, _) = Client::identified(sim, [0, 1]).await;
    let id = sim.type_command(Some(0), "ping").unwrap();
    let event = client.expect_event("INTERACTION_CREATE").await;
    let token = event["d"]["token"].as_str().unwrap().to_owned();
    let path = format!("/api/v10/interactions/{id}/{token}/callback");
    let answer = json!({"type": 4, "data": {"content": "pong"}});
    let (response, _) = caller.call(Method::POST, &path, answer).await;
    assert_eq!(response.status(), 204);
    (client, token)
}

#[tokio::test]
async fn an_answer_can_be_read_edited_and_followed_up() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let (_client, token) = answered(&sim, &Caller::new(&sim)).await;
    let token = token.as_str();
    let http = twilight(&sim);
    let interactions = http.interaction(Id::new(898_710_496_221_405_185));
    let original = interactions
        .response(token)
        .await
        .unwrap()
        .model()
        .await
        .unwrap();
    assert_eq!(original.content, "pong");
    let edited = interactions
        .update_response(token)
        .content(Some("ping"))
        .await
        .unwrap();
    assert_eq!(edited.model().await.unwrap().content, "ping");
    let more = interactions
        .create_followup(token)
        .content("more")
        .await
        .unwrap();
    assert_eq!(more.model().await.unwrap().content, "more");
}

#[tokio::test]
async fn somebody_types_at_a_rate() {
    let load = testkit::simulator::Load::quiet().commands(100.0);
    let sim = Simulator::start(Config {
        load,
        ..Config::default()
    })
    .await
    .unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let event = client.expect_event("INTERACTION_CREATE").await;
        assert!(ids.insert(event["d"]["id"].as_str().unwrap().to_owned()));
    }
}

#[tokio::test]
async fn a_wrong_token_is_401() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let mut caller = Caller::new(&sim);
    caller.token = "Bot wrong".to_owned();
    for path in ["/gateway/bot", "/users/@me", "/applications/@me"] {
        let (response, _) = caller.get(&format!("/api/v10{path}")).await;
        assert_eq!(response.status(), 401, "{path}");
    }
    let (response, _) = caller.get("/api/v10/gateway").await;
    assert_eq!(response.status(), 200, "needs no token");
    assert_eq!(sim.ledger().broken(Rule::RestUnauthorized), 3);
    assert_eq!(sim.stats().rest_invalid, 3);
    let (response, _) = Caller::new(&sim).get("/api/v10/nowhere").await;
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn a_bucket_says_what_is_left_and_answers_429_behind_it() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let caller = Caller::new(&sim);
    let path = "/api/v10/channels/77/messages";
    for left in (0..5).rev() {
        let (response, _) = caller
            .call(Method::POST, path, json!({"content": "x"}))
            .await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit"), "5");
        assert_eq!(header(&response, "x-ratelimit-remaining"), left.to_string());
        assert!(
            header(&response, "x-ratelimit-reset-after")
                .parse::<f64>()
                .unwrap()
                <= 5.0
        );
        assert!(!header(&response, "x-ratelimit-bucket").is_empty());
    }
    let (response, body) = caller
        .call(Method::POST, path, json!({"content": "x"}))
        .await;
    assert_eq!(response.status(), 429);
    assert_eq!(header(&response, "x-ratelimit-scope"), "user");
    assert!(header(&response, "retry-after").parse::<u64>().unwrap() >= 1);
    assert!(body["retry_after"].as_f64().unwrap() > 0.0);
    assert_eq!(body["global"], false);
    assert_eq!(sim.ledger().broken(Rule::RestRateLimit), 1);
}

#[tokio::test]
async fn the_limit_over_all_routes_is_global() {
    let sim = Simulator::start(Config {
        rest_per_second: 3,
        ..Config::default()
    })
    .await
    .unwrap();
    let caller = Caller::new(&sim);
    let mut last = None;
    for channel in 0..50 {
        let path = format!("/api/v10/channels/{channel}/messages");
        let (response, body) = caller
            .call(Method::POST, &path, json!({"content": "x"}))
            .await;
        if response.status() == 429 {
            last = Some((response, body));
            break;
        }
    }
    let (response, body) = last.unwrap();
    assert_eq!(header(&response, "x-ratelimit-global"), "true");
    assert_eq!(header(&response, "x-ratelimit-scope"), "global");
    assert_eq!(body["global"], true);
    let callback = "/api/v10/interactions/5/tok/callback";
    let (response, _) = caller
        .call(Method::POST, callback, json!({"type": 4}))
        .await;
    assert_eq!(response.status(), 404, "interaction endpoints are exempt");
}

#[tokio::test]
async fn rest_failures_can_be_injected() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let caller = Caller::new(&sim);
    sim.apply(Action::RestFault {
        status: 503,
        count: 2,
        retry_after_ms: 0,
    });
    sim.apply(Action::RestFault {
        status: 429,
        count: 1,
        retry_after_ms: 1500,
    });
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let (response, body) = caller.get("/api/v10/users/@me").await;
        if response.status() == 429 {
            assert_eq!(
                (&body["retry_after"], header(&response, "retry-after")),
                (&json!(1.5), "2".to_owned())
            );
        }
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [503, 503, 429, 200]);
}

#[tokio::test]
async fn everything_can_be_controlled_over_http() {
    let sim = Simulator::start(Config {
        guilds: 2,
        ..Config::default()
    })
    .await
    .unwrap();
    let caller = Caller::new(&sim);
    let (_, urls) = caller.get("/_sim/urls").await;
    assert_eq!(urls["gateway"], sim.gateway_url());
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(3).await;

    let load = json!({"pace": {"kind": "flood", "events_per_shard": 7}});
    let (response, _) = caller.call(Method::PUT, "/_sim/load", load).await;
    assert_eq!(response.status(), 204);
    client.dispatches_to(10).await;
    let fault = json!({"action": "fault", "target": {"shard": 0}, "fault": {"kind": "reconnect"}});
    let (_, reached) = caller.call(Method::POST, "/_sim/actions", fault).await;
    assert_eq!(reached["reached"], 1);
    client.expect_op(7).await;
    let (response, text) = caller
        .call(Method::POST, "/_sim/actions", json!({"action": "?"}))
        .await;
    assert_eq!(response.status(), 400);
    assert!(text.as_str().unwrap().contains("unknown variant"), "{text}");

    let (_, stats) = caller.get("/_sim/stats").await;
    assert_eq!(stats["shards"]["0/1"]["events"], 10);
    let (_, ledger) = caller.get("/_sim/ledger").await;
    let lines = ledger.as_str().unwrap().lines();
    let events = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let events: Vec<Value> = events.filter(|line| line["kind"] == "event").collect();
    assert_eq!(events.len(), 10);
    assert_eq!(events[9]["session"], ready.session);
    let (response, _) = caller
        .call(Method::POST, "/_sim/shutdown", Value::Null)
        .await;
    assert!(response.status().is_success());
    tokio::time::timeout(Duration::from_secs(5), sim.stopped())
        .await
        .unwrap();
    eventually("tasks end", || sim.stats().connections == 0).await;
}
