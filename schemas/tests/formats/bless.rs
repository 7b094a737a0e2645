//! Files that are checked in and must agree with the code.

use std::path::PathBuf;

/// Whether the files are to be written instead of compared.
pub fn blessing() -> bool {
    std::env::var_os("PLIMSOLL_BLESS").is_some_and(|value| value == "1")
}

/// A path under `schemas/`, where cargo runs the tests. What was built may have been built for another checkout, so no path is built in.
pub fn path(relative: &str) -> PathBuf {
    PathBuf::from(relative)
}

/// Writes a file with its folder.
pub fn write(relative: &str, bytes: &[u8]) {
    let path = path(relative);
    std::fs::create_dir_all(path.parent().expect("a file in a folder")).expect("folder is writable");
    std::fs::write(path, bytes).expect("file is writable");
}

/// The bytes of a checked-in file.
pub fn read(relative: &str) -> Vec<u8> {
    std::fs::read(path(relative)).unwrap_or_else(|error| panic!("schemas/{relative}: {error}; write it with PLIMSOLL_BLESS=1"))
}

/// The names of the files in a folder, sorted.
pub fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path(folder)).expect("folder exists");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("plain name")).collect();
    names.sort();
    names
}
