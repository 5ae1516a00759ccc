/* Batch n is a set of 32 writes of 4 to 32 KiB whose places follow from n alone; the contents of a block follow from its
 * number and the batch that wrote it. A batch begins only after the one before it was flushed. So a later start can
 * compute, for every block, the oldest contents that are allowed, and exactly one batch may be half there. */
#define _GNU_SOURCE
#include "fullspeed.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK_BYTES 4096u
#define WRITES_PER_BATCH 32u
#define BLOCKS_PER_WRITE_MAX 8u
#define WRITERS 4u
#define CHUNK_BLOCKS 256u
#define FILE_BYTES_MAX (64u << 20)
#define MAGIC 0x766d68616c616231ull /* "vmhalab1" */

struct shared {
  _Atomic uint64_t done;
  _Atomic int error;
  _Atomic int stop;
};

static struct shared *shared;
static int file = -1;
static uint64_t blocks;
static uint64_t next_batch;
static pid_t child;
static pthread_barrier_t barrier;

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

static void place(uint64_t batch, unsigned write, uint64_t *first, uint64_t *count) {
  uint64_t r = mix(batch * WRITES_PER_BATCH + write);
  *first = (r >> 8) % blocks;
  *count = 1 + r % BLOCKS_PER_WRITE_MAX;
  if (*first + *count > blocks) *count = blocks - *first;
}

static void fill(uint64_t *block, uint64_t number, uint64_t batch) {
  uint64_t x = mix(number ^ mix(batch));
  block[0] = MAGIC;
  block[1] = number;
  block[2] = batch;
  for (unsigned i = 3; i < BLOCK_BYTES / 8; i++) {
    x = x * 6364136223846793005ull + 1442695040888963407ull;
    block[i] = x;
  }
}

/* The batch that wrote this block, or UINT64_MAX if the contents are not what any batch writes. */
static uint64_t read_block(const uint64_t *block, uint64_t number) {
  uint64_t wanted[BLOCK_BYTES / 8];
  if (block[0] != MAGIC || block[1] != number || block[2] == UINT64_MAX) return UINT64_MAX;
  fill(wanted, number, block[2]);
  return memcmp(block, wanted, BLOCK_BYTES) == 0 ? block[2] : UINT64_MAX;
}

static int transfer(int fd, int writing, void *data, uint64_t first, uint64_t count) {
  char *at = data;
  off_t offset = (off_t)(first * BLOCK_BYTES);
  size_t left = count * BLOCK_BYTES;
  while (left > 0) {
    ssize_t n = writing ? pwrite(fd, at, left, offset) : pread(fd, at, left, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;
    at += n;
    offset += n;
    left -= (size_t)n;
  }
  return 0;
}

static int make(const char *path) {
  char temporary[512], folder[512];
  struct statvfs space;
  strncpy(folder, path, sizeof folder - 1);
  folder[sizeof folder - 1] = 0;
  *strrchr(folder, '/') = 0;
  if (statvfs(folder, &space)) return errno;
  uint64_t bytes = (uint64_t)space.f_bavail * space.f_frsize * 45 / 100;
  if (bytes > FILE_BYTES_MAX) bytes = FILE_BYTES_MAX;
  blocks = bytes / BLOCK_BYTES / CHUNK_BLOCKS * CHUNK_BLOCKS;
  if (blocks == 0) return ENOSPC;
  strncpy(temporary, path, sizeof temporary - 8);
  temporary[sizeof temporary - 8] = 0;
  strcat(temporary, ".new");
  int fd = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  uint64_t *chunk;
  int error = posix_memalign((void **)&chunk, BLOCK_BYTES, CHUNK_BLOCKS * BLOCK_BYTES);
  for (uint64_t at = 0; !error && at < blocks; at += CHUNK_BLOCKS) {
    for (uint64_t i = 0; i < CHUNK_BLOCKS; i++) fill(chunk + i * BLOCK_BYTES / 8, at + i, 0);
    error = transfer(fd, 1, chunk, at, CHUNK_BLOCKS);
  }
  if (!error && fsync(fd)) error = errno;
  close(fd);
  if (!error && rename(temporary, path)) error = errno;
  fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!error && (fd < 0 || fsync(fd))) error = errno;
  if (fd >= 0) close(fd);
  return error;
}

static int whole(uint64_t batch, const uint64_t *found) {
  for (unsigned w = 0; w < WRITES_PER_BATCH; w++) {
    uint64_t first, count;
    place(batch, w, &first, &count);
    for (uint64_t i = 0; i < count; i++)
      if (found[first + i] != batch) return 0;
  }
  return 1;
}

