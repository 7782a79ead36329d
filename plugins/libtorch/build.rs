//! Compiles the C++ of this plugin against libtorch's headers, and notes which libtorch that is.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    #[cfg(feature = "torch")]
    torch::build();
    #[cfg(not(feature = "torch"))]
    println!("cargo:rustc-env=CAPPY_TORCH_ABI=0");
}

#[cfg(feature = "torch")]
mod torch {
    use std::path::{Path, PathBuf};
    use std::{env, fs, process};

    /// The version that `tch` is written for: with another one it computes wrong numbers without an error.
    const VERSION: [u64; 3] = [2, 11, 0];

    pub fn build() {
        let home = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_else(|| {
            stop("LIBTORCH is not set: run `cargo xtask libtorch`, and build inside the workspace")
        });
        let include = home.join("include");
        let version = version(&include.join("torch/headeronly/version.h"));
        if version != VERSION {
            let dotted = |v: [u64; 3]| v.map(|n| n.to_string()).join(".");
            stop(&format!(
                "libtorch in {} is {}, this plugin is written for {}: run `cargo xtask libtorch`",
                home.display(),
                dotted(version),
                dotted(VERSION)
            ));
        }
        let abi = version[0] << 56 | version[1] << 48 | version[2] << 40;
        println!("cargo:rustc-env=CAPPY_TORCH_ABI={abi}");
        compiler(&include)
            .files([
                "cpp/attention.cpp",
                "cpp/group.cpp",
                "cpp/gradients.cpp",
                "cpp/inference.cpp",
                "cpp/variables.cpp",
            ])
            .define("USE_C10D_GLOO", None)
            .compile("cappy_c10d");
        cuda(&home);
        // For programs of this package. In the profile for release the plugin gets no path of this machine; examples
        // and tests, which never leave it, do.
        let of_all = env::var("PROFILE").as_deref() == Ok("debug");
        for programs in if of_all { &[""][..] } else { &["-examples", "-tests"] } {
            println!("cargo:rustc-link-arg{programs}=-Wl,-rpath,{}", home.join("lib").display());
        }
    }

    fn compiler(include: &Path) -> cc::Build {
        let mut build = cc::Build::new();
        // As the system's headers: their warnings are not ours.
        for dir in [&include.join("torch/csrc/api/include"), include] {
            build.flag("-isystem").flag(dir);
        }
        build
            .cpp(true)
            .std("c++17")
            .include("cpp")
            .define("USE_DISTRIBUTED", None)
            // libtorch is called, never inlined far: what little is compiled here is compiled quickly.
            .opt_level(1)
            .debug(false);
        build
    }

    /// A library of its own, which the plugin carries along: it needs libtorch_cuda, which is not everywhere. What it
    /// calls there is found when it is opened; to build it headers are enough.
    fn cuda(home: &Path) {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("libcappy_cuda.so");
        println!("cargo:rustc-env=CAPPY_CUDA_LIBRARY={}", out.display());
        println!("cargo:rerun-if-env-changed=CUDA_HOME");
        let wheels = home.join("../nvidia");
        let toolkit = env::var_os("CUDA_HOME").map(|cuda| PathBuf::from(cuda).join("include"));
        let places = [Some(wheels.join("nccl/include")), Some(wheels.join("cu13/include")), toolkit];
        let places: Vec<PathBuf> = places.into_iter().flatten().collect();
        let missing = ["nccl.h", "cuda_runtime.h", "crt/host_config.h"]
            .into_iter()
            .find(|header| !places.iter().any(|place| place.join(header).is_file()));
        if let Some(header) = missing {
            println!(
                "cargo:warning=built without NCCL: {header} is neither in {} nor below CUDA_HOME; groups of GPUs will \
                 exchange tensors through the CPU's memory",
                wheels.display()
            );
            fs::write(&out, "").unwrap_or_else(|error| stop(&format!("{}: {error}", out.display())));
            return;
        }
        let mut build = compiler(&home.join("include"));
        build.flag("-isystem").flag("cpp/cuda/headers");
        for place in places {
            build.flag("-isystem").flag(place);
        }
        build.define("USE_C10D_NCCL", None).files(["cpp/cuda/device.cpp", "cpp/cuda/nccl.cpp"]);
        let objects = build.compile_intermediates();
        let linked =
            build.get_compiler().to_command().args(["-shared", "-s", "-o"]).arg(&out).args(objects).status();
        if !linked.is_ok_and(|status| status.success()) {
            stop("the C++ compiler cannot link what is in cpp/cuda");
        }
    }

    fn version(header: &Path) -> [u64; 3] {
        println!("cargo:rerun-if-changed={}", header.display());
        let text = fs::read_to_string(header).unwrap_or_else(|_| {
            stop(&format!(
                "there is no libtorch: {} is missing; run `cargo xtask libtorch`",
                header.display()
            ))
        });
        ["MAJOR", "MINOR", "PATCH"].map(|part| {
            let line = format!("#define TORCH_VERSION_{part} ");
            let number = text.lines().find_map(|l| l.strip_prefix(line.as_str())?.trim().parse().ok());
            number.unwrap_or_else(|| stop(&format!("{} names no TORCH_VERSION_{part}", header.display())))
        })
    }

    fn stop(why: &str) -> ! {
        println!("cargo:warning={why}");
        process::exit(1)
    }
}
