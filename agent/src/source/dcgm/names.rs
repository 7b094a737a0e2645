//! What each family of dcgm-exporter means: classic names, those of DCGM 4.6 (aliases of the same fields, printed by whichever name the
//! exporter's CSV uses), 4.6's base-unit fields, and the lower-case names of the 1.x exporters.

use plimsoll_schemas::sample::Field;

/// What a family measures, and in which unit it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// GPU_UTIL: percent, also under the name that ends in RATIO.
    Util,
    /// MEM_COPY_UTIL, percent.
    MemoryUtil,
    /// Frame buffer, MiB.
    FbTotal,
    /// Frame buffer in use, MiB.
    FbUsed,
    /// Frame buffer free, MiB.
    FbFree,
    /// Frame buffer that the driver keeps for itself, MiB.
    FbReserved,
    /// Board power, W.
    Power,
    /// Energy counter, mJ.
    EnergyMillijoules,
    /// Energy counter, J.
    EnergyJoules,
    /// Core temperature, °C.
    Temperature,
    /// Memory temperature, °C; 0 = not supported.
    MemoryTemperature,
    /// SM clock, MHz.
    SmClock,
    /// SM clock, Hz.
    SmClockHertz,
    /// Memory clock, MHz.
    MemoryClock,
    /// Memory clock, Hz.
    MemoryClockHertz,
    /// Clocks-event reasons, bits.
    ThrottleBits,
    /// Graphics engine active, 0..1: the only utilisation there is of a MIG instance.
    EngineActive,
    /// SMs active, 0..1.
    SmActive,
    /// PCIe bytes sent per second.
    PcieTx,
    /// PCIe bytes received per second.
    PcieRx,
    /// Uncorrected volatile ECC errors.
    EccUncorrected,
    /// Uncorrected ECC errors in the board's life.
    EccAggregate,
    /// Rows remapped after uncorrected errors.
    RemappedRows,
    /// Whether rows wait to be remapped, 0 or 1.
    RemapPending,
    /// Whether remapping has failed, 0 or 1.
    RemapFailure,
    /// Last XID; 0 = none.
    Xid,
    /// Enforced power limit, W.
    PowerLimit,
    /// Greatest power limit, W.
    PowerLimitMax,
    /// Slowdown temperature, °C.
    SlowdownTemperature,
}

impl Metric {
    /// The metric of a family, if it is one that is read.
    pub fn of(family: &str) -> Option<Self> {
        let short = family.strip_prefix("DCGM_FI_").or_else(|| family.strip_prefix("dcgm_fi_")).or_else(|| family.strip_prefix("dcgm_"));
        Some(match short?.to_ascii_uppercase().as_str() {
            "DEV_GPU_UTIL" | "DEV_GPU_UTIL_RATIO" | "GPU_UTILIZATION" => Self::Util,
            "DEV_MEM_COPY_UTIL" | "DEV_MEM_COPY_UTIL_RATIO" | "MEM_COPY_UTILIZATION" => Self::MemoryUtil,
            "DEV_FB_TOTAL" | "FB_TOTAL" => Self::FbTotal,
            "DEV_FB_USED" | "FB_USED" => Self::FbUsed,
            "DEV_FB_FREE" | "FB_FREE" => Self::FbFree,
            "DEV_FB_RESERVED" | "FB_RESERVED" => Self::FbReserved,
            "DEV_POWER_USAGE" | "DEV_BOARD_POWER_WATTS" | "POWER_USAGE" => Self::Power,
            "DEV_TOTAL_ENERGY_CONSUMPTION" | "TOTAL_ENERGY_CONSUMPTION" => Self::EnergyMillijoules,
            "DEV_GPU_ENERGY_JOULES_TOTAL" => Self::EnergyJoules,
            "DEV_GPU_TEMP" | "DEV_GPU_TEMP_CELSIUS" | "GPU_TEMP" => Self::Temperature,
            "DEV_MEMORY_TEMP" | "DEV_MEMORY_TEMP_CELSIUS" | "MEMORY_TEMP" => Self::MemoryTemperature,
            "DEV_SM_CLOCK" | "SM_CLOCK" => Self::SmClock,
            "DEV_SM_CLOCK_HERTZ" => Self::SmClockHertz,
            "DEV_MEM_CLOCK" | "MEMORY_CLOCK" => Self::MemoryClock,
            "DEV_MEMORY_CLOCK_HERTZ" => Self::MemoryClockHertz,
            "DEV_CLOCKS_EVENT_REASONS" | "DEV_CLOCK_THROTTLE_REASONS" => Self::ThrottleBits,
            "PROF_GR_ENGINE_ACTIVE" | "PROF_GR_ENGINE_UTIL_RATIO" => Self::EngineActive,
            "PROF_SM_ACTIVE" | "PROF_SM_UTIL_RATIO" => Self::SmActive,
            "PROF_PCIE_TX_BYTES" => Self::PcieTx,
            "PROF_PCIE_RX_BYTES" => Self::PcieRx,
            "DEV_ECC_DBE_VOL_TOTAL" | "ECC_DBE_VOLATILE_TOTAL" => Self::EccUncorrected,
            "DEV_ECC_DBE_AGG_TOTAL" | "ECC_DBE_AGGREGATE_TOTAL" => Self::EccAggregate,
            "DEV_UNCORRECTABLE_REMAPPED_ROWS" | "UNCORRECTABLE_REMAPPED_ROWS" => Self::RemappedRows,
            "DEV_ROW_REMAP_PENDING" | "ROW_REMAP_PENDING" => Self::RemapPending,
            "DEV_ROW_REMAP_FAILURE" | "ROW_REMAP_FAILURE" => Self::RemapFailure,
            "DEV_XID_ERRORS" | "DEV_XID_ERROR" | "XID_ERRORS" => Self::Xid,
            "DEV_ENFORCED_POWER_LIMIT" | "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS" => Self::PowerLimit,
            "DEV_POWER_MGMT_LIMIT_MAX" | "DEV_BOARD_POWER_LIMIT_MAX_WATTS" => Self::PowerLimitMax,
            "DEV_SLOWDOWN_TEMP" | "DEV_GPU_TEMP_SLOWDOWN_CELSIUS" => Self::SlowdownTemperature,
            _ => return None,
        })
    }

