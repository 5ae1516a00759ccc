/* recorder FOLDER NAME PORT INTERVAL_MS [full-speed] [tell-console]: what is worth protecting in the sample guest.
 *
 * Appends 128-byte records to FOLDER/records, each made durable before it is acknowledged; at start it verifies every
 * record that is there. Over TCP it tells the newest acknowledged record, so that a client on the network can keep the
 * highest one it was ever told and demand it from the guest that comes back. With full-speed it also writes random
 * blocks of FOLDER/fast without pause (fullspeed.c). With tell-console each record is also acknowledged on the console,
 * which no pulled cable silences. GET /history tells which starts of the guest wrote which records on this disk. One
 * thread, no allocation in the loop. */
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
/* Starts of the guest that are remembered; the oldest ones are forgotten. */
#define STARTS_MAX 512

static volatile sig_atomic_t stopping;

/* One start of the guest: its number, the time of its first record, its last record. Two guests that split have the
 * same number, and hardly the same time. */
struct start {
  uint64_t boot, last;
  int64_t begun_ms;
};

struct state {
  int file, tell_console;
  struct start starts[STARTS_MAX];
  int starts_known;
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

static void remember(struct state *s, uint64_t boot, int64_t t, uint64_t sequence) {
  if (s->starts_known > 0 && s->starts[s->starts_known - 1].boot == boot) {
    s->starts[s->starts_known - 1].last = sequence;
    return;
  }
  if (s->starts_known == STARTS_MAX) memmove(s->starts, s->starts + 1, sizeof *s->starts * (size_t)--s->starts_known);
  s->starts[s->starts_known++] = (struct start){boot, sequence, t};
}

static void compose(char *record, const struct state *s, uint64_t sequence, int64_t t) {
  int n = snprintf(record, RECORD_BYTES, "record %012" PRIu64 " t=%" PRId64 " boot=%" PRIu64 " fast=%" PRIu64 " ", sequence,
                   t, s->boot, fullspeed_done());
  memset(record + n, '.', (size_t)(CHECKSUM_AT - n));
  snprintf(record + CHECKSUM_AT, 10, " %08" PRIx32, crc32(record, CHECKSUM_AT));
  record[RECORD_BYTES - 1] = '\n';
}

static int intact(const char *record, uint64_t wanted, int64_t *t, uint64_t *boot, uint64_t *fast) {
  char checksum[10];
  uint64_t sequence;
  snprintf(checksum, sizeof checksum, " %08" PRIx32, crc32(record, CHECKSUM_AT));
  return record[RECORD_BYTES - 1] == '\n' && memcmp(checksum, record + CHECKSUM_AT, 9) == 0
         && sscanf(record, "record %" SCNu64 " t=%" SCNd64 " boot=%" SCNu64 " fast=%" SCNu64, &sequence, t, boot, fast) == 4
         && sequence == wanted;
}

/* Reads all records. Only the last one may be torn: it was in flight, and is cut off. */
static int verify(struct state *s) {
  char record[RECORD_BYTES + 1] = {0};
  struct stat status;
  if (fstat(s->file, &status)) return errno;
  while (s->end < status.st_size) {
    uint64_t boot = 0, fast = 0;
    int64_t t = 0;
    ssize_t n = pread(s->file, record, RECORD_BYTES, s->end);
    if (n < 0) return errno;
    if (n != RECORD_BYTES || !intact(record, s->sequence + 1, &t, &boot, &fast)) {
      if (status.st_size - s->end > RECORD_BYTES) s->bad = s->sequence + 1;
      break;
    }
    if (boot >= s->boot) s->boot = boot + 1;
    s->fast_acknowledged = fast;
    s->sequence++;
    s->end += RECORD_BYTES;
    remember(s, boot, t, s->sequence);
  }
  s->verified = s->sequence;
  /* What is damaged is evidence: keep it. */
  if (s->bad) return 0;
  return ftruncate(s->file, s->end) || fsync(s->file) ? errno : 0;
}

static void append(struct state *s) {
  char record[RECORD_BYTES + 1];
  int64_t begun = now_ms(CLOCK_MONOTONIC), t = now_ms(CLOCK_REALTIME);
  compose(record, s, s->sequence + 1, t);
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
  remember(s, s->boot, t, s->sequence);
  if (s->tell_console) {
    const struct start *now = &s->starts[s->starts_known - 1];
    printf("ACK boot=%" PRIu64 " begun=%" PRId64 " seq=%" PRIu64 "\n", now->boot, now->begun_ms, now->last);
    fflush(stdout);
  }
  s->latency_ms = now_ms(CLOCK_MONOTONIC) - begun;
  if (s->latency_ms > s->latency_ms_max) s->latency_ms_max = s->latency_ms;
}

static void send_history(int client, const struct state *s) {
  static char text[STARTS_MAX * 64 + 64];
  int n = snprintf(text, sizeof text, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n");
  for (int i = 0; i < s->starts_known; i++)
    n += snprintf(text + n, sizeof text - (size_t)n, "boot=%" PRIu64 " begun=%" PRId64 " last=%" PRIu64 "\n",
                  s->starts[i].boot, s->starts[i].begun_ms, s->starts[i].last);
  if (write(client, text, (size_t)n) == n) shutdown(client, SHUT_WR);
}

static void answer(int listener, const char *name, const struct state *s) {
  struct timeval wait = {0, CLIENT_WAIT_MS * 1000};
  char request[512], body[512], reply[768];
  int client = accept4(listener, 0, 0, SOCK_CLOEXEC);
  if (client < 0) return;
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  ssize_t got = read(client, request, sizeof request);
  if (got >= 13 && memcmp(request, "GET /history ", 13) == 0) {
    send_history(client, s);
  } else if (got > 0) {
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
    fprintf(stderr, "usage: recorder FOLDER NAME PORT INTERVAL_MS [full-speed] [tell-console]\n");
    return 2;
  }
  int interval_ms = atoi(argv[4]);
  struct sigaction action = {.sa_handler = on_term};
  sigaction(SIGTERM, &action, 0);
  signal(SIGPIPE, SIG_IGN);
  int full_speed = 0;
  for (int i = 5; i < argc; i++) {
    if (strcmp(argv[i], "full-speed") == 0) full_speed = 1;
    if (strcmp(argv[i], "tell-console") == 0) s.tell_console = 1;
  }
  start(&s, argv[1], full_speed);
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
