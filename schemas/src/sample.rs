//! A sample: what is believed about one GPU at one instant. Integers in the units their names carry; unknown is absent, never zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $accessor:ident, $max:expr;)*) => {
        /// One measured quantity. The number is on the wire: never re-used, new ones only appended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Field {
            $($(#[$doc])* $name = $number,)*
        }

        impl Field {
            /// Every field, in the order of the numbers.
            pub const ALL: &[Field] = &[$(Field::$name),*];
            /// How many fields there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The snake_case name used in JSON, SQL and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Field::$name => stringify!($accessor),)* }
            }

            /// The greatest value the field can hold.
            pub const fn max(self) -> u64 {
                match self { $(Field::$name => $max,)* }
            }

            /// The field with this number, if this build knows it.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Field::$name),)* _ => None }
            }
        }

        impl Sample {
            $($(#[$doc])* pub fn $accessor(&self) -> Option<u64> { self.get(Field::$name) })*
        }
    };
}

fields! {
    /// GPU utilisation, percent 0..=100 (NVML's unit).
    UtilPercent = 1, util_percent, 100;
    /// Memory-controller utilisation, percent 0..=100.
    MemoryUtilPercent = 2, memory_util_percent, 100;
    /// Memory in use, bytes (what the driver reserves for itself excluded where it says so).
    MemoryUsedBytes = 3, memory_used_bytes, i64::MAX as u64;
    /// Memory on board, bytes.
    MemoryTotalBytes = 4, memory_total_bytes, i64::MAX as u64;
    /// Board power, milliwatts.
    PowerMw = 5, power_mw, u32::MAX as u64;
    /// Energy used since the previous tick, millijoules.
    EnergyMj = 6, energy_mj, u32::MAX as u64 * 1_000;
    /// Core temperature, millikelvin.
    TemperatureMk = 7, temperature_mk, 423_150;
    /// Memory temperature, millikelvin.
    MemoryTemperatureMk = 8, memory_temperature_mk, 423_150;
    /// SM clock, MHz.
    SmClockMhz = 9, sm_clock_mhz, 20_000;
    /// Memory clock, MHz.
    MemoryClockMhz = 10, memory_clock_mhz, 20_000;
    /// NVML's clocks-event (throttle) reason bits.
    ThrottleBits = 11, throttle_bits, i64::MAX as u64;
    /// SMs with at least one warp, basis points 0..=10000.
    SmActiveBp = 12, sm_active_bp, 10_000;
    /// PCIe bytes sent per second.
    PcieTxBytesS = 13, pcie_tx_bytes_s, i64::MAX as u64;
    /// PCIe bytes received per second.
    PcieRxBytesS = 14, pcie_rx_bytes_s, i64::MAX as u64;
    /// Uncorrected ECC errors since the driver was loaded.
    EccUncorrected = 15, ecc_uncorrected, i64::MAX as u64;
    /// Processes on the GPU.
    Procs = 16, procs, 32_767;
}

impl Field {
    /// The field's place in an array of all fields.
    pub const fn index(self) -> usize {
        self as usize - 1
    }
}

/// 0 degrees Celsius in millikelvin.
pub const ZERO_CELSIUS_MK: i64 = 273_150;

/// Degrees Celsius, rounded half away from zero, of a temperature in millikelvin.
pub fn celsius(mk: u64) -> i16 {
    let milli = i64::try_from(mk).unwrap_or(i64::MAX).saturating_sub(ZERO_CELSIUS_MK);
    let rounded = (milli.saturating_abs() + 500) / 1_000 * milli.signum();
    i16::try_from(rounded).unwrap_or(i16::MAX)
}

/// What is believed about one GPU at one instant. Stored as on the wire: 0 = absent, else value + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    columns: [u64; Field::COUNT],
}

impl Sample {
    /// The value of a field; absent = not known.
    pub fn get(&self, field: Field) -> Option<u64> {
        self.columns[field.index()].checked_sub(1)
    }

    /// Sets a field, capped at the field's greatest value.
    pub fn set(&mut self, field: Field, value: u64) {
        self.columns[field.index()] = value.min(field.max()) + 1;
    }

    /// The same, for chains.
    pub fn with(mut self, field: Field, value: u64) -> Self {
        self.set(field, value);
        self
    }

    /// Makes a field absent.
    pub fn clear(&mut self, field: Field) {
        self.columns[field.index()] = 0;
    }

    /// The field as it stands on the wire: 0 = absent, else value + 1.
    pub fn wire(&self, field: Field) -> u64 {
        self.columns[field.index()]
    }

    /// Sets the field from the wire without a check.
    pub(crate) fn set_wire(&mut self, field: Field, wire: u64) {
        self.columns[field.index()] = wire;
    }

    /// Whether no field is known.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.columns.iter().all(|&wire| wire == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_numbers_are_dense_so_that_index_is_a_subtraction() {
        for (index, &field) in Field::ALL.iter().enumerate() {
            assert_eq!(field.index(), index);
            assert_eq!(Field::from_number(field as u32), Some(field));
        }
    }

    #[test]
    fn celsius_rounds_half_away_from_zero() {
        let check = |mk: u64, expected: i16| assert_eq!(celsius(mk), expected, "{mk}");
        check(273_150, 0);
        check(338_150, 65);
        check(338_649, 65);
        check(338_650, 66);
        check(272_650, -1);
        check(0, -273);
    }
}
