// Linux calls that the Swift overlay of glibc does not show (they need _GNU_SOURCE or are variadic). No logic lives here.
#pragma once
#include <stdint.h>
#include <sys/types.h>

/// accept4 with SOCK_CLOEXEC | SOCK_NONBLOCK. -1 and errno on failure.
int vmha_accept(int listener);
/// pipe2 with O_CLOEXEC.
int vmha_pipe(int ends[2]);
/// getrandom without flags: blocks until the kernel's pool is ready, never short for `length` <= 256.
ssize_t vmha_random(void *buffer, size_t length);
/// Names the calling thread; `name` is cut to 15 bytes by the caller.
void vmha_name_thread(const char *name);
/// Thread id of the caller as the kernel counts.
pid_t vmha_thread_id(void);
/// Peer of a connected unix socket. 0, or -1 and errno.
int vmha_peer_credentials(int socket, pid_t *process, uid_t *user, gid_t *group);
/// posix_spawn with: the three stdio descriptors given, every other descriptor closed, default signals, empty mask, normal scheduling,
/// a new process group or (`session`) a new session. Returns 0 or an errno value.
int vmha_spawn(pid_t *process, const char *path, char *const *argv, char *const *environment, int in, int out, int err,
               int session);
/// Names of a file's extended attributes, each ended by a zero; -1 and errno. (sys/xattr.h is not part of Swift's Glibc module.)
ssize_t vmha_list_attributes(int file, char *names, size_t size);
/// 0, or -1 and errno.
int vmha_remove_attribute(int file, const char *name);
/// Exit status parts of waitpid's macros: exit code 0...255, or 128 + signal.
int vmha_exit_code(int status);
