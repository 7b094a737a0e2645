//! What the processor says (`out.>`): CloudEvents 1.0 as JSON. A consumer in any language needs nothing of ours.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::{Limit, Scope, Severity, Signal};
use crate::candidates::Candidates;
use crate::ctl::Class;
use crate::id::{CellId, DeviceKey, GpuUuid, HostId, Position, Slot, TenantId};
use crate::mig::Promise;
use crate::pace::Pace;
use crate::policy::{Policy, SetBy};
use crate::reason::Reason;
use crate::subject::OutSubject;
use crate::time::LogTime;

/// The CloudEvents envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent {
    /// `1.0`.
    #[schemars(extend("const" = "1.0"))]
    pub specversion: String,
    /// Unique and never changing: `<cell>/<log epoch>/<sequence>/<ordinal>`.
    pub id: String,
    /// `/plimsoll/<cell>`.
    pub source: String,
    /// Kind of event, such as `plimsoll.place.decided.v1`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about: a request, a lease, a GPU.
    pub subject: String,
    /// When the log took the record that caused it, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// `application/json`.
    #[schemars(extend("const" = "application/json"))]
    pub datacontenttype: String,
    /// Dense number of the output in its cell, from 1: its place in OUT.
    pub outseq: u64,
    /// The content.
    pub data: Payload,
}

/// The content of an event, by its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "most outputs are decisions, and one is made at a time")]
pub enum Payload {
    /// `plimsoll.place.decided.v1`
    Decided(Decided),
    /// `plimsoll.work.distributed.v1`
    Distributed(Distributed),
    /// `plimsoll.lease.changed.v1`
    Lease(LeaseChanged),
    /// `plimsoll.device.changed.v1`
    Device(DeviceChanged),
    /// `plimsoll.host.changed.v1`
    Host(HostChanged),
    /// `plimsoll.rejected.v1`
    Rejected(RejectedOut),
    /// `plimsoll.gap.v1`
    Gap(Gap),
    /// `plimsoll.alert.changed.v1`
    Alert(Box<AlertChanged>),
    /// `plimsoll.policy.changed.v1`
    Policy(Box<PolicyChanged>),
    /// `plimsoll.preemption.proposed.v1`
    Preemption(Box<PreemptionProposed>),
    /// `plimsoll.pace.changed.v1`
    Pace(Box<PaceChanged>),
}

impl Payload {
    /// The CloudEvents type.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Decided(_) => "plimsoll.place.decided.v1",
            Self::Distributed(_) => "plimsoll.work.distributed.v1",
            Self::Lease(_) => "plimsoll.lease.changed.v1",
            Self::Device(_) => "plimsoll.device.changed.v1",
            Self::Host(_) => "plimsoll.host.changed.v1",
            Self::Rejected(_) => "plimsoll.rejected.v1",
            Self::Gap(_) => "plimsoll.gap.v1",
            Self::Alert(_) => "plimsoll.alert.changed.v1",
            Self::Policy(_) => "plimsoll.policy.changed.v1",
            Self::Preemption(_) => "plimsoll.preemption.proposed.v1",
            Self::Pace(_) => "plimsoll.pace.changed.v1",
        }
    }

    fn about(&self) -> String {
        match self {
            Self::Decided(d) => format!("request/{}", d.request_id),
            Self::Distributed(d) => format!("request/{}", d.request_id),
            Self::Lease(l) => format!("lease/{}", l.lease_id),
            Self::Device(d) => format!("device/{}", d.device_uuid),
            Self::Host(h) => format!("host/{}", h.host),
            Self::Rejected(r) => format!("rejected/{}", r.source),
            Self::Gap(g) => format!("gap/{}", g.host.as_ref().map_or("log", HostId::as_str)),
            Self::Alert(a) => format!("alert/{}", a.dedup_key),
            Self::Policy(p) => format!("policy/{}/{}", p.policy.kind(), p.name),
            Self::Preemption(p) => format!("request/{}", p.request_id),
            Self::Pace(p) => format!("pace/{}", p.scope),
        }
    }
}

/// One output of the fold, ready to be published: its place in OUT, where it goes and its exact bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Dense number in the cell, from 1 = sequence in OUT.
    pub out_seq: u64,
    /// Position of the record that caused it.
    pub position: Position,
    /// Full subject.
    pub subject: String,
    /// Event id, also the message id.
    pub id: String,
    /// The CloudEvent as JSON, byte for byte.
    pub bytes: Vec<u8>,
}

