//! Watches what is compiled in beside the sources.

use std::io;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=migrations");
    // Debug builds read the page from disk; others have it in them.
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        // What is missing would be taken for changed in every build.
        std::fs::create_dir_all("web/dist")?;
        println!("cargo::rerun-if-changed=web/dist");
    }
    Ok(())
}
