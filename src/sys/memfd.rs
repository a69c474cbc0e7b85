//! memfd_create(2) and its seals.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, StatxFlags, fchmod,
    fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fstat, fstatfs, ftruncate, makedev,
    memfd_create, seek, statx,
};
use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};

/// Most bytes of a name.
pub const NAME: usize = 249;

/// `memfd_create(name, MFD_CLOEXEC|MFD_ALLOW_SEALING|MFD_NOEXEC_SEAL)` — a memory file of
/// `size` bytes, all zero and none of them allocated, closed on exec, never executable
/// (since Linux 6.3; before, merely not marked so) and of mode 0600.
///
/// The mode matters: a memfd is born 0777, and a peer of another user that was handed a
/// read-only descriptor could open it again for writing.
///
/// # Errors
///
/// EINVAL for a name over [`NAME`] bytes, EMFILE or ENFILE, ENOMEM, EFBIG.
pub fn create(name: &str, size: u64) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // A kernel before 6.3 does not know the flag.
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        created => created?,
    };
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    grow(&file, size)?;
    Ok(file)
}

/// Huge pages of a memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePage {
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

/// The same in huge pages (`MFD_HUGETLB`), which the administrator has to reserve. No page is
/// taken yet: a touch without one is SIGBUS, so take them with [`allocate`].
///
/// # Errors
///
/// Those of [`create`]; ENODEV or EINVAL where the machine has no pages of this size, EINVAL
/// for a size that is no multiple of it.
pub fn create_huge(name: &str, size: u64, page: HugePage) -> Result<OwnedFd> {
    let huge = match page {
        HugePage::M2 => MemfdFlags::HUGE_2MB,
        HugePage::G1 => MemfdFlags::HUGE_1GB,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | huge;
    let file = memfd_create(name, flags)?;
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    grow(&file, size)?;
    Ok(file)
}

/// `fallocate(file, 0, offset, len)` — takes the pages now.
///
/// # Errors
///
/// ENOSPC or ENOMEM if there are none, EINTR.
pub fn allocate(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len)
}

