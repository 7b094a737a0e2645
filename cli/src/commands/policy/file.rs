//! Files with learned tables: what `train` writes and `promote` reads. `compare` and the bench take any file that holds tables.

use std::path::Path;

use plimsoll_fold::placement::policy::train::Tried;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::tables::Tables;
use plimsoll_schemas::time::LogTime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Tables, what they were learned from and how they did. Scores are millionths of the fleet that stay unallocated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// Hash of the tables.
    pub hash: String,
    /// The cell whose past it is.
    pub cell: CellId,
    /// First request, log time, ns.
    pub from: LogTime,
    /// First request that nothing was learned from, log time, ns.
    pub held_out_from: LogTime,
    /// Last request, log time, ns.
    pub to: LogTime,
    /// How many were rehearsed with.
    pub requests_rehearsed: usize,
    /// How many were held out.
    pub requests_held_out: usize,
    /// How many were left out, because no host could ever give what they ask for.
    pub requests_impossible: usize,
    /// Hosts.
    pub hosts: usize,
    /// Thousandths of GPU they have.
    pub capacity_milli: i64,
    /// Rounds of rehearsals.
    pub rounds: usize,
    /// Rehearsals of each round.
    pub sequences: usize,
    /// The first seed used.
    pub seed: u64,
    /// The first seed not used.
    pub seed_after: u64,
    /// The load that taught best, percent.
    pub load_percent: u32,
    /// Every load that was tried.
    pub tried: Vec<Tried>,
    /// The score with these tables.
    pub unallocated_ppm: u64,
    /// The score of the same policy untaught.
    pub untaught_unallocated_ppm: u64,
    /// The score of `fgd`.
    pub fgd_unallocated_ppm: u64,
    /// The tables.
    #[serde(flatten)]
    pub tables: Tables,
}

impl Trained {
    /// Writes the file: one line, the same for the same content.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string(self).expect("names and numbers are JSON");
        std::fs::write(path, text + "\n").map_err(Error::io(format!("cannot write {}", path.display())))
    }

    /// Reads what [`Trained::write`] wrote.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let trained: Self = read(path, "name a file that `plimsoll policy train` wrote")?;
        let hash = trained.tables.hash_hex();
        let checked = trained
            .tables
            .check()
            .and_then(|()| if hash == trained.hash { Ok(()) } else { Err(format!("the hash says {}, the tables give {hash}", trained.hash)) });
        checked.map_err(|what| Error::Data { place: path.display().to_string(), what, hint: "train again" })?;
        Ok(trained)
    }
}

/// The tables of any file that holds some.
pub fn tables(path: &Path) -> Result<Tables, Error> {
    let hint = "name a file that `plimsoll policy train` or `bench openb --save-tables` wrote";
    let tables: Tables = read(path, hint)?;
    tables.check().map_err(|what| Error::Data { place: path.display().to_string(), what, hint })?;
    Ok(tables)
}

fn read<T: DeserializeOwned>(path: &Path, hint: &'static str) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(format!("cannot read {}", path.display())))?;
    let wrong = |error: serde_json::Error| Error::Data { place: format!("{}:{}", path.display(), error.line()), what: error.to_string(), hint };
    serde_json::from_str(&text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Trained {
        let tables = Tables::untaught(&["A".to_owned()]);
        Trained {
            hash: tables.hash_hex(),
            cell: "east-1".parse().expect("a token"),
            from: LogTime(1),
            held_out_from: LogTime(2),
            to: LogTime(3),
            requests_rehearsed: 70,
            requests_held_out: 30,
            requests_impossible: 0,
            hosts: 1,
            capacity_milli: 8_000,
            rounds: 1,
            sequences: 1,
            seed: 1,
            seed_after: 10,
            load_percent: 96,
            tried: vec![Tried { load_percent: 96, unallocated_ppm: vec![5] }],
            unallocated_ppm: 5,
            untaught_unallocated_ppm: 6,
            fgd_unallocated_ppm: 7,
            tables,
        }
    }

    #[test]
    fn a_file_comes_back_the_same_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tables.json");
        trained().write(&path).expect("writable");
        assert_eq!(Trained::read(&path).expect("whole"), trained());
        assert_eq!(tables(&path).expect("whole"), trained().tables);
        let check = |change: &dyn Fn(&mut Trained), expected: &str| {
            let mut changed = trained();
            change(&mut changed);
            changed.write(&path).expect("writable");
            let error = Trained::read(&path).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&|t| t.tables.cells[40] = 7, "the tables give");
        check(&|t| t.tables.cells.truncate(40), "40 cells for 1 models");
        std::fs::write(&path, "{\n").expect("writable");
        assert!(tables(&path).expect_err("damaged").to_string().contains("tables.json:2"));
    }
}