impl Output {
    /// Builds the event of one payload. `ordinal` counts the outputs of one record from 0.
    pub fn new(cell: &CellId, out_seq: u64, position: Position, ordinal: u32, logged_at: LogTime, to: &OutSubject, data: Payload) -> Self {
        let id = format!("{cell}/{}/{}/{ordinal}", position.epoch.0, position.sequence);
        let event = CloudEvent {
            specversion: "1.0".to_owned(),
            id: id.clone(),
            source: format!("/{}/{cell}", crate::subject::ROOT),
            kind: data.kind().to_owned(),
            subject: data.about(),
            time: logged_at.rfc3339(),
            datacontenttype: "application/json".to_owned(),
            outseq: out_seq,
            data,
        };
        let bytes = serde_json::to_vec(&event).expect("plain structs with string keys always serialise");
        Self { out_seq, position, subject: to.to_subject(cell), id, bytes }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// GPUs were leased.
    Placed,
    /// It waits for room.
    Deferred,
    /// It cannot be placed.
    Rejected,
    /// A lease was taken back for another.
    Preempted,
    /// It was withdrawn.
    Cancelled,
}

impl Outcome {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Deferred => "deferred",
            Self::Rejected => "rejected",
            Self::Preempted => "preempted",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A placement decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decided {
    /// `<cell>-<log epoch>-<sequence>-<ordinal>`
    pub decision_id: String,
    /// Dense number of the decision in its cell, from 1.
    pub decision_seq: u64,
    /// The request.
    pub request_id: String,
    /// Who asked.
    pub tenant: TenantId,
    /// How it ended.
    pub outcome: Outcome,
    /// The dominant reason, unless placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The dominant reason as a sentence with numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The position it was decided on.
    pub position: Position,
    /// Rolling hash of the state it was decided on, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state_hash: String,
    /// Policy and version, such as `hybrid@1`.
    pub policy: String,
    /// How many of 100 parts of the decision power had; the policy had the others.
    #[serde(default, skip_serializing_if = "is_zero_32")]
    pub power_weight: u32,
    /// Hash of the learned tables that the policy used, hexadecimal; absent = it used none, or untaught ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables_hash: Option<String>,
    /// Hash of the mix of earlier requests that the policy used, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix_hash: Option<String>,
    /// Which try it was, from 1.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// How long it waited, ms of live clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queue_ms: u64,
    /// Hosts looked at.
    pub hosts_considered: u32,
    /// Hosts that could have taken it.
    pub hosts_feasible: u32,
    /// GPUs refused, by reason.
    #[schemars(extend("propertyNames" = { "$ref": "#/$defs/Reason" }))]
    pub refused: BTreeMap<Reason, u32>,
    /// The GPUs, if placed.
    pub assignments: Vec<Assignment>,
    /// The lease, if placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseGrant>,
    /// What the chosen places scored together, in millionths of the policy's unit, if placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_micro: Option<i64>,
    /// What that is made of, where the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<ScoreParts>,
    /// The best hosts that were not taken, at most three.
    pub runners_up: Vec<RunnerUp>,
    /// Which GPUs were refused, by reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Candidates>,
    /// The host that lacked least, unless placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<NearestMiss>,
    /// For a request that waits: when leases that run out could leave it enough room at the earliest, RFC 3339. They can be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub earliest_at: Option<String>,
    /// CPU or memory of the host was asked for, and no chosen host has said how much it has: placed by GPU alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_gpu_alone: bool,
}

fn first() -> u32 {
    1
}

fn is_first(attempt: &u32) -> bool {
    *attempt == 1
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_zero_16(number: &i16) -> bool {
    *number == 0
}

fn is_zero_32(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// What a score is made of; what the policy gives in thousandths of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScoreParts {
    /// By how much expected fragmentation falls.
    pub fragmentation_milli: i64,
    /// By how much of what is left will no longer stay idle when the fleet is full.
    pub waste_milli: i64,
    /// What is taken away from rare requests; counts against it.
    pub scarcity_milli: i64,
    /// What the GPUs that it wakes will draw more, estimated, thousandths of a watt; counts against it. Absent = power does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u64>,
}

/// The host that lacked least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NearestMiss {
    /// The host.
    pub host: HostId,
    /// How many of its GPUs would do.
    pub gpus: u32,
    /// How many are needed there.
    pub gpus_needed: u32,
    /// Why it was not enough: the reason that most of its other GPUs have, or what the host itself lacks.
    pub reason: Reason,
    /// How many hosts are as near.
    pub hosts: u32,
}

/// One GPU of a placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Assignment {
    /// The GPU.
    pub device_uuid: GpuUuid,
    /// Its key in SQL.
    pub device_key: DeviceKey,
    /// Its host.
    pub host: HostId,
    /// Its stable number there.
    pub slot: Slot,
    /// The driver's index as last announced.
    pub gpu_index: u16,
    /// Thousandths reserved.
    pub milli: u32,
    /// Memory reserved, bytes.
    pub vram_bytes: u64,
    /// How much room it had, by `headroom@1`, millionths.
    pub score_micro: u32,
    /// Which member of the gang stands on it, from 0.
    #[serde(default, skip_serializing_if = "is_zero_32")]
    pub member: u32,
    /// The member's bundle, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// The MIG instance that the holder may make on the GPU, which is then a board with MIG mode on; absent = the GPU itself, or an instance
    /// that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Promise>,
}

/// What the holder gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseGrant {
    /// The lease.
    pub lease_id: String,
    /// Monotonic: whoever runs the job refuses a lower one.
    pub fence: u64,
    /// How long it lives without a renewal, ms of the cell's live clock.
    pub ttl_ms: u64,
    /// When that would be if the log goes on without a break, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
    /// CPU and memory of hosts that it holds besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostShare>,
    /// The request's priority.
    #[serde(default, skip_serializing_if = "is_zero_16")]
    pub priority: i16,
    /// Whether ending it may be proposed to make room.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preemptible: bool,
    /// The request's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// CPU and memory of a host that a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostShare {
    /// The host.
    pub host: HostId,
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// A host that could have taken the request and was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunnerUp {
    /// The host.
    pub host: HostId,
    /// What it scored, in millionths of the policy's unit.
    pub score_micro: i64,
    /// What that is made of, where the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<ScoreParts>,
}

