//! The tables of SQL as Arrow: every column with its type and its sentence, and rows of the fold as record batches.
//!
//! After the columns that SQL shows stand hidden ones (`_…`): where a row came from, and for windows what adding parts needs.
//! A column that nothing fills yet is present and NULL.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::row::{
    AlertRow, DecisionRow, DeviceEventRow, DeviceRow, EpisodeRow, GapRow, HostRow, HostWindowRow, LeaseDeviceRow, LeaseRow, PlacedRow, PolicyRow,
    RejectedRow, RequestRow, Row, SampleRow, Table, WindowRow,
};
use plimsoll_schemas::sample::celsius;

use crate::archive::Error;
use crate::column::{self, Column, Get, Source, int16, int32, int64};

/// Version of these schemas: it stands in every manifest entry and grows when a column changes.
pub const SCHEMA_VERSION: u32 = 3;

static SCHEMAS: LazyLock<BTreeMap<Table, SchemaRef>> = LazyLock::new(|| Table::ALL.iter().map(|&table| (table, make_schema(table))).collect());
static SAMPLES: LazyLock<SchemaRef> = LazyLock::new(|| column::schema(&samples()));

/// The table's columns: those of SQL, then the hidden ones, last `_epoch`, `_seq`, `_ordinal` (the row's place in the log).
pub fn schema(table: Table) -> SchemaRef {
    SCHEMAS[&table].clone()
}

/// The columns of `samples`, all of them shown.
pub fn samples_schema() -> SchemaRef {
    SAMPLES.clone()
}

/// The rows as one batch, in the order given. Errors if a row belongs to another table.
pub fn batch(table: Table, cell: &CellId, rows: &[PlacedRow]) -> Result<RecordBatch, Error> {
    if let Some(stray) = rows.iter().find(|row| row.row.table() != table) {
        return Err(Error::WrongTable { expected: table.name(), found: stray.row.table().name() });
    }
    match table {
        Table::GpuWindows10s | Table::GpuWindows1m | Table::GpuWindows1h => {
            build(table, cell, rows, &windows(), |row| if let Row::Window(_, row) = row { Some(row) } else { None })
        }
        Table::Devices => build(table, cell, rows, &devices(), |row| if let Row::Device(row) = row { Some(row) } else { None }),
        Table::Hosts => build(table, cell, rows, &hosts(), |row| if let Row::Host(row) = row { Some(row) } else { None }),
        Table::PlacementRequests => build(table, cell, rows, &requests(), |row| if let Row::Request(row) = row { Some(row) } else { None }),
        Table::PlacementDecisions => build(table, cell, rows, &decisions(), |row| if let Row::Decision(row) = row { Some(row) } else { None }),
        Table::Leases => build(table, cell, rows, &leases(), |row| if let Row::Lease(row) = row { Some(row) } else { None }),
        Table::LeaseDevices => build(table, cell, rows, &lease_devices(), |row| if let Row::LeaseDevice(row) = row { Some(row) } else { None }),
        Table::Rejected => build(table, cell, rows, &rejected(), |row| if let Row::Rejected(row) = row { Some(row) } else { None }),
        Table::DeviceEvents => build(table, cell, rows, &device_events(), |row| if let Row::DeviceEvent(row) = row { Some(row) } else { None }),
        Table::Gaps => build(table, cell, rows, &gaps(), |row| if let Row::Gap(row) = row { Some(row) } else { None }),
        Table::Policies => build(table, cell, rows, &policies(), |row| if let Row::Policy(row) = row { Some(row) } else { None }),
        Table::Alerts => build(table, cell, rows, &alerts(), |row| if let Row::Alert(row) = row { Some(row) } else { None }),
        Table::HostWindows1m => build(table, cell, rows, &host_windows(), |row| if let Row::HostWindow(row) = row { Some(row) } else { None }),
        Table::Episodes => build(table, cell, rows, &episodes(), |row| if let Row::Episode(row) = row { Some(row) } else { None }),
    }
}

/// Samples of the recent ring as one batch, in the order given.
pub fn samples_batch(cell: &CellId, rows: &[SampleRow]) -> Result<RecordBatch, Error> {
    let sources: Vec<_> = rows.iter().map(|row| Source { cell, position: Default::default(), ordinal: 0, row }).collect();
    Ok(column::batch(samples_schema(), &samples(), &sources)?)
}

/// The column that places a row in time: its day is the file's folder, its range stands in the manifest.
/// A host's own clock is used only where nothing else is known.
pub const fn time_column(table: Table) -> &'static str {
    match table {
        Table::GpuWindows10s | Table::GpuWindows1m | Table::GpuWindows1h | Table::HostWindows1m => "window_at",
        Table::Devices | Table::Hosts | Table::Policies => "valid_from",
        Table::Alerts => "fired_at",
        Table::PlacementRequests => "requested_at",
        Table::PlacementDecisions => "decided_at",
        Table::Leases => "granted_at",
        Table::LeaseDevices => "from_at",
        Table::Rejected => "logged_at",
        Table::DeviceEvents => "happened_at",
        Table::Gaps => "opened_at",
        Table::Episodes => "started_at",
    }
}

