//! Sources without comments and indentation and with short names for the wasm engine, where every byte is downloaded; as
//! they are elsewhere, where people read them in errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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

/// Identifiers and numbers of a source, and what lies between them, in turns.
fn pieces(source: &str) -> impl Iterator<Item = &str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = source;
    std::iter::from_fn(move || {
        let inside = part(rest.chars().next()?);
        let end = rest.find(|c| part(c) != inside).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// Short names for what the sources themselves declare, the most frequent first. Not for what others know by its name:
/// constants that come from Rust, fields of shared structs, `params`, the entry point, and what is also a function or a word
/// of the language.
pub(crate) fn short_names(sources: &[String]) -> BTreeMap<String, String> {
    let known = moa_mask::abi::STRUCTS
        .iter()
        .flat_map(|layout| layout.fields.iter().map(|(field, ..)| *field))
        .chain([
            "main", "params", "all", "any", "dot", "round", "max", "min", "default",
        ]);
    let known: BTreeSet<&str> = known.collect();
    // Constants that a source may get from Rust instead of declaring them.
    let from_rust = [
        include_str!("src/assemble.rs"),
        include_str!("src/variant.rs"),
    ];
    let from_rust: BTreeSet<&str> = from_rust.into_iter().flat_map(pieces).collect();
    let prelude = moa_mask::abi::wgsl_prelude();
    let from_prelude: BTreeSet<&str> = pieces(&prelude).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut declared = BTreeSet::new();
    for source in sources {
        let (mut before, mut between) = ("", "");
        for piece in pieces(source) {
            if !piece.starts_with(|c: char| c.is_ascii_alphabetic()) {
                // A colon behind a name makes it a field, a parameter or a variable with its type.
                if piece.starts_with(':') {
                    declared.insert(before);
                }
                between = piece;
                continue;
            }
            let word = ["fn", "let", "var", "const", "struct", "alias"].contains(&before);
            if word && between == " " {
                declared.insert(piece);
            }
            *counts.entry(piece).or_default() += 1;
            before = piece;
        }
    }
    let long = |name: &&str| {
        let lower = name.contains(|c: char| c.is_ascii_lowercase());
        let own = lower || !(from_rust.contains(name) || from_prelude.contains(name));
        name.len() > 2 && own && !known.contains(name)
    };
    let mut order: Vec<&str> = declared.into_iter().filter(long).collect();
    order.sort_by_key(|name| (std::cmp::Reverse(counts.get(name).copied()), *name));
    let one = ('A'..='Z').chain('a'..='z').map(String::from);
    let two = ('A'..='Z').flat_map(|first| {
        let second = ('a'..='z').chain('0'..='9');
        second.map(move |second| format!("{first}{second}"))
    });
    let free = one
        .chain(two)
        .filter(|name| !counts.contains_key(name.as_str()));
    order.into_iter().map(str::to_owned).zip(free).collect()
}

/// A source with other names.
pub(crate) fn renamed(source: &str, names: &BTreeMap<String, String>) -> String {
    let mut text = String::with_capacity(source.len());
    for piece in pieces(source) {
        // Attributes are none of ours.
        let name = names.get(piece).filter(|_| !text.ends_with('@'));
        text.push_str(name.map_or(piece, String::as_str));
    }
    text
}

/// Every source below a folder: where it lies in it, and what it says.
pub(crate) fn sources(folder: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        if path.is_dir() {
            let below = sources(&path)?.into_iter();
            list.extend(below.map(|(path, text)| (name.join(path), text)));
        } else {
            list.push((name, fs::read_to_string(path)?));
        }
    }
    list.sort();
    Ok(list)
}

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wgsl");
    let strip = env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32");
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    let out = Path::new(&out).join("wgsl");
    let (paths, mut texts): (Vec<_>, Vec<_>) = sources(Path::new("wgsl"))?.into_iter().unzip();
    if strip {
        texts = texts.iter().map(|text| stripped(text)).collect();
        let names = short_names(&texts);
        texts = texts.iter().map(|text| renamed(text, &names)).collect();
    }
    for (path, text) in paths.iter().zip(texts) {
        let to = out.join(path);
        fs::create_dir_all(to.parent().unwrap_or(&out))?;
        // Not written into: the file may be another folder's too.
        let _ = fs::remove_file(&to);
        fs::write(to, text)?;
    }
    Ok(())
}
