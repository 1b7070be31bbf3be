//! What a daemon has done, for people, programs and Prometheus.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use cowl::BlockDevice;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::{Map, Value, json};

use crate::counters::Kind;
use crate::table::{Entry, ExportTable};

/// The media type of the text.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads the counts of a daemon.
#[derive(Clone)]
pub(crate) struct Metrics {
    table: Arc<ExportTable>,
    since: Instant,
}

impl Metrics {
    pub(crate) fn new(table: Arc<ExportTable>, since: Instant) -> Self {
        Self { table, since }
    }

    /// For the control socket.
    pub(crate) fn to_json(&self) -> Value {
        let server = self.table.server.stats();
        let exports: Vec<_> = self.table.entries().iter().map(export_to_json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime-seconds": self.since.elapsed().as_secs(),
            "connections": server.connections,
            "connections-ever": server.connections_ever,
            "memory-in-flight": server.memory_used,
            "virtual-machines": self.table.machines().map(|machines| {
                let stats = machines.stats();
                json!({
                    "connections": stats.connections,
                    "queues": stats.queues,
                    "requests": stats.requests,
                    "faults": stats.faults,
                })
            }),
            "exports": exports,
        })
    }

    /// For Prometheus.
    pub(crate) fn to_text(&self) -> String {
        let mut registry = Registry::with_prefix("cowl");
        registry.register_collector(Box::new(self.clone()));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a string takes text");
        out
    }
}

fn export_to_json(entry: &Entry) -> Value {
    let count = |kind: Kind| {
        let count = entry.counters.sum(kind);
        let value = json!({
            "requests": count.requests,
            "bytes": count.bytes,
            "failed": count.failed,
        });
        (kind.name().to_owned(), value)
    };
    let disk = &entry.disk.disk;
    let image = disk.qcow2().map(|image| {
        let stats = image.stats();
        json!({
            "commits": stats.commits,
            "barriers": stats.barriers,
            "metadata-writes": stats.metadata_writes,
            "metadata-bytes": stats.metadata_bytes,
            "dirty-bytes": stats.dirty_bytes,
        })
    });
    json!({
        "export": entry.options.name,
        "image": entry.options.path,
        "format": disk.format().name(),
        "disk-size": BlockDevice::size(disk).get(),
        "read-only": entry.options.is_read_only(),
        "requests": Kind::ALL.into_iter().map(count).collect::<Map<_, _>>(),
        "qcow2": image,
    })
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// What is told about a kind of request of an export.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    of: fn(crate::counters::Count) -> u64,
}

const FAMILIES: [Family; 3] = [
    Family {
        name: "requests",
        help: "Requests of clients that have ended",
        unit: None,
        of: |count| count.requests,
    },
    Family {
        name: "transferred",
        help: "Bytes that requests read, wrote, zeroed or discarded",
        unit: Some(Unit::Bytes),
        of: |count| count.bytes,
    },
    Family {
        name: "requests_failed",
        help: "Requests of clients that failed",
        unit: None,
        of: |count| count.failed,
    },
];

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let server = self.table.server.stats();
        let gauges = [
            ("connections", "NBD connections at the moment", server.connections as u64, None),
            (
                "in_flight",
                "Memory of requests and replies at the moment",
                server.memory_used,
                Some(Unit::Bytes),
            ),
        ];
        let machines = self.table.machines().map(|machines| machines.stats());
        let front_ends = machines.map_or(0, |stats| stats.connections as u64);
        let of_machines =
            ("virtual_machines", "vhost-user connections at the moment", front_ends, None);
        for (name, help, value, unit) in gauges.into_iter().chain([of_machines]) {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            gauge.encode(metric)?;
        }
        let ever = ConstCounter::new(server.connections_ever);
        let help = "NBD connections so far";
        ever.encode(encoder.encode_descriptor("accepted", help, None, MetricType::Counter)?)?;
        let entries = self.table.entries();
        for family in &FAMILIES {
            let unit = family.unit.as_ref();
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, unit, MetricType::Counter)?;
            for entry in &entries {
                for kind in Kind::ALL {
                    let labels = [("export", entry.options.name.as_str()), ("kind", kind.name())];
                    let value = ConstCounter::new((family.of)(entry.counters.sum(kind)));
                    value.encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        encode_images(&mut encoder, &entries)
    }
}

fn encode_images(encoder: &mut DescriptorEncoder<'_>, entries: &[Entry]) -> fmt::Result {
    type Read = fn(&cowl_qcow2::ImageStats) -> u64;
    let counters: [(&str, &str, Read); 2] = [
        ("commits", "Commits of metadata", |stats| stats.commits),
        ("barriers", "Barriers, each over all files of an image", |stats| stats.barriers),
    ];
    for (name, help, read) in counters {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for entry in entries {
            let Some(image) = entry.disk.disk.qcow2() else { continue };
            let labels = [("export", entry.options.name.as_str())];
            ConstCounter::new(read(&image.stats())).encode(metric.encode_family(&labels)?)?;
        }
    }
    let help = "Metadata that waits to be written";
    let unit = Unit::Bytes;
    let mut metric =
        encoder.encode_descriptor("dirty_metadata", help, Some(&unit), MetricType::Gauge)?;
    for entry in entries {
        let Some(image) = entry.disk.disk.qcow2() else { continue };
        let labels = [("export", entry.options.name.as_str())];
        let dirty = i64::try_from(image.stats().dirty_bytes).unwrap_or(i64::MAX);
        ConstGauge::new(dirty).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
