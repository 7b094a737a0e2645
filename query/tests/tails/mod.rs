//! Several tails of one cell: which is followed, and that nobody who asks in SQL can tell.

use plimsoll_query::service::Service;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::{PlacedRow, Table};
use serde_json::{Value, json};

use crate::support::rows::{at, cell, minute};
use crate::support::tail_server::TailServer;
use crate::support::{Cell, PATIENCE, config, http, seal};

const COUNT: &str = "SELECT count(*), count(DISTINCT window_at) FROM gpu_windows_1m";

/// Rows of these sequences, a minute apart.
fn minutes(sequences: std::ops::RangeInclusive<u64>) -> Vec<PlacedRow> {
    sequences.map(|n| minute(n, 0, n as i64 * 60, 50)).collect()
}

/// A service that follows the first of two tails, and knows of the second.
async fn two(first: &TailServer, second: TailServer, sealed: Vec<PlacedRow>) -> Cell {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().to_str().expect("utf-8");
    let archive = plimsoll_archive::Archive::open(root, &cell()).expect("opens");
    if let Some(last) = sealed.last() {
        seal(&archive, None, &sealed, last.position.sequence).await;
    }
    let service = Service::start(&config(root, &format!("{},{}", first.url(), second.url()))).await.expect("starts");
    Cell { folder, archive, server: second, service }
}

impl Cell {
    /// Waits until everything up to a position is seen, from a tail that is connected.
    async fn sees(&self, position: Position) {
        let seen = |tail: &plimsoll_query::tail::Tail| tail.snapshot().is_ok_and(|seen| seen.position() >= position && seen.connected());
        tokio::time::timeout(PATIENCE, self.service.tail.until(seen)).await.unwrap_or_else(|_| panic!("{:?}", self.service.tail.health()));
    }

    /// Waits until this tail is followed.
    async fn follows(&self, url: &str) {
        let follows = |tail: &plimsoll_query::tail::Tail| {
            let health = tail.health();
            health.followed.url == url && health.connected == Table::ALL.len()
        };
        tokio::time::timeout(PATIENCE, self.service.tail.until(follows)).await.unwrap_or_else(|_| panic!("{:?}", self.service.tail.health()));
    }

    /// Which tail SQL says is followed, and how often that was changed.
    async fn followed(&self) -> Vec<Value> {
        self.rows("SELECT tail, tail_changes FROM system.cells").await.remove(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tail_goes_on_where_one_has_ended_and_no_row_is_lost_or_doubled() {
    let (first, second) = (TailServer::start(minutes(1..=6)).await, TailServer::start(minutes(1..=6)).await);
    let (first_url, second_url) = (first.url(), second.url());
    let cell = two(&first, second, minutes(1..=3)).await;
    cell.sees(at(6)).await;
    assert_eq!(cell.followed().await, vec![json!(first_url), json!(0)]);
    let gone = first.leave().await;
    cell.server.add(minutes(7..=8));
    cell.sees(at(8)).await;
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(8), json!(8)]]);
    assert_eq!(cell.followed().await, vec![json!(second_url), json!(1)]);
    let (status, ready) = http::get(cell.service.http, "/readyz").await;
    assert!(status == 200 && ready.contains(&second_url), "{ready}");
    let (_, metrics) = http::get(cell.service.http, "/metrics").await;
    assert!(metrics.contains("plimsoll_query_tail_followed 2\n") && metrics.contains("plimsoll_query_tail_changes 1\n"), "{metrics}");

