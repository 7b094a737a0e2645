//! The stream in memory behaves as the broker's does: one suite, run on both. What the simulation proves rests on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, RawMessageErrorKind, StorageType};
use futures::TryStreamExt;
use plimsoll_processor::streams::nanos;
use plimsoll_tests::cell::free_ports;
use plimsoll_tests::cell::keeper::{Keeper, Program};
use plimsoll_tests::pipeline::{eventually, nats_server};
use plimsoll_tests::sim::stream::{Ack, Conditions, DUPLICATE_WINDOW_NS, Message, Stream};

const NAME: &str = "LOG";
/// How long the real broker remembers message ids here: longer than it takes to start again.
const WINDOW: Duration = Duration::from_secs(3);

/// What a stream can be asked and told, and what can happen to it.
trait Log {
    /// Stores a message; absent = a condition did not hold.
    async fn append(&mut self, subject: &str, payload: &str, conditions: &Conditions) -> Result<Option<Ack>>;
    /// When it was created, ns UTC; its first sequence and its last.
    async fn shape(&mut self) -> Result<(i64, u64, u64)>;
    async fn get(&mut self, sequence: u64) -> Result<Option<Message>>;
    async fn last_on(&mut self, subject: &str) -> Result<Option<Message>>;
    /// What a new consumer from a sequence on is given: each with its number.
    async fn deliver(&mut self, from: u64) -> Result<Vec<(u64, Message)>>;
    /// Waits until no message id is remembered.
    async fn outlive_ids(&mut self) -> Result<()>;
    /// Keeps what is there now, for [`Self::go_back`].
    async fn keep(&mut self) -> Result<()>;
    /// The broker dies and comes back with what was kept.
    async fn go_back(&mut self) -> Result<()>;
    async fn trim(&mut self, first: u64) -> Result<()>;
    /// Somebody deletes it and makes it again.
    async fn recreate(&mut self) -> Result<()>;
}

fn id(id: &str) -> Conditions {
    Conditions { id: Some(id.to_owned()), ..Conditions::default() }
}

fn after(last: u64) -> Conditions {
    Conditions { last: Some(last), ..Conditions::default() }
}

fn after_on_subject(last: u64) -> Conditions {
    Conditions { last_on_subject: Some(last), ..Conditions::default() }
}

fn said(message: Option<Message>) -> Option<(u64, String, String)> {
    message.map(|message| (message.sequence, message.subject, String::from_utf8_lossy(&message.payload).into_owned()))
}

fn is(sequence: u64, subject: &str, payload: &str) -> Option<(u64, String, String)> {
    Some((sequence, subject.to_owned(), payload.to_owned()))
}

const FRESH: fn(u64) -> Option<Ack> = |sequence| Some(Ack { sequence, duplicate: false });
const SEEN: fn(u64) -> Option<Ack> = |sequence| Some(Ack { sequence, duplicate: true });

async fn conforms(log: &mut impl Log) -> Result<()> {
    numbers_are_dense_and_times_do_not_go_back(log).await.context("numbers")?;
    a_condition_that_does_not_hold_stores_nothing(log).await.context("conditions")?;
    an_id_is_known_for_a_while(log).await.context("ids")?;
    a_consumer_numbers_what_it_delivers(log).await.context("consumers")?;
    what_was_lost_is_as_if_it_had_never_been(log).await.context("going back")?;
    what_was_trimmed_leaves_its_numbers_used(log).await.context("trimming")?;
    another_one_begins_anew(log).await.context("recreating")
}

async fn numbers_are_dense_and_times_do_not_go_back(log: &mut impl Log) -> Result<()> {
    let (created_ns, _, last) = log.shape().await?;
    ensure!(last == 0, "it is new and ends at {last}");
    ensure!(log.get(1).await?.is_none() && log.last_on("log.a").await?.is_none(), "it is new and holds something");
    for (sequence, payload) in (1..).zip(["one", "two", "two"]) {
        let ack = log.append("log.a", payload, &Conditions::default()).await?;
        ensure!(ack == FRESH(sequence), "{ack:?} instead of {sequence}");
    }
    let shape = log.shape().await?;
    ensure!(shape == (created_ns, 1, 3), "{shape:?}");
    let (second, third) = (log.get(2).await?.context("2")?, log.get(3).await?.context("3")?);
    ensure!(second.stored_at_ns < third.stored_at_ns, "the same bytes stored twice are told apart by their time");
    ensure!(said(Some(second)) == is(2, "log.a", "two") && log.get(4).await?.is_none());
    Ok(())
}