static void judge(const uint64_t *found, uint64_t *oldest, uint64_t acknowledged, struct fullspeed_report *report) {
  uint64_t newest = 0, left = blocks, bad = 0;
  for (uint64_t i = 0; i < blocks; i++)
    if (found[i] != UINT64_MAX && found[i] > newest) newest = found[i];
  uint64_t durable = newest == 0 || whole(newest, found) ? newest : newest - 1;
  if (acknowledged > durable) durable = acknowledged;
  for (uint64_t i = 0; i < blocks; i++) oldest[i] = UINT64_MAX;
  for (uint64_t batch = durable; batch > 0 && left > 0; batch--)
    for (unsigned w = 0; w < WRITES_PER_BATCH; w++) {
      uint64_t first, count;
      place(batch, w, &first, &count);
      for (uint64_t i = first; i < first + count; i++)
        if (oldest[i] == UINT64_MAX) oldest[i] = batch, left--;
    }
  for (uint64_t i = 0; i < blocks; i++)
    if (oldest[i] == UINT64_MAX) oldest[i] = 0;
  /* Blocks of the one batch in flight may hold anything. */
  for (unsigned w = 0; w < WRITES_PER_BATCH; w++) {
    uint64_t first, count;
    place(durable + 1, w, &first, &count);
    for (uint64_t i = first; i < first + count; i++) oldest[i] = UINT64_MAX;
  }
  for (uint64_t i = 0; i < blocks; i++)
    if (oldest[i] != UINT64_MAX && (found[i] == UINT64_MAX || found[i] < oldest[i])) bad++;
  report->verified = durable;
  report->bad_blocks = bad;
  report->blocks = blocks;
}

static int verify(uint64_t acknowledged, struct fullspeed_report *report) {
  uint64_t *found = malloc(blocks * sizeof *found), *oldest = malloc(blocks * sizeof *oldest), *chunk = 0;
  int error = found && oldest ? posix_memalign((void **)&chunk, BLOCK_BYTES, CHUNK_BLOCKS * BLOCK_BYTES) : ENOMEM;
  for (uint64_t at = 0; !error && at < blocks; at += CHUNK_BLOCKS) {
    error = transfer(file, 0, chunk, at, CHUNK_BLOCKS);
    for (uint64_t i = 0; !error && i < CHUNK_BLOCKS; i++)
      found[at + i] = read_block(chunk + i * BLOCK_BYTES / 8, at + i);
  }
  if (!error) judge(found, oldest, acknowledged, report);
  free(found);
  free(oldest);
  free(chunk);
  return error;
}

int fullspeed_open(const char *path, uint64_t acknowledged, struct fullspeed_report *report) {
  struct stat status;
  memset(report, 0, sizeof *report);
  if (stat(path, &status)) {
    /* A record that names a batch proves that the file was there: its absence is a loss, not a first start. */
    if (errno != ENOENT || acknowledged > 0) return errno;
    int error = make(path);
    if (error) return error;
    if (stat(path, &status)) return errno;
  }
  blocks = (uint64_t)status.st_size / BLOCK_BYTES / CHUNK_BLOCKS * CHUNK_BLOCKS;
  if (blocks == 0) return EINVAL;
  file = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
  if (file < 0) return errno;
  shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return errno;
  int error = verify(acknowledged, report);
  next_batch = report->verified + 1;
  shared->done = report->verified;
  return error;
}

static void *writer(void *argument) {
  unsigned self = (unsigned)(uintptr_t)argument;
  uint64_t *data = 0;
  int broken = posix_memalign((void **)&data, BLOCK_BYTES, BLOCKS_PER_WRITE_MAX * BLOCK_BYTES);
  if (broken) atomic_store(&shared->error, broken);
  for (uint64_t batch = next_batch;; batch++) {
    for (unsigned w = self; w < WRITES_PER_BATCH && !atomic_load(&shared->error); w += WRITERS) {
      uint64_t first, count;
      place(batch, w, &first, &count);
      for (uint64_t i = 0; i < count; i++) fill(data + i * BLOCK_BYTES / 8, first + i, batch);
      int error = transfer(file, 1, data, first, count);
      if (error) atomic_store(&shared->error, error);
    }
    if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD && !atomic_load(&shared->error)) {
      if (fdatasync(file)) atomic_store(&shared->error, errno);
      else atomic_store(&shared->done, batch);
      /* Read here only: between the barriers all writers are still, so all of them leave at the same batch. */
      if (atomic_load(&shared->stop)) atomic_store(&shared->error, ECANCELED);
    }
    pthread_barrier_wait(&barrier);
    if (atomic_load(&shared->error)) return 0;
  }
}

int fullspeed_start(void) {
  pid_t parent = getpid();
  child = fork();
  if (child < 0) return errno;
  if (child > 0) return 0;
  signal(SIGTERM, SIG_IGN);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);
  pthread_t threads[WRITERS];
  pthread_barrier_init(&barrier, 0, WRITERS);
  for (unsigned i = 1; i < WRITERS; i++)
    if (pthread_create(&threads[i], 0, writer, (void *)(uintptr_t)i)) {
      atomic_store(&shared->error, EAGAIN);
      _exit(1);
    }
  writer((void *)(uintptr_t)0);
  _exit(0);
}

uint64_t fullspeed_done(void) { return shared ? atomic_load(&shared->done) : 0; }

int fullspeed_error(void) {
  int error = shared ? atomic_load(&shared->error) : 0;
  return error == ECANCELED ? 0 : error;
}

void fullspeed_stop(void) {
  if (child <= 0) return;
  atomic_store(&shared->stop, 1);
  waitpid(child, 0, 0);
  child = 0;
}
