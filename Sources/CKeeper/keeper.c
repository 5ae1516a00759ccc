#define _GNU_SOURCE
#include "CKeeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HOLD = 1, DROP = 2, CONNECTION = 3, ENDED = 4 };
enum { ARGUMENTS_MAX = 16, GAVE_UP = 70, NOT_STARTED = 71, SHORT_LIFE_SECONDS = 1, PAUSE_MILLISECONDS = 200 };

struct message {
  uint32_t kind;
  uint32_t unused;
  uint64_t number;
};

struct area {
  struct vmha_kept head;
  uint8_t init[VMHA_KEPT_INIT_BYTES_MAX];
  char mount_point[VMHA_KEPT_PATH_BYTES_MAX];
  struct vmha_kept_held held[VMHA_KEPT_HELD_MAX];
  struct vmha_kept_change changes[VMHA_KEPT_CHANGES_MAX];
  struct vmha_kept_node nodes[VMHA_KEPT_NODES_MAX];
};

struct keeper {
  const char *program;
  const char *arguments[ARGUMENTS_MAX + 3];
  char numbers[64];
  int listener, lock, memory, socket, signals, device;
  pid_t worker;
  struct vmha_kept *kept;
  struct vmha_kept_held held[VMHA_KEPT_HELD_MAX];
  uint32_t held_count;
  /// The limit of held descriptors was exceeded: a worker's end is the end of the connection.
  int is_incomplete;
  int restarts_max;
  time_t started, deaths[VMHA_KEPT_RESTARTS_MAX];
};

// Static: the keeper must not need memory at the moment in which everybody else may lack it.
static struct keeper k;

static time_t now_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec;
}

static void let_go(uint64_t number) {
  for (uint32_t i = 0; i < k.held_count; i++) {
    if (k.held[i].number != number) continue;
    close((int)k.held[i].descriptor);
    k.held[i] = k.held[--k.held_count];
    return;
  }
}

static void hold(uint64_t number, int descriptor) {
  let_go(number);
  if (k.held_count == VMHA_KEPT_HELD_MAX) {
    if (!k.is_incomplete)
      dprintf(STDERR_FILENO, "keeper: more than %d deleted files are in use: a crash of the engine ends the mount\n",
              VMHA_KEPT_HELD_MAX);
    k.is_incomplete = 1;
    close(descriptor);
    return;
  }
  k.held[k.held_count++] = (struct vmha_kept_held){number, descriptor};
}

static void end_mount(void) {
  if (k.device >= 0) close(k.device);
  k.device = -1;
  while (k.held_count > 0) close((int)k.held[--k.held_count].descriptor);
  k.is_incomplete = 0;
}

/// One message of the worker. 1 = there may be more, 0 = none now, -1 = the other end is gone.
static int receive(void) {
  struct message message;
  union {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {&message, sizeof message};
  struct msghdr in = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t count = recvmsg(k.socket, &in, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0) return errno == EINTR ? 1 : errno == EAGAIN ? 0 : -1;
  if (count == 0) return -1;
  int descriptor = -1;
  struct cmsghdr *head = CMSG_FIRSTHDR(&in);
  if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
    memcpy(&descriptor, CMSG_DATA(head), sizeof descriptor);
  int is_taken = 0;
  if (count == sizeof message) switch (message.kind) {
      case HOLD:
        if (descriptor >= 0) hold(message.number, descriptor);
        // The kernel could not give it to us: no descriptor is left.
        else k.is_incomplete = 1;
        is_taken = 1;
        break;
      case DROP: let_go(message.number); break;
      case CONNECTION:
        end_mount();
        k.device = descriptor;
        is_taken = 1;
        break;
      case ENDED: end_mount(); break;
    }
  if (!is_taken && descriptor >= 0) close(descriptor);
  return 1;
}

static void close_socket(void) {
  if (k.socket >= 0) close(k.socket);
  k.socket = -1;
}

static void drain(void) {
  int result = 1;
  while (k.socket >= 0 && result == 1) result = receive();
  if (result < 0) close_socket();
}

static void inherit(int descriptor) {
  if (descriptor >= 0) fcntl(descriptor, F_SETFD, 0);
}

/// In the child, with nothing but async-signal-safe calls.
static void become_worker(pid_t keeper, int socket) {
  sigset_t none;
  // A worker without its keeper would be a connection that nobody supervises.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != keeper) _exit(NOT_STARTED);
  inherit(k.listener);
  inherit(k.lock);
  inherit(k.memory);
  inherit(socket);
  inherit(k.device);
  for (uint32_t i = 0; i < k.held_count; i++) inherit((int)k.held[i].descriptor);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  execv(k.program, (char *const *)k.arguments);
  _exit(NOT_STARTED);
}

static int start_worker(void) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return -1;
  snprintf(k.numbers, sizeof k.numbers, "%d,%d,%d,%d", k.listener, k.lock, k.memory, pair[1]);
  k.kept->device = k.device;
  memcpy(vmha_kept_held(k.kept), k.held, k.held_count * sizeof k.held[0]);
  k.kept->held_count = k.held_count;
  k.kept->era++;
  pid_t keeper = getpid();
  k.worker = fork();
  if (k.worker == 0) become_worker(keeper, pair[1]);
  int error = errno;
  close(pair[1]);
  k.socket = pair[0];
  k.started = now_seconds();
  errno = error;
  return k.worker < 0 ? -1 : 0;
}