/// `pread` of all that a file has in this range — its pages are in the page cache then, and the file is
/// as it was.
///
/// # Errors
///
/// EBADF for a descriptor that cannot read, EIO.
pub fn read_through(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    let mut bytes = vec![0_u8; 1 << 16];
    let (mut at, end) = (offset, offset.saturating_add(len));
    while at < end {
        let most = (end - at).min(bytes.len() as u64) as usize;
        match rustix::io::pread(&file, &mut bytes[..most], at) {
            Ok(0) => break,
            Ok(read) => at += read as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// `fallocate(file, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, offset, len)` — gives the pages
/// back, and takes them out of every process that maps them: the next touch finds zeros.
///
/// # Errors
///
/// EPERM for a file that is sealed against writing, EBADF for a descriptor without the right,
/// EOPNOTSUPP for a file system that cannot.
pub fn punch(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match rustix::fs::fallocate(&file, flags, offset, len) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// [`punch`], or on a file system that cannot, zeros written over what is there: the same to who
/// reads, but the pages stay.
///
/// # Errors
///
/// Those of [`punch`] but EOPNOTSUPP; those of pwrite(2); EFBIG beyond the limit of this process,
/// for which the kernel would also send it SIGXFSZ.
pub fn clear(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    match punch(&file, offset, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => zero(file, offset, len),
        done => done,
    }
}

fn zero(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let size = u64::try_from(fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
    let end = offset.checked_add(len).ok_or(Errno::INVAL)?.min(size);
    if getrlimit(Resource::Fsize).current.is_some_and(|most| end > most) {
        return Err(Errno::FBIG);
    }
    let mut at = offset;
    while at < end {
        // What was never written is zero, and stays without memory.
        match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => at = data.max(at),
            Err(Errno::NXIO) => break,
            Err(_) => {}
        }
        let left = end.saturating_sub(at).min(ZEROS.len() as u64) as usize;
        match rustix::io::pwrite(&file, &ZEROS[..left], at) {
            Ok(0) if left > 0 => return Err(Errno::IO),
            Ok(written) => at += written as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// `open("/proc/self/fd/N", O_RDONLY|O_CLOEXEC)` — the same file, by a descriptor that can only
/// read.
///
/// # Errors
///
/// ENOENT without /proc, EACCES if the file's mode does not let us.
pub fn reopen_for_reading(file: impl AsFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// `getrlimit(RLIMIT_FSIZE)`, `ftruncate` — makes a file as large as that.
///
/// # Errors
///
/// EFBIG beyond the limit of this process, for which the kernel would also send it SIGXFSZ; EPERM
/// for a sealed file, EINVAL for one that is not writable.
pub fn grow(file: impl AsFd, size: u64) -> Result<()> {
    if getrlimit(Resource::Fsize).current.is_some_and(|most| size > most) {
        return Err(Errno::FBIG);
    }
    ftruncate(file, size)
}

/// What an errno of [`sealed_size`] says about the file.
pub fn why_not_sealed(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => {
            "the file is not sealed against changes of its size, or not in ordinary pages"
        }
        Errno::INVAL => "the file is no memory file: it cannot be sealed",
        _ => "its seals cannot be read",
    }
}

/// Does this kernel know `MFD_NOEXEC_SEAL`?
pub fn has_noexec() -> bool {
    memfd_create("unmerged.probe", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL).is_ok()
}

/// Does this kernel know `F_SEAL_FUTURE_WRITE` (since Linux 5.1)?
pub fn has_future_write() -> bool {
    create("unmerged.probe", 0).and_then(|file| seal(file, SealFlags::FUTURE_WRITE)).is_ok()
}

/// `fcntl(F_ADD_SEALS)`.
///
/// # Errors
///
/// EPERM on a sealed or read-only descriptor, EINVAL for a file without seals, EBUSY for
/// `WRITE` while a writable mapping exists.
pub fn seal(file: impl AsFd, seals: SealFlags) -> Result<()> {
    fcntl_add_seals(file, seals)
}

/// `fcntl(F_ADD_SEALS, F_SEAL_SEAL)`, `fcntl(F_GET_SEALS)`, `fcntl(F_GETFL)` — nobody seals the file
/// from now on, and it has no seal that keeps its pages from being taken away by this
/// descriptor, or the file from being cut.
///
/// # Errors
///
/// EPERM for a file that has such a seal, or a descriptor that cannot write; EINVAL for a file
/// without seals.
pub fn keep_revocable(file: impl AsFd) -> Result<()> {
    if !fcntl_get_seals(&file)?.contains(SealFlags::SEAL) {
        fcntl_add_seals(&file, SealFlags::SEAL)?;
    }
    // Only now: nobody adds one any more.
    let seals = fcntl_get_seals(&file)?;
    let against = SealFlags::WRITE | SealFlags::FUTURE_WRITE | SealFlags::SHRINK;
    let writes = fcntl_getfl(&file)?.contains(OFlags::RDWR);
    if writes && !seals.intersects(against) { Ok(()) } else { Err(Errno::PERM) }
}

/// `statx(AT_STATX_DONT_SYNC)` — the inode of a memory file behind `path`, a descriptor of
/// `O_PATH`; nothing is opened, and no server of a file system in user space is asked.
///
/// Memory files lie on one device of the kernel's own, which nobody can mount.
///
/// # Errors
///
/// EINVAL for another file; those of [`create`].
pub fn inode(path: impl AsFd) -> Result<u64> {
    let device = fstat(create("unmerged.probe", 0)?)?.st_dev;
    let (flags, mask) = (AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
    let (theirs, inode) = match statx(&path, c"", flags, mask) {
        // Under a filter that does not know it.
        Err(Errno::NOSYS | Errno::PERM) => {
            let stat = fstat(path)?;
            (stat.st_dev, stat.st_ino)
        }
        stat => {
            let stat = stat?;
            (makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)
        }
    };
    if theirs == device { Ok(inode) } else { Err(Errno::INVAL) }
}

/// `f_type` of a memory file in ordinary pages (`uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// The same in huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// `fcntl(F_GET_SEALS)`, `fstatfs` and `fstat` — the size of a memory file that has at least
/// `seals`, so that what it says of its size stays true.
///
/// Only ordinary pages will do: a file in huge pages has the same seals, but a touch is
/// SIGBUS where the administrator has reserved too few.
///
/// # Errors
///
/// EINVAL for a file without seals, EPERM where one of them is missing or the pages are not
/// ordinary ones.
pub fn sealed_size(file: impl AsFd, seals: SealFlags) -> Result<u64> {
    sealed(file, seals, TMPFS_MAGIC)
}

/// The same for a file in huge pages, which the caller expects.
///
/// # Errors
///
/// EINVAL for a file without seals, EPERM where one of them is missing or the pages are ordinary
/// ones.
pub fn sealed_size_huge(file: impl AsFd, seals: SealFlags) -> Result<u64> {
    sealed(file, seals, HUGETLBFS_MAGIC)
}

fn sealed(file: impl AsFd, seals: SealFlags, expected: u64) -> Result<u64> {
    let kind = fstatfs(&file)?.f_type.cast_unsigned();
    if !fcntl_get_seals(&file)?.contains(seals) || kind != expected {
        return Err(Errno::PERM);
    }
    u64::try_from(fstat(&file)?.st_size).map_err(|_| Errno::INVAL)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::fd::AsRawFd;
    use rustix::fs::OFlags;

    #[test]
    fn born_private_empty_and_sealable() {
        let file = create("unmerged.test", 8192).unwrap();
        let stat = fstat(&file).unwrap();
        assert_eq!((stat.st_mode & 0o777, stat.st_size, stat.st_blocks), (0o600, 8192, 0));
        assert_eq!(sealed_size(&file, SealFlags::SHRINK), Err(Errno::PERM));
        seal(&file, SealFlags::SHRINK).unwrap();
        assert_eq!(sealed_size(&file, SealFlags::SHRINK), Ok(8192));
        assert_eq!(ftruncate(&file, 4096), Err(Errno::PERM));
        ftruncate(&file, 16384).unwrap();
    }

    #[test]
    fn revocable_for_good() {
        let file = create("unmerged.test", 4096).unwrap();
        keep_revocable(&file).unwrap();
        keep_revocable(&file).unwrap();
        assert_eq!(seal(&file, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
        assert_eq!(keep_revocable(reopen_for_reading(&file).unwrap()), Err(Errno::PERM));
        for against in [SealFlags::WRITE, SealFlags::SHRINK] {
            let file = create("unmerged.test", 4096).unwrap();
            seal(&file, against).unwrap();
            assert_eq!(keep_revocable(&file), Err(Errno::PERM));
        }
    }

    #[test]
    fn zeros_where_there_is_data() {
        let file = create("unmerged.test", 1 << 20).unwrap();
        let bytes = [7; 8192];
        for at in [0, 200 << 10, (1 << 20) - 8192] {
            assert_eq!(rustix::io::pwrite(&file, &bytes, at), Ok(8192));
        }
        zero(&file, 4096, u64::from(u32::MAX)).unwrap();
        let mut found = vec![1; 1 << 20];
        assert_eq!(rustix::io::pread(&file, &mut found[..], 0), Ok(1 << 20));
        assert!(found[..4096].iter().all(|&byte| byte == 7));
        assert!(found[4096..].iter().all(|&byte| byte == 0));
        // It did not grow.
        assert_eq!(fstat(&file).unwrap().st_size, 1 << 20);
    }

    #[test]
    fn told_from_other_files_without_opening() {
        let path = |file: &OwnedFd| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let file = create("unmerged.test", 0).unwrap();
        assert_eq!(inode(path(&file)), Ok(fstat(&file).unwrap().st_ino));
        let other = std::fs::File::open("/proc/self/exe").unwrap().into();
        assert_eq!(inode(path(&other)), Err(Errno::INVAL));
    }

    #[test]
    fn huge_pages_are_no_ordinary_ones() {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let Ok(file) = memfd_create("unmerged.test", flags) else {
            return; // a kernel without huge pages
        };
        seal(&file, SealFlags::SHRINK).unwrap();
        assert_eq!(sealed_size(&file, SealFlags::SHRINK), Err(Errno::PERM));
    }

    #[test]
    fn a_plain_file_has_no_seals() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(sealed_size(&file, SealFlags::SHRINK).is_err());
    }
}
