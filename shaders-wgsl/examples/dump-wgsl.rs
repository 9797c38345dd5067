//! Writes every assembled source, as browsers get it but for what `build.rs` strips and renames there, to a folder, for reading and for
//! `tint/validate.mjs`:
//! `cargo run -p moa-shaders --example dump-wgsl -- target/wgsl`.

use std::{env, fs, io, path::PathBuf, process::ExitCode};

use moa_shaders::{
    CHECKED_SHAPES, Compiler, Dialect, dialects, head_permutations, permutations, plausible_params,
};

fn dump(out: &PathBuf) -> io::Result<usize> {
    fs::create_dir_all(out)?;
    let mut files = 0;
    for (index, shape) in CHECKED_SHAPES.into_iter().enumerate() {
        let kernels = if index == 0 {
            permutations()
        } else {
            head_permutations()
        };
        for kernel in kernels {
            let model = format!("h{}_kv{}_d{}", shape.heads, shape.kv_heads, shape.head_dim);
            let name = format!("{model}.{}.wgsl", kernel.label());
            fs::write(out.join(name), kernel.source(shape))?;
            files += 1;
            let params = plausible_params(kernel);
            if params.is_some() {
                let name = format!("{model}.{}.constants.wgsl", kernel.label());
                let source = kernel.source_with(shape, Dialect::BASE, params.as_deref());
                fs::write(out.join(name), source)?;
                files += 1;
            }
            // With their constants where they have some, as programs have them.
            for dialect in dialects(kernel, shape, Compiler::Browser) {
                let label = kernel.label_in(shape, dialect);
                let name = format!("{model}.{label}.{}.wgsl", dialect.subgroup);
                let source = kernel.source_with(shape, dialect, params.as_deref());
                fs::write(out.join(name), source)?;
                files += 1;
            }
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
