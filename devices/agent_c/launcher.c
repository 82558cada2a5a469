/* The entry `agent` of a bundle that brings its own C library: starts agent-program, beside it, through the loader beside it, so that
   nothing of the machine but its kernel is needed. Linked statically; the process stays the same. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef LOADER
#error "compile with -DLOADER=\"ld-linux-aarch64.so.1\", or whatever the loader is called"
#endif

enum { PATH_ROOM = 4096, MOST_ARGUMENTS = 64 };

int main(int count, char **arguments) {
  static char folder[PATH_ROOM], loader[PATH_ROOM + 32], program[PATH_ROOM + 32];
  char *all[MOST_ARGUMENTS + 8] = {loader, "--inhibit-cache", "--library-path", folder, program};
  ssize_t bytes = readlink("/proc/self/exe", folder, sizeof folder - 1);
  if (bytes <= 0 || count > MOST_ARGUMENTS) {
    fputs("agent: /proc/self/exe cannot be read, or there are too many arguments\n", stderr);
    return 1;
  }
  folder[bytes] = '\0';
  *strrchr(folder, '/') = '\0';
  snprintf(loader, sizeof loader, "%s/%s", folder, LOADER);
  snprintf(program, sizeof program, "%s/agent-program", folder);
  for (int i = 1; i < count; i++) all[4 + i] = arguments[i];
  execv(loader, all);
  perror(loader);
  return 1;
}
