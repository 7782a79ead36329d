//! `cargo xtask libtorch`: the engine of `plugins/libtorch`, from wheels of the Python package index, without Python.
//!
//! A wheel of PyTorch holds everything for CUDA; for building, and for CPUs, a tenth of it is enough. `fetch.rs` brings
//! the wheels and checks them; here their members are put where the build and the tests look: `target/libtorch`. What a
//! plugin needs on a GPU beyond that comes with an installed PyTorch, which the worker is told of; only headers are
//! needed here.

mod fetch;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use fetch::{Beginning, Wheel};

use crate::steps::root;

/// Written last: the tree is whole, and of these wheels.
const STAMP: &str = "wheels.txt";

/// What 0.24 of `tch` is made for. Any Python's wheel has the same libraries.
const WHEELS: [Wheel; 4] = [
    Wheel {
        project: "torch",
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        place: "8c/8b/d7be22fbec9ffee6cff31a39f8750d4b3a65d349a286cf4aec74c2375662",
        size: 530_604_548,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    },
    Wheel {
        project: "nvidia-cuda-runtime",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        place: "2e/24/d1558f3b68b1d26e706813b1d10aa1d785e4698c425af8db8edc3dced472",
        size: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
    Wheel {
        project: "nvidia-cuda-cupti",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        place: "33/6d/737d164b4837a9bbd202f5ae3078975f0525a55730fe871d8ed4e3b952b0",
        size: 10_715_597,
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
    Wheel {
        project: "nvidia-cuda-crt",
        file: "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        place: "05/69/a1ec4d9f0747d85964206feb47bf359f48a2d6af74c0add8abba6efe3dda",
        size: 134_086,
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    },
];

/// NCCL of the version that this PyTorch was built with: 196 MB, of which building needs the header in front.
const NCCL: Beginning = Beginning {
    wheel: Wheel {
        project: "nvidia-nccl-cu13",
        file: "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
        place: "b0/b4/878fefaad5b2bcc6fcf8d474a25e3e3774bc5133e4b58adff4d0bca238bc",
        size: 196_493_177,
        sha256: "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
    },
    member: "nvidia/nccl/include/nccl.h",
    sha256: "06b934792a70f08cafabd96b8f94015b143a182fbb3bc56ac71c4c6de7deb971",
};

/// Arguments of `libtorch`.
#[derive(Args, Default)]
pub struct Libtorch {
    /// Folder with the wheels, for a machine without a network
    #[arg(long, value_name = "DIR")]
    wheels: Option<PathBuf>,
    /// Package index in the simple layout, instead of pypi.org
    #[arg(long, value_name = "URL", env = "PIP_INDEX_URL")]
    index: Option<String>,
}

impl Libtorch {
    /// Lays the tree out, unless it is there.
    pub fn run(&self) -> Result<()> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!(
                "the wheels that are known here are for Linux on x86-64; elsewhere unpack libtorch 2.11.0 of your \
                 platform, set LIBTORCH to it, and build with --features cappy-plugin-libtorch/torch"
            );
        }
        let tree = tree();
        let stamp: String = WHEELS
            .iter()
            .chain([&NCCL.wheel])
            .map(|wheel| format!("{} {}\n", wheel.sha256, wheel.file))
            .collect();
        if fs::read_to_string(tree.join(STAMP)).is_ok_and(|found| found == stamp) {
            eprintln!("libtorch 2.11.0 is in {}", tree.display());
            return Ok(());
        }
        let parent = tree.parent().context("the tree has a parent")?;
        let downloads = parent.join("libtorch-wheels");
        let unfinished = parent.join("libtorch-unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).context("cannot remove what an earlier run left")?;
        }
        fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        let header = match &self.wheels {
            Some(folder) => NCCL.at_hand(folder)?,
            None => NCCL.fetch(self.index.as_deref())?,
        };
        for wheel in &WHEELS {
            let file = match &self.wheels {
                Some(folder) => wheel.at_hand(folder)?,
                None => wheel.fetch(&downloads, self.index.as_deref())?,
            };
            unpack(&file, &unfinished).with_context(|| format!("cannot unpack {}", file.display()))?;
        }
        let place = unfinished.join(NCCL.member);
        fs::create_dir_all(place.parent().context("a member is in a folder")?)?;
        fs::write(place, header)?;
        stand_in(&unfinished.join("torch/lib/libtorch.so"))?;
        fs::write(unfinished.join(STAMP), stamp)?;
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("cannot replace {}", tree.display()))?;
        }
        fs::rename(&unfinished, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
        // Half a gigabyte that nobody needs again.
        let _ = fs::remove_dir_all(&downloads);
        eprintln!(
            "libtorch 2.11.0 is in {}; build with --features cappy-plugin-libtorch/torch",
            tree.display()
        );
        Ok(())
    }
}

/// Where the build finds it (`LIBTORCH` in `.cargo/config.toml`), whatever cargo's target folder is.
fn tree() -> PathBuf {
    root().join("target/libtorch")
}

/// Headers, and the libraries that a CPU needs: `libtorch_cpu` wants CUDA's runtime and profiler even where there is
/// no GPU.
fn wanted(member: &str) -> bool {
    const LIBRARIES: [&str; 3] = ["libc10.so", "libtorch_cpu.so", "libgomp.so.1"];
    if let Some(library) = member.strip_prefix("torch/lib/") {
        return LIBRARIES.contains(&library);
    }
    let licence =
        member.contains(".dist-info/") && (member.contains("LICENSE") || member.contains("License"));
    member.starts_with("torch/include/")
        || member.starts_with("nvidia/cu13/include/")
        || licence
        || member.strip_prefix("nvidia/cu13/lib/").is_some_and(|library| {
            library.starts_with("libcudart.so.") || library.starts_with("libcupti.so.")
        })
}

fn unpack(wheel: &Path, to: &Path) -> Result<()> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy();
    eprint!("unpacking {name} ");
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        if member.is_dir() || !wanted(&member.name()?) {
            continue;
        }
        let inside = member.enclosed_name().context("a member leaves the folder")?;
        let file = to.join(inside);
        fs::create_dir_all(file.parent().context("a member is in a folder")?)?;
        let mut out = File::create(&file)?;
        io::copy(&mut member, &mut out)?;
        if file.extension().is_some_and(|extension| extension == "so") {
            eprint!(".");
            io::stderr().flush()?;
        }
    }
    eprintln!();
    Ok(())
}

/// `tch` links `libtorch.so`, which in the wheel only drags in all of CUDA: an empty library of that name does.
fn stand_in(library: &Path) -> Result<()> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-x", "c", "/dev/null", "-Wl,-soname,libtorch.so", "-o"])
        .arg(library)
        .status()
        .with_context(|| format!("cannot start the C compiler {}", compiler.display()))?;
    if !status.success() {
        bail!("the C compiler could not make an empty library: {status}");
    }
    Ok(())
}
