//! What of the state survives a restart: entries of numbered tables, keys in big-endian order, values in postcard after a version byte.
//!
//! | table | key | value |
//! |---|---|---|
//! | meta | `state`, `clock`, `announcer`, `buckets`, `mix`, `queue` | one struct each |
//! | hosts | host 4 | host |
//! | devices | device 4, part 1 (0 facts, 1 pulse) | facts or pulse |
//! | panes | device 4, kind 1, tier 1, start 8 | open pane, late part or number of parts |
//! | ranges | host 4, epoch 8, class 1 | ranges and gaps |
//! | requests | number 8 | request seen |
//! | leases | fence 8 | lease |
//! | waiting | priority 4 (negated), number 8 | request that waits |
//! | policies | `<kind>/<name>` | what is in force |
//! | alerts | subject 5, rule 4; or `rules`, `counted` | a watched rule; one struct each |
//! | paces | `cell` or `tenant/<id>` | a pace and where it stands |

use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::pace::{parse_scope, scope_name};
use plimsoll_schemas::row::Tier;
use serde::Serialize;
use serde::de::DeserializeOwned;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;

use crate::alerts::Subject;
use crate::ranges::{Entry as RangesEntry, Ranges};
use crate::registry::{Device, Facts, Host, LatePane, Pulse, Recent};
use crate::ring::Order;
use crate::timers::Timer;
use crate::waiting::{Turn, Waiting, turn};
use crate::window::Pane;
use crate::{State, encode};

/// Version of everything that is stored: the shape of state entries, rows and outputs. It grows with every change of shape; a store of
/// an older format is set aside and rebuilt, one of a newer format is refused. What the fold *does* has a version of its own,
/// [`crate::LOGIC`].
pub const FORMAT: u32 = 13;
/// First byte of every value.
const VERSION: u8 = FORMAT as u8;

/// One durable entry; a value of `None` deletes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: StateTable,
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The value's bytes; absent = deleted.
    pub value: Option<Vec<u8>>,
}

/// A table of durable state: one column family of the store each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StateTable {
    /// Counters, clocks, settings.
    Meta = 1,
    /// Hosts.
    Hosts = 2,
    /// GPUs with their current sample.
    Devices = 3,
    /// Open panes.
    Panes = 4,
    /// Which sequences were folded.
    Ranges = 5,
    /// Requests, for idempotence.
    Requests = 6,
    /// Leases.
    Leases = 7,
    /// Requests that wait.
    Waiting = 8,
    /// What is in force.
    Policies = 20,
    /// Alert rules and where they stand.
    Alerts = 21,
    /// Paces and where they stand.
    Paces = 22,
}

impl StateTable {
    /// Every table.
    pub const ALL: &[StateTable] = &[
        Self::Meta,
        Self::Hosts,
        Self::Devices,
        Self::Panes,
        Self::Ranges,
        Self::Requests,
        Self::Leases,
        Self::Waiting,
        Self::Policies,
        Self::Alerts,
        Self::Paces,
    ];

    /// The name of its column family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Hosts => "hosts",
            Self::Devices => "devices",
            Self::Panes => "panes",
            Self::Ranges => "ranges",
            Self::Requests => "requests",
            Self::Leases => "leases",
            Self::Waiting => "waiting",
            Self::Policies => "policies",
            Self::Alerts => "alerts",
            Self::Paces => "paces",
        }
    }
}

/// Stored state that cannot be read back: the store is set aside and rebuilt from the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored state is unreadable: table {table}, key {key}: {detail}")]
pub struct RestoreError {
    /// Table.
    pub table: &'static str,
    /// Key, hexadecimal.
    pub key: String,
    /// What was wrong.
    pub detail: String,
}

/// What of a window an entry of [`StateTable::Panes`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Open = 1,
    Late = 2,
    Parts = 3,
}

fn pane_key(device: u32, kind: Kind, tier: Tier, start_ns: i64) -> Vec<u8> {
    let mut key = [0; 14];
    key[..4].copy_from_slice(&device.to_be_bytes());
    (key[4], key[5]) = (kind as u8, tier as u8);
    key[6..].copy_from_slice(&start_ns.to_be_bytes());
    key.to_vec()
}

/// Entries being written. Values are written into one buffer and copied out, so that each is allocated once, in its size.
#[derive(Default)]
struct Writer {
    entries: Vec<Entry>,
    buffer: Vec<u8>,
}

impl Writer {
    fn put<T: Serialize>(&mut self, table: StateTable, key: Vec<u8>, value: &T) {
        self.buffer.clear();
        self.buffer.push(VERSION);
        self.buffer = encode::append(value, std::mem::take(&mut self.buffer));
        self.entries.push(Entry { table, key, value: Some(self.buffer.as_slice().to_vec()) });
    }