/// The columns by which rows are the same thing: versions of it in mutable tables, parts of it in windows. Empty = every row is its own.
pub const fn key_columns(table: Table) -> &'static [&'static str] {
    match table {
        Table::GpuWindows10s | Table::GpuWindows1m | Table::GpuWindows1h => &["device_key", "window_at"],
        Table::Devices => &["device_key", "valid_from"],
        Table::Hosts => &["host", "valid_from"],
        Table::Leases => &["lease_id"],
        Table::Policies => &["kind", "name", "valid_from"],
        Table::Alerts => &["alert_id"],
        Table::LeaseDevices => &["lease_id", "device_key"],
        Table::Gaps => &["host", "epoch", "class", "from_seq"],
        Table::Episodes => &["device_key", "kind", "started_at"],
        Table::PlacementRequests | Table::PlacementDecisions | Table::Rejected | Table::DeviceEvents | Table::HostWindows1m => &[],
    }
}

/// Whether the table holds windows that come in parts.
pub const fn is_window(table: Table) -> bool {
    window_seconds(table).is_some()
}

/// The length of the table's windows, seconds; absent if it holds none that come in parts.
pub const fn window_seconds(table: Table) -> Option<i64> {
    match table {
        Table::GpuWindows10s => Some(10),
        Table::GpuWindows1m => Some(60),
        Table::GpuWindows1h => Some(3_600),
        Table::Devices
        | Table::Hosts
        | Table::PlacementRequests
        | Table::PlacementDecisions
        | Table::Leases
        | Table::LeaseDevices
        | Table::Rejected
        | Table::DeviceEvents
        | Table::Gaps
        | Table::Policies
        | Table::Alerts
        | Table::HostWindows1m
        | Table::Episodes => None,
    }
}

fn make_schema(table: Table) -> SchemaRef {
    match table {
        Table::GpuWindows10s | Table::GpuWindows1m | Table::GpuWindows1h => column::schema(&windows()),
        Table::Devices => column::schema(&devices()),
        Table::Hosts => column::schema(&hosts()),
        Table::PlacementRequests => column::schema(&requests()),
        Table::PlacementDecisions => column::schema(&decisions()),
        Table::Leases => column::schema(&leases()),
        Table::LeaseDevices => column::schema(&lease_devices()),
        Table::Rejected => column::schema(&rejected()),
        Table::DeviceEvents => column::schema(&device_events()),
        Table::Gaps => column::schema(&gaps()),
        Table::Policies => column::schema(&policies()),
        Table::Alerts => column::schema(&alerts()),
        Table::HostWindows1m => column::schema(&host_windows()),
        Table::Episodes => column::schema(&episodes()),
    }
}

fn build<R>(
    table: Table,
    cell: &CellId,
    rows: &[PlacedRow],
    columns: &[Column<R>],
    inner: for<'a> fn(&'a Row) -> Option<&'a R>,
) -> Result<RecordBatch, Error> {
    let sources: Vec<_> = rows
        .iter()
        .filter_map(|placed| Some(Source { cell, position: placed.position, ordinal: placed.ordinal, row: inner(&placed.row)? }))
        .collect();
    Ok(column::batch(schema(table), columns, &sources)?)
}

/// The row's place in the log: the last columns of every table.
fn place<R>() -> [Column<R>; 3] {
    [
        Column::key("_epoch", Get::Int32(|r| int32(r.position.epoch.0)), "Log epoch of the record that made the row."),
        Column::key("_seq", Get::Int64(|r| int64(r.position.sequence)), "Sequence of the record that made the row."),
        Column::key("_ordinal", Get::Int32(|r| int32(r.ordinal)), "Place among the rows of that record."),
    ]
}

fn cell<R>() -> Column<R> {
    Column::new("cell", Get::Text(|r| Some(r.cell.as_str())), "Source cell.")
}

fn stream_seq<R>() -> Column<R> {
    Column::new("stream_seq", Get::Int64(|r| int64(r.position.sequence)), "Sequence in the log of the record that made the row.")
}

fn with_place<R, const N: usize>(columns: [Column<R>; N]) -> Vec<Column<R>> {
    columns.into_iter().chain(place()).collect()
}

