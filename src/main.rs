//! The `holdfast` command; everything is in [`command`].

mod command;

/// Counts what measuring loops ask of the allocator.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: holdfast_lab_check::allocations::CountingAllocator =
    holdfast_lab_check::allocations::CountingAllocator;

fn main() -> std::process::ExitCode {
    command::run()
}
