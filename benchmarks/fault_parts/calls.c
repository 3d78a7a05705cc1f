/* Calls of the C library on files below one folder, counted, made to fail, or the last thing that a process does.
 *
 * Loaded with LD_PRELOAD into the process that forks runs. It does nothing until faults_arm; what is armed is
 * inherited by fork and lost by exec. The page is shared by all forks, so that the n-th call is the n-th of all.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, CREATE, WRITE, SYNC, RENAME, UNLINK, MKDIR, TRUNCATE, MAP, READ, COPY, OPERATIONS };
enum { COUNT, KILL_BEFORE, KILL_AFTER, FAIL, SHORT };

#define LOG_BYTES (4 << 20)

struct page {
    int armed;
    char folder[1024];
    char match[256];
    int mask, action, error, lasting;
    long nth;
    volatile long seen;
    volatile int fired;
    volatile long logged;
    char log[LOG_BYTES];
};

static struct page *page;

__attribute__((constructor)) static void begin(void) {
    void *found = (void *)syscall(SYS_mmap, NULL, sizeof(struct page), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    page = found == MAP_FAILED ? NULL : found;
}

void faults_reset(void) {
    page->armed = 0;
    page->seen = page->fired = page->logged = 0;
}

/* mask: bits of the operations that count. match: what the path after the folder must contain. nth: from 1. */
void faults_arm(const char *folder, const char *match, int mask, long nth, int action, int error, int lasting) {
    faults_reset();
    snprintf(page->folder, sizeof page->folder, "%s", folder);
    snprintf(page->match, sizeof page->match, "%s", match);
    page->mask = mask;
    page->nth = nth;
    page->action = action;
    page->error = error;
    page->lasting = lasting;
    page->armed = 1;
}

int faults_fired(void) { return page->fired; }
long faults_log_bytes(void) { return page->logged > LOG_BYTES ? LOG_BYTES : page->logged; }
const char *faults_log(void) { return page->log; }

static const char *names[] = {"open", "create", "write", "sync", "rename", "unlink", "mkdir", "truncate", "map", "read", "copy"};

static int armed(void) { return page && page->armed; }

/* What is to be done about this call: COUNT (nothing) or an action. */
static int about_path(int operation, const char *path) {
    size_t length = strlen(page->folder);
    if (!path || strncmp(path, page->folder, length) || (path[length] != '/' && path[length])) return COUNT;
    const char *rest = path + length;
    if (page->match[0] && !strstr(rest, page->match)) return COUNT;
    if (!(page->mask >> operation & 1)) return COUNT;
    long at = __atomic_add_fetch(&page->seen, 1, __ATOMIC_SEQ_CST);
    char line[600];
    int size = snprintf(line, sizeof line, "%s %s\n", names[operation], rest);
    if (size >= (int)sizeof line) size = sizeof line - 1;
    long place = __atomic_fetch_add(&page->logged, size, __ATOMIC_SEQ_CST);
    if (place + size < LOG_BYTES) memcpy(page->log + place, line, size);
    if (at == page->nth || (page->lasting && page->nth && at > page->nth)) {
        page->fired = 1;
        return page->action;
    }
    return COUNT;
}

static int about_at(int operation, int folder, const char *path) {
    char whole[1400];
    if (!path) return COUNT;
    if (path[0] == '/') return about_path(operation, path);
    char link[64];
    long length;
    if (folder == AT_FDCWD) {
        length = syscall(SYS_getcwd, whole, 1024);
        if (length > 0) length--;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = syscall(SYS_readlink, link, whole, 1024);
    }
    if (length <= 0) return COUNT;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return about_path(operation, whole);
}

static int about_file(int operation, int file) {
    char link[64], path[1100];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlink, link, path, 1024);
    if (length <= 0) return COUNT;
    path[length] = 0;
    return about_path(operation, path);
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

#define BODY(ABOUT, FAILED, CALL)                   \
    int what = armed() ? (ABOUT) : COUNT;           \
    if (what == KILL_BEFORE) die();                 \
    if (what == FAIL) { errno = page->error; return FAILED; } \
    long result = (CALL);                           \
    if (what == KILL_AFTER) die();                  \
    return result;

#define BYTES(ABOUT, FAILED, SIZE, CALL)            \
    int what = armed() ? (ABOUT) : COUNT;           \
    if (what == KILL_BEFORE) die();                 \
    if (what == FAIL) { errno = page->error; return FAILED; } \
    if (what == SHORT && SIZE > 1) SIZE /= 2;       \
    long result = (CALL);                           \
    if (what == KILL_AFTER) die();                  \
    return result;

static int opening(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC) ? CREATE : OPEN; }

#define MODE                                        \
    int mode = 0;                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {            \
        va_list rest;                               \
        va_start(rest, flags);                      \
        mode = va_arg(rest, int);                   \
        va_end(rest);                               \
    }

