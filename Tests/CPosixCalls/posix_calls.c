#define _GNU_SOURCE
#include "CPosixCalls.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

int posix_become(uid_t user, gid_t group) {
  // Not the functions of the C library, which change every thread.
  if (syscall(SYS_setgroups, 0, NULL) != 0) return -1;
  setfsgid(group);
  setfsuid(user);
  return setfsuid((uid_t)-1) == (int)user && setfsgid((gid_t)-1) == (int)group ? 0 : -1;
}

int posix_own_umask(void) { return unshare(CLONE_FS); }

int posix_rename(int from, const char *name, int to, const char *new_name, unsigned int flags) {
  return (int)syscall(SYS_renameat2, from, name, to, new_name, flags);
}

int posix_allocate(int file, int mode, int64_t offset, int64_t count) { return fallocate(file, mode, offset, count); }

int posix_open_unnamed(const char *folder, mode_t mode) { return open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, mode); }

ssize_t posix_copy_range(int from, int64_t from_offset, int to, int64_t to_offset, size_t count) {
  loff_t in = from_offset, out = to_offset;
  return copy_file_range(from, &in, to, &out, count, 0);
}

int posix_access(int folder, const char *name, int mode) {
  return (int)syscall(SYS_faccessat2, folder, name, mode, AT_EACCESS);
}

int posix_map_shared(int file) {
  char *bytes = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (bytes == MAP_FAILED) return -1;
  bytes[0] = 'm';
  int result = msync(bytes, 4096, MS_SYNC);
  munmap(bytes, 4096);
  return result == 0 ? 1 : -1;
}

int posix_map_private(int file) {
  unsigned char *bytes = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
  if (bytes == MAP_FAILED) return -1;
  int first = bytes[0];
  munmap(bytes, 4096);
  return first;
}

int posix_lock(int file, int command, short type, int64_t offset, int64_t count) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = offset, .l_len = count};
  return fcntl(file, command, &lock);
}

ssize_t posix_get_attribute(const char *path, const char *name, void *value, size_t size) {
  return lgetxattr(path, name, value, size);
}
ssize_t posix_list_attributes(const char *path, char *names, size_t size) { return llistxattr(path, names, size); }
int posix_set_attribute(const char *path, const char *name, const void *value, size_t size, int flags) {
  return lsetxattr(path, name, value, size, flags);
}
int posix_remove_attribute(const char *path, const char *name) { return lremovexattr(path, name); }

int posix_bind_plain(const char *folder) {
  if (mount(folder, folder, NULL, MS_BIND, NULL) != 0) return -1;
  return mount(NULL, folder, NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOATIME, NULL);
}
int posix_unmount(const char *folder) { return umount2(folder, MNT_DETACH); }
