//! The connection to nats-server and the two streams of the cell: created if missing, checked if not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::context::{Context, ContextBuilder, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Compression, Config as StreamConfig, DiscardPolicy, InfoError, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, Event};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::{self, StreamSettings};
use tokio::sync::watch;

use crate::config::Config;
use crate::error::Error;

/// How long JetStream may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RECONNECT_DELAY_MS_MAX: u64 = 2_000;
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// The cell's streams on one connection.
#[derive(Clone)]
pub struct Streams {
    /// JetStream.
    pub context: Context,
    /// The log.
    pub log: Stream,
    /// The outputs.
    pub out: Stream,
    /// Changes each time the connection is lost or made again.
    pub link: watch::Receiver<Link>,
}

/// The connection, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// How often it was made.
    pub made: u64,
    /// Whether it stands.
    pub stands: bool,
}

impl Streams {
    /// Whether the connection stands now.
    pub fn connected(&self) -> bool {
        self.context.client().connection_state() == async_nats::connection::State::Connected
    }
}

/// A time that the broker says, ns UTC.
pub fn nanos(at: DateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

/// Whether asking for a stream failed because it is not there any more. The broker can lose one that it had acknowledged: a power cut takes
/// what had not reached the disk, and of a young stream that is all of it.
pub fn is_gone(error: &InfoError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<async_nats::jetstream::Error>());
    cause.is_some_and(|cause| cause.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Connects, refuses an old server, and creates or checks both streams.
pub async fn open(config: &Config) -> Result<Streams, Error> {
    let (sender, link) = watch::channel(Link::default());
    let client = connect(&config.nats, &config.replica(), sender).await?;
    let info = client.server_info();
    subject::check_nats_version(&info.version)?;
    if !info.jetstream {
        return Err(Error::NoJetStream { url: config.nats.clone() });
    }
    let context = ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client);
    let log = ensure(&context, &subject::log_stream(&config.cell, config.log_bytes_max), config.stream_replicas).await?;
    let out = ensure(&context, &subject::out_stream(&config.cell, config.out_bytes_max), config.stream_replicas).await?;
    Ok(Streams { context, log, out, link })
}

/// Connects to the streams of a cell as they are. Errors if one is missing: nothing is created.
pub async fn attach(url: &str, cell: &CellId, name: &str) -> Result<Streams, Error> {
    let (sender, link) = watch::channel(Link::default());
    let client = connect(url, name, sender).await?;
    subject::check_nats_version(&client.server_info().version)?;
    let context = ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client);
    let existing = async |settings: StreamSettings| {
        let found = context.get_stream(&settings.name).await;
        found.map_err(|error| Error::Stream { stream: settings.name, what: "looking it up", detail: error.to_string() })
    };
    let (log, out) = (existing(subject::log_stream(cell, 0)).await?, existing(subject::out_stream(cell, 0)).await?);
    Ok(Streams { context, log, out, link })
}

async fn connect(url: &str, name: &str, link: watch::Sender<Link>) -> Result<async_nats::Client, Error> {
    let link = std::sync::Arc::new(link);
    let seed = AtomicU64::new(u64::from(std::process::id()));
    let options = ConnectOptions::new()
        .name(format!("plimsoll-processor {name}"))
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .reconnect_delay_callback(move |attempts| reconnect_delay(attempts, &seed))
        .event_callback(move |event| {
            let link = link.clone();
            async move {
                match event {
                    Event::Connected => link.send_modify(|link| *link = Link { made: link.made + 1, stands: true }),
                    Event::Closed | Event::Draining | Event::LameDuckMode => tracing::info!(%event, "nats connection"),
                    Event::Disconnected => {
                        tracing::warn!(%event, "nats connection");
                        link.send_modify(|link| link.stands = false);
                    }
                    Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(%event, "nats connection"),
                }
            }
        });
    options.connect(subject::servers(url)).await.map_err(|error| refused_or_away(url, &error))
}

/// What a failed connection means: a broker that is away may come, one that lets nobody in stays as it is.
fn refused_or_away(url: &str, error: &ConnectError) -> Error {
    let (url, detail) = (url.to_owned(), error.to_string());
    match error.kind() {
        ConnectErrorKind::ServerParse | ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Tls => {
            Error::ConnectRefused { url, detail }
        }
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => Error::Connect { url, detail },
    }
}

/// Doubles up to a limit, with jitter so that a fleet does not come back in one instant.
fn reconnect_delay(attempts: usize, seed: &AtomicU64) -> Duration {
    let full = (50u64 << attempts.min(10)).min(RECONNECT_DELAY_MS_MAX);
    let drawn = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
    Duration::from_millis(full / 2 + drawn % (full / 2 + 1))
}

