/* A disk that fails when it is told to, for a process that preloads this (`LD_PRELOAD`).
 *
 * Operations that change files below a folder are counted: to create, write, cut, sync, rename, link
 * and delete. TORTURE_DISK names the folder and says what happens at which of them, see `disk.py`. It is
 * read at every operation, so that it takes effect at once and in all processes that inherit it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RECORD, FAIL, KILL, SHORT, FULL };

/* Shared by all processes: operations and bytes so far, and whether the trouble has come. */
struct counter { long operations, bytes, met; };

static struct {
  char text[3 * PATH_MAX];
  int mode, error, log;
  long at;
  char folder[PATH_MAX];
  struct counter *counter;
} setting;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* "MODE AT ERRNO COUNTER LOG FOLDER", where LOG may be "-". */
static int armed(void) {
  const char *text = getenv("TORTURE_DISK");
  if (!text || !*text) return 0;
  if (!strcmp(text, setting.text)) return 1;
  char counter[PATH_MAX], log[PATH_MAX];
  int mode, error;
  long at;
  if (sscanf(text, "%d %ld %d %4095s %4095s %4095s", &mode, &at, &error, counter, log,
             setting.folder) != 6) return 0;
  int file = syscall(SYS_openat, AT_FDCWD, counter, O_RDWR | O_CLOEXEC, 0);
  if (file < 0) return 0;
  setting.counter = mmap(0, sizeof(struct counter), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  syscall(SYS_close, file);
  if (setting.counter == MAP_FAILED) return 0;
  setting.mode = mode, setting.error = error, setting.at = at;
  setting.log = strcmp(log, "-")
    ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC, 0) : -1;
  strcpy(setting.text, text);
  return 1;
}

/* The absolute path of a name in a folder that is open; 0 if it is not in the setting's. */
static int placed(int folder, const char *name, char *path) {
  char link[64];
  ssize_t size = 0;
  if (name && name[0] == '/') {
    if (strlen(name) >= PATH_MAX) return 0;
    strcpy(path, name);
  } else {
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (name && size + strlen(name) + 2 > PATH_MAX) return 0;
    if (name) path[size] = '/', strcpy(path + size + 1, name);
  }
  size_t length = strlen(setting.folder);
  return !strncmp(path, setting.folder, length) && (path[length] == '/' || !path[length]);
}

static void note(const char *kind, const char *path, const char *to, long offset,
                 const struct iovec *parts, int count, long bytes) {
  char line[2 * PATH_MAX + 64];
  if (setting.log < 0) return;
  int size = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%ld\n", kind, path, to, offset, bytes);
  struct iovec all[16] = {{line, size}};
  int used = 1;
  for (long left = bytes; used < 16 && used <= count && left > 0; used++) {
    all[used] = parts[used - 1];
    if ((long)all[used].iov_len > left) all[used].iov_len = left;
    left -= all[used].iov_len;
  }
  syscall(SYS_writev, setting.log, all, used);
}

/* Count an operation. Returns 0 if it may go on, 1 if errno says why not, 2 for half of a write. */
static int begins(long bytes) {
  long number = __sync_add_and_fetch(&setting.counter->operations, 1);
  long used = __sync_add_and_fetch(&setting.counter->bytes, bytes);
  switch (setting.mode) {
    case FULL:
      if (used <= setting.at) return 0;
      setting.counter->met = 1;
      __sync_sub_and_fetch(&setting.counter->bytes, bytes);
      errno = setting.error;
      return 1;
    case FAIL:
    case SHORT:
      if (setting.mode == SHORT && number == setting.at && bytes > 1) {
        setting.at++; /* what is left of the write fails */
        setting.counter->met = 1;
        return 2;
      }
      if (number != setting.at) return 0;
      setting.counter->met = 1;
      errno = setting.error;
      return 1;
    case KILL:
      if (number == setting.at) {
        setting.counter->met = 1;
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
      }
  }
  return 0;
}

static ssize_t total(const struct iovec *parts, int count) {
  ssize_t bytes = 0;
  for (int part = 0; part < count; part++) bytes += parts[part].iov_len;
  return bytes;
}

#define GUARDED(result) pthread_mutex_lock(&lock); result; pthread_mutex_unlock(&lock)

