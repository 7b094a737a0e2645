//! Learned tables: how much of what is left on a GPU will still be idle when the fleet is full. Integers, small enough to stand in one
//! message, with a hash by which anybody can tell that they are whole.

use std::collections::BTreeSet;
use std::hash::Hasher;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::inventory::TEXT_BYTES_MAX;

/// Amounts left on a GPU that are told apart: 0, then every 10 thousandths of a GPU.
pub const LEFTS: usize = 101;
/// Thousandths of a GPU between two amounts.
pub const LEFT_STEP: i32 = 10;
/// Where one range of CPU per idle GPU ends and the next begins, thousandths of a core.
pub const RATIO_EDGES: [i64; 29] = [
    500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 9_000, 9_500, 10_000, 10_500, 11_000, 11_500, 12_000, 12_500, 13_000, 13_500,
    14_000, 15_000, 16_000, 18_000, 20_000, 24_000, 30_000, 40_000, 52_000, 80_000,
];
/// Ranges of CPU per idle GPU.
pub const RATIOS: usize = RATIO_EDGES.len() + 1;
/// Numbers per model.
pub const CELLS: usize = LEFTS * RATIOS;
/// One thousandth of a GPU in the unit of the tables.
pub const CENTI: i32 = 100;
/// Most models in one message: with the largest numbers and the longest names they stay below [`crate::frame::BYTES_MAX`].
pub const MODELS_MAX: usize = 40;
/// All of the fleet, millionths.
pub const PPM: u32 = 1_000_000;

/// What will stay idle, by model, amount left and CPU per idle GPU of the host. Unit: hundredths of a thousandth of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tables {
    /// The models, by name.
    #[schemars(length(max = MODELS_MAX))]
    pub models: Vec<String>,
    /// For each model in turn 101 amounts left (0, 10 … 1000 thousandths of a GPU), and for each of them 30 ranges of CPU per idle GPU.
    pub cells: Vec<i32>,
}

impl Tables {
    /// What is assumed before anything is learned: of a part of a GPU 30 percent stay idle, of a whole one 4.
    pub fn untaught(models: &[String]) -> Self {
        let percent = |left: usize| if left == LEFTS - 1 { 4 } else { 30 };
        let of_model = || (0..CELLS).map(|cell| (cell / RATIOS) as i32 * LEFT_STEP * percent(cell / RATIOS));
        Self { models: models.to_vec(), cells: models.iter().flat_map(|_| of_model()).collect() }
    }

    /// A number that tells tables apart: SipHash-2-4 of the names, each with a zero byte behind it, and the cells, little endian.
    pub fn hash(&self) -> u64 {
        let mut hasher = SipHasher24::new_with_key(b"plimsoll-tables\0");
        for model in &self.models {
            hasher.write(model.as_bytes());
            hasher.write_u8(0);
        }
        self.cells.iter().for_each(|cell| hasher.write(&cell.to_le_bytes()));
        hasher.finish()
    }

    /// [`Tables::hash`] as 16 hexadecimal digits.
    pub fn hash_hex(&self) -> String {
        format!("{:016x}", self.hash())
    }

    /// Refuses tables that do not hold what they must, or more than one message can. The error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.models.len() > MODELS_MAX {
            return Err(format!("tables of {} models, at most {MODELS_MAX} fit one message", self.models.len()));
        }
        let mut names = BTreeSet::new();
        for model in &self.models {
            if model.len() > TEXT_BYTES_MAX {
                return Err(format!("a model's name of {} bytes, at most {TEXT_BYTES_MAX}", model.len()));
            }
            if !names.insert(model) {
                return Err(format!("tables name model {model:?} twice"));
            }
        }
        if self.cells.len() != self.models.len() * CELLS {
            return Err(format!("{} cells for {} models, expected {CELLS} for each", self.cells.len(), self.models.len()));
        }
        let most = |cell: usize| (cell % CELLS / RATIOS) as i32 * LEFT_STEP * CENTI;
        match self.cells.iter().enumerate().find(|&(cell, value)| !(0..=most(cell)).contains(value)) {
            Some((cell, value)) => Err(format!("cell {cell} is {value}, expected 0 to {}: no more can stay idle than is left", most(cell))),
            None => Ok(()),
        }
    }
}

