//! Every GPU of the cell as a decision saw it: the event numbers them by host and slot, SQL knows which they were then.

use plimsoll_schemas::candidates::Candidates;
use plimsoll_schemas::out::CloudEvent;
use plimsoll_schemas::reason::Reason;

use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::{Kind, Table};
use crate::outputs::Decision;
use crate::postgres;

/// What stood in a GPU's way where nothing did.
const COULD: &str = "could have taken it";

/// One row per GPU. Errors where the decision looked at none.
pub async fn of(endpoints: &Endpoints, decision: &Decision, event: &[u8]) -> Result<Table, Error> {
    let Decision::Placed(decided) = decision else {
        return Err(Error::Usage(
            "a request to split work has no candidates: `plimsoll explain` without --candidates says how it was split".to_owned(),
        ));
    };
    let Some(candidates) = &decided.candidates else {
        let reason = decided.reason.map_or("decided before there were any", Reason::code);
        return Err(Error::Usage(format!("no candidate was looked at: {reason}")));
    };
    let event: CloudEvent = serde_json::from_slice(event).map_err(|error| Error::Refused(format!("the decision is no event: {error}")))?;
    let known = postgres::ask(endpoints, &question(&event.time)).await?;
    let reasons = candidates.reasons().map_err(|error| Error::Refused(error.to_string()))?;
    Ok(table(&reasons, known_places(candidates, &known)?))
}

/// The GPUs that were registered at an instant, in the order in which decisions number them. The instant is one that we wrote.
fn question(at: &str) -> String {
    format!(
        "SELECT host, slot FROM devices WHERE valid_from <= timestamptz '{at}' AND (valid_to IS NULL OR valid_to > timestamptz '{at}') \
         ORDER BY host, slot"
    )
}

/// Host and slot by number. Errors where SQL knows of more GPUs than the decision, or of fewer: no name would be certain.
fn known_places<'a>(candidates: &Candidates, known: &'a Table) -> Result<&'a [Vec<Option<String>>], Error> {
    if known.rows.len() == candidates.gpus as usize {
        return Ok(&known.rows);
    }
    let counts: Vec<String> = candidates.refused.keys().map(|reason| reason.code().to_owned()).collect();
    Err(Error::Refused(format!(
        "the decision knew {} GPUs, SQL shows {} for that instant, so none can be named with certainty (reasons given: {}). \
         Was a host announced or retired at that moment? `plimsoll explain` without --candidates says how many were refused for what",
        candidates.gpus,
        known.rows.len(),
        counts.join(", ")
    )))
}

fn table(reasons: &[Option<Reason>], places: &[Vec<Option<String>>]) -> Table {
    let columns = [("host", Kind::Text), ("slot", Kind::Number), ("reason", Kind::Text)];
    let row = |(place, reason): (&Vec<Option<String>>, &Option<Reason>)| {
        place.iter().cloned().chain([Some(reason.map_or(COULD, Reason::code).to_owned())]).collect()
    };
    Table { columns: columns.map(|(name, kind)| (name.to_owned(), kind)).to_vec(), rows: places.iter().zip(reasons).map(row).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(gpus: usize) -> Table {
        let mut known = Table::of_text(&["host", "slot"]);
        known.rows = (0..gpus).map(|gpu| vec![Some(format!("gpu-{}", gpu / 2)), Some((gpu % 2).to_string())]).collect();
        known
    }

    #[test]
    fn every_gpu_is_named_by_host_and_slot_with_its_reason() {
        let candidates = Candidates::of([Some(Reason::Stale), None, Some(Reason::LeaseConflict)]);
        let known = known(3);
        let table = table(&candidates.reasons().expect("readable"), known_places(&candidates, &known).expect("as many"));
        let expected = " host   slot  reason\n gpu-0     0  stale\n gpu-0     1  could have taken it\n gpu-1     0  lease_conflict\n";
        assert_eq!(table.text(""), expected);
    }

    #[test]
    fn where_sql_knows_of_other_gpus_none_is_named() {
        let candidates = Candidates::of([Some(Reason::Stale), None]);
        let error = known_places(&candidates, &known(3)).expect_err("one too many").to_string();
        assert!(error.starts_with("the decision knew 2 GPUs, SQL shows 3"), "{error}");
    }
}
