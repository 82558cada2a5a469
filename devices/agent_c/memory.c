#define _GNU_SOURCE
#include "memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"

/* Anonymous bytes from which the share of huge pages is told: as in the Python agent, whose interpreter has small pages of its own. */
static const int64_t MUCH = 256ll << 20;

/* "name: 123 kB" in bytes. */
static int64_t read_bytes(const char *path, const char *name) {
  int64_t kilobytes = read_entry(path, name);
  return kilobytes < 0 ? -1 : kilobytes * 1024;
}

int64_t resident_bytes(void) {
  char text[128], *resident;
  if (!read_line(text, sizeof text, "/proc/self/statm") || !(resident = strchr(text, ' '))) return -1;
  return strtoll(resident, NULL, 10) * sysconf(_SC_PAGESIZE);
}

int64_t peak_bytes(void) { return read_bytes("/proc/self/status", "VmHWM:"); }

int64_t rollup_bytes(const char *name) { return read_bytes("/proc/self/smaps_rollup", name); }

double huge_page_share(void) {
  int64_t anonymous = rollup_bytes("Anonymous:"), huge = rollup_bytes("AnonHugePages:");
  return anonymous >= MUCH && huge >= 0 ? (double)huge / (double)anonymous : NAN;
}

int64_t available_bytes(void) { return read_bytes("/proc/meminfo", "MemAvailable:"); }

typedef struct {
  const char *folder, *name;
  int64_t bytes;
} ModelFiles;

static void add_file(void *context, const char *name) {
  ModelFiles *files = context;
  char path[4096];
  struct stat file;
  if (strncmp(name, files->name, strlen(files->name)) != 0) return;
  snprintf(path, sizeof path, "%s/%s", files->folder, name);
  if (stat(path, &file) == 0 && S_ISREG(file.st_mode)) files->bytes += file.st_size;
}

bool model_fits(const char *model, Failure *failure) {
  const char *slash = strrchr(model, '/');
  char *folder = slash ? need_text(model) : need_text(".");
  if (slash) folder[slash - model] = '\0';
  ModelFiles files = {.folder = *folder ? folder : "/", .name = slash ? slash + 1 : model};
  for_each_entry(files.folder, add_file, &files);
  free(folder);
  int64_t available = available_bytes();
  if (available < 0 || files.bytes <= available) return true;
  return failed(failure,
                "out of memory: the model alone takes %.0f MB and %.0f MB are available; "
                "close other programs, or measure fewer models at once",
                (double)files.bytes / 1e6, (double)available / 1e6);
}
