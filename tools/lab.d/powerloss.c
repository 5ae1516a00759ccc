/* powerloss PATH: the file system that holds PATH loses, at once, everything that was not made durable, as when power
 * goes; until it is mounted anew every access fails. Only for the loop disk of a lab node. */
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define EXT4_IOC_SHUTDOWN _IOR('X', 125, __u32)
#define GOING_FLAGS_NOLOGFLUSH 2
#define LOOP_MAJOR 7

int main(int argc, char **argv) {
  struct stat status;
  __u32 how = GOING_FLAGS_NOLOGFLUSH;
  if (argc != 2) {
    fprintf(stderr, "usage: powerloss PATH\n");
    return 2;
  }
  int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &status)) {
    fprintf(stderr, "powerloss: %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  if (major(status.st_dev) != LOOP_MAJOR) {
    fprintf(stderr, "powerloss: %s is not on a loop device, so not on a lab disk: refused\n", argv[1]);
    return 1;
  }
  if (ioctl(fd, EXT4_IOC_SHUTDOWN, &how)) {
    fprintf(stderr, "powerloss: %s: EXT4_IOC_SHUTDOWN: %s\n", argv[1], strerror(errno));
    return 1;
  }
  return 0;
}
