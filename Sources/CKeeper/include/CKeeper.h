// The keeper of a module's engine: a process of almost no code that outlives the engine proper (the worker) and lets the next
// worker go on with the same FUSE connection. What a worker needs of the one before it lies in memory that both map; the keeper
// itself reads only a few words of it. All of it is bounded by the limits below.
#pragma once
#include <stdint.h>
#include <sys/types.h>

enum {
  /// Layout of `struct vmha_kept`, and what the kernel was promised at INIT: a worker of another version does not adopt.
  VMHA_KEPT_VERSION = 1,
  VMHA_KEPT_INIT_BYTES_MAX = 1024,
  VMHA_KEPT_PATH_BYTES_MAX = 4096,
  /// Longest name, in bytes, with its terminating zero.
  VMHA_KEPT_NAME_BYTES_MAX = 256,
  /// Changes of names and lookups that are not answered yet.
  VMHA_KEPT_CHANGES_MAX = 4096,
  /// Objects the kernel knows at one time.
  VMHA_KEPT_NODES_MAX = 1 << 20,
  /// Files and folders without a name that are still in use.
  VMHA_KEPT_HELD_MAX = 4096,
  /// A worker that dies more often in the window is not started again: the default, and the most that can be asked for.
  VMHA_KEPT_RESTARTS_DEFAULT = 5,
  VMHA_KEPT_RESTARTS_MAX = 64,
  VMHA_KEPT_WINDOW_SECONDS = 60,
};

enum { VMHA_CHANGE_FREE = 0, VMHA_CHANGE_BEGUN = 1, VMHA_CHANGE_DONE = 2 };

/// A request that must not be done twice: what is about to be done (begun), or was done and may not have been answered.
struct vmha_kept_change {
  uint32_t state;
  uint32_t kind;
  /// The kernel's number of the request, without the mark of a repetition.
  uint64_t unique;
  uint64_t folder;
  uint64_t new_folder;
  uint64_t object;
  /// The worker that wrote or last used it.
  uint32_t era;
  /// Type of a new object.
  uint32_t mode;
  /// The kernel's lookup count does not hold the answer yet.
  uint32_t is_uncounted;
  uint32_t unused;
  char name[VMHA_KEPT_NAME_BYTES_MAX];
  char new_name[VMHA_KEPT_NAME_BYTES_MAX];
};

/// An object that the kernel knows, with the kernel's count of lookups. `number` 0 = free.
struct vmha_kept_node {
  uint64_t number;
  uint64_t lookups;
};

/// A descriptor the keeper holds, written by it before it starts a worker.
struct vmha_kept_held {
  uint64_t number;
  int64_t descriptor;
};

/// The head of the memory; what is behind it is reached by the functions below.
struct vmha_kept {
  uint32_t version;
  /// 1 = another worker can go on with the connection.
  uint32_t adoptable;
  /// Number of the worker, from 1.
  uint32_t era;
  /// Number in /sys/fs/fuse/connections, and whether it is known.
  uint32_t has_connection;
  uint32_t connection;
  /// The keeper's descriptor of the connection, -1 = none; written by the keeper before it starts a worker.
  int32_t device;
  uint32_t init_bytes;
  uint32_t held_count;
  /// Nodes beyond this index were never used.
  uint64_t nodes_used;
  /// Until when reads may be served, in nanoseconds of CLOCK_BOOTTIME.
  uint64_t reads_until;
};

/// VMHA_KEPT_INIT_BYTES_MAX bytes: the INIT request.
uint8_t *vmha_kept_init(struct vmha_kept *kept);
/// VMHA_KEPT_PATH_BYTES_MAX bytes.
char *vmha_kept_mount_point(struct vmha_kept *kept);
struct vmha_kept_held *vmha_kept_held(struct vmha_kept *kept);
struct vmha_kept_change *vmha_kept_changes(struct vmha_kept *kept);
struct vmha_kept_node *vmha_kept_nodes(struct vmha_kept *kept);
/// VMHA_KEPT_NAME_BYTES_MAX bytes each.
char *vmha_change_name(struct vmha_kept_change *change);
char *vmha_change_new_name(struct vmha_kept_change *change);

/// Runs workers of `program` until one ends with nothing left to go on with. `arguments` ends with NULL and goes to the worker,
/// with "--kept" and the numbers of its descriptors behind it: `listener`, `lock`, the memory, a socket to the keeper. Never call
/// it with a second thread running. A worker that dies more than `restarts_max` times in the window is not started again.
/// Returns the exit code for the process.
int vmha_keep(const char *program, char *const arguments[], int listener, int lock, int restarts_max);

/// New memory of that kind, closed on exec. A descriptor, or -1 and errno.
int vmha_kept_create(void);
/// Maps the memory a keeper made (`descriptor`), or private memory of the same kind (-1). NULL and errno on failure.
struct vmha_kept *vmha_kept_map(int descriptor);
void vmha_kept_unmap(struct vmha_kept *kept);

/// From a worker to its keeper, in order, and with effect also if the worker dies right behind it. 0, or -1 and errno.
/// Holds a duplicate of `descriptor` under `number` in place of an older one, until `vmha_kept_drop`.
int vmha_kept_hold(int socket, uint64_t number, int descriptor);
int vmha_kept_drop(int socket, uint64_t number);
/// Keeps the FUSE connection behind `descriptor` alive from now on.
int vmha_kept_connection(int socket, int descriptor);
/// The mount is gone: the keeper lets go of everything.
int vmha_kept_ended(int socket);

/// Plain words that are read by the next process, whenever this one dies: stored in program order.
void vmha_store32(uint32_t *word, uint32_t value);
uint32_t vmha_load32(const uint32_t *word);
void vmha_store64(uint64_t *word, uint64_t value);
uint64_t vmha_load64(const uint64_t *word);