/// A request of higher priority could be placed if these leases ended. Whether they end is for their holders, or an operator, to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreemptionProposed {
    /// The request that does not fit.
    pub request_id: String,
    /// Who asked.
    pub tenant: TenantId,
    /// Its priority.
    pub priority: i16,
    /// The position it was found at.
    pub position: Position,
    /// The leases whose end would make room, all of lower priority and preemptible.
    pub victims: Vec<Victim>,
    /// Where the request would then stand.
    pub device_uuids: Vec<GpuUuid>,
}

/// A lease whose end would make room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Victim {
    /// The lease.
    pub lease_id: String,
    /// Who holds it.
    pub tenant: TenantId,
    /// Its priority.
    pub priority: i16,
}

/// How work items were split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Distributed {
    /// `<cell>-<log epoch>-<sequence>-<ordinal>`
    pub decision_id: String,
    /// Dense number of the decision in its cell, shared with placements.
    pub decision_seq: u64,
    /// The request.
    pub request_id: String,
    /// Who asked.
    pub tenant: TenantId,
    /// `placed` or `rejected`.
    pub outcome: Outcome,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why not, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The position it was decided on.
    pub position: Position,
    /// Items per GPU, by UUID.
    pub counts: BTreeMap<GpuUuid, u64>,
    /// Items that no GPU may take under the cap.
    pub unassigned: u64,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Held and alive.
    Active,
    /// Its host is lost; nothing becomes free by silence.
    Suspended,
    /// Ended, its GPUs not yet shown to be free.
    Draining,
    /// Over, its GPUs free.
    Ended,
}

impl LeaseState {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

/// A lease moved from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseChanged {
    /// The lease.
    pub lease_id: String,
    /// The request that got it.
    pub request_id: String,
    /// Who holds it.
    pub tenant: TenantId,
    /// Where it stands now.
    pub state: LeaseState,
    /// What moved it: `granted`, `released`, `expired`, `host_lost`, `host_returned`, `observed_free`, `operator`, or a refusal's code. Where
    /// it did not move: how it is used, `unused`, `overused` or `used_as_granted` again.
    pub cause: String,
    /// Its fence.
    pub fence: u64,
    /// Its GPUs.
    pub device_uuids: Vec<GpuUuid>,
}

/// Where a GPU stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Well and heard from.
    Ok,
    /// Works, with a fault.
    Degraded,
    /// Broken.
    Failed,
    /// Not heard from for three intervals and 5 s.
    Stale,
    /// Not heard from for 90 s or six intervals.
    Lost,
    /// Taken out of service for new placements.
    Cordoned,
    /// Its lease has ended, it is not yet shown to be free.
    Draining,
    /// Emptied for maintenance.
    Drained,
}

