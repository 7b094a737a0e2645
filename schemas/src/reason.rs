//! The one closed list of reasons: why a value, a sample, a message or a candidate was refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $code:literal;)*) => {
        /// Why something was refused. The number is on the wire and on disk; the snake_case code is in JSON and SQL.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// Every reason, in the order in which they are checked.
            pub const ALL: &[Reason] = &[$(Reason::$name),*];

            /// The snake_case code used in JSON, SQL and metrics.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// Its place in the order in which reasons are checked: of several gates the first one counts.
            pub fn precedence(self) -> usize {
                Self::ALL.iter().position(|&reason| reason == self).expect("the list holds every reason")
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Reason::$name),)* _ => None }
            }

            /// The reason with this code, if there is one.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.code() == code)
            }
        }
    };
}

reasons! {
    // Samples and readings, in the order in which they are checked.
    /// The service is starting or stopping.
    NotAccepting = 1, "not_accepting";
    /// No inventory has named this GPU on this host.
    DeviceNotRegistered = 2, "device_not_registered";
    /// Utilisation outside 0..=100 percent.
    UtilizationOutOfRange = 3, "utilization_out_of_range";
    /// Memory in use below zero.
    MemoryUsedNegative = 4, "memory_used_negative";
    /// Total memory zero or below.
    MemoryTotalNotPositive = 5, "memory_total_not_positive";
    /// More memory in use than there is.
    MemoryUsedExceedsTotal = 6, "memory_used_exceeds_total";
    /// Below -273.15 degrees Celsius.
    TemperatureBelowAbsoluteZero = 7, "temperature_below_absolute_zero";
    /// NaN or infinite.
    NotFinite = 8, "not_finite";
    /// Power below zero.
    PowerNegative = 9, "power_negative";
    /// Clock below zero.
    ClockNegative = 10, "clock_negative";
    /// Above 150 degrees Celsius.
    TemperatureTooHigh = 11, "temperature_too_high";
    /// Clock above 20 GHz.
    ClockTooHigh = 12, "clock_too_high";
    /// Power above twice the board's maximum limit (5 kW where that is unknown).
    PowerTooHigh = 13, "power_too_high";
    /// The reported total differs from the registered total by more than 3 MiB.
    CapacityMismatch = 14, "capacity_mismatch";
    /// Before 2020.
    TimestampTooOld = 15, "timestamp_too_old";
    /// Further ahead than the clocks may differ.
    TimestampInFuture = 16, "timestamp_in_future";
    /// An identity does not parse.
    IdMalformed = 17, "id_malformed";
    /// Larger than the documented limit.
    PayloadTooLarge = 18, "payload_too_large";
    /// A major schema version this build does not know.
    UnsupportedVersion = 19, "unsupported_version";
    /// The source says it has no such value.
    NotSupported = 20, "not_supported";
    /// The source may not read it.
    NotPermitted = 21, "not_permitted";
    /// The source printed a blank or "not found" sentinel.
    Blank = 22, "blank";
    /// The text is no number.
    ParseError = 23, "parse_error";
    /// A counter went backwards; the base moves and the delta is absent.
    CounterReset = 24, "counter_reset";
    /// Other fields below zero or above what the field can hold.
    OutOfRange = 25, "out_of_range";
    /// The bytes are no message of this kind.
    Undecodable = 26, "undecodable";
    /// The payload names another host, tenant or cell than its subject.
    SpeakerMismatch = 27, "speaker_mismatch";
    /// The window of this sample closed too long ago.
    Late = 28, "late";
    /// Already folded under the same host, epoch and sequence.
    Duplicate = 29, "duplicate";
    /// The UUID is live on another host.
    DuplicateUuid = 30, "duplicate_uuid";
    /// Two UUIDs hash to one device key.
    DeviceKeyCollision = 31, "device_key_collision";
    /// No such subject in a cell.
    UnknownSubject = 32, "unknown_subject";
    /// A frame, inventory or message whose parts contradict each other.
    Inconsistent = 33, "inconsistent";

    // Placement candidates, in the order of precedence.
    /// No fresh telemetry.
    Stale = 40, "stale";
    /// No sample yet.
    NoSample = 41, "no_sample";
    /// The host is not enrolled.
    NotEnrolled = 42, "not_enrolled";
    /// An operator took it out of service.
    Cordoned = 43, "cordoned";
    /// Its last lease has ended and it is not yet shown to be free.
    Draining = 44, "draining";
    /// It spoke for the first time too short a while ago.
    WarmingUp = 110, "warming_up";
    /// Hardware says it is not well, without saying why (records older than the five reasons below).
    Unhealthy = 45, "unhealthy";
    /// It does not answer its host.
    GpuLost = 54, "gpu_lost";
    /// An XID says that the board or its links are broken.
    Xid = 55, "xid";
    /// Uncorrected ECC errors since the driver was loaded.
    Ecc = 56, "ecc";
    /// Rows of its memory wait to be replaced, or cannot be.
    RowRemap = 57, "row_remap";
    /// Too near to its slowdown temperature, or above it.
    Thermal = 46, "thermal";
    /// Another model than asked for.
    ModelMismatch = 47, "model_mismatch";
    /// An older driver than asked for, or an unknown one.
    DriverTooOld = 111, "driver_too_old";
    /// A lower compute capability than asked for, or an unknown one.
    ComputeCapability = 112, "compute_capability";
    /// A MIG instance, or a board with MIG mode on, where a GPU is asked for; or another profile than asked for.
    MigProfile = 113, "mig_profile";
    /// The host stands elsewhere than asked for.
    LabelMismatch = 114, "label_mismatch";
    /// The tenant would hold more than its quota.
    QuotaExceeded = 115, "quota_exceeded";
    /// Kept for a request that waits.
    Reserved = 116, "reserved";
    /// Reserved by another lease.
    LeaseConflict = 48, "lease_conflict";
    /// Something is left of it, but less than the share asked for.
    ShareTooSmall = 117, "share_too_small";
    /// Not enough CPU left on the host.
    InsufficientCpu = 118, "insufficient_cpu";
    /// Not enough memory left on the host.
    InsufficientHostMemory = 119, "insufficient_host_memory";
    /// Not enough GPU memory left.
    InsufficientMemory = 49, "insufficient_memory";
    /// Fewer memory slices are free on the board than the MIG profile takes.
    MigNoSlice = 123, "mig_no_slice";
    /// Enough memory slices are free on the board, but not together where the MIG profile may start, or it has all such instances it can have.
    MigStart = 124, "mig_start";
    /// Not within the NVLink domain, NUMA node, host or rack that is asked for.
    Topology = 120, "topology";
    /// Too near to what must be avoided, or to another member of the gang.
    AntiAffinity = 121, "anti_affinity";
    /// Not enough GPUs left on any one host.
    TooFewDevices = 50, "too_few_devices";
    /// Scores nothing: full and busy.
    NoHeadroom = 51, "no_headroom";
    /// Some members of the gang would find a place, but not all.
    GangPartial = 122, "gang_partial";
    /// The search used up its node budget.
    BudgetExhausted = 52, "budget_exhausted";
    /// There is no GPU at all.
    NoDevices = 53, "no_devices";

    // Requests.
    /// The request's fields are missing or out of bounds.
    InvalidRequest = 60, "invalid_request";
    /// A shape this version cannot place.
    UnsupportedShape = 61, "unsupported_shape";
    /// No such lease.
    UnknownLease = 62, "unknown_lease";
    /// The lease has ended.
    LeaseExpired = 63, "lease_expired";
    /// The lease belongs to another tenant.
    NotHolder = 64, "not_holder";
    /// The request id was used before for another request.
    RequestIdReused = 65, "request_id_reused";
    /// The tenant sends more than its share.
    RateLimited = 66, "rate_limited";
    /// Every weight is zero.
    ZeroWeights = 67, "zero_weights";
    /// A weight is below zero.
    NegativeWeight = 68, "negative_weight";
    /// A cap per device is zero or below.
    InvalidCap = 69, "invalid_cap";
    /// No such strategy.
    UnknownStrategy = 70, "unknown_strategy";
    /// A bounded queue or table is full.
    LimitReached = 71, "limit_reached";
    /// The request was withdrawn or released before it was placed.
    Cancelled = 72, "cancelled";
    /// It waited longer than it said it would.
    MaxWait = 73, "max_wait";
    /// It is not to be placed before a certain instant.
    NotYet = 74, "not_yet";
    /// No request of that id waits.
    UnknownRequest = 75, "unknown_request";

    // Control records.
    /// No such policy, rule or version.
    UnknownPolicy = 80, "unknown_policy";
    /// A rule or policy that cannot work.
    InvalidPolicy = 81, "invalid_policy";

    // Pace.
    /// It comes sooner after the one before than the pace allows.
    Paced = 100, "paced";
    /// Load has paused placements.
    Paused = 101, "paused";
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_code_and_json_name_agree() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason as u32), Some(reason));
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert_eq!(serde_json::to_value(reason).expect("plain enum"), reason.code());
        }
    }
}
