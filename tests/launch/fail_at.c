// Preloaded into qpipe: at the FAIL_AT-th call that changes a file below FAIL_BELOW the process is
// killed (FAIL_WITH unset), or that call and all later ones fail with the errno FAIL_WITH. With
// FAIL_COUNT the calls are counted, and their number is written there at the end. FAIL_RANK: only
// in that rank of an MPI run, or where there is no MPI.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long calls;

static int is_other_rank(void) {
  const char* wanted = getenv("FAIL_RANK");
  const char* rank = getenv("OMPI_COMM_WORLD_RANK");
  return wanted != NULL && rank != NULL && strcmp(wanted, rank) != 0;
}

static int is_below(const char* path) {
  const char* below = getenv("FAIL_BELOW");
  if (is_other_rank()) return 0;
  return below != NULL && strncmp(path, below, strlen(below)) == 0;
}

// Whether the call must fail; does not return when it must kill.
static int fails(void) {
  const long call = atomic_fetch_add(&calls, 1) + 1;
  const char* at = getenv("FAIL_AT");
  if (at == NULL || call < atol(at)) return 0;
  const char* with = getenv("FAIL_WITH");
  if (with == NULL) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  errno = atoi(with);
  return 1;
}

static int fails_at_path(const char* path) { return is_below(path) && fails(); }

static int fails_at_file(int file) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof(path) - 1);
  if (length < 0) return 0;
  path[length] = '\0';
  return fails_at_path(path);
}

__attribute__((destructor)) static void write_count(void) {
  const char* name = getenv("FAIL_COUNT");
  FILE* file = name != NULL && atomic_load(&calls) > 0 ? fopen(name, "w")
                                                       : NULL;  // not in the helpers of MPI
  if (file == NULL) return;
  fprintf(file, "%ld\n", atomic_load(&calls));
  fclose(file);
}

// qpipe leaves by _Exit, without destructors.
void _Exit(int code) {
  write_count();
  syscall(SYS_exit_group, code);
  __builtin_unreachable();
}

#define NEXT(name)                 \
  static __typeof__(&(name)) next; \
  if (next == NULL) next = (__typeof__(&(name)))dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void* data, size_t count) {
  NEXT(write);
  return fails_at_file(file) ? -1 : next(file, data, count);
}
ssize_t pwrite(int file, const void* data, size_t count, off_t offset) {
  NEXT(pwrite);
  return fails_at_file(file) ? -1 : next(file, data, count, offset);
}
ssize_t pwrite64(int file, const void* data, size_t count, off64_t offset) {
  NEXT(pwrite64);
  return fails_at_file(file) ? -1 : next(file, data, count, offset);
}
// Those that make a file, or empty it.
static int makes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }
static int mode_of(int flags, va_list rest) {
  return (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(rest, int) : 0;
}
#define OPEN(name)                                                             \
  int name(const char* path, int flags, ...) {                                 \
    NEXT(name);                                                                \
    va_list rest;                                                              \
    va_start(rest, flags);                                                     \
    const int mode = mode_of(flags, rest);                                     \
    va_end(rest);                                                              \
    return makes(flags) && fails_at_path(path) ? -1 : next(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
int mkdir(const char* path, mode_t mode) {
  NEXT(mkdir);
  return fails_at_path(path) ? -1 : next(path, mode);
}
int rmdir(const char* path) {
  NEXT(rmdir);
  return fails_at_path(path) ? -1 : next(path);
}
int fdatasync(int file) {
  NEXT(fdatasync);
  return fails_at_file(file) ? -1 : next(file);
}
int fsync(int file) {
  NEXT(fsync);
  return fails_at_file(file) ? -1 : next(file);
}
int ftruncate(int file, off_t size) {
  NEXT(ftruncate);
  return fails_at_file(file) ? -1 : next(file, size);
}
int fallocate(int file, int mode, off_t offset, off_t size) {
  NEXT(fallocate);
  return fails_at_file(file) ? -1 : next(file, mode, offset, size);
}
int rename(const char* from, const char* to) {
  NEXT(rename);
  return fails_at_path(to) ? -1 : next(from, to);
}
int unlink(const char* path) {
  NEXT(unlink);
  return fails_at_path(path) ? -1 : next(path);
}
int remove(const char* path) {
  NEXT(remove);
  return fails_at_path(path) ? -1 : next(path);
}
