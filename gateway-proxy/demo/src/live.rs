//! The run: start, show, end. Waits for exactly one thing at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testkit::nats::Server;
use testkit::simulator::Simulator;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::args::Settings;
use crate::exit::Fatal;
use crate::finish::finish;
use crate::member::{Card, first_death, last_lines};
use crate::places::Places;
use crate::plain::{self, say};
use crate::sample::{Sample, Sampler};
use crate::screen::{self, Screen};
use crate::stop::Stop;
use crate::view::{Model, Phase, render};
use crate::world::{World, load};

/// Four pictures a second: the clock runs, and a resized terminal is soon filled.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// A line every two seconds.
const PRINT_EVERY: Duration = Duration::from_secs(2);
/// Everything is up within two seconds on an idle machine; this is for one that compiles as well.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// How soon the end of nats-server is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The ledger (64 bytes each, in memory) and the stream (1 kB each, in the temporary directory) hold
/// every event until the end. Half an hour at the default rate.
const EVENTS_MAX: u64 = 1_000_000;

/// The whole demo.
pub(crate) async fn demo(settings: &Settings) -> Result<(), Fatal> {
    let stop = Stop::listen()?;
    tokio::select! {
        outcome = run(settings, &stop) => outcome,
        () = stop.insisted() => Err(Fatal::Interrupted("stopped at once")),
    }
}

async fn run(settings: &Settings, stop: &Stop) -> Result<(), Fatal> {
    let mut world = tokio::select! {
        world = World::start(settings) => world?,
        () = stop.asked() => return Err(Fatal::Interrupted("stopped before everything was started")),
    };
    let ran = watch_over(settings, &mut world, stop).await?;
    finish(world, ran).await
}

/// Shows the system until the run is over, or a part of it ends; how long it was under load.
async fn watch_over(
    settings: &Settings,
    world: &mut World,
    stop: &Stop,
) -> Result<Duration, Fatal> {
    let World {
        members,
        simulator,
        client,
        nats,
        places,
        kept_logs,
        ..
    } = world;
    let cards: Vec<Card> = members.iter().map(|member| member.card.clone()).collect();
    let (sender, pictures) = watch::channel(Arc::new(Sample::before(cards.clone())));
    let sampler = Sampler::new(simulator, client.clone(), cards);
    tokio::select! {
        ran = show(settings, places, simulator, &pictures, stop) => ran,
        never = sampler.run(sender) => match never {},
        death = first_death(members, kept_logs.is_some()) => Err(death),
        death = nats_death(nats) => Err(death),
        () = simulator.stopped() => Err(Fatal::SimulatorStopped),
    }
}

/// Shows one picture after another, and begins the load once everything is up.
async fn show(
    settings: &Settings,
    places: &Places,
    simulator: &Simulator,
    pictures: &watch::Receiver<Arc<Sample>>,
    stop: &Stop,
) -> Result<Duration, Fatal> {
    let mut display = Display::new(settings, stop);
    let mut tick = interval(DRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut running: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.asked() => break,
        }
        if screen::has_panicked() {
            return Err(Fatal::Panicked);
        }
        let sample = Arc::clone(&pictures.borrow());
        if running.is_none() && sample.all_ready() {
            running = Some(Instant::now());
            simulator.set_load(load(settings));
            display.note("everything is up; the load begins (Ctrl-C ends the demo)");
        }
        let time = running.map(|since| since.elapsed());
        let model = Model {
            settings,
            places,
            sample: &sample,
            phase: time.map_or(Phase::Starting, Phase::Running),
        };
        if let Err(error) = display.show(model) {
            tracing::warn!(%error, "nobody sees the output any more");
            break;
        }
        match time {
            None if started.elapsed() > UP_WITHIN => return Err(not_up(&sample)),
            Some(time) if settings.run_for.is_some_and(|run_for| time >= run_for) => break,
            Some(_) if sample.sent >= EVENTS_MAX => {
                drop(display);
                say("a million events: the demo compares no more; ending");
                break;
            }
            _ => {}
        }
    }
    let ran = running.map(|since| since.elapsed());
    ran.ok_or(Fatal::Interrupted("stopped before everything was up"))
}

/// Completes when the server has ended, which it should not.
async fn nats_death(nats: &mut Server) -> Fatal {
    let pid = nats.pid().unwrap_or_default();
    while nats.is_running() {
        sleep(LOOK_EVERY).await;
    }
    Fatal::Died {
        name: "nats-server".into(),
        pid,
        status: "see its log".into(),
        log_end: last_lines(&nats.log()),
        log_file: None,
    }
}

fn not_up(sample: &Sample) -> Fatal {
    let late = sample.members.iter().find(|member| !member.is_ready());
    Fatal::NotUp {
        within: UP_WITHIN,
        missing: sample.missing(),
        log_end: late.map_or(String::new(), |member| member.card.log_end()),
    }
}

/// Where the pictures go.
enum Display {
    Screen(Screen),
    /// Lines, and when the next one is due.
    Lines(Instant),
}

impl Display {
    fn new(settings: &Settings, stop: &Stop) -> Self {
        if settings.plain || !screen::is_there() {
            return Self::Lines(Instant::now());
        }
        match Screen::take(stop) {
            Ok(screen) => Self::Screen(screen),
            Err(error) => {
                say(&format!("no full-screen view: {error}"));
                Self::Lines(Instant::now())
            }
        }
    }

    fn show(&mut self, model: Model<'_>) -> io::Result<()> {
        match self {
            Self::Screen(screen) => screen.draw(|width, height| render(model, width, height)),
            Self::Lines(due) if Instant::now() < *due => Ok(()),
            Self::Lines(due) => {
                *due = Instant::now() + PRINT_EVERY;
                let running = match model.phase {
                    Phase::Starting => None,
                    Phase::Running(time) => Some(time),
                };
                plain::print(&plain::line(model.sample, model.settings.shards, running))
            }
        }
    }

    /// A line that only a reader of lines needs.
    fn note(&self, line: &str) {
        if matches!(self, Self::Lines(_)) {
            say(line);
        }
    }
}
