//! OUT is one chain, decided without I/O: output n is message n of the stream, each published with the number it must follow.
//!
//! So what stands in OUT is always a prefix of what the fold produced, whoever wrote it: any number of replicas may run this at once, and
//! only one of them gets each output in. A refusal or a time-out is never retried blindly: the stream's end is asked for, what stands there
//! is compared byte for byte, and publishing goes on behind it. A standby does the same without publishing.
//!
//! Whoever folds something else, or is no replica, breaks this for a moment: where a foreign message takes the place of the first of several
//! outputs under way, the others are stored behind it. So an output is known to stand only once all before it are, and those that were not
//! known to stand are each compared, also after a restart.

use std::collections::VecDeque;
use std::sync::Arc;

use plimsoll_schemas::out::Output;

/// Publishes under way at once.
const PUBLISHES_MAX: usize = 256;
/// Comparisons under way at once.
const READS_MAX: usize = 256;

/// What to do next. Answers are given back with the number of their attempt; those of an attempt that was given up are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Do {
    /// Ask for OUT's last sequence. `after_failure` = wait a little first: asking at full speed helps nobody.
    AskEnd {
        /// The attempt.
        attempt: u64,
        /// Whether the last attempt got nowhere.
        after_failure: bool,
    },
    /// Read the message that stands where this output belongs.
    Read {
        /// The attempt.
        attempt: u64,
        /// The output to compare with.
        output: Arc<Output>,
    },
    /// Publish, expecting `out_seq - 1` to be the last sequence.
    Publish {
        /// The attempt.
        attempt: u64,
        /// The output.
        output: Arc<Output>,
    },
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// OUT ends at this sequence.
    End(u64),
    /// There is no OUT.
    Gone,
    /// This stands there: subject and payload.
    Stands {
        /// Which output was compared.
        out_seq: u64,
        /// Subject found.
        subject: String,
        /// Bytes found.
        payload: bytes::Bytes,
    },
    /// Nothing stands there any more: retention took it.
    Trimmed {
        /// Which output was to be compared.
        out_seq: u64,
    },
    /// An output was stored under this sequence.
    Stored {
        /// Which output was published.
        out_seq: u64,
        /// Where it stands.
        sequence: u64,
    },
    /// Refused, timed out, or out of reach: nobody knows what stands.
    Failed,
}

/// What must not be repaired silently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// OUT holds something else than the fold produced.
    #[error("output {out_seq} stands as {found}, the fold produced {produced}")]
    Differs {
        /// Which output.
        out_seq: u64,
        /// What stands, shortened.
        found: String,
        /// What was produced, shortened.
        produced: String,
    },
    /// OUT ends before what it was known to hold.
    #[error("OUT ends at {last}, it held {held}")]
    WentBack {
        /// Its last sequence.
        last: u64,
        /// What it was known to hold.
        held: u64,
    },
    /// OUT gave an output another number than its own.
    #[error("output {out_seq} was stored as sequence {sequence}")]
    Misplaced {
        /// The output.
        out_seq: u64,
        /// What the stream says.
        sequence: u64,
    },
}

/// How much of what stands is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: the end has to be asked for, or was asked for.
    Unsure { asked: bool },
    /// OUT ends there; what was produced up to there is compared.
    EndsAt(u64),
}

/// One replica's end of the chain.
#[derive(Debug)]
pub struct Chain {
    /// Outputs not known to stand, in order, dense.
    pending: VecDeque<Arc<Output>>,
    /// For the first of them an attempt is under way.
    busy: usize,
    /// Answers that came before those of earlier outputs: whether the output at this place of `pending` is known to stand.
    known: Known,
    attempt: u64,
    failed: bool,
    active: bool,
    /// OUT is known to hold the right outputs up to here.
    standing: u64,
}

impl Chain {
    /// A chain of a replica that knows OUT to be right up to `standing` and publishes only once told to.
    pub fn new(standing: u64) -> Self {
        Self { pending: VecDeque::new(), busy: 0, known: Known::Unsure { asked: false }, attempt: 0, failed: false, active: false, standing }
    }

    /// Takes the next output.
    pub fn push(&mut self, output: Arc<Output>) {
        self.pending.push_back(output);
    }

    /// Outputs not known to stand.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether everything produced is known to stand.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// OUT is known to be right up to this output.
    pub fn standing(&self) -> u64 {
        self.standing
    }

    /// Whether this replica publishes.
    pub fn set_active(&mut self, active: bool) {
        if self.active != active {
            self.active = active;
            self.give_up();
        }
    }

    /// Looks again where OUT ends, if nothing is under way: how a standby follows what the active replica publishes, and how anybody
    /// who has nothing to say notices that OUT went back.
    pub fn look(&mut self) {
        let idle = self.busy == 0 && (!self.active || self.is_empty());
        if idle && matches!(self.known, Known::EndsAt(_)) {
            self.known = Known::Unsure { asked: false };
        }
    }

