/* Preloaded into a service's processes: ends the process at one of its own system calls, as a power cut would.
 *
 * FAULTS_CRASH_MODULE  the process: a word of its command line, such as workers.job_process
 * FAULTS_CRASH_CALL    write, fsync, link or unlink
 * FAULTS_CRASH_PATH    a part of the path that the call is about
 * FAULTS_CRASH_COUNT   at which of these calls, from 1
 * FAULTS_CRASH_ONCE    a file that is made by the crash; while it exists there is no other
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int meant;
static atomic_int count;

__attribute__((constructor)) static void begin(void) {
    char line[4096];
    const char *module = getenv("FAULTS_CRASH_MODULE");
    int file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t length = module ? read(file, line, sizeof line - 1) : 0;
    close(file);
    line[length > 0 ? length : 0] = 0;
    for (ssize_t at = 0; at < length; at += strlen(line + at) + 1)
        meant |= !strcmp(line + at, module);
}

static void reach(const char *call, const char *path) {
    if (!meant || strcmp(call, getenv("FAULTS_CRASH_CALL")) || !strstr(path, getenv("FAULTS_CRASH_PATH"))) return;
    if (atomic_fetch_add(&count, 1) + 1 != atoi(getenv("FAULTS_CRASH_COUNT"))) return;
    if (open(getenv("FAULTS_CRASH_ONCE"), O_CREAT | O_EXCL | O_WRONLY, 0600) >= 0) kill(getpid(), SIGKILL);
}

static void reach_file(const char *call, int file) {
    char name[64], path[4096];
    if (!meant) return;
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    reach(call, path);
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *from, size_t n) { reach_file("write", file); return REAL(write)(file, from, n); }
ssize_t writev(int file, const struct iovec *from, int n) { reach_file("write", file); return REAL(writev)(file, from, n); }
ssize_t pwrite64(int file, const void *from, size_t n, off64_t at) {
    reach_file("write", file);
    return REAL(pwrite64)(file, from, n, at);
}
int fsync(int file) { reach_file("fsync", file); return REAL(fsync)(file); }
int fdatasync(int file) { reach_file("fsync", file); return REAL(fdatasync)(file); }
int link(const char *from, const char *to) { reach("link", to); return REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { reach("link", to); return REAL(linkat)(a, from, b, to, flags); }
int rename(const char *from, const char *to) { reach("link", to); return REAL(rename)(from, to); }
int unlink(const char *path) { reach("unlink", path); return REAL(unlink)(path); }
