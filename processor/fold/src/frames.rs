//! Folding a telemetry frame: who sent it, whether it is new, and every sample into the one pane of its `sampled_at`.

use std::collections::BTreeMap;

use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::DeviceKey;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, NS_PER_MS};
use plimsoll_schemas::validate::{FUTURE_MS_PROCESSOR, OLDEST_NS};

use crate::State;
use crate::clock::floor;
use crate::control::ns;
use crate::emit::Emit;
use crate::episodes::{Observed, Pauses};
use crate::liveness::stale_ns;
use crate::ranges::Seen;
use crate::refuse::Refusal;
use crate::registry::{Device, NO_DEVICE, Recent, Silence};
use crate::ring::Pushed;
use crate::skew::is_fresh;
use crate::window::{Arrival, PANE_NS};

/// Longest interval that is believed, ms.
pub(crate) const INTERVAL_MS_MAX: u32 = 3_600_000;
/// Most refusals of one frame kept whole; the rest is counted by reason.
const KEPT_MAX: usize = 128;

/// What of one frame was refused.
#[derive(Default)]
struct Refused {
    kept: Vec<Refusal>,
    /// By reason: how many in all, and the first raw value.
    counts: BTreeMap<Reason, (u64, String)>,
}

impl Refused {
    fn push(&mut self, refusal: Refusal) {
        let (count, _) = self.counts.entry(refusal.reason).or_insert_with(|| (0, refusal.raw.clone()));
        *count += 1;
        if self.kept.len() < KEPT_MAX {
            self.kept.push(refusal);
        }
    }
}

/// What a frame says about all of its samples.
#[derive(Clone, Copy)]
struct Context {
    epoch: u64,
    sequence: u64,
    interval_ms: i64,
    /// How late its samples may be, ns.
    late_ns: i64,
    /// Every window that ends here or before is closed, ns.
    closed_ns: i64,
    pauses: Pauses,
    /// Whether its newest sample is recent enough to be a sign of life.
    fresh: bool,
}

impl State {
    /// Folds one frame.
    pub(crate) fn frame(&mut self, frame: &Frame, emit: &mut Emit<'_>) {
        let Some(host) = self.registry.host_number(&frame.host) else {
            return self.refuse_frame(None, frame, Reason::DeviceNotRegistered, emit);
        };
        match self.mark(host, frame.epoch, Class::Sample, frame.sequence, emit) {
            Seen::New => {}
            Seen::Duplicate => return self.duplicate(host, frame),
            Seen::Forgotten => return self.refuse_frame(Some(host), frame, Reason::LimitReached, emit),
        }
        let known = self.registry.hosts[host as usize]
            .inventories
            .iter()
            .rposition(|known| known.epoch == frame.epoch && known.revision == frame.inventory_revision);
        let Some(known) = known else {
            return self.refuse_frame(Some(host), frame, Reason::DeviceNotRegistered, emit);
        };
        let slots = &self.registry.hosts[host as usize].inventories[known].slots;
        let mut devices = std::mem::take(&mut self.scratch);
        devices.clear();
        devices.extend(frame.slots.iter().map(|slot| slots.get(usize::from(slot.0)).copied().unwrap_or(NO_DEVICE)));
        for number in &mut devices {
            // A GPU that has moved away since: its new host speaks for it now.
            if *number != NO_DEVICE && self.registry.devices[*number as usize].glance().host != host {
                *number = NO_DEVICE;
            }
        }
        devices.iter().filter_map(|&number| self.registry.devices.get(number as usize)).for_each(Device::warm);
        self.fold_samples(host, frame, &devices, emit);
        self.scratch = devices;
        self.close_due(host, emit);
    }

