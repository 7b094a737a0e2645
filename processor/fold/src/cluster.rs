//! The cluster aggregate: what all fresh GPUs of a cell have and use now, in integers. What is not known is not counted as zero:
//! every mean has its own count.

/// What one fresh GPU last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Member {
    /// Memory on board, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Memory in use, bytes.
    pub memory_used_bytes: Option<u64>,
    /// Utilisation; percent in the fold, any fixed unit elsewhere.
    pub util: Option<u64>,
    /// Temperature; millikelvin in the fold, any fixed unit elsewhere.
    pub temperature: Option<u64>,
    /// Power; milliwatts in the fold, any fixed unit elsewhere.
    pub power: Option<u64>,
}

/// A sum and how many values it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Sum {
    /// The sum.
    pub sum: u128,
    /// How many values were known.
    pub count: u64,
}

impl Sum {
    fn add(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.sum += u128::from(value);
            self.count += 1;
        }
    }

    /// The mean, floor; absent if nothing was known.
    pub fn mean(&self) -> Option<u128> {
        self.sum.checked_div(u128::from(self.count))
    }
}

/// What all fresh GPUs have and use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Cluster {
    /// Fresh GPUs.
    pub device_count: u64,
    /// GPUs left out because nothing fresh is known of them.
    pub stale_count: u64,
    /// Memory on board, bytes.
    pub memory_total_bytes: Sum,
    /// Memory in use, bytes.
    pub memory_used_bytes: Sum,
    /// Memory neither in use nor unknown, bytes: of GPUs whose total and use are both known.
    pub memory_available_bytes: Sum,
    /// Utilisation.
    pub util: Sum,
    /// Temperature.
    pub temperature: Sum,
    /// Power.
    pub power: Sum,
}

impl Cluster {
    /// The aggregate of the fresh members and `stale_count` others; absent if there is no GPU at all: no row, not a row of zeros.
    pub fn of(members: impl IntoIterator<Item = Member>, stale_count: u64) -> Option<Self> {
        let mut cluster = Self { stale_count, ..Self::default() };
        for member in members {
            cluster.add(&member);
        }
        (cluster.device_count + stale_count > 0).then_some(cluster)
    }

    fn add(&mut self, member: &Member) {
        self.device_count += 1;
        self.memory_total_bytes.add(member.memory_total_bytes);
        self.memory_used_bytes.add(member.memory_used_bytes);
        let both = member.memory_total_bytes.zip(member.memory_used_bytes);
        self.memory_available_bytes.add(both.map(|(total, used)| total.saturating_sub(used)));
        self.util.add(member.util);
        self.temperature.add(member.temperature);
        self.power.add(member.power);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_pulls_no_mean_down() {
        let known =
            Member { memory_total_bytes: Some(80), memory_used_bytes: Some(20), util: Some(40), temperature: Some(330_000), power: Some(300_000) };
        let silent = Member { memory_total_bytes: Some(80), ..Member::default() };
        let cluster = Cluster::of([known, silent, known], 1).expect("three GPUs");
        assert_eq!((cluster.device_count, cluster.stale_count), (3, 1));
        assert_eq!(cluster.memory_total_bytes, Sum { sum: 240, count: 3 });
        assert_eq!(cluster.memory_available_bytes, Sum { sum: 120, count: 2 });
        assert_eq!((cluster.util.mean(), cluster.temperature.mean()), (Some(40), Some(330_000)));
        assert_eq!(cluster.power, Sum { sum: 600_000, count: 2 });
    }

    #[test]
    fn no_gpu_gives_no_row() {
        assert_eq!(Cluster::of([], 0), None);
        assert_eq!(Cluster::of([], 2).map(|cluster| cluster.util.mean()), Some(None));
    }
}
