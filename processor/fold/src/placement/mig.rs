//! MIG instances that do not exist yet: where on a board one may be made, and which of those places costs least.
//!
//! A place is legal if the driver says so, and open if no instance that exists or is promised overlaps it. What a new instance costs is the
//! share of legal places that are open now and would not be afterwards, each profile of the board counting the same whatever its size. It is
//! a share of all legal places, not of those still open: so what is lost on a board that is nearly full is little, and empty boards stay whole.

use std::cmp::Reverse;
use std::sync::Arc;

use plimsoll_schemas::mig::{Mig, PROFILES_MAX, Profile, Promise, Slices};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::Bundle;

use super::answers::Look;
use super::candidate::Candidate;
use super::policy::fleet::GPUS_PER_HOST_MAX;

/// All legal places of a board, in millionths.
const MICRO: i64 = 1_000_000;
/// The key of a host on which nothing would have to be made; below that of every policy's bid.
const KEY_MAX: i64 = i64::MIN / 2;
/// How much an instance that has to be made takes from the key besides what it costs: more than all of them can cost together.
const KEY_PER_INSTANCE: i64 = 1 << 40;

/// A board with MIG mode on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// What its driver says.
    can: Arc<Mig>,
    /// Memory slices that are taken or promised: bit i = slice i.
    taken: u64,
    /// Those that are kept for a request that waits.
    kept: u64,
    /// Instances of each profile that exist or are promised, in the order of the profiles.
    made: [u8; PROFILES_MAX],
}

/// A place for a new instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its profile, by its place among those of the board.
    profile: usize,
    /// Where it is to stand.
    pub slices: Slices,
    /// What it costs: the mean over all profiles of the share of legal places lost, millionths.
    pub lost_micro: i64,
}

impl Board {
    /// A board with the instances that exist on it.
    pub fn new(can: Arc<Mig>) -> Self {
        let mut board = Self { can, taken: 0, kept: 0, made: [0; PROFILES_MAX] };
        board.forget();
        board
    }

    /// Forgets what is promised or kept: what exists is left.
    pub fn forget(&mut self) {
        (self.taken, self.kept, self.made) = (0, 0, [0; PROFILES_MAX]);
        for at in 0..self.can.instances.len() {
            self.taken |= self.can.instances[at].slices().mask();
            self.count(self.profile(&self.can.instances[at].profile));
        }
    }

    /// Takes what is promised. An instance that already exists there is the promised one.
    pub fn promise(&mut self, promise: &Promise) {
        let mask = promise.slices().mask();
        if !self.can.instances.iter().any(|instance| instance.slices().mask() & mask != 0) {
            self.count(self.profile(&promise.profile));
        }
        self.taken |= mask;
    }

    /// Takes all of it: it was leased as a whole when MIG mode was off.
    pub fn close(&mut self) {
        self.taken = u64::MAX;
    }

    /// Keeps slices for a request that waits, whoever has them now.
    pub fn keep(&mut self, slices: Slices) {
        self.kept |= slices.mask();
    }

    fn count(&mut self, profile: Option<usize>) {
        if let Some(at) = profile {
            self.made[at] = self.made[at].saturating_add(1);
        }
    }

    /// The place of a profile among those of the board, if it has it.
    pub fn profile(&self, name: &str) -> Option<usize> {
        self.can.profiles.iter().take(PROFILES_MAX).position(|profile| profile.name == name)
    }

    /// A profile of the board by its place.
    pub fn profile_at(&self, at: usize) -> &Profile {
        &self.can.profiles[at]
    }

    /// Takes a place.
    pub fn take(&mut self, made: Made) {
        self.taken |= made.slices.mask();
        self.made[made.profile] = self.made[made.profile].saturating_add(1);
    }

    /// Gives back what [`Board::take`] took.
    pub fn give_back(&mut self, made: Made) {
        self.taken &= !made.slices.mask();
        self.made[made.profile] = self.made[made.profile].saturating_sub(1);
    }

    /// Memory slices still free of those that a profile can use.
    pub fn free_slices(&self, profile: usize) -> u32 {
        let usable = self.can.profiles[profile].places().fold(0, |set, place| set | place.mask());
        (usable & !self.taken & !self.kept).count_ones()
    }

    /// The legal places of a profile that are open, by start.
    fn open(&self, profile: usize) -> impl Iterator<Item = Slices> {
        self.open_but(profile, self.taken | self.kept)
    }

    /// The same where these slices are not.
    fn open_but(&self, profile: usize, taken: u64) -> impl Iterator<Item = Slices> {
        let of = &self.can.profiles[profile];
        let more = of.instances_max.is_none_or(|most| self.made[profile] < most);
        of.places().filter(move |place| more && place.mask() & taken == 0)
    }

