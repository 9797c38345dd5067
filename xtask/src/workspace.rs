//! Where things lie in this checkout, and how commands are run in it.
//!
//! Everything that is fetched or built goes under `target/` or `.models/`, which git ignores; nothing is written elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use xshell::Shell;

/// The checkout, with a shell that stands in its root.
pub(crate) struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Runs commands in `root`.
    pub(crate) shell: Shell,
    /// The cargo that runs this program.
    pub(crate) cargo: OsString,
}

/// A cargo profile, by its name on the command line.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Quick to build and checked; also what the tests use.
    Dev,
    /// What users get.
    Release,
}

impl Workspace {
    /// The workspace that this program was compiled from.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in no workspace")?
            .to_path_buf();
        let shell = Shell::new()?;
        shell.change_dir(&root);
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self { root, shell, cargo })
    }

    /// Cargo's output folder, where the environment has moved it too.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The folder of tools that were fetched for this checkout.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// The model of the demo and of the end-to-end tests.
    pub(crate) fn model(&self) -> PathBuf {
        self.root.join(".models/SmolLM2-135M-Instruct.Q4_1.gguf")
    }

    /// Builds the named binaries and returns the folder that they lie in.
    pub(crate) fn build_binaries(&self, profile: Profile, names: &[&str]) -> Result<PathBuf> {
        let (flag, folder) = match profile {
            Profile::Dev => ("dev", "debug"),
            Profile::Release => ("release", "release"),
        };
        let cargo = &self.cargo;
        let bins = names.iter().flat_map(|name| ["--bin", *name]);
        xshell::cmd!(
            self.shell,
            "{cargo} build --workspace --locked --profile {flag} {bins...}"
        )
        .run()?;
        Ok(self.target().join(folder))
    }
}

/// Whether a program of this name is on PATH.
pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}
