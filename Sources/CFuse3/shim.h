// libfuse 3 low-level API, and the few things Swift cannot reach in it: macros, struct layouts of <linux/fuse.h> that
// libfuse has no field for, and ioctls.
#ifndef VMHA_CFUSE3_SHIM_H
#define VMHA_CFUSE3_SHIM_H

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 312
#endif

#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>
#include <linux/stat.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

// fuse_file_info of libfuse 3.14 has no bit for parallel direct writes, so the reply to open is made by hand.
static inline int vmha_reply_open(fuse_req_t request) {
  struct fuse_open_out out = {0};
  out.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
  struct iovec part = {&out, sizeof out};
  return fuse_reply_iov(request, &part, 1);
}

static inline void vmha_fill_attributes(const struct stat *from, uint64_t node, struct fuse_attr *to) {
  to->ino = node;
  to->size = (uint64_t)from->st_size;
  to->blocks = (uint64_t)from->st_blocks;
  to->atime = (uint64_t)from->st_atim.tv_sec;
  to->mtime = (uint64_t)from->st_mtim.tv_sec;
  to->ctime = (uint64_t)from->st_ctim.tv_sec;
  to->atimensec = (uint32_t)from->st_atim.tv_nsec;
  to->mtimensec = (uint32_t)from->st_mtim.tv_nsec;
  to->ctimensec = (uint32_t)from->st_ctim.tv_nsec;
  to->mode = from->st_mode;
  to->nlink = (uint32_t)from->st_nlink;
  to->uid = from->st_uid;
  to->gid = from->st_gid;
  to->rdev = (uint32_t)from->st_rdev;
  to->blksize = (uint32_t)from->st_blksize;
}

// The same for create: entry and open reply in one.
static inline int vmha_reply_create(fuse_req_t request, uint64_t node, const struct stat *attributes,
                                    uint32_t valid_seconds) {
  struct {
    struct fuse_entry_out entry;
    struct fuse_open_out open;
  } out;
  memset(&out, 0, sizeof out);
  out.entry.nodeid = node;
  out.entry.entry_valid = valid_seconds;
  out.entry.attr_valid = valid_seconds;
  vmha_fill_attributes(attributes, node, &out.entry.attr);
  out.open.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
  struct iovec part = {&out, sizeof out};
  return fuse_reply_iov(request, &part, 1);
}

// Linux 6.9; the headers of Debian 12 do not know it. The kernel hands out again what it has no answer to.
enum { VMHA_NOTIFY_RESEND = 7, VMHA_HAS_RESEND = 1 << 7 /* in flags2 */ };

static inline int vmha_init_offers_resend(const void *request, size_t length) {
  struct { struct fuse_in_header head; struct fuse_init_in body; } in;
  if (length < sizeof in) return 0;
  memcpy(&in, request, sizeof in);
  return in.head.opcode == FUSE_INIT && (in.body.flags & FUSE_INIT_EXT) && (in.body.flags2 & VMHA_HAS_RESEND);
}

static inline int vmha_ask_for_repetition(int device) {
  struct fuse_out_header notice = {.len = sizeof notice, .error = VMHA_NOTIFY_RESEND, .unique = 0};
  return write(device, &notice, sizeof notice) == sizeof notice ? 0 : -1;
}

// The C library shows what follows only with _GNU_SOURCE, and with that its own types would no longer be the ones Swift
// knows; so the kernel is called directly.
static inline off_t vmha_seek_data(int fd, off_t from) { return lseek(fd, from, 3 /* SEEK_DATA */); }
static inline off_t vmha_seek_hole(int fd, off_t from) { return lseek(fd, from, 4 /* SEEK_HOLE */); }
extern int syncfs(int fd);
static inline int vmha_sync_file_system(int fd) { return syncfs(fd); }
enum { VMHA_UTIME_NOW = (1L << 30) - 1L, VMHA_UTIME_OMIT = (1L << 30) - 2L };
enum { VMHA_MNT_DETACH = 2 };
static const int VMHA_O_PATH = 010000000;
// The C library names it without underscores only with _GNU_SOURCE; its value is not the same on all processors.
static const int VMHA_O_DIRECT = __O_DIRECT;
static const int VMHA_O_NOATIME = 01000000;
static const int VMHA_O_TMPFILE = 020000000 | O_DIRECTORY;
static const int VMHA_AT_EMPTY_PATH = 0x1000;

static inline int vmha_rename(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
  return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

static inline void vmha_name_thread(const char *name) { prctl(PR_SET_NAME, name); }

static inline int vmha_allocate(int file, int mode, off_t offset, off_t length) {
  return (int)syscall(SYS_fallocate, file, mode, offset, length);
}

// Starts writing a file's dirty pages to the disk, without waiting and without taking its error state.
static inline int vmha_start_writeback(int file) {
  enum { SYNC_FILE_RANGE_WRITE_BIT = 2 };
  return (int)syscall(SYS_sync_file_range, file, (int64_t)0, (int64_t)0, SYNC_FILE_RANGE_WRITE_BIT);
}

// Whether the page that holds this byte is in the page cache; reads nothing from the disk.
static inline int vmha_is_cached(int file, off_t offset) {
  enum { NOWAIT = 8 };
  char byte;
  struct iovec part = {&byte, 1};
  return syscall(SYS_preadv2, file, &part, 1, offset, 0L, NOWAIT) == 1;
}

// The device of a mount point without asking its file server (a hung one would hang the caller).
static inline int vmha_cached_device(const char *path, uint32_t *device_minor) {
  struct statx answer;
  memset(&answer, 0, sizeof answer);
  enum { DONT_SYNC = 0x4000, NO_AUTOMOUNT = 0x800 };
  if (syscall(SYS_statx, AT_FDCWD, path, DONT_SYNC | NO_AUTOMOUNT, 0, &answer) != 0) return -1;
  *device_minor = answer.stx_dev_minor;
  return 0;
}

#endif