    fn delete(&mut self, table: StateTable, key: Vec<u8>) {
        self.entries.push(Entry { table, key, value: None });
    }

    fn put_or_delete<T: Serialize>(&mut self, table: StateTable, key: Vec<u8>, value: Option<&T>) {
        match value {
            Some(value) => self.put(table, key, value),
            None => self.delete(table, key),
        }
    }
}

/// A hash over whole stored states: SipHash-2-4 of every table, key and value in order. Unlike the rolling [`State::hash`] it shows
/// what has not led to a row or an output yet.
#[derive(Debug, Clone)]
pub struct Digest(SipHasher24);

impl Default for Digest {
    fn default() -> Self {
        Self(SipHasher24::new_with_key(b"plimsoll-stored!"))
    }
}

impl Digest {
    /// Takes the next entry, in the order of [`StateTable::ALL`] and of the keys.
    pub fn add(&mut self, table: StateTable, key: &[u8], value: &[u8]) {
        self.0.write_u8(table as u8);
        for bytes in [key, value] {
            self.0.write_u64(bytes.len() as u64);
            self.0.write(bytes);
        }
    }

    /// The hash of all entries taken.
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

fn watched_key(subject: Subject, rule: u32) -> Vec<u8> {
    let (kind, number) = match subject {
        Subject::Cell => (0u8, 0),
        Subject::Host(number) => (1, number),
        Subject::Gpu(number) => (2, number),
    };
    [&[kind][..], &number.to_be_bytes(), &rule.to_be_bytes()].concat()
}

impl State {
    /// The durable entries that changed since this was last called, for one write batch: at most one per key. Applied in any order
    /// to what earlier calls gave, they are the whole state at [`State::position`].
    pub fn take_dirty(&mut self) -> Vec<Entry> {
        let mut writer = Writer::default();
        writer.put(StateTable::Meta, b"state".to_vec(), &self.meta);
        writer.put(StateTable::Meta, b"clock".to_vec(), &self.clock);
        writer.put(StateTable::Meta, b"announcer".to_vec(), &self.announcer);
        if std::mem::take(&mut self.buckets_dirty) {
            writer.put(StateTable::Meta, b"buckets".to_vec(), &self.buckets);
        }
        if std::mem::take(&mut self.mix_dirty) {
            writer.put(StateTable::Meta, b"mix".to_vec(), &self.mix);
        }
        writer.put(StateTable::Meta, b"queue".to_vec(), &self.queue.order);
        for turn in std::mem::take(&mut self.queue.dirty) {
            writer.put_or_delete(StateTable::Waiting, turn_key(turn), self.queue.by_turn.get(&turn));
        }
        self.take_alerts(&mut writer);
        self.take_hosts(&mut writer);
        self.take_devices(&mut writer);
        for fence in sorted(std::mem::take(&mut self.leases.dirty)) {
            let key = fence.to_be_bytes().to_vec();
            match self.leases.by_fence.get_mut(&fence) {
                Some(lease) => {
                    lease.dirty = false;
                    writer.put(StateTable::Leases, key, lease);
                }
                None => writer.delete(StateTable::Leases, key),
            }
        }
        for number in sorted(std::mem::take(&mut self.requests.dirty)) {
            let key = number.to_be_bytes().to_vec();
            match self.requests.by_number.get(&number) {
                Some(seen) => writer.put(StateTable::Requests, key, seen),
                None => writer.delete(StateTable::Requests, key),
            }
        }
        writer.entries
    }

    fn take_alerts(&mut self, writer: &mut Writer) {
        for key in std::mem::take(&mut self.policies.dirty) {
            let value = self.policies.by_key.get(&key);
            writer.put_or_delete(StateTable::Policies, key.into_bytes(), value);
        }
        writer.put(StateTable::Alerts, b"counted".to_vec(), &self.alerts.counted);
        if std::mem::take(&mut self.alerts.rules_dirty) {
            writer.put(StateTable::Alerts, b"rules".to_vec(), &self.alerts.rules);
        }
        for (subject, rule) in sorted(std::mem::take(&mut self.alerts.dirty)) {
            writer.put_or_delete(StateTable::Alerts, watched_key(subject, rule), self.alerts.watched.get((subject, rule)));
        }
        for tenant in std::mem::take(&mut self.paces.dirty) {
            writer.put_or_delete(StateTable::Paces, scope_name(tenant.as_ref()).into_bytes(), self.paces.by_tenant.get(&tenant));
        }
    }

