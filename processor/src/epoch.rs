//! The log was replaced: recreated, restored from an old copy, or its sequences were given to other messages. Or it has lost records that OUT
//! tells of and nobody has folded them to a commit: then OUT shows something else than the log makes, or more. Nobody decides anything until one record
//! of the new log says where everybody goes on.
//!
//! The record names a state (the last commit of the replica that wrote it, which stands in the archive as a checkpoint), how far the new
//! log is still the one that was folded, and the decisions in OUT that this state has not made. It is appended by compare-and-set, so there
//! is one per replacement. Records behind that place are folded under the new epoch; what was counted before is recognised by its host's
//! numbers and its request's id.

use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use plimsoll_archive::{Archive, Checkpoints};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::NewEpoch;
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::out::{CloudEvent, Output, Payload};
use plimsoll_schemas::record::{Body, decode};
use plimsoll_schemas::subject::LogSubject;

use crate::checkpoint;
use crate::checks::written;
use crate::config::Config;
use crate::error::Error;
use crate::follow::{Mark, Stored};
use crate::restore::{self, Restored};
use crate::role::SILENCE;
use crate::streams::{Streams, nanos};

/// How often to look whether somebody else has said where to go on.
const LOOK: Duration = Duration::from_millis(250);

/// Finds out how far another log is still the same, asking about few places: what is the same at one place is the same before it.
#[derive(Debug)]
pub struct Bisect {
    marks: Vec<(Position, u64)>,
    /// The first so many are the same.
    same: usize,
    /// From here on they are not.
    other: usize,
}

impl Bisect {
    /// Over the marks of the commits, oldest first; those behind the new log's end are not asked about.
    pub fn new(mut marks: Vec<(Position, u64)>, last_sequence: u64) -> Self {
        // An epoch that begins with the stream has a mark before its first message: nothing stands there to be asked for.
        marks.retain(|(position, _)| position.sequence > 0);
        let other = marks.partition_point(|(position, _)| position.sequence <= last_sequence);
        Self { marks, same: 0, other }
    }

    /// The sequence to look at next.
    pub fn ask(&self) -> Option<u64> {
        (self.same < self.other).then(|| self.marks[self.middle()].0.sequence)
    }

    /// What was found there, if anything.
    pub fn tell(&mut self, message: Option<Stored<'_>>) {
        let middle = self.middle();
        let same = message.is_some_and(|message| message.hash() == self.marks[middle].1);
        if same { self.same = middle + 1 } else { self.other = middle }
    }

    /// Up to where the log is the same.
    pub fn same_up_to(&self) -> Option<u64> {
        Some(self.marks[self.same.checked_sub(1)?].0.sequence)
    }

    fn middle(&self) -> usize {
        (self.same + self.other) / 2
    }
}

/// What stands in OUT is no event: something else writes there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{out_seq} is {found}: {detail}")]
pub struct NoEvent {
    /// Under which number it stands.
    pub out_seq: u64,
    /// What stands.
    pub found: String,
    /// Why it is none.
    pub detail: String,
}

/// What to say in the new log: go on from this state, behind `after`, with what stands in OUT. Errors with what stands there and is no event.
pub fn proposal(state: &State, after: u64, out_seq: u64, standing: &[Output]) -> Result<NewEpoch, NoEvent> {
    let event = |output: &Output| {
        serde_json::from_slice::<CloudEvent>(&output.bytes).map_err(|error| NoEvent {
            out_seq: output.out_seq,
            found: String::from_utf8_lossy(&output.bytes).into_owned(),
            detail: error.to_string(),
        })
    };
    let mut adopted = standing.iter().map(event).collect::<Result<Vec<_>, _>>()?;
    // An epoch of which only OUT tells any more has used its number as well.
    let told = adopted.iter().filter_map(|event| event.id.rsplit('/').nth(2)?.parse().ok()).max().unwrap_or(0);
    adopted.retain(|event| matches!(event.data, Payload::Decided(_) | Payload::Distributed(_) | Payload::Lease(_)));
    let (base, base_hash) = (state.position(), written(state.hash()));
    Ok(NewEpoch { epoch: LogEpoch(base.epoch.0.max(told) + 1), base, base_hash, after, out_seq, adopted })
}

