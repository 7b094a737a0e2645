//! Placement: gates, then scores, then a choice. Pure functions over candidates; the fold keeps the leases.