    fn take_hosts(&mut self, writer: &mut Writer) {
        for (host, epoch, class) in std::mem::take(&mut self.dropped_ranges) {
            writer.delete(StateTable::Ranges, ranges_key(host, epoch, class));
        }
        for number in sorted(std::mem::take(&mut self.registry.dirty_hosts)) {
            let host = &mut self.registry.hosts[number as usize];
            host.dirty = false;
            host.forgotten_epoch = host.ranges.forgotten_epoch;
            writer.put(StateTable::Hosts, number.to_be_bytes().to_vec(), host);
            for entry in host.ranges.entries.iter_mut().filter(|entry| entry.dirty) {
                entry.dirty = false;
                writer.put(StateTable::Ranges, ranges_key(number, entry.epoch, entry.class), &entry.ranges);
            }
        }
    }

    fn take_devices(&mut self, writer: &mut Writer) {
        for number in sorted(std::mem::take(&mut self.registry.dirty_devices)) {
            let device = &mut self.registry.devices[number as usize];
            device.listed = false;
            let [a, b, c, d] = number.to_be_bytes();
            let key = |part: u8| vec![a, b, c, d, part];
            if device.facts_dirty {
                device.facts_are_stored();
                writer.put(StateTable::Devices, key(0), &device.facts);
            }
            if std::mem::take(&mut device.pulse_dirty) {
                writer.put(StateTable::Devices, key(1), &(&device.pulse, device.recent.current()));
            }
            let open = device.open.iter_mut().map(|pane| (Tier::TenSeconds, pane));
            let minute = device.minute.as_deref_mut().map(|pane| (Tier::Minute, pane));
            let coarse = minute.into_iter().chain(device.hour.as_deref_mut().map(|pane| (Tier::Hour, pane)));
            for (tier, pane) in open.chain(coarse).filter(|(_, pane)| pane.dirty) {
                (pane.dirty, pane.stored) = (false, true);
                device.gone.retain(|gone| *gone != (Kind::Open, tier, pane.start_ns));
                pane.stats.settle();
                writer.put(StateTable::Panes, pane_key(number, Kind::Open, tier, pane.start_ns), pane);
            }
            for (&(tier, start_ns), late) in device.late.iter_mut().filter(|(_, late)| late.pane.dirty) {
                (late.pane.dirty, late.pane.stored) = (false, true);
                device.gone.retain(|gone| *gone != (Kind::Late, tier, start_ns));
                late.pane.stats.settle();
                writer.put(StateTable::Panes, pane_key(number, Kind::Late, tier, start_ns), late);
            }
            for (kind, tier, start_ns) in std::mem::take(&mut device.gone) {
                writer.delete(StateTable::Panes, pane_key(number, kind, tier, start_ns));
            }
        }
        for (number, tier, start_ns) in std::mem::take(&mut self.dirty_parts) {
            let key = pane_key(number, Kind::Parts, tier, start_ns);
            match self.registry.devices[number as usize].parts.get(&(tier, start_ns)) {
                Some(parts) => writer.put(StateTable::Panes, key, parts),
                None => writer.delete(StateTable::Panes, key),
            }
        }
    }

    /// Notes that an open pane is gone, so that the store forgets it.
    pub(crate) fn forget_pane(&mut self, number: u32, tier: Tier, pane: &Pane) {
        if pane.stored {
            self.registry.device_mut(number).gone.push((Kind::Open, tier, pane.start_ns));
        }
    }

    /// Notes that a late part is gone, so that the store forgets it.
    pub(crate) fn forget_late(&mut self, number: u32, tier: Tier, pane: &Pane) {
        if pane.stored {
            self.registry.device_mut(number).gone.push((Kind::Late, tier, pane.start_ns));
        }
    }

    /// Rebuilds the state from what [`State::take_dirty`] has given over time: of every key the newest value, in the order of
    /// [`StateTable::ALL`] and of the keys. Errors on another version, a value that does not decode, or entries that refer to
    /// nothing. Of the recent ring there is the newest sample only; it grows anew.
    pub fn restore(cell: CellId, entries: impl Iterator<Item = Entry>) -> Result<Self, RestoreError> {
        let mut entries: Vec<Entry> = entries.collect();
        entries.sort_by(|a, b| (a.table, &a.key).cmp(&(b.table, &b.key)));
        let mut state = Self::new(cell);
        for entry in &entries {
            state.load(entry)?;
        }
        for host in &state.registry.hosts {
            if let Some(&device) = host
                .devices
                .iter()
                .chain(host.inventories.iter().flat_map(|known| &known.slots))
                .find(|&&device| device != crate::registry::NO_DEVICE && device as usize >= state.registry.devices.len())
            {
                return Err(RestoreError {
                    table: StateTable::Hosts.name(),
                    key: String::new(),
                    detail: format!("host {} refers to device {device}, there are {}", host.id, state.registry.devices.len()),
                });
            }
        }
        state.settle();
        Ok(state)
    }

