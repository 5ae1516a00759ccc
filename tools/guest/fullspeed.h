/* Writes as fast as the disk takes it, in a way that lets a later start prove what was lost or torn. */
#ifndef FULLSPEED_H
#define FULLSPEED_H
#include <stdint.h>

struct fullspeed_report {
  uint64_t verified;     /* batches that are completely on the disk */
  uint64_t bad_blocks;   /* blocks older than an acknowledged batch, or damaged outside the batch in flight */
  uint64_t blocks;       /* 4 KiB blocks in the file */
};

/* Opens (first start: makes) the file and verifies it against `acknowledged`, the last batch a durable record names.
 * Returns 0, or an errno. */
int fullspeed_open(const char *path, uint64_t acknowledged, struct fullspeed_report *report);
/* Forks the writers. They go on until fullspeed_stop, an error, or the death of this process. Returns 0, or an errno. */
int fullspeed_start(void);
/* Batches acknowledged: every block of them written and flushed. */
uint64_t fullspeed_done(void);
/* 0, or the errno that ended the writing. */
int fullspeed_error(void);
void fullspeed_stop(void);
#endif
