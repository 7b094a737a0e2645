//! What an XID says about a board: NVIDIA's catalogue (572 driver, 172 codes) as classes, and what a class means for placement.

use crate::registry::Health;

/// What is to be done after an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The board needs a reset.
    ResetGpu,
    /// The machine needs a restart: the board has fallen off the bus.
    RestartMachine,
    /// Somebody has to look at cables, slot and power.
    CheckMechanics,
    /// The board goes back to who sold it.
    ContactSupport,
    /// Memory errors that ECC could not correct.
    Ecc,
    /// A link to other boards.
    Nvlink,
    /// The virtual machine needs a restart.
    RestartVm,
    /// Driver or firmware is too old.
    UpdateSoftware,
    /// The driver has changed its mind about what is to be done; the log line says what.
    RecoveryAction,
    /// An error of the application.
    RestartApplication,
    /// Follows another XID, which says more.
    FollowsAnother,
    /// For people who read logs.
    Ignore,
    /// Not in the catalogue.
    Unknown,
}

impl Class {
    /// The class of a code.
    pub const fn of(code: u32) -> Self {
        match code {
            46 | 62 | 64 | 95 | 110 | 119 | 120 | 136 | 140 | 143 | 155 | 156 | 158 => Self::ResetGpu,
            79 => Self::RestartMachine,
            54 => Self::CheckMechanics,
            142 => Self::ContactSupport,
            48 => Self::Ecc,
            74 | 144..=150 => Self::Nvlink,
            151 => Self::RestartVm,
            78 => Self::UpdateSoftware,
            154 => Self::RecoveryAction,
            45 => Self::FollowsAnother,
            // The catalogue wants a reset after 109, but it follows an application's hang and is no verdict on the board.
            109 => Self::RestartApplication,
            8 | 11 | 13 | 25 | 31 | 32 | 39..=41 | 60 | 68..=72 | 75..=77 | 80 | 82..=86 | 88 | 89 | 94 | 96..=105 | 126..=135 | 139 => {
                Self::RestartApplication
            }
            37 | 38 | 43 | 44 | 63 | 66 | 67 | 92 | 93 | 106 | 107 | 121 | 137 | 141 | 152 | 153 | 157 | 160 | 161 => Self::Ignore,
            _ => Self::Unknown,
        }
    }

    /// What it says about the board.
    pub const fn health(self) -> Health {
        match self {
            Self::ResetGpu | Self::RestartMachine | Self::CheckMechanics | Self::ContactSupport => Health::Failed,
            Self::Ecc | Self::Nvlink | Self::RestartVm => Health::Degraded,
            Self::UpdateSoftware | Self::RecoveryAction | Self::RestartApplication | Self::FollowsAnother | Self::Ignore | Self::Unknown => {
                Health::Ok
            }
        }
    }

    /// What is to be done, for people.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::ResetGpu => "reset the GPU",
            Self::RestartMachine => "restart the machine",
            Self::CheckMechanics => "check cables, slot and power",
            Self::ContactSupport => "contact support",
            Self::Ecc => "uncorrected memory errors: drain and reset",
            Self::Nvlink => "NVLink error: drain and look at the links",
            Self::RestartVm => "restart the virtual machine",
            Self::UpdateSoftware => "update driver and firmware",
            Self::RecoveryAction => "the recovery action has changed",
            Self::RestartApplication => "application error",
            Self::FollowsAnother => "follows another XID",
            Self::Ignore => "nothing to do",
            Self::Unknown => "not in the catalogue",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn board_faults_fail_link_and_memory_faults_degrade_and_application_errors_do_neither() {
        let check = |codes: &[u32], expected: Health| codes.iter().for_each(|&code| assert_eq!(Class::of(code).health(), expected, "XID {code}"));
        check(&[46, 54, 62, 64, 79, 95, 110, 119, 120, 136, 140, 142, 143, 155, 156, 158], Health::Failed);
        check(&[48, 74, 144, 147, 150, 151], Health::Degraded);
        check(&[13, 31, 43, 45, 63, 68, 78, 94, 109, 154, 0, 999, u32::MAX], Health::Ok);
    }
}
