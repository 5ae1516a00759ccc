/* probe [options] NAME=ADDRESS[:PORT]...: a client of sample guests that forgets nothing it was told.
 *
 *   --seconds S     how long (default 10); with --once only the limit
 *   --period MS     pause between two questions (default 20)
 *   --gap MS        silence worth a line (default 300)
 *   --state FOLDER  keep the highest acknowledged record of each guest in FOLDER/NAME, over many runs of probe
 *   --once          end when every guest has answered once
 *
 * Lines: EPOCH_MS NAME event key=value...; events: answer, gap, incarnation, LOST, error; at the end one `summary` each.
 * Exit: 0 all well, 1 a guest never answered, 2 usage, 3 something acknowledged is LOST. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define GUESTS_MAX 32
#define ANSWER_WAIT_MS 250
/* After a signal, for an answer from each guest that has answered before: what is true at the end must not be missed by a blink. */
#define LAST_WAIT_MS 2000

struct answer {
  uint64_t seq, verified, bad, boot, up_ms, fast, fast_verified, fast_bad;
  int error;
};

struct guest {
  char name[64];
  struct sockaddr_in address;
  struct answer last;
  uint64_t answers, high, fast_high, incarnations, lost;
  int64_t last_ms, gap_ms_max, first_ms;
  int told_error, told_lost;
};

static int64_t seconds = 10, period_ms = 20, gap_ms = 300, end_ms;
static int once;
static const char *folder;
static struct guest guests[GUESTS_MAX];
static int guest_count;
static volatile sig_atomic_t stopping;
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

static void on_signal(int signal) {
  (void)signal;
  stopping = 1;
}

static int64_t clock_ms(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

__attribute__((format(printf, 2, 3))) static void say(const struct guest *g, const char *format, ...) {
  va_list arguments;
  pthread_mutex_lock(&output);
  printf("%" PRId64 " %s ", clock_ms(CLOCK_REALTIME), g->name);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
  pthread_mutex_unlock(&output);
}

static int wait_for(int fd, short events, int64_t deadline) {
  struct pollfd p = {fd, events, 0};
  int64_t left = deadline - clock_ms(CLOCK_MONOTONIC);
  return left > 0 && poll(&p, 1, (int)left) > 0;
}

static uint64_t number(const char *text, const char *key) {
  char wanted[32];
  snprintf(wanted, sizeof wanted, " %s=", key);
  const char *at = strstr(text, wanted);
  return at ? strtoull(at + strlen(wanted), 0, 10) : 0;
}

/* One question. 1 = answered in time. */
static int ask(const struct guest *g, struct answer *a) {
  static const char request[] = "GET / HTTP/1.0\r\n\r\n";
  char text[1024];
  size_t used = 0;
  int64_t deadline = clock_ms(CLOCK_MONOTONIC) + ANSWER_WAIT_MS;
  struct linger reset = {1, 0};
  int complete = 0, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return 0;
  int rc = connect(fd, (const void *)&g->address, sizeof g->address), error = 0;
  socklen_t size = sizeof error;
  if (rc && (errno != EINPROGRESS || !wait_for(fd, POLLOUT, deadline))) goto done;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) || error) goto done;
  /* A full-speed guest may need longer for the answer itself than for the handshake. */
  deadline += ANSWER_WAIT_MS;
  if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != (ssize_t)sizeof request - 1) goto done;
  while (used < sizeof text - 1 && wait_for(fd, POLLIN, deadline)) {
    ssize_t n = recv(fd, text + used, sizeof text - 1 - used, 0);
    if (n < 0 && errno == EAGAIN) continue;
    if (n <= 0) {
      complete = n == 0 && used > 0;
      break;
    }
    used += (size_t)n;
  }
done:
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  close(fd);
  text[used] = 0;
  if (!complete || !strstr(text, "\r\n\r\nname=")) return 0;
  *a = (struct answer){number(text, "seq"), number(text, "verified"), number(text, "bad"), number(text, "boot"),
                       number(text, "up_ms"), number(text, "fast"), number(text, "fast_verified"),
                       number(text, "fast_bad"), (int)number(text, "errno")};
  return 1;
}

static void judge(struct guest *g, const struct answer *a, int64_t now) {
  if (g->answers > 0 && now - g->last_ms > g->gap_ms_max) g->gap_ms_max = now - g->last_ms;
  if (g->answers > 0 && now - g->last_ms > gap_ms)
    say(g, "gap ms=%" PRId64 " boot=%" PRIu64 " seq=%" PRIu64, now - g->last_ms, a->boot, a->seq);
  int same = a->boot == g->last.boot && (g->answers == 0 || a->up_ms >= g->last.up_ms);
  /* A guest that started anew must find on its disk what it acknowledged before; a running one only counts up. */
  int lost = same ? a->seq < g->high || a->fast < g->fast_high
                  : a->verified < g->high || a->bad || a->fast_verified < g->fast_high || a->fast_bad;
  if (!same || g->answers == 0) g->incarnations++, g->told_lost = 0;
  if (!same || g->answers == 0 || (lost && !g->told_lost))
    say(g, "%s boot=%" PRIu64 " seq=%" PRIu64 " verified=%" PRIu64 " wanted=%" PRIu64 " bad=%" PRIu64
        " fast_verified=%" PRIu64 " fast_wanted=%" PRIu64 " fast_bad=%" PRIu64,
        lost ? "LOST" : g->answers ? "incarnation" : "answer", a->boot, a->seq, a->verified, g->high, a->bad,
        a->fast_verified, g->fast_high, a->fast_bad);
  if (lost && !g->told_lost) g->lost++, g->told_lost = 1;
  if (a->error && !g->told_error) say(g, "error errno=%d %s", a->error, strerror(a->error));
  g->told_error = a->error;
  if (a->seq > g->high) g->high = a->seq;
  if (a->fast > g->fast_high) g->fast_high = a->fast;
  if (g->answers++ == 0) g->first_ms = now;
  g->last = *a;
  g->last_ms = now;
}

