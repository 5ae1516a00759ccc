// System calls that a test of a file system makes and that Swift does not see (they need _GNU_SOURCE or are variadic). Each answers
// what the kernel answers: -1 and errno on failure.
#pragma once
#include <stdint.h>
#include <sys/types.h>

/// The calling thread alone becomes this user, without the privileges of root over files, unless `user` is 0.
int posix_become(uid_t user, gid_t group);
/// The calling thread gets a umask and a working directory of its own.
int posix_own_umask(void);
int posix_rename(int from, const char *name, int to, const char *new_name, unsigned int flags);
int posix_allocate(int file, int mode, int64_t offset, int64_t count);
int posix_open_unnamed(const char *folder, mode_t mode);
ssize_t posix_copy_range(int from, int64_t from_offset, int to, int64_t to_offset, size_t count);
/// As the file system's permissions say for this thread's user.
int posix_access(int folder, const char *name, int mode);
/// 1 = a shared, writable mapping was made, written, synchronised and taken down again.
int posix_map_shared(int file);
/// The first byte of the file by a private mapping.
int posix_map_private(int file);
int posix_lock(int file, int command, short type, int64_t offset, int64_t count);
ssize_t posix_get_attribute(const char *path, const char *name, void *value, size_t size);
ssize_t posix_list_attributes(const char *path, char *names, size_t size);
int posix_set_attribute(const char *path, const char *name, const void *value, size_t size, int flags);
int posix_remove_attribute(const char *path, const char *name);
/// mount(2) of `folder` on itself without access times, device nodes and set-id programs: like the mount of a module.
int posix_bind_plain(const char *folder);
int posix_unmount(const char *folder);
