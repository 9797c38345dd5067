//! Says what tests may expect: a CUDA device with `MOA_TEST_CUDA=yes`, NVRTC alone with `MOA_TEST_NVRTC=yes`. Otherwise they are shown as
//! ignored.

fn main() {
    let wanted = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var(name).as_deref() == Ok("yes")
    };
    let (cuda, nvrtc) = (wanted("MOA_TEST_CUDA"), wanted("MOA_TEST_NVRTC"));
    if !cuda {
        println!("cargo::rustc-cfg=skip_cuda");
    }
    if !cuda && !nvrtc {
        println!("cargo::rustc-cfg=skip_nvrtc");
    }
}