static void *watch(void *argument) {
  struct guest *g = argument;
  int64_t last_ms = 0;
  while (clock_ms(CLOCK_MONOTONIC) < end_ms) {
    struct answer a;
    if (stopping && !last_ms) last_ms = clock_ms(CLOCK_MONOTONIC) + LAST_WAIT_MS;
    if (last_ms && (g->answers == 0 || clock_ms(CLOCK_MONOTONIC) > last_ms)) break;
    if (ask(g, &a)) {
      judge(g, &a, clock_ms(CLOCK_MONOTONIC));
      if (once || last_ms) break;
    }
    struct timespec pause = {period_ms / 1000, period_ms % 1000 * 1000000};
    nanosleep(&pause, 0);
  }
  return 0;
}

static void load(struct guest *g) {
  char path[4200];
  if (!folder) return;
  snprintf(path, sizeof path, "%s/%s", folder, g->name);
  FILE *f = fopen(path, "re");
  if (!f) {
    if (errno == ENOENT) return;
    perror(path);
    exit(2);
  }
  if (fscanf(f, "high=%" SCNu64 " fast=%" SCNu64 " boot=%" SCNu64, &g->high, &g->fast_high, &g->last.boot) != 3) {
    fprintf(stderr, "probe: %s is not a state file of probe: remove it\n", path);
    exit(2);
  }
  fclose(f);
}

static int save(const struct guest *g) {
  char path[4200], temporary[4210];
  if (!folder) return 1;
  snprintf(path, sizeof path, "%s/%s", folder, g->name);
  snprintf(temporary, sizeof temporary, "%s.new", path);
  FILE *f = fopen(temporary, "we");
  if (!f) return 0;
  fprintf(f, "high=%" PRIu64 " fast=%" PRIu64 " boot=%" PRIu64 "\n", g->high, g->fast_high, g->last.boot);
  return fclose(f) == 0 && rename(temporary, path) == 0;
}

static void usage(const char *why) {
  fprintf(stderr, "probe: %s\nusage: probe [--seconds S] [--period MS] [--gap MS] [--state FOLDER] [--once] "
          "NAME=ADDRESS[:PORT]...\n", why);
  exit(2);
}

static void add(char *text) {
  char *equals = strchr(text, '=');
  if (!equals || equals - text > 60 || guest_count == GUESTS_MAX) usage("a guest is named NAME=ADDRESS[:PORT]");
  struct guest *g = &guests[guest_count++];
  memcpy(g->name, text, (size_t)(equals - text));
  char *colon = strchr(equals, ':');
  if (colon) *colon++ = 0;
  g->address.sin_family = AF_INET;
  g->address.sin_port = htons((uint16_t)(colon ? atoi(colon) : 80));
  if (inet_pton(AF_INET, equals + 1, &g->address.sin_addr) != 1) usage("not an IPv4 address");
}

int main(int argc, char **argv) {
  int code = 0;
  for (int i = 1; i < argc; i++) {
    int64_t *option = !strcmp(argv[i], "--seconds") ? &seconds : !strcmp(argv[i], "--period") ? &period_ms
                      : !strcmp(argv[i], "--gap") ? &gap_ms : 0;
    if (option && i + 1 < argc) *option = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--state") && i + 1 < argc) folder = argv[++i];
    else if (!strcmp(argv[i], "--once")) once = 1;
    else if (argv[i][0] == '-') usage("unknown option");
    else add(argv[i]);
  }
  if (guest_count == 0) usage("no guest named");
  if (folder && strlen(folder) > 4096) usage("the name of the state folder is too long");
  for (int i = 0; i < guest_count; i++) load(&guests[i]);
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGTERM, &action, 0);
  sigaction(SIGINT, &action, 0);
  end_ms = clock_ms(CLOCK_MONOTONIC) + seconds * 1000;
  pthread_t threads[GUESTS_MAX];
  for (int i = 0; i < guest_count; i++)
    if (pthread_create(&threads[i], 0, watch, &guests[i])) return 1;
  for (int i = 0; i < guest_count; i++) {
    struct guest *g = &guests[i];
    pthread_join(threads[i], 0);
    /* Silence at the end counts too. */
    int64_t silence = g->answers && !once ? clock_ms(CLOCK_MONOTONIC) - g->last_ms : 0;
    say(g, "summary answers=%" PRIu64 " gap_ms_max=%" PRId64 " silent_ms=%" PRId64 " high=%" PRIu64 " fast=%" PRIu64
        " boot=%" PRIu64 " incarnations=%" PRIu64 " errno=%d lost=%" PRIu64, g->answers, g->gap_ms_max, silence, g->high,
        g->fast_high, g->last.boot, g->incarnations, g->last.error, g->lost);
    if (!save(g)) perror(folder);
    if (g->lost) code = 3;
    if (g->answers == 0 && code == 0) code = 1;
  }
  return code;
}
