//! `plimsoll policy use` and `policy quota`: which policy places, and how much a tenant may hold.

use clap::Args;
use plimsoll_schemas::control::{Control, POWER_WEIGHT_MAX};
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::request::WHOLE_MILLI;

use crate::visible::Wait;

/// Which policy.
#[derive(Debug, Args)]
pub struct Use {
    /// Such as best_fit or hybrid@1; without a version it is the first
    #[arg(value_name = "NAME[@VERSION]", value_parser = versioned)]
    policy: (String, u32),
    /// How many of 100 parts of a decision it is to wake no GPU that sleeps, by the power limits that GPUs announce; the policy has the others
    #[arg(long, value_name = "PARTS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=i64::from(POWER_WEIGHT_MAX)))]
    power_weight: u32,
    #[command(flatten)]
    wait: Wait,
}

impl Use {
    /// The record that puts it into force.
    pub fn control(self) -> (Wait, Control) {
        let (policy, version) = self.policy;
        (self.wait, Control::Placement { policy, version, power_weight: self.power_weight })
    }
}

/// Whose quota, and how much.
#[derive(Debug, Args)]
#[group(id = "amount", required = true, multiple = false, args = ["gpus", "milli", "off"])]
pub struct Quota {
    /// The tenant
    tenant: TenantId,
    /// Whole GPUs at most, all its leases together
    #[arg(long)]
    gpus: Option<u32>,
    /// Thousandths of GPUs at most
    #[arg(long)]
    milli: Option<u64>,
    /// No bound any more
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Quota {
    /// The record that puts it into force.
    pub fn control(self) -> (Wait, Control) {
        let gpu_milli_max = self.gpus.map(|gpus| u64::from(gpus) * u64::from(WHOLE_MILLI)).or(self.milli);
        (self.wait, Control::Quota { tenant: self.tenant, gpu_milli_max })
    }
}

/// Which policies there are is for the fold to say: it may know others than this command.
fn versioned(text: &str) -> Result<(String, u32), String> {
    let (name, version) = text.split_once('@').unwrap_or((text, "1"));
    match version.parse() {
        Ok(version) if !name.is_empty() => Ok((name.to_owned(), version)),
        _ => Err(format!("{text:?} is no policy: give a name, or a name and a version, such as best_fit@1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    enum Line {
        Use(Use),
        Quota(Quota),
    }

    fn control(line: &str) -> Result<Control, String> {
        let line = Line::try_parse_from(std::iter::once("policy").chain(line.split_whitespace())).map_err(|error| error.to_string())?;
        Ok(match line {
            Line::Use(this) => this.control().1,
            Line::Quota(quota) => quota.control().1,
        })
    }

    #[test]
    fn a_policy_is_named_with_or_without_its_version() {
        let placement = |policy: &str, version, power_weight| Ok(Control::Placement { policy: policy.to_owned(), version, power_weight });
        assert_eq!(control("use best_fit"), placement("best_fit", 1, 0));
        assert_eq!(control("use hybrid@2 --power-weight 5"), placement("hybrid", 2, 5));
        assert!(control("use fgd --power-weight 101").is_err_and(|error| error.contains("0..=100")));
        for wrong in ["use @1", "use hybrid@", "use hybrid@new"] {
            assert!(control(wrong).expect_err(wrong).contains("such as best_fit@1"), "{wrong}");
        }
    }

    #[test]
    fn a_quota_is_in_gpus_or_thousandths_or_off_and_never_two_of_them() {
        let quota = |gpu_milli_max| Ok(Control::Quota { tenant: "research".parse().expect("a token"), gpu_milli_max });
        assert_eq!(control("quota research --gpus 8"), quota(Some(8_000)));
        assert_eq!(control("quota research --milli 1500"), quota(Some(1_500)));
        assert_eq!(control("quota research --gpus 0"), quota(Some(0)));
        assert_eq!(control("quota research --off"), quota(None));
        assert!(control("quota research").is_err_and(|error| error.contains("--gpus")));
        assert!(control("quota research --gpus 8 --off").is_err_and(|error| error.contains("cannot be used with")));
    }
}
