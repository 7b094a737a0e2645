//! The published experiment on the openb traces: what it places, in which order, and how the result is measured. Pure: texts and
//! bytes in, numbers out. It has nothing to do with the placement of a living cell, but shows on known ground what a policy is
//! worth.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its published simulator and results.

pub mod trace;
pub mod arrivals;
pub mod curve;

use super::policy::placer::Placer;
use super::policy::shape::Shape;
use curve::Curve;

/// Offers the shapes one after the other and measures; a request that does not fit is forgotten.
pub fn run<'a>(placer: &mut Placer, shapes: impl IntoIterator<Item = &'a Shape>) -> Curve {
    let mut curve = Curve::new(placer.fleet().capacity_milli());
    for shape in shapes {
        let placed = placer.place(shape).is_some();
        curve.add(shape.total_milli(), placed);
    }
    curve
}
