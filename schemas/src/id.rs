//! Identities: who speaks and what is spoken about. Every one is parsed at the border, so what holds one need not check it again.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use siphasher::sip::SipHasher24;

/// Longest token in a subject, in bytes.
pub const TOKEN_BYTES_MAX: usize = 128;
/// Longest GPU UUID, in bytes (NVML's own are 40 to 80).
pub const UUID_BYTES_MAX: usize = 96;

/// A malformed identity: which one, what was given, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} {value:?}: {allowed}")]
pub struct IdError {
    /// Which identity was being parsed.
    pub what: &'static str,
    /// What was given, cut to 160 characters.
    pub value: String,
    /// What would have been accepted.
    pub allowed: &'static str,
}

impl IdError {
    fn new(what: &'static str, value: &str, allowed: &'static str) -> Self {
        Self { what, value: value.chars().take(160).collect(), allowed }
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What every identity that is a text can do. It is shared, not copied, where one stands in thousands of rows.
macro_rules! text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                (*id.0).to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        #[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9_-]{1,128}$"))]
        pub struct $name(Arc<str>);

        text!($name);

        impl $name {
            /// The token itself, as it stands in a subject.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The token that stands for any text: `.` becomes `_d`, `_` becomes `__`, any other byte outside
            /// `[A-Za-z0-9-]` becomes `_x` and two hex digits. Errors if the result is empty or too long.
            pub fn escape(text: &str) -> Result<Self, IdError> {
                let mut token = String::with_capacity(text.len() + 8);
                for byte in text.bytes() {
                    match byte {
                        b'.' => token.push_str("_d"),
                        b'_' => token.push_str("__"),
                        b if b.is_ascii_alphanumeric() || b == b'-' => token.push(char::from(b)),
                        other => token.push_str(&format!("_x{other:02x}")),
                    }
                }
                token.parse()
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_token(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::new($what, text, "1 to 128 characters of A-Z a-z 0-9 _ - (escape others)"))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

    };
}

token! {
    /// A cell: up to about 10,000 hosts that share one log, one processor and one total order.
    CellId, "cell"
}
token! {
    /// A GPU host as the token of its subjects; see [`HostId::escape`] for host names with dots.
    HostId, "host"
}
token! {
    /// Who asks for GPUs and holds leases.
    TenantId, "tenant"
}

/// A GPU (or MIG instance) by the UUID its driver gives. Never the index, which moves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9_/:.-]{1,96}$"))]
pub struct GpuUuid(Arc<str>);

text!(GpuUuid);

impl GpuUuid {
    /// The UUID's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A stable UUID for a source that has none: derived from the host and the device's name there.
    pub fn derive(host: &HostId, device: &str) -> Self {
        let mut hasher = SipHasher24::new_with_key(b"plimsoll-no-uuid");
        hasher.write(host.as_str().as_bytes());
        hasher.write_u8(0);
        hasher.write(device.as_bytes());
        Self(format!("DEV-{:016x}", hasher.finish()).into())
    }

    /// The key that archive and SQL use.
    pub fn key(&self) -> DeviceKey {
        DeviceKey::of(self)
    }
}

impl std::str::FromStr for GpuUuid {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/' | b':' | b'.');
        if (1..=UUID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(IdError::new("GPU UUID", text, "1 to 96 characters of A-Z a-z 0-9 - _ / : ."))
        }
    }
}

impl TryFrom<String> for GpuUuid {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

/// The Int64 that stands for a GPU in archive and SQL: SipHash-2-4 of its UUID under [`DeviceKey::HASH_KEY`].
/// It depends on the UUID alone, so a rebuild never attaches old rows to another GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct DeviceKey(pub i64);

impl DeviceKey {
    /// The published key of the hash. Changing it would orphan every archived row.
    pub const HASH_KEY: &[u8; 16] = b"plimsoll-device1";

    /// The key of a UUID.
    pub fn of(uuid: &GpuUuid) -> Self {
        let mut hasher = SipHasher24::new_with_key(Self::HASH_KEY);
        hasher.write(uuid.as_str().as_bytes());
        Self(i64::from_be_bytes(hasher.finish().to_be_bytes()))
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A GPU's stable number on its host, 0..=255. NVML's index moves when a GPU falls off the bus; this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Slot(pub u8);

/// Which life of the log a sequence belongs to: +1 each time the broker comes back with a different LOG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LogEpoch(pub u32);

/// A place in the log: the only clock and the only order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    /// The log's life.
    pub epoch: LogEpoch,
    /// The stream sequence within it; the first record is 1, 0 means nothing was read yet.
    pub sequence: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch.0, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_keeps_host_names_apart() {
        let escape = |text: &str| HostId::escape(text).expect("fits").to_string();
        assert_eq!(escape("gpu-1.example.com"), "gpu-1_dexample_dcom");
        assert_ne!(escape("a_d"), escape("a."));
        assert_eq!(escape("a b"), "a_x20b");
        assert!(HostId::escape("").is_err());
    }

    #[test]
    fn malformed_tokens_name_what_is_allowed() {
        let error = "a.b".parse::<TenantId>().expect_err("dots separate tokens");
        assert_eq!(error.to_string(), "malformed tenant \"a.b\": 1 to 128 characters of A-Z a-z 0-9 _ - (escape others)");
    }

    #[test]
    fn device_key_is_pinned_for_ever() {
        let uuid: GpuUuid = "GPU-00000000-0000-0000-0000-000000000001".parse().expect("valid");
        assert_eq!(uuid.key().0, 998_107_764_510_838_174);
    }
}
