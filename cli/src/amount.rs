//! Amounts as people type them: a length of time, of memory, of CPU.

use std::time::Duration;

/// A length of time: a whole number and ms, s, m, h or d.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time: give a whole number and ms, s, m, h or d, such as 90s");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// The same in milliseconds.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    // It was made of whole milliseconds that a u64 holds.
    Ok(duration(text)?.as_millis() as u64)
}

/// An amount of memory in bytes: a whole number and B, KB, MB, GB, TB or KiB, MiB, GiB, TiB.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no amount of memory: give a whole number and a unit, such as 40GiB or 80GB");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Cores in thousandths: a number with at most three decimals.
pub fn cores_milli(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of cores: give 8, 0.5 or at most three decimals");
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return Err(wrong());
    }
    let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1_000)).ok_or_else(wrong)?;
    let milli: u64 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
    whole.checked_add(milli).ok_or_else(wrong)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..at].parse().ok()?, text[at..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(bytes(text).ok(), expected, "{text}");
        check("40GiB", Some(40 << 30));
        check("80 GB", Some(80_000_000_000));
        check("123", Some(123));
        check("40gigs", None);
        check("", None);
        check("-1GB", None);
        check("99999999999TiB", None);
    }

    #[test]
    fn lengths_of_time_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(duration_ms(text).ok(), expected, "{text}");
        check("60s", Some(60_000));
        check("250ms", Some(250));
        check("4h", Some(14_400_000));
        check("60", None);
        check("s", None);
        check("99999999999999999d", None);
    }

    #[test]
    fn cores_are_counted_in_thousandths() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(cores_milli(text).ok(), expected, "{text}");
        check("8", Some(8_000));
        check("0.5", Some(500));
        check("1.025", Some(1_025));
        for wrong in ["", ".5", "1.", "1.0005", "-1", "+1", "8c", "99999999999999999999"] {
            check(wrong, None);
        }
    }
}
