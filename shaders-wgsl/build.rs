//! Sources without comments and indentation for the wasm engine, where every byte is downloaded; as they are elsewhere,
//! where people read them in errors.

use std::path::Path;
use std::{env, fs, io};

/// WGSL without comments, indentation, empty lines, most spaces and line ends, and with short names of vectors. There are
/// no strings and no block comments in it.
pub(crate) fn stripped(source: &str) -> String {
    let lines = source
        .lines()
        .map(|line| line.find("//").map_or(line, |at| &line[..at]).trim());
    let mut text = String::with_capacity(source.len());
    for line in lines.filter(|line| !line.is_empty()) {
        text.push_str(line);
        text.push('\n');
    }
    let operators = [
        " = ", " + ", " - ", " * ", " / ", " % ", " += ", " < ", " > ", " <= ", " >= ", " == ",
        " != ", " && ", " || ", " & ", " | ", " ^ ", " << ", " >> ", ", ", ": ", "; ", " {",
        " -> ",
    ];
    for operator in operators {
        text = text.replace(operator, operator.trim());
    }
    for line_end in [";", "{", "}", ","] {
        text = text.replace(&format!("{line_end}\n"), line_end);
    }
    text = text
        .replace(" (", "(")
        .replace("} ", "}")
        .replace(",)", ")");
    short_vectors(text)
}

/// Vectors by their short names.
pub(crate) fn short_vectors(mut text: String) -> String {
    for (short, kind) in [("f", "f32"), ("u", "u32"), ("i", "i32")] {
        for size in 2..=4 {
            text = text.replace(&format!("vec{size}<{kind}>"), &format!("vec{size}{short}"));
        }
    }
    text
}

fn copy(from: &Path, to: &Path, strip: bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &to, strip)?;
        } else {
            let source = fs::read_to_string(&path)?;
            fs::write(to, if strip { stripped(&source) } else { source })?;
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wgsl");
    let strip = env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32");
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    copy(Path::new("wgsl"), &Path::new(&out).join("wgsl"), strip)
}