int openat(int folder, const char *path, int flags, ...) {
    MODE BODY(about_at(opening(flags), folder, path), -1, syscall(SYS_openat, folder, path, flags, mode))
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE BODY(about_at(opening(flags), folder, path), -1, syscall(SYS_openat, folder, path, flags, mode))
}
int open(const char *path, int flags, ...) {
    MODE BODY(about_at(opening(flags), AT_FDCWD, path), -1, syscall(SYS_openat, AT_FDCWD, path, flags, mode))
}
int open64(const char *path, int flags, ...) {
    MODE BODY(about_at(opening(flags), AT_FDCWD, path), -1, syscall(SYS_openat, AT_FDCWD, path, flags, mode))
}
int creat(const char *path, mode_t mode) {
    BODY(about_at(CREATE, AT_FDCWD, path), -1, syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode))
}
ssize_t write(int file, const void *from, size_t size) {
    BYTES(about_file(WRITE, file), -1, size, syscall(SYS_write, file, from, size))
}
ssize_t pwrite(int file, const void *from, size_t size, off_t at) {
    BYTES(about_file(WRITE, file), -1, size, syscall(SYS_pwrite64, file, from, size, at))
}
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    BYTES(about_file(WRITE, file), -1, size, syscall(SYS_pwrite64, file, from, size, at))
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    BODY(about_file(WRITE, file), -1, syscall(SYS_writev, file, parts, count))
}
ssize_t read(int file, void *to, size_t size) {
    BYTES(about_file(READ, file), -1, size, syscall(SYS_read, file, to, size))
}
ssize_t pread(int file, void *to, size_t size, off_t at) {
    BYTES(about_file(READ, file), -1, size, syscall(SYS_pread64, file, to, size, at))
}
ssize_t pread64(int file, void *to, size_t size, off64_t at) {
    BYTES(about_file(READ, file), -1, size, syscall(SYS_pread64, file, to, size, at))
}
int fsync(int file) { BODY(about_file(SYNC, file), -1, syscall(SYS_fsync, file)) }
int fdatasync(int file) { BODY(about_file(SYNC, file), -1, syscall(SYS_fdatasync, file)) }
int rename(const char *from, const char *to) {
    BODY(about_at(RENAME, AT_FDCWD, to), -1, syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0))
}
int renameat(int folder, const char *from, int other, const char *to) {
    BODY(about_at(RENAME, other, to), -1, syscall(SYS_renameat2, folder, from, other, to, 0))
}
int renameat2(int folder, const char *from, int other, const char *to, unsigned flags) {
    BODY(about_at(RENAME, other, to), -1, syscall(SYS_renameat2, folder, from, other, to, flags))
}
int unlink(const char *path) { BODY(about_at(UNLINK, AT_FDCWD, path), -1, syscall(SYS_unlinkat, AT_FDCWD, path, 0)) }
int unlinkat(int folder, const char *path, int flags) {
    BODY(about_at(UNLINK, folder, path), -1, syscall(SYS_unlinkat, folder, path, flags))
}
int mkdir(const char *path, mode_t mode) {
    BODY(about_at(MKDIR, AT_FDCWD, path), -1, syscall(SYS_mkdirat, AT_FDCWD, path, mode))
}
int mkdirat(int folder, const char *path, mode_t mode) {
    BODY(about_at(MKDIR, folder, path), -1, syscall(SYS_mkdirat, folder, path, mode))
}
int ftruncate(int file, off_t size) { BODY(about_file(TRUNCATE, file), -1, syscall(SYS_ftruncate, file, size)) }
int ftruncate64(int file, off64_t size) { BODY(about_file(TRUNCATE, file), -1, syscall(SYS_ftruncate, file, size)) }
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    BODY(about_file(COPY, to), -1, syscall(SYS_sendfile, to, from, at, size))
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    BODY(about_file(COPY, to), -1, syscall(SYS_sendfile, to, from, at, size))
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags) {
    BODY(about_file(COPY, to), -1, syscall(SYS_copy_file_range, from, at, to, there, size, flags))
}
static void *mapped(void *at, size_t size, int access, int flags, int file, off64_t offset) {
    int what = armed() && file >= 0 && !(flags & MAP_ANONYMOUS) ? about_file(MAP, file) : COUNT;
    if (what == KILL_BEFORE) die();
    if (what == FAIL) {
        errno = page->error;
        return MAP_FAILED;
    }
    void *result = (void *)syscall(SYS_mmap, at, size, access, flags, file, offset);
    if (what == KILL_AFTER) die();
    return result;
}
void *mmap(void *at, size_t size, int access, int flags, int file, off_t offset) {
    return mapped(at, size, access, flags, file, offset);
}
void *mmap64(void *at, size_t size, int access, int flags, int file, off64_t offset) {
    return mapped(at, size, access, flags, file, offset);
}
