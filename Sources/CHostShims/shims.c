#define _GNU_SOURCE
#include "CHostShims.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

int vmha_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }

int vmha_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

ssize_t vmha_random(void *buffer, size_t length) { return getrandom(buffer, length, 0); }

void vmha_name_thread(const char *name) { (void)pthread_setname_np(pthread_self(), name); }

pid_t vmha_thread_id(void) { return gettid(); }

int vmha_peer_credentials(int socket, pid_t *process, uid_t *user, gid_t *group) {
  struct ucred credentials;
  socklen_t length = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return -1;
  *process = credentials.pid;
  *user = credentials.uid;
  *group = credentials.gid;
  return 0;
}

int vmha_spawn(pid_t *process, const char *path, char *const *argv, char *const *environment, int in, int out, int err,
               int session) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none, all;
  struct sched_param normal = {.sched_priority = 0};
  int result = posix_spawn_file_actions_init(&actions);
  if (result != 0) return result;
  result = posix_spawnattr_init(&attributes);
  if (result != 0) {
    posix_spawn_file_actions_destroy(&actions);
    return result;
  }
  sigemptyset(&none);
  sigfillset(&all);
  sigdelset(&all, SIGKILL);
  sigdelset(&all, SIGSTOP);
  short flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSCHEDULER;
  flags |= session ? POSIX_SPAWN_SETSID : POSIX_SPAWN_SETPGROUP;
  if ((result = posix_spawnattr_setflags(&attributes, flags)) == 0 &&
      (result = posix_spawnattr_setsigmask(&attributes, &none)) == 0 &&
      (result = posix_spawnattr_setsigdefault(&attributes, &all)) == 0 &&
      (result = posix_spawnattr_setpgroup(&attributes, 0)) == 0 &&
      (result = posix_spawnattr_setschedpolicy(&attributes, SCHED_OTHER)) == 0 &&
      (result = posix_spawnattr_setschedparam(&attributes, &normal)) == 0 &&
      (result = posix_spawn_file_actions_adddup2(&actions, in, 0)) == 0 &&
      (result = posix_spawn_file_actions_adddup2(&actions, out, 1)) == 0 &&
      (result = posix_spawn_file_actions_adddup2(&actions, err, 2)) == 0 &&
      (result = posix_spawn_file_actions_addclosefrom_np(&actions, 3)) == 0)
    result = posix_spawnp(process, path, &actions, &attributes, argv, environment);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return result;
}

int vmha_exit_code(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
  return 255;
}

ssize_t vmha_list_attributes(int file, char *names, size_t size) { return flistxattr(file, names, size); }

int vmha_remove_attribute(int file, const char *name) { return fremovexattr(file, name); }