fn windows() -> Vec<Column<WindowRow>> {
    with_place([
        Column::key("window_at", Get::Time(|r| Some(r.row.window_at.micros())), "Start of the half-open window."),
        Column::key("device_key", Get::Int64(|r| Some(r.row.device_key.0)), "Stable key of the GPU, a hash of its UUID alone; join key."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Host as of the window."),
        Column::new("gpu_index", Get::Int16(|r| int16(r.row.gpu_index)), "The driver's index as of the window."),
        Column::new("model", Get::Text(|r| Some(&r.row.model)), "Model as of the window."),
        Column::new("pool", Get::Text(|r| r.row.pool.as_deref()), "Pool of the host as of the window."),
        cell(),
        Column::new("revision", Get::Int32(|r| int32(r.row.part)), "Parts - 1: 0 when nothing came late (in a file: the number of this part)."),
        Column::new("expected", Get::Int32(|r| int32(r.row.expected)), "Samples the interval promised."),
        Column::new("received", Get::Int32(|r| int32(r.row.stats.received)), "Samples counted."),
        Column::new("duplicate", Get::Int32(|r| int32(r.row.stats.duplicate)), "Samples seen before and not counted again."),
        Column::new("late", Get::Int32(|r| int32(r.row.stats.late)), "Samples that came after the window had closed."),
        Column::new("covered_ms", Get::Int64(|r| Some(r.row.stats.covered_ms)), "Sum of held_ms of the samples taken in the window, ms."),
        Column::new("gap_ms_max", Get::Int64(|r| Some(r.row.stats.gap_ms_max)), "Longest hole before a sample of this window, ms."),
        Column::new(
            "util_percent_ms",
            Get::Int64(|r| Some(r.row.stats.util_percent_ms)),
            "Sum of percent x held_ms; mean = util_percent_ms / covered_ms.",
        ),
        Column::new("util_percent_min", Get::Int16(|r| r.row.stats.util_percent_min), "Least utilisation, percent 0..100."),
        Column::new("util_percent_max", Get::Int16(|r| r.row.stats.util_percent_max), "Greatest utilisation, percent 0..100."),
        Column::new("util_percent_last", Get::Int16(|r| r.row.stats.last?.util_percent), "Utilisation of the newest sample, percent 0..100."),
        Column::new(
            "util_sketch",
            Get::Bytes(|r| (!r.row.stats.util_sketch.is_empty()).then(|| r.row.stats.util_sketch.to_bytes())),
            "Histogram of utilisation percent, exact; for sketch_quantile and percentile_merge.",
        ),
        Column::new("memory_used_mib_ms", Get::Int64(|r| Some(r.row.stats.memory_used_mib_ms)), "Sum of MiB in use x held_ms."),
        Column::new("memory_used_bytes_min", Get::Int64(|r| r.row.stats.memory_used_bytes_min), "Least memory in use, bytes."),
        Column::new("memory_used_bytes_max", Get::Int64(|r| r.row.stats.memory_used_bytes_max), "Greatest memory in use, bytes."),
        Column::new("memory_used_bytes_last", Get::Int64(|r| r.row.stats.last?.memory_used_bytes), "Memory in use in the newest sample, bytes."),
        Column::new("memory_total_bytes", Get::Int64(|r| r.row.stats.last?.memory_total_bytes), "Memory on board in the newest sample, bytes."),
        Column::new(
            "memory_sketch",
            Get::Bytes(|r| (!r.row.stats.memory_sketch.is_empty()).then(|| r.row.stats.memory_sketch.to_bytes())),
            "Histogram of MiB in use, within 1 %.",
        ),
        Column::new("energy_mj", Get::Int64(|r| Some(r.row.stats.energy_mj)), "Energy used, mJ; mean W = energy_mj / covered_ms."),
        Column::new("power_mw_max", Get::Int64(|r| r.row.stats.power_mw_max), "Greatest power, mW."),
        Column::new("temperature_c_max", Get::Int16(|r| r.row.stats.temperature_c_max), "Greatest temperature, degrees Celsius."),
        Column::new("allocated_ms", Get::Int64(|r| Some(r.row.state.allocated_ms)), "Time under a lease, ms."),
        Column::new("allocated_idle_ms", Get::Int64(|r| Some(r.row.state.allocated_idle_ms)), "Time under a lease and idle, ms."),
        Column::new("free_ms", Get::Int64(|r| Some(r.row.state.free_ms)), "Time placeable, ms."),
        Column::new("unhealthy_ms", Get::Int64(|r| Some(r.row.state.unhealthy_ms)), "Time not well, stale or lost, ms."),
        Column::new("drained_ms", Get::Int64(|r| Some(r.row.state.drained_ms)), "Time cordoned, draining or drained, ms."),
        Column::new("throttle_thermal_ms", Get::Int64(|r| Some(r.row.stats.throttle_thermal_ms)), "Time slowed down by heat, ms."),
        Column::new("throttle_power_ms", Get::Int64(|r| Some(r.row.stats.throttle_power_ms)), "Time slowed down by a power limit, ms."),
        Column::new("xid_count", Get::Int32(|r| int32(r.row.stats.xid_count)), "XID events."),
        Column::new(
            "tenant",
            Get::Text(|r| Some(r.row.tenant.as_ref()?.as_str())),
            "Holder with the most time; the exact split is in lease_devices.",
        ),
        Column::new("lease_id", Get::Text(|r| r.row.lease_id.as_deref()), "Lease of that holder."),
        Column::new("final", Get::Bool(|_| None), "Whether nothing more is expected for this window: computed at read, NULL in files."),
        Column::new("_last_at", Get::Int64(|r| Some(r.row.stats.last?.at.0)), "When the newest sample was taken, ns UTC."),
        Column::new("_last_epoch", Get::Int64(|r| int64(r.row.stats.last?.epoch)), "The agent's life in which it was taken."),
        Column::new("_last_sequence", Get::Int64(|r| int64(r.row.stats.last?.sequence)), "Sequence of its frame."),
    ])
}

fn devices() -> Vec<Column<DeviceRow>> {
    with_place([
        Column::key("valid_from", Get::Time(|r| Some(r.row.valid_from.micros())), "From when this holds."),
        Column::new("valid_to", Get::Time(|r| Some(r.row.valid_to?.micros())), "Until when; NULL = now."),
        Column::key("device_key", Get::Int64(|r| Some(r.row.device_key.0)), "Stable key of the GPU, a hash of its UUID alone."),
        Column::new("device_uuid", Get::Text(|r| Some(r.row.device_uuid.as_str())), "UUID as the driver gives it."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Host it is in."),
        Column::new("slot", Get::Int16(|r| int16(r.row.slot.0)), "Stable number on that host."),
        Column::new("gpu_index", Get::Int16(|r| int16(r.row.gpu.index)), "The driver's index, which can move."),
        Column::new("model", Get::Text(|r| Some(&r.row.gpu.model)), "Product name as the driver gives it."),
        Column::new("arch", Get::Text(|r| r.row.gpu.arch.as_deref()), "Architecture."),
        Column::new("memory_total_bytes", Get::Int64(|r| int64(r.row.gpu.memory_total_bytes?)), "Memory on board, bytes."),
        Column::new("mig_parent_uuid", Get::Text(|r| Some(r.row.gpu.mig_parent_uuid.as_ref()?.as_str())), "Board of a MIG instance."),
        Column::new("mig_profile", Get::Text(|r| r.row.gpu.mig_profile.as_deref()), "MIG profile."),
        Column::new("nvlink_domain", Get::Int32(|r| int32(r.row.gpu.nvlink_domain?)), "GPUs with the same number reach each other by NVLink."),
        Column::new("numa_node", Get::Int16(|r| int16(r.row.gpu.numa_node?)), "NUMA node."),
        Column::new("pci_bus_id", Get::Text(|r| r.row.gpu.pci_bus_id.as_deref()), "PCI bus id."),
        Column::new("driver_version", Get::Text(|r| r.row.gpu.driver_version.as_deref()), "Driver version."),
        Column::new("power_limit_mw", Get::Int64(|r| int64(r.row.gpu.power_limit_mw?)), "Enforced power limit, mW."),
        Column::new(
            "state",
            Get::Text(|r| Some(r.row.state.code())),
            "Where it stands: ok, degraded, failed, stale, lost, cordoned, draining, drained.",
        ),
        cell(),
    ])
}

fn hosts() -> Vec<Column<HostRow>> {
    with_place([
        Column::key("valid_from", Get::Time(|r| Some(r.row.valid_from.micros())), "From when this holds."),
        Column::new("valid_to", Get::Time(|r| Some(r.row.valid_to?.micros())), "Until when; NULL = now."),
        Column::key("host", Get::Text(|r| Some(r.row.host.as_str())), "Host as the token of its subjects; join key."),
        Column::new("host_id", Get::Text(|r| Some(&r.row.hostname)), "The host's own name, dots and all."),
        Column::new("cluster", Get::Text(|r| r.row.placement.cluster.as_deref()), "Cluster."),
        Column::new("zone", Get::Text(|r| r.row.placement.zone.as_deref()), "Zone."),
        Column::new("rack", Get::Text(|r| r.row.placement.rack.as_deref()), "Rack."),
        Column::new("pool", Get::Text(|r| r.row.placement.pool.as_deref()), "Pool of hosts that are used alike."),
        Column::new("agent_version", Get::Text(|r| Some(&r.row.agent_version)), "Version of its agent."),
        Column::new("gpu_count", Get::Int16(|r| int16(r.row.gpu_count)), "GPUs registered."),
        Column::new("cpu_cores", Get::Int32(|r| int32(r.row.cpu_cores?)), "CPU cores."),
        Column::new("ram_bytes", Get::Int64(|r| int64(r.row.ram_bytes?)), "Memory of the host, bytes."),
        Column::new("labels", Get::Text(|_| None), "Free labels as JSON text."),
        Column::new("state", Get::Text(|r| Some(r.row.state.code())), "Where it stands: ok, stale, lost or cordoned."),
        Column::new(
            "clock_skew_ms",
            Get::Int64(|r| r.row.clock_skew_ms),
            "How far the host's clock is ahead of the log's, ms; negative = behind, or the shortest way of a frame; NULL = not known yet.",
        ),
        Column::new("cost_per_gpu_hour_micros", Get::Int64(|_| None), "Cost of one GPU for one hour, millionths of the currency."),
        cell(),
    ])
}

fn requests() -> Vec<Column<RequestRow>> {
    with_place([
        Column::key("request_id", Get::Text(|r| Some(&r.row.request_id)), "Id the asker chose."),
        Column::new("requested_at", Get::Time(|r| Some(r.row.requested_at.micros())), "When the log took it."),
        Column::new("tenant", Get::Text(|r| Some(r.row.tenant.as_str())), "Who asked."),
        Column::new("workload", Get::Text(|r| r.row.workload.as_deref()), "What for."),
        Column::new("n_gpus", Get::Int32(|r| int32(r.row.n_gpus)), "GPUs asked for."),
        Column::new("memory_per_gpu_bytes", Get::Int64(|r| Some(r.row.memory_per_gpu_bytes)), "Memory asked for on each GPU, bytes."),
        Column::new("model", Get::Text(|r| r.row.model.as_deref()), "Model asked for; NULL = any."),
        Column::new("same_host", Get::Bool(|r| Some(r.row.same_host)), "Whether one host must take all."),
        Column::new("same_nvlink", Get::Bool(|r| Some(r.row.same_nvlink)), "Whether one NVLink domain must take all."),
        Column::new("duration_ms", Get::Int64(|r| r.row.duration_ms), "Expected run time, ms."),
        Column::new("priority", Get::Int16(|r| Some(r.row.priority)), "Higher goes first."),
        Column::new("deadline_at", Get::Time(|_| None), "When it is of no use any more."),
        Column::new("labels", Get::Text(|r| r.row.labels.as_deref()), "Free labels as JSON text."),
        stream_seq(),
        cell(),
    ])
}

fn decisions() -> Vec<Column<DecisionRow>> {
    with_place([
        Column::key("decision_id", Get::Text(|r| Some(&r.row.decision_id)), "Cell, log epoch, sequence, ordinal."),
        Column::new("decision_seq", Get::Int64(|r| int64(r.row.decision_seq)), "Number of the decision in its cell, dense from 1."),
        Column::new("request_id", Get::Text(|r| Some(&r.row.request_id)), "Request it answers, by its tenant's own id."),
        Column::new(
            "tenant",
            Get::Text(|r| Some(r.row.tenant.as_str())),
            "Who asked: join requests on it as well, since tenants may use one id; NULL = sealed by an older version.",
        ),
        Column::new("decided_at", Get::Time(|r| Some(r.row.decided_at.micros())), "When, log time."),
        Column::new("outcome", Get::Text(|r| Some(r.row.outcome.code())), "placed, deferred, rejected, preempted or cancelled."),
        Column::new("reason", Get::Text(|r| Some(r.row.reason?.code())), "Dominant reason unless placed."),
        Column::new("attempt", Get::Int32(|r| int32(r.row.attempt)), "Which try it was, from 1."),
        Column::new("queue_ms", Get::Int64(|r| Some(r.row.queue_ms)), "How long it waited, ms of live clock."),
        Column::new("score", Get::Float64(|r| Some(r.row.score_micro? as f64 / 1e6)), "Score of what was chosen, in the policy's unit."),
        Column::new("policy", Get::Text(|r| Some(&r.row.policy)), "Policy's name."),
        Column::new("policy_version", Get::Int32(|r| int32(r.row.policy_version)), "Policy's version."),
        Column::new("hosts_considered", Get::Int32(|r| int32(r.row.hosts_considered)), "Hosts looked at."),
        Column::new("hosts_feasible", Get::Int32(|r| int32(r.row.hosts_feasible)), "Hosts that could have taken it."),
        Column::new("state_epoch", Get::Int32(|r| int32(r.position.epoch.0)), "Log epoch of the position it was decided on."),
        Column::new("state_seq", Get::Int64(|r| int64(r.position.sequence)), "Sequence of the position it was decided on."),
        Column::new(
            "candidates",
            Get::Bytes(|r| r.row.candidates.as_deref().map(|text| text.as_bytes().to_vec())),
            "Which GPUs were refused, by reason, as JSON.",
        ),
        Column::new("lease_id", Get::Text(|r| r.row.lease_id.as_deref()), "Lease, if placed."),
        stream_seq(),
        cell(),
    ])
}

fn leases() -> Vec<Column<LeaseRow>> {
    with_place([
        Column::key("lease_id", Get::Text(|r| Some(&r.row.lease_id)), "Lease."),
        Column::new("request_id", Get::Text(|r| Some(&r.row.request_id)), "Request that got it."),
        Column::new("tenant", Get::Text(|r| Some(r.row.tenant.as_str())), "Holder."),
        Column::new("n_gpus", Get::Int32(|r| int32(r.row.n_gpus)), "GPUs."),
        Column::new("state", Get::Text(|r| Some(r.row.state.code())), "active, suspended, draining or ended."),
        Column::new("granted_at", Get::Time(|r| Some(r.row.granted_at.micros())), "When it was granted, log time."),
        Column::new("started_at", Get::Time(|_| None), "When its holder started."),
        Column::new(
            "expires_at",
            Get::Time(|r| Some(r.row.expires_at.micros())),
            "When it ends without a renewal, if the log goes on without a break.",
        ),
        Column::new("ended_at", Get::Time(|r| Some(r.row.ended_at?.micros())), "When its GPUs became free."),
        Column::new("end_reason", Get::Text(|r| r.row.end_reason.as_deref()), "What ended it."),
        Column::new("preempted_by", Get::Text(|_| None), "Request it had to make room for."),
        cell(),
    ])
}

fn lease_devices() -> Vec<Column<LeaseDeviceRow>> {
    with_place([
        Column::key("lease_id", Get::Text(|r| Some(&r.row.lease_id)), "Lease."),
        Column::key("device_key", Get::Int64(|r| Some(r.row.device_key.0)), "GPU."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Its host."),
        Column::new("tenant", Get::Text(|r| Some(r.row.tenant.as_str())), "Holder."),
        Column::new("from_at", Get::Time(|r| Some(r.row.from_at.micros())), "From when, log time."),
        Column::new("to_at", Get::Time(|r| Some(r.row.to_at?.micros())), "Until when; NULL = still."),
        Column::new("memory_reserved_bytes", Get::Int64(|r| Some(r.row.memory_reserved_bytes)), "Memory reserved on it, bytes."),
        cell(),
    ])
}

fn rejected() -> Vec<Column<RejectedRow>> {
    with_place([
        Column::new(
            "rejected_at",
            Get::Time(|r| Some(r.row.rejected_at.micros())),
            "When it happened on the host; the log's time where that is unknown.",
        ),
        Column::new("logged_at", Get::Time(|r| Some(r.row.logged_at.micros())), "When the log took it."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_ref()?.as_str())), "Host it came from."),
        Column::new("device_key", Get::Int64(|r| Some(r.row.device_key?.0)), "GPU, if it is registered."),
        Column::new("field", Get::Text(|r| Some(r.row.field?.name())), "Field; NULL = the whole sample or message."),
        Column::new("reason", Get::Text(|r| Some(r.row.reason.code())), "Why."),
        Column::new("raw_value", Get::Text(|r| Some(&r.row.raw_value)), "What was given."),
        Column::new("source", Get::Text(|r| Some(&r.row.source)), "Who refused: agent or processor."),
        Column::new("epoch", Get::Int64(|r| int64(r.row.epoch?)), "The agent's life."),
        Column::new("seq", Get::Int64(|r| int64(r.row.seq?)), "Sequence of the frame or message."),
        cell(),
    ])
}

fn device_events() -> Vec<Column<DeviceEventRow>> {
    with_place([
        Column::new("happened_at", Get::Time(|r| Some(r.row.happened_at.micros())), "When, the host's clock."),
        Column::new("device_key", Get::Int64(|r| Some(r.row.device_key?.0)), "GPU; NULL = the host."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Host."),
        Column::new("kind", Get::Text(|r| Some(&r.row.kind)), "What happened: xid, lost, returned, drain, ..."),
        Column::new("code", Get::Int32(|r| r.row.code), "Its number, such as the XID's."),
        Column::new("severity", Get::Text(|r| Some(&r.row.severity)), "info, warn or fatal."),
        Column::new("detail", Get::Text(|r| r.row.detail.as_deref()), "For people."),
        stream_seq(),
        cell(),
    ])
}

fn gaps() -> Vec<Column<GapRow>> {
    with_place([
        Column::key("opened_at", Get::Time(|r| Some(r.row.opened_at.micros())), "When it was found missing, log time."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_ref()?.as_str())), "Host whose records are missing; NULL = the log itself."),
        Column::key("epoch", Get::Int64(|r| int64(r.row.epoch)), "The agent's life that numbered them; for the log its own epoch."),
        Column::key("class", Get::Text(|r| Some(r.row.class.map_or("log", Class::code))), "Numbering: sample, event, or log."),
        Column::key("from_seq", Get::Int64(|r| int64(r.row.from_seq)), "First sequence; the ranges of one numbering are disjoint."),
        Column::new("to_seq", Get::Int64(|r| int64(r.row.to_seq)), "Last sequence."),
        Column::new("state", Get::Text(|r| Some(r.row.state.code())), "open, repaired (all of it came), loss (none of it will be counted)."),
        Column::new("cause", Get::Text(|r| Some(&r.row.cause)), "Why, as far as it is known."),
        Column::new("closed_at", Get::Time(|r| Some(r.row.closed_at?.micros())), "When it was repaired or lost, log time; NULL = open."),
        stream_seq(),
        cell(),
    ])
}