    /// Whether it is of the board: exporters repeat it on the row of every MIG instance, where it must not be counted again.
    pub const fn is_of_board(self) -> bool {
        match self {
            Self::Util | Self::MemoryUtil | Self::FbTotal | Self::FbUsed | Self::FbFree | Self::FbReserved | Self::EngineActive | Self::SmActive => {
                false
            }
            Self::Power
            | Self::EnergyMillijoules
            | Self::EnergyJoules
            | Self::Temperature
            | Self::MemoryTemperature
            | Self::SmClock
            | Self::SmClockHertz
            | Self::MemoryClock
            | Self::MemoryClockHertz
            | Self::ThrottleBits
            | Self::PcieTx
            | Self::PcieRx
            | Self::EccUncorrected
            | Self::EccAggregate
            | Self::RemappedRows
            | Self::RemapPending
            | Self::RemapFailure
            | Self::Xid
            | Self::PowerLimit
            | Self::PowerLimitMax
            | Self::SlowdownTemperature => true,
        }
    }

    /// Whether exactly 0 means "not supported": no running board has 0 W, 0 °C, 0 MHz or has never used energy; virtual GPUs and boards
    /// without the sensor print 0 all the same.
    pub const fn zero_is_unsupported(self) -> bool {
        matches!(
            self,
            Self::Power
                | Self::EnergyMillijoules
                | Self::EnergyJoules
                | Self::Temperature
                | Self::MemoryTemperature
                | Self::SmClock
                | Self::SmClockHertz
                | Self::MemoryClock
                | Self::MemoryClockHertz
        )
    }

    /// The field it is reported under, if it is one by itself.
    pub const fn field(self) -> Option<Field> {
        Some(match self {
            Self::Util => Field::UtilPercent,
            Self::MemoryUtil => Field::MemoryUtilPercent,
            Self::FbTotal | Self::FbFree | Self::FbReserved => Field::MemoryTotalBytes,
            Self::FbUsed => Field::MemoryUsedBytes,
            Self::Power => Field::PowerMw,
            Self::EnergyMillijoules | Self::EnergyJoules => Field::EnergyMj,
            Self::Temperature => Field::TemperatureMk,
            Self::MemoryTemperature => Field::MemoryTemperatureMk,
            Self::SmClock | Self::SmClockHertz => Field::SmClockMhz,
            Self::MemoryClock | Self::MemoryClockHertz => Field::MemoryClockMhz,
            Self::ThrottleBits => Field::ThrottleBits,
            Self::SmActive => Field::SmActiveBp,
            Self::PcieTx => Field::PcieTxBytesS,
            Self::PcieRx => Field::PcieRxBytesS,
            Self::EccUncorrected => Field::EccUncorrected,
            Self::EngineActive
            | Self::EccAggregate
            | Self::RemappedRows
            | Self::RemapPending
            | Self::RemapFailure
            | Self::Xid
            | Self::PowerLimit
            | Self::PowerLimitMax
            | Self::SlowdownTemperature => return None,
        })
    }
}
