/* The C agent: reads one plan from stdin, works through it, writes one JSON line an event. Ends when stdin is closed.

       ./agent [--runtime LIBRARY]        LIBRARY: ONNX Runtime; default: libonnxruntime.so beside this program
       ./agent --version [--runtime LIBRARY]

   The same protocol as the Python agent (devices/protocol.py), and the same contract tests. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "agent.h"

static const char USAGE[] =
    "agent: usage: agent [--version] [--runtime LIBRARY]; it is started by archsearch, which writes a plan to stdin";

/* The first line of stdin, without its end; `length` tells how long it is. NULL when stdin is empty. */
static char *read_plan(size_t *length) {
  Line line = {0};
  char buffer[65536];
  for (;;) {
    if (line.room - line.length < sizeof buffer + 1) {
      line.room = 2 * line.room + sizeof buffer + 1;
      line.text = need_resized(line.text, line.room);
    }
    ssize_t bytes = read(0, line.text + line.length, sizeof buffer);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) leave("agent: the plan cannot be read from stdin: %s", strerror(errno));
    char *end = memchr(line.text + line.length, '\n', (size_t)bytes);
    line.length = end ? (size_t)(end - line.text) : line.length + (size_t)bytes;
    line.text[line.length] = '\0';
    *length = line.length;
    if (end || bytes == 0) return line.length || end ? line.text : NULL;
  }
}

/* Leave when the host closes stdin or dies: no agent outlives the one who asked. */
static void *end_with_host(void *unused) {
  char ignored[4096];
  ssize_t bytes;
  do bytes = read(0, ignored, sizeof ignored);
  while (bytes > 0 || (bytes < 0 && errno == EINTR));
  _exit(3);
  return unused;
}

/* The host's ear. What libraries print to stdout goes to stderr from here on, so that it breaks no line of ours. */
static int private_stdout(void) {
  int ours = fcntl(1, F_DUPFD_CLOEXEC, 3);
  if (ours < 0 || dup2(2, 1) < 0) leave("agent: stdout or stderr is closed");
  return ours;
}

/* libonnxruntime.so beside this program, or, when a loader was started to run it, beside that. */
static const char *default_library(void) {
  static char path[4096 + 32];
  ssize_t bytes = readlink("/proc/self/exe", path, 4096);
  if (bytes <= 0) return "libonnxruntime.so";
  path[bytes] = '\0';
  strcpy(strrchr(path, '/') + 1, "libonnxruntime.so");
  return path;
}

static void limit_memory(uint64_t bytes) {
  const struct rlimit limit = {.rlim_cur = (rlim_t)bytes, .rlim_max = (rlim_t)bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) leave("agent: the memory limit cannot be set: %s", strerror(errno));
}

static const Runtime *open_runtime(const char *library) {
  static Runtime runtime;
  Failure failure = {0};
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* official builds report to their maker, from a thread that would be measured, too */
  if (!runtime_open(&runtime, library, &failure)) leave("agent: %s", failure.text);
  return &runtime;
}

int main(int count, char **arguments) {
  static Agent agent;
  agent.emulated = is_emulated();
  const char *library = default_library();
  bool version = false;
  for (int i = 1; i < count; i++) {
    if (strcmp(arguments[i], "--version") == 0) {
      version = true;
    } else if (strcmp(arguments[i], "--runtime") == 0 && i + 1 < count) {
      library = arguments[++i];
    } else {
      leave("%s", USAGE);
    }
  }
  if (version) {
    printf(AGENT_VERSION " %s\n", open_runtime(library)->name);
    return 0;
  }
  size_t length = 0;
  Failure failure = {0};
  char *text = read_plan(&length);
  if (!text) leave("%s", USAGE);
  if (!plan_read(text, length, &agent.plan, &failure)) leave("agent: the plan on stdin is not understood: %s", failure.text);
  pthread_t watcher;
  if (pthread_create(&watcher, NULL, end_with_host, NULL) != 0) leave("agent: no thread can be started");
  if (agent.plan.memory_limited) limit_memory(agent.plan.memory_limit_bytes);
  agent.output = private_stdout();
  agent.runtime = open_runtime(library);
  agent_run(&agent);
  _exit(0); /* tearing the runtime down takes time and tells nothing */
}
