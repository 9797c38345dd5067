//! A software GPU for tests: Mesa's lavapipe in a version that Dawn accepts, and a copy of Chromium that uses it.
//!
//! Debian 12's own lavapipe (22.3) is too old, so the package of the backports suite is unpacked beside it without being
//! installed. Chromium only takes SwiftShader as a software device; `tests/web/vulkan_shim.c` bridges that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use crate::workspace::Workspace;

const MESA_PACKAGE: &str = "mesa-vulkan-drivers";
const MESA_VERSION: &str = "25.0.7-2~bpo12+1";
/// Older ones lack what Dawn asks of a Vulkan driver.
const MESA_OLDEST_MAJOR: u32 = 25;
/// The Debian release that the pinned package is built for.
const CODENAME: &str = "bookworm";

/// Where Debian puts its Chromium.
pub(crate) const CHROMIUM: &str = "/usr/lib/chromium";

/// What Chromium calls the driver in whose place the shim goes.
const SHIM: &str = "libvk_swiftshader.so";

/// What the tests need to know of the software GPU.
pub(crate) struct Graphics {
    /// Value for `VK_ICD_FILENAMES`: native programs then see lavapipe and nothing else.
    pub(crate) icd: PathBuf,
    /// The driver library, for `LVP_SO`, which the shim reads.
    pub(crate) driver: PathBuf,
    /// The executable of the Chromium copy.
    pub(crate) chromium: PathBuf,
}

impl Graphics {
    /// Where they lie, ready or not.
    pub(crate) fn of(workspace: &Workspace) -> Self {
        let lavapipe = workspace.tools().join("lavapipe");
        Self {
            icd: lavapipe.join("lvp_icd.json"),
            driver: lavapipe.join("libvulkan_lvp.so"),
            chromium: workspace.tools().join("chromium/chromium"),
        }
    }
}

/// Makes the driver and the browser ready, where they are not yet.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Graphics> {
    let graphics = Graphics::of(workspace);
    if !graphics.icd.is_file() {
        let driver = match installed_driver(workspace)? {
            Some(driver) => driver,
            None => fetch_driver(workspace)?,
        };
        let link = &graphics.driver;
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(&driver, link)?;
        write_icd(&graphics.icd, link)?;
    }
    copy_chromium(workspace)?;
    Ok(graphics)
}

/// The machine's own driver, where it is new enough.
fn installed_driver(workspace: &Workspace) -> Result<Option<PathBuf>> {
    fs::create_dir_all(workspace.tools().join("lavapipe"))?;
    let sh = &workspace.shell;
    let version = cmd!(sh, "dpkg-query --show")
        .arg("--showformat=${Version}")
        .arg(MESA_PACKAGE)
        .quiet()
        .ignore_status()
        .ignore_stderr()
        .read()?;
    let major: Option<u32> = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    if major.is_none_or(|major| major < MESA_OLDEST_MAJOR) {
        return Ok(None);
    }
    let files = cmd!(sh, "dpkg-query --listfiles {MESA_PACKAGE}")
        .quiet()
        .read()?;
    Ok(files
        .lines()
        .find(|line| line.ends_with("/libvulkan_lvp.so"))
        .map(PathBuf::from))
}

/// Downloads and unpacks the pinned package from the machine's own Debian mirror.
fn fetch_driver(workspace: &Workspace) -> Result<PathBuf> {
    let sh = &workspace.shell;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    ensure!(
        release.contains(&format!("VERSION_CODENAME={CODENAME}")),
        "the software GPU for tests needs Debian {CODENAME} or {MESA_PACKAGE} {MESA_OLDEST_MAJOR} or newer"
    );
    let targets = cmd!(sh, "apt-get indextargets --format")
        .arg("$(SITE) $(CODENAME)")
        .arg("Created-By: Packages")
        .quiet()
        .read()?;
    let mirror = targets
        .lines()
        .find_map(|line| line.strip_suffix(&format!(" {CODENAME}")))
        .with_context(|| format!("apt knows no mirror of Debian {CODENAME}"))?
        .to_owned();

    let folder = workspace.tools().join("lavapipe");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::create_dir_all(folder.join("apt/lists/partial"))?;
    fs::create_dir_all(folder.join("apt/cache/archives/partial"))?;
    let sources = folder.join("apt/sources.list");
    fs::write(
        &sources,
        format!("deb [signed-by={keyring}] {mirror} {CODENAME}-backports main\n"),
    )?;
    let apt_folder = folder.join("apt");
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", apt_folder.join("lists").display()),
        format!("Dir::Cache={}", apt_folder.join("cache").display()),
        // The folder may be readable to this user alone.
        "APT::Sandbox::User=root".to_owned(),
        "Debug::NoLocking=1".to_owned(),
    ];
    let options: &[&str] = &options
        .iter()
        .flat_map(|option| ["-o", option.as_str()])
        .collect::<Vec<_>>();
    cmd!(sh, "apt-get {options...} update --quiet").run()?;
    {
        let _dir = sh.push_dir(&folder);
        cmd!(
            sh,
            "apt-get {options...} download {MESA_PACKAGE}={MESA_VERSION}"
        )
        .run()?;
        let archive = fs::read_dir(&folder)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        cmd!(sh, "dpkg -x {archive} root").run()?;
        fs::remove_file(archive)?;
    }
    let machine = cmd!(sh, "gcc -print-multiarch").quiet().read()?;
    let driver = folder.join(format!("root/usr/lib/{machine}/libvulkan_lvp.so"));
    ensure!(
        driver.is_file(),
        "{MESA_PACKAGE} {MESA_VERSION} has no lavapipe"
    );
    Ok(driver)
}

fn write_icd(file: &Path, library: &Path) -> Result<()> {
    let library = library.display();
    fs::write(
        file,
        format!(
            r#"{{"file_format_version":"1.0.0","ICD":{{"library_path":"{library}","api_version":"1.4.305"}}}}"#
        ),
    )?;
    Ok(())
}

/// Copies Debian's Chromium (by hard links where that works) and puts the shim in SwiftShader's place.
fn copy_chromium(workspace: &Workspace) -> Result<()> {
    let sh = &workspace.shell;
    let original = Path::new(CHROMIUM);
    let binary = fs::metadata(original.join("chromium")).with_context(|| {
        format!("{CHROMIUM}/chromium is missing; install Debian's package chromium")
    })?;
    let source = workspace.root.join("tests/web/vulkan_shim.c");
    let copy = workspace.tools().join("chromium");
    // Chromium loads both files by these names.
    let shim = copy.join(SHIM);
    let icd = copy.join("vk_swiftshader_icd.json");

    let current = fs::metadata(copy.join("chromium")).is_ok_and(|found| {
        found.len() == binary.len() && found.modified().ok() == binary.modified().ok()
    });
    if !current {
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        // Hard links fail across file systems.
        if cmd!(sh, "cp -al {original} {copy}")
            .ignore_stderr()
            .quiet()
            .run()
            .is_err()
        {
            let _ = fs::remove_dir_all(&copy);
            cmd!(sh, "cp -a {original} {copy}").run()?;
        }
    }
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if !current || modified(&shim) < modified(&source) {
        // A hard link: writing into it would change the original.
        for file in [&shim, &icd] {
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        cmd!(
            sh,
            "gcc -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden -o {shim} {source} -ldl"
        )
        .run()?;
        // Beside it, wherever the folder is looked at from.
        write_icd(&icd, &Path::new(".").join(SHIM))?;
    }
    Ok(())
}