impl DeviceState {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Stale => "stale",
            Self::Lost => "lost",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// A GPU was registered, moved to another state or changed its facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceChanged {
    /// The GPU.
    pub device_uuid: GpuUuid,
    /// Its key in SQL.
    pub device_key: DeviceKey,
    /// Its host.
    pub host: HostId,
    /// Its stable number there.
    pub slot: Slot,
    /// Where it stands now.
    pub state: DeviceState,
    /// What moved it: `registered`, `retired`, `xid`, `stale`, `lost`, `returned`, `cordon`, ...
    pub cause: String,
    /// Details such as the XID's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A host was heard of for the first time, went silent or came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostChanged {
    /// The host.
    pub host: HostId,
    /// `ok`, `stale` or `lost`.
    pub state: DeviceState,
    /// What moved it.
    pub cause: String,
    /// How many GPUs it has.
    pub gpu_count: u32,
}

/// Something was refused. Rate-limited: one per source and reason and ten seconds, with the count since the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RejectedOut {
    /// The log subject's tail, such as `sample.gpu-1`.
    pub source: String,
    /// Why.
    pub reason: Reason,
    /// How many since the last such event, this one included.
    pub count: u64,
    /// The last one's raw value or error.
    pub raw: String,
}

/// What became of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapState {
    /// Something is missing and was asked for.
    Opened,
    /// It came.
    Repaired,
    /// It will not be folded any more.
    Loss,
}

impl GapState {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Opened => "open",
            Self::Repaired => "repaired",
            Self::Loss => "loss",
        }
    }
}

/// Something is missing, or no longer is. What was opened is closed by ranges that together are the one opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The host whose records are missing; absent = the log itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The agent's life, for a host's gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Which of the host's numberings, for a host's gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// First sequence missing.
    pub from_sequence: u64,
    /// Last sequence missing.
    pub to_sequence: u64,
    /// What became of it.
    pub state: GapState,
    /// Why, as far as it is known.
    pub cause: String,
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// Its rule's limit is passed.
    Firing,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// An alert fired or resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertChanged {
    /// One life of the alert, from firing to resolved: `<cell>-<log epoch>-<sequence>-<ordinal>`.
    pub alert_id: String,
    /// What is the same for every life of it: `<rule>/<host or GPU UUID or cell>`.
    pub dedup_key: String,
    /// The rule.
    pub rule: String,
    /// How grave it is.
    pub severity: Severity,
    /// Where it stands now.
    pub state: AlertState,
    /// What moved it: `limit_passed`, `cleared`, `retired`, `rule_changed` or `rule_removed`.
    pub cause: String,
    /// What it is about.
    pub scope: Scope,
    /// The host, unless it is about the cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The GPU, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_uuid: Option<GpuUuid>,
    /// Its key in SQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_key: Option<DeviceKey>,
    /// What is watched.
    pub signal: Signal,
    /// Its value when the alert moved, in the signal's unit.
    pub value: i64,
    /// The limit.
    pub limit: Limit,
    /// Since when the limit was passed, RFC 3339: start of the first such window, or log time of the change of state.
    #[schemars(extend("format" = "date-time"))]
    pub began_at: String,
    /// The rule's text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Something came into force, or is no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyChanged {
    /// What: its kind and content.
    #[serde(flatten)]
    pub policy: Policy,
    /// Under which name.
    pub name: String,
    /// How often something came into force under that kind and name, or the version of what it names.
    pub version: u32,
    /// Whether it holds from now on; otherwise it is over.
    pub in_force: bool,
    /// Whose word that is.
    pub set_by: SetBy,
}

/// Whether load keeps placements from happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaceState {
    /// It does.
    Paused,
    /// It no longer does.
    Resumed,
}

/// Placements of a cell or tenant pause because of load, or go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PaceChanged {
    /// Whose: `cell` or `tenant/<id>`, as `policies` names it.
    pub scope: String,
    /// Whether placements pause now.
    pub state: PaceState,
    /// What moved it: `load_high`, `load_low`, `pace_changed` or `pace_ended`.
    pub cause: String,
    /// Mean utilisation of the GPUs counted, basis points; absent = not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub util_bp: Option<u32>,
    /// Mean share of their memory in use, basis points; absent = not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bp: Option<u32>,
    /// GPUs counted: those with a fresh window, for a tenant without its own.
    pub gpus: u32,
    /// When the load is next looked at, and so the earliest end of a pause, if the log goes on without a break; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub until: Option<String>,
    /// The limits that moved it.
    pub pace: Pace,
    /// Requests since the pace came into force.
    pub counts: PaceCounts,
}

/// What became of the requests under a pace. Offered is their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PaceCounts {
    /// Had a slot.
    pub admitted: u64,
    /// Came too early, or during a pause.
    pub refused: u64,
    /// Were withdrawn while they waited.
    pub cancelled: u64,
    /// Wait for their slot.
    pub waiting: u64,
}

impl PaceCounts {
    /// Requests that came.
    pub const fn offered(&self) -> u64 {
        self.admitted + self.refused + self.cancelled + self.waiting
    }
}