    /// What to do now; `None` until something is heard, pushed or changed.
    pub fn due(&mut self) -> Option<Do> {
        match self.known {
            Known::Unsure { asked: true } => None,
            Known::Unsure { asked: false } => {
                self.known = Known::Unsure { asked: true };
                Some(Do::AskEnd { attempt: self.attempt, after_failure: self.failed })
            }
            Known::EndsAt(last) => {
                let output = self.pending.get(self.busy)?.clone();
                let attempt = self.attempt;
                if output.out_seq <= last && self.busy < READS_MAX {
                    self.busy += 1;
                    return Some(Do::Read { attempt, output });
                }
                // Nothing is published before everything that stands was compared.
                let comparing = self.pending.front().is_some_and(|first| first.out_seq <= last);
                if self.active && !comparing && self.busy < PUBLISHES_MAX {
                    self.busy += 1;
                    return Some(Do::Publish { attempt, output });
                }
                None
            }
        }
    }

    /// Takes an answer. Answers of one attempt about outputs must come in the order in which they were asked for.
    pub fn heard(&mut self, attempt: u64, heard: Heard) -> Result<(), Broken> {
        if attempt != self.attempt {
            return Ok(());
        }
        match heard {
            Heard::End(last) => {
                if last < self.standing {
                    return Err(Broken::WentBack { last, held: self.standing });
                }
                self.known = Known::EndsAt(last);
                Ok(())
            }
            Heard::Gone => Err(Broken::WentBack { last: 0, held: self.standing }),
            Heard::Stands { out_seq, subject, payload } => {
                let Some(first) = self.pending.front().filter(|first| first.out_seq == out_seq) else { return Ok(()) };
                if *first.subject != *subject || first.bytes != payload {
                    let (found, produced) = (shown(&subject, &payload), shown(&first.subject, &first.bytes));
                    return Err(Broken::Differs { out_seq, found, produced });
                }
                self.stands(out_seq);
                Ok(())
            }
            Heard::Trimmed { out_seq } => {
                self.stands(out_seq);
                Ok(())
            }
            Heard::Stored { out_seq, sequence } if sequence == out_seq => {
                self.stands(out_seq);
                if let Known::EndsAt(last) = &mut self.known {
                    *last = (*last).max(out_seq);
                }
                Ok(())
            }
            Heard::Stored { out_seq, sequence } => Err(Broken::Misplaced { out_seq, sequence }),
            Heard::Failed => {
                self.give_up();
                self.failed = true;
                Ok(())
            }
        }
    }

    fn stands(&mut self, out_seq: u64) {
        if self.pending.front().is_some_and(|first| first.out_seq == out_seq) {
            self.pending.pop_front();
            self.busy = self.busy.saturating_sub(1);
            self.standing = out_seq;
            self.failed = false;
        }
    }

    /// Forgets every attempt under way: what stands must be found out anew.
    fn give_up(&mut self) {
        self.attempt += 1;
        self.busy = 0;
        self.known = Known::Unsure { asked: false };
    }
}