fn policies() -> Vec<Column<PolicyRow>> {
    with_place([
        Column::key("kind", Get::Text(|r| Some(&r.row.kind)), "settings, placement, alert_rule, logic, enrolment, cordon or tables."),
        Column::key("name", Get::Text(|r| Some(&r.row.name)), "Name within its kind: a rule, a policy, host/… or gpu/…, * = every host."),
        Column::new("version", Get::Int32(|r| int32(r.row.version)), "Of a policy or logic its own; else how often that name came into force."),
        Column::key("valid_from", Get::Time(|r| Some(r.row.valid_from.micros())), "From when it holds, log time."),
        Column::new("valid_to", Get::Time(|r| Some(r.row.valid_to?.micros())), "Until when; NULL = now."),
        Column::new("params", Get::Text(|r| Some(&r.row.params)), "What it says, a JSON object; of tables without their cells."),
        Column::new("set_by", Get::Text(|r| Some(r.row.set_by.code())), "default (shipped) or operator (a control record)."),
        stream_seq(),
        cell(),
    ])
}

fn alerts() -> Vec<Column<AlertRow>> {
    with_place([
        Column::key("alert_id", Get::Text(|r| Some(&r.row.alert_id)), "One life of an alert, from firing to resolved."),
        Column::new("dedup_key", Get::Text(|r| Some(&r.row.dedup_key)), "Rule and what it is about: the same for every life."),
        Column::new("rule", Get::Text(|r| Some(&r.row.rule)), "Rule; its limits then are in policies."),
        Column::new("severity", Get::Text(|r| Some(r.row.severity.code())), "info, warning, critical or emergency."),
        Column::new("state", Get::Text(|r| Some(r.row.state.code())), "firing or resolved."),
        Column::new("cause", Get::Text(|r| Some(&r.row.cause)), "limit_passed, cleared, retired, rule_changed or rule_removed."),
        Column::new("scope", Get::Text(|r| Some(r.row.scope.code())), "gpu, host or cell."),
        Column::new("device_key", Get::Int64(|r| Some(r.row.device_key?.0)), "GPU, if it is about one."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_ref()?.as_str())), "Host, unless it is about the cell."),
        Column::new("signal", Get::Text(|r| Some(r.row.signal.code())), "What is watched; its unit is in its name."),
        Column::new("value", Get::Int64(|r| Some(r.row.value)), "Its value when the alert last moved."),
        Column::new("threshold", Get::Int64(|r| Some(r.row.limit.value())), "The limit that was passed."),
        Column::new("began_at", Get::Time(|r| Some(r.row.began_at.micros())), "Since when the limit was passed."),
        Column::new("fired_at", Get::Time(|r| Some(r.row.fired_at.micros())), "When it fired, log time."),
        Column::new("resolved_at", Get::Time(|r| Some(r.row.resolved_at?.micros())), "When it was over; NULL = it fires."),
        Column::new("summary", Get::Text(|r| r.row.summary.as_deref()), "For people."),
        stream_seq(),
        cell(),
    ])
}