async fn a_condition_that_does_not_hold_stores_nothing(log: &mut impl Log) -> Result<()> {
    for (subject, conditions, expected) in [
        ("log.a", after(2), None),
        ("log.a", after(4), None),
        ("log.b", after_on_subject(3), None),
        ("log.a", after_on_subject(2), None),
        ("log.a", after(3), FRESH(4)),
        ("log.b", after_on_subject(0), FRESH(5)),
        ("log.b", after_on_subject(0), None),
        ("log.a", after_on_subject(4), FRESH(6)),
        ("log.b", after_on_subject(5), FRESH(7)),
    ] {
        let found = log.append(subject, "conditional", &conditions).await?;
        ensure!(found == expected, "{subject}, {conditions:?}: {found:?}, expected {expected:?}");
    }
    let (_, _, last) = log.shape().await?;
    ensure!(last == 7, "it ends at {last}");
    ensure!(said(log.last_on("log.a").await?) == is(6, "log.a", "conditional") && said(log.last_on("log.b").await?) == is(7, "log.b", "conditional"));
    Ok(())
}

async fn an_id_is_known_for_a_while(log: &mut impl Log) -> Result<()> {
    let first = log.append("log.a", "with an id", &id("x")).await?;
    ensure!(first == FRESH(8), "{first:?}");
    for conditions in [id("x"), Conditions { last: Some(8), ..id("x") }] {
        let again = log.append("log.b", "other bytes", &conditions).await?;
        ensure!(again == SEEN(8), "{conditions:?}: {again:?}");
    }
    // Which of the two is looked at first differs between releases of the broker.
    let both = log.append("log.b", "other bytes", &Conditions { last: Some(3), ..id("x") }).await?;
    ensure!(both.is_none() || both == SEEN(8), "{both:?}");
    let refused = log.append("log.a", "refused", &Conditions { last: Some(3), ..id("y") }).await?;
    let later = log.append("log.a", "not seen before", &id("y")).await?;
    ensure!((refused, later) == (None, FRESH(9)), "an id that was refused is not known: {refused:?}, {later:?}");
    log.outlive_ids().await?;
    let stored_again = log.append("log.a", "with an id", &id("x")).await?;
    ensure!(stored_again == FRESH(10), "{stored_again:?}");
    Ok(())
}

async fn a_consumer_numbers_what_it_delivers(log: &mut impl Log) -> Result<()> {
    let delivered = log.deliver(6).await?;
    let numbers: Vec<_> = delivered.iter().map(|(number, message)| (*number, message.sequence)).collect();
    ensure!(numbers == [(1, 6), (2, 7), (3, 8), (4, 9), (5, 10)], "{numbers:?}");
    for (_, message) in delivered {
        let stands = log.get(message.sequence).await?;
        ensure!(stands == Some(message.clone()), "delivered {message:?}, stands {stands:?}");
    }
    Ok(())
}

async fn what_was_lost_is_as_if_it_had_never_been(log: &mut impl Log) -> Result<()> {
    let (created_ns, ..) = log.shape().await?;
    let kept = log.append("log.a", "kept", &id("kept")).await?;
    log.keep().await?;
    let lost = log.append("log.b", "lost", &id("lost")).await?;
    ensure!((kept, lost) == (FRESH(11), FRESH(12)));
    log.go_back().await?;
    let shape = log.shape().await?;
    ensure!(shape == (created_ns, 1, 11), "{shape:?}");
    ensure!(said(log.last_on("log.b").await?) == is(7, "log.b", "conditional") && log.get(12).await?.is_none());
    let (known, fresh) = (log.append("log.a", "kept", &id("kept")).await?, log.append("log.b", "other", &id("lost")).await?);
    ensure!((known, fresh) == (SEEN(11), FRESH(12)), "the id of what is kept is known still, that of what is lost is not: {known:?}, {fresh:?}");
    ensure!(said(log.get(12).await?) == is(12, "log.b", "other"), "the number is given again");
    Ok(())
}

