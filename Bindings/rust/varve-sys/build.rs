//! Finds libvarve by running pkg-config. Its flags for the compiler of C are for the layout test.

use std::env;
use std::process::Command;

fn pkg_config(option: &str) -> Vec<String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_string());
    let output = Command::new(&program)
        .args([option, "varve"])
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    if !output.status.success() {
        panic!(
            "{program} does not find libvarve; set PKG_CONFIG_PATH to PREFIX/lib/pkgconfig:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8(output.stdout).expect("flags are UTF-8");
    text.split_whitespace().map(str::to_string).collect()
}

fn main() {
    println!("cargo:rerun-if-env-changed=PKG_CONFIG");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    for flag in pkg_config("--libs") {
        if let Some(directory) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={directory}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
    println!("cargo:rustc-env=VARVE_CFLAGS={}", pkg_config("--cflags").join(" "));
    println!("cargo:rerun-if-changed=build.rs");
}
