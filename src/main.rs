//! The `holdfast` command; everything is in [`command`].

mod command;

fn main() -> std::process::ExitCode {
    command::run()
}