    // And back again: one that has returned is as good as the other.
    let first = gone.back().await;
    first.add(minutes(7..=9));
    let Cell { folder, archive, server, service } = cell;
    server.leave().await;
    let cell = Cell { folder, archive, server: first, service };
    cell.sees(at(9)).await;
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(9), json!(9)]]);
    assert_eq!(cell.followed().await, vec![json!(first_url), json!(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_behind_what_is_held_takes_no_row_back() {
    let (first, second) = (TailServer::start(minutes(1..=6)).await, TailServer::start(minutes(1..=4)).await);
    let second_url = second.url();
    let cell = two(&first, second, Vec::new()).await;
    cell.sees(at(6)).await;
    first.leave().await;
    cell.follows(&second_url).await;
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(6), json!(6)]]);
    cell.server.add(minutes(5..=7));
    cell.sees(at(7)).await;
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(7), json!(7)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_stands_still_is_left_for_one_that_goes_on() {
    let (first, second) = (TailServer::start(minutes(1..=6)).await, TailServer::start(minutes(1..=6)).await);
    let second_url = second.url();
    let cell = two(&first, second, Vec::new()).await;
    cell.sees(at(6)).await;
    cell.server.add(minutes(7..=7));
    cell.sees(at(7)).await;
    assert_eq!(cell.followed().await, vec![json!(second_url), json!(1)]);
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(7), json!(7)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_another_cell_is_refused_by_name_and_never_read() {
    let (first, second) = (TailServer::of_cell("west", minutes(1..=9)).await, TailServer::start(minutes(1..=2)).await);
    let (first_url, second_url) = (first.url(), second.url());
    let cell = two(&first, second, Vec::new()).await;
    let refused = |tail: &plimsoll_query::tail::Tail| {
        let reason = format!("of {first_url}: it is a tail of cell west, this service answers for cell local");
        tail.health().reasons.iter().any(|said| said.contains(&reason))
    };
    tokio::time::timeout(PATIENCE, cell.service.tail.until(refused)).await.expect("says so");
    cell.sees(at(2)).await;
    assert_eq!(cell.rows(COUNT).await, vec![vec![json!(2), json!(2)]]);
    assert_eq!(cell.followed().await, vec![json!(second_url), json!(1)]);
}

/// The same rows, but those behind a sequence are of log epoch 1.
fn turned(rows: Vec<PlacedRow>, base: u64) -> Vec<PlacedRow> {
    let turn = |row: PlacedRow| match row.position.sequence > base {
        true => PlacedRow { position: Position { epoch: LogEpoch(1), ..row.position }, ..row },
        false => row,
    };
    rows.into_iter().map(turn).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_log_epoch_does_not_know_is_gone_and_answers_never_lack_what_it_knows() {
    // The old log went on to 6; the new one goes on from 5, and says the sixth in other words.
    let (first, second) = (TailServer::start(minutes(1..=6)).await, TailServer::start(Vec::new()).await);
    let cell = two(&first, second, minutes(1..=3)).await;
    cell.sees(at(6)).await;
    let mut rows = minutes(4..=5);
    rows.extend((7..=8).map(|n| minute(n, 0, n as i64 * 60, 50)));
    let new = first.leave().await.with(turned(rows, 5), 0);
    let first = new.back().await;
    let newest = Position { epoch: LogEpoch(1), sequence: 8 };
    let polling = async {
        while cell.service.tail.snapshot().expect("readable").position() < newest {
            let count = cell.rows(COUNT).await;
            assert!(count == vec![vec![json!(6), json!(6)]] || count == vec![vec![json!(7), json!(7)]], "{count:?}");
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("{:?}", cell.service.tail.health()));
    let windows = cell.rows("SELECT date_part('epoch', window_at)::bigint / 60 FROM gpu_windows_1m ORDER BY 1").await;
    assert_eq!(windows, [1, 2, 3, 4, 5, 7, 8].map(|n| vec![json!(n)]), "the sixth was never in the new log");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_folded_by_another_logic_take_the_place_of_those_held() {
    let (first, second) = (TailServer::start(minutes(1..=6)).await, TailServer::start(Vec::new()).await);
    let cell = two(&first, second, minutes(1..=3)).await;
    cell.sees(at(6)).await;
    let rows = (4..=7).map(|n| minute(n, 0, n as i64 * 60, 90)).collect();
    let _first = first.leave().await.with(rows, 1).back().await;
    cell.sees(at(7)).await;
    let windows = cell.rows("SELECT CAST(util_percent_max AS INT) FROM gpu_windows_1m ORDER BY window_at").await;
    assert_eq!(windows, [50, 50, 50, 90, 90, 90, 90].map(|percent| vec![json!(percent)]));
}
