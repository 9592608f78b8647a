//! `lab`: a guest with a real VFIO, a real vIOMMU and a choice of QEMU, kernel and RDMA NIC, in
//! one command and from Debian packages alone.
//!
//! A run goes through four rooms. [`cache`] owns one folder of finished things, each named by a
//! hash of the recipe that made it; [`debian`] makes them (package indices, file trees, kernels,
//! images, one out-of-tree kernel module). [`guest`] boots a QEMU with them, hands the guest a job
//! and brings back its console, exit status and files. [`suite`] reads tables of such jobs and
//! judges them. Every process started on the way is a [`process::Guarded`] child: it dies with
//! `lab`, however `lab` ends.

mod cache;
mod cli;
mod debian;
mod guest;
mod process;
mod progress;
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) if process::interrupted() => {
            eprintln!("lab: interrupted ({error})");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            let cannot = error.chain().any(|cause| cause.is::<debian::CannotHere>());
            ExitCode::from(if cannot { 3 } else { 2 })
        }
    }
}
