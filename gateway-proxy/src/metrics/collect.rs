//! Turns the instruments and the live state into Prometheus' form, when somebody asks.

use std::fmt::{Debug, Error};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::Instruments;
use super::instrument::{Count, Label, Level, PerLabel, Timing};
use crate::status::{ProcessStatus, ShardStatus};

/// The counters.
#[derive(Debug)]
pub(super) struct Counts(pub(super) Instruments);

/// The state of process and shards.
#[derive(Debug)]
pub(super) struct Live(pub(super) Arc<ProcessStatus>);

impl Collector for Counts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Output(encoder);
        let it = &self.0;
        out.events(it)?;
        out.frames(it)?;
        out.sessions(it)?;
        out.commands(it)?;
        out.publishing(it)?;
        out.fleet(it)
    }
}

const fn switch(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

struct Output<'a>(DescriptorEncoder<'a>);

impl Output<'_> {
    fn events(&mut self, it: &Instruments) -> Result<(), Error> {
        self.labelled(
            "events_received",
            "Dispatches that came in",
            &it.events_received,
        )?;
        self.labelled(
            "events_published",
            "Dispatches handed to NATS",
            &it.events_published,
        )?;
        let help = "Dispatches JetStream acknowledged";
        self.labelled("events_acknowledged", help, &it.events_acknowledged)?;
        let help = "Dispatches left out by configuration";
        self.labelled("events_filtered", help, &it.events_filtered)?;
        let help = "Dispatches that were already stored or handed on";
        self.labelled("events_duplicate", help, &it.events_duplicate)
    }

    fn frames(&mut self, it: &Instruments) -> Result<(), Error> {
        let bytes = Some(&Unit::Bytes);
        let help = "Bytes read from gateway sockets, compressed";
        self.count("gateway_received", help, bytes, &it.received_bytes)?;
        let help = "Bytes of gateway frames after decompression";
        self.count("gateway_inflated", help, bytes, &it.inflated_bytes)?;
        self.count(
            "published",
            "Payload bytes handed to NATS",
            bytes,
            &it.published_bytes,
        )?;
        let help = "Frames that could not be used";
        self.labelled("frames_malformed", help, &it.frames_malformed)
    }

    fn sessions(&mut self, it: &Instruments) -> Result<(), Error> {
        let help = "Connections after a shard's first, by what ended the one before";
        self.labelled("reconnects", help, &it.reconnects)?;
        self.labelled("gateway_closes", "Closes received, by code", &it.closes)?;
        self.count("identifies", "IDENTIFYs sent", None, &it.identifies)?;
        self.labelled("resumes", "RESUMEs answered", &it.resumes)?;
        self.labelled("gaps", "Gaps announced by PROXY_GAP", &it.gaps)?;
        let help = "Shards that stopped delivering, by what was done";
        self.labelled("shard_silences", help, &it.silences)?;
        self.labelled("heartbeats", "Heartbeats", &it.heartbeats)?;
        let help = "Shards that Discord recommends";
        self.level("shards_recommended", help, None, &it.shards_recommended)?;
        let help = "Session starts Discord grants per day";
        self.level("session_starts_limit", help, None, &it.session_starts_total)?;
        let help = "Session starts left today";
        self.level(
            "session_starts_remaining",
            help,
            None,
            &it.session_starts_remaining,
        )
    }

    fn commands(&mut self, it: &Instruments) -> Result<(), Error> {
        let help = "Users' gateway commands, by opcode and what became of them";
        let counter = MetricType::Counter;
        let mut metric = self
            .0
            .encode_descriptor("gateway_commands", help, None, counter)?;
        for (op, outcome, count) in it.commands.counted() {
            let labels = [("op", op.as_str()), ("outcome", outcome)];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn publishing(&mut self, it: &Instruments) -> Result<(), Error> {
        let bytes = Some(&Unit::Bytes);
        let help = "Events that wait for an acknowledgement";
        self.level("publish_window_messages", help, None, &it.window_messages)?;
        let help = "Bytes of events that wait for an acknowledgement";
        self.level("publish_window", help, bytes, &it.window_bytes)?;
        let help = "Bytes of events that may wait for an acknowledgement";
        self.level("publish_window_limit", help, bytes, &it.window_limit_bytes)?;
        let help = "Times a socket was not read because the publish window was full";
        self.count("publish_window_full", help, None, &it.window_full)?;
        let help = "Publish batches begun anew after trouble";
        self.count("publish_restarts", help, None, &it.publish_restarts)?;
        let help = "Connections to NATS after the first";
        self.count("nats_reconnects", help, None, &it.nats_reconnects)?;
        self.timing(
            "ack_latency",
            "From handing an event to NATS until its acknowledgement",
            &it.ack_latency,
        )
    }

    fn fleet(&mut self, it: &Instruments) -> Result<(), Error> {
        let help = "Proxies that live, this one included";
        self.level("fleet_members", help, None, &it.fleet_members)?;
        let help = "Epoch of the plan that is followed";
        self.level("fleet_plan_epoch", help, None, &it.fleet_plan_epoch)?;
        let help = "1 while this process coordinates";
        self.level("fleet_is_coordinator", help, None, &it.fleet_coordinates)?;
        let help = "Shards this process took because the plan says so";
        self.count("fleet_moves", help, None, &it.fleet_moves)?;
        let help = "Shards this process took from a member that was gone";
        self.count("fleet_takeovers", help, None, &it.fleet_takeovers)?;
        let help = "Times the lease of this process ended and it let go of its shards";
        self.count("fleet_fenced", help, None, &it.fleet_fenced)?;
        let help = "Shards without a place, as the coordinator sees it";
        self.level(
            "fleet_unplaced_shards",
            help,
            None,
            &it.fleet_unplaced_shards,
        )?;
        let help = "IDENTIFYs granted as the coordinator";
        self.count(
            "fleet_identify_grants",
            help,
            None,
            &it.fleet_identify_grants,
        )
    }

    fn labelled<L: Label>(
        &mut self,
        name: &str,
        help: &str,
        counts: &PerLabel<L>,
    ) -> Result<(), Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in counts.counted() {
            let labels = [(L::KEY, value)];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn count(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        count: &Count,
    ) -> Result<(), Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        ConstCounter::new(count.get()).encode(metric)
    }

    fn level(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        level: &Level,
    ) -> Result<(), Error> {
        self.gauge(name, help, unit, level.get() as f64)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: f64,
    ) -> Result<(), Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn timing(&mut self, name: &str, help: &str, timing: &Timing) -> Result<(), Error> {
        let unit = Some(&Unit::Seconds);
        let (sum, count, buckets) = timing.read();
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn shards(&mut self, shards: &[Arc<ShardStatus>]) -> Result<(), Error> {
        self.per_shard(
            "shard_ready",
            "1 while the shard delivers",
            None,
            shards,
            |shard| Some(switch(shard.state().is_ready())),
        )?;
        let help = "Last heartbeat round trip";
        self.per_shard(
            "gateway_latency",
            help,
            Some(&Unit::Seconds),
            shards,
            |shard| shard.latency().map(|latency| latency.as_secs_f64()),
        )?;
        self.per_shard(
            "shard_guilds",
            "Guilds on the shard",
            None,
            shards,
            |shard| shard.guilds().map(f64::from),
        )?;
        let help = "Events received and not yet acknowledged, by sequence";
        self.per_shard("shard_lag_events", help, None, shards, |shard| {
            let behind = shard
                .last_seq()?
                .saturating_sub(shard.acked_seq().unwrap_or(0));
            Some(behind as f64)
        })?;
        let help = "Silence after which the shard is suspected; none while its usual rate is too low or unknown";
        let seconds = Some(&Unit::Seconds);
        self.per_shard("shard_patience", help, seconds, shards, |shard| {
            shard.patience().map(|patience| patience.as_secs_f64())
        })
    }

    /// One gauge per shard; shards without a value have no series.
    fn per_shard(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        shards: &[Arc<ShardStatus>],
        value: impl Fn(&ShardStatus) -> Option<f64>,
    ) -> Result<(), Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for shard in shards {
            if let Some(value) = value(shard) {
                let labels = [("shard", shard.shard().id())];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Live {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Output(encoder);
        let process = &self.0;
        let shards = process.shards();
        out.shards(&shards)?;
        out.gauge(
            "shards",
            "Shards this process holds",
            None,
            shards.len() as f64,
        )?;
        let help = "1 while connected to NATS";
        out.gauge(
            "nats_connected",
            help,
            None,
            switch(process.nats_connected()),
        )?;
        let help = "1 while all shards are up and NATS is connected";
        out.gauge("ready", help, None, switch(process.readiness().ready))?;
        let usage = crate::status::Usage::read();
        let help = "Resident memory";
        out.gauge(
            "process_resident_memory",
            help,
            Some(&Unit::Bytes),
            usage.memory_bytes as f64,
        )?;
        let help = "User and system CPU time";
        let unit = Some(&Unit::Seconds);
        let cpu = out
            .0
            .encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
        ConstCounter::new(usage.cpu.as_secs_f64()).encode(cpu)?;
        let help = "Version of the program";
        let mut build = out
            .0
            .encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1_u64).encode(build.encode_family(&labels)?)
    }
}
