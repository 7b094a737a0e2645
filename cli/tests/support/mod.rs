//! A real nats-server for tests of commands.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use plimsoll_schemas::subject::StreamSettings;

/// Longer than the broker waits for the acknowledgement of what it gave to a sink that was killed at that moment.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A process that ends with the test.
pub struct Started(pub Child);

impl Started {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

fn nats_server() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let tools = std::path::absolute("../.tools/nats-server").unwrap_or_default();
    named.into_iter().chain(found).chain([tools]).find(|candidate| candidate.is_file())
}

/// A broker of the test's own.
pub struct Server {
    _process: Started,
    pub url: String,
    pub jetstream: jetstream::Context,
}

impl Server {
    /// With these streams, empty.
    pub async fn start(folder: &Path, streams: &[StreamSettings]) -> Option<Self> {
        let Some(program) = nats_server() else {
            eprintln!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
            return None;
        };
        let config = folder.join("nats.conf");
        let store = folder.join("js");
        std::fs::write(&config, format!("listen: \"127.0.0.1:-1\"\nports_file_dir: {folder:?}\njetstream {{ store_dir: {store:?} }}\n")).unwrap();
        let process = Started(Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let file = folder.join(format!("nats-server_{}.ports", process.0.id()));
        eventually("nats-server listens", async || std::fs::read(&file).is_ok_and(|text| text.ends_with(b"}"))).await;
        let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let url = ports["nats"][0].as_str().unwrap().to_owned();
        let jetstream = jetstream::new(async_nats::connect(&url).await.unwrap());
        for settings in streams {
            let (name, subjects) = (settings.name.clone(), vec![settings.subjects.clone()]);
            jetstream.create_stream(stream::Config { name, subjects, max_bytes: settings.max_bytes, ..Default::default() }).await.unwrap();
        }
        Some(Self { _process: process, url, jetstream })
    }
}

pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
