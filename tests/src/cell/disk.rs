//! A disk of its own for the broker, whose power can be cut: what had not reached it is gone, whatever the broker has acknowledged.
//!
//! The disk is an image of ext4 behind a loop device. What the image holds at a moment is what a power cut at that moment leaves; what still
//! waits in the page cache of the file system in it is not there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Of the image; it takes only what was written to it.
const BYTES: u64 = 1 << 30;
/// A process that was just killed may hold the disk a moment longer.
const UNMOUNT_TRIES: u32 = 50;

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Disk {
    /// A new one, in a folder; says why where this machine does not allow it.
    pub fn if_allowed(folder: &Path) -> Option<Self> {
        Self::new(folder).map_err(|error| eprintln!("skipped: no disk of its own, which needs root, mkfs.ext4 and loop devices: {error:#}")).ok()
    }

    fn new(folder: &Path) -> Result<Self> {
        let disk = Self { image: folder.join("disk.image"), mounted_at: folder.join("disk") };
        std::fs::create_dir(&disk.mounted_at)?;
        std::fs::File::create(&disk.image)?.set_len(BYTES)?;
        tell(Command::new("mkfs.ext4").arg("-q").arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Lets everything reach it that was written so far: what was installed long ago is there.
    pub fn sync(&self) -> Result<()> {
        tell(Command::new("sync").arg("--file-system").arg(&self.mounted_at))
    }

    /// Copies what has reached it. Nobody may write meanwhile.
    pub fn what_has_reached_it(&self) -> Result<PathBuf> {
        let copy = self.image.with_extension("cut");
        tell(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy))?;
        Ok(copy)
    }

    /// Goes on with a copy made before. Nobody may use it meanwhile.
    pub async fn go_on_with(&self, copy: &Path) -> Result<()> {
        for _ in 0..UNMOUNT_TRIES {
            if self.unmount().is_ok() {
                std::fs::rename(copy, &self.image)?;
                return self.mount();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.unmount()
    }

    fn mount(&self) -> Result<()> {
        tell(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.mounted_at))
    }

    fn unmount(&self) -> Result<()> {
        tell(Command::new("umount").arg(&self.mounted_at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: it goes when its last user has gone.
        let _ = tell(Command::new("umount").arg("--lazy").arg(&self.mounted_at));
    }
}

fn tell(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