/// The worker is dead and reaped: no thread of it can write any more. 0 = another one runs; else the exit code.
static int succeed(int status) {
  drain();
  close_socket();
  int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (!vmha_load32(&k.kept->adoptable) || k.device < 0 || k.is_incomplete) return code == 0 ? -1 : code;
  time_t now = now_seconds();
  // A worker that was asked to make room for another one (SIGUSR2) did not die.
  if (code != 0) {
    if (k.deaths[0] != 0 && now - k.deaths[0] < VMHA_KEPT_WINDOW_SECONDS) {
      dprintf(STDERR_FILENO, "keeper: the engine died %d times in %d s: gives up\n", k.restarts_max + 1,
              VMHA_KEPT_WINDOW_SECONDS);
      return GAVE_UP;
    }
    // The oldest of the last `restarts_max` comes first.
    memmove(k.deaths, k.deaths + 1, (size_t)(k.restarts_max - 1) * sizeof k.deaths[0]);
    k.deaths[k.restarts_max - 1] = now;
  }
  dprintf(STDERR_FILENO, "keeper: the engine ended (%s %d); starting another one under its mount\n",
          WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : code);
  // For instance while its program is being replaced.
  if (now - k.started < SHORT_LIFE_SECONDS) usleep(PAUSE_MILLISECONDS * 1000);
  if (start_worker() == 0) return 0;
  dprintf(STDERR_FILENO, "keeper: cannot start the engine: %s\n", strerror(errno));
  return NOT_STARTED;
}

static int run(void) {
  while (1) {
    struct pollfd entries[2] = {{.fd = k.signals, .events = POLLIN}, {.fd = k.socket, .events = POLLIN}};
    if (poll(entries, 2, -1) < 0 && errno != EINTR) return NOT_STARTED;
    if (k.socket >= 0 && receive() < 0) close_socket();
    struct signalfd_siginfo signal;
    if (read(k.signals, &signal, sizeof signal) != sizeof signal) continue;
    if (signal.ssi_signo != SIGCHLD) {
      kill(k.worker, (int)signal.ssi_signo);
      continue;
    }
    int status;
    if (waitpid(k.worker, &status, WNOHANG) != k.worker) continue;
    int code = succeed(status);
    if (code != 0) return code < 0 ? 0 : code;
  }
}

