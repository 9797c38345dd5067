//! Says whether tests may expect a CUDA device: `MOA_TEST_CUDA=yes`. Otherwise they are shown as ignored.

fn main() {
    println!("cargo::rerun-if-env-changed=MOA_TEST_CUDA");
    if std::env::var("MOA_TEST_CUDA").as_deref() != Ok("yes") {
        println!("cargo::rustc-cfg=skip_cuda");
    }
}
