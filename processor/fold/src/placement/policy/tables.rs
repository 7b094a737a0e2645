//! Learned tables, as a fleet looks things up in them: how much of what is left on a GPU will still be idle when the fleet is full.

pub use plimsoll_schemas::tables::{CELLS, LEFT_STEP, RATIO_EDGES, RATIOS, Tables};

use super::fleet::{GPUS_PER_HOST_MAX, MILLI};
use super::host::Host;
use super::shape::Shape;

/// One thousandth of a GPU in the unit of the tables.
pub const CENTI: i64 = plimsoll_schemas::tables::CENTI as i64;

/// The place of an amount left and a ratio within a model's numbers.
pub fn cell(left: i32, ratio: usize) -> usize {
    ((left.clamp(0, MILLI) + LEFT_STEP - 1) / LEFT_STEP) as usize * RATIOS + ratio
}

/// The range of CPU per idle GPU.
pub fn ratio(cpu_milli: i64, idle_milli: i64) -> usize {
    let per_gpu = cpu_milli * i64::from(MILLI) / idle_milli.max(1);
    RATIO_EDGES.partition_point(|&edge| edge <= per_gpu)
}

/// Tables as a fleet needs them: one for every model number.
#[derive(Debug, Clone)]
pub struct Waste {
    cells: Vec<i32>,
}

impl Waste {
    /// For a fleet with these models. A model without a table is taken as untaught.
    pub fn new(tables: &Tables, models: &[String]) -> Self {
        let untaught = Tables::untaught(&[String::new()]);
        let of_model = |model: &String| match tables.models.iter().position(|known| known == model) {
            Some(number) => tables.cells.get(number * CELLS..(number + 1) * CELLS).unwrap_or(&untaught.cells).to_vec(),
            None => untaught.cells.clone(),
        };
        Self { cells: models.iter().flat_map(of_model).collect() }
    }

    fn of_model(&self, model: u8) -> &[i32] {
        &self.cells[usize::from(model) * CELLS..][..CELLS]
    }

    /// What will stay idle on a host.
    pub fn of(&self, host: &Host<'_>) -> i64 {
        sum(self.of_model(host.model), host.gpus, ratio(host.cpu_milli, host.idle_milli))
    }

    /// By how much it falls if the shape takes these GPUs. It fits.
    pub fn drop(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> i64 {
        let mut after = [0_i32; GPUS_PER_HOST_MAX];
        let after = &mut after[..host.gpus.len()];
        for (gpu, (after, before)) in after.iter_mut().zip(host.gpus).enumerate() {
            *after = before - shape.milli * (gpus >> gpu & 1) as i32;
        }
        let ratio_after = ratio(host.cpu_milli - shape.cpu_milli, host.idle_milli - shape.total_milli());
        self.of(host) - sum(self.of_model(host.model), after, ratio_after)
    }

    /// By how much it falls if a share is taken from a GPU with this much left, for each of these amounts; in the same order.
    pub fn drops_of_share(&self, host: &Host<'_>, shape: &Shape, lefts: &[i32], drops: &mut [i64]) {
        let cells = self.of_model(host.model);
        let ratio_after = ratio(host.cpu_milli - shape.cpu_milli, host.idle_milli - shape.total_milli());
        let others = self.of(host) - sum(cells, host.gpus, ratio_after);
        for (drop, &left) in drops.iter_mut().zip(lefts) {
            *drop = others + i64::from(cells[cell(left, ratio_after)]) - i64::from(cells[cell(left - shape.milli, ratio_after)]);
        }
    }
}

fn sum(cells: &[i32], gpus: &[i32], ratio: usize) -> i64 {
    gpus.iter().map(|&left| i64::from(cells[cell(left, ratio)])).sum()
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{Fleet, HostSpec, Place};
    use super::super::shape::Models;
    use super::*;

    #[test]
    fn the_drop_is_the_difference_of_before_and_after() {
        let spec = HostSpec { name: "h".to_owned(), rank: 0, cpu_milli: 32_000, memory_mib: 0, gpus: 3, model: "T4".to_owned() };
        let mut fleet = Fleet::new(vec![spec]).expect("valid");
        let mut tables = Tables::untaught(fleet.models());
        assert_eq!(tables.check(), Ok(()));
        for (number, cell) in tables.cells.iter_mut().enumerate().skip(RATIOS) {
            *cell = (number * 7919 % 10_007) as i32;
        }
        let waste = Waste::new(&tables, fleet.models());
        let share = Shape { cpu_milli: 3_000, memory_mib: 0, gpus: 1, milli: 410, models: Models::ANY };
        fleet.place(Place { host: 0, gpus: 2 }, &share);
        for gpu in 0..3 {
            let (before, place) = (fleet.host(0), Place { host: 0, gpus: 1 << gpu });
            let mut after = fleet.clone();
            after.place(place, &share);
            let expected = waste.of(&before) - waste.of(&after.host(0));
            assert_eq!(waste.drop(&before, &share, place.gpus), expected);
            let mut drops = [0];
            waste.drops_of_share(&before, &share, &[before.gpus[gpu]], &mut drops);
            assert_eq!(drops[0], expected);
        }
    }

    #[test]
    fn a_model_that_nobody_taught_is_taken_as_untaught() {
        let models = ["A".to_owned(), "B".to_owned()];
        let mut tables = Tables::untaught(&models[..1]);
        tables.cells.fill(1);
        let waste = Waste::new(&tables, &models);
        assert_eq!(waste.of_model(0)[cell(500, 3)], 1);
        assert_eq!(waste.of_model(1)[cell(500, 3)], 15_000);
        assert_eq!(waste.of_model(1)[cell(1_000, 3)], 4_000);
    }
}
