//! The directory that names lie in, if no other is given.

use crate::error::{Error, Result};
use rustix::fs::{FileType, Stat, lstat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::{Path, PathBuf};

/// Where this process looks for the names of regions, unless it is told another directory: the
/// rule is in [the module's table](super). It may not be there yet.
///
/// # Errors
///
/// EINVAL if `UNMERGED_RUNTIME_DIR` is not an absolute path.
pub fn runtime_directory() -> Result<PathBuf> {
    place("mshare::runtime_directory", None).map(|(path, _)| path)
}

/// Where the directory is, and whether that is the user's default.
pub(super) fn place(operation: &'static str, given: Option<&Path>) -> Result<(PathBuf, bool)> {
    // A program with more rights than its caller does not follow the caller's environment.
    // SAFETY: getauxval reads the auxiliary vector of this process.
    let trusted = unsafe { libc::getauxval(libc::AT_SECURE) } == 0;
    let variable = |name| {
        std::env::var_os(name).filter(|value| trusted && !value.is_empty()).map(PathBuf::from)
    };
    let given = given.map(Path::to_path_buf).or_else(|| variable("UNMERGED_RUNTIME_DIR"));
    if let Some(path) = given {
        if path.is_absolute() {
            return Ok((path, false));
        }
        return Err(Error::with(
            operation,
            Errno::INVAL,
            format_args!("runtime directory {} is not absolute", path.display()),
        ));
    }
    if let Some(path) = variable("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()) {
        return Ok((path.join("unmerged"), true));
    }
    let uid = geteuid().as_raw();
    let user = PathBuf::from(format!("/run/user/{uid}"));
    let ours = |stat: Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_uid == uid
    };
    if lstat(&user).is_ok_and(ours) {
        return Ok((user.join("unmerged"), true));
    }
    Ok((PathBuf::from(format!("/tmp/unmerged-{uid}")), true))
}
