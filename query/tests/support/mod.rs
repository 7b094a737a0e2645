//! What the SQL tests run against: the real service over a real archive folder, and a small tail server that speaks the processor's side.

pub mod http;
pub mod rows;
pub mod tail_server;

use std::time::Duration;

use plimsoll_archive::{Archive, Manifest, table};
use plimsoll_query::service::{Config, Service};
use plimsoll_schemas::id::Position;
use plimsoll_schemas::row::{PlacedRow, Table};
use serde_json::Value;
use tail_server::TailServer;

/// Longest wait for a condition.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A cell under test.
pub struct Cell {
    pub folder: tempfile::TempDir,
    pub archive: Archive,
    pub server: TailServer,
    pub service: Service,
}

/// The service's settings, before a test changes them.
pub fn config(archive: &str, tail: &str) -> Config {
    use clap::Parser;
    Config::parse_from(["plimsoll-query", "--archive", archive, "--tail", tail, "--http", "127.0.0.1:0", "--pg", "127.0.0.1:0"])
}

impl Cell {
    /// A cell whose rows up to `sealed` are in the archive and whose later ones are in the tail.
    pub async fn with(rows: Vec<PlacedRow>, sealed: u64, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().to_str().expect("utf-8");
        let archive = Archive::open(root, &rows::cell()).expect("opens");
        if sealed > 0 {
            seal(&archive, None, &rows, sealed).await;
        }
        let server = TailServer::start(rows).await;
        server.prune(sealed);
        let mut config = config(root, &server.url());
        change(&mut config);
        let service = Service::start(&config).await.expect("starts");
        let cell = Self { folder, archive, server, service };
        cell.caught_up().await;
        cell
    }

    /// Waits until the service shows everything the tail server has.
    pub async fn caught_up(&self) {
        let until = self.server.applied();
        let caught = |tail: &plimsoll_query::tail::Tail| tail.snapshot().is_ok_and(|seen| seen.position() >= until && seen.connected());
        tokio::time::timeout(PATIENCE, self.service.tail.until(caught)).await.expect("the service catches up");
    }

    /// Waits until the service has loaded this manifest.
    pub async fn adopted(&self, version: u64) {
        let adopted = |tail: &plimsoll_query::tail::Tail| tail.manifest().is_some_and(|manifest| manifest.version >= version);
        tokio::time::timeout(PATIENCE, self.service.tail.until(adopted)).await.expect("the manifest is loaded");
    }

    /// The rows of an answer over HTTP; panics with the error if it is one.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let (status, body) = self.ask(sql).await;
        assert_eq!(status, 200, "{sql}\n{body}");
        body["rows"].as_array().expect("rows").iter().map(|row| row.as_array().expect("a row").clone()).collect()
    }

    /// Status and body of an answer over HTTP.
    pub async fn ask(&self, sql: &str) -> (u16, Value) {
        let (status, body) = http::post(self.service.http, "text/plain", "application/json", sql.as_bytes()).await;
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    /// A client on the Postgres wire.
    pub async fn pg(&self) -> tokio_postgres::Client {
        let config = format!("host=127.0.0.1 port={} user=tester dbname=plimsoll", self.service.pg.port());
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.expect("connects");
        tokio::spawn(connection);
        client
    }
}

/// Seals the rows up to a sequence that `parent` does not hold.
pub async fn seal(archive: &Archive, parent: Option<&Manifest>, rows: &[PlacedRow], to: u64) -> Manifest {
    let from = parent.map_or(Position::default(), |parent| parent.position);
    let until = rows::at(to);
    let tables = Table::ALL.iter().map(|&table| {
        let wanted = |row: &&PlacedRow| row.row.table() == table && row.position > from && row.position <= until;
        let rows: Vec<PlacedRow> = rows.iter().filter(wanted).cloned().collect();
        (table, vec![table::batch(table, &rows::cell(), &rows).expect("rows")])
    });
    archive.seal(parent, until, tables.collect()).await.expect("seals")
}
