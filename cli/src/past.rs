//! A cell's past from its own streams: hosts and requests from LOG, ends of leases and the tables in force from OUT. Nothing else is read.

use clap::Args;
use plimsoll_fold::placement::policy::fleet::HostSpec;
use plimsoll_fold::placement::policy::recorded::{self, Past};
use plimsoll_schemas::out::{CloudEvent, LeaseState, Payload};
use plimsoll_schemas::policy::Policy;
use plimsoll_schemas::record::{self, Body};
use plimsoll_schemas::request::Request;
use plimsoll_schemas::tables::Learned;
use plimsoll_schemas::time::{LogTime, parse_rfc3339_ns};

use crate::broker::Broker;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::standing::{Found, Which};

/// Most requests that are read at once.
const REQUESTS_MAX: usize = 1_000_000;

/// Which part of the log.
#[derive(Debug, Clone, Copy, Args)]
pub struct Range {
    /// Only requests since then, RFC 3339; otherwise from the first one that the log still has
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub from: Option<LogTime>,
    /// Only requests before then, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub to: Option<LogTime>,
}

fn instant(text: &str) -> Result<LogTime, String> {
    parse_rfc3339_ns(text).map(LogTime).ok_or_else(|| format!("{text:?} is not an RFC 3339 instant, such as 2026-11-20T14:05:00Z"))
}

/// The hosts as they last announced themselves, and what was asked of them in a range of the log. Errors where that is less than
/// `requests_min` requests: how many there are.
pub async fn read(endpoints: &Endpoints, range: Range, requests_min: usize) -> Result<Past, Error> {
    let broker = Broker::connect(endpoints).await?;
    let hosts = hosts(&broker).await?;
    if hosts.is_empty() {
        return Err(Error::Refused(format!("the log of cell {} announces no host with a GPU", endpoints.cell)));
    }
    let mut past = Past::new(hosts).map_err(|error| Error::Refused(error.to_string()))?;
    requests(&broker, range, &mut past).await?;
    let (asked, impossible) = (past.asked().len(), past.impossible);
    if asked < requests_min {
        let impossible = if impossible > 0 { format!(" (and {impossible} that no host could give)") } else { String::new() };
        return Err(Error::Refused(format!(
            "the log of cell {} holds {asked} placement requests in this range{impossible}, at least {requests_min} are needed: \
             name a longer range, or come back when more was asked",
            endpoints.cell
        )));
    }
    Ok(past)
}

/// Notes when what was asked became free again, as far as OUT says so.
pub async fn read_ends(endpoints: &Endpoints, past: &mut Past) -> Result<(), Error> {
    let Some(first) = past.asked().first() else { return Ok(()) };
    let mut standing = Broker::connect(endpoints).await?.standing("out.lease.*", Which::Since(Some(first.at))).await?;
    while let Some(found) = standing.next().await? {
        if let Some(event) = event(&found)
            && let Payload::Lease(lease) = event.data
            && lease.state == LeaseState::Ended
            && let Some(at) = parse_rfc3339_ns(&event.time)
        {
            past.ended(LogTime(at), &lease.tenant, &lease.request_id);
        }
    }
    Ok(())
}

/// The tables in force; nothing while none are.
pub async fn tables_in_force(endpoints: &Endpoints) -> Result<Option<Learned>, Error> {
    let broker = Broker::connect(endpoints).await?;
    let mut standing = broker.standing("out.policy", Which::Since(None)).await?;
    let mut in_force = None;
    while let Some(found) = standing.next().await? {
        if let Some(CloudEvent { data: Payload::Policy(changed), .. }) = event(&found)
            && let Policy::Tables(learned) = changed.policy
        {
            in_force = Some(*learned).filter(|_| changed.in_force);
        }
    }
    Ok(in_force)
}

async fn hosts(broker: &Broker) -> Result<Vec<HostSpec>, Error> {
    let mut standing = broker.standing("log.inventory.*", Which::NewestOfEach).await?;
    let mut hosts = Vec::new();
    while let Some(found) = standing.next().await? {
        if let Body::Inventory(inventory) = record::decode(broker.cell(), &found.subject, &found.payload) {
            hosts.extend(recorded::host(&inventory));
        }
    }
    Ok(hosts)
}

async fn requests(broker: &Broker, range: Range, past: &mut Past) -> Result<(), Error> {
    let mut standing = broker.standing("log.request.*", Which::Since(range.from)).await?;
    let mut now = LogTime(i64::MIN);
    while let Some(found) = standing.next().await? {
        // The log's own time never goes back.
        now = now.max(found.at);
        if range.to.is_some_and(|to| now >= to) {
            break;
        }
        if let Body::Request(tenant, request) = record::decode(broker.cell(), &found.subject, &found.payload)
            && let Request::Place(place) = *request
        {
            past.ask(now, &tenant, &place);
        }
        if past.asked().len() > REQUESTS_MAX {
            return Err(Error::Usage(format!("more than {REQUESTS_MAX} requests in this range: narrow it with --from and --to")));
        }
    }
    Ok(())
}

fn event(found: &Found) -> Option<CloudEvent> {
    serde_json::from_slice(&found.payload).ok()
}
