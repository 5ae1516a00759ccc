/* recorder FOLDER NAME PORT INTERVAL_MS [full-speed]: what is worth protecting in the sample guest.
 *
 * Appends 128-byte records to FOLDER/records, each made durable before it is acknowledged; at start it verifies every
 * record that is there. Over TCP it tells the newest acknowledged record, so that a client on the network can keep the
 * highest one it was ever told and demand it from the guest that comes back. With full-speed it also writes random
 * blocks of FOLDER/fast without pause (fullspeed.c). One thread, no allocation in the loop. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "fullspeed.h"

#define RECORD_BYTES 128
#define CHECKSUM_AT (RECORD_BYTES - 10)
#define CLIENT_WAIT_MS 500

static volatile sig_atomic_t stopping;

struct state {
  int file;
  uint64_t sequence, verified, bad, boot, fast_acknowledged;
  off_t end;
  int error;
  int64_t latency_ms, latency_ms_max;
  struct fullspeed_report fast;
};

static void on_term(int signal) {
  (void)signal;
  stopping = 1;
}

static int64_t now_ms(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static uint32_t crc32(const char *data, size_t bytes) {
  uint32_t crc = ~0u;
  while (bytes--) {
    crc ^= (unsigned char)*data++;
    for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
  }
  return ~crc;
}

static void compose(char *record, const struct state *s, uint64_t sequence) {
  int n = snprintf(record, RECORD_BYTES, "record %012" PRIu64 " t=%" PRId64 " boot=%" PRIu64 " fast=%" PRIu64 " ", sequence,
                   now_ms(CLOCK_REALTIME), s->boot, fullspeed_done());
  memset(record + n, '.', (size_t)(CHECKSUM_AT - n));
  snprintf(record + CHECKSUM_AT, 10, " %08" PRIx32, crc32(record, CHECKSUM_AT));
  record[RECORD_BYTES - 1] = '\n';
}

static int intact(const char *record, uint64_t wanted, uint64_t *boot, uint64_t *fast) {
  char checksum[10];
  uint64_t sequence;
  snprintf(checksum, sizeof checksum, " %08" PRIx32, crc32(record, CHECKSUM_AT));
  return record[RECORD_BYTES - 1] == '\n' && memcmp(checksum, record + CHECKSUM_AT, 9) == 0
         && sscanf(record, "record %" SCNu64 " t=%*d boot=%" SCNu64 " fast=%" SCNu64, &sequence, boot, fast) == 3
         && sequence == wanted;
}

/* Reads all records. Only the last one may be torn: it was in flight, and is cut off. */
static int verify(struct state *s) {
  char record[RECORD_BYTES + 1] = {0};
  struct stat status;
  if (fstat(s->file, &status)) return errno;
  while (s->end < status.st_size) {
    uint64_t boot = 0, fast = 0;
    ssize_t n = pread(s->file, record, RECORD_BYTES, s->end);
    if (n < 0) return errno;
    if (n != RECORD_BYTES || !intact(record, s->sequence + 1, &boot, &fast)) {
      if (status.st_size - s->end > RECORD_BYTES) s->bad = s->sequence + 1;
      break;
    }
    if (boot >= s->boot) s->boot = boot + 1;
    s->fast_acknowledged = fast;
    s->sequence++;
    s->end += RECORD_BYTES;
  }
  s->verified = s->sequence;
  /* What is damaged is evidence: keep it. */
  if (s->bad) return 0;
  return ftruncate(s->file, s->end) || fsync(s->file) ? errno : 0;
}

static void append(struct state *s) {
  char record[RECORD_BYTES + 1];
  int64_t begun = now_ms(CLOCK_MONOTONIC);
  compose(record, s, s->sequence + 1);
  ssize_t n = pwrite(s->file, record, RECORD_BYTES, s->end);
  if (n != RECORD_BYTES) s->error = n < 0 ? errno : ENOSPC;
  else if (fdatasync(s->file)) s->error = errno;
  if (s->error) {
    printf("RECORDER cannot write: %s\n", strerror(s->error));
    fflush(stdout);
    return;
  }
  s->sequence++;
  s->end += RECORD_BYTES;
  s->latency_ms = now_ms(CLOCK_MONOTONIC) - begun;
  if (s->latency_ms > s->latency_ms_max) s->latency_ms_max = s->latency_ms;
}

