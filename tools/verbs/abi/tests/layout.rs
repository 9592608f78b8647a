//! The structures against the header of rdma-core.
#![allow(missing_docs)]

use std::fmt::Write;
use std::process::Command;

use holdfast_verbs_abi::LAYOUT;

/// Run it where libibverbs-dev is installed, or name the folder that has `infiniband/verbs.h` in it
/// with HOLDFAST_VERBS_INCLUDE.
#[test]
#[ignore = "needs a C compiler and libibverbs-dev"]
fn structures_are_laid_out_as_in_verbs_h() {
    let mut source = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
    for (name, size, fields) in LAYOUT {
        writeln!(source, "_Static_assert(sizeof(struct {name}) == {size}, \"{name}\");").unwrap();
        for (field, offset) in *fields {
            writeln!(
                source,
                "_Static_assert(offsetof(struct {name}, {field}) == {offset}, \"{name}.{field}\");"
            )
            .unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("layout.c");
    std::fs::write(&file, source).unwrap();
    let include = std::env::var("HOLDFAST_VERBS_INCLUDE").unwrap_or("/usr/include".into());
    let cc = Command::new("cc")
        .args(["-std=gnu11", "-fsyntax-only", "-I", &include])
        .arg(&file)
        .output()
        .expect("a C compiler");
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
}
