//! Single outputs of OUT, found by the record that made them: they stand in the order of those records.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use bytes::Bytes;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::out::{CloudEvent, Decided, Distributed, Payload};
use plimsoll_schemas::subject::out_stream;

use crate::error::Error;

/// The record of LOG that made something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MadeBy {
    epoch: u32,
    /// Its sequence.
    pub sequence: u64,
}

impl MadeBy {
    /// What a decision's id says, `<cell>-<log epoch>-<sequence>-<ordinal>`; nothing if it is of another form or cell.
    pub fn of_decision(cell: &CellId, id: &str) -> Option<Self> {
        let mut parts = id.strip_prefix(cell.as_str())?.strip_prefix('-')?.split('-');
        let (epoch, sequence, ordinal) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse::<u32>());
        (ordinal.is_ok() && parts.next().is_none()).then_some(Self { epoch, sequence })
    }

    /// What an event's id says, `<cell>/<log epoch>/<sequence>/<ordinal>`.
    pub fn of_event(event: &CloudEvent) -> Option<Self> {
        let mut parts = event.id.rsplit('/').skip(1);
        let (sequence, epoch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { epoch, sequence })
    }
}

/// The outputs of a cell as they stand now.
pub struct Outputs {
    stream: Stream,
    url: String,
}

impl Outputs {
    /// Those of a cell.
    pub async fn open(jetstream: &Context, cell: &CellId, url: &str) -> Result<Self, Error> {
        match jetstream.get_stream(&out_stream(cell, 0).name).await {
            Ok(stream) => Ok(Self { stream, url: url.to_owned() }),
            Err(error) => Err(failed(url, error.to_string())),
        }
    }

    /// The record that made the newest one; nothing while there is none.
    pub async fn newest(&self) -> Result<Option<MadeBy>, Error> {
        let last = self.stream.cached_info().state.last_sequence;
        let newest = if last > 0 { self.at(last).await? } else { None };
        Ok(newest.and_then(|(event, _)| MadeBy::of_event(&event)))
    }

    /// The decision that has this id, and its exact bytes. Looks at few outputs.
    pub async fn decision(&self, made_by: MadeBy, id: &str) -> Result<Option<(Decision, Bytes)>, Error> {
        let state = &self.stream.cached_info().state;
        let (mut low, mut high) = (state.first_sequence.max(1), state.last_sequence + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // What retention has taken was before everything that is left.
            let is_before = self.at(middle).await?.is_none_or(|(event, _)| MadeBy::of_event(&event) < Some(made_by));
            (low, high) = if is_before { (middle + 1, high) } else { (low, middle) };
        }
        for sequence in low..=state.last_sequence {
            let Some((event, bytes)) = self.at(sequence).await?.filter(|(event, _)| MadeBy::of_event(event) == Some(made_by)) else { break };
            if let Some(decision) = Decision::of(event).filter(|decision| decision.id() == id) {
                return Ok(Some((decision, bytes)));
            }
        }
        Ok(None)
    }

    async fn at(&self, sequence: u64) -> Result<Option<(CloudEvent, Bytes)>, Error> {
        match self.stream.get_raw_message(sequence).await {
            Ok(message) => {
                let event = serde_json::from_slice(&message.payload);
                let event = event.map_err(|error| failed(&self.url, format!("output {sequence} is no event: {error}")))?;
                Ok(Some((event, message.payload)))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(&self.url, error.to_string())),
        }
    }
}

fn failed(url: &str, detail: String) -> Error {
    let what = "cannot read the outputs of the cell".to_owned();
    Error::Broker { what, url: url.to_owned(), detail, hint: "Is its processor running, and is --cell right?" }
}

/// The answer to one request.
pub enum Decision {
    /// To place something.
    Placed(Box<Decided>),
    /// To split work.
    Split(Box<Distributed>),
}

impl Decision {
    fn of(event: CloudEvent) -> Option<Self> {
        match event.data {
            Payload::Decided(decided) => Some(Self::Placed(Box::new(decided))),
            Payload::Distributed(split) => Some(Self::Split(Box::new(split))),
            Payload::Lease(_)
            | Payload::Device(_)
            | Payload::Host(_)
            | Payload::Rejected(_)
            | Payload::Gap(_)
            | Payload::Alert(_)
            | Payload::Policy(_)
            | Payload::Preemption(_)
            | Payload::Pace(_) => None,
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Placed(decided) => &decided.decision_id,
            Self::Split(split) => &split.decision_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_decision_of_this_cell_says_which_record_made_it() {
        let cell: CellId = "east-1".parse().expect("a token");
        let of = |id| MadeBy::of_decision(&cell, id);
        assert_eq!(of("east-1-2-4711-0"), Some(MadeBy { epoch: 2, sequence: 4711 }));
        for other in ["east-1-4711-0", "west-1-2-4711-0", "east-1-2-4711-0-9", "east-1-2-x-0", "job-7", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