static ssize_t written(int file, const struct iovec *parts, int count, off_t at) {
  char path[PATH_MAX];
  struct stat status;
  int go = 0, known = 0;
  ssize_t bytes = total(parts, count), done;
  int saved = errno;
  GUARDED(known = armed() && !fstat(file, &status) && S_ISREG(status.st_mode) &&
                  placed(file, 0, path); go = known ? begins(bytes) : 0);
  if (go == 1) return -1;
  struct iovec half = {count ? parts[0].iov_base : 0, go == 2 ? parts[0].iov_len / 2 : 0};
  if (go == 2) parts = &half, count = 1;
  errno = saved;
  done = at < 0 ? REAL(writev)(file, parts, count) : REAL(pwritev)(file, parts, count, at);
  saved = errno;
  if (known && done >= 0) {
    off_t offset = at < 0 ? lseek(file, 0, SEEK_CUR) - done : at;
    GUARDED(note("write", path, "", offset, parts, count, done));
  }
  errno = saved;
  return done;
}

ssize_t write(int file, const void *data, size_t bytes) {
  struct iovec one = {(void *)data, bytes};
  return getenv("TORTURE_DISK") ? written(file, &one, 1, -1) : REAL(write)(file, data, bytes);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  return getenv("TORTURE_DISK") ? written(file, parts, count, -1)
                                : REAL(writev)(file, parts, count);
}
ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at) {
  struct iovec one = {(void *)data, bytes};
  return written(file, &one, 1, at);
}
ssize_t pwrite(int file, const void *data, size_t bytes, off_t at) {
  return pwrite64(file, data, bytes, at);
}

/* An operation on one path, or two. `real` must evaluate to -1 where it fails. */
#define CHANGES(type, kind, folder, name, to_folder, to_name, when, real)                       \
  char path[PATH_MAX] = "", to[PATH_MAX] = "";                                                   \
  int saved = errno, known = 0, stop = 0;                                                        \
  if (getenv("TORTURE_DISK") && (when)) {                                                        \
    GUARDED(known = armed() && placed(folder, name, path) &&                                     \
                    (!(to_name) || placed(to_folder, to_name, to));                              \
            stop = known && begins(0));                                                          \
    if (stop) return -1;                                                                         \
  }                                                                                              \
  errno = saved;                                                                                 \
  type result = real;                                                                            \
  saved = errno;                                                                                 \
  if (known && result != -1) { GUARDED(note(kind, path, to, 0, 0, 0, 0)); }                      \
  errno = saved;                                                                                 \
  return result

static int opened(int folder, const char *name, int flags, mode_t mode) {
  struct stat status;
  int creates = (flags & O_CREAT) && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW);
  int cuts = !creates && (flags & O_TRUNC);
  CHANGES(int, creates ? "create" : "cut", folder, name, 0, (char *)0, creates || cuts,
          REAL(openat)(folder, name, flags, mode));
}

#define MODE va_list more; va_start(more, flags); \
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; va_end(more)
int open(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) {
  MODE;
  return opened(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
  MODE;
  return opened(folder, name, flags, mode);
}
int creat(const char *name, mode_t mode) {
  return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int ftruncate64(int file, off64_t length) {
  char path[PATH_MAX];
  int known = 0, stop = 0;
  if (getenv("TORTURE_DISK")) {
    GUARDED(known = armed() && placed(file, 0, path); stop = known && begins(0));
    if (stop) return -1;
  }
  int result = REAL(ftruncate64)(file, length);
  if (known && !result) { GUARDED(note("cut", path, "", length, 0, 0, 0)); }
  return result;
}
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

int fsync(int file) { CHANGES(int, "sync", file, (char *)0, 0, (char *)0, 1, REAL(fsync)(file)); }
int fdatasync(int file) {
  CHANGES(int, "sync", file, (char *)0, 0, (char *)0, 1, REAL(fdatasync)(file));
}

int renameat(int folder, const char *name, int to_folder, const char *to_name) {
  CHANGES(int, "rename", folder, name, to_folder, to_name, 1,
          REAL(renameat)(folder, name, to_folder, to_name));
}
int rename(const char *name, const char *to_name) {
  return renameat(AT_FDCWD, name, AT_FDCWD, to_name);
}

int linkat(int folder, const char *name, int to_folder, const char *to_name, int flags) {
  CHANGES(int, "link", folder, name, to_folder, to_name, 1,
          REAL(linkat)(folder, name, to_folder, to_name, flags));
}
int link(const char *name, const char *to_name) {
  return linkat(AT_FDCWD, name, AT_FDCWD, to_name, 0);
}

int mkdirat(int folder, const char *name, mode_t mode) {
  CHANGES(int, "folder", folder, name, 0, (char *)0, 1, REAL(mkdirat)(folder, name, mode));
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int folder, const char *name, int flags) {
  CHANGES(int, "delete", folder, name, 0, (char *)0, 1, REAL(unlinkat)(folder, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
