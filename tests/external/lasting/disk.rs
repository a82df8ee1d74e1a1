//! PostgreSQL's disk is full: the database is on a small one of its own.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use event_gateway::domain::Id;
use tempfile::TempDir;

use super::user::User;
use super::{AROUND, FROZEN, outlives, world};
use crate::aftermath::all_is_well;
use crate::environment::or_skip;
use crate::gateway::Gateway;
use crate::play::psql;
use crate::readiness::until;
use crate::world::World;

/// Far more than the test writes; memory is taken only while it is full.
const SIZE: &str = "256m";

/// A file system of a fixed size that a database can be on.
struct Disk {
    directory: TempDir,
    tablespace: String,
}

impl Disk {
    /// `None`, with the reason printed, for whoever may not mount and need not.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        // Only root may mount, and scripts/brokers then runs the server as this user.
        let options = format!("size={SIZE},uid=postgres,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()).output();
        let why = match mounted {
            Ok(output) if output.status.success() => {
                let tablespace = format!("small{}", Id::new().to_string().replace('-', ""));
                psql("postgres", &format!("CREATE TABLESPACE {tablespace} LOCATION '{}'", directory.path().display()));
                return Some(Self { directory, tablespace });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        or_skip(None, &format!("no small disk can be mounted: {why}"))
    }

    /// Puts a world's database here; nobody may be connected to it.
    fn carry(&self, world: &World) {
        psql("postgres", &format!("ALTER DATABASE {} SET TABLESPACE {}", world.database, self.tablespace));
    }

    fn ballast(&self) -> PathBuf {
        self.directory.path().join("ballast")
    }

    /// Leaves not one page.
    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let full = loop {
            if let Err(error) = ballast.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The world has dropped its database. The server may keep deleted files open: lazily.
        std::panic::catch_unwind(|| psql("postgres", &format!("DROP TABLESPACE {}", self.tablespace))).ok();
        Command::new("umount").arg("--lazy").arg(self.directory.path()).status().ok();
    }
}

/// What is answered meanwhile is 201 or a 503 that may be repeated; it recovers by itself.
#[test]
#[ignore = "fills a disk: make test-faults"]
fn postgresql_has_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let Some(world) = world() else { return };
    disk.carry(&world);
    let meanwhile = |gateway: &Gateway| {
        let user = User::of(gateway);
        disk.fill();
        let accepted = user.is_refused_for(FROZEN);
        until(gateway, &["store"]);
        disk.make_room();
        user.finds(&accepted);
    };
    outlives(&world, &[], FROZEN + AROUND, meanwhile, all_is_well);
}