    /// Folds the samples of a frame whose sender, sequence and slots are known.
    fn fold_samples(&mut self, host: u32, frame: &Frame, devices: &[u32], emit: &mut Emit<'_>) {
        let logged_at = emit.logged_at();
        let too_new_ns = logged_at.0.saturating_add(FUTURE_MS_PROCESSOR * NS_PER_MS);
        let believed = |at: EventTime| i128::from(at.0) >= OLDEST_NS && at.0 <= too_new_ns;
        let newest = frame.ticks.iter().map(|tick| tick.sampled_at).filter(|&at| believed(at)).max();
        let interval_ms = frame.interval_ms.clamp(1, INTERVAL_MS_MAX);
        let settings = self.meta.settings;
        if let (Some(said), false) = (frame.ticks.iter().map(|tick| tick.sampled_at.0).max(), frame.backfill) {
            self.note_skew(host, said, emit);
        }
        let skew = &self.registry.hosts[host as usize].skew;
        let context = Context {
            epoch: frame.epoch,
            sequence: frame.sequence,
            interval_ms: i64::from(interval_ms),
            late_ns: ns(if frame.backfill { settings.backfill_ms } else { settings.lateness_ms }),
            closed_ns: self.registry.hosts[host as usize].closed_ns,
            pauses: Pauses::of(&settings, interval_ms),
            fresh: !frame.backfill && newest.is_some_and(|at| is_fresh(at.0, logged_at, skew, stale_ns(interval_ms, &settings))),
        };
        if context.fresh {
            self.host_heard(host, emit);
        }
        let mut refused = Refused::default();
        for (t, tick) in frame.ticks.iter().enumerate() {
            let wrong = if believed(tick.sampled_at) {
                None
            } else if tick.sampled_at.0 > too_new_ns {
                Some(Reason::TimestampInFuture)
            } else {
                Some(Reason::TimestampTooOld)
            };
            let held_ms = tick.held_ms.min(interval_ms.saturating_mul(5) / 2);
            let (tick, start_ns) = (Tick { held_ms, ..*tick }, floor(tick.sampled_at.0, PANE_NS));
            for (g, &number) in devices.iter().enumerate() {
                let sample = frame.sample(t, g);
                if sample.is_empty() {
                    continue;
                }
                self.meta.counters.samples += 1;
                let wrong = if number == NO_DEVICE {
                    Some((Reason::DeviceNotRegistered, format!("slot {}", frame.slots[g].0)))
                } else {
                    wrong.map(|reason| (reason, tick.sampled_at.0.to_string()))
                };
                if let Some((reason, raw)) = wrong {
                    self.meta.counters.rejected += 1;
                    refused.push(context.refusal(self.key(number), None, tick.sampled_at, reason, raw));
                } else {
                    self.fold_sample(&context, number, tick, start_ns, sample, &mut refused, emit);
                }
            }
        }
        if let (Some(newest), false) = (newest, frame.backfill) {
            let watermark_ns = newest.0.saturating_sub(ns(settings.disorder_ms)).min(logged_at.0);
            let host = self.registry.host_mut(host);
            host.watermark_ns = host.watermark_ns.max(watermark_ns);
        }
        self.agent_refusals(&context, frame, devices, &mut refused);
        self.report(host, frame, refused, emit);
    }

    /// Folds one sample into the pane of its instant, which starts at `start_ns`.
    #[expect(clippy::too_many_arguments, reason = "one call a sample")]
    fn fold_sample(
        &mut self,
        context: &Context,
        number: u32,
        tick: Tick,
        start_ns: i64,
        sample: &Sample,
        refused: &mut Refused,
        emit: &mut Emit<'_>,
    ) {
        let (at, held_ms) = (tick.sampled_at, i64::from(tick.held_ms));
        let logged_at = emit.logged_at();
        let device = self.registry.device_mut(number);
        device.look();
        let glance = &device.glance;
        let cleaned = glance.limits.refused(sample, &device.facts.gpu, at, logged_at);
        if let Some((_, violations)) = &cleaned {
            let key = Some(device.facts.key);
            for violation in violations {
                refused.push(context.refusal(key, violation.field, at, violation.reason, violation.raw.clone()));
            }
        }
        // What is passed whole is not empty: the caller has looked.
        let sample = match &cleaned {
            Some((sample, _)) if sample.is_empty() => {
                self.meta.counters.rejected += 1;
                return;
            }
            Some((sample, _)) => sample,
            None => sample,
        };
        let in_time = start_ns >= context.closed_ns && !glance.retired;
        if !in_time && logged_at.0.saturating_sub(at.0) > context.late_ns {
            let key = Some(device.facts.key);
            self.meta.counters.rejected += 1;
            refused.push(context.refusal(key, None, at, Reason::Late, at.0.to_string()));
            return;
        }
        let (retired, leased, lost) = (glance.retired, glance.leased_at(at), glance.silence == Silence::Lost);
        let newest = device.recent.push((at, context.epoch, context.sequence), Recent { logged_at, sample: *sample }) == Pushed::Newest;
        device.pulse_dirty = true;
        let idle_leased = leased && sample.util_percent().is_some_and(|util| util < u64::from(self.meta.settings.idle_below_percent));
        let arrival =
            Arrival { at, epoch: context.epoch, sequence: context.sequence, held_ms, interval_ms: context.interval_ms, sample, idle_leased };
        if in_time {
            device.pane(start_ns).add(&arrival);
            self.meta.counters.folded += 1;
        } else {
            self.meta.counters.late += 1;
            self.add_late(number, start_ns, &arrival, emit);
        }
        if !retired {
            self.follow(number, &Observed { lost, at, held_ms, pauses: context.pauses, leased, sample }, emit);
        }
        if context.fresh {
            self.pulse(number, sample, emit);
            if newest {
                self.watch_hardware(number, sample, emit);
            }
        }
    }

