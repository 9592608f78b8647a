//! Link arguments of the preloadable library.

fn main() {
    // A thread of the library runs until the process ends: it must not be unloaded.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Not libibverbs's own name: librdmacm goes on loading the real one beside it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libholdfast_verbs.so");
    println!("cargo:rerun-if-changed=build.rs");
}