    /// Errors if no instance of a profile can be made: `reserved` where slices are kept for another request, `mig_no_slice` where too few are
    /// free, `mig_start` where they do not lie right.
    pub fn has_room(&self, profile: usize) -> Result<(), Reason> {
        if self.open(profile).next().is_some() {
            return Ok(());
        }
        if self.open_but(profile, self.taken).next().is_some() {
            return Err(Reason::Reserved);
        }
        let few = self.free_slices(profile) < u32::from(self.can.profiles[profile].size);
        Err(if few { Reason::MigNoSlice } else { Reason::MigStart })
    }

    /// Whether an instance of any profile can be made.
    pub fn takes_any(&self) -> bool {
        (0..self.can.profiles.len().min(PROFILES_MAX)).any(|profile| self.has_room(profile).is_ok())
    }

    /// The open place of a profile that costs least, of equals the first; absent if there is none.
    pub fn best(&self, profile: usize) -> Option<Made> {
        let made = |slices| Made { profile, slices, lost_micro: self.lost_micro(profile, slices) };
        self.open(profile).map(made).min_by_key(|made| (made.lost_micro, made.slices))
    }

    fn lost_micro(&self, profile: usize, slices: Slices) -> i64 {
        let mut after = self.clone();
        after.take(Made { profile, slices, lost_micro: 0 });
        let profiles = self.can.profiles.len().min(PROFILES_MAX);
        let lost = |of: usize| {
            let (before, after, all) = (self.open(of).count(), after.open(of).count(), self.can.profiles[of].starts.len());
            (before - after) as i64 * MICRO / all.max(1) as i64
        };
        (0..profiles).map(lost).sum::<i64>() / profiles.max(1) as i64
    }
}

/// What a member takes of a host on which instances have to be made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Making {
    /// All it takes: bit i = GPU i.
    pub gpus: u64,
    /// What is made, by board.
    pub made: Vec<(usize, Made)>,
    /// What the host is worth: first the fewest that have to be made, then what they cost. Less than every policy's bid.
    pub key: i64,
}

/// Of the GPUs that would do for a member of the bundle those that are there already.
pub fn ready(gpus: &[Candidate], open: u64, bundle: &Bundle) -> u64 {
    if bundle.mig_profile.is_none() {
        return open;
    }
    let boards = gpus.iter().take(GPUS_PER_HOST_MAX).enumerate().filter(|(_, gpu)| gpu.mig.is_some());
    boards.fold(open, |open, (at, _)| open & !(1 << at))
}

/// What a member of the bundle would take of a host's GPUs, of which those in `look` would do; absent where nothing has to be made for it.
/// Instances that exist come first, then the boards on which a new one costs least, of equals the first.
pub fn making(gpus: &[Candidate], look: Look, bundle: &Bundle) -> Option<Making> {
    let (name, Look { open, ready, .. }) = (bundle.mig_profile.as_deref()?, look);
    let missing = bundle.count.checked_sub(ready.count_ones()).filter(|&missing| missing > 0)?;
    let on_board = |at: usize| {
        let board = gpus[at].mig.as_ref()?;
        Some((at, board.best(board.profile(name)?)?))
    };
    let mut made: Vec<(usize, Made)> =
        (0..gpus.len().min(GPUS_PER_HOST_MAX)).filter(|at| (open & !ready) >> at & 1 == 1).filter_map(on_board).collect();
    made.sort_by_key(|&(at, made)| (made.lost_micro, at));
    made.truncate(missing as usize);
    let cost: i64 = made.iter().map(|(_, made)| KEY_PER_INSTANCE + made.lost_micro).sum();
    Some(Making { gpus: made.iter().fold(ready, |set, &(at, _)| set | 1 << at), made, key: KEY_MAX - cost })
}

/// What a host's key says to people, in millionths of legal places kept, where instances have to be made; absent where the key is a policy's.
pub fn worth_micro(key: i64) -> Option<i64> {
    let cost = KEY_MAX.checked_sub(key).filter(|&cost| cost > 0)?;
    Some(-(cost % KEY_PER_INSTANCE))
}