    /// What follows from the durable state but is not stored: timers, orders, flags.
    fn settle(&mut self) {
        for number in 0..self.registry.hosts.len() as u32 {
            let host = &mut self.registry.hosts[number as usize];
            host.dirty = false;
            self.behind.insert((host.closed_ns, number));
            self.wait_for_silence(number);
            self.wait_for_gaps(number);
        }
        for number in 0..self.registry.devices.len() as u32 {
            let device = &mut self.registry.devices[number as usize];
            device.open.sort_by_key(|pane| pane.start_ns);
            device.facts_are_stored();
            (device.pulse_dirty, device.listed) = (false, false);
            self.wait_for_late(number);
        }
        for (&(_, number), waiting) in &self.queue.by_turn {
            self.timers.set(waiting.until_ns + 1, Timer::Waiting(number));
        }
        let fences: Vec<u64> = self.leases.by_fence.keys().copied().collect();
        for fence in fences {
            if let Some(lease) = self.leases.by_fence.get_mut(&fence) {
                lease.dirty = false;
            }
            if let Some(at_ns) = self.lease_deadline(fence) {
                self.timers.set(at_ns, Timer::Lease(fence));
            }
        }
        self.timers.set(self.minute_deadline(), Timer::Minute);
        self.wait_for_load();
        let watched: Vec<_> = self.alerts.watched.keys().collect();
        for (subject, rule) in watched {
            if let Some(at_ns) = self.alert_deadline(subject, rule) {
                self.timers.set(at_ns, Timer::Alert(subject, rule));
            }
        }
        self.registry.dirty_hosts.clear();
        self.registry.dirty_devices.clear();
        self.leases.dirty.clear();
    }

    fn load(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        match entry.table {
            StateTable::Meta => match entry.key.as_slice() {
                b"state" => self.meta = entry.value()?,
                b"clock" => self.clock = entry.value()?,
                b"announcer" => self.announcer = entry.value()?,
                b"buckets" => self.buckets = entry.value()?,
                b"mix" => self.mix = entry.value()?,
                b"queue" => self.queue.order = entry.value()?,
                _ => return Err(entry.error("unknown key")),
            },
            StateTable::Hosts => {
                let mut host: Host = entry.value()?;
                host.ranges.forgotten_epoch = host.forgotten_epoch;
                if entry.u32_at(0)? != self.registry.add_host(host) {
                    return Err(entry.error("hosts are not numbered without a hole"));
                }
            }
            StateTable::Devices => self.load_device(entry)?,
            StateTable::Panes => self.load_pane(entry)?,
            StateTable::Ranges => {
                let (host, epoch) = (entry.u32_at(0)?, entry.u64_at(4)?);
                let class = match entry.key.get(12) {
                    Some(1) => Class::Sample,
                    Some(2) => Class::Event,
                    Some(_) | None => return Err(entry.error("unknown class")),
                };
                let ranges: Ranges = entry.value()?;
                let host = self.registry.hosts.get_mut(host as usize).ok_or_else(|| entry.error("no such host"))?;
                host.ranges.entries.push(RangesEntry { epoch, class, ranges, dirty: false });
            }
            StateTable::Requests => {
                let number = entry.u64_at(0)?;
                self.requests.insert(number, entry.value()?);
            }
            StateTable::Leases => self.leases.insert(entry.value()?),
            StateTable::Waiting => {
                let waiting: Waiting = entry.value()?;
                let turn = turn(waiting.place.priority, entry.u64_at(4)?);
                if entry.key != turn_key(turn) {
                    return Err(entry.error("a request waits under another priority"));
                }
                self.queue.insert(turn, waiting);
            }
            StateTable::Policies => {
                let key = String::from_utf8(entry.key.clone()).map_err(|_| entry.error("unknown key"))?;
                self.policies.by_key.insert(key, entry.value()?);
            }
            StateTable::Alerts => self.load_alerts(entry)?,
            StateTable::Paces => {
                let tenant = std::str::from_utf8(&entry.key).ok().and_then(parse_scope).ok_or_else(|| entry.error("unknown key"))?;
                self.paces.by_tenant.insert(tenant, entry.value()?);
            }
        }
        Ok(())
    }

