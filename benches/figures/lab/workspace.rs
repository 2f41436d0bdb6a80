//! A lab and how a contender is called in it: by an ordinary user, behind the words that put a command in its place.

use std::ffi::OsStr;

use super::Lab;
use super::command::Program;
use super::world::{USER, path, program, runtime_dir, scratch};

pub struct Workspace {
    pub lab: Lab,
    /// `sidestep run FLAGS --`, or nothing on the host.
    words: Vec<String>,
    /// What starts the ordinary user's programs.
    pub before: Vec<String>,
}

impl Workspace {
    /// `sidestep run` with these flags, or with None the host.
    pub fn new(lab: Lab, flags: Option<Vec<String>>) -> Self {
        let run =
            |flags| [vec![program().display().to_string(), "run".to_owned()], flags, vec!["--".to_owned()]].concat();
        Self { lab, words: flags.map_or_else(Vec::new, run), before: Vec::new() }
    }

    /// A program on this path, called by the ordinary user.
    pub fn program<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        self.as_user(Program::new(argv).behind(&self.words))
    }

    /// A program of the caller's, on the host.
    pub fn outside<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        self.as_user(Program::new(argv))
    }

    /// With one id in the world an ordinary user is that id without its capabilities: a user namespace around it where it
    /// is not root, so that nothing over the host's network is left to it.
    fn as_user(&self, program: Program) -> Program {
        let user = USER.to_string();
        program
            .behind(["unshare", "--user", "--map-user", &user, "--map-group", &user, "--"])
            .behind(&self.before)
            .env("PATH", path())
            .env("XDG_RUNTIME_DIR", runtime_dir())
            .env("TMPDIR", scratch())
    }
}
