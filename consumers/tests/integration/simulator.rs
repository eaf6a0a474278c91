//! The worker against the simulated Discord's REST API, which is stricter than the scripted one.

use consumers::{Options, commands};
use testkit::simulator::{Action, Config, Simulator};

use crate::world::{World, metric};

fn simulated(world: &World, simulator: &Simulator) -> Options {
    Options {
        api_url: Some(simulator.api_url().to_owned()),
        ..world.options()
    }
}

/// A simulator that knows the token of [`World::try_worker`].
async fn simulator() -> Simulator {
    let tokens = vec![crate::fake_discord::TOKEN.to_owned()];
    Simulator::start(Config {
        tokens,
        ..Config::default()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn commands_are_registered_once_within_the_rules() {
    let (world, simulator) = (World::start().await, simulator().await);
    let options = simulated(&world, &simulator);
    let requests = || simulator.stats().rest_requests;
    drop(
        world
            .try_worker(commands::router(), options.clone())
            .await
            .unwrap(),
    );
    assert_eq!(requests(), 7, "the application, the list and five commands");
    drop(world.try_worker(commands::router(), options).await.unwrap());
    assert_eq!(requests(), 9, "the application and the list");
    assert_eq!(simulator.stats().violations, 0);
}

#[tokio::test]
async fn registration_waits_for_a_discord_that_is_busy() {
    let (world, simulator) = (World::start().await, simulator().await);
    let options = simulated(&world, &simulator);
    for status in [503, 429, 502] {
        simulator.apply(Action::RestFault {
            status,
            count: 1,
            retry_after_ms: 100,
        });
    }
    drop(world.try_worker(commands::router(), options).await.unwrap());
    assert_eq!(simulator.stats().rest_requests, 10);
}

#[tokio::test]
async fn an_interaction_that_discord_never_made_is_terminated() {
    let (world, simulator) = (World::start().await, simulator().await);
    let options = simulated(&world, &simulator);
    let worker = world.try_worker(commands::router(), options).await.unwrap();
    world.type_command("ping").await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"expired\"} 1",
    )
    .await;
    world.settled("DISCORD_EVENTS").await;
}
