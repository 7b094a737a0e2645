//! The files of the experiment. What is wrong with one is said with its name and line.

use std::io::Read;
use std::path::Path;

use plimsoll_fold::placement::openb::arrivals::{self, Sizes};
use plimsoll_fold::placement::openb::{self, trace};
use plimsoll_fold::placement::policy::fleet::HostSpec;
use plimsoll_fold::placement::policy::power::Powers;
use plimsoll_fold::placement::policy::workload::{Sequence, Workload};

use crate::error::Error;

/// Longest file taken, unpacked: 1 GiB.
const BYTES_MAX: u64 = 1 << 30;
/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Hosts and pods. With `hosts`, there are that many hosts: those of the list again and again.
pub fn workload(nodes: &Path, pods: &Path, hosts: Option<usize>) -> Result<Workload, Error> {
    let mut specs = trace::nodes(&text(nodes)?).map_err(|error| wrong(nodes, error))?;
    let pods = trace::pods(&text(pods)?).map_err(|error| wrong(pods, error))?;
    if let Some(hosts) = hosts {
        specs = multiplied(&specs, hosts);
    }
    if specs.iter().all(|spec| spec.gpus == 0) {
        let what = "no host has a GPU".to_owned();
        return Err(Error::Data { place: nodes.display().to_string(), what, hint: "name a node list with GPUs" });
    }
    openb::workload(specs, &pods).map_err(|error| Error::Data {
        place: nodes.display().to_string(),
        what: error.to_string(),
        hint: "correct the node list",
    })
}

/// What GPUs draw.
pub fn powers(path: &Path) -> Result<Powers, Error> {
    trace::powers(&text(path)?).map_err(|error| wrong(path, error))
}

/// The recorded sequences, of all seeds.
pub fn sequences(path: &Path, workload: &Workload) -> Result<Vec<Sequence>, Error> {
    let sizes = Sizes { pods: workload.shapes.len(), hosts: workload.hosts() };
    arrivals::recorded(&bytes(path)?, sizes).map_err(|error| Error::Data {
        place: path.display().to_string(),
        what: error.to_string(),
        hint: "name the sequences that were recorded for these node and pod lists",
    })
}

fn wrong(path: &Path, error: trace::Error) -> Error {
    Error::Data { place: format!("{}:{}", path.display(), error.line), what: error.what, hint: "correct the line, or leave it out" }
}

/// A text file, packed with gzip or not.
pub fn text(path: &Path) -> Result<String, Error> {
    String::from_utf8(bytes(path)?).map_err(|error| Error::Data {
        place: path.display().to_string(),
        what: format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()),
        hint: "name a text file",
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let cannot_read = || Error::io(format!("cannot read {}", path.display()));
    let file = std::fs::File::open(path).map_err(cannot_read())?;
    let mut packed = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut packed).map_err(cannot_read())?;
    if !packed.starts_with(&GZIP) {
        return Ok(packed);
    }
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(packed.as_slice()).take(BYTES_MAX).read_to_end(&mut bytes).map_err(cannot_read())?;
    Ok(bytes)
}

fn multiplied(specs: &[HostSpec], hosts: usize) -> Vec<HostSpec> {
    let copy = |(number, spec): (usize, &HostSpec)| HostSpec { name: format!("{number:06}-{}", spec.name), rank: number as u32, ..spec.clone() };
    specs.iter().cycle().take(hosts).enumerate().map(copy).collect()
}