fn wanted(settings: &StreamSettings, replicas: u8) -> StreamConfig {
    StreamConfig {
        name: settings.name.clone(),
        subjects: vec![settings.subjects.clone()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age: Duration::from_secs(settings.max_age_s),
        max_bytes: settings.max_bytes,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: settings.max_message_bytes,
        num_replicas: usize::from(replicas),
        duplicate_window: DUPLICATE_WINDOW,
        compression: Some(Compression::S2),
        allow_direct: true,
        ..StreamConfig::default()
    }
}

async fn ensure(context: &Context, settings: &StreamSettings, replicas: u8) -> Result<Stream, Error> {
    let failed = |what, no: Option<&jetstream::Error>, detail: String| {
        let stream = settings.name.clone();
        if no.is_some_and(|no| !passes(no)) { Error::StreamUnusable { stream, what, detail } } else { Error::Stream { stream, what, detail } }
    };
    let looked_up = |what| {
        move |error: GetStreamError| {
            let kind = error.kind();
            let no = if let GetStreamErrorKind::JetStream(no) = &kind { Some(no) } else { None };
            failed(what, no, error.to_string())
        }
    };
    let wanted = wanted(settings, replicas);
    let created = match context.get_stream(&settings.name).await {
        Ok(_) => false,
        Err(error) if is_missing(&error) => {
            context.create_stream(wanted.clone()).await.map_err(|error| {
                let kind = error.kind();
                let no = if let CreateStreamErrorKind::JetStream(no) = &kind { Some(no) } else { None };
                failed("creating it", no, error.to_string())
            })?;
            true
        }
        Err(error) => return Err(looked_up("looking it up")(error)),
    };
    let stream = context.get_stream(&settings.name).await.map_err(looked_up("reading it back"))?;
    for difference in differences(&wanted, &stream.cached_info().config) {
        let Difference { setting, found, wanted, matters } = difference;
        if matters || created {
            return Err(Error::StreamDiffers { stream: settings.name.clone(), setting, found, wanted });
        }
        tracing::warn!(stream = settings.name, setting, found, wanted, "an existing stream keeps its own setting");
    }
    Ok(stream)
}

/// Whether a no of JetStream may be a yes later without anybody's doing: a cluster comes together, a server finishes its start.
fn passes(no: &jetstream::Error) -> bool {
    let lasting = [
        ErrorCode::JETSTREAM_NOT_ENABLED,
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ];
    let is_servers_fault = no.code() >= 500;
    // A stream that was found or made a moment ago and is missing now: the server that is asked has not heard of it yet.
    let comes = [ErrorCode::CLUSTER_NO_PEERS, ErrorCode::STREAM_NOT_FOUND];
    comes.contains(&no.error_code()) || (is_servers_fault && !lasting.contains(&no.error_code()))
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

struct Difference {
    setting: &'static str,
    found: String,
    wanted: String,
    /// Whether records or outputs could be lost or doubled with it.
    matters: bool,
}

fn differences(wanted: &StreamConfig, found: &StreamConfig) -> Vec<Difference> {
    let mut all = Vec::new();
    macro_rules! compare {
        ($matters:literal, $($field:ident),*) => {$(
            if wanted.$field != found.$field {
                all.push(Difference {
                    setting: stringify!($field),
                    found: format!("{:?}", found.$field),
                    wanted: format!("{:?}", wanted.$field),
                    matters: $matters,
                });
            }
        )*};
    }
    compare!(true, subjects, retention, discard, storage, max_messages, max_messages_per_subject, no_ack, sealed, sources, mirror, subject_transform);
    compare!(false, max_age, max_bytes, max_message_size, num_replicas, duplicate_window, compression, allow_direct);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_lose_or_double_something_matter() {
        let settings = subject::log_stream(&"c".parse().unwrap(), 1 << 20);
        let wanted = wanted(&settings, 1);
        let check = |change: fn(&mut StreamConfig), expected: &[(&str, bool)]| {
            let mut found = wanted.clone();
            change(&mut found);
            assert_eq!(differences(&wanted, &found).iter().map(|d| (d.setting, d.matters)).collect::<Vec<_>>(), expected);
        };
        check(|_| {}, &[]);
        check(|found| found.subjects = vec!["other.>".to_owned()], &[("subjects", true)]);
        check(|found| found.storage = StorageType::Memory, &[("storage", true)]);
        check(|found| found.max_bytes = 5, &[("max_bytes", false)]);
        check(|found| found.compression = None, &[("compression", false)]);
    }

    #[test]
    fn reconnecting_waits_longer_each_time_and_never_too_long() {
        let seed = AtomicU64::new(7);
        for attempts in 0..100 {
            let delay = reconnect_delay(attempts, &seed);
            assert!(delay >= Duration::from_millis(25) && delay <= Duration::from_millis(RECONNECT_DELAY_MS_MAX), "{attempts}: {delay:?}");
        }
    }
}
