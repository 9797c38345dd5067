//! Writes every assembled source to a folder, for reading and for `tint/validate.mjs`:
//! `cargo run -p moa-shaders --example dump-wgsl -- target/wgsl`.

use std::{env, fs, io, path::PathBuf, process::ExitCode};

use moa_shaders::{HeadShape, permutations};

/// Shapes that cover groups of 1 to 16 and every `head_dim` class.
const SHAPES: [HeadShape; 6] = [
    HeadShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
    },
    HeadShape {
        heads: 7,
        kv_heads: 1,
        head_dim: 16,
    },
    HeadShape {
        heads: 8,
        kv_heads: 8,
        head_dim: 32,
    },
    HeadShape {
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
    },
    HeadShape {
        heads: 16,
        kv_heads: 1,
        head_dim: 80,
    },
    HeadShape {
        heads: 8,
        kv_heads: 1,
        head_dim: 256,
    },
];

fn dump(out: &PathBuf) -> io::Result<usize> {
    fs::create_dir_all(out)?;
    let mut files = 0;
    for shape in SHAPES {
        for kernel in permutations() {
            let name = format!(
                "h{}_kv{}_d{}.{}.wgsl",
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                kernel.label()
            );
            fs::write(out.join(name), kernel.source(shape))?;
            files += 1;
        }
    }
    Ok(files)
}

#[expect(clippy::print_stderr, reason = "an example that talks to its user")]
fn main() -> ExitCode {
    let Some(out) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: dump-wgsl FOLDER");
        return ExitCode::from(1);
    };
    match dump(&out) {
        Ok(files) => {
            eprintln!("{files} sources in {}", out.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", out.display());
            ExitCode::from(1)
        }
    }
}