    /// A fresh sample is a sign of life, and shows whether the GPU is empty.
    fn pulse(&mut self, number: u32, sample: &Sample, emit: &mut Emit<'_>) {
        let (live_ns, settings) = (self.clock.live_ns, &self.meta.settings);
        let device = &mut self.registry.devices[number as usize];
        let empty =
            sample.memory_used_bytes().is_some_and(|used| used < settings.free_memory_bytes_max) && sample.procs().is_none_or(|procs| procs == 0);
        device.pulse.calm_ns = if empty { device.pulse.calm_ns.or(Some(live_ns)) } else { None };
        device.pulse.heard_ns = live_ns;
        let first = !std::mem::replace(&mut device.pulse.live, true);
        if first {
            device.pulse.live_ns = live_ns;
        }
        let glance = device.glance();
        if glance.retired {
            return;
        }
        let drains = glance.draining_ns.is_some();
        if glance.silence != Silence::Heard {
            self.device_returned(number, emit);
        } else if first {
            self.restate(number, crate::state_time::Cause::of("first_sample"), emit);
        }
        if !drains {
            return;
        }
        let device = &self.registry.devices[number as usize];
        if let (Some(drain_ns), Some(calm_ns)) = (device.facts.draining_ns, device.pulse.calm_ns)
            && live_ns - calm_ns.max(drain_ns) >= ns(self.meta.settings.free_after_ms)
        {
            self.observed_free(number, emit);
        }
        self.free_empty_slices(number, emit);
    }

    /// Every sample of a frame that was folded before counts as a duplicate, in its window if that is still open.
    fn duplicate(&mut self, host: u32, frame: &Frame) {
        let samples = samples(frame);
        self.meta.counters.samples += samples;
        self.meta.counters.duplicate += samples;
        let inventories = &self.registry.hosts[host as usize].inventories;
        let Some(known) = inventories.iter().rposition(|known| known.epoch == frame.epoch && known.revision == frame.inventory_revision) else {
            return;
        };
        for (t, tick) in frame.ticks.iter().enumerate() {
            let start_ns = floor(tick.sampled_at.0, PANE_NS);
            for (g, slot) in frame.slots.iter().enumerate() {
                let number = self.registry.hosts[host as usize].inventories[known].slots.get(usize::from(slot.0)).copied().unwrap_or(NO_DEVICE);
                if number == NO_DEVICE || frame.sample(t, g).is_empty() {
                    continue;
                }
                let device = self.registry.device_mut(number);
                if let Some(pane) = device.open.iter_mut().find(|pane| pane.start_ns == start_ns) {
                    pane.stats.duplicate = pane.stats.duplicate.saturating_add(1);
                    pane.dirty = true;
                }
            }
        }
    }

    /// What the agent refused on the host, as far as the frame lists it.
    fn agent_refusals(&self, context: &Context, frame: &Frame, devices: &[u32], refused: &mut Refused) {
        for r in &frame.rejected {
            let at = frame.ticks.get(r.tick).map_or(EventTime::default(), |tick| tick.sampled_at);
            let key = devices.get(r.gpu).and_then(|&number| self.key(number));
            refused.push(Refusal { by_agent: true, ..context.refusal(key, r.field, at, r.reason, r.raw.clone()) });
        }
    }

    fn key(&self, number: u32) -> Option<DeviceKey> {
        self.registry.devices.get(number as usize).map(|device| device.facts.key)
    }

    /// Rows and outputs about what a frame's samples were refused for.
    fn report(&mut self, host: u32, frame: &Frame, refused: Refused, emit: &mut Emit<'_>) {
        if refused.counts.is_empty() && frame.rejected_more == 0 {
            return;
        }
        let settings = self.meta.settings;
        let state = self.registry.host_mut(host);
        let kept = refused.kept.len() as u64;
        for refusal in refused.kept {
            state.limiter.refuse(refusal, Some(&frame.host), settings.rejected_rows_max, emit);
        }
        let total: u64 = refused.counts.values().map(|(count, _)| count).sum();
        state.limiter.hide(Reason::LimitReached, total - kept + frame.rejected_more);
        let spacing = self.spacing();
        let source = format!("sample.{}", frame.host);
        for (reason, (count, raw)) in refused.counts {
            self.announcer.refused(&source, reason, count, &raw, spacing, emit);
        }
    }

    /// Refuses a whole frame: one row, every sample counted.
    fn refuse_frame(&mut self, host: Option<u32>, frame: &Frame, reason: Reason, emit: &mut Emit<'_>) {
        let samples = samples(frame);
        self.meta.counters.samples += samples;
        self.meta.counters.rejected += samples;
        let raw = format!("epoch {} revision {}", frame.epoch, frame.inventory_revision);
        let refusal = Refusal {
            at: frame.ticks.first().map(|tick| tick.sampled_at),
            epoch: Some(frame.epoch),
            sequence: Some(frame.sequence),
            ..Refusal::new(reason, raw.clone())
        };
        self.refuse(host, Some(&frame.host), &format!("sample.{}", frame.host), refusal, emit);
    }
}

/// How many samples a frame holds: a GPU of which nothing is known has none.
fn samples(frame: &Frame) -> u64 {
    frame.samples.iter().filter(|sample| !sample.is_empty()).count() as u64
}

impl Context {
    fn refusal(&self, device: Option<DeviceKey>, field: Option<Field>, at: EventTime, reason: Reason, raw: String) -> Refusal {
        Refusal { at: Some(at), device, field, reason, raw, by_agent: false, epoch: Some(self.epoch), sequence: Some(self.sequence) }
    }
}