fn host_windows() -> Vec<Column<HostWindowRow>> {
    with_place([
        Column::key("window_at", Get::Time(|r| Some(r.row.window_at.micros())), "Start of the half-open minute."),
        Column::key("host", Get::Text(|r| Some(r.row.host.as_str())), "Host."),
        Column::key("model", Get::Text(|r| Some(&r.row.model)), "Model of the GPUs."),
        Column::new("pool", Get::Text(|r| r.row.pool.as_deref()), "Pool of the host as of the window."),
        Column::new("gpus_total", Get::Int16(|r| int16(r.row.gpus_total)), "GPUs registered, MIG instances apart."),
        Column::new("gpus_up", Get::Int16(|r| int16(r.row.gpus_up)), "GPUs neither unhealthy nor unknown for any of the minute."),
        Column::new("gpus_free_min", Get::Int16(|r| int16(r.row.gpus_free_min?)), "Fewest GPUs free at once."),
        Column::new("gpus_free_max", Get::Int16(|r| int16(r.row.gpus_free_max?)), "Most GPUs free at once."),
        Column::new("gpus_alloc_max", Get::Int16(|r| int16(r.row.gpus_alloc_max?)), "Most GPUs leased at once."),
        Column::new("gpus_idle_alloc_min", Get::Int16(|r| int16(r.row.gpus_idle_alloc_min)), "GPUs leased and idle for the whole minute."),
        Column::new(
            "free_mask",
            Get::Mask(|r| Some(&r.row.free)),
            "Word 0 = slots 0..63; bit = the GPU in that slot was free, healthy, not drained for the whole minute.",
        ),
        Column::new("free_mask_20g", Get::Mask(|r| Some(&r.row.free_by_memory[0])), "Those of them with 20 GiB free for the whole minute."),
        Column::new("free_mask_40g", Get::Mask(|r| Some(&r.row.free_by_memory[1])), "Those of them with 40 GiB free for the whole minute."),
        Column::new("free_mask_64g", Get::Mask(|r| Some(&r.row.free_by_memory[2])), "Those of them with 64 GiB free for the whole minute."),
        Column::new("free_mask_80g", Get::Mask(|r| Some(&r.row.free_by_memory[3])), "Those of them with 80 GiB free for the whole minute."),
        Column::new("free_mask_140g", Get::Mask(|r| Some(&r.row.free_by_memory[4])), "Those of them with 140 GiB free for the whole minute."),
        Column::new(
            "largest_free_nvlink",
            Get::Int16(|r| int16(r.row.largest_free_nvlink?)),
            "Most GPUs of free_mask that reach each other by NVLink; NULL = no domain is known.",
        ),
        Column::new("mig_total", Get::Int16(|r| int16(r.row.mig_total)), "MIG instances registered; no other column counts them."),
        Column::new("mig_free_mask", Get::Mask(|r| Some(&r.row.mig_free)), "MIG instances free for the whole minute, by their slots."),
        Column::new("cpu_free_milli_min", Get::Int64(|_| None), "Least CPU free, thousandths of a core."),
        Column::new("ram_free_bytes_min", Get::Int64(|_| None), "Least memory of the host free, bytes."),
        Column::new("final", Get::Bool(|_| Some(true)), "Whether nothing more is expected: always, late samples change no mask."),
        cell(),
    ])
}