    fn load_alerts(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        match entry.key.as_slice() {
            b"counted" => self.alerts.counted = entry.value()?,
            b"rules" => {
                self.alerts.rules = entry.value()?;
                self.alerts.rules_dirty = false;
            }
            [kind @ 0..=2, _, _, _, _, _, _, _, _] => {
                let (number, rule) = (entry.u32_at(1)?, entry.u32_at(5)?);
                let (subject, known) = match kind {
                    0 => (Subject::Cell, number == 0),
                    1 => (Subject::Host(number), (number as usize) < self.registry.hosts.len()),
                    _ => (Subject::Gpu(number), (number as usize) < self.registry.devices.len()),
                };
                if !known {
                    return Err(entry.error("no such host or device"));
                }
                self.alerts.watched.insert((subject, rule), entry.value()?);
            }
            _ => return Err(entry.error("unknown key")),
        }
        Ok(())
    }

    fn load_device(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        let number = entry.u32_at(0)?;
        match entry.key.get(4) {
            Some(0) => {
                let facts: Facts = entry.value()?;
                if facts.host as usize >= self.registry.hosts.len() {
                    return Err(entry.error("no such host"));
                }
                if self.registry.add_device(facts) != number {
                    return Err(entry.error("devices are not numbered without a hole"));
                }
            }
            Some(1) => {
                let (pulse, current): (Pulse, Option<(Order, Recent)>) = entry.value()?;
                let device = self.device_of(entry, number)?;
                device.pulse = pulse;
                if let Some((order, current)) = current {
                    device.recent.push(order, current);
                }
            }
            Some(_) | None => return Err(entry.error("unknown part")),
        }
        Ok(())
    }

    fn load_pane(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        let number = entry.u32_at(0)?;
        let tier = match entry.key.get(5) {
            Some(1) => Tier::TenSeconds,
            Some(2) => Tier::Minute,
            Some(3) => Tier::Hour,
            Some(_) | None => return Err(entry.error("unknown tier")),
        };
        let start_ns = i64::from_be_bytes(entry.u64_at(6)?.to_be_bytes());
        let kind = entry.key.get(4).copied();
        let device = self.device_of(entry, number)?;
        if kind == Some(Kind::Open as u8) {
            let pane = Pane { stored: true, ..entry.value()? };
            match tier {
                Tier::TenSeconds => device.open.push(pane),
                Tier::Minute => device.minute = Some(Box::new(pane)),
                Tier::Hour => device.hour = Some(Box::new(pane)),
            }
        } else if kind == Some(Kind::Late as u8) {
            let mut late: LatePane = entry.value()?;
            late.pane.stored = true;
            device.late.insert((tier, start_ns), late);
        } else if kind == Some(Kind::Parts as u8) {
            device.parts.insert((tier, start_ns), entry.value()?);
        } else {
            return Err(entry.error("unknown kind"));
        }
        Ok(())
    }

    fn device_of(&mut self, entry: &Entry, number: u32) -> Result<&mut Device, RestoreError> {
        self.registry.devices.get_mut(number as usize).ok_or_else(|| entry.error("no such device"))
    }
}

fn sorted<T: Ord>(mut numbers: Vec<T>) -> Vec<T> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Sorted as they wait.
fn turn_key((priority, number): Turn) -> Vec<u8> {
    [&priority.wrapping_sub(i32::MIN).to_be_bytes()[..], &number.to_be_bytes()].concat()
}

fn ranges_key(host: u32, epoch: u64, class: Class) -> Vec<u8> {
    [&host.to_be_bytes()[..], &epoch.to_be_bytes(), &[class as u8]].concat()
}

impl Entry {
    pub(crate) fn error(&self, detail: impl Into<String>) -> RestoreError {
        RestoreError { table: self.table.name(), key: self.key.iter().map(|byte| format!("{byte:02x}")).collect(), detail: detail.into() }
    }

    pub(crate) fn value<T: DeserializeOwned>(&self) -> Result<T, RestoreError> {
        match self.value.as_deref() {
            Some([VERSION, bytes @ ..]) => postcard::from_bytes(bytes).map_err(|error| self.error(error.to_string())),
            Some([version, ..]) => Err(self.error(format!("format {version}, this build reads {VERSION}"))),
            Some([]) | None => Err(self.error("no value")),
        }
    }

    pub(crate) fn u32_at(&self, at: usize) -> Result<u32, RestoreError> {
        let bytes = self.key.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or_else(|| self.error("key too short"))
    }

    pub(crate) fn u64_at(&self, at: usize) -> Result<u64, RestoreError> {
        let bytes = self.key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| self.error("key too short"))
    }
}