/// Tables that were learned, and how they did beside those they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Learned {
    /// Hash of models and cells, 16 hexadecimal digits.
    pub hash: String,
    /// Share of the fleet's GPUs that stays unallocated with them, millionths: the mean over held-out sequences of requests.
    #[schemars(range(max = PPM))]
    pub unallocated_ppm: u32,
    /// The same with the tables in force before, on the same sequences.
    #[schemars(range(max = PPM))]
    pub incumbent_unallocated_ppm: u32,
    /// Hash of those; absent = nothing had been learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incumbent_hash: Option<String>,
    /// The tables.
    #[serde(flatten)]
    pub tables: Tables,
}

impl Learned {
    /// Refuses what cannot be used, or is not what it says it is. The error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        self.tables.check()?;
        let hash = self.tables.hash_hex();
        if self.hash != hash {
            return Err(format!("the hash says {:?}, models and cells give {hash}", crate::frame::cut(&self.hash, 32)));
        }
        match [self.unallocated_ppm, self.incumbent_unallocated_ppm].into_iter().find(|&ppm| ppm > PPM) {
            Some(ppm) => Err(format!("{ppm} millionths of the fleet unallocated, at most {PPM}")),
            None => Ok(()),
        }
    }

    /// Everything but the cells, as one JSON object.
    pub(crate) fn about(&self) -> serde_json::Result<String> {
        let mut about = serde_json::to_value(self)?;
        about.as_object_mut().and_then(|fields| fields.remove("cells"));
        serde_json::to_string(&about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use crate::frame::BYTES_MAX;

    fn learned(tables: Tables) -> Learned {
        Learned { hash: tables.hash_hex(), unallocated_ppm: PPM, incumbent_unallocated_ppm: PPM, incumbent_hash: Some(tables.hash_hex()), tables }
    }

    #[test]
    fn the_largest_tables_fit_one_message() {
        // Six bytes of JSON for one of the name.
        let models: Vec<String> = (0..MODELS_MAX).map(|n| format!("{n:02}{}", "\u{1}".repeat(TEXT_BYTES_MAX - 2))).collect();
        let mut tables = Tables::untaught(&models);
        for (cell, value) in tables.cells.iter_mut().enumerate() {
            *value = (cell % CELLS / RATIOS) as i32 * LEFT_STEP * CENTI;
        }
        assert_eq!(tables.check(), Ok(()));
        let bytes = serde_json::to_vec(&Control::Tables(Box::new(learned(tables)))).expect("plain data").len();
        // What an event has around it is far below the tenth that is left.
        assert!(bytes < BYTES_MAX / 10 * 9, "{bytes}");
    }

    #[test]
    fn what_is_not_whole_is_refused_with_a_sentence() {
        let models = ["A".to_owned(), "B".to_owned()];
        let check = |change: &dyn Fn(&mut Learned), expected: &str| {
            let mut changed = learned(Tables::untaught(&models));
            changed.check().expect("whole");
            change(&mut changed);
            let error = changed.check().expect_err(expected);
            assert!(error.contains(expected), "{error}");
        };
        check(&|l| l.tables.cells.truncate(6_059), "6059 cells for 2 models, expected 3030 for each");
        check(&|l| l.tables.models[1] = "A".to_owned(), "model \"A\" twice");
        check(&|l| l.tables.models[1] = "B".repeat(257), "257 bytes, at most 256");
        check(&|l| l.tables = Tables::untaught(&vec![String::new(); 41]), "tables of 41 models, at most 40 fit one message");
        check(&|l| l.tables.cells[RATIOS] = 1_001, "cell 30 is 1001, expected 0 to 1000");
        check(&|l| l.tables.cells[CELLS] = 1, "cell 3030 is 1, expected 0 to 0: no more can stay idle than is left");
        check(&|l| l.tables.cells[RATIOS] = -1, "cell 30 is -1");
        check(&|l| l.tables.cells[RATIOS] = 7, "the hash says");
        check(&|l| l.hash = "x".to_owned(), "the hash says \"x\", models and cells give ");
        check(&|l| l.unallocated_ppm = PPM + 1, "1000001 millionths");
    }

    #[test]
    fn what_is_said_about_tables_leaves_the_cells_out() {
        let learned = learned(Tables::untaught(&["A".to_owned()]));
        let about: serde_json::Value = serde_json::from_str(&learned.about().expect("plain data")).expect("an object");
        assert_eq!((&about["hash"], &about["models"][0]), (&learned.hash.clone().into(), &"A".into()));
        assert!(about.get("cells").is_none());
    }
}