async fn what_was_trimmed_leaves_its_numbers_used(log: &mut impl Log) -> Result<()> {
    let (created_ns, ..) = log.shape().await?;
    log.trim(9).await?;
    ensure!(log.shape().await? == (created_ns, 9, 12) && log.get(8).await?.is_none() && log.get(9).await?.is_some());
    let numbers: Vec<_> = log.deliver(3).await?.iter().map(|(number, message)| (*number, message.sequence)).collect();
    ensure!(numbers == [(1, 9), (2, 10), (3, 11), (4, 12)], "a hole in the sequences is none in the numbers: {numbers:?}");
    log.trim(13).await?;
    let shape = log.shape().await?;
    ensure!(shape == (created_ns, 13, 12), "{shape:?}");
    let (refused, next) = (log.append("log.b", "next", &after(0)).await?, log.append("log.b", "next", &after(12)).await?);
    ensure!((refused, next) == (None, FRESH(13)), "{refused:?}, {next:?}");
    let on_subject = log.append("log.a", "first again", &after_on_subject(0)).await?;
    ensure!(on_subject == FRESH(14), "what is gone is no longer the last on its subject: {on_subject:?}");
    Ok(())
}

async fn another_one_begins_anew(log: &mut impl Log) -> Result<()> {
    let (created_ns, ..) = log.shape().await?;
    log.append("log.a", "with an id", &id("z")).await?;
    log.recreate().await?;
    let (anew_ns, _, last) = log.shape().await?;
    ensure!(anew_ns != created_ns && last == 0, "created at {anew_ns} again, ends at {last}");
    let first = log.append("log.a", "with an id", &id("z")).await?;
    ensure!(first == FRESH(1), "{first:?}");
    Ok(())
}

/// The simulation's.
struct InMemory {
    stream: Stream,
    now_ns: i64,
    kept: u64,
}

impl Log for InMemory {
    async fn append(&mut self, subject: &str, payload: &str, conditions: &Conditions) -> Result<Option<Ack>> {
        Ok(self.stream.append(self.now_ns, subject, payload.as_bytes(), conditions).ok())
    }

    async fn shape(&mut self) -> Result<(i64, u64, u64)> {
        Ok((self.stream.created_at_ns, self.stream.first(), self.stream.last()))
    }

    async fn get(&mut self, sequence: u64) -> Result<Option<Message>> {
        Ok(self.stream.get(sequence).cloned())
    }

    async fn last_on(&mut self, subject: &str) -> Result<Option<Message>> {
        Ok(self.stream.last_on(subject).cloned())
    }

    async fn deliver(&mut self, from: u64) -> Result<Vec<(u64, Message)>> {
        Ok((1..).zip(self.stream.from(from, usize::MAX).cloned()).collect())
    }

    async fn outlive_ids(&mut self) -> Result<()> {
        self.now_ns += DUPLICATE_WINDOW_NS;
        Ok(())
    }

    async fn keep(&mut self) -> Result<()> {
        self.kept = self.stream.last();
        Ok(())
    }

    async fn go_back(&mut self) -> Result<()> {
        self.stream.lose_behind(self.kept);
        Ok(())
    }

    async fn trim(&mut self, first: u64) -> Result<()> {
        self.stream.trim(first);
        Ok(())
    }

    async fn recreate(&mut self) -> Result<()> {
        self.now_ns += 1;
        self.stream = Stream::new(self.now_ns);
        Ok(())
    }
}

/// A nats-server of its own.
struct Real {
    keeper: Keeper,
    url: String,
    store: PathBuf,
    kept: PathBuf,
}

impl Real {
    async fn start(program: PathBuf, folder: &Path) -> Result<Self> {
        let [port] = free_ports()?;
        let store = folder.join("store");
        let arguments = ["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir", &store.display().to_string()];
        let arguments = arguments.map(str::to_owned).to_vec();
        let keeper = Keeper::start(Program { name: "nats".to_owned(), program, arguments }, folder);
        let real = Self { keeper, url: format!("nats://127.0.0.1:{port}"), store, kept: folder.join("kept") };
        real.create().await?;
        Ok(real)
    }

    async fn create(&self) -> Result<()> {
        let config = Config {
            name: NAME.to_owned(),
            subjects: vec!["log.>".to_owned()],
            storage: StorageType::File,
            duplicate_window: WINDOW,
            allow_direct: true,
            ..Config::default()
        };
        self.jetstream().await?.create_stream(config).await?;
        Ok(())
    }