int vmha_keep(const char *program, char *const arguments[], int listener, int lock, int restarts_max) {
  k.program = program;
  k.restarts_max = restarts_max < 1 ? 1 : restarts_max > VMHA_KEPT_RESTARTS_MAX ? VMHA_KEPT_RESTARTS_MAX : restarts_max;
  k.listener = listener;
  k.lock = lock;
  k.socket = k.device = -1;
  int count = 0;
  while (count < ARGUMENTS_MAX && arguments[count] != NULL) {
    k.arguments[count] = arguments[count];
    count++;
  }
  k.arguments[count] = "--kept";
  k.arguments[count + 1] = k.numbers;
  k.memory = vmha_kept_create();
  k.kept = k.memory < 0 ? NULL : vmha_kept_map(k.memory);
  if (k.kept == NULL) {
    dprintf(STDERR_FILENO, "keeper: no memory to share: %s\n", strerror(errno));
    return NOT_STARTED;
  }
  sigset_t taken;
  sigemptyset(&taken);
  sigaddset(&taken, SIGCHLD);
  sigaddset(&taken, SIGTERM);
  sigaddset(&taken, SIGINT);
  sigaddset(&taken, SIGUSR2);
  sigprocmask(SIG_BLOCK, &taken, NULL);
  signal(SIGHUP, SIG_IGN);
  k.signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
  // So that people see which of the two processes is which.
  prctl(PR_SET_NAME, "vmha-keeper");
  if (k.signals < 0 || start_worker() != 0) {
    dprintf(STDERR_FILENO, "keeper: cannot start the engine: %s\n", strerror(errno));
    return NOT_STARTED;
  }
  return run();
}

int vmha_kept_create(void) {
  int memory = memfd_create("vmha-kept", MFD_CLOEXEC);
  if (memory < 0) return -1;
  struct vmha_kept head = {.version = VMHA_KEPT_VERSION, .device = -1};
  // Sparse: it grows with what is used.
  if (ftruncate(memory, sizeof(struct area)) != 0 || pwrite(memory, &head, sizeof head, 0) != sizeof head) {
    int error = errno;
    close(memory);
    errno = error;
    return -1;
  }
  return memory;
}

struct vmha_kept *vmha_kept_map(int descriptor) {
  int flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void *memory = mmap(NULL, sizeof(struct area), PROT_READ | PROT_WRITE, flags, descriptor, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

void vmha_kept_unmap(struct vmha_kept *kept) { munmap(kept, sizeof(struct area)); }

static struct area *area(struct vmha_kept *kept) { return (struct area *)kept; }
uint8_t *vmha_kept_init(struct vmha_kept *kept) { return area(kept)->init; }
char *vmha_kept_mount_point(struct vmha_kept *kept) { return area(kept)->mount_point; }
struct vmha_kept_held *vmha_kept_held(struct vmha_kept *kept) { return area(kept)->held; }
struct vmha_kept_change *vmha_kept_changes(struct vmha_kept *kept) { return area(kept)->changes; }
struct vmha_kept_node *vmha_kept_nodes(struct vmha_kept *kept) { return area(kept)->nodes; }
char *vmha_change_name(struct vmha_kept_change *change) { return change->name; }
char *vmha_change_new_name(struct vmha_kept_change *change) { return change->new_name; }

static int tell(int socket, uint32_t kind, uint64_t number, int descriptor) {
  struct message message = {.kind = kind, .number = number};
  struct iovec part = {&message, sizeof message};
  union {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr out = {.msg_iov = &part, .msg_iovlen = 1};
  if (descriptor >= 0) {
    memset(&control, 0, sizeof control);
    out.msg_control = &control;
    out.msg_controllen = sizeof control;
    struct cmsghdr *head = CMSG_FIRSTHDR(&out);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &descriptor, sizeof descriptor);
  }
  ssize_t count;
  do count = sendmsg(socket, &out, MSG_NOSIGNAL);
  while (count < 0 && errno == EINTR);
  return count < 0 ? -1 : 0;
}

int vmha_kept_hold(int socket, uint64_t number, int descriptor) { return tell(socket, HOLD, number, descriptor); }
int vmha_kept_drop(int socket, uint64_t number) { return tell(socket, DROP, number, -1); }
int vmha_kept_connection(int socket, int descriptor) { return tell(socket, CONNECTION, 0, descriptor); }
int vmha_kept_ended(int socket) { return tell(socket, ENDED, 0, -1); }

void vmha_store32(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
uint32_t vmha_load32(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
void vmha_store64(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
uint64_t vmha_load64(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
