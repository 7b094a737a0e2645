//! Time: instants as nanoseconds UTC, of two kinds that must never be swapped.

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: i64 = 1_000_000;
/// Nanoseconds in a second.
pub const NS_PER_S: i64 = 1_000_000_000;

macro_rules! instant {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl $name {
            /// Whole microseconds since 1970 (floor), the unit of SQL timestamps.
            pub fn micros(self) -> i64 {
                self.0.div_euclid(1_000)
            }

            /// Whole milliseconds since 1970 (floor).
            pub fn millis(self) -> i64 {
                self.0.div_euclid(NS_PER_MS)
            }

            /// The instant `ms` milliseconds later, saturating.
            pub fn plus_ms(self, ms: i64) -> Self {
                Self(self.0.saturating_add(ms.saturating_mul(NS_PER_MS)))
            }

            /// Milliseconds from `earlier` to this instant (negative if it is later), saturating.
            pub fn ms_since(self, earlier: Self) -> i64 {
                self.0.saturating_sub(earlier.0) / NS_PER_MS
            }

            /// RFC 3339 with nanoseconds and `Z`, as CloudEvents want it.
            pub fn rfc3339(self) -> String {
                DateTime::<Utc>::from_timestamp_nanos(self.0).to_rfc3339_opts(SecondsFormat::Nanos, true)
            }
        }
    };
}

instant! {
    /// When it happened on the host (the host's wall clock), nanoseconds UTC.
    EventTime
}
instant! {
    /// When the log took it: JetStream's append time made monotone, nanoseconds UTC. The fold's only clock.
    LogTime
}

/// Reads RFC 3339 text into nanoseconds UTC; `None` if it is not one or lies outside 1677..2262.
pub fn parse_rfc3339_ns(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt()
}

/// The text form of an instant in JSON messages: RFC 3339 for people, nanoseconds inside.
pub mod rfc3339 {
    use super::{DateTime, EventTime, SecondsFormat, Utc, parse_rfc3339_ns};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the instant as RFC 3339.
    pub fn serialize<S: Serializer>(at: &EventTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&DateTime::<Utc>::from_timestamp_nanos(at.0).to_rfc3339_opts(SecondsFormat::Nanos, true))
    }

    /// Reads RFC 3339.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EventTime, D::Error> {
        let text = String::deserialize(from)?;
        parse_rfc3339_ns(&text).map(EventTime).ok_or_else(|| D::Error::custom(format!("{text:?} is not an RFC 3339 instant")))
    }
}

/// The same for an instant that may be absent.
pub mod rfc3339_option {
    use super::{EventTime, parse_rfc3339_ns, rfc3339};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the instant as RFC 3339, or null.
    pub fn serialize<S: Serializer>(at: &Option<EventTime>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => rfc3339::serialize(at, to),
            None => to.serialize_none(),
        }
    }

    /// Reads RFC 3339, or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EventTime>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        parse_rfc3339_ns(&text).map(EventTime).map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is not an RFC 3339 instant")))
    }
}