fn shown(subject: &str, bytes: &[u8]) -> String {
    const BYTES: usize = 600;
    format!("{subject} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::id::Position;

    fn output(out_seq: u64) -> Arc<Output> {
        let bytes = format!("output {out_seq}").into_bytes();
        Arc::new(Output { out_seq, position: Position::default(), subject: "out".to_owned(), id: out_seq.to_string(), bytes })
    }

    /// A replica with outputs 1..=n, and a stream that holds what it is told to.
    struct Stage {
        chain: Chain,
        stream: Vec<Vec<u8>>,
    }

    impl Stage {
        fn new(outputs: u64, standing: &[&str], active: bool) -> Self {
            let mut chain = Chain::new(0);
            (1..=outputs).for_each(|n| chain.push(output(n)));
            chain.set_active(active);
            Self { chain, stream: standing.iter().map(|bytes| bytes.as_bytes().to_vec()).collect() }
        }

        /// Does everything the chain asks for until it asks for nothing.
        fn run(&mut self) -> Result<(), Broken> {
            while let Some(next) = self.chain.due() {
                let (attempt, heard) = match next {
                    Do::AskEnd { attempt, .. } => (attempt, Heard::End(self.stream.len() as u64)),
                    Do::Read { attempt, output } => {
                        let payload = self.stream[output.out_seq as usize - 1].clone().into();
                        (attempt, Heard::Stands { out_seq: output.out_seq, subject: "out".to_owned(), payload })
                    }
                    Do::Publish { attempt, output } if output.out_seq == self.stream.len() as u64 + 1 => {
                        self.stream.push(output.bytes.clone());
                        (attempt, Heard::Stored { out_seq: output.out_seq, sequence: output.out_seq })
                    }
                    Do::Publish { attempt, .. } => (attempt, Heard::Failed),
                };
                self.chain.heard(attempt, heard)?;
            }
            Ok(())
        }
    }

    #[test]
    fn what_stands_is_compared_and_the_rest_published_once() {
        for standing in [&[][..], &["output 1"], &["output 1", "output 2", "output 3"]] {
            let mut stage = Stage::new(3, standing, true);
            stage.run().unwrap();
            assert_eq!(stage.stream, [b"output 1", b"output 2", b"output 3"]);
            assert_eq!((stage.chain.standing(), stage.chain.len()), (3, 0));
        }
    }

    #[test]
    fn a_standby_compares_and_publishes_nothing_until_it_is_active() {
        let mut stage = Stage::new(3, &["output 1"], false);
        stage.run().unwrap();
        assert_eq!((stage.stream.len(), stage.chain.standing()), (1, 1));
        stage.stream.push(b"output 2".to_vec());
        stage.chain.look();
        stage.run().unwrap();
        assert_eq!((stage.stream.len(), stage.chain.standing()), (2, 2));
        stage.chain.set_active(true);
        stage.run().unwrap();
        assert_eq!((stage.stream.len(), stage.chain.standing()), (3, 3));
    }

    #[test]
    fn a_shorter_stream_is_noticed_by_one_that_has_nothing_to_say() {
        for active in [true, false] {
            let mut stage = Stage::new(2, &["output 1", "output 2"], active);
            stage.run().unwrap();
            stage.stream.pop();
            stage.chain.look();
            assert_eq!(stage.run(), Err(Broken::WentBack { last: 1, held: 2 }));
        }
    }

    #[test]
    fn another_output_a_shorter_stream_and_another_number_are_told_apart() {
        assert!(matches!(Stage::new(2, &["output 1", "else"], true).run(), Err(Broken::Differs { out_seq: 2, .. })));
        let mut stage = Stage::new(2, &[], true);
        stage.run().unwrap();
        stage.stream.pop();
        stage.chain.push(output(3));
        assert_eq!(stage.run(), Err(Broken::WentBack { last: 1, held: 2 }));
        let mut chain = Chain::new(6);
        assert_eq!(chain.heard(0, Heard::Stored { out_seq: 7, sequence: 9 }), Err(Broken::Misplaced { out_seq: 7, sequence: 9 }));
    }

    #[test]
    fn outputs_stored_behind_a_foreign_message_are_not_known_to_stand_and_the_message_is_found() {
        let mut chain = Chain::new(0);
        (1..=3).for_each(|n| chain.push(output(n)));
        chain.set_active(true);
        let Some(Do::AskEnd { attempt, .. }) = chain.due() else { panic!("the end comes first") };
        chain.heard(attempt, Heard::End(0)).unwrap();
        while chain.due().is_some() {}
        // The first is refused, for the foreign message stands there; the others follow the number that they expect.
        chain.heard(attempt, Heard::Failed).unwrap();
        chain.heard(attempt, Heard::Stored { out_seq: 2, sequence: 2 }).unwrap();
        chain.heard(attempt, Heard::Stored { out_seq: 3, sequence: 3 }).unwrap();
        assert_eq!((chain.standing(), chain.len()), (0, 3));
        let Some(Do::AskEnd { attempt, .. }) = chain.due() else { panic!("the end comes first") };
        chain.heard(attempt, Heard::End(3)).unwrap();
        assert_eq!(chain.due(), Some(Do::Read { attempt, output: output(1) }));
        let foreign = Heard::Stands { out_seq: 1, subject: "out".to_owned(), payload: "foreign".into() };
        assert!(matches!(chain.heard(attempt, foreign), Err(Broken::Differs { out_seq: 1, .. })));
    }

    #[test]
    fn after_a_failure_nothing_is_published_before_the_end_was_asked_for() {
        let mut chain = Chain::new(0);
        (1..=3).for_each(|n| chain.push(output(n)));
        chain.set_active(true);
        let Some(Do::AskEnd { attempt, after_failure: false }) = chain.due() else { panic!("the end comes first") };
        chain.heard(attempt, Heard::End(0)).unwrap();
        for n in 1..=3 {
            assert_eq!(chain.due(), Some(Do::Publish { attempt, output: output(n) }));
        }
        assert_eq!(chain.due(), None);
        chain.heard(attempt, Heard::Failed).unwrap();
        let Some(Do::AskEnd { attempt: second, after_failure: true }) = chain.due() else { panic!("the end comes first") };
        chain.heard(attempt, Heard::Stored { out_seq: 1, sequence: 1 }).unwrap();
        assert_eq!((chain.due(), chain.len()), (None, 3), "an answer to what was given up says nothing");
        chain.heard(second, Heard::End(1)).unwrap();
        assert_eq!(chain.due(), Some(Do::Read { attempt: second, output: output(1) }));
        assert_eq!(chain.due(), None, "what stands is compared before anything is published");
    }
}
