//! Where the effects of one record go: rows and outputs numbered as they come, and the rolling hash over all of them.

use plimsoll_schemas::ctl::Repair;
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::out::{Output, Payload};
use plimsoll_schemas::row::{PlacedRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::LogTime;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

use crate::Effects;

/// Second half of the hash key; the first is the hash so far.
const HASH_KEY: u64 = 0x706c_696d_736f_6c6c;

/// What numbers the outputs of a cell over its whole life.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// Number of the last output.
    pub out_seq: u64,
    /// Number of the last decision.
    pub decision_seq: u64,
    /// Rolling hash of everything emitted.
    pub hash: u64,
}

/// Collects the effects of one record.
pub(crate) struct Emit<'a> {
    cell: &'a CellId,
    effects: &'a mut Effects,
    position: Position,
    logged_at: LogTime,
    row_ordinal: u32,
    out_ordinal: u32,
    chain: Chain,
    hasher: SipHasher13,
    /// Rows only: what is folded stands in OUT already.
    silent: bool,
}

impl<'a> Emit<'a> {
    /// Starts with the record at `position`.
    pub fn new(cell: &'a CellId, effects: &'a mut Effects, position: Position, logged_at: LogTime, chain: Chain) -> Self {
        let mut hasher = SipHasher13::new_with_keys(chain.hash, HASH_KEY);
        hasher.write_u32(position.epoch.0);
        hasher.write_u64(position.sequence);
        hasher.write_i64(logged_at.0);
        Self { cell, effects, position, logged_at, row_ordinal: 0, out_ordinal: 0, chain, hasher, silent: false }
    }

    /// Makes no outputs.
    pub fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    /// The record's place.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The record's log time.
    pub fn logged_at(&self) -> LogTime {
        self.logged_at
    }

    /// The cell.
    pub fn cell(&self) -> &CellId {
        self.cell
    }

    /// Appends a row.
    pub fn row(&mut self, row: Row) {
        let bytes = self.effects.rows.push(PlacedRow { position: self.position, ordinal: self.row_ordinal, row });
        self.hasher.write(bytes);
        self.row_ordinal += 1;
    }

    /// Appends an output under the next number.
    pub fn out(&mut self, to: &OutSubject, data: Payload) {
        if self.silent {
            return;
        }
        self.chain.out_seq += 1;
        let output = Output::new(self.cell, self.chain.out_seq, self.position, self.out_ordinal, self.logged_at, to, data);
        self.out_ordinal += 1;
        self.hasher.write(&output.bytes);
        self.effects.outputs.push(output);
    }

    /// Wishes that an agent is asked for what is missing.
    pub fn repair(&mut self, repair: Repair) {
        self.effects.repairs.push(repair);
    }

    /// The id and number of the next decision: `<cell>-<log epoch>-<sequence>-<ordinal>`, where the ordinal is that of its output.
    pub fn next_decision(&mut self) -> (String, u64) {
        self.chain.decision_seq += 1;
        (self.next_id(), self.chain.decision_seq)
    }

    /// An id for what the next output is about: `<cell>-<log epoch>-<sequence>-<ordinal of the output>`.
    pub fn next_id(&self) -> String {
        format!("{}-{}-{}-{}", self.cell, self.position.epoch.0, self.position.sequence, self.out_ordinal)
    }

    /// Mixes numbers of the state into the hash, so that replicas that count differently differ in hash, and ends the record.
    pub fn finish(mut self, numbers: &[u64]) -> Chain {
        for &number in numbers {
            self.hasher.write_u64(number);
        }
        Chain { hash: self.hasher.finish(), ..self.chain }
    }
}