static void answer(int listener, const char *name, const struct state *s) {
  struct timeval wait = {0, CLIENT_WAIT_MS * 1000};
  char request[512], body[512], reply[768];
  int client = accept4(listener, 0, 0, SOCK_CLOEXEC);
  if (client < 0) return;
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  if (read(client, request, sizeof request) > 0) {
    int error = s->error ? s->error : fullspeed_error();
    int n = snprintf(body, sizeof body,
                     "name=%s seq=%" PRIu64 " verified=%" PRIu64 " bad=%" PRIu64 " boot=%" PRIu64 " errno=%d up_ms=%" PRId64
                     " lat_ms=%" PRId64 " maxlat_ms=%" PRId64 " fast=%" PRIu64 " fast_verified=%" PRIu64
                     " fast_bad=%" PRIu64 " fast_blocks=%" PRIu64 "\n",
                     name, s->sequence, s->verified, s->bad, s->boot, error, now_ms(CLOCK_BOOTTIME), s->latency_ms,
                     s->latency_ms_max, fullspeed_done(), s->fast.verified, s->fast.bad_blocks, s->fast.blocks);
    int m = snprintf(reply, sizeof reply, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", n, body);
    if (write(client, reply, (size_t)m) == m) shutdown(client, SHUT_WR);
  }
  close(client);
}

static int listen_on(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 16)) {
    perror("RECORDER listen");
    exit(1);
  }
  return listener;
}

static void start(struct state *s, const char *folder, int full_speed) {
  char path[512];
  snprintf(path, sizeof path, "%s/records", folder);
  s->file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (s->file < 0) {
    perror(path);
    exit(1);
  }
  s->boot = 1;
  s->error = verify(s);
  snprintf(path, sizeof path, "%s/fast", folder);
  /* Verified even when not asked to write: what an earlier start wrote must still be there. */
  if (!s->error && (full_speed || s->fast_acknowledged > 0))
    s->error = fullspeed_open(path, s->fast_acknowledged, &s->fast);
  if (!s->error && !s->bad && !s->fast.bad_blocks && full_speed) s->error = fullspeed_start();
  printf("RECORDER verified=%" PRIu64 " bad=%" PRIu64 " boot=%" PRIu64 " fast_verified=%" PRIu64 " fast_bad=%" PRIu64
         " error=%s\n", s->verified, s->bad, s->boot, s->fast.verified, s->fast.bad_blocks, s->error ? strerror(s->error) : "none");
  fflush(stdout);
}

int main(int argc, char **argv) {
  static struct state s;
  if (argc < 5) {
    fprintf(stderr, "usage: recorder FOLDER NAME PORT INTERVAL_MS [full-speed]\n");
    return 2;
  }
  int interval_ms = atoi(argv[4]);
  struct sigaction action = {.sa_handler = on_term};
  sigaction(SIGTERM, &action, 0);
  signal(SIGPIPE, SIG_IGN);
  start(&s, argv[1], argc > 5 && strcmp(argv[5], "full-speed") == 0);
  int listener = listen_on(atoi(argv[3]));
  int64_t next = now_ms(CLOCK_MONOTONIC);
  while (!stopping) {
    int writing = !s.error && !s.bad && !s.fast.bad_blocks;
    if (writing && now_ms(CLOCK_MONOTONIC) >= next) {
      append(&s);
      next = now_ms(CLOCK_MONOTONIC) + interval_ms;
    }
    struct pollfd waiting = {listener, POLLIN, 0};
    int64_t left = writing ? next - now_ms(CLOCK_MONOTONIC) : 1000;
    if (poll(&waiting, 1, left < 0 ? 0 : (int)left) > 0) answer(listener, argv[2], &s);
  }
  fullspeed_stop();
  printf("RECORDER stopped seq=%" PRIu64 " fast=%" PRIu64 "\n", s.sequence, fullspeed_done());
  fflush(stdout);
  return 0;
}