fn episodes() -> Vec<Column<EpisodeRow>> {
    with_place([
        Column::key("device_key", Get::Int64(|r| Some(r.row.device_key.0)), "GPU."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Its host."),
        Column::key("kind", Get::Text(|r| Some(r.row.kind.code())), "busy, idle, throttled, unhealthy or allocated_idle."),
        Column::key("started_at", Get::Time(|r| Some(r.row.started_at.micros())), "From when, by the host's clock; by the log's for unhealthy."),
        Column::new("ended_at", Get::Time(|r| Some(r.row.ended_at?.micros())), "Until when; NULL = it goes on."),
        Column::new("evidence", Get::Text(|r| r.row.evidence.as_deref()), "What shows it: mean utilisation, throttle reasons, or what happened."),
        cell(),
    ])
}

fn samples() -> Vec<Column<SampleRow>> {
    vec![
        Column::key("sampled_at", Get::Time(|r| Some(r.row.sampled_at.micros())), "When it was taken, the host's clock."),
        Column::key("device_key", Get::Int64(|r| Some(r.row.device_key.0)), "GPU."),
        Column::new("host", Get::Text(|r| Some(r.row.host.as_str())), "Its host."),
        Column::new("gpu_index", Get::Int16(|r| int16(r.row.gpu_index)), "The driver's index."),
        Column::new("seq", Get::Int64(|r| int64(r.row.seq)), "Sequence of its frame."),
        Column::new("received_at", Get::Time(|r| Some(r.row.received_at.micros())), "When the log took it."),
        Column::new("util_percent", Get::Int16(|r| int16(r.row.sample.util_percent()?)), "Utilisation, percent 0..100."),
        Column::new(
            "memory_util_percent",
            Get::Int16(|r| int16(r.row.sample.memory_util_percent()?)),
            "Memory-controller utilisation, percent 0..100.",
        ),
        Column::new("sm_active_ratio", Get::Float32(|r| Some(r.row.sample.sm_active_bp()? as f32 / 1e4)), "SMs with at least one warp, 0..1."),
        Column::new("memory_used_bytes", Get::Int64(|r| int64(r.row.sample.memory_used_bytes()?)), "Memory in use, bytes."),
        Column::new("memory_total_bytes", Get::Int64(|r| int64(r.row.sample.memory_total_bytes()?)), "Memory on board, bytes."),
        Column::new("power_mw", Get::Int64(|r| int64(r.row.sample.power_mw()?)), "Board power, mW."),
        Column::new("energy_mj", Get::Int64(|r| int64(r.row.sample.energy_mj()?)), "Energy since the previous sample, mJ."),
        Column::new("temperature_c", Get::Int16(|r| Some(celsius(r.row.sample.temperature_mk()?))), "Core temperature, degrees Celsius."),
        Column::new("sm_clock_mhz", Get::Int32(|r| int32(r.row.sample.sm_clock_mhz()?)), "SM clock, MHz."),
        Column::new("throttle_bits", Get::Int64(|r| int64(r.row.sample.throttle_bits()?)), "NVML's clocks-event reason bits."),
        Column::new("pcie_tx_bytes_s", Get::Int64(|r| int64(r.row.sample.pcie_tx_bytes_s()?)), "PCIe bytes sent per second."),
        Column::new("pcie_rx_bytes_s", Get::Int64(|r| int64(r.row.sample.pcie_rx_bytes_s()?)), "PCIe bytes received per second."),
        Column::new("ecc_uncorrected", Get::Int64(|r| int64(r.row.sample.ecc_uncorrected()?)), "Uncorrected ECC errors since the driver was loaded."),
        Column::new("procs", Get::Int16(|r| int16(r.row.sample.procs()?)), "Processes on the GPU."),
        Column::new("lease_id", Get::Text(|r| r.row.lease_id.as_deref()), "Lease it fell into."),
        Column::new("quality", Get::Int16(|_| None), "Flags."),
        cell(),
    ]
}
