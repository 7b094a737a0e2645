//! Whether a fleet still has a filling ahead. Tables say what will be idle when it is full, and know of nothing that leaves. While
//! a fleet fills, most of what is idle is expected to be used, and what they say counts. Once half of it is expected to stay idle,
//! the fleet is about as full as it gets: from there on what leaves makes the room, and tables count for nothing.

use super::fleet::Fleet;
use super::host::Host;
use super::tables::{CENTI, Waste};

/// Sums over the fleet. They depend on nothing but the fleet as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ahead {
    idle_milli: i64,
    /// What will stay idle of it, in the unit of the tables.
    staying: i64,
}

impl Ahead {
    /// Of a fleet.
    pub fn of(fleet: &Fleet, waste: &Waste) -> Self {
        let mut ahead = Self::default();
        fleet.hosts().for_each(|host| ahead.count(&host, waste, 1));
        ahead
    }

    /// Whether more than half of what is idle is expected to be used. Asking for more (70 percent) loses less where requests for several GPUs
    /// come and go, but fills fleets that run out of CPU first less well.
    pub fn is_filling(&self) -> bool {
        2 * self.staying < self.idle_milli * CENTI
    }

    /// A host is about to change.
    pub fn before_change(&mut self, host: &Host<'_>, waste: &Waste) {
        self.count(host, waste, -1);
    }

    /// A host has changed.
    pub fn after_change(&mut self, host: &Host<'_>, waste: &Waste) {
        self.count(host, waste, 1);
    }

    fn count(&mut self, host: &Host<'_>, waste: &Waste, sign: i64) {
        self.idle_milli += sign * host.idle_milli;
        self.staying += sign * waste.of(host);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{HostSpec, Place};
    use super::super::shape::{Models, Shape};
    use super::super::tables::Tables;
    use super::*;

    #[test]
    fn a_filling_is_over_once_half_of_what_is_idle_is_expected_to_stay_idle() {
        let check = |idle_milli: i64, staying_percent: i64, expected: bool| {
            let ahead = Ahead { idle_milli, staying: idle_milli * CENTI * staying_percent / 100 };
            assert_eq!(ahead.is_filling(), expected, "{idle_milli} {staying_percent}");
        };
        check(700, 4, true);
        check(700, 49, true);
        check(700, 50, false);
        check(700, 100, false);
        check(0, 0, false);
    }

    #[test]
    fn sums_kept_along_the_way_are_those_of_the_fleet_as_it_is() {
        let host = |name: &str| HostSpec { name: name.to_owned(), rank: 0, cpu_milli: 9_000, memory_mib: 0, gpus: 2, model: "G2".to_owned() };
        let mut fleet = Fleet::new(vec![host("a"), host("b")]).expect("valid");
        let waste = Waste::new(&Tables::untaught(fleet.models()), fleet.models());
        let mut ahead = Ahead::of(&fleet, &waste);
        let share = Shape { cpu_milli: 1_000, memory_mib: 0, gpus: 1, milli: 700, models: Models::ANY };
        for (host, gpus) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
            ahead.before_change(&fleet.host(host), &waste);
            fleet.place(Place { host, gpus }, &share);
            ahead.after_change(&fleet.host(host), &waste);
            assert_eq!(ahead, Ahead::of(&fleet, &waste));
        }
        // Of a part of a GPU 30 percent stay idle.
        assert_eq!(ahead, Ahead { idle_milli: 1_200, staying: 360 * CENTI });
    }
}