/// What stands in OUT under a number.
pub fn standing_output(out_seq: u64, position: Position, subject: &str, payload: &[u8]) -> Output {
    let event = serde_json::from_slice::<serde_json::Value>(payload).unwrap_or_default();
    let id = event["id"].as_str().unwrap_or_default().to_owned();
    Output { out_seq, position, subject: subject.to_owned(), id, bytes: payload.to_vec() }
}

/// Goes on in a log that was replaced. `leads` = this replica was the active one; another waits a little for the active one's word first.
/// `differs` = the log seems to be the one that was folded, and OUT shows something else than it makes. Errors with it, where the active
/// replica goes on without a word: then it is this one that is wrong.
pub async fn settle(config: &Config, streams: &Streams, restored: Restored, leads: bool, differs: Option<Error>) -> Result<Restored, Error> {
    let mut waited = if leads { SILENCE } else { Duration::ZERO };
    let mut restored = restored;
    let mut differs = differs.filter(|_| !leads);
    let ticked = newest_tick(config, streams).await?;
    loop {
        let (newest, sequence) = newest(&config.cell, streams).await?;
        if let Some(new) = newest.filter(|new| new.epoch > restored.mark.position.epoch) {
            return begin(config, streams, restored, &new).await;
        }
        if waited >= SILENCE {
            if let Some(differs) = differs.take()
                && newest_tick(config, streams).await? > ticked
            {
                return Err(differs.refutes("this replica"));
            }
            restored = propose(config, streams, restored, sequence).await?;
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

/// Whether the log says to go on in a newer epoch than this state's.
pub async fn is_behind(config: &Config, streams: &Streams, at: Position) -> Result<bool, Error> {
    Ok(newest(&config.cell, streams).await?.0.is_some_and(|new| new.epoch > at.epoch))
}

/// Where the newest tick stands (0 = there is none).
async fn newest_tick(config: &Config, streams: &Streams) -> Result<u64, Error> {
    match streams.log.get_last_raw_message_by_subject(&LogSubject::Tick.to_subject(&config.cell)).await {
        Ok(message) => Ok(message.sequence),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
        Err(error) => Err(failed(streams, "reading the newest tick", error.to_string())),
    }
}

/// The newest word about where to go on, and the sequence it stands at (0 = there is none).
pub async fn newest(cell: &CellId, streams: &Streams) -> Result<(Option<NewEpoch>, u64), Error> {
    let subject = LogSubject::Epoch.to_subject(cell);
    match streams.log.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => {
            let body = decode(cell, &message.subject, &message.payload);
            let new = if let Body::Epoch(new) = body { Some(*new) } else { None };
            Ok((new, message.sequence))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((None, 0)),
        Err(error) => Err(failed(streams, "reading its newest epoch", error.to_string())),
    }
}

/// Says where to go on: from the own last commit. Whether it was first, the next look shows. Before that everything that this state has made
/// stands in OUT: whoever has not heard yet of the new epoch may publish behind it, but nothing else in its place.
async fn propose(config: &Config, streams: &Streams, restored: Restored, newest: u64) -> Result<Restored, Error> {
    publish_the_rest(streams, &restored).await?;
    let archive = restore::archive(config)?;
    checkpoint::take(&archive, &restored.store, &config.state_path(), &config.cell, &config.replica()).await.map_err(Error::Checkpoint)?;
    let after = same_up_to(streams, &restored).await?;
    let known = restored.state.summary().out_seq;
    let out_seq = last_of_out(streams).await?.max(known);
    let standing = standing(streams, restored.mark.position, known + 1..=out_seq).await?;
    let stream = || streams.out.cached_info().config.name.clone();
    let strange = |strange: NoEvent| Error::StreamUnusable { stream: stream(), what: "reading an event", detail: strange.to_string() };
    let new = proposal(&restored.state, after, out_seq, &standing).map_err(strange)?;
    tracing::error!(epoch = new.epoch.0, base = %new.base, after, adopted = new.adopted.len(), "the log was replaced: everybody goes on from this state");
    let payload = serde_json::to_vec(&new).expect("an epoch is plain data");
    let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(newest);
    let published = async { streams.context.send_publish(LogSubject::Epoch.to_subject(&config.cell), message).await?.await };
    if let Err(error) = published.await {
        tracing::warn!(%error, "another replica was first, or the broker is away");
    }
    Ok(restored)
}

async fn publish_the_rest(streams: &Streams, restored: &Restored) -> Result<(), Error> {
    let last = last_of_out(streams).await?;
    for output in restored.store.outputs_from(last + 1) {
        let output = output?;
        let message = PublishMessage::build().payload(output.bytes.into()).message_id(&output.id).expected_last_sequence(output.out_seq - 1);
        let published = async { streams.context.send_publish(output.subject, message).await?.await };
        published.await.map_err(|error| out_failed(streams, "publishing what the last commit made", error.to_string()))?;
    }
    Ok(())
}

/// Up to where the new log is the one that was folded.
async fn same_up_to(streams: &Streams, restored: &Restored) -> Result<u64, Error> {
    let info = streams.log.get_info().await.map_err(|error| failed(streams, "asking for it", error.to_string()))?;
    let created_at_ns = nanos(info.created);
    let first = info.state.first_sequence.max(1);
    if created_at_ns != restored.mark.created_at_ns {
        return Ok(first - 1);
    }
    let marks = restored.store.marks(restored.mark.position.epoch).collect::<Result<Vec<_>, _>>()?;
    let mut bisect = Bisect::new(marks, info.state.last_sequence);
    while let Some(sequence) = bisect.ask() {
        match streams.log.get_raw_message(sequence).await {
            Ok(message) => bisect.tell(Some(Stored::from(&message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => bisect.tell(None),
            Err(error) => return Err(failed(streams, "comparing it", error.to_string())),
        }
    }
    Ok(bisect.same_up_to().unwrap_or(0).max(first - 1))
}

/// Where OUT ends.
pub async fn last_of_out(streams: &Streams) -> Result<u64, Error> {
    let info = streams.out.get_info().await.map_err(|error| out_failed(streams, "asking for it", error.to_string()))?;
    Ok(info.state.last_sequence)
}

/// What stands in OUT under these numbers; what retention has taken is left out.
async fn standing(streams: &Streams, position: Position, numbers: RangeInclusive<u64>) -> Result<Vec<Output>, Error> {
    let mut standing = Vec::new();
    for out_seq in numbers {
        match streams.out.get_raw_message(out_seq).await {
            Ok(message) => standing.push(standing_output(out_seq, position, &message.subject, &message.payload)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(out_failed(streams, "reading what stands there", error.to_string())),
        }
    }
    Ok(standing)
}

/// Goes on where the record says, from the own state if it is the one, else from its checkpoint.
async fn begin(config: &Config, streams: &Streams, restored: Restored, new: &NewEpoch) -> Result<Restored, Error> {
    let own = (restored.state.position(), written(restored.state.hash()));
    let restored = if own == (new.base, new.base_hash.clone()) { restored } else { base(config, restored, new).await? };
    if restored.mark.position.epoch >= new.epoch { Ok(restored) } else { go_on(streams, restored, new).await }
}

/// Begins the epoch in the state that it names. Errors if this is another one.
pub async fn go_on(streams: &Streams, restored: Restored, new: &NewEpoch) -> Result<Restored, Error> {
    let info = streams.log.get_info().await.map_err(|error| failed(streams, "asking for it", error.to_string()))?;
    let at_mark = hash_at(streams, new.after).await?;
    let mark = Mark {
        position: Position { epoch: new.epoch, sequence: new.after },
        created_at_ns: nanos(info.created),
        message_hash: at_mark,
        logged_at: restored.mark.logged_at,
    };
    tracing::warn!(epoch = new.epoch.0, base = %new.base, after = new.after, "going on in the new log");
    let new = new.clone();
    // Kept as if this state had made them: OUT may go back and need them again.
    let known = restored.state.summary().out_seq;
    let adopted = standing(streams, mark.position, known + 1..=new.out_seq).await?;
    restore::blocking(move || enter(restored, mark, &new, &adopted)).await
}

/// The hash of the message at a sequence; 0 where there is none.
async fn hash_at(streams: &Streams, sequence: u64) -> Result<u64, Error> {
    if sequence == 0 {
        return Ok(0);
    }
    match streams.log.get_raw_message(sequence).await {
        Ok(message) => Ok(Stored::from(&message).hash()),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
        Err(error) => Err(failed(streams, "reading where the epoch begins", error.to_string())),
    }
}

/// The state that the record names, from its checkpoint; or a newer one that has gone on from there.
async fn base(config: &Config, own: Restored, new: &NewEpoch) -> Result<Restored, Error> {
    if new.base == Position::default() {
        return restore::anew(config, own).await;
    }
    let archive: Archive = restore::archive(config)?;
    let positions = checkpoint::list(&archive).await.map_err(Error::Checkpoint)?;
    let fits = |position: &&Position| **position == new.base || position.epoch >= new.epoch;
    let position = *positions.iter().find(fits).ok_or(Error::NoEpochBase { epoch: new.epoch.0, base: new.base, archive: config.archive_url() })?;
    let found = Checkpoints::of(&archive).read(position).await.map_err(|error| Error::Checkpoint(error.into()))?;
    let into = checkpoint::beside(&config.state_path(), ".restoring");
    checkpoint::remove(&into).map_err(Error::Checkpoint)?;
    checkpoint::load(&archive, &found, &into).await.map_err(Error::Checkpoint)?;
    restore::take_over(config, own, &found, into).await
}

/// Begins the epoch in the state and commits that.
fn enter(restored: Restored, mark: Mark, new: &NewEpoch, adopted: &[Output]) -> Result<Restored, Error> {
    let Restored { store, mut state, commit, .. } = restored;
    let mut effects = Effects::default();
    state.begin_epoch(new, &mut effects)?;
    let commit = mark.commit(&state, commit.and_then(|commit| commit.sealed));
    store.commit(&commit, &state.take_dirty(), effects.rows.encoded().iter(), adopted)?;
    Ok(Restored { store, state, mark, commit: Some(commit) })
}

fn out_failed(streams: &Streams, what: &'static str, detail: String) -> Error {
    Error::Stream { stream: streams.out.cached_info().config.name.clone(), what, detail }
}

fn failed(streams: &Streams, what: &'static str, detail: String) -> Error {
    Error::Stream { stream: streams.log.cached_info().config.name.clone(), what, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_questions_find_where_two_logs_part() {
        let stored = |n: u64| Stored { at_ns: n as i64, subject: "s", payload: b"the same each time" };
        let marks: Vec<_> = (0..=1_000).map(|n| (Position { epoch: LogEpoch(0), sequence: n * 10 }, stored(n).hash())).collect();
        for (parts, last) in [(0, 9_000), (1, 9_000), (777, 9_000), (1_000, 20_000), (1_000, 5_000)] {
            let mut bisect = Bisect::new(marks.clone(), last);
            let mut questions = 0;
            while let Some(sequence) = bisect.ask() {
                let n = sequence / 10;
                assert!(n > 0, "the broker refuses sequence 0");
                bisect.tell((n <= parts).then(|| stored(n)));
                questions += 1;
            }
            let same = parts.min(last / 10);
            assert_eq!(bisect.same_up_to(), (same > 0).then_some(same * 10), "{parts} {last}");
            assert!(questions <= 11, "{questions}");
        }
    }
}