/// The order in which members are placed, among those of one size: the largest profile first, by what the largest of these boards says of it.
pub fn largest_first<'a>(gpus: impl Iterator<Item = &'a Candidate>, bundle: &Bundle) -> Reverse<u8> {
    let name = bundle.mig_profile.as_deref();
    let size = |gpu: &Candidate| {
        let board = gpu.mig.as_ref()?;
        Some(board.profile_at(board.profile(name?)?).size)
    };
    Reverse(if name.is_some() { gpus.filter_map(size).max().unwrap_or(0) } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::mig::Instance;

    /// A board with eight memory slices of which one cannot be used by small instances, as they are common.
    fn eight(instances: &[(&str, u8)]) -> Mig {
        let profile = |name: &str, size, starts: &[u8], instances_max| Profile {
            name: name.to_owned(),
            memory_bytes: u64::from(size) << 30,
            size,
            starts: starts.to_vec(),
            instances_max,
        };
        let profiles = vec![
            profile("1g", 1, &[0, 1, 2, 3, 4, 5, 6], None),
            profile("1g+me", 1, &[0, 1, 2, 3, 4, 5, 6], Some(1)),
            profile("1g+", 2, &[0, 2, 4, 6], None),
            profile("2g", 2, &[0, 2, 4], None),
            profile("3g", 4, &[0, 4], None),
            profile("4g", 4, &[0], None),
            profile("7g", 8, &[0], None),
        ];
        let size = |name: &str| profiles.iter().find(|profile| profile.name == name).map_or(1, |profile| profile.size);
        let instances = instances.iter().map(|&(name, start)| Instance { profile: name.to_owned(), start, size: size(name), uuid: None }).collect();
        Mig { profiles, instances }
    }

    fn check(instances: &[(&str, u8)], promised: &[(&str, u8, u8)], wanted: &str, expected: Result<u8, Reason>) {
        let mut board = Board::new(Arc::new(eight(instances)));
        for &(name, start, size) in promised {
            board.promise(&Promise { profile: name.to_owned(), start, size });
        }
        let profile = board.profile(wanted).expect("a profile of the board");
        let found = board.has_room(profile).map(|()| board.best(profile).expect("there is room").slices.start);
        assert_eq!(found, expected, "{wanted} on {instances:?} and {promised:?}");
    }

    #[test]
    fn a_new_instance_stands_where_the_least_is_lost_and_on_nothing_else() {
        check(&[], &[], "1g", Ok(6));
        check(&[], &[], "2g", Ok(4));
        check(&[], &[], "3g", Ok(4));
        check(&[], &[], "7g", Ok(0));
        check(&[("1g", 6)], &[], "1g", Ok(4));
        check(&[("1g", 6)], &[("1g", 4, 1)], "1g", Ok(5));
        check(&[("3g", 4)], &[], "4g", Ok(0));
        check(&[("1g", 6)], &[], "3g", Ok(0));
        check(&[("2g", 0), ("2g", 2)], &[("2g", 4, 2)], "1g+", Ok(6));
    }

    #[test]
    fn too_few_slices_and_slices_that_lie_wrong_are_told_apart() {
        let (few, start) = (Err(Reason::MigNoSlice), Err(Reason::MigStart));
        check(&[("1g", 0)], &[], "7g", few);
        check(&[("1g", 1)], &[("1g", 5, 1)], "3g", start);
        check(&[("3g", 0)], &[], "4g", few);
        check(&[("1g", 1)], &[], "4g", few);
        // The eighth slice is free, and no small instance can use it.
        check(&[("4g", 0), ("2g", 4), ("1g", 6)], &[], "1g", few);
        check(&[("1g+me", 3)], &[], "1g+me", start);
        check(&[], &[("1g+me", 3, 1)], "1g+me", start);
    }

    #[test]
    fn an_instance_that_was_promised_is_not_counted_twice() {
        let mut board = Board::new(Arc::new(eight(&[("1g+me", 3)])));
        let before = board.clone();
        board.promise(&Promise { profile: "1g+me".to_owned(), start: 3, size: 1 });
        assert_eq!(board, before);
        board.close();
        assert_eq!(board.has_room(0), Err(Reason::MigNoSlice));
        board.forget();
        assert_eq!(board, before);
    }

    #[test]
    fn slices_that_are_kept_are_for_nobody_else_and_the_others_are() {
        let mut board = Board::new(Arc::new(eight(&[("2g", 0)])));
        board.keep(Slices { start: 0, size: 4 });
        let room = |name: &str| board.has_room(board.profile(name).expect("a profile of the board")).map(|()| name.to_owned());
        let best = |name: &str| board.best(board.profile(name)?).map(|made| made.slices.start);
        assert_eq!((best("1g"), best("2g"), best("3g")), (Some(6), Some(4), Some(4)));
        assert_eq!((room("4g"), room("7g")), (Err(Reason::MigNoSlice), Err(Reason::MigNoSlice)), "somebody has a part of it");
        board.keep(Slices { start: 4, size: 4 });
        let room = |name: &str| board.has_room(board.profile(name).expect("a profile of the board"));
        assert_eq!((room("1g"), room("3g")), (Err(Reason::Reserved), Err(Reason::Reserved)));
    }

    #[test]
    fn what_is_taken_can_be_given_back() {
        let mut board = Board::new(Arc::new(eight(&[("2g", 0)])));
        let before = board.clone();
        let made = board.best(0).expect("room");
        board.take(made);
        assert_ne!(board, before);
        board.give_back(made);
        assert_eq!(board, before);
    }

    #[test]
    fn a_key_says_what_was_lost() {
        assert_eq!(worth_micro(KEY_MAX - 2 * KEY_PER_INSTANCE - 333_333), Some(-333_333));
        assert_eq!((worth_micro(KEY_MAX), worth_micro(-5), worth_micro(i64::MAX)), (None, None, None));
    }
}