    async fn jetstream(&self) -> Result<jetstream::Context> {
        let client = eventually(async || Ok(async_nats::connect(&self.url).await?)).await?;
        Ok(jetstream::new(client))
    }

    async fn stream(&self) -> Result<jetstream::stream::Stream> {
        let jetstream = self.jetstream().await?;
        eventually(async || Ok(jetstream.get_stream(NAME).await?)).await
    }

    async fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let copied = tokio::process::Command::new("cp").arg("-a").arg(from).arg(to).status().await?;
        ensure!(copied.success(), "cp {} {}", from.display(), to.display());
        Ok(())
    }
}

fn message(found: async_nats::jetstream::message::StreamMessage) -> Message {
    Message { sequence: found.sequence, stored_at_ns: nanos(found.time), subject: found.subject.to_string(), payload: found.payload.to_vec() }
}

fn is_refused(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
}

impl Log for Real {
    async fn append(&mut self, subject: &str, payload: &str, conditions: &Conditions) -> Result<Option<Ack>> {
        let mut message = PublishMessage::build().payload(payload.to_owned().into());
        if let Some(id) = &conditions.id {
            message = message.message_id(id);
        }
        if let Some(last) = conditions.last {
            message = message.expected_last_sequence(last);
        }
        if let Some(last) = conditions.last_on_subject {
            message = message.expected_last_subject_sequence(last);
        }
        match self.jetstream().await?.send_publish(subject.to_owned(), message).await?.await {
            Ok(ack) => Ok(Some(Ack { sequence: ack.sequence, duplicate: ack.duplicate })),
            Err(error) if is_refused(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn shape(&mut self) -> Result<(i64, u64, u64)> {
        let info = self.stream().await?.get_info().await?;
        Ok((nanos(info.created), info.state.first_sequence, info.state.last_sequence))
    }

    async fn get(&mut self, sequence: u64) -> Result<Option<Message>> {
        match self.stream().await?.get_raw_message(sequence).await {
            Ok(found) => Ok(Some(message(found))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn last_on(&mut self, subject: &str) -> Result<Option<Message>> {
        match self.stream().await?.get_last_raw_message_by_subject(subject).await {
            Ok(found) => Ok(Some(message(found))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn deliver(&mut self, from: u64) -> Result<Vec<(u64, Message)>> {
        let stream = self.stream().await?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.fetch().max_messages(1_000).messages().await?;
        let mut delivered = Vec::new();
        while let Some(found) = messages.try_next().await.map_err(|error| anyhow::anyhow!("{error}"))? {
            let info = found.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            let (subject, payload) = (found.subject.to_string(), found.payload.to_vec());
            let stored_at_ns = nanos(info.published);
            delivered.push((info.consumer_sequence, Message { sequence: info.stream_sequence, stored_at_ns, subject, payload }));
        }
        Ok(delivered)
    }

    async fn outlive_ids(&mut self) -> Result<()> {
        tokio::time::sleep(WINDOW * 2).await;
        Ok(())
    }

    async fn keep(&mut self) -> Result<()> {
        // What is written to the files of a killed broker stands: it is copied where it stands.
        self.copy(&self.store, &self.kept).await
    }

    async fn go_back(&mut self) -> Result<()> {
        let life = self.keeper.kill(Duration::from_secs(60)).await?;
        ensure!(self.keeper.killed(life).await?);
        std::fs::remove_dir_all(&self.store)?;
        self.copy(&self.kept, &self.store).await?;
        self.keeper.go_on();
        Ok(())
    }

    async fn trim(&mut self, first: u64) -> Result<()> {
        self.stream().await?.purge().sequence(first).await?;
        Ok(())
    }

    async fn recreate(&mut self) -> Result<()> {
        self.jetstream().await?.delete_stream(NAME).await?;
        self.create().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_in_memory_behaves_as_a_log_does() -> Result<()> {
    let now_ns = 1_000_000_000_000;
    conforms(&mut InMemory { stream: Stream::new(now_ns), now_ns, kept: 0 }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_behaves_as_a_log_does() -> Result<()> {
    let Some(program) = nats_server() else {
        eprintln!("skipped: no nats-server (NATS_SERVER, PATH or .tools); `make test` unpacks one");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    conforms(&mut Real::start(program, folder.path()).await?).await
}
