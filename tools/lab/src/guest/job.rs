//! What a guest is told to do: a command, files, modules to load; packed as a tar for its disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A job.
#[derive(Debug, Clone, Default)]
pub struct Job {
    command: String,
    environment: Vec<(String, String)>,
    modules: Vec<String>,
    files: Vec<(PathBuf, String)>,
    texts: Vec<(String, String)>,
}

impl Job {
    /// Runs a shell script.
    pub fn script(text: impl Into<String>) -> Self {
        Self { command: text.into(), ..Self::default() }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Loads a kernel module before the command.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Copies a file or a folder of ours to `/job/NAME` in the guest.
    pub fn file(mut self, path: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.files.push((path.into(), name.into()));
        self
    }

    /// Puts a text at `/job/NAME` in the guest.
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.texts.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Writes the archive, padded to whole sectors.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {path:?}"))?;
        let mut archive = tar::Builder::new(file);
        let env: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quote(value)))
            .collect();
        let modules: String = self.modules.iter().map(|name| format!("{name}\n")).collect();
        let own = [("lab/env", &env), ("lab/modules", &modules), ("lab/command", &self.command)];
        let texts = self.texts.iter().map(|(name, text)| (name.as_str(), text));
        for (name, text) in own.into_iter().chain(texts) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            header.set_cksum();
            archive.append_data(&mut header, name, text.as_bytes())?;
        }
        for (source, name) in &self.files {
            let added = if source.is_dir() {
                archive.append_dir_all(name, source)
            } else {
                archive.append_path_with_name(source, name)
            };
            added.with_context(|| format!("cannot hand {source:?} to the guest"))?;
        }
        let file = archive.into_inner()?;
        let size = file.metadata()?.len();
        file.set_len(size.next_multiple_of(4096))?;
        Ok(())
    }
}

/// A word as a shell reads it back.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_read_back_by_a_shell_as_it_was() {
        for word in ["plain", "two words", "it's", "$HOME `x` \"y\" \\z", ""] {
            let script = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
