#define _GNU_SOURCE
#include "cores.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"

#define CPU SYS "/devices/system/cpu/cpu%d"

typedef struct {
  int core;
  int nth;      /* of the cores that share its physical core */
  double speed; /* the scheduler's capacity, or else the highest clock */
  char siblings[64];
} Ranked;

/* A physical core of its own first, then the fastest; among equals the highest number: core 0 serves most interrupts. */
static int better_first(const void *left, const void *right) {
  const Ranked *a = left, *b = right;
  if (a->nth != b->nth) return a->nth - b->nth;
  if (a->speed != b->speed) return a->speed < b->speed ? 1 : -1;
  return b->core - a->core;
}

/* The first number that a core's files tell, 0 when none does. */
static double speed_of(int core) {
  double capacity = read_number_of(CPU "/cpu_capacity", core);
  if (capacity > 0) return capacity;
  double clock = read_number_of(CPU "/cpufreq/cpuinfo_max_freq", core);
  return clock > 0 ? clock : 0;
}

static void fastest(const cpu_set_t *allowed, int64_t threads, cpu_set_t *chosen) {
  Ranked *ranked = need(CPU_SETSIZE, sizeof *ranked);
  int count = 0;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, allowed)) continue;
    Ranked *rank = &ranked[count];
    *rank = (Ranked){.core = core, .speed = speed_of(core)};
    if (read_line(rank->siblings, sizeof rank->siblings, CPU "/topology/thread_siblings_list", core))
      for (int i = 0; i < count; i++) rank->nth += strcmp(ranked[i].siblings, rank->siblings) == 0;
    count++;
  }
  qsort(ranked, (size_t)count, sizeof *ranked, better_first);
  CPU_ZERO(chosen);
  for (int i = 0; i < count && i < threads; i++) CPU_SET(ranked[i].core, chosen);
  free(ranked);
}

static void put_cores(Line *line, const cpu_set_t *cores) {
  bool first = true;
  for (int core = 0; core < CPU_SETSIZE; core++)
    if (CPU_ISSET(core, cores)) {
      put(line, first ? "%d" : ", %d", core);
      first = false;
    }
}

static _Noreturn void refuse(const int *cores, size_t count, const cpu_set_t *allowed) {
  Line line = {0};
  put(&line, "cannot pin to the cores ");
  for (size_t i = 0; i < count; i++) put(&line, i ? ", %d" : "%d", cores[i]);
  put(&line, ": this machine offers ");
  put_cores(&line, allowed);
  leave("%s", line.text);
}

void pin(const int *cores, size_t count, int64_t threads, Line *mask) {
  cpu_set_t allowed, chosen;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
    put(mask, "null");
    return;
  }
  if (cores) {
    CPU_ZERO(&chosen);
    for (size_t i = 0; i < count; i++) {
      if (cores[i] >= CPU_SETSIZE || !CPU_ISSET(cores[i], &allowed)) refuse(cores, count, &allowed);
      CPU_SET(cores[i], &chosen);
    }
  } else {
    fastest(&allowed, threads, &chosen);
  }
  if (CPU_COUNT(&chosen) > 0 && sched_setaffinity(0, sizeof chosen, &chosen) != 0)
    leave("cannot pin: the kernel refuses the cores");
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) leave("cannot pin: the kernel does not tell the mask");
  put(mask, "[");
  put_cores(mask, &allowed);
  put(mask, "]");
}
