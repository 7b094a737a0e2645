//! Whether a placement request is one this version can place: its bounds, and its shape.

use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{
    BUNDLE_GPUS_MAX, Bundle, LABELS_MAX, LEASE_TTL_MS_DEFAULT, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, Place, TEXT_BYTES_MAX, WHOLE_MILLI,
};

use super::Refused;

/// The one bundle of the request, or why the request cannot be placed: `invalid_request` (a field is missing or out of bounds)
/// or `unsupported_shape` (several bundles, a MIG profile).
pub fn check(request: &Place) -> Result<&Bundle, Refused> {
    let invalid = |detail: String| Err(Refused::new(Reason::InvalidRequest, detail));
    text("request_id", &request.request_id)?;
    for (name, value) in [("model", &request.model), ("workload", &request.workload)] {
        value.as_deref().map_or(Ok(()), |value| text(name, value))?;
    }
    if request.labels.len() > LABELS_MAX {
        return invalid(format!("{} labels, at most {LABELS_MAX}", request.labels.len()));
    }
    for (name, value) in &request.labels {
        if name.is_empty() || name.len() > TEXT_BYTES_MAX || value.len() > TEXT_BYTES_MAX {
            return invalid(format!(
                "a label of {} and {} bytes, a name needs 1 to {TEXT_BYTES_MAX} and a value at most that",
                name.len(),
                value.len()
            ));
        }
    }
    if let Some(ttl) = request.lease_ttl_ms
        && !(LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ttl)
    {
        return invalid(format!("lease_ttl_ms {ttl}, expected {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX}"));
    }
    if request.duration_ms.is_some_and(|ms| i64::try_from(ms).is_err()) {
        return invalid("duration_ms is beyond what a signed 64-bit number holds".to_owned());
    }
    let bundle = match request.bundles.as_slice() {
        [] => return invalid("no bundle: say what is needed".to_owned()),
        [bundle] => bundle,
        more => return Err(Refused::new(Reason::UnsupportedShape, format!("{} bundles, this version places exactly one", more.len()))),
    };
    if let Some(profile) = &bundle.mig_profile {
        return Err(Refused::new(Reason::UnsupportedShape, format!("MIG profile {:?}, this version places whole GPUs and shares", shorten(profile))));
    }
    if !(1..=BUNDLE_GPUS_MAX).contains(&bundle.count) {
        return invalid(format!("count {}, expected 1 to {BUNDLE_GPUS_MAX}", bundle.count));
    }
    if !(1..=WHOLE_MILLI).contains(&bundle.milli) {
        return invalid(format!("milli {}, expected 1 to {WHOLE_MILLI}", bundle.milli));
    }
    if i64::try_from(bundle.vram_bytes).is_err() {
        return invalid(format!("vram_bytes {}, at most {}", bundle.vram_bytes, i64::MAX));
    }
    Ok(bundle)
}

/// How long the lease of a request lives without a renewal, ms.
pub fn lease_ttl_ms(request: &Place) -> u64 {
    request.lease_ttl_ms.unwrap_or(LEASE_TTL_MS_DEFAULT)
}

/// Refuses an id or name that is empty or longer than 128 bytes.
pub fn text(name: &str, value: &str) -> Result<(), Refused> {
    if (1..=TEXT_BYTES_MAX).contains(&value.len()) {
        Ok(())
    } else {
        Err(Refused::new(Reason::InvalidRequest, format!("{name} of {} bytes, expected 1 to {TEXT_BYTES_MAX}", value.len())))
    }
}

fn shorten(text: &str) -> &str {
    plimsoll_schemas::frame::cut(text, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_change(change: impl FnOnce(&mut Place), expected: Option<Reason>) {
        let mut request = Place {
            request_id: "r".to_owned(),
            bundles: vec![Bundle { count: 1, milli: 1_000, vram_bytes: 0, mig_profile: None }],
            model: None,
            workload: None,
            duration_ms: None,
            priority: 0,
            lease_ttl_ms: None,
            labels: Default::default(),
        };
        change(&mut request);
        let refused = check(&request).err();
        assert_eq!(refused.as_ref().map(|r| r.reason), expected, "{request:?}: {refused:?}");
    }

    #[test]
    fn every_bound_is_refused_by_name_and_its_edge_is_taken() {
        let invalid = Some(Reason::InvalidRequest);
        check_change(|_| {}, None);
        check_change(|r| r.request_id = String::new(), invalid);
        check_change(|r| r.request_id = "x".repeat(128), None);
        check_change(|r| r.request_id = "x".repeat(129), invalid);
        check_change(|r| r.model = Some(String::new()), invalid);
        check_change(|r| r.workload = Some("x".repeat(129)), invalid);
        check_change(|r| r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(), invalid);
        check_change(|r| r.labels = [(String::new(), String::new())].into(), invalid);
        check_change(|r| r.lease_ttl_ms = Some(9_999), invalid);
        check_change(|r| r.lease_ttl_ms = Some(10_000), None);
        check_change(|r| r.lease_ttl_ms = Some(LEASE_TTL_MS_MAX + 1), invalid);
        check_change(|r| r.duration_ms = Some(u64::MAX), invalid);
        check_change(|r| r.bundles.clear(), invalid);
        check_change(|r| r.bundles[0].count = 0, invalid);
        check_change(|r| r.bundles[0].count = 1_025, invalid);
        check_change(|r| r.bundles[0].milli = 0, invalid);
        check_change(|r| r.bundles[0].milli = 1_001, invalid);
        check_change(|r| r.bundles[0].vram_bytes = u64::MAX, invalid);
    }

    #[test]
    fn shapes_of_later_versions_are_unsupported_not_invalid() {
        check_change(|r| r.bundles.push(r.bundles[0].clone()), Some(Reason::UnsupportedShape));
        check_change(|r| r.bundles[0].mig_profile = Some("1g.10gb".to_owned()), Some(Reason::UnsupportedShape));
    }
}
